"""When a waiting job is likely to start: read off the shadow schedule, with the assumption that it rests on.

The late estimate takes every time limit to be used up and every job ahead in the order to be promised a start before
it; the likely one shortens that by what gangs of the class used of their limits lately. Neither is a promise: only a
`Reservation` is.
"""

from dataclasses import dataclass, replace

from scheduler.core.cycle import plan
from scheduler.core.model import GpuClass, JobId, JobState, NodeName, PoolName
from scheduler.core.plan import Plan
from scheduler.core.policy import Backfill, Policy
from scheduler.core.state import ClusterState
from scheduler.core.stretch import Reservation

MOST_AHEAD = 64
"""Jobs in line that are laid into the schedule for one answer: some tens of milliseconds. What stands further back gets
no estimate, for so long a queue changes before its end is reached."""


@dataclass(frozen=True, slots=True)
class StartEstimate:
    """When a job would start. `late_ms` (p90) goes by limits, `likely_ms` (p50) by what jobs used of them lately."""

    likely_ms: int
    late_ms: int
    used_permille: int
    """The assumption behind the likely one: the part of their limits that gangs of the class used, in thousandths."""
    is_promised: bool
    """True when `late_ms` is promised: no backfill can make it later."""
    pool: PoolName | None = None
    """Where it would start."""
    is_measured: bool = False
    """True when `late_ms` goes by how far past estimates were off, and not by limits."""


def estimate_start(state: ClusterState, policy: Policy, now_ms: int, job_id: JobId) -> StartEstimate | None:
    """Returns when a pending job would start; None for one that is stopped by more than others, or far back in line.

    The state is as before. Raises KeyError for a job that is not live. Costs a tick and a search for each job ahead.
    """
    job = state.jobs[job_id]
    if job.state is not JobState.PENDING:
        return None
    known = state.reservations.get(job_id)
    if known is not None:
        return _of_promise(state, known, now_ms, is_promised=True)
    return estimate_starts(state, policy, now_ms, MOST_AHEAD).get(job_id)


def estimate_starts(state: ClusterState, policy: Policy, now_ms: int, most_ahead: int) -> dict[JobId, StartEstimate]:
    """Returns when the first `most_ahead` waiting jobs of each class would start, all from one schedule.

    The state is as before. Costs a tick and a search for each of them.
    """
    made = plan(state, replace(policy, backfill=Backfill.CONSERVATIVE, most_promises=most_ahead), now_ms)
    found = {
        each.job: _of_promise(state, each, now_ms, is_promised=state.reservations.get(each.job) == each)
        for each in made.reservations
    }
    return {**found, **_starting_now(state, made, now_ms)}


def _starting_now(state: ClusterState, made: Plan, now_ms: int) -> dict[JobId, StartEstimate]:
    return {
        start.job: _estimate(state, start.gpu_class, (now_ms, now_ms), start.grants[0].node, is_promised=False)
        for start in made.starts
    }


def _of_promise(state: ClusterState, promise: Reservation, now_ms: int, *, is_promised: bool) -> StartEstimate:
    times = (now_ms, max(now_ms, promise.start_ms))
    return _estimate(state, promise.gpu_class, times, promise.parts[0][0], is_promised=is_promised)


def _estimate(
    state: ClusterState, gpu_class: GpuClass, times: tuple[int, int], node: NodeName, *, is_promised: bool
) -> StartEstimate:
    now_ms, late_ms = times
    used_permille = state.used_permille.get(gpu_class, 1000)
    likely_ms = now_ms + (late_ms - now_ms) * used_permille // 1000
    return StartEstimate(likely_ms, late_ms, used_permille, is_promised, state.node(node).pool)
