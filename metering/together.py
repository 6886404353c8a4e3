"""How many processes read a ledger together: those that are allowed, where it is long enough to be worth it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.engine import Connection

from scheduler.store.database import Database
from scheduler.store.ledger_rows import last_sequence
from scheduler.store.readers import Readers, reading, usable_processes

WORTH_ROWS = 100_000
"""Intervals of which one process exports or proves a month in some seconds; starting others takes one."""
MOST_UNASKED = 4
"""Processes where nobody says how many: each takes up to 200 MiB of memory."""


class _Shared:
    """Counts the processes that are started beside this one: many may ask for exports at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._started = 0

    @contextmanager
    def some(self, wanted: int) -> Iterator[int]:
        """Gives `wanted` processes to who comes first, and to others what is left of those that nobody asked for."""
        with self._lock:
            left = wanted if not self._started else min(wanted, processes_of(None) - self._started)
            given = max(1, left)
            beside = given if given > 1 else 0  # one is the caller itself
            self._started += beside
        try:
            yield given
        finally:
            with self._lock:
                self._started -= beside


_SHARED = _Shared()


def processes_of(asked: int | None) -> int:
    """Returns how many processes read: those asked for, or one a core and never more than `MOST_UNASKED`."""
    return min(usable_processes(), MOST_UNASKED) if asked is None else usable_processes(asked)


@contextmanager
def reading_ledger(
    database: Database, processes: int | None = None, worth_rows: int = WORTH_ROWS
) -> Iterator[Readers[Connection]]:
    """Opens one snapshot of a ledger for `processes`: by default one a core, and one where the ledger is short.

    Fewer where others read at the same time: together they start no more than one would. Raises StoreError.
    """
    wanted = processes_of(processes)
    if wanted > 1:
        with database.read() as connection:
            wanted = wanted if last_sequence(connection) >= worth_rows else 1
    with _SHARED.some(wanted) as given, reading(database, given) as readers:
        yield readers
