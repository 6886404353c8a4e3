"""The inbox of late evidence and the reclassifications that follow from it: two chained tables, append-only."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0008"
down_revision: str | None = "0007"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_BIG_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_TABLES = ("evidence", "reclassification")
_INSIDE_TEXT = "reclassification lies outside of the interval that it covers"
_IS_OUTSIDE = (
    "NOT EXISTS (SELECT 1 FROM occupancy o WHERE o.sequence = NEW.covers AND o.device = NEW.device AND "
    "o.lane = NEW.lane AND o.units = NEW.units AND o.from_ms <= NEW.from_ms AND o.to_ms >= NEW.to_ms)"
)


def upgrade() -> None:
    """Makes the tables, begins their chains, and lays the triggers."""
    head = op.create_table(
        "chain_head",
        sa.Column("name", sa.String(), primary_key=True),
        _big("sequence"),
        _text("hash"),
    )
    _evidence()
    _reclassification()
    op.bulk_insert(head, [{"name": name, "sequence": 0, "hash": "0" * 64} for name in _TABLES])
    if op.get_bind().dialect.name == "sqlite":
        _sqlite_triggers()
    else:
        _postgres_triggers()


def _big(name: str, *, nullable: bool = False) -> "sa.Column[int]":
    return sa.Column(name, sa.BigInteger(), nullable=nullable)


def _text(name: str, *, nullable: bool = False) -> "sa.Column[str]":
    return sa.Column(name, sa.String(), nullable=nullable)


def _evidence() -> None:
    op.create_table(
        "evidence",
        sa.Column("sequence", _BIG_KEY, primary_key=True, autoincrement=False),
        sa.Column("key", sa.String(), nullable=False, unique=True),
        _text("kind"),
        _text("allocation_id"),
        _big("at_ms"),
        _text("source"),
        _text("end_reason", nullable=True),
        _text("actor"),
        _text("note"),
        _big("recorded_ms"),
        _text("previous_hash"),
        _text("hash"),
    )
    op.create_index("ix_evidence_allocation_id", "evidence", ["allocation_id"])


def _reclassification() -> None:
    op.create_table(
        "reclassification",
        sa.Column("sequence", _BIG_KEY, primary_key=True, autoincrement=False),
        _big("covers"),
        _text("device"),
        sa.Column("lane", sa.Integer(), nullable=False),
        _big("from_ms"),
        _big("to_ms"),
        _text("state"),
        _big("units"),
        _text("cause", nullable=True),
        _text("phase", nullable=True),
        _text("holder", nullable=True),
        _big("job_id", nullable=True),
        _text("allocation_id", nullable=True),
        sa.Column("segment", sa.Integer(), nullable=True),
        _text("booking", nullable=True),
        _big("gpu_eq_units"),
        _text("evidence"),
        _text("actor"),
        _text("reason"),
        _big("recorded_ms"),
        _text("previous_hash"),
        _text("hash"),
        sa.CheckConstraint("to_ms > from_ms", name="ck_reclassification_to_after_from"),
    )
    for column in ("covers", "allocation_id", "to_ms"):
        op.create_index(f"ix_reclassification_{column}", "reclassification", [column])


def _sqlite_triggers() -> None:
    for name in _TABLES:
        for verb in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER {name}_no_{verb.lower()} BEFORE {verb} ON {name} "
                f"BEGIN SELECT RAISE(ABORT, '{name} is append-only'); END"
            )
    op.execute(
        f"CREATE TRIGGER reclassification_inside BEFORE INSERT ON reclassification WHEN {_IS_OUTSIDE} "
        f"BEGIN SELECT RAISE(ABORT, '{_INSIDE_TEXT}'); END"
    )


def _postgres_triggers() -> None:
    for name in _TABLES:
        op.execute(
            f"CREATE FUNCTION {name}_append_only() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            f"RAISE EXCEPTION '{name} is append-only' USING ERRCODE = 'integrity_constraint_violation'; END $$"
        )
        op.execute(
            f"CREATE TRIGGER {name}_no_change BEFORE UPDATE OR DELETE ON {name} "
            f"FOR EACH ROW EXECUTE FUNCTION {name}_append_only()"
        )
        op.execute(
            f"CREATE TRIGGER {name}_no_truncate BEFORE TRUNCATE ON {name} "
            f"FOR EACH STATEMENT EXECUTE FUNCTION {name}_append_only()"
        )
    op.execute(
        "CREATE FUNCTION reclassification_inside() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        f"IF {_IS_OUTSIDE} THEN "
        f"RAISE EXCEPTION '{_INSIDE_TEXT}' USING ERRCODE = 'integrity_constraint_violation'; END IF; "
        "RETURN NEW; END $$"
    )
    op.execute(
        "CREATE TRIGGER reclassification_inside BEFORE INSERT ON reclassification "
        "FOR EACH ROW EXECUTE FUNCTION reclassification_inside()"
    )
