"""Puts money together for the daemon: the centre's zone, admission with budgets, and the periodic keeping of both."""

import logging
import os
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from metering.admission import BudgetAdmission
from metering.budget_watch import BudgetWatch
from metering.keeping import KeepBudgets, is_due
from scheduler.core.model import tenant_of
from scheduler.loop import Controller

logger = logging.getLogger(__name__)

KEEP_SECONDS = 5
"""Between two looks at whose hold is to be renewed or settled: a third of the least notice of an end of money."""
WHOLE_SECONDS = 60
"""Between two looks at every budget: how late a new month's money is seen."""
_LOCALTIME = Path("/etc/localtime")


def centre_zone(name: str | None) -> ZoneInfo:
    """Returns the zone of the settings, else the system's, else UTC where the system names none."""
    if name is not None:
        return ZoneInfo(name)
    wanted = os.environ.get("TZ", "").removeprefix(":") or str(_LOCALTIME.resolve()).rpartition("zoneinfo/")[2]
    try:
        return ZoneInfo(wanted)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return ZoneInfo("UTC")


class BudgetKeeper:
    """Keeps budgets while this daemon leads; each look says in the log which budgets are near their end."""

    def __init__(self, controller: Controller, admission: BudgetAdmission) -> None:
        self._controller = controller
        self._admission = admission
        self.watch = BudgetWatch(controller.database)

    def keep(self) -> None:
        """Charges, extends and stops what is due; where nothing is, nothing is written and nobody is woken."""
        if not self._controller.is_leading:
            return
        with self._controller.database.read() as connection:
            has_work = is_due(connection, self._controller.clock.now_ms())
        if has_work:
            self._carry_out(is_whole=False)

    def keep_all(self) -> None:
        """Looks at every budget besides, and takes down for metrics how they stand."""
        if not self._controller.is_leading:
            self.watch.forget()
            return
        self._carry_out(is_whole=True)
        self.watch.look(self._controller.clock.now_ms())

    def _carry_out(self, *, is_whole: bool) -> None:
        kept = self._controller.carry_out(KeepBudgets(self._admission, is_whole)).result(timeout=30.0)
        for notice in kept.notices:
            ids = {"tenant": tenant_of(notice.account)}
            logger.warning("budget of %s: %d %% used or set aside", notice.account, notice.percent, extra=ids)
        for allocation in kept.stopped:
            logger.warning("a job stops: no money is left for it", extra={"allocation": allocation})
