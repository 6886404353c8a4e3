"""Billing periods in the daemon: in which zone months begin, and the look at them now and then."""

from cli.daemon.money import centre_zone
from cli.daemon.settings import Settings
from metering.closing import PeriodTerms
from metering.focus import FocusTerms
from metering.pruning import PruneObserved
from metering.settling import PeriodKeeper
from scheduler.loop import Controller

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
PRUNE_HOURS = 6
PERIODS_SECONDS = 60
"""Between two looks at billing periods: how late one begins to close, or is corrected."""


def period_terms(settings: Settings) -> PeriodTerms:
    """Returns how the centre's periods are."""
    metering = settings.metering
    window_ms = round(metering.closing_hours * HOUR_MS)
    return PeriodTerms(
        centre_zone(metering.zone).key, window_ms, FocusTerms(issuer=metering.issuer), metering.processes
    )


class PeriodTurns:
    """Looks at billing periods while this daemon leads."""

    def __init__(self, controller: Controller, terms: PeriodTerms, observation_days: int) -> None:
        self._controller = controller
        self._pruning = PruneObserved(observation_days * DAY_MS, terms.zone)
        self.keeper = PeriodKeeper(controller, terms.zone, terms.window_ms)

    def look(self) -> None:
        """Begins to close the billing periods that are over, and corrects those that are closed."""
        if self._controller.is_leading:
            self.keeper.look()
        else:
            self.keeper.forget()

    def prune(self) -> None:
        """Forgets what was observed long ago, part by part."""
        while self._controller.is_leading and self._controller.carry_out(self._pruning).result(timeout=60.0):
            pass
