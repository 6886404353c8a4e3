"""Sends requests side by side, a few at a time: an answer takes milliseconds, and most of that is waiting.

Whoever asks waits for all answers, so nothing of this is seen outside one call. Once the server does not answer one of
them, those not yet sent share its problem: an outage is not tried out a hundred times over.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from k8s.problems import Unreachable
from scheduler.executor import ExecutorError

T = TypeVar("T")

WORKERS = 8
"""Requests under way at once. An API server serves 200 mutating ones at a time (--max-mutating-requests-inflight) for
all its clients; eight keep one core of ours busy, and a queue of 2,000 Jobs is made in seconds."""


class Crew:
    """A few threads. `each` is called from one thread at a time."""

    def __init__(self, workers: int = WORKERS) -> None:
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="request")

    def each(self, work: Sequence[Callable[[], T]]) -> list[T | ExecutorError]:
        """Does all of it and returns the outcomes in order, an ExecutorError where that was raised."""
        if len(work) < 2:
            return [_outcome(each, _Outage()) for each in work]
        outage = _Outage()
        return list(self._pool.map(lambda each: _outcome(each, outage), work))

    def close(self) -> None:
        """Lets the threads end once they are done."""
        self._pool.shutdown(wait=False)


class _Outage:
    """The first failure to reach the server, for all who come after it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.problem: Unreachable | None = None

    def note(self, problem: Unreachable) -> None:
        with self._lock:
            self.problem = self.problem or problem


def _outcome(work: Callable[[], T], outage: _Outage) -> T | ExecutorError:
    if outage.problem is not None:
        return outage.problem
    try:
        return work()
    except Unreachable as problem:
        outage.note(problem)
        return problem
    except ExecutorError as problem:
        return problem
