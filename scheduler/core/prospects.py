"""The queues of a tick: projects' waiting jobs in their own order, less what is known not to start.

A project may share its turns among its users: priority still comes first; among equals the user goes first who holds
the fewest capacity units of the project now (all classes and bookings, with what this tick has started), then submit
time. What a user held once and gave back counts no more: the memory of use is for accounts, across projects.
"""

from collections import Counter
from collections.abc import Collection
from heapq import heapify, heappop, heappush, heapreplace
from typing import Protocol

from sortedcontainers import SortedList

from scheduler.core.model import AccountId, BookingWanted, UserName
from scheduler.core.usage import Usage
from scheduler.core.waiting import Group, Head, Row, Waiting


class Outlook(Protocol):
    """What a tick knows of groups that it need not look at."""

    def is_hopeless(self, group: Group) -> bool:
        """Tells whether no job of the group can start now, for a reason that is known without another look."""
        ...

    def is_dead(self, group: Group) -> bool:
        """Tells whether no job of a hopeless group's shape and time limit can start any more, whoever it belongs to."""
        ...


class Prospects:
    """Which groups are worth a look, and how far each was given out in this tick."""

    def __init__(self, outlook: Outlook, waiting: Waiting, usage: Usage) -> None:
        self.dead: set[tuple[int, int]] = set()
        """Kinds of jobs of which none can start any more in this tick."""
        self._kinds = waiting.kinds
        self._alive = {wanted: len(kinds) for wanted, kinds in waiting.kinds.items()}
        self.passed: dict[Row, int] = {}
        """How many of the group's jobs were given out and started."""
        self._accounts_passed: set[AccountId] = set()
        self._outlook = outlook
        self._turns = UserTurns(waiting.by_turns, usage)

    def queue(self, heads: SortedList[Head], account: AccountId, *, is_guaranteed: bool = False) -> "Queue":
        """Returns the groups of a project that begin with these heads, merged."""
        takes_turns = account in self._turns.accounts
        if not takes_turns and account not in self._accounts_passed:
            return Queue(self, heads, is_guaranteed=is_guaranteed)
        dead = set() if is_guaranteed else self.dead
        found = [
            (row.line[self.passed[row]], row) if row in self.passed else (key, row)
            for key, row in heads
            if row.kind not in dead and self.passed.get(row, 0) < len(row.line)
        ]
        if takes_turns:
            return UserQueue(self, found, self._turns, is_guaranteed=is_guaranteed)
        heapify(found)
        return Queue(self, found, is_guaranteed=is_guaranteed)

    def is_over(self, wanted: BookingWanted) -> bool:
        """Tells whether no job that wants such a booking can start any more in this tick."""
        return not self._alive[wanted]

    def has_hope(self, row: Row) -> bool:
        """Tells whether it is worth a look at the group."""
        if row.kind in self.dead:
            return False
        if not self._outlook.is_hopeless(row.group):
            return True
        if self._outlook.is_dead(row.group):
            self.dead.add(row.kind)
            for wanted, kinds in self._kinds.items():
                self._alive[wanted] -= row.kind in kinds
        return False

    def passed_one(self, row: Row) -> int:
        """Counts a job of the group that was given out and started; returns how many there are now."""
        count = self.passed.get(row, 0) + 1
        self.passed[row] = count
        self._accounts_passed.add(row.group.account)
        return count


class Queue:
    """Some of a project's groups, merged: the next job by the project's own order.

    Most projects are asked for their first job only. Their heads are looked at where they are kept, and copied when the
    queue moves on.
    """

    __slots__ = ("_dead_seen", "_first", "_heads", "_hopeful", "_is_guaranteed", "_kept", "_passed", "_prospects")

    def __init__(self, prospects: Prospects, heads: SortedList[Head] | list[Head], *, is_guaranteed: bool) -> None:
        self._prospects = prospects
        self._kept = heads if isinstance(heads, SortedList) else None
        self._passed = 0
        """Heads of those kept that are not worth a look."""
        self._first: Head | None = None
        """The next one of those kept."""
        self._heads: list[Head] = [] if isinstance(heads, SortedList) else heads
        self._hopeful: Row | None = None
        self._dead_seen = 0
        self._is_guaranteed = is_guaranteed  # these are looked at in any case: the first of them keeps the guarantee

    def head(self) -> Head | None:
        """Returns the first job of a group that is worth a look; None when there is none left."""
        if self._kept is not None:
            return self._first_kept(self._kept)
        heads, prospects = self._heads, self._prospects
        dead = prospects.dead
        while heads:
            head = heads[0]
            row = head[1]
            if self._is_guaranteed or (row is self._hopeful and row.kind not in dead):
                return head
            if prospects.has_hope(row):
                self._hopeful = row
                return head
            heappop(heads)
            if len(dead) != self._dead_seen:
                self._dead_seen = len(dead)
                heads[:] = [other for other in heads if other[1].kind not in dead]
                heapify(heads)
        return None

    def _first_kept(self, kept: SortedList[Head]) -> Head | None:
        prospects, count = self._prospects, len(kept)
        dead = prospects.dead
        while self._passed < count:
            if self._first is None:
                self._first = kept[self._passed]
            row = self._first[1]
            if self._is_guaranteed or (row is self._hopeful and row.kind not in dead):
                return self._first
            if prospects.has_hope(row):
                self._hopeful = row
                return self._first
            self._passed += 1
            self._first = None
        return None

    def _move_on(self) -> None:
        """Copies the heads that are kept elsewhere, the one looked at first."""
        if self._kept is not None:
            dead: Collection[tuple[int, int]] = () if self._is_guaranteed else self._prospects.dead
            first, *others = self._kept[self._passed :]
            self._heads = [first, *(head for head in others if head[1].kind not in dead)]
            self._kept = None

    def advance(self) -> None:
        """Goes on behind the head, in its group."""
        self._move_on()
        row = self._heads[0][1]
        count = self._prospects.passed_one(row)
        if count < len(row.line):
            heapreplace(self._heads, (row.line[count], row))
        else:
            heappop(self._heads)

    def drop(self) -> None:
        """Leaves the head's group."""
        if self._kept is None:
            heappop(self._heads)
        else:
            self._passed += 1
            self._first = None


class UserTurns:
    """What the users hold of projects that share their turns, as a tick goes on."""

    def __init__(self, accounts: Collection[AccountId], usage: Usage) -> None:
        self.accounts = accounts
        self._held: dict[AccountId, Counter[UserName]] = {}
        for (account, _), users in usage.user_units.items() if self.accounts else ():
            if account in self.accounts:
                self._held.setdefault(account, Counter()).update(users)

    def held(self, row: Row) -> int:
        """Returns the capacity units that the user of a group holds in its project."""
        assert row.group.user is not None, "groups of a project that shares its turns are of one user"
        return self._held.get(row.group.account, Counter())[row.group.user]

    def count(self, row: Row) -> None:
        """Counts a job of the group that was given out and started."""
        assert row.group.user is not None, "groups of a project that shares its turns are of one user"
        self._held.setdefault(row.group.account, Counter())[row.group.user] += row.group.shape.total_units


class UserQueue(Queue):
    """A project's groups by whose turn it is. What users hold only grows in a tick, so places are set right late."""

    __slots__ = ("_places", "_turns")

    def __init__(self, prospects: Prospects, heads: list[Head], turns: UserTurns, *, is_guaranteed: bool) -> None:
        super().__init__(prospects, [], is_guaranteed=is_guaranteed)
        self._turns = turns
        self._places = [(self._place(head), head) for head in heads]
        heapify(self._places)

    def head(self) -> Head | None:
        """Returns the first job of a group that is worth a look; None when there is none left."""
        places = self._places
        while places:
            place, head = places[0]
            now = self._place(head)
            if now != place:
                heapreplace(places, (now, head))
            elif self._is_guaranteed or self._prospects.has_hope(head[1]):
                return head
            else:
                heappop(places)
        return None

    def advance(self) -> None:
        """Goes on behind the head, in its group."""
        _, (_, row) = heappop(self._places)
        self._turns.count(row)
        count = self._prospects.passed_one(row)
        if count < len(row.line):
            head = (row.line[count], row)
            heappush(self._places, (self._place(head), head))

    def drop(self) -> None:
        """Leaves the head's group."""
        heappop(self._places)

    def _place(self, head: Head) -> tuple[int, int, int, int]:
        (urgency, rank_ms, job_id), row = head
        return urgency, self._turns.held(row), rank_ms, job_id
