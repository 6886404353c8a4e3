"""Orders under which whoever comes first takes the place of whoever comes last, for comparison; only replays use them.

`srtf` is shortest remaining time first; `finish-time` is that of `core.finishing`. What remains is the job's time limit
less the work that it has kept, for that is all that a scheduler can know; a trace whose limits are the true durations
gives the literature's oracle. There is no guard: no minimum run time, no shares, no guarantee.
"""

from heapq import nsmallest

from scheduler.core.finishing import Ranks, ranks_of
from scheduler.core.model import Allocation, AllocationId, GpuClass, Grant, Job, JobId, Shape
from scheduler.core.placement import place
from scheduler.core.policy import Policy, QueueOrder
from scheduler.core.state import ClusterState

STOPPING_ORDERS = frozenset({QueueOrder.SRTF, QueueOrder.FINISH_TIME})
MOST_LOOKED_AT = 64
"""Waiting jobs, those that come first, for which places are sought at one instant."""
MOST_TRIED = 512
"""Running gangs that may be taken out for one of them, those that come last first."""


def gangs_to_stop(state: ClusterState, policy: Policy, now_ms: int) -> list[AllocationId]:
    """Returns the gangs that have to make room at this instant, in the order in which they were chosen.

    Leaves the state as it was. A gang is stopped only for a job that comes before it, and only if that then fits.
    """
    is_ranked = policy.order is QueueOrder.FINISH_TIME
    if not state.waiting.of_shape or (not is_ranked and _is_settled(state, now_ms)):
        return []
    order = _Order(state, ranks_of(state, policy, now_ms) if is_ranked else None, now_ms)
    waiting = order.waiting()
    running = order.behind(waiting[0])
    if not running:
        return []
    stopped: list[Allocation] = []
    taken: list[Grant] = []
    hopeless: set[tuple[Shape, GpuClass]] = set()
    """What did not fit for one who comes first does not fit for those behind, who may take less."""
    for job in waiting:
        shape = job.shape
        for gpu_class in shape.gpu_classes:
            if (shape, gpu_class) in hopeless:
                continue
            grants = place(state.capacity, shape, gpu_class, state.closed_pools)
            victims: list[Allocation] = []
            if grants is None:
                victims = _victims(state, job, [each for each in running if each.gpu_class == gpu_class], order)
                if not victims:
                    hopeless.add((shape, gpu_class))
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
        _put_back(state, each)
    return [each.id for each in stopped]


def _is_settled(state: ClusterState, now_ms: int) -> bool:
    """Tells at a glance whether nothing that runs has more left than what waits."""
    last_ms = max((each.decided_ms + each.time_limit_ms for each in state.allocations.values()), default=0)
    return all(now_ms + group.time_limit_ms >= last_ms for group, _ in state.pending_groups())


class _Order:
    """Who comes before whom at one instant. Without ranks, whoever has less left."""

    def __init__(self, state: ClusterState, ranks: Ranks | None, now_ms: int) -> None:
        self._state = state
        self._ranks = ranks
        self._now_ms = now_ms

    def of_running(self, gang: Allocation) -> int:
        """Returns the rank of what runs."""
        left_ms = gang.decided_ms + gang.time_limit_ms - self._now_ms
        return left_ms if self._ranks is None else self._ranks.rank(self._state.jobs[gang.job], left_ms)

    def of_waiting(self, job: Job) -> int:
        """Returns the rank of what waits."""
        return job.time_limit_ms if self._ranks is None else self._ranks.rank(job, job.time_limit_ms)

    def behind(self, job: Job) -> list[Allocation]:
        """Returns what runs and comes after a waiting job, the last first."""
        rank = self.of_waiting(job)
        found = [each for each in self._state.allocations.values() if self.of_running(each) > rank]
        return sorted(found, key=lambda each: (-self.of_running(each), each.id))

    def waiting(self) -> list[Job]:
        """Returns the waiting jobs that come first."""
        jobs, groups = self._state.jobs, list(self._state.pending_groups())
        if self._ranks is None and len(groups) > MOST_LOOKED_AT:
            # All of a group have the same left, and each group has a job.
            bound_ms = nsmallest(MOST_LOOKED_AT, (group.time_limit_ms for group, _ in groups))[-1]
            groups = [each for each in groups if each[0].time_limit_ms <= bound_ms]
        first = (
            (self.of_waiting(jobs[JobId(job_id)]), submitted_ms, job_id)
            for _, line in groups
            for _, submitted_ms, job_id in line[:MOST_LOOKED_AT]
        )
        return [jobs[JobId(job_id)] for _, _, job_id in nsmallest(MOST_LOOKED_AT, first)]


def _has_opened(state: ClusterState, gang: Allocation, gpus: int) -> bool:
    """Tells whether one of the nodes that a gang has left has so many free GPUs: only then may more fit than before."""
    return any(len(state.capacity.rooms[grant.node].free) >= gpus for grant in gang.grants)


def _victims(state: ClusterState, job: Job, running: list[Allocation], order: _Order) -> list[Allocation]:
    """Takes gangs that come later out of the capacity until the job fits, and puts back those it does not need.

    Returns those that stay out; none if the job would not fit, and then the capacity is as it was.
    """
    out: list[Allocation] = []
    if not _make_room(state, job, [each for each in running if order.of_running(each) > order.of_waiting(job)], out):
        for each in out:
            _put_back(state, each)
        return []
    for each in list(out):
        _put_back(state, each)
        if place(state.capacity, job.shape, each.gpu_class, state.closed_pools) is not None:
            out.remove(each)
        else:
            _take_out(state, each)
    return out


def _make_room(state: ClusterState, job: Job, gangs: list[Allocation], out: list[Allocation]) -> bool:
    """Takes gangs out in turn, and adds them to `out`, until the job fits; tells whether it does."""
    for each in gangs[:MOST_TRIED]:
        _take_out(state, each)
        out.append(each)
        if not job.shape.is_share and not _has_opened(state, each, job.shape.gpus_per_node):
            continue
        if place(state.capacity, job.shape, each.gpu_class, state.closed_pools) is not None:
            return True
    return False


def _take_out(state: ClusterState, gang: Allocation) -> None:
    for grant in gang.grants:
        state.capacity.give_back(grant)


def _put_back(state: ClusterState, gang: Allocation) -> None:
    for grant in gang.grants:
        state.capacity.take(grant)
