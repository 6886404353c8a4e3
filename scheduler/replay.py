"""The same core driven by a trace: virtual time, the simulated executor, no store. Deterministic but for its timings.

Time jumps from event to event: an arrival, an end, a begin time. At each instant everything that happens at it is taken
in before one tick plans. What the store does in the daemon (ids, what becomes of a job) is done by the same pure rules.
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from scheduler.clock import ManualClock
from scheduler.core.cycle import plan
from scheduler.core.events import AllocationEnded, AllocationMade, AllocationStarted, JobSubmitted, NodeChanged
from scheduler.core.model import (
    GPU_UNITS,
    AccountId,
    Allocation,
    AllocationId,
    Booking,
    EndReason,
    Job,
    JobId,
    tenant_of,
)
from scheduler.core.outcome import Verdict, after_end
from scheduler.core.placement import verdict
from scheduler.core.plan import Start
from scheduler.core.policy import Policy
from scheduler.core.state import ClusterState
from scheduler.executor import Ended, LaunchSpec, NodeInventory, Started, StartOrder
from scheduler.scenario import TraceJob
from scheduler.simulated import SimulatedExecutor

SHORTEST_SECONDS = 10
"""Below this a job's own run time does not count in its bounded slowdown (Feitelson et al., JSSPP 1997)."""


@dataclass(slots=True)
class JobRun:
    """What became of a job of the trace; times in milliseconds from the trace's beginning, None if it never came."""

    trace: TraceJob
    start_ms: int | None = None
    end_ms: int | None = None


@dataclass(frozen=True, slots=True)
class AllocationRun:
    """One start of a job, for the schedule file."""

    label: str
    start_ms: int
    end_ms: int
    nodes: tuple[str, ...]
    booking: Booking
    end_reason: str


@dataclass(slots=True)
class _Integrals:
    """Sums over virtual time, in unit-milliseconds."""

    held: int = 0
    stranded: int = 0
    unfair: int = 0
    contended_ms: int = 0


class Replay:
    """One run of a trace on a cluster."""

    def __init__(self, nodes: Sequence[NodeInventory], trace: Sequence[TraceJob], policy: Policy) -> None:
        self._clock = ManualClock(0)
        self._policy = policy
        self._state = ClusterState()
        self._executor = SimulatedExecutor(self._clock, lambda: nodes)
        for inventory in nodes:
            self._state.apply(NodeChanged(0, inventory.node, inventory.devices))
        self._capacity_units = sum(device.units for inventory in nodes for device in inventory.devices)
        self.runs = [JobRun(job) for job in trace]
        self.schedule: list[AllocationRun] = []
        self.unplaced = 0
        self.preemptions = 0
        self.lost_unit_ms = 0
        self.tick_seconds: list[float] = []
        self.wall_seconds = 0.0
        self._decision = 0
        self._integrals = _Integrals()
        self._tenant_held: Counter[AccountId] = Counter()
        self._starts: dict[AllocationId, tuple[int, Start]] = {}

    def run(self) -> "Replay":
        """Plays the trace to its end: until nothing runs and nothing that could run waits."""
        began = time.perf_counter()
        arrivals = 0
        while True:
            due = [moment for moment in (self._executor.next_due_ms(), self._state.next_due_ms()) if moment is not None]
            if arrivals < len(self.runs):
                due.append(self.runs[arrivals].trace.submit_ms)
            if not due:
                break
            now_ms = max(self._clock.now_ms(), min(due))
            self._integrate(now_ms)
            self._clock.move_to(now_ms)
            changed = self._observe(now_ms)
            while arrivals < len(self.runs) and self.runs[arrivals].trace.submit_ms <= now_ms:
                self._submit(arrivals, now_ms)
                arrivals += 1
                changed = True
            if changed or (self._state.next_due_ms() or now_ms + 1) <= now_ms:
                self._tick(now_ms)
        self.wall_seconds = time.perf_counter() - began
        return self

    def _submit(self, index: int, now_ms: int) -> None:
        trace = self.runs[index].trace
        state = self._state
        structure = verdict(state.capacity, trace.shape, state.closed_pools, state.structures)
        if structure.nodes_considered == 0 or state.structures[trace.shape][1].capable < trace.shape.nodes:
            self.unplaced += 1
            return
        job = Job(
            JobId(index + 1),
            trace.account,
            trace.user,
            trace.shape,
            trace.time_limit_ms,
            now_ms,
            trace.wanted,
            trace.priority,
        )
        state.apply(JobSubmitted(now_ms, job))

    def _observe(self, now_ms: int) -> bool:
        ends = False
        for observation in self._executor.observe():
            if isinstance(observation, Started):
                self._state.apply(AllocationStarted(now_ms, observation.allocation))
            else:
                self._end(observation, now_ms)
                ends = True
        return ends

    def _end(self, ended: Ended, now_ms: int) -> None:
        state = self._state
        allocation = state.allocations[ended.allocation]
        job = state.jobs[allocation.job]
        after, fate = after_end(job, ended.reason, now_ms, self._policy)
        state.apply(AllocationEnded(now_ms, allocation.id, ended.reason, after))
        self._executor.acknowledge(allocation.id)
        self._tenant_held[tenant_of(allocation.account)] -= allocation.total_units
        run = self.runs[job.id - 1]
        start_ms, start = self._starts.pop(allocation.id)
        nodes = tuple(grant.node for grant in start.grants)
        reason = "completed" if ended.reason is None else ended.reason.value
        self.schedule.append(AllocationRun(run.trace.label, start_ms, ended.at_ms, nodes, start.booking, reason))
        if fate is Verdict.ENDED:
            run.end_ms = ended.at_ms
        else:
            self.preemptions += ended.reason is EndReason.PREEMPTED
            self.lost_unit_ms += allocation.total_units * (ended.at_ms - start_ms)

    def _tick(self, now_ms: int) -> None:
        while True:
            began = time.perf_counter()
            self._decision += 1
            made = plan(self._state, self._policy, now_ms, self._decision)
            self.tick_seconds.append(time.perf_counter() - began)
            for start in made.starts:
                self._start(start, now_ms)
            if not made.is_partial:
                return

    def _start(self, start: Start, now_ms: int) -> None:
        job = self._state.jobs[start.job]
        attempt = job.attempt + 1
        allocation = Allocation(
            AllocationId(f"{job.id}.{attempt}"),
            job.id,
            job.account,
            job.user,
            start.gpu_class,
            start.booking,
            start.grants,
            now_ms,
            attempt,
            job.time_limit_ms,
        )
        run = self.runs[job.id - 1]
        if run.start_ms is None:
            run.start_ms = now_ms
        self._starts[allocation.id] = (now_ms, start)
        self._tenant_held[tenant_of(job.account)] += allocation.total_units
        self._state.apply(AllocationMade(now_ms, allocation))
        spec = LaunchSpec(("trace",), run.trace.label, simulated_seconds=run.trace.duration_ms / 1000)
        self._executor.start(StartOrder(allocation, spec))

    def _integrate(self, now_ms: int) -> None:
        """Adds what held since the last instant, which nothing has changed since."""
        elapsed_ms = now_ms - self._clock.now_ms()
        if elapsed_ms == 0:
            return
        sums, state = self._integrals, self._state
        sums.held += elapsed_ms * sum(self._tenant_held.values())
        sums.stranded += elapsed_ms * self._stranded_units()
        if state.pending_units:
            sums.unfair += elapsed_ms * self._unfairness()
            sums.contended_ms += elapsed_ms

    def _stranded_units(self) -> int:
        """Units free on nodes that hold something, while something waits: what another arrangement could have used."""
        if not self._state.pending_units:
            return 0
        free = 0
        for pool in self._state.capacity.pools.values():
            free += pool.free_gpus
            largest = pool.free_counts[-1] if pool.free_counts else 0
            free -= largest * len(pool.by_free.get(largest, ())) if largest else 0
        return free * GPU_UNITS

    def _unfairness(self) -> int:
        """Units held by other tenants than an equal division by need would have it."""
        pending: Counter[AccountId] = Counter()
        for (tenant, _), units in self._state.pending_units.items():
            pending[tenant] += units
        wanted = {tenant: self._tenant_held[tenant] + pending[tenant] for tenant in {*self._tenant_held, *pending}}
        left, sharing = self._capacity_units, len(wanted)
        for units in sorted(wanted.values()):
            if units * sharing > left:
                break
            left -= units
            sharing -= 1
        level = left // sharing if sharing else self._capacity_units
        return sum(max(0, self._tenant_held[tenant] - min(units, level)) for tenant, units in wanted.items())

    def report(self) -> dict[str, object]:
        """Returns the run in figures: seconds, ratios between 0 and 1, None for a mean of nothing."""
        done = [run for run in self.runs if run.end_ms is not None]
        makespan_ms = max((run.end_ms or 0 for run in done), default=0) - min(
            (run.trace.submit_ms for run in self.runs), default=0
        )
        capacity_ms = self._capacity_units * makespan_ms
        waits = [((run.start_ms or 0) - run.trace.submit_ms) / 1000 for run in done]
        completions = [((run.end_ms or 0) - run.trace.submit_ms) / 1000 for run in done]
        slowdowns = [_slowdown(run) for run in done]
        tenants = self._per_tenant(done)
        sums = self._integrals
        return {
            "jobs": len(self.runs),
            "completed_jobs": len(done),
            "unplaced_jobs": self.unplaced,
            "makespan_seconds": makespan_ms / 1000,
            "wait_seconds": summary(waits),
            "completion_seconds": summary(completions),
            "bounded_slowdown": summary(slowdowns),
            "utilization_ratio": sums.held / capacity_ms if capacity_ms else None,
            "fragmentation_ratio": sums.stranded / capacity_ms if capacity_ms else None,
            "preemptions": self.preemptions,
            "gpu_seconds_lost": self.lost_unit_ms / GPU_UNITS / 1000,
            "fairness_error": sums.unfair / (sums.contended_ms * self._capacity_units) if sums.contended_ms else 0.0,
            "jain_index": _jain([float(str(tenant["mean_bounded_slowdown"])) for tenant in tenants]),
            "per_tenant": tenants,
            "ticks": len(self.tick_seconds),
            "tick_seconds": {name: summary(self.tick_seconds)[name] for name in ("p50", "p99", "max")},
            "wall_seconds": self.wall_seconds,
        }

    def _per_tenant(self, done: Sequence[JobRun]) -> list[dict[str, object]]:
        by_tenant: dict[AccountId, list[JobRun]] = {}
        for run in done:
            by_tenant.setdefault(tenant_of(run.trace.account), []).append(run)
        rows: list[dict[str, object]] = []
        for tenant, runs in sorted(by_tenant.items()):
            waits = [((run.start_ms or 0) - run.trace.submit_ms) / 1000 for run in runs]
            unit_ms = sum(run.trace.shape.total_units * ((run.end_ms or 0) - (run.start_ms or 0)) for run in runs)
            rows.append(
                {
                    "tenant": tenant,
                    "jobs": len(runs),
                    "gpu_seconds": unit_ms / GPU_UNITS / 1000,
                    "mean_wait_seconds": sum(waits) / len(waits),
                    "p99_wait_seconds": summary(waits)["p99"],
                    "max_wait_seconds": max(waits),
                    "mean_bounded_slowdown": sum(map(_slowdown, runs)) / len(runs),
                }
            )
        return rows


def summary(values: Sequence[float]) -> dict[str, float | None]:
    """Returns mean, nearest-rank percentiles and maximum; all None when there are no values."""
    if not values:
        return dict.fromkeys(("mean", "p50", "p95", "p99", "max"))
    ranked = sorted(values)

    def percentile(part: int) -> float:
        return ranked[max(0, -(-len(ranked) * part // 100) - 1)]

    return {
        "mean": sum(ranked) / len(ranked),
        "p50": percentile(50),
        "p95": percentile(95),
        "p99": percentile(99),
        "max": ranked[-1],
    }


def _slowdown(run: JobRun) -> float:
    seconds = ((run.end_ms or 0) - run.trace.submit_ms) / 1000
    return max(1.0, seconds / max(run.trace.duration_ms / 1000, SHORTEST_SECONDS))


def _jain(values: Sequence[float]) -> float | None:
    """Jain's fairness index of what tenants experience: 1 when all are treated alike, 1/n when one has it all."""
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else None
