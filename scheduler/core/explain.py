"""The answer to "why": read off the last plan and the state that it was made from, never guessed anew."""

from dataclasses import dataclass

from scheduler.core.blockers import blockers, in_dominance, own_reasons
from scheduler.core.lifecycle import WAITING
from scheduler.core.model import GPU_UNITS, Job, JobId
from scheduler.core.placement import count_fitting
from scheduler.core.plan import Plan
from scheduler.core.reasons import Reason, ReasonCode
from scheduler.core.state import ClusterState
from scheduler.core.waiting import group_of


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a job waits. `reasons` is empty for a job that does not wait; otherwise the first one dominates.

    `reasons` are all that keep it from starting: with every one of them out of the way it starts in the next tick.
    `ahead_jobs` and `ahead_gpus` count pending jobs that come before it in the order and want one of its classes, as if
    every job in the order could start.
    """

    job: JobId
    decision: int
    as_of_ms: int
    reasons: tuple[Reason, ...]
    ahead_jobs: int = 0
    ahead_gpus: int = 0
    position: int | None = None
    """1 for the first of those that want one of its classes; None for a job that is not in line, or far behind."""
    nodes_considered: int = 0
    nodes_fit: int = 0
    is_ahead_cut: bool = False
    """True when `ahead_jobs` and `ahead_gpus` are not all: see `ahead.MOST_AHEAD`."""
    ahead_first: tuple[JobId, ...] = ()
    """The first of those ahead, for those who may know them."""


def explain(state: ClusterState, plan: Plan, job_id: JobId) -> Explanation:
    """Returns why a live job waits, as of the plan. Raises KeyError for a job that is not live."""
    job = state.jobs[job_id]
    if job.state not in WAITING:
        return Explanation(job_id, plan.decision, plan.now_ms, ())
    found = blockers(state, plan, job)
    if not found.is_in_line:
        return Explanation(job_id, plan.decision, plan.now_ms, found.reasons)
    ahead, shape_verdict = found.ahead, plan.verdicts.get(job.shape)
    return Explanation(
        job_id,
        plan.decision,
        plan.now_ms,
        found.reasons,
        ahead.jobs,
        -(-ahead.units // GPU_UNITS),
        None if ahead.is_cut else ahead.jobs + 1,
        0 if shape_verdict is None else shape_verdict.nodes_considered,
        count_fitting(state.capacity, job.shape, state.closed_pools),
        ahead.is_cut,
        ahead.first,
    )


def reasons_of(plan: Plan, job: Job) -> tuple[Reason, ...]:
    """Returns what the plan recorded against a job, the dominating reason first; empty for a job that does not wait.

    For lists: it looks at nothing but the plan. `explain` names what the plan had no need to find, too.
    """
    if job.state not in WAITING:
        return ()
    claimed = plan.preempting.get(job.id)
    if claimed is not None:
        return (claimed,)
    found = own_reasons(plan, job)
    block, shape_verdict = plan.blocks.get(group_of(job, plan.by_user)), plan.verdicts.get(job.shape)
    if block is not None:
        found.append(block)
    if shape_verdict is not None:
        found += shape_verdict.reasons
    # None of them: not reached yet, submitted after the plan was made, or behind the cap on starts of one tick.
    return in_dominance(found) or (Reason(ReasonCode.ORDER),)
