"""What a replay adds up while it runs, and the figures that it reports.

Sums over virtual time are integers of unit-milliseconds, added between two events, when nothing changes.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from scheduler.core.model import GPU_UNITS, AccountId, tenant_of
from scheduler.core.state import ClusterState
from scheduler.scenario import TraceJob

SHORTEST_SECONDS = 10
"""Below this a job's own run time does not count in its bounded slowdown (Feitelson et al., JSSPP 1997)."""


@dataclass(slots=True)
class JobRun:
    """What became of a job of the trace; times in milliseconds from the trace's beginning, None if it never came."""

    trace: TraceJob
    start_ms: int | None = None
    end_ms: int | None = None
    done_ms: int = 0
    """Work that is kept in checkpoints of allocations that were stopped."""
    surplus_unit_ms: int = 0
    """What surplus nodes of an elastic gang held."""

    def need_ms(self, restart_cost_ms: int) -> int:
        """Returns how long an allocation must last from now on to do the rest of the work."""
        left_ms = self.trace.duration_ms - self.done_ms
        return left_ms + restart_cost_ms if self.done_ms else left_ms

    def stop_after(self, held_ms: int, restart_cost_ms: int) -> int:
        """Keeps the work up to the last checkpoint of an allocation stopped after so long; returns what was lost."""
        every_ms = self.trace.checkpoint_ms
        worked_ms = max(0, held_ms - restart_cost_ms) if self.done_ms else held_ms
        kept_ms = 0
        if every_ms is not None:
            kept_ms = worked_ms if every_ms == 0 else worked_ms // every_ms * every_ms
        self.done_ms += kept_ms
        return held_ms - kept_ms


@dataclass(frozen=True, slots=True)
class Sample:
    """What was held and what waited at an instant, in GPUs."""

    at_ms: int
    held_gpus: float
    waiting_gpus: float
    waiting_jobs: int


class Totals:
    """Sums of one run."""

    def __init__(self, capacity_units: int) -> None:
        self._capacity_units = capacity_units
        self._tenant_held: Counter[AccountId] = Counter()
        self._held_units = 0
        self._held_unit_ms = self._stranded_unit_ms = self._unfair_unit_ms = self._contended_ms = 0
        self.unplaced = 0
        self.preemptions = 0
        self.lost_unit_ms = 0

    @property
    def capacity_gpus(self) -> float:
        """Returns the size of the cluster."""
        return self._capacity_units / GPU_UNITS

    def held(self, tenant: AccountId, units: int) -> None:
        """Counts a gang that starts."""
        self._tenant_held[tenant] += units
        self._held_units += units

    def released(self, tenant: AccountId, units: int) -> None:
        """Counts a gang that ends."""
        self._tenant_held[tenant] -= units
        self._held_units -= units

    def pass_time(self, elapsed_ms: int, state: ClusterState) -> None:
        """Adds what held for so long, up to now."""
        if elapsed_ms == 0:
            return
        self._held_unit_ms += elapsed_ms * self._held_units
        if state.pending_units:
            self._stranded_unit_ms += elapsed_ms * _stranded_units(state)
            self._unfair_unit_ms += elapsed_ms * self._unfairness(state)
            self._contended_ms += elapsed_ms

    def sample(self, at_ms: int, state: ClusterState) -> Sample:
        """Returns the instant for the plot."""
        waiting = sum(state.pending_units.values())
        backlog = len(state.waiting.ages) + len(state.timed)
        return Sample(at_ms, self._held_units / GPU_UNITS, waiting / GPU_UNITS, backlog)

    def _unfairness(self, state: ClusterState) -> int:
        """Units held by other tenants than an equal division by need would have it."""
        held = self._tenant_held
        pending: dict[AccountId, int] = {}
        for (tenant, _), units in state.pending_units.items():
            pending[tenant] = pending.get(tenant, 0) + units
        wanted = [(units + pending.pop(tenant, 0), units) for tenant, units in held.items()]
        wanted += [(units, 0) for units in pending.values()]
        wanted.sort()
        left, sharing = self._capacity_units, len(wanted)
        for units, _ in wanted:
            if units * sharing > left:
                break
            left -= units
            sharing -= 1
        level = left // sharing if sharing else self._capacity_units
        return sum(has - min(units, level) for units, has in wanted if has > level)

    def report(self, runs: Sequence[JobRun], origin_ms: int = 0) -> dict[str, object]:
        """Returns the figures of a run: seconds, ratios between 0 and 1, None for a mean of nothing.

        `origin_ms` is when it began; jobs that were submitted before it count their waiting from then.
        """
        done = [run for run in runs if run.end_ms is not None]
        began_ms = max(origin_ms, min((run.trace.submit_ms for run in runs), default=0))
        makespan_ms = max(0, max((run.end_ms or 0 for run in done), default=0) - began_ms)
        capacity_ms = self._capacity_units * makespan_ms
        tenants = per_tenant(done)
        return {
            "jobs": len(runs),
            "completed_jobs": len(done),
            "unplaced_jobs": self.unplaced,
            "makespan_seconds": makespan_ms / 1000,
            "wait_seconds": summary([_wait_seconds(run) for run in done]),
            "completion_seconds": summary([((run.end_ms or 0) - run.trace.submit_ms) / 1000 for run in done]),
            "bounded_slowdown": summary([slowdown(run) for run in done]),
            "utilization_ratio": self._held_unit_ms / capacity_ms if capacity_ms else None,
            "fragmentation_ratio": self._stranded_unit_ms / capacity_ms if capacity_ms else None,
            "preemptions": self.preemptions,
            "gpu_seconds_lost": self.lost_unit_ms / GPU_UNITS / 1000,
            "fairness_error": self._unfair_unit_ms / (self._contended_ms * self._capacity_units)
            if self._contended_ms
            else 0.0,
            "jain_index": jain([float(str(tenant["mean_bounded_slowdown"])) for tenant in tenants]),
            "per_tenant": tenants,
        }


def _stranded_units(state: ClusterState) -> int:
    """Units free on nodes that hold something, while something waits: what another arrangement could have used."""
    free = 0
    for pool in state.capacity.pools.values():
        free += pool.free_gpus
        largest = pool.free_counts[-1] if pool.free_counts else 0
        free -= largest * len(pool.by_free.get(largest, ())) if largest else 0
    return free * GPU_UNITS


def per_tenant(done: Sequence[JobRun]) -> list[dict[str, object]]:
    """Returns what each tenant's finished jobs met with, in order of the tenants' names."""
    by_tenant: dict[AccountId, list[JobRun]] = {}
    for run in done:
        by_tenant.setdefault(tenant_of(run.trace.account), []).append(run)
    rows: list[dict[str, object]] = []
    for tenant, runs in sorted(by_tenant.items()):
        waits = [_wait_seconds(run) for run in runs]
        unit_ms = sum(
            run.trace.shape.total_units * ((run.end_ms or 0) - (run.start_ms or 0)) + run.surplus_unit_ms
            for run in runs
        )
        rows.append(
            {
                "tenant": tenant,
                "jobs": len(runs),
                "gpu_seconds": unit_ms / GPU_UNITS / 1000,
                "mean_wait_seconds": sum(waits) / len(waits),
                "p99_wait_seconds": summary(waits)["p99"],
                "max_wait_seconds": max(waits),
                "mean_bounded_slowdown": sum(map(slowdown, runs)) / len(runs),
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


def _wait_seconds(run: JobRun) -> float:
    return ((run.start_ms or 0) - run.trace.submit_ms) / 1000


def slowdown(run: JobRun) -> float:
    """Returns the bounded slowdown of a finished job: 1 or more."""
    seconds = ((run.end_ms or 0) - run.trace.submit_ms) / 1000
    return max(1.0, seconds / max(run.trace.duration_ms / 1000, SHORTEST_SECONDS))


def jain(values: Sequence[float]) -> float | None:
    """Jain's fairness index of what tenants experience: 1 when all are treated alike, 1/n when one has it all."""
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else None
