"""The queues of a tick: projects' waiting jobs in their own order, less what is known not to start."""

from collections.abc import Iterable
from heapq import heapify, heappop, heapreplace
from typing import Protocol

from scheduler.core.model import AccountId
from scheduler.core.waiting import Group, Head, Row


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

    def __init__(self, outlook: Outlook) -> None:
        self.dead: set[tuple[int, int]] = set()
        """Kinds of jobs of which none can start any more in this tick."""
        self.passed: dict[Row, int] = {}
        """How many of the group's jobs were given out and started."""
        self._accounts_passed: set[AccountId] = set()
        self._outlook = outlook

    def queue(self, heads: Iterable[Head], account: AccountId, *, is_guaranteed: bool = False) -> "Queue":
        """Returns the groups of a project that begin with these heads, merged."""
        dead = set() if is_guaranteed else self.dead
        found = [head for head in heads if head[1].kind not in dead] if dead else list(heads)
        if account in self._accounts_passed:
            found = [
                (row.line[self.passed[row]], row) if row in self.passed else (key, row)
                for key, row in found
                if self.passed.get(row, 0) < len(row.line)
            ]
            heapify(found)
        return Queue(self, found, is_guaranteed=is_guaranteed)

    def has_hope(self, row: Row) -> bool:
        """Tells whether it is worth a look at the group."""
        if row.kind in self.dead:
            return False
        if not self._outlook.is_hopeless(row.group):
            return True
        if self._outlook.is_dead(row.group):
            self.dead.add(row.kind)
        return False

    def passed_one(self, row: Row) -> int:
        """Counts a job of the group that was given out and started; returns how many there are now."""
        count = self.passed.get(row, 0) + 1
        self.passed[row] = count
        self._accounts_passed.add(row.group.account)
        return count


class Queue:
    """Some of a project's groups, merged: the next job by the project's own order."""

    __slots__ = ("_dead_seen", "_heads", "_hopeful", "_is_guaranteed", "_prospects")

    def __init__(self, prospects: Prospects, heads: list[Head], *, is_guaranteed: bool) -> None:
        self._prospects = prospects
        self._heads = heads
        self._hopeful: Row | None = None
        self._dead_seen = 0
        self._is_guaranteed = is_guaranteed  # these are looked at in any case: the first of them keeps the guarantee

    def head(self) -> Head | None:
        """Returns the first job of a group that is worth a look; None when there is none left."""
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
