"""What every order offers, and the textbooks' orders, for comparison."""

from collections.abc import Callable, Iterable
from heapq import heapify, heappop, heapreplace
from typing import Protocol

from sortedcontainers import SortedList

from scheduler.core.model import JobId
from scheduler.core.policy import QueueOrder
from scheduler.core.waiting import Group, QueueKey

Ranking = Callable[[JobId, int], int]
"""The rank of a job with so many milliseconds left, the lowest first."""


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


class PlainLine:
    """First come, shortest limit or least GPU time first over all projects: the textbooks' orders, for comparison.

    Inside a group priority still goes first. With `ranks`, the order is theirs.
    """

    def __init__(
        self, lines: Iterable[tuple[Group, SortedList[QueueKey]]], order: QueueOrder, ranks: Ranking | None = None
    ) -> None:
        self._lines = list(lines)
        self._sizes = [_size(group, order) for group, _ in self._lines]
        self._ranks = ranks
        self._positions = [0] * len(self._lines)
        self._heap = [self._entry(index) for index in range(len(self._lines))]
        heapify(self._heap)

    def _entry(self, index: int) -> tuple[int, int, int, int]:
        group, line = self._lines[index]
        _, submitted_ms, job_id = line[self._positions[index]]
        if self._ranks is not None:
            return self._ranks(JobId(job_id), group.time_limit_ms), submitted_ms, job_id, index
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
    if order in {QueueOrder.SJF, QueueOrder.SRTF}:  # a replay makes what remains the limit of a job that it stopped
        return group.time_limit_ms
    return group.time_limit_ms * group.shape.total_units if order is QueueOrder.LEAST_SERVICE else 0
