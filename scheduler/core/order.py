"""Who is considered next. The sequence in which a tick considers jobs is *the* order.

Across projects the job that was submitted first comes first; inside a project priority goes before submit time. Ties
end in the id. One line a tick, made of the heads of the groups: what waits behind a head costs nothing.
"""

from collections.abc import Iterable
from heapq import heapify, heappop, heappush, heapreplace
from typing import Protocol

from sortedcontainers import SortedList

from scheduler.core.model import AccountId, JobId
from scheduler.core.policy import QueueOrder
from scheduler.core.state import Group, QueueKey


class _Queue:
    """A project's groups, merged: the next job by priority, submit time and id."""

    __slots__ = ("_heads", "_lines", "_positions")

    def __init__(self, groups: dict[Group, SortedList[QueueKey]]) -> None:
        self._lines = list(groups.items())
        self._positions = [0] * len(self._lines)
        self._heads = [(line[0], index) for index, (_, line) in enumerate(self._lines)]
        heapify(self._heads)

    def head(self) -> tuple[QueueKey, Group] | None:
        if not self._heads:
            return None
        key, index = self._heads[0]
        return key, self._lines[index][0]

    def advance(self) -> None:
        _, index = self._heads[0]
        self._positions[index] += 1
        line = self._lines[index][1]
        if self._positions[index] < len(line):
            heapreplace(self._heads, (line[self._positions[index]], index))
        else:
            heappop(self._heads)

    def drop(self) -> None:
        heappop(self._heads)


class Line(Protocol):
    """Waiting jobs in order, given out one at a time; a group that cannot start is dropped whole."""

    def next(self) -> tuple[JobId, Group] | None:
        """Returns the next job and its group, or None at the end. Answer by `started` or `drop`."""
        ...

    def started(self) -> None:
        """Goes on behind the job given out last."""
        ...

    def drop(self) -> None:
        """Gives out no more jobs of the group of the job given out last: none of them can start in this tick."""
        ...


Lines = Iterable[tuple[Group, SortedList[QueueKey]]]


def line_of(order: QueueOrder, lines: Lines) -> Line:
    """Returns the jobs of the groups in the order that the policy chose."""
    if order is QueueOrder.FAIR:
        return FairLine(lines)
    return PlainLine(lines, order)


class PlainLine:
    """First come, shortest limit or least GPU time first over all projects: the textbooks' orders, for comparison.

    Inside a group priority still goes first.
    """

    def __init__(self, lines: Lines, order: QueueOrder) -> None:
        self._lines = list(lines)
        self._sizes = [_size(group, order) for group, _ in self._lines]
        self._positions = [0] * len(self._lines)
        self._heap = [self._entry(index) for index in range(len(self._lines))]
        heapify(self._heap)

    def _entry(self, index: int) -> tuple[int, int, int, int]:
        _, submitted_ms, job_id = self._lines[index][1][self._positions[index]]
        return self._sizes[index], submitted_ms, job_id, index

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


def _size(group: Group, order: QueueOrder) -> int:
    if order is QueueOrder.SJF:
        return group.time_limit_ms
    return group.time_limit_ms * group.shape.total_units if order is QueueOrder.LEAST_SERVICE else 0


class FairLine:
    """All pending jobs in the product's order."""

    def __init__(self, lines: Lines) -> None:
        self._queues: list[_Queue] = []
        self._heap: list[tuple[int, JobId, AccountId, int]] = []
        by_account: dict[AccountId, dict[Group, SortedList[QueueKey]]] = {}
        for group, line in lines:
            by_account.setdefault(group.account, {})[group] = line
        for account, groups in by_account.items():
            queue = _Queue(groups)
            self._queues.append(queue)
            self._push(account, len(self._queues) - 1)
        self._current: tuple[AccountId, int] | None = None

    def _push(self, account: AccountId, index: int) -> None:
        head = self._queues[index].head()
        if head is not None:
            (_, submitted_ms, job_id), _ = head
            heappush(self._heap, (submitted_ms, JobId(job_id), account, index))

    def next(self) -> tuple[JobId, Group] | None:
        """Returns the next job and its group, or None at the end. Answer by `started` or `drop`."""
        assert self._current is None, "the job before was not answered for"
        if not self._heap:
            return None
        _, job_id, account, index = heappop(self._heap)
        head = self._queues[index].head()
        assert head is not None, "a queue in the line has a head"
        self._current = (account, index)
        return job_id, head[1]

    def started(self) -> None:
        """Goes on behind the job given out last."""
        self._answer(drop=False)

    def drop(self) -> None:
        """Gives out no more jobs of the group of the job given out last: none of them can start in this tick."""
        self._answer(drop=True)

    def _answer(self, *, drop: bool) -> None:
        assert self._current is not None, "no job was given out"
        account, index = self._current
        queue = self._queues[index]
        if drop:
            queue.drop()
        else:
            queue.advance()
        self._current = None
        self._push(account, index)
