"""Shows how many requests went to the API server: what a centre asks when the server is slow, and who it is."""

from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from k8s.api import Api


class TrafficCollector(Collector):
    """Counts since the daemon's start, by HTTP method; a watch counts once, however long it stays open."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def describe(self) -> Iterable[Metric]:
        """Returns the family without series, so that doubles are refused."""
        return (_family(),)

    def collect(self) -> Iterator[Metric]:
        """Returns the family as of now."""
        family = _family()
        for method, count in sorted(self._api.sent().items()):
            family.add_metric((method,), count)
        yield family


def _family() -> CounterMetricFamily:
    words = "Requests sent to the Kubernetes API server, tries included."
    return CounterMetricFamily("turnstile_kubernetes_requests_total", words, labels=("method",))
