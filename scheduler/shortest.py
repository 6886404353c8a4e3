"""Shortest remaining time first, for comparison: whoever has the least left takes the place of who has the most.

Only replays use it. What remains is the job's time limit less the work that it has kept, for that is all that a
scheduler can know; a trace whose limits are the true durations gives the literature's oracle. There is no guard: no
minimum run time, no shares, no guarantee.
"""

from collections.abc import Iterator

from scheduler.core.model import Allocation, AllocationId, Grant, Job, JobId
from scheduler.core.placement import place
from scheduler.core.state import ClusterState

MOST_LOOKED_AT = 64
"""Waiting jobs, those with the least left, for which places are sought at one instant."""
MOST_TRIED = 512
"""Running gangs that may be taken out for one of them, those with the most left first."""


def gangs_to_stop(state: ClusterState, now_ms: int) -> list[AllocationId]:
    """Returns the gangs that have to make room at this instant, in the order in which they were chosen.

    Leaves the state as it was. A gang is stopped only for a job with strictly less left, and only if that then fits.
    """
    running = sorted(state.allocations.values(), key=lambda each: (-_left_ms(each, now_ms), each.id))
    stopped: list[Allocation] = []
    taken: list[Grant] = []
    for job in _waiting(state):
        shape = job.shape
        for gpu_class in shape.gpu_classes:
            grants = place(state.capacity, shape, gpu_class, state.closed_pools)
            victims: list[Allocation] = []
            if grants is None:
                victims = _victims(state, job, [each for each in running if each.gpu_class == gpu_class], now_ms)
                if not victims:
                    continue
                grants = place(state.capacity, shape, gpu_class, state.closed_pools)
                assert grants is not None, "the victims were chosen so that it fits"
            for grant in grants:
                state.capacity.take(grant)
            taken += grants
            stopped += victims
            gone = {each.id for each in victims}
            running = [each for each in running if each.id not in gone]
            break
    for grant in reversed(taken):
        state.capacity.give_back(grant)
    for each in stopped:
        for grant in each.grants:
            state.capacity.take(grant)
    return [each.id for each in stopped]


def _waiting(state: ClusterState) -> Iterator[Job]:
    """Yields the waiting jobs with the least left."""
    first: list[tuple[int, int, int]] = []
    for group, line in state.pending_groups():
        first += [(group.time_limit_ms, submitted_ms, job_id) for _, submitted_ms, job_id in line[:MOST_LOOKED_AT]]
    for _, _, job_id in sorted(first)[:MOST_LOOKED_AT]:
        yield state.jobs[JobId(job_id)]


def _left_ms(allocation: Allocation, now_ms: int) -> int:
    return allocation.decided_ms + allocation.time_limit_ms - now_ms


def _victims(state: ClusterState, job: Job, running: list[Allocation], now_ms: int) -> list[Allocation]:
    """Takes gangs with more left out of the capacity until the job fits, and puts back those it does not need.

    Returns those that stay out; none if the job would not fit, and then the capacity is as it was.
    """
    out: list[Allocation] = []
    fits = False
    for each in running[:MOST_TRIED]:
        if _left_ms(each, now_ms) <= job.time_limit_ms:
            break
        for grant in each.grants:
            state.capacity.give_back(grant)
        out.append(each)
        fits = place(state.capacity, job.shape, each.gpu_class, state.closed_pools) is not None
        if fits:
            break
    for each in list(out) if fits else []:
        for grant in each.grants:
            state.capacity.take(grant)
        if place(state.capacity, job.shape, each.gpu_class, state.closed_pools) is not None:
            out.remove(each)
            continue
        for grant in each.grants:
            state.capacity.give_back(grant)
    if not fits:
        for each in out:
            for grant in each.grants:
                state.capacity.take(grant)
        return []
    return out
