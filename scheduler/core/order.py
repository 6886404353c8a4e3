"""Who is considered next. The sequence in which a tick considers jobs is *the* order.

1. Jobs that fit a guarantee: first those that accept nothing else, then, by submit time, the others and running burst
   gangs, which are promoted.
2. Burst: at each level of the account tree the account with the lowest (debt + what its burst gangs will add within the
   horizon + the same of this job) / weight; inside a project its own order: priority, then submit time, then id.
3. Spot, likewise, with what spot gangs cost in place of debt-to-be.

The tree of a tick is made of the first jobs of groups; what waits behind them costs nothing. A start moves its account
in one heap a level. Ties end in ids. A job is given out twice at most: in its turn within the guarantee, and in 2.
"""

from heapq import heappop, heappush
from typing import Protocol

from scheduler.core.booking import Bookings
from scheduler.core.model import AccountId, AllocationId, BookingWanted, GpuClass, JobId, tenant_of
from scheduler.core.prospects import Outlook, Prospects, Queue
from scheduler.core.state import ClusterState
from scheduler.core.tree import Scale, TreeWalk
from scheduler.core.waiting import Group, Row

_TURNS = (BookingWanted.GUARANTEED, None, BookingWanted.AUTO, BookingWanted.SPOT)
"""The parts of the order, by the booking that is wanted; None: what fits a guarantee and would do without."""


class Walk(Protocol):
    """A part of the order."""

    def next(self) -> tuple[JobId, Row] | None: ...

    def answered(self, *, goes_on: bool) -> None: ...


class FairLine:
    """All pending jobs in order, given out one at a time."""

    def __init__(self, state: ClusterState, bookings: Bookings, now_ms: int, outlook: Outlook) -> None:
        self._state = state
        self._bookings = bookings
        self._prospects = Prospects(outlook, state.waiting, state.usage)
        self._scale = Scale(state, bookings, now_ms)
        self._turn = 0
        self._walk: Walk | None = None
        self._given: Row | None = None

    def _begin(self, turn: BookingWanted | None) -> Walk | None:
        """Returns the walk of a part of the order (None: of what fits a guarantee); None if nobody waits in it."""
        self._bookings.is_guarantee_turn = turn is None
        if turn is None:
            return GuaranteeWalk(self._prospects, self._state, self._bookings) if self._state.guarantees else None
        heads = self._state.waiting.heads[turn]
        return TreeWalk(self._prospects, self._scale, heads, turn) if heads else None

    def next(self) -> tuple[JobId, Group] | None:
        """Returns the next job and its group, or None at the end. Answer by `started` or `drop`."""
        assert self._given is None, "the job before was not answered for"
        found = None if self._walk is None else self._walk.next()
        while found is None:
            if self._turn == len(_TURNS):
                return None
            self._walk = self._begin(_TURNS[self._turn])
            self._turn += 1
            found = None if self._walk is None else self._walk.next()
        job_id, self._given = found
        return job_id, self._given.group

    def started(self) -> None:
        """Goes on behind the job given out last."""
        self._answer(goes_on=True)

    def drop(self) -> None:
        """Gives out no more jobs of the group of the job given out last: none of them can start in this tick."""
        self._answer(goes_on=False)

    def _answer(self, *, goes_on: bool) -> None:
        assert self._given is not None, "no job was given out"
        assert self._walk is not None, "a job is given out by a walk"
        self._given = None
        self._walk.answered(goes_on=goes_on)


class GuaranteeWalk:
    """What fits a guarantee and would do without, by submit time: pending jobs, and burst gangs to promote."""

    def __init__(self, prospects: Prospects, state: ClusterState, bookings: Bookings) -> None:
        self._state = state
        self._bookings = bookings
        self._queues: list[tuple[AccountId, Queue]] = []
        self._gangs: list[tuple[tuple[AccountId, GpuClass, int], list[tuple[int, JobId, AllocationId]]]] = []
        self._heap: list[tuple[int, int, bool, int]] = []  # submitted_ms, job, is it a gang, place in its list
        tenants = bookings.tenants_with_guarantee_left()
        for account, heads in state.waiting.heads[BookingWanted.AUTO].items():
            if tenant_of(account) in tenants:
                self._queues.append((account, prospects.queue(heads, account)))
                self._file_queue(len(self._queues) - 1)
        for tenant in sorted(tenants):
            for key, places in state.usage.promotable.get(tenant, {}).items():
                self._gangs.append((key, list(reversed(places))))
                self._file_gangs(len(self._gangs) - 1)

    def next(self) -> tuple[JobId, Row] | None:
        """Returns the next job and its group; promotes the gangs whose turn comes before it."""
        while self._heap:
            _, job_id, is_gang, index = self._heap[0]
            if is_gang:
                heappop(self._heap)
                self._promote(index)
                continue
            account, queue = self._queues[index]
            head = queue.head()
            if head is not None and head[0][2] == job_id:
                if self._fits(account, head[1]):
                    return JobId(job_id), head[1]
                queue.drop()
            heappop(self._heap)
            self._file_queue(index)
        return None

    def answered(self, *, goes_on: bool) -> None:
        """Files the project under its next job."""
        *_, index = heappop(self._heap)
        if goes_on:
            self._queues[index][1].advance()
        else:
            self._queues[index][1].drop()
        self._file_queue(index)

    def _fits(self, account: AccountId, row: Row) -> bool:
        """Tells whether the job fits in the class that it prefers; in others it gets its guarantee when burst goes."""
        shape = row.group.shape
        return shape.total_units <= self._bookings.guarantee_left(account, shape.gpu_classes[0])

    def _file_queue(self, index: int) -> None:
        account, queue = self._queues[index]
        left: dict[GpuClass, int] = {}
        while (head := queue.head()) is not None:
            shape = head[1].group.shape
            gpu_class = shape.gpu_classes[0]
            if gpu_class not in left:
                left[gpu_class] = self._bookings.guarantee_left(account, gpu_class)
            if shape.total_units <= left[gpu_class]:
                # Not its place in its project: an order of its own must not set a project behind all others.
                submitted_ms = self._state.jobs[JobId(head[0][2])].submitted_ms
                heappush(self._heap, (submitted_ms, head[0][2], False, index))
                return
            queue.drop()

    def _file_gangs(self, index: int) -> None:
        (account, gpu_class, units), places = self._gangs[index]
        if places and units <= self._bookings.guarantee_left(account, gpu_class):
            submitted_ms, job_id, _ = places[-1]
            heappush(self._heap, (submitted_ms, job_id, True, index))

    def _promote(self, index: int) -> None:
        (account, gpu_class, units), places = self._gangs[index]
        if units <= self._bookings.guarantee_left(account, gpu_class):
            self._bookings.promote(places.pop()[2])
            self._file_gangs(index)
