"""Processes that read one snapshot of the database together, so that long reading uses every core.

`reading` opens a snapshot and starts the processes; `Readers.each` gives each task of a work to one of them and yields
the results in the order of the tasks, whatever the order in which they are done: what is made of them does not depend
on how many processes there are. With one process nothing is started and the caller does all by itself.

All see the same state. PostgreSQL lets a transaction share its snapshot. On SQLite all begin to read, and a connection
beside them tells whether anybody committed meanwhile (`PRAGMA data_version`): then all begin again.

A work, its tasks and its results are pickled: values and functions of modules, never of a closure. Memory holds the
results of a few tasks a process. A process that fails or dies ends the work with what it raised, or
`StoreUnavailable`: it may be tried again.
"""

import os
import pickle
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import Connection as Pipe
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from sqlalchemy.engine import Connection

from scheduler.store.database import Database, StoreUnavailable

MOST_PROCESSES = 64
TASKS_EACH = 2
"""Tasks that a process has at hand: the next is there before the last one's result is fetched."""
_AHEAD = 4
"""Tasks a process that may be done before their turn: bounds what waits in memory."""
_MOST_LOOKS = 1_000
"""Tries to begin to read together: each takes milliseconds, in which nobody else may commit."""
_LEAVE_SECONDS = 10

Source_contra = TypeVar("Source_contra", contravariant=True)
Source_co = TypeVar("Source_co", covariant=True)
Task = TypeVar("Task")
Task_contra = TypeVar("Task_contra", contravariant=True)
Result = TypeVar("Result")
Result_co = TypeVar("Result_co", covariant=True)


class Work(Protocol[Source_contra, Task_contra, Result_co]):
    """What is to be done with many tasks: a value that can be pickled."""

    def begin(self, source: Source_contra, /) -> Callable[[Task_contra], Result_co]:
        """Returns what does one task after the other. Called once a process, with what is read: a connection."""
        ...


class Readers(Protocol[Source_co]):
    """Who reads: the caller alone, or processes beside it."""

    @property
    def source(self) -> Source_co:
        """What the caller itself reads from: the connection with the snapshot; None where only files are read."""
        ...

    @property
    def processes(self) -> int:
        """How many work at once."""
        ...

    def each(self, work: Work[Source_co, Task, Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """Yields the result of every task, in their order. Raises what doing a task raises, at its turn."""
        ...


@dataclass(frozen=True, slots=True)
class Alone(Generic[Source_co]):
    """Does every task itself, when its result is asked for."""

    source: Source_co
    processes: int = 1

    def each(self, work: Work[Source_co, Task, Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """Yields the result of every task, in their order."""
        do = work.begin(self.source)
        for task in tasks:
            yield do(task)


def usable_processes(asked: int | None = None) -> int:
    """Returns how many processes to start: as many as are asked for, or one for each core that this one may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores if asked is None else asked, MOST_PROCESSES))


@contextmanager
def reading(database: Database, processes: int = 1) -> Iterator[Readers[Connection]]:
    """Opens one snapshot for the caller and `processes` readers beside it; none beside it where that is one.

    Raises StoreError; StoreUnavailable where others commit so often that no common snapshot can be had.
    """
    if processes <= 1:
        with database.read() as connection:
            yield Alone(connection)
        return
    with ExitStack() as stack:
        workers = _workers(stack, processes, database.url)
        yield _Together(_common(stack, database, workers), workers)


@contextmanager
def working(processes: int = 1) -> Iterator[Readers[None]]:
    """Starts processes for work that reads files only."""
    if processes <= 1:
        yield Alone(None)
        return
    with ExitStack() as stack:
        yield _Together(None, _workers(stack, processes, None))


def _workers(stack: ExitStack, processes: int, url: str | None) -> list["_Worker"]:
    workers: list[_Worker] = []
    for _ in range(processes):
        worker = _Worker()
        stack.callback(worker.leave)
        workers.append(worker)
    for worker in workers:
        worker.send(url)
    for worker in workers:
        worker.answer()
    return workers


def _common(stack: ExitStack, database: Database, workers: list["_Worker"]) -> Connection:
    """Returns a connection whose snapshot is the one that all workers have too."""
    if database.dialect == "postgresql":
        connection = stack.enter_context(database.read())
        _look(workers, str(connection.exec_driver_sql("SELECT pg_export_snapshot()").scalar_one()))
        return connection
    with database.versions() as version:
        for _ in range(_MOST_LOOKS):
            before = version()
            opened = ExitStack()
            try:
                connection = opened.enter_context(database.read())
                connection.exec_driver_sql("SELECT count(*) FROM sqlite_master").scalar_one()  # now it has its snapshot
                _look(workers, None)
                if version() == before:
                    stack.enter_context(opened.pop_all())
                    return connection
            finally:
                opened.close()
    raise StoreUnavailable(
        f"the database changed {_MOST_LOOKS} times while {len(workers)} processes began to read it; try again, or with"
        " one process"
    )


def _look(workers: list["_Worker"], snapshot: str | None) -> None:
    for worker in workers:
        worker.send(("look", snapshot))
    for worker in workers:
        worker.answer()


class _Worker:
    """A process beside this one, by its pipe."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        # The same code as here, wherever it was imported from; -P keeps the working directory out.
        root = str(Path(__file__).resolve().parent.parent.parent)
        paths = os.pathsep.join(part for part in (root, os.environ.get("PYTHONPATH")) if part)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "scheduler.store.reader_child", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": paths},
                start_new_session=True,  # Ctrl-C on the terminal is the caller's to act on
            )
        self.pipe: Pipe = Pipe(ours.detach())
        self.tasks: deque[int] = deque()
        """Places of the tasks that it has and whose results are not fetched."""

    def send(self, message: object) -> None:
        """Sends what can be pickled. Raises StoreUnavailable when the process is gone."""
        try:
            self.pipe.send(message)
        except OSError:
            raise self._gone() from None

    def answer(self) -> Any:
        """Returns what it answers. Raises what it raised, and StoreUnavailable when it is gone."""
        is_done, value = self.fetch()
        if not is_done:
            raise value
        return value

    def fetch(self) -> tuple[bool, Any]:
        """Returns whether something was done, and what came of it or was raised.

        Raises StoreUnavailable when it is gone.
        """
        try:
            is_done, value = self.pipe.recv()
        except (EOFError, OSError, pickle.UnpicklingError):
            raise self._gone() from None
        return is_done, value

    def leave(self) -> None:
        """Ends the process, whatever it does."""
        self.pipe.close()
        self._process.terminate()
        try:
            self._process.wait(_LEAVE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _gone(self) -> StoreUnavailable:
        try:
            status: object = self._process.wait(_LEAVE_SECONDS)
        except subprocess.TimeoutExpired:
            status = "unknown"
        return StoreUnavailable(
            f"a process that read the ledger beside this one ended (exit status {status}; -9 is what a machine without"
            " free memory does); nothing was written. Try again, with fewer processes or with one"
        )


@dataclass(slots=True)
class _Together(Generic[Source_co]):
    source: Source_co
    workers: list[_Worker]

    @property
    def processes(self) -> int:
        return len(self.workers)

    def each(self, work: Work[Source_co, Task, Result], tasks: Iterable[Task]) -> Iterator[Result]:
        for worker in self.workers:
            worker.send(("work", work))
        return _Round(self.workers).results(tasks)


class _Round:
    """One work being done."""

    def __init__(self, workers: list[_Worker]) -> None:
        self._workers = workers
        self._ready: dict[int, tuple[bool, Any]] = {}
        self._turn = 0

    def results(self, tasks: Iterable[Any]) -> Iterator[Any]:
        """Yields results in the order of the tasks; afterwards no process has one left."""
        left = enumerate(tasks)
        try:
            while True:
                self._hand_out(left)
                if self._turn not in self._ready:
                    if not any(worker.tasks for worker in self._workers):
                        return
                    self._fetch()
                    continue
                is_done, value = self._ready.pop(self._turn)
                if not is_done:
                    raise value
                self._turn += 1
                yield value
        finally:
            while any(worker.tasks for worker in self._workers):
                self._fetch()

    def _hand_out(self, left: "enumerate[Any]") -> None:
        """Gives tasks to those that have fewest, as long as the turn is near."""
        while True:
            worker = min(self._workers, key=lambda each: len(each.tasks))
            outstanding = sum(len(each.tasks) for each in self._workers) + len(self._ready)
            if len(worker.tasks) >= TASKS_EACH or outstanding >= _AHEAD * len(self._workers):
                return
            for place, task in islice(left, 1):
                worker.send(("task", task))
                worker.tasks.append(place)
                break
            else:
                return

    def _fetch(self) -> None:
        by_pipe = {worker.pipe: worker for worker in self._workers if worker.tasks}
        for pipe in wait(list(by_pipe)):
            worker = by_pipe[pipe]  # type: ignore[index]  # `wait` returns what it was given
            try:
                self._ready[worker.tasks[0]] = worker.fetch()
            finally:
                worker.tasks.popleft()
