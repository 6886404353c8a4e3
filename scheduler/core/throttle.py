"""Arrays with a cap on how many of their elements hold GPUs at once: which of the waiting ones are let into the line.

Of the elements that could start now, the first in their project's order are in line, as many as the cap leaves room
for beside those that start, run, stop or have a claim; the others stand behind it. A planner that sees only those in
line cannot exceed a cap, in whatever order it starts them, and demand counts no more than could start.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from sortedcontainers import SortedList

from scheduler.core.model import Job, JobId
from scheduler.core.waiting import QueueKey


class Crowd(NamedTuple):
    """An array of which some elements wait for others, as a plan saw it."""

    cap: int
    in_line: frozenset[JobId]
    """Elements that wait for their turn like any other job."""


@dataclass(slots=True)
class _Array:
    cap: int
    active: int = 0
    in_line: SortedList[QueueKey] = field(default_factory=SortedList)
    behind: SortedList[QueueKey] = field(default_factory=SortedList)


class Throttle:
    """The arrays with a cap. `enter` and `leave` are told of elements that join or leave the line."""

    def __init__(self, enter: Callable[[JobId], None], leave: Callable[[JobId], None]) -> None:
        self._enter = enter
        self._leave = leave
        self._arrays: dict[JobId, _Array] = {}

    def count(self, job: Job, sign: int) -> None:
        """Counts an element that holds GPUs, or a claim to some, or counts it no more; others are left alone."""
        if job.array is None or job.array_cap is None:
            return
        array = self._of(job.array, job.array_cap)
        array.active += sign
        self._settle(job.array, array)

    def add(self, job: Job, key: QueueKey) -> None:
        """Takes up an element that could start now."""
        assert job.array is not None, "an element has an array"
        assert job.array_cap is not None, "an element without a cap is never throttled"
        array = self._of(job.array, job.array_cap)
        array.behind.add(key)
        self._settle(job.array, array)

    def remove(self, job: Job, key: QueueKey) -> None:
        """Forgets an element that was taken up; one that is in line leaves it first."""
        assert job.array is not None, "an element has an array"
        array = self._arrays[job.array]
        if key in array.in_line:
            array.in_line.remove(key)
            self._leave(job.id)
        else:
            array.behind.remove(key)
        self._settle(job.array, array)

    def bars(self, job: Job, key: QueueKey) -> bool:
        """Tells whether the cap keeps an element out of the line for those before it, were it taken up now."""
        array = None if job.array is None else self._arrays.get(job.array)
        if array is None:
            return False
        before = array.in_line.bisect_left(key) + array.behind.bisect_left(key)
        return before >= max(0, array.cap - array.active)

    def waiting(self) -> list[JobId]:
        """Returns the elements that were taken up, in line or behind it."""
        return [JobId(key[2]) for array in self._arrays.values() for key in (*array.in_line, *array.behind)]

    def crowds(self) -> dict[JobId, Crowd]:
        """Returns, by array, who is in line where somebody stands behind it."""
        return {
            id_: Crowd(array.cap, frozenset(JobId(key[2]) for key in array.in_line))
            for id_, array in self._arrays.items()
            if array.behind
        }

    def facts(self) -> dict[JobId, tuple[int, int, list[QueueKey], list[QueueKey]]]:
        """Returns all that is known, for comparison."""
        return {
            id_: (array.cap, array.active, list(array.in_line), list(array.behind))
            for id_, array in self._arrays.items()
        }

    def _of(self, id_: JobId, cap: int) -> _Array:
        return self._arrays.setdefault(id_, _Array(cap))

    def _settle(self, id_: JobId, array: _Array) -> None:
        """Has the first elements in line, as many as there is room for."""
        room = max(0, array.cap - array.active)
        while len(array.in_line) > room:
            self._step_back(array)
        while array.behind and len(array.in_line) < room:
            self._step_up(array)
        while array.behind and array.in_line and array.behind[0] < array.in_line[-1]:
            self._step_back(array)
            self._step_up(array)
        if not (array.active or array.in_line or array.behind):
            del self._arrays[id_]

    def _step_up(self, array: _Array) -> None:
        key = array.behind.pop(0)
        array.in_line.add(key)
        self._enter(JobId(key[2]))

    def _step_back(self, array: _Array) -> None:
        key = array.in_line.pop()
        array.behind.add(key)
        self._leave(JobId(key[2]))
