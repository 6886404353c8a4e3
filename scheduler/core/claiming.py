"""Whether a claim still serves its job, and what its job is told meanwhile."""

from collections.abc import Container

from scheduler.core.booking import Bookings
from scheduler.core.model import GPU_UNITS, AllocationId, Booking, Job, JobState, accepts
from scheduler.core.reasons import Reason, ReasonCode
from scheduler.core.state import ClusterState
from scheduler.core.stretch import Claim


def why_lost(state: ClusterState, bookings: Bookings, claim: Claim, now_ms: int) -> str | None:
    """Returns why a claim's job can never start from it, or why it must not; None while it may."""
    job = state.jobs.get(claim.job)
    if job is None or job.state is not JobState.PENDING:
        return "the job waits no more"
    if now_ms >= claim.until_ms:
        return "the gangs that were stopped for it did not end in time"
    return (
        _put_off(claim, job, now_ms) or _forbidden(state, bookings, claim, job) or _missing(state, claim, job, now_ms)
    )


def _put_off(claim: Claim, job: Job, now_ms: int) -> str | None:
    """Returns what the job's owner changed since, so that it starts later or longer than was claimed, or otherwise."""
    if job.begin_ms is not None and job.begin_ms > now_ms:
        return "its begin time is not come"
    if job.time_limit_ms > claim.end_ms - claim.free_ms:
        return "its time limit was raised"
    if not accepts(job.wanted, claim.booking):
        return f"it asks for {job.wanted} now"
    return None


def _forbidden(state: ClusterState, bookings: Bookings, claim: Claim, job: Job) -> str | None:
    suspended = bookings.suspension(job.account)
    if suspended is not None:
        return f"{suspended.detail} is suspended"
    leaving = [state.allocations[victim] for victim in claim.victims if victim in state.allocations]
    chosen = bookings.choose_anew(state.group_of(job), (claim.gpu_class, claim.booking), leaving)
    if isinstance(chosen, Reason):
        return f"{chosen.code} stands in its way now"
    if claim.booking is Booking.GUARANTEED and chosen is not Booking.GUARANTEED:
        return "it does not fit its guarantee any more"
    return None


def _missing(state: ClusterState, claim: Claim, job: Job, now_ms: int) -> str | None:
    for grant in claim.grants:
        kept = next((each for each in state.advance.values() if each.keeps_out(grant.node, job, now_ms)), None)
        if kept is not None:
            return f"node {grant.node} is kept by reservation {kept.id}"
        room = state.capacity.rooms.get(grant.node)
        if room is None or room.node.pool in state.closed_pools:
            return f"node {grant.node} is not to be had any more"
        if not room.usable.issuperset(grant.devices):
            return f"a GPU of node {grant.node} is not to be had any more"
    is_freed = not any(victim in state.allocations for victim in claim.victims)
    return "what was freed for it is gone" if is_freed and not state.claims.is_complete(claim) else None


def preempting(claim: Claim, live: Container[AllocationId]) -> Reason:
    """Returns what the job of a claim waits for."""
    left = sum(victim in live for victim in claim.victims)
    need = -(-claim.total_units // GPU_UNITS)
    detail = f"{left} of {len(claim.victims)} jobs that make room are still ending"
    return Reason(ReasonCode.PREEMPTING, need=need, until_ms=claim.until_ms, detail=detail)
