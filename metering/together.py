"""How many processes read a ledger together: those that are allowed, where it is long enough to be worth it."""

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


def processes_of(asked: int | None) -> int:
    """Returns how many processes read: those asked for, or one a core and never more than `MOST_UNASKED`."""
    return min(usable_processes(), MOST_UNASKED) if asked is None else usable_processes(asked)


@contextmanager
def reading_ledger(
    database: Database, processes: int | None = None, worth_rows: int = WORTH_ROWS
) -> Iterator[Readers[Connection]]:
    """Opens one snapshot of a ledger for `processes`: by default one a core, and one where the ledger is short.

    Raises StoreError.
    """
    wanted = processes_of(processes)
    if wanted > 1:
        with database.read() as connection:
            wanted = wanted if last_sequence(connection) >= worth_rows else 1
    with reading(database, wanted) as readers:
        yield readers
