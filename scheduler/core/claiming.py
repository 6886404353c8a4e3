"""Whether a claim still serves its job, and what its job is told meanwhile."""

from collections.abc import Container

from scheduler.core.booking import Bookings
from scheduler.core.capacity import is_schedulable
from scheduler.core.model import GPU_UNITS, AllocationId, Booking, Job, JobState
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
    return _forbidden(state, bookings, claim, job) or _missing(state, claim)


def _forbidden(state: ClusterState, bookings: Bookings, claim: Claim, job: Job) -> str | None:
    suspended = bookings.suspension(job.account)
    if suspended is not None:
        return f"{suspended.detail} is suspended"
    chosen = bookings.choose_anew(state.group_of(job), claim.gpu_class, claim.booking)
    if isinstance(chosen, Reason):
        return f"{chosen.code} stands in its way now"
    if claim.booking is Booking.GUARANTEED and chosen is not Booking.GUARANTEED:
        return "it does not fit its guarantee any more"
    return None


def _missing(state: ClusterState, claim: Claim) -> str | None:
    for grant in claim.grants:
        room = state.capacity.rooms.get(grant.node)
        if room is None or room.node.pool in state.closed_pools:
            return f"node {grant.node} is not to be had any more"
        usable = {device.id for device in room.devices if is_schedulable(room.node, device)}
        if not usable.issuperset(grant.devices):
            return f"a GPU of node {grant.node} is not to be had any more"
    is_freed = not any(victim in state.allocations for victim in claim.victims)
    return "what was freed for it is gone" if is_freed and not state.claims.is_complete(claim) else None


def preempting(claim: Claim, live: Container[AllocationId]) -> Reason:
    """Returns what the job of a claim waits for."""
    left = sum(victim in live for victim in claim.victims)
    need = -(-claim.total_units // GPU_UNITS)
    detail = f"{left} of {len(claim.victims)} jobs that make room are still ending"
    return Reason(ReasonCode.PREEMPTING, need=need, until_ms=claim.until_ms, detail=detail)
