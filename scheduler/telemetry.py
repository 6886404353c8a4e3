"""The daemon's Prometheus metrics: what happened, counted as it happens, and what is, read at scrape time.

`Telemetry` is the `Observer` that the controller reports to; it also times requests and renders `/metrics`. Names and
labels are a contract: boards, alerts and users' own queries hold on to them. Labels come from closed or admin-made sets
only; a job's id stands in one info series of the GPUs that it holds, and nowhere else. Nothing here is global: each
Telemetry has a registry of its own.
"""

import math
import threading
from bisect import bisect_left
from collections.abc import Collection, Iterable, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from scheduler.core.lifecycle import ENDS
from scheduler.core.model import AccountId, JobState, PoolName
from scheduler.core.plan import Plan
from scheduler.exposition import render
from scheduler.observer import PREEMPTION_REASONS, PreemptionReason, size_class

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_WAIT_EDGES = (1, 5, 15, 60, 300, 900, 1800, 3600, 7200, 14_400, 28_800, 86_400, 259_200, 604_800)
"""Seconds a job waits: from interactive to a week, with the edge of the QueueWaitHigh alert (4 h)."""
_ERROR_EDGES = (1, 5, 15, 60, 240, 600, 1800, 3600, 7200, 14_400, 28_800, 86_400, 259_200)
"""Seconds that a start was off its estimate: from a tick to the days that a limit may be longer than a job."""
_CYCLE_EDGES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
"""Seconds of a tick: the promises are 50 ms and 500 ms, the SchedulingSlow alert is at 5 s."""
_REQUEST_EDGES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)

Labels = tuple[str, ...]


class _Counts:
    """A counter family. Adding is a few dictionary steps under a lock, from any thread."""

    def __init__(self, name: str, words: str, labels: Labels) -> None:
        self._name, self._words, self._labels = name, words, labels
        self._values: dict[Labels, float] = {}
        self._lock = threading.Lock()

    def add(self, labels: Labels, amount: float = 1) -> None:
        """Adds an amount that is not negative."""
        with self._lock:
            self._values[labels] = self._values.get(labels, 0) + amount

    def begin(self, known: Iterable[Labels]) -> None:
        """Lets series say 0 before their first event: `increase()` does not see one that is born with a value."""
        with self._lock:
            for labels in known:
                self._values.setdefault(labels, 0)

    def family(self) -> Metric:
        """Returns the family as it is now."""
        family = CounterMetricFamily(self._name, self._words, labels=self._labels)
        with self._lock:
            values = sorted(self._values.items())
        for labels, value in values:
            family.add_metric(labels, value)
        return family


class _Buckets:
    """A histogram family with fixed edges."""

    def __init__(self, name: str, words: str, labels: Labels, edges: Sequence[float]) -> None:
        self._name, self._words, self._labels = name, words, labels
        self._edges = tuple(float(edge) for edge in edges)
        self._values: dict[Labels, tuple[list[int], list[float]]] = {}
        self._lock = threading.Lock()

    def observe(self, labels: Labels, value: float) -> None:
        """Takes in one measurement."""
        place = bisect_left(self._edges, value)
        with self._lock:
            found = self._values.get(labels)
            if found is None:
                found = self._values[labels] = ([0] * (len(self._edges) + 1), [0.0])
            found[0][place] += 1
            found[1][0] += value

    def family(self) -> Metric:
        """Returns the family as it is now, buckets cumulated."""
        family = HistogramMetricFamily(self._name, self._words, labels=self._labels)
        with self._lock:
            values = sorted((labels, list(counts), total[0]) for labels, (counts, total) in self._values.items())
        for labels, counts, total in values:
            buckets, sum_so_far = [], 0
            for edge, count in zip((*self._edges, math.inf), counts, strict=True):
                sum_so_far += count
                buckets.append(("+Inf" if math.isinf(edge) else repr(edge), sum_so_far))
            family.add_metric(labels, buckets, total)
        return family


class Telemetry:
    """Counts what the controller and the routes report, and renders all metrics. Every method is thread-safe."""

    def __init__(self, version: str) -> None:
        self._version = version
        self._posted_ms: int | None = None
        self.registry = CollectorRegistry(auto_describe=False)
        self._waits = _Buckets(
            "turnstile_job_wait_seconds",
            "Time that jobs waited for their start, by pool and size in GPUs.",
            ("pool", "size"),
            _WAIT_EDGES,
        )
        self._estimates = _Buckets(
            "turnstile_start_estimate_error_seconds",
            "How far starts were from their first estimate, either way, by pool.",
            ("pool",),
            _ERROR_EDGES,
        )
        self._cycles = _Buckets("turnstile_schedule_cycle_seconds", "Time to plan one tick.", (), _CYCLE_EDGES)
        self._requests = _Buckets(
            "turnstile_api_request_seconds",
            "Time to answer requests, by route template and status; long polls and streams are left out.",
            ("route", "code"),
            _REQUEST_EDGES,
        )
        self._started = _Counts("turnstile_jobs_started", "Starts of jobs, by pool.", ("pool",))
        self._finished = _Counts(
            "turnstile_jobs_finished", "Jobs that ended, by tenant and end state.", ("tenant", "result")
        )
        self._preempted = _Counts(
            "turnstile_preempted_jobs", "Jobs stopped for another job, by their own tenant.", ("tenant", "reason")
        )
        self._preempting = _Counts(
            "turnstile_preempting_jobs", "Jobs stopped for another job, by the other's tenant.", ("tenant", "reason")
        )
        self._tenant_waits = _Counts(
            "turnstile_tenant_wait_seconds", "Time that a tenant's started jobs waited, in all.", ("tenant",)
        )
        self._tenant_starts = _Counts("turnstile_tenant_jobs_started", "Starts of a tenant's jobs.", ("tenant",))
        self.registry.register(_Happened(self))

    # ---- what the controller tells ----------------------------------------------------------------------------------

    def job_started(self, pool: PoolName, tenant: AccountId, gpus: int, wait_seconds: float) -> None:
        """Counts a start and the time that the job waited for it."""
        waited = max(wait_seconds, 0.0)
        self._waits.observe((pool, size_class(gpus)), waited)
        self._started.add((pool,))
        self._tenant_waits.add((tenant,), waited)
        self._tenant_starts.add((tenant,))

    def job_finished(self, tenant: AccountId, result: JobState) -> None:
        """Counts an end."""
        self._finished.add((tenant, result.value))

    def jobs_preempted(self, victim: AccountId, preemptor: AccountId, reason: PreemptionReason) -> None:
        """Counts a stop of one job for another, on both sides."""
        self._preempted.add((victim, reason))
        self._preempting.add((preemptor, reason))

    def start_estimated(self, pool: PoolName, error_seconds: float) -> None:
        """Takes in how far a start was from its estimate."""
        self._estimates.observe((pool,), error_seconds)

    def cycle(self, seconds: float, made: Plan) -> None:  # noqa: ARG002 -- for observers that tell more
        """Takes in how long a tick took to plan."""
        self._cycles.observe((), seconds)

    @property
    def posted_ms(self) -> int | None:
        """When the ledger's latest write became durable; None before the first."""
        return self._posted_ms

    def ledger_posted(self, at_ms: int) -> None:
        """Notes when the ledger's latest write became durable."""
        self._posted_ms = at_ms if self._posted_ms is None else max(self._posted_ms, at_ms)

    # ---- what the routes tell ---------------------------------------------------------------------------------------

    def request(self, route: str, code: int, seconds: float) -> None:
        """Takes in how long an answer took. `route` is the template, never the path."""
        self._requests.observe((route, str(code)), seconds)

    # ---- who there is -----------------------------------------------------------------------------------------------

    def begin(self, tenants: Collection[AccountId], pools: Collection[PoolName]) -> None:
        """Lets the counters of these tenants and pools say 0 from now on, before their first event.

        Histograms begin with their first measurement: a quantile of nothing is no number, and would be drawn as one.
        """
        ends = sorted(state.value for state in ENDS)
        self._finished.begin((tenant, end) for tenant in tenants for end in ends)
        for side in (self._preempted, self._preempting):
            side.begin((tenant, reason) for tenant in tenants for reason in PREEMPTION_REASONS)
        for family in (self._tenant_waits, self._tenant_starts):
            family.begin((tenant,) for tenant in tenants)
        self._started.begin((pool,) for pool in pools)

    # ---- what Prometheus reads --------------------------------------------------------------------------------------

    def happened(self) -> Iterable[Metric]:
        """Yields the families that are counted here."""
        build = GaugeMetricFamily("turnstile_build_info", "The daemon's version; always 1.", labels=("version",))
        build.add_metric((self._version,), 1)
        yield build
        counted = (self._waits, self._started, self._finished, self._preempted, self._preempting)
        for each in (*counted, self._tenant_waits, self._tenant_starts, self._estimates, self._cycles, self._requests):
            yield each.family()
        posted = GaugeMetricFamily(
            "turnstile_ledger_last_posted_timestamp_seconds", "When the ledger was last written durably, in Unix time."
        )
        if self._posted_ms is not None:
            posted.add_metric((), self._posted_ms / 1000)
        yield posted

    def render(self, present: Iterable[Metric]) -> bytes:
        """Returns the exposition: what happened, and the families read from the state at this scrape."""
        return render([*self.registry.collect(), *present]).encode()


class _Happened(Collector):
    """The registry's view of a Telemetry."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry

    def collect(self) -> Iterable[Metric]:
        return self._telemetry.happened()
