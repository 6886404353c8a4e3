"""What the daemon does about periods by its clock: it begins to close what is over, and corrects what is closed."""

from dataclasses import dataclass, field

from metering.closing import Desk
from metering.core.period import PeriodStatus
from metering.corrections import PostCorrections, differences, fingerprint, touched_since
from metering.periods import AdvancePeriods, KnownPeriod, known_period, periods
from metering.tables import CORRECTION
from scheduler.store.chained import head_of


def correct_period(desk: Desk, zone: str, name: str) -> int:
    """Writes the corrections that a closed period lacks; returns how many. Raises Refused for one that is not closed.

    Rates the whole period again: call it beside the event loop.
    """
    with desk.database.read() as connection:
        seen = head_of(connection, CORRECTION).sequence
        found = differences(connection, known_period(connection, name, zone, desk.clock.now_ms()))
    if not found:
        return 0
    return desk.carry_out(PostCorrections(tuple(found), seen, zone)).result()


@dataclass(slots=True)
class PeriodKeeper:
    """Looks at the periods now and then; what has not moved since the last look costs two small queries."""

    desk: Desk
    zone: str
    _seen: tuple[int, int] | None = field(default=None)

    def look(self) -> int:
        """Advances periods and corrects closed ones; returns the number of corrections. Raises Refused, StoreError."""
        now_ms = self.desk.clock.now_ms()
        with self.desk.database.read() as connection:
            known = periods(connection, self.zone, now_ms)
            mark = fingerprint(connection)
            stale = [] if mark == self._seen else [each for each in known if self._is_stale(each)]
            touched = [each.period.name for each in stale if touched_since(connection, each)]
        if any(each.closing_ms is None and each.period.to_ms <= now_ms for each in known):
            self.desk.carry_out(AdvancePeriods(self.zone)).result()
        written = sum(correct_period(self.desk, self.zone, name) for name in touched)
        self._seen = mark
        return written

    @staticmethod
    def _is_stale(each: KnownPeriod) -> bool:
        return each.status is PeriodStatus.CLOSED
