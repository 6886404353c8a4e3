"""What several processes do, done here: the same parts, each of them pickled on its way, without starting any."""

import pickle
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import pytest
from sqlalchemy.engine import Connection

from metering import export, file_parts, verify_chain, verify_files, verify_holders
from metering import verify as proof
from metering.findings import Report
from scheduler.store.readers import Readers, Work

Source_co = TypeVar("Source_co", covariant=True)
Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class InParts(Generic[Source_co]):
    """Two readers that take turns; each has a work of its own, as two processes have."""

    source: Source_co
    processes: int = 2

    def each(self, work: Work[Source_co, Task, Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """Yields the result of every task, in their order."""
        turns: list[Callable[[Any], Any]] = [_sent(work).begin(self.source) for _ in range(self.processes)]
        for number, task in enumerate(tasks):
            yield _sent(turns[number % self.processes](_sent(task)))


def _sent(value: Task) -> Task:
    sent: Task = pickle.loads(pickle.dumps(value))
    return sent


def small_parts(patch: pytest.MonkeyPatch) -> None:
    """Makes parts of a few rows, so that a small ledger has many."""
    patch.setattr(verify_chain, "SEGMENT_ROWS", 5)
    patch.setattr(verify_holders, "ALLOCATIONS_AT_ONCE", 2)
    patch.setattr(export, "ALLOCATIONS_AT_ONCE", 2)
    patch.setattr(file_parts, "PART_BYTES", 700)


def verify(connection: Connection, known_until_ms: int | None = None, *, period: str | None = None) -> Report:
    """Proves a ledger alone and in parts, which must say the same, and returns it."""
    alone = proof.verify(connection, known_until_ms, period=period)
    with pytest.MonkeyPatch.context() as patch:
        small_parts(patch)
        parted = proof.verify(connection, known_until_ms, period=period, readers=InParts(connection))
    assert parted == alone
    return alone


def verify_export(folder: Path, connection: Connection | None = None) -> Report:
    """Proves an export alone and in parts, which must say the same, and returns it."""
    alone = verify_files.verify_export(folder, connection)
    with pytest.MonkeyPatch.context() as patch:
        small_parts(patch)
        readers: Readers[object] = InParts(None)
        parted = verify_files.verify_export(folder, connection, readers=readers)
    assert parted == alone
    return alone
