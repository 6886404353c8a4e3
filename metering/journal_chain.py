"""The journal's chain of hashes: each entry carries that of itself, its legs and the entry before.

An entry's id is its place in the chain, from 1 without holes; `chain_head` repeats the last one's, so that an entry
that is cut off at the end is missed.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from metering.tables import POSTING, POSTING_ENTRY
from scheduler.core.occupancy import GENESIS_HASH, fields_hash
from scheduler.store.chained import PAGE_ROWS, Break, head_of, move_head
from scheduler.store.ledger_tables import CHAIN_HEAD

Row = Mapping[Any, Any]
"""A row's values by column: of the database, or about to be written."""
_FACTS = tuple(column.name for column in POSTING_ENTRY.c if column.name not in {"previous_hash", "hash"})
_LEG_FACTS = tuple(column.name for column in POSTING.c if column.name != "entry_id")


def chained(connection: Connection, facts: Mapping[str, Any], legs: Sequence[Row]) -> dict[str, Any]:
    """Returns the row of the next entry, of facts (all but `id`) and legs, and moves the chain's head to it.

    The transaction must be a writer's. Raises StoreCorrupt when the head is lost.
    """
    head = head_of(connection, POSTING_ENTRY)
    row = {**facts, "id": head.sequence + 1, "previous_hash": head.hash}
    row["hash"] = entry_hash(row, legs)
    move_head(connection, POSTING_ENTRY, row["id"], row["hash"])
    return row


def journal_breaks(connection: Connection) -> Iterator[tuple[str, Break]]:
    """Yields each place where the chain does not hold, with the entry's key; nothing for a sound one.

    Memory is constant; time grows with entries.
    """
    last, previous = 0, GENESIS_HASH
    for row, legs in _entries(connection):
        key, found = str(row["key"]), int(row["id"])
        if found != last + 1:
            yield key, Break(found, "id", str(last + 1), str(found))
        if row["previous_hash"] != previous:
            yield key, Break(found, "previous_hash", previous, row["previous_hash"])
        expected = entry_hash(row, legs)
        if row["hash"] != expected:
            yield key, Break(found, "hash", expected, row["hash"])
        last, previous = found, row["hash"]
    kept = connection.execute(sa.select(CHAIN_HEAD).where(CHAIN_HEAD.c.name == POSTING_ENTRY.name)).one_or_none()
    head = (None, None) if kept is None else (kept.sequence, kept.hash)
    if head != (last, previous):
        yield "", Break(None, "head", f"{last} {previous}", f"{head[0]} {head[1]}")


def _entries(connection: Connection) -> Iterator[tuple[Row, list[Row]]]:
    """Yields entries by id, each with its legs by place."""
    after = None
    while True:
        query = sa.select(POSTING_ENTRY).order_by(POSTING_ENTRY.c.id).limit(PAGE_ROWS)
        page = connection.execute(query if after is None else query.where(POSTING_ENTRY.c.id > after)).mappings().all()
        if not page:
            return
        after = page[-1]["id"]
        span = POSTING.c.entry_id.between(page[0]["id"], after)
        found = sa.select(POSTING).where(span).order_by(POSTING.c.entry_id, POSTING.c.place)
        legs: dict[int, list[Row]] = defaultdict(list)
        for leg in connection.execute(found).mappings():
            legs[leg["entry_id"]].append(leg)
        for row in page:
            yield row, legs[row["id"]]


def entry_hash(row: Row, legs: Sequence[Row]) -> str:
    """Returns the hash that an entry with its legs, in the order of their places, is to carry."""
    facts = [row[name] for name in _FACTS]
    each = [leg[name] for leg in legs for name in _LEG_FACTS]
    return fields_hash([POSTING_ENTRY.name, row["previous_hash"], *facts, len(legs), *each])
