"""The one desk where everything that changes the store queues: a thread that commits what arrived together, at once.

While one transaction is being made durable, new commands gather and share the next one. A command's future is resolved
only after its commit, and after the events of its batch were delivered: who asks next sees what was just done.
"""

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from scheduler.core.events import Event
from scheduler.refusal import RefusalCode, Refused
from scheduler.store.database import Fenced, StoreError, StoreUnavailable
from scheduler.store.write import Batch, Command, Writer

T = TypeVar("T")
logger = logging.getLogger(__name__)

MOST_IN_BATCH = 1024
"""Commands in one transaction: enough to hide the cost of a durable commit, short enough to answer within 100 ms."""
MOST_WAITING = 20_000
"""Commands that may queue before new ones are turned away with `too_many`: some ten seconds of work."""


@dataclass(frozen=True, slots=True)
class _Errand:
    command: Command[Any]
    future: Future[Any]


class Desk:
    """Takes commands from any thread, commits them in groups on its own."""

    def __init__(
        self, writer: Writer, deliver: Callable[[Sequence[Event]], None], end_term: Callable[[], None]
    ) -> None:
        self._writer = writer
        self._deliver = deliver
        self._end_term = end_term
        self._errands: queue.Queue[_Errand | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run, name="desk", daemon=True)
        self._door = threading.Lock()
        """Nothing queues behind the end of the queue, so every future is answered."""
        self._is_closed = False
        self._has_failed = False

    def start(self) -> None:
        """Begins to commit."""
        self._thread.start()

    def stop(self) -> None:
        """Commits what has queued, then ends. Later commands are turned away."""
        with self._door:
            self._is_closed = True
            self._errands.put(None)
        self._thread.join()

    def carry_out(self, command: Command[T], *, is_internal: bool = False) -> Future[T]:
        """Queues a command; its future gives the result after the commit, or raises Refused or StoreError.

        Raises Refused(TOO_MANY) at once when the desk is swamped, but for the scheduler's own commands.
        """
        if not is_internal and self._errands.qsize() >= MOST_WAITING:
            raise Refused(RefusalCode.TOO_MANY, f"{MOST_WAITING} requests are waiting already; try again in a moment")
        future: Future[T] = Future()
        with self._door:
            if self._is_closed:
                raise Refused(RefusalCode.UNAVAILABLE, "this daemon is shutting down; try again in a moment")
            self._errands.put(_Errand(command, future))
        return future

    def _run(self) -> None:
        while True:
            errands, is_last = self._gather()
            if errands:
                self._commit(errands)
            if is_last:
                return

    def _gather(self) -> tuple[list[_Errand], bool]:
        first = self._errands.get()
        if first is None:
            return [], True
        errands = [first]
        while len(errands) < MOST_IN_BATCH:
            try:
                errand = self._errands.get_nowait()
            except queue.Empty:
                break
            if errand is None:
                return errands, True
            errands.append(errand)
        return errands, False

    def _commit(self, errands: list[_Errand]) -> None:
        if self._has_failed:
            for errand in errands:
                errand.future.set_exception(StoreUnavailable("the database did not answer; try again in a moment"))
            return
        try:
            batch = self._writer.commit([errand.command for errand in errands])
        except StoreError as problem:
            for errand in errands:
                errand.future.set_exception(problem)
            # Whether the commit went through is unknown, or another leads: only a state read anew can be trusted.
            self._has_failed = self._is_closed = True
            self._end_term()
            if not isinstance(problem, StoreUnavailable | Fenced):
                logger.exception("the store refused a batch of %d", len(errands))
        except Exception as problem:  # noqa: BLE001 -- the loop's edge: one bad command must not stop the desk
            self._commit_singly(errands, problem)
        else:
            self._answer(errands, batch)

    def _commit_singly(self, errands: list[_Errand], problem: Exception) -> None:
        """A command broke its batch, of which nothing was stored: each gets a transaction of its own."""
        if len(errands) == 1:
            logger.error("command %s failed", type(errands[0].command).__name__, exc_info=problem)
            errands[0].future.set_exception(problem)
            return
        for errand in errands:
            self._commit([errand])

    def _answer(self, errands: list[_Errand], batch: Batch) -> None:
        if batch.events:
            self._deliver(batch.events)
        for errand, outcome in zip(errands, batch.outcomes, strict=True):
            if isinstance(outcome, Refused):
                errand.future.set_exception(outcome)
            else:
                errand.future.set_result(outcome.value)
