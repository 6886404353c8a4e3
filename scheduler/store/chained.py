"""Tables that only ever grow, each with a chain of hashes of its own: how a row is added, and how a chain is proved.

Such a table has a `sequence` from 1 without holes, then its facts (integers and texts), `previous_hash` and `hash`; the
last row's are repeated in `chain_head`, so that a row that is cut off at the end is missed. Triggers refuse changes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from scheduler.core.occupancy import GENESIS_HASH, fields_hash
from scheduler.store.database import StoreCorrupt
from scheduler.store.ledger_tables import CHAIN_HEAD

PAGE_ROWS = 5_000
_CHAIN = ("previous_hash", "hash")


@dataclass(frozen=True, slots=True)
class Head:
    """The end of a chain; sequence 0 before the first row."""

    sequence: int
    hash: str


@dataclass(frozen=True, slots=True)
class Break:
    """A place where a chain does not hold: which row, what it should be, and what it is."""

    sequence: int | None
    what: str
    expected: str
    found: str


def head_of(connection: Connection, table: sa.Table) -> Head:
    """Returns where the chain of a table ends. Raises StoreCorrupt when its head is lost."""
    row = connection.execute(sa.select(CHAIN_HEAD).where(CHAIN_HEAD.c.name == table.name)).one_or_none()
    if row is None:
        raise StoreCorrupt(f"the table chain_head has lost the row of {table.name}; restore a backup")
    return Head(row.sequence, row.hash)


def append(connection: Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """Adds rows, each with all facts of the table, and returns their sequences. The transaction must be a writer's."""
    if not rows:
        return []
    head = head_of(connection, table)
    sequence, previous = head.sequence, head.hash
    written: list[dict[str, Any]] = []
    for row in rows:
        sequence += 1
        full = {**row, "sequence": sequence, "previous_hash": previous}
        previous = full["hash"] = _hash_of(table, full, previous)
        written.append(full)
    connection.execute(sa.insert(table), written)
    move_head(connection, table, sequence, previous)
    return [row["sequence"] for row in written]


def move_head(connection: Connection, table: sa.Table, sequence: int, sha256: str) -> None:
    """Says that the chain of a table ends there now."""
    moved = sa.update(CHAIN_HEAD).where(CHAIN_HEAD.c.name == table.name)
    connection.execute(moved.values(sequence=sequence, hash=sha256))


def rows_of(connection: Connection, table: sa.Table, after: int = 0) -> Iterator[Row[Any]]:
    """Yields the rows of such a table after a sequence, in order. Memory is constant."""
    while True:
        query = sa.select(table).where(table.c.sequence > after).order_by(table.c.sequence).limit(PAGE_ROWS)
        page = connection.execute(query).all()
        yield from page
        if len(page) < PAGE_ROWS:
            return
        after = page[-1].sequence


def breaks(connection: Connection, table: sa.Table) -> Iterator[Break]:
    """Yields each place where the chain of a table does not hold; nothing for a sound one."""
    sequence, previous = 0, GENESIS_HASH
    names = [column.name for column in table.c]
    for row in rows_of(connection, table):
        facts = dict(zip(names, row, strict=True))
        if row.sequence != sequence + 1:
            yield Break(row.sequence, "sequence", str(sequence + 1), str(row.sequence))
        if row.previous_hash != previous:
            yield Break(row.sequence, "previous_hash", previous, row.previous_hash)
        expected = _hash_of(table, facts, row.previous_hash)
        if row.hash != expected:
            yield Break(row.sequence, "hash", expected, row.hash)
        sequence, previous = row.sequence, row.hash
    found = connection.execute(sa.select(CHAIN_HEAD).where(CHAIN_HEAD.c.name == table.name)).one_or_none()
    head = (None, None) if found is None else (found.sequence, found.hash)
    if head != (sequence, previous):
        yield Break(None, "head", f"{sequence} {previous}", f"{head[0]} {head[1]}")


def _hash_of(table: sa.Table, row: Any, previous: str) -> str:  # Any: a mapping by name, of a row or of values
    return fields_hash([table.name, previous, *(row[column.name] for column in table.c if column.name not in _CHAIN)])
