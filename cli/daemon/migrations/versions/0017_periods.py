"""Billing periods: when each began to close and was closed, its sealed files, and corrections of what is closed."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0017"
down_revision: str | None = "0016"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_CHAINED = ("period_event", "correction")
_SEALED = "EXISTS (SELECT 1 FROM period_event e WHERE e.attempt = OLD.attempt)"
_FILE_TEXT = "period_file is sealed"
_ORDER_TEXT = "a period is closed once, after it began to close"
_IS_EARLY = (
    "NEW.status = 'closed' AND NOT EXISTS (SELECT 1 FROM period_event e WHERE e.period = NEW.period "
    "AND e.status = 'closing' AND e.from_ms = NEW.from_ms AND e.to_ms = NEW.to_ms AND e.zone = NEW.zone)"
)


def upgrade() -> None:
    """Makes the tables, begins their chains, and lays the triggers."""
    op.create_table(
        "period_event",
        _big("sequence", is_key=True),
        _text("period"),
        _text("status"),
        _big("from_ms"),
        _big("to_ms"),
        _text("zone"),
        _big("at_ms"),
        _text("actor"),
        _text("attempt"),
        _text("seal"),
        _text("previous_hash"),
        _text("hash"),
        sa.UniqueConstraint("period", "status"),
    )
    op.create_table(
        "period_file",
        sa.Column("attempt", sa.String(), primary_key=True),
        sa.Column("path", sa.String(), primary_key=True),
        sa.Column("part", sa.Integer(), primary_key=True),
        sa.Column("data", sa.LargeBinary(), nullable=False),
    )
    _correction()
    head = sa.table("chain_head", sa.column("name"), sa.column("sequence"), sa.column("hash"))
    op.bulk_insert(head, [{"name": name, "sequence": 0, "hash": "0" * 64} for name in _CHAINED])
    if op.get_bind().dialect.name == "sqlite":
        _sqlite_triggers()
    else:
        _postgres_triggers()


def _big(name: str, *, is_key: bool = False) -> "sa.Column[int]":
    return sa.Column(name, sa.BigInteger(), nullable=False, primary_key=is_key, autoincrement=False)


def _text(name: str) -> "sa.Column[str]":
    return sa.Column(name, sa.String(), nullable=False)


def _correction() -> None:
    op.create_table(
        "correction",
        _big("sequence", is_key=True),
        sa.Column("key", sa.String(), nullable=False, unique=True),
        *map(_text, ("period", "corrected_period", "corrects_line_id", "target_line_id", "origin", "tenant")),
        *map(_big, ("amount_micros", "gpu_ms", "hours_nano")),
        *map(_text, ("currency", "price_book", "cells", "reason", "actor")),
        _big("recorded_ms"),
        _text("previous_hash"),
        _text("hash"),
    )
    for column in ("recorded_ms", "corrected_period"):
        op.create_index(f"ix_correction_{column}", "correction", [column])


def _sqlite_triggers() -> None:
    for name in _CHAINED:
        for verb in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER {name}_no_{verb.lower()} BEFORE {verb} ON {name} "
                f"BEGIN SELECT RAISE(ABORT, '{name} is append-only'); END"
            )
    op.execute(
        "CREATE TRIGGER period_file_no_update BEFORE UPDATE ON period_file "
        f"BEGIN SELECT RAISE(ABORT, '{_FILE_TEXT}'); END"
    )
    op.execute(
        f"CREATE TRIGGER period_file_no_delete BEFORE DELETE ON period_file WHEN {_SEALED} "
        f"BEGIN SELECT RAISE(ABORT, '{_FILE_TEXT}'); END"
    )
    op.execute(
        f"CREATE TRIGGER period_event_order BEFORE INSERT ON period_event WHEN {_IS_EARLY} "
        f"BEGIN SELECT RAISE(ABORT, '{_ORDER_TEXT}'); END"
    )


def _postgres_triggers() -> None:
    for name in _CHAINED:
        _postgres(f"{name}_append_only", f"{name} is append-only")
        op.execute(
            f"CREATE TRIGGER {name}_no_change BEFORE UPDATE OR DELETE ON {name} "
            f"FOR EACH ROW EXECUTE FUNCTION {name}_append_only()"
        )
        op.execute(
            f"CREATE TRIGGER {name}_no_truncate BEFORE TRUNCATE ON {name} "
            f"FOR EACH STATEMENT EXECUTE FUNCTION {name}_append_only()"
        )
    _postgres("period_file_sealed", _FILE_TEXT)
    _postgres("period_file_kept", _FILE_TEXT, _SEALED, "OLD")
    _postgres("period_event_order", _ORDER_TEXT, _IS_EARLY)
    for what, when, each, function in (
        ("no_update", "UPDATE", "ROW", "period_file_sealed"),
        ("no_delete", "DELETE", "ROW", "period_file_kept"),
        ("no_truncate", "TRUNCATE", "STATEMENT", "period_file_sealed"),
    ):
        op.execute(
            f"CREATE TRIGGER period_file_{what} BEFORE {when} ON period_file "
            f"FOR EACH {each} EXECUTE FUNCTION {function}()"
        )
    op.execute(
        "CREATE TRIGGER period_event_order BEFORE INSERT ON period_event "
        "FOR EACH ROW EXECUTE FUNCTION period_event_order()"
    )


def _postgres(name: str, text: str, condition: str = "TRUE", result: str = "NEW") -> None:
    op.execute(
        f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF {condition} THEN "
        f"RAISE EXCEPTION '{text}' USING ERRCODE = 'integrity_constraint_violation'; END IF; RETURN {result}; END $$"
    )
