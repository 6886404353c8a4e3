"""The answer to "why": read off the last plan and the state that it was made from, never guessed anew."""

from dataclasses import dataclass

from scheduler.core.model import GPU_UNITS, HoldKind, Job, JobId, JobState
from scheduler.core.placement import count_fitting
from scheduler.core.plan import Plan
from scheduler.core.reasons import Reason, ReasonCode
from scheduler.core.state import ClusterState, group_of, queue_key

_PRIORITIES = (1, 0, -1)
_BEFORE_ALL = -1


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a job waits. `reasons` is empty for a job that does not wait; otherwise the first one dominates.

    `ahead_jobs` and `ahead_gpus` count pending jobs that come before it in the order and want one of its classes.
    """

    job: JobId
    decision: int
    as_of_ms: int
    reasons: tuple[Reason, ...]
    ahead_jobs: int = 0
    ahead_gpus: int = 0
    position: int | None = None
    """1 for the first of those that want one of its classes; None for a job that is not in line."""
    nodes_considered: int = 0
    nodes_fit: int = 0


def explain(state: ClusterState, plan: Plan, job_id: JobId) -> Explanation:
    """Returns why a live job waits, as of the plan. Raises KeyError for a job that is not live."""
    job = state.jobs[job_id]
    reasons = reasons_of(plan, job)
    if job.state is not JobState.PENDING or reasons[0].code in {ReasonCode.BEGIN_TIME, ReasonCode.BACKOFF}:
        return Explanation(job_id, plan.decision, plan.now_ms, reasons)
    ahead_jobs, ahead_units = _ahead(state, job)
    found = plan.verdicts.get(job.shape)
    return Explanation(
        job_id,
        plan.decision,
        plan.now_ms,
        reasons,
        ahead_jobs,
        -(-ahead_units // GPU_UNITS),
        ahead_jobs + 1,
        0 if found is None else found.nodes_considered,
        count_fitting(state.capacity, job.shape, state.closed_pools),
    )


def reasons_of(plan: Plan, job: Job) -> tuple[Reason, ...]:
    """Returns what keeps a job from starting, the dominating reason first; empty for a job that does not wait."""
    if job.state is JobState.HELD:
        return (Reason(ReasonCode.HELD_ADMIN if job.hold is HoldKind.ADMIN else ReasonCode.HELD_USER),)
    if job.state is not JobState.PENDING:
        return ()
    if job.begin_ms is not None and job.begin_ms > plan.now_ms:
        code = ReasonCode.BACKOFF if job.is_backing_off else ReasonCode.BEGIN_TIME
        return (Reason(code, until_ms=job.begin_ms),)
    block = plan.blocks.get(group_of(job))
    if block is not None:
        return (block,)
    found = plan.verdicts.get(job.shape)
    if found is not None:
        return found.reasons
    # Not reached yet: submitted after the plan was made, or behind the cap on starts of one tick.
    return (Reason(ReasonCode.ORDER),)


def _ahead(state: ClusterState, job: Job) -> tuple[int, int]:
    """Counts jobs and units ahead, by bisection in each group: cost follows the groups, not the jobs."""
    classes = set(job.shape.gpu_classes)
    jobs = units = 0
    for group, line in state.pending_groups():
        if classes.isdisjoint(group.shape.gpu_classes):
            continue
        if group.account == job.account:
            count = line.bisect_left(queue_key(job))
        else:
            count = sum(
                line.bisect_left((-priority, job.submitted_ms, job.id))
                - line.bisect_left((-priority, _BEFORE_ALL, _BEFORE_ALL))
                for priority in _PRIORITIES
            )
        jobs += count
        units += count * group.shape.total_units
    return jobs, units
