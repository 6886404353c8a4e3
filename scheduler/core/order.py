"""Who is considered next. The sequence in which a tick considers jobs is *the* order.

1. Jobs that fit a guarantee: first those that accept nothing else, then, by submit time, the others and running burst
   gangs, which are promoted.
2. Burst: at each level of the account tree the account with the lowest (debt + what its burst gangs will add within the
   horizon + the same of this job) / weight; inside a project its own order: priority, then submit time, then id.
3. Spot, likewise, with what spot gangs cost in place of debt-to-be.

The tree of a tick is made of the first jobs of groups; what waits behind them costs nothing. A start moves its account
in one heap a level. Ties end in ids. A job is given out twice at most: in its turn within the guarantee, and in 2.
"""

from collections.abc import Iterable
from heapq import heapify, heappop, heappush, heapreplace
from typing import Protocol

from sortedcontainers import SortedList

from scheduler.core.booking import Bookings
from scheduler.core.debt import EPOCH_MS
from scheduler.core.model import (
    GPU_UNITS,
    ROOT_ACCOUNT,
    AccountId,
    AllocationId,
    Booking,
    BookingWanted,
    GpuClass,
    JobId,
    Shape,
    lineage,
    tenant_of,
)
from scheduler.core.state import ClusterState
from scheduler.core.waiting import Group, Head, QueueKey, Row

HORIZON_SECONDS = EPOCH_MS // 1000
"""How far the order looks ahead: what starts now weighs as if it had run for so long already."""

_KEY_BITS = 20  # a key is a quotient by the weight; these bits keep apart what differs by less than a whole


class Outlook(Protocol):
    """What a tick knows of groups that it need not look at."""

    def is_hopeless(self, group: Group) -> bool:
        """Tells whether no job of the group can start now, for a reason that is known without another look."""
        ...

    def is_dead(self, shape: Shape) -> bool:
        """Tells whether no job of the shape can start any more in this tick, whoever it belongs to."""
        ...


class Line(Protocol):
    """Waiting jobs in order, given out one at a time."""

    def next(self) -> tuple[JobId, Group] | None:
        """Returns the next job and its group, or None at the end. Answer by `started` or `drop`."""
        ...

    def started(self) -> None:
        """Goes on behind the job given out last."""
        ...

    def drop(self) -> None:
        """Gives out no more jobs of the group of the job given out last: none of them can start in this tick."""
        ...


class _Walk(Protocol):
    def next(self) -> tuple[JobId, Row] | None: ...

    def answered(self, *, goes_on: bool) -> None: ...


class FairLine:
    """All pending jobs in order, given out one at a time."""

    def __init__(self, state: ClusterState, bookings: Bookings, now_ms: int, outlook: Outlook) -> None:
        self._state = state
        self._bookings = bookings
        self._prospects = _Prospects(state, outlook)
        self._scale = _Scale(state, bookings, now_ms)
        self._tiers = iter(("strict", "guarantee", "burst", "spot"))
        self._walk: _Walk = self._begin(next(self._tiers))
        self._given: Row | None = None

    def _begin(self, tier: str) -> _Walk:
        self._bookings.is_guarantee_turn = tier == "guarantee"
        if tier == "guarantee":
            return _GuaranteeWalk(self._prospects, self._state, self._bookings)
        wanted = {"strict": BookingWanted.GUARANTEED, "burst": BookingWanted.AUTO, "spot": BookingWanted.SPOT}[tier]
        return _TreeWalk(self._prospects, self._scale, wanted)

    def next(self) -> tuple[JobId, Group] | None:
        """Returns the next job and its group, or None at the end. Answer by `started` or `drop`."""
        assert self._given is None, "the job before was not answered for"
        while (found := self._walk.next()) is None:
            tier = next(self._tiers, None)
            if tier is None:
                return None
            self._walk = self._begin(tier)
        job_id, self._given = found
        return job_id, self._given.group

    def started(self) -> None:
        """Goes on behind the job given out last."""
        self._answer(goes_on=True)

    def drop(self) -> None:
        """Gives out no more jobs of the group of the job given out last: none of them can start in this tick."""
        self._answer(goes_on=False)

    def _answer(self, *, goes_on: bool) -> None:
        row = self._given
        assert row is not None, "no job was given out"
        self._given = None
        self._walk.answered(goes_on=goes_on)


class PlainLine:
    """First come or shortest limit first over all projects: the textbooks' orders, for comparison.

    Inside a group priority still goes first.
    """

    def __init__(self, lines: Iterable[tuple[Group, SortedList[QueueKey]]], *, is_shortest_first: bool) -> None:
        self._is_shortest_first = is_shortest_first
        self._lines = list(lines)
        self._positions = [0] * len(self._lines)
        self._heap = [self._entry(index) for index in range(len(self._lines))]
        heapify(self._heap)

    def _entry(self, index: int) -> tuple[int, int, int, int]:
        group, line = self._lines[index]
        _, submitted_ms, job_id = line[self._positions[index]]
        return (group.time_limit_ms if self._is_shortest_first else 0, submitted_ms, job_id, index)

    def next(self) -> tuple[JobId, Group] | None:
        """Returns the next job and its group, or None at the end. Answer by `started` or `drop`."""
        if not self._heap:
            return None
        _, _, job_id, index = self._heap[0]
        return JobId(job_id), self._lines[index][0]

    def started(self) -> None:
        """Goes on behind the job given out last."""
        index = self._heap[0][-1]
        self._positions[index] += 1
        if self._positions[index] < len(self._lines[index][1]):
            heapreplace(self._heap, self._entry(index))
        else:
            heappop(self._heap)

    def drop(self) -> None:
        """Gives out no more jobs of the group of the job given out last: none of them can start in this tick."""
        heappop(self._heap)


class _Prospects:
    """Which groups are worth a look, and how far each was given out in this tick."""

    def __init__(self, state: ClusterState, outlook: Outlook) -> None:
        self.state = state
        self.dead: set[int] = set()
        """Numbers of shapes of which none can start any more in this tick."""
        self.passed: dict[Row, int] = {}
        """How many of the group's jobs were given out and started."""
        self._accounts_passed: set[AccountId] = set()
        self._outlook = outlook

    def queue(self, heads: Iterable[Head], account: AccountId, *, is_guaranteed: bool = False) -> "_Queue":
        """Returns the groups of a project that begin with these heads, merged."""
        dead = set() if is_guaranteed else self.dead
        found = [head for head in heads if head[1].shape_number not in dead] if dead else list(heads)
        if account in self._accounts_passed:
            found = [
                (row.line[self.passed[row]], row) if row in self.passed else (key, row)
                for key, row in found
                if self.passed.get(row, 0) < len(row.line)
            ]
            heapify(found)
        return _Queue(self, found, is_guaranteed=is_guaranteed)

    def has_hope(self, row: Row) -> bool:
        """Tells whether it is worth a look at the group."""
        if row.shape_number in self.dead:
            return False
        if not self._outlook.is_hopeless(row.group):
            return True
        if self._outlook.is_dead(row.group.shape):
            self.dead.add(row.shape_number)
        return False

    def passed_one(self, row: Row) -> int:
        """Counts a job of the group that was given out and started; returns how many there are now."""
        count = self.passed.get(row, 0) + 1
        self.passed[row] = count
        self._accounts_passed.add(row.group.account)
        return count


class _Queue:
    """Some of a project's groups, merged: the next job by the project's own order."""

    __slots__ = ("_heads", "_hopeful", "_is_guaranteed", "_prospects")

    def __init__(self, prospects: _Prospects, heads: list[Head], *, is_guaranteed: bool) -> None:
        self._prospects = prospects
        self._heads = heads
        self._hopeful: Row | None = None
        self._is_guaranteed = is_guaranteed  # these are looked at in any case: the first of them keeps the guarantee

    def head(self) -> Head | None:
        """Returns the first job of a group that is worth a look; None when there is none left."""
        heads, prospects = self._heads, self._prospects
        dead = prospects.dead
        while heads:
            head = heads[0]
            row = head[1]
            if self._is_guaranteed or (row is self._hopeful and row.shape_number not in dead):
                return head
            if prospects.has_hope(row):
                self._hopeful = row
                return head
            heappop(heads)
            if dead:
                heads[:] = [other for other in heads if other[1].shape_number not in dead]
                heapify(heads)
        return None

    def advance(self) -> None:
        """Goes on behind the head, in its group."""
        row = self._heads[0][1]
        count = self._prospects.passed_one(row)
        if count < len(row.line):
            heapreplace(self._heads, (row.line[count], row))
        else:
            heappop(self._heads)

    def drop(self) -> None:
        """Leaves the head's group."""
        heappop(self._heads)


class _Scale:
    """What accounts are weighed by: (debt + what runs and this job would add within the horizon) / weight."""

    def __init__(self, state: ClusterState, bookings: Bookings, now_ms: int) -> None:
        self._state = state
        self._bookings = bookings
        self._now_ms = now_ms
        self._known: dict[tuple[AccountId, bool], tuple[int, int]] = {}
        """What an account owes and its weight, for burst or for spot."""
        self._charges: dict[tuple[int, BookingWanted], int] = {}

    def weigh(self, account: AccountId, row: Row) -> int:
        """Returns the account's key if the group's next job were its next."""
        wanted = row.group.wanted
        is_spot = wanted is BookingWanted.SPOT
        known = self._known.get((account, is_spot))
        if known is None:
            terms = self._state.accounts.get(account)
            known = self._known[account, is_spot] = (self._owes(account, is_spot=is_spot), terms.weight if terms else 1)
        owed, weight = known
        bookings = self._bookings
        charge = self._charge(row, wanted)
        if account in bookings.burst_charge:
            charge += bookings.burst_charge[account]
        if is_spot:
            charge += bookings.spot_charge[account]
        return (owed + charge * HORIZON_SECONDS << _KEY_BITS) // weight

    def weigh_own(self, account: AccountId, row: Row) -> int:
        """Returns the key of an account's own jobs beside those of the accounts below it: all that these don't owe."""
        is_spot = row.group.wanted is BookingWanted.SPOT
        depth = account.count("/") + 1
        below = [
            each
            for each in {*self._state.usage.debts.values, *self._bookings.burst_charge, *self._state.usage.spot_charge}
            if each.startswith(f"{account}/") and each.count("/") == depth
        ]
        owed = self._owes(account, is_spot=is_spot) - sum(self._owes(each, is_spot=is_spot) for each in below)
        charges = [self._bookings.burst_charge, *([self._bookings.spot_charge] if is_spot else [])]
        charge = self._charge(row, row.group.wanted) + sum(
            each[account] - sum(each[name] for name in below) for each in charges
        )
        return owed + charge * HORIZON_SECONDS << _KEY_BITS

    def _owes(self, account: AccountId, *, is_spot: bool) -> int:
        usage = self._state.usage
        charge = usage.debts.charge(account) + (usage.spot_charge[account] if is_spot else 0)
        return usage.debts.credits(account, self._now_ms) * GPU_UNITS + charge * HORIZON_SECONDS

    def _charge(self, row: Row, wanted: BookingWanted) -> int:
        if wanted is BookingWanted.GUARANTEED:
            return 0
        charge = self._charges.get((row.shape_number, wanted))
        if charge is None:
            booking, shape = Booking.SPOT if wanted is BookingWanted.SPOT else Booking.BURST, row.group.shape
            charge = self._bookings.charge_of(shape, shape.gpu_classes[0], booking)
            self._charges[row.shape_number, wanted] = charge
        return charge


class _Branch:
    """A node of the tick's tree: an account with those below it, or a queue."""

    __slots__ = ("account", "children", "heap", "is_own", "parent", "queue")

    def __init__(self, account: AccountId, parent: "_Branch | None", queue: _Queue | None = None) -> None:
        self.account = account
        self.parent = parent
        self.queue = queue
        self.is_own = False
        self.children: dict[AccountId, _Branch] = {}
        self.heap: list[tuple[int, AccountId, bool, _Branch]] = []

    def head(self) -> Head | None:
        """Returns the job that is next below here."""
        branch = self
        while branch.queue is None:
            if not branch.heap:
                return None
            branch = branch.heap[0][3]
        return branch.queue.head()


class _TreeWalk:
    """Jobs of one wanted booking, by the tree."""

    def __init__(self, prospects: _Prospects, scale: _Scale, wanted: BookingWanted) -> None:
        self._scale = scale
        self._root = _Branch(ROOT_ACCOUNT, None)
        is_guaranteed = wanted is BookingWanted.GUARANTEED
        for account, heads in prospects.state.waiting.heads[wanted].items():
            queue = prospects.queue(heads, account, is_guaranteed=is_guaranteed)
            if queue.head() is not None:
                self._plant(account, queue)
        self._order(self._root)

    def next(self) -> tuple[JobId, Row] | None:
        """Returns the next job and its group."""
        while self._root.heap:
            leaf = self._leaf()
            assert leaf.queue is not None, "a branch without children has a queue"
            given = leaf.queue.head()
            if given is not None:
                entry = leaf.parent.heap[0] if leaf.parent else None
                if entry is not None and entry[0] == self._key(leaf, given[1]):
                    return JobId(given[0][2]), given[1]
            self._refile(leaf)  # its group has become hopeless since it was filed
        return None

    def answered(self, *, goes_on: bool) -> None:
        """Moves the job's account to its new place, at every level."""
        leaf = self._leaf()
        assert leaf.queue is not None, "a branch without children has a queue"
        if goes_on:
            leaf.queue.advance()
        else:
            leaf.queue.drop()
        self._refile(leaf)

    def _leaf(self) -> _Branch:
        branch = self._root
        while branch.queue is None:
            branch = branch.heap[0][3]
        return branch

    def _plant(self, account: AccountId, queue: _Queue) -> None:
        branch = self._root
        for step in reversed(lineage(account)):
            below = branch.children.get(step)
            if below is None:
                below = branch.children[step] = _Branch(step, branch)
            branch = below
        branch.queue = queue

    def _order(self, branch: _Branch) -> None:
        """Files everything below a branch; an account that has jobs of its own and others below it gets a leaf."""
        if branch.queue is not None and branch.children:
            own = _Branch(branch.account, branch, branch.queue)
            own.is_own, branch.queue = True, None
            branch.children[branch.account] = own
        for below in branch.children.values():
            self._order(below)
            head = below.head()
            if head is not None:
                branch.heap.append((self._key(below, head[1]), below.account, below.is_own, below))
        heapify(branch.heap)

    def _key(self, branch: _Branch, row: Row) -> int:
        if branch.is_own:
            return self._scale.weigh_own(branch.account, row)
        return self._scale.weigh(branch.account, row)

    def _refile(self, branch: _Branch) -> None:
        """Gives a branch, which is first of its siblings, and all above it the places that they have now."""
        while branch.parent is not None:
            parent, head = branch.parent, branch.head()
            if head is None:
                heappop(parent.heap)
            else:
                heapreplace(parent.heap, (self._key(branch, head[1]), branch.account, branch.is_own, branch))
            branch = parent


class _GuaranteeWalk:
    """What fits a guarantee and would do without, by submit time: pending jobs, and burst gangs to promote."""

    def __init__(self, prospects: _Prospects, state: ClusterState, bookings: Bookings) -> None:
        self._state = state
        self._bookings = bookings
        self._queues: list[tuple[AccountId, _Queue]] = []
        self._gangs: list[tuple[tuple[AccountId, GpuClass, int], list[tuple[int, JobId, AllocationId]]]] = []
        self._heap: list[tuple[int, int, bool, int]] = []  # rank_ms, job, is it a gang, place in its list
        tenants = {tenant for bought in state.guarantees.values() for tenant in bought}
        tenants = {tenant for tenant in tenants if self._has_left(tenant)}
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
            rank_ms, job_id, is_gang, index = self._heap[0]
            if is_gang:
                heappop(self._heap)
                self._promote(index)
                continue
            account, queue = self._queues[index]
            head = queue.head()
            if head is not None and (head[0][1], head[0][2]) == (rank_ms, job_id):
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

    def _has_left(self, tenant: AccountId) -> bool:
        return any(
            self._bookings.guarantee_left(tenant, gpu_class) > 0
            for gpu_class, bought in self._state.guarantees.items()
            if tenant in bought
        )

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
                heappush(self._heap, (head[0][1], head[0][2], False, index))
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
