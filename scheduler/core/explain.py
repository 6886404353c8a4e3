"""The answer to "why": read off the last plan and the state that it was made from, never guessed anew."""

from collections.abc import Mapping
from dataclasses import dataclass

from scheduler.core.booking import Bookings
from scheduler.core.model import GPU_UNITS, Booking, BookingWanted, HoldKind, Job, JobId, JobState
from scheduler.core.order import FairLine
from scheduler.core.placement import count_fitting
from scheduler.core.plan import Plan
from scheduler.core.reasons import Reason, ReasonCode
from scheduler.core.state import ClusterState
from scheduler.core.waiting import Group, group_of

MOST_AHEAD = 5000
"""Jobs that are counted before the answer is "at least so many": more means nothing to a person, and costs the loop."""
MOST_NAMED = 5
"""Dependencies that a reason names."""
_OUT_OF_LINE = frozenset(
    {
        *(ReasonCode.DEPENDENCY, ReasonCode.BEGIN_TIME, ReasonCode.BACKOFF, ReasonCode.ARRAY_LIMIT),
        ReasonCode.PREEMPTING,
    }
)
"""Reasons of jobs that wait beside the order, before it or with a claim: nobody is ahead of them."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a job waits. `reasons` is empty for a job that does not wait; otherwise the first one dominates.

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
    """True when `ahead_jobs` and `ahead_gpus` are not all: the count stops at MOST_AHEAD jobs."""


def explain(state: ClusterState, plan: Plan, job_id: JobId) -> Explanation:
    """Returns why a live job waits, as of the plan. Raises KeyError for a job that is not live."""
    job = state.jobs[job_id]
    reasons = reasons_of(plan, job)
    if job.state is not JobState.PENDING or reasons[0].code in _OUT_OF_LINE:
        return Explanation(job_id, plan.decision, plan.now_ms, reasons)
    ahead_jobs, ahead_units, is_cut = _ahead(state, plan, job)
    found = plan.verdicts.get(job.shape)
    return Explanation(
        job_id,
        plan.decision,
        plan.now_ms,
        reasons,
        ahead_jobs,
        -(-ahead_units // GPU_UNITS),
        None if is_cut else ahead_jobs + 1,
        0 if found is None else found.nodes_considered,
        count_fitting(state.capacity, job.shape, state.closed_pools),
        is_cut,
    )


def reasons_of(plan: Plan, job: Job) -> tuple[Reason, ...]:
    """Returns what keeps a job from starting, the dominating reason first; empty for a job that does not wait."""
    if job.state is JobState.HELD:
        return (Reason(ReasonCode.HELD_ADMIN if job.hold is HoldKind.ADMIN else ReasonCode.HELD_USER),)
    if job.state is not JobState.PENDING:
        return ()
    early = _not_in_line(plan, job)
    if early is not None:
        return (early,)
    block = plan.preempting.get(job.id) or plan.blocks.get(group_of(job, plan.by_user))
    if block is not None:
        return (block,)
    found = plan.verdicts.get(job.shape)
    if found is not None:
        return found.reasons
    # Not reached yet: submitted after the plan was made, or behind the cap on starts of one tick.
    return (Reason(ReasonCode.ORDER),)


def _not_in_line(plan: Plan, job: Job) -> Reason | None:
    """Returns why a pending job does not stand in line yet; None for one that does."""
    if job.waits_for:
        return _dependency(job)
    if job.begin_ms is not None and job.begin_ms > plan.now_ms:
        code = ReasonCode.BACKOFF if job.is_backing_off else ReasonCode.BEGIN_TIME
        return Reason(code, until_ms=job.begin_ms)
    crowd = None if job.array is None else plan.crowds.get(job.array)
    if crowd is not None and job.id not in crowd.in_line:
        return Reason(ReasonCode.ARRAY_LIMIT, detail=f"at most {crowd.cap} of array {job.array} at once")
    return None


def _dependency(job: Job) -> Reason:
    named = [str(each) for each in job.waits_for[:MOST_NAMED]]
    more = len(job.waits_for) - len(named)
    return Reason(ReasonCode.DEPENDENCY, detail=", ".join(named) + (f" and {more} more" if more else ""))


def _ahead(state: ClusterState, plan: Plan, job: Job) -> tuple[int, int, bool]:
    """Counts jobs and units ahead by walking the order as if everything started; True when it was cut short.

    A group that a limit, a guarantee or a suspension blocks is ahead of nobody.
    """
    classes = set(job.shape.gpu_classes)
    own = state.group_of(job)
    bookings = Bookings(state)
    line = FairLine(state, bookings, plan.now_ms, AllStart(plan.blocks, own))
    jobs = units = 0
    for _ in range(MOST_AHEAD):
        candidate = line.next()
        if candidate is None or candidate[0] == job.id:
            return jobs, units, False
        group = candidate[1]
        bookings.take(group, group.shape.gpu_classes[0], booking_of(bookings, group))
        line.started()
        if not classes.isdisjoint(group.shape.gpu_classes):
            jobs += 1
            units += group.shape.total_units
    return jobs, units, True


@dataclass(frozen=True, slots=True)
class AllStart:
    """The outlook of a count: everything starts but what is forbidden to, the asker's own group excepted."""

    blocks: Mapping[Group, Reason]
    own: Group | None = None

    def is_hopeless(self, group: Group) -> bool:
        return group in self.blocks and group != self.own

    def is_dead(self, _: Group) -> bool:
        return False


def booking_of(bookings: Bookings, group: Group) -> Booking:
    """Returns how a gang of the group would be held if it could start."""
    chosen = bookings.choose(group, group.shape.gpu_classes[0])
    if isinstance(chosen, Booking):
        return chosen
    return Booking.GUARANTEED if group.wanted is BookingWanted.GUARANTEED else Booking.BURST
