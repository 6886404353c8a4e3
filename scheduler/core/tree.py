"""The walk of the account tree: at each level the account that owes least for its weight, down to a project's queue."""

from collections.abc import Mapping
from heapq import heapify, heappop, heapreplace

from sortedcontainers import SortedList

from scheduler.core.booking import Bookings
from scheduler.core.debt import EPOCH_MS
from scheduler.core.model import GPU_UNITS, ROOT_ACCOUNT, AccountId, Booking, BookingWanted, JobId, lineage
from scheduler.core.prospects import Prospects, Queue
from scheduler.core.state import ClusterState
from scheduler.core.waiting import Head, Row

HORIZON_SECONDS = EPOCH_MS // 1000
"""How far the order looks ahead: what starts now weighs as if it had run for so long already."""

_KEY_BITS = 20  # a key is a quotient by the weight; these bits keep apart what differs by less than a whole


class Scale:
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

    def __init__(self, account: AccountId, parent: "_Branch | None", queue: Queue | None = None) -> None:
        self.account = account
        self.parent = parent
        self.queue = queue
        self.is_own = False
        self.children: dict[AccountId, _Branch] = {}
        self.heap: list[tuple[int, AccountId, bool, _Branch]] = []

    def head(self) -> Head | None:
        """Returns the job that is next below here."""
        if self.queue is not None:
            return self.queue.head()
        while self.heap:
            head = self.heap[0][3].head()
            if head is not None:
                return head
            heappop(self.heap)  # it has become hopeless since it was filed; its siblings have not
        return None


class TreeWalk:
    """Jobs of one wanted booking, by the tree."""

    def __init__(
        self,
        prospects: Prospects,
        scale: Scale,
        heads_of: Mapping[AccountId, SortedList[Head]],
        wanted: BookingWanted,
    ) -> None:
        self._prospects = prospects
        self._scale = scale
        self._wanted = wanted
        self._is_guaranteed = wanted is BookingWanted.GUARANTEED
        self._root = _Branch(ROOT_ACCOUNT, None)
        self._is_lone = len(heads_of) == 1
        for account, heads in heads_of.items():
            if self._is_over():
                break
            queue = prospects.queue(heads, account, is_guaranteed=self._is_guaranteed)
            if queue.head() is not None:
                self._plant(account, queue)
        if not self._is_over():
            self._order(self._root)

    def _is_over(self) -> bool:
        """Tells whether nothing that could be given out here can start; what accepts a guarantee only is looked at."""
        return not self._is_guaranteed and self._prospects.is_over(self._wanted)

    def next(self) -> tuple[JobId, Row] | None:
        """Returns the next job and its group."""
        while self._root.heap and not self._is_over():
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

    def _plant(self, account: AccountId, queue: Queue) -> None:
        branch = self._root
        for step in reversed(lineage(account)):
            below = branch.children.get(step)
            if below is None:
                below = branch.children[step] = _Branch(step, branch)
            branch = below
        branch.queue = queue

    def _order(self, branch: _Branch) -> Head | None:
        """Files everything below a branch, and returns the job that is next below it.

        An account that has jobs of its own and others below it gets a leaf.
        """
        if branch.queue is not None and branch.children:
            own = _Branch(branch.account, branch, branch.queue)
            own.is_own, branch.queue = True, None
            branch.children[branch.account] = own
        if branch.queue is not None:
            return branch.queue.head()
        heads: dict[_Branch, Head] = {}
        for below in branch.children.values():
            head = self._order(below)
            if head is not None:
                heads[below] = head
                branch.heap.append((self._key(below, head[1]), below.account, below.is_own, below))
        heapify(branch.heap)
        return heads[branch.heap[0][3]] if branch.heap else None

    def _key(self, branch: _Branch, row: Row) -> int:
        if self._is_lone:
            return 0  # nobody to be weighed against
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
