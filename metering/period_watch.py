"""Billing periods for Prometheus: which wait to be closed, and whether what is closed is as it was sealed."""

from collections.abc import Iterable, Iterator

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from metering.settling import PeriodKeeper


class PeriodCollector(Collector):
    """Shows what a PeriodKeeper found at its last look; nothing while another daemon leads."""

    def __init__(self, keeper: PeriodKeeper) -> None:
        self._keeper = keeper

    def describe(self) -> Iterable[Metric]:
        """Returns the families without series, so that registering reads nothing and doubles are refused."""
        return [GaugeMetricFamily(name, says) for name, says in _SAYS.items()]

    def collect(self) -> Iterator[Metric]:
        """Returns the families with the numbers of the last look."""
        standing = self._keeper.standing
        numbers: tuple[int, ...] = ()
        if standing is not None:
            numbers = (standing.closing, standing.overdue, standing.uncorrected, standing.broken)
        for place, (name, says) in enumerate(_SAYS.items()):
            family = GaugeMetricFamily(name, says)
            if numbers:
                family.add_metric((), numbers[place])
            yield family


_SAYS = {
    "turnstile_periods_closing": "Billing periods that are over and not closed.",
    "turnstile_periods_overdue": "Of those, periods for which late facts are waited for no longer: close them.",
    "turnstile_periods_uncorrected": "Closed periods with late facts and without their corrections. Must be 0.",
    "turnstile_periods_broken": "Closed periods whose ledger lacks rows that they were sealed with. Must be 0.",
}
