"""Where a device's life ends, so that a repartitioned GPU is counted once; restarts of energy counters."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0021"
down_revision: str | None = "0020"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_BIG_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_LANE = "SELECT o.to_ms FROM occupancy o WHERE o.device = NEW.device AND o.lane"
_LAST_TO_MS = f"({_LANE} = NEW.lane ORDER BY o.from_ms DESC LIMIT 1)"
_LANE_0_CUT_MS = f"({_LANE} = 0 AND o.from_ms < NEW.from_ms ORDER BY o.from_ms DESC LIMIT 1)"
# A lane that ended with its device begins anew when the device is back.
_END = "SELECT 1 FROM device_end e WHERE e.device = NEW.device AND e.at_ms <= NEW.from_ms AND e.at_ms"
_HAS_ENDED = f"EXISTS ({_END} >= {_LAST_TO_MS})"
_IS_BROKEN = (
    f"NEW.from_ms <> {_LAST_TO_MS} AND (NEW.from_ms < {_LAST_TO_MS} OR "
    f"((NEW.lane = 0 OR NEW.from_ms <> {_LANE_0_CUT_MS}) AND NOT {_HAS_ENDED}))"
)
_GAP_TEXT = "occupancy: an interval must begin where its lane ended (gap or overlap)"
_APPEND_TEXT = "device_end is append-only"


def upgrade() -> None:
    """Makes the table, begins its chain, and lets lanes end where it says so."""
    op.create_table(
        "device_end",
        sa.Column("sequence", _BIG_KEY, primary_key=True, autoincrement=False),
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("cause", sa.String(), nullable=False),
        sa.Column("recorded_ms", sa.BigInteger(), nullable=False),
        sa.Column("previous_hash", sa.String(), nullable=False),
        sa.Column("hash", sa.String(), nullable=False),
    )
    op.create_index("ix_device_end_device", "device_end", ["device"])
    head = sa.table("chain_head", sa.column("name"), sa.column("sequence"), sa.column("hash"))
    op.bulk_insert(head, [{"name": "device_end", "sequence": 0, "hash": "0" * 64}])
    op.add_column("gpu_window", sa.Column("counter_resets", sa.Integer(), nullable=False, server_default=sa.text("0")))
    if op.get_bind().dialect.name == "sqlite":
        _sqlite_triggers()
    else:
        _postgres_triggers()


def _sqlite_triggers() -> None:
    for verb in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER device_end_no_{verb.lower()} BEFORE {verb} ON device_end "
            f"BEGIN SELECT RAISE(ABORT, '{_APPEND_TEXT}'); END"
        )
    op.execute("DROP TRIGGER occupancy_contiguous")
    op.execute(
        f"CREATE TRIGGER occupancy_contiguous BEFORE INSERT ON occupancy WHEN {_IS_BROKEN} "
        f"BEGIN SELECT RAISE(ABORT, '{_GAP_TEXT}'); END"
    )


def _postgres_triggers() -> None:
    op.execute(
        "CREATE FUNCTION device_end_append_only() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        f"RAISE EXCEPTION '{_APPEND_TEXT}' USING ERRCODE = 'integrity_constraint_violation'; END $$"
    )
    op.execute(
        "CREATE TRIGGER device_end_no_change BEFORE UPDATE OR DELETE ON device_end "
        "FOR EACH ROW EXECUTE FUNCTION device_end_append_only()"
    )
    op.execute(
        "CREATE TRIGGER device_end_no_truncate BEFORE TRUNCATE ON device_end "
        "FOR EACH STATEMENT EXECUTE FUNCTION device_end_append_only()"
    )
    op.execute(
        "CREATE OR REPLACE FUNCTION occupancy_contiguous() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        f"IF {_IS_BROKEN} THEN "
        f"RAISE EXCEPTION '{_GAP_TEXT}' USING ERRCODE = 'integrity_constraint_violation'; END IF; "
        "RETURN NEW; END $$"
    )
