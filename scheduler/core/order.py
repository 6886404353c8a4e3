"""Who is considered next. The sequence in which a tick considers jobs is *the* order.

Across projects the job that was submitted first comes first; inside a project priority goes before submit time. Ties
end in the id. One line a tick, made of the heads of the groups: what waits behind a head costs nothing.
"""

from heapq import heapify, heappop, heappush, heapreplace

from sortedcontainers import SortedList

from scheduler.core.model import AccountId, JobId
from scheduler.core.state import ClusterState
from scheduler.core.waiting import Group, QueueKey


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


class Line:
    """All pending jobs in order, given out one at a time; a group that cannot start is dropped whole."""

    def __init__(self, state: ClusterState) -> None:
        self._queues: list[_Queue] = []
        self._heap: list[tuple[int, JobId, AccountId, int]] = []
        for account, groups in state.waiting.groups.items():
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
