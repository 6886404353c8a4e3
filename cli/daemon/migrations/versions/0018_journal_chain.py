"""The journal's chain of hashes: entries so far get theirs, and are append-only again."""

import hashlib
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op

revision: str = "0018"
down_revision: str | None = "0017"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_GENESIS_HASH = "0" * 64
_FACTS = ("id", "key", "kind", "currency", "at_ms", "allocation_id", "job_id", "actor", "reason", "zone")
_LEG_FACTS = ("place", "ledger", "account", "micros", "line_id", "for_ms")


def upgrade() -> None:
    """Adds the columns, fills them, and begins the chain where it ends."""
    for name in ("previous_hash", "hash"):
        op.add_column("posting_entry", sa.Column(name, sa.String(), nullable=False, server_default=""))
    is_sqlite = op.get_bind().dialect.name == "sqlite"
    op.execute(
        "DROP TRIGGER posting_entry_no_update" if is_sqlite else "DROP TRIGGER posting_entry_no_change ON posting_entry"
    )
    last, sha256 = _fill()
    if is_sqlite:
        op.execute(
            "CREATE TRIGGER posting_entry_no_update BEFORE UPDATE ON posting_entry "
            "BEGIN SELECT RAISE(ABORT, 'posting_entry is append-only'); END"
        )
    else:
        op.execute(
            "CREATE TRIGGER posting_entry_no_change BEFORE UPDATE OR DELETE ON posting_entry "
            "FOR EACH ROW EXECUTE FUNCTION posting_entry_append_only()"
        )
    head = sa.table("chain_head", sa.column("name"), sa.column("sequence"), sa.column("hash"))
    op.bulk_insert(head, [{"name": "posting_entry", "sequence": last, "hash": sha256}])


def _fill() -> tuple[int, str]:
    """Writes the hash of each entry; returns the last one's id and hash."""
    connection = op.get_bind()
    entry = sa.table("posting_entry", *map(sa.column, (*_FACTS, "previous_hash", "hash")))
    leg = sa.table("posting", *map(sa.column, ("entry_id", *_LEG_FACTS)))
    last, previous = 0, _GENESIS_HASH
    for row in connection.execute(sa.select(entry).order_by(entry.c.id)).mappings().all():
        of_entry = sa.select(leg).where(leg.c.entry_id == row["id"]).order_by(leg.c.place)
        legs = connection.execute(of_entry).mappings().all()
        facts: list[Any] = [row[name] for name in _FACTS]
        each = [found[name] for found in legs for name in _LEG_FACTS]
        sha256 = _fields_hash(["posting_entry", previous, *facts, len(legs), *each])
        values = {"previous_hash": previous, "hash": sha256}
        connection.execute(entry.update().where(entry.c.id == row["id"]).values(values))
        last, previous = row["id"], sha256
    return last, previous


def _fields_hash(fields: Sequence[Any]) -> str:
    parts = ["-" if value is None else f"{len(text := str(value))}:{text}" for value in fields]
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()
