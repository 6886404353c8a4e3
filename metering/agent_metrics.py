"""The agent's own metrics, beside those of its GPUs: what waits on its disk, and how its deliveries stand.

There is no `turnstile_build_info` here: its absence is how an alert knows that the daemon is gone.
"""

from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from metering.reporter import Reporter

_Family = GaugeMetricFamily | CounterMetricFamily


class AgentCollector(Collector):
    """Shows a Reporter."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter

    def describe(self) -> Iterable[Metric]:
        """Returns the families without series, so that registering reads nothing and doubles are refused."""
        return _families()

    def collect(self) -> Iterator[Metric]:
        """Returns the families with the values of now."""
        batches, size, dropped, refused, skew, delivery = _families()
        waiting, size_bytes, lost = self._reporter.spooled
        link = self._reporter.link
        batches.add_metric((), waiting)
        size.add_metric((), size_bytes)
        dropped.add_metric((), lost)
        refused.add_metric((), link.refused)
        if link.skew_ms is not None:
            skew.add_metric((), link.skew_ms / 1000)
        if link.last_delivery_ms is not None:
            delivery.add_metric((), link.last_delivery_ms / 1000)
        yield from (batches, size, dropped, refused, skew, delivery)


def _families() -> tuple[_Family, _Family, _Family, _Family, _Family, _Family]:
    return (
        GaugeMetricFamily("turnstile_agent_spool_batches", "Batches of evidence that wait for the daemon."),
        GaugeMetricFamily("turnstile_agent_spool_bytes", "What the waiting batches take on the node's disk."),
        CounterMetricFamily(
            "turnstile_agent_dropped_batches", "Batches lost since the agent's start: no room, no disk, not readable."
        ),
        CounterMetricFamily("turnstile_agent_refused_facts", "Facts that the daemon left out since the agent's start."),
        GaugeMetricFamily("turnstile_agent_clock_skew_seconds", "How far the node's clock is ahead of the daemon's."),
        GaugeMetricFamily("turnstile_agent_last_delivery_timestamp_seconds", "When the daemon last took something in."),
    )
