"""The scheduler's tables, and the triggers that make the occupancy ledger append-only and gapless."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0001"
down_revision: str | None = None
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_BIG_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_GENESIS_HASH = "0" * 64

_LANE = "SELECT o.to_ms FROM occupancy o WHERE o.device = NEW.device AND o.lane"
# The last interval of a lane is the one with the greatest from_ms, because intervals of a lane never overlap: one
# step down an index, however long the ledger is.
_LAST_TO_MS = f"({_LANE} = NEW.lane ORDER BY o.from_ms DESC LIMIT 1)"
# A share's lane ends with its holder and may open again later, but only at an instant at which lane 0, out of which
# it is cut, was cut: then what the lane does not hold in between is lane 0's.
_LANE_0_CUT_MS = f"({_LANE} = 0 AND o.from_ms < NEW.from_ms ORDER BY o.from_ms DESC LIMIT 1)"
_IS_BROKEN = (
    f"NEW.from_ms <> {_LAST_TO_MS} AND (NEW.lane = 0 OR NEW.from_ms < {_LAST_TO_MS} OR NEW.from_ms <> {_LANE_0_CUT_MS})"
)
_GAP_TEXT = "occupancy: an interval must begin where its lane ended (gap or overlap)"
_APPEND_TEXT = "occupancy is append-only"


def upgrade() -> None:
    """Makes every table, seeds the two single rows, and lays the triggers."""
    _centre()
    _jobs()
    _occupancy()
    if op.get_bind().dialect.name == "sqlite":
        _sqlite_triggers()
    else:
        _postgres_triggers()


def _big(name: str, *, nullable: bool = False) -> "sa.Column[int]":
    return sa.Column(name, sa.BigInteger(), nullable=nullable)


def _text(name: str, *, nullable: bool = False) -> "sa.Column[str]":
    return sa.Column(name, sa.String(), nullable=nullable)


def _int(name: str, *, nullable: bool = False) -> "sa.Column[int]":
    return sa.Column(name, sa.Integer(), nullable=nullable)


def _bool(name: str) -> "sa.Column[bool]":
    return sa.Column(name, sa.Boolean(), nullable=False)


def _json(name: str) -> "sa.Column[object]":
    return sa.Column(name, sa.JSON(), nullable=False)


def _centre() -> None:
    lease = op.create_table(
        "leader_lease",
        sa.Column("id", sa.Integer(), primary_key=True),
        _text("holder"),
        _text("url"),
        _big("epoch"),
        _big("expires_ms"),
    )
    op.bulk_insert(lease, [{"id": 1, "holder": "", "url": "", "epoch": 0, "expires_ms": 0}])
    op.create_table(
        "account",
        sa.Column("id", sa.String(), primary_key=True),
        _text("display_name"),
        _int("weight"),
        _json("guarantee"),
        _json("limit"),
        _bool("is_suspended"),
        _big("created_ms"),
    )
    op.create_table(
        "token",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("secret_hash", sa.String(), nullable=False, unique=True),
        _text("role"),
        _text("account"),
        _text("user"),
        _big("created_ms"),
        _big("expires_ms", nullable=True),
        _big("revoked_ms", nullable=True),
    )
    op.create_table(
        "pool",
        sa.Column("name", sa.String(), primary_key=True),
        _bool("is_closed"),
        _text("reason", nullable=True),
    )
    op.create_table(
        "node",
        sa.Column("name", sa.String(), primary_key=True),
        _text("gpu_class"),
        _text("pool"),
        _big("cpu_millicores"),
        _big("memory_bytes"),
        _json("labels"),
        _text("availability"),
        _text("reason", nullable=True),
        _text("drain_reason", nullable=True),
        _big("seen_ms"),
        _big("removed_ms", nullable=True),
    )
    op.create_table(
        "device",
        sa.Column("id", sa.String(), primary_key=True),
        _text("node"),
        _int("position"),
        _text("gpu_class"),
        _big("units"),
        _text("health"),
        _text("reason", nullable=True),
        _bool("is_foreign"),
        _big("first_seen_ms"),
        _big("removed_ms", nullable=True),
    )
    op.create_index("ix_device_node", "device", ["node"])


def _jobs() -> None:
    op.create_table(
        "job",
        sa.Column("id", _BIG_KEY, primary_key=True),
        _text("account"),
        _text("tenant"),
        _text("user"),
        _text("name"),
        _text("state"),
        _text("reason", nullable=True),
        _text("detail", nullable=True),
        _int("exit_code", nullable=True),
        _text("gpu_class"),
        _int("nodes"),
        _big("gpu_units"),
        _json("shape"),
        _text("wanted"),
        _int("priority"),
        _big("time_limit_ms"),
        _big("submitted_ms"),
        _big("begin_ms", nullable=True),
        _bool("is_backing_off"),
        _big("deadline_ms", nullable=True),
        _text("hold", nullable=True),
        _int("attempt"),
        _int("retries_left"),
        _text("allocation_id", nullable=True),
        _big("array_id", nullable=True),
        _int("array_index", nullable=True),
        _big("started_ms", nullable=True),
        _big("ended_ms", nullable=True),
        _json("launch"),
        _json("labels"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_job_state", "job", ["state"])
    op.create_index("ix_job_tenant_state_id", "job", ["tenant", "state", "id"])
    op.create_index("ix_job_account_user_name", "job", ["account", "user", "name"])
    op.create_index("ix_job_array_id", "job", ["array_id"])
    op.create_table(
        "submission_key",
        sa.Column("tenant", sa.String(), primary_key=True),
        sa.Column("user", sa.String(), primary_key=True),
        sa.Column("key", sa.String(), primary_key=True),
        _text("request_sha256"),
        _json("job_ids"),
        _big("created_ms"),
    )
    op.create_table(
        "allocation",
        sa.Column("id", sa.String(), primary_key=True),
        _big("job_id"),
        _text("account"),
        _text("user"),
        _text("gpu_class"),
        _text("booking"),
        _text("phase"),
        _int("segment"),
        _json("grants"),
        _big("time_limit_ms"),
        _int("attempt"),
        _big("decided_ms"),
        _big("started_ms", nullable=True),
        _big("stopping_ms", nullable=True),
        _text("stop_reason", nullable=True),
        _big("ended_ms", nullable=True),
        _text("end_reason", nullable=True),
        _int("exit_code", nullable=True),
        _text("detail", nullable=True),
    )
    op.create_index("ix_allocation_job_id", "allocation", ["job_id"])
    op.create_index("ix_allocation_ended_ms", "allocation", ["ended_ms"])
    op.create_table(
        "job_event",
        sa.Column("sequence", _BIG_KEY, primary_key=True),
        _big("at_ms"),
        _big("job_id"),
        _text("kind"),
        _json("detail"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_job_event_job_id", "job_event", ["job_id"])


def _occupancy() -> None:
    ledger_head = op.create_table(
        "ledger_head", sa.Column("id", sa.Integer(), primary_key=True), _big("sequence"), _text("hash")
    )
    op.bulk_insert(ledger_head, [{"id": 1, "sequence": 0, "hash": _GENESIS_HASH}])
    op.create_table(
        "device_cursor",
        sa.Column("device", sa.String(), primary_key=True),
        sa.Column("lane", sa.Integer(), primary_key=True),
        _text("gpu_class"),
        _big("since_ms"),
        _big("version"),
        *_occupant(),
    )
    op.create_table(
        "occupancy",
        sa.Column("sequence", _BIG_KEY, primary_key=True, autoincrement=False),
        _text("device"),
        _int("lane"),
        _text("gpu_class"),
        _big("from_ms"),
        _big("to_ms"),
        *_occupant(),
        _text("evidence"),
        _big("recorded_ms"),
        sa.Column("idempotency_key", sa.String(), nullable=False, unique=True),
        _text("previous_hash"),
        _text("hash"),
        sa.CheckConstraint("to_ms > from_ms", name="ck_occupancy_to_after_from"),
    )
    op.create_index("ix_occupancy_from_ms", "occupancy", ["from_ms"])
    op.create_index("ix_occupancy_device_lane_from_ms", "occupancy", ["device", "lane", "from_ms"])
    op.create_index("ix_occupancy_allocation_id", "occupancy", ["allocation_id"])


def _occupant() -> "list[sa.Column[str] | sa.Column[int]]":
    return [
        _text("state"),
        _big("units"),
        _text("cause", nullable=True),
        _text("phase", nullable=True),
        _text("holder", nullable=True),
        _big("job_id", nullable=True),
        _text("allocation_id", nullable=True),
        _int("segment", nullable=True),
        _text("booking", nullable=True),
        _big("gpu_eq_units"),
    ]


def _sqlite_triggers() -> None:
    for verb in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER occupancy_no_{verb.lower()} BEFORE {verb} ON occupancy "
            f"BEGIN SELECT RAISE(ABORT, '{_APPEND_TEXT}'); END"
        )
    op.execute(
        f"CREATE TRIGGER occupancy_contiguous BEFORE INSERT ON occupancy WHEN {_IS_BROKEN} "
        f"BEGIN SELECT RAISE(ABORT, '{_GAP_TEXT}'); END"
    )


def _postgres_triggers() -> None:
    op.execute(
        "CREATE FUNCTION occupancy_append_only() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        f"RAISE EXCEPTION '{_APPEND_TEXT}' USING ERRCODE = 'integrity_constraint_violation'; END $$"
    )
    op.execute(
        "CREATE TRIGGER occupancy_no_change BEFORE UPDATE OR DELETE ON occupancy "
        "FOR EACH ROW EXECUTE FUNCTION occupancy_append_only()"
    )
    op.execute(
        "CREATE TRIGGER occupancy_no_truncate BEFORE TRUNCATE ON occupancy "
        "FOR EACH STATEMENT EXECUTE FUNCTION occupancy_append_only()"
    )
    op.execute(
        "CREATE FUNCTION occupancy_contiguous() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        f"IF {_IS_BROKEN} THEN "
        f"RAISE EXCEPTION '{_GAP_TEXT}' USING ERRCODE = 'integrity_constraint_violation'; END IF; "
        "RETURN NEW; END $$"
    )
    op.execute(
        "CREATE TRIGGER occupancy_contiguous BEFORE INSERT ON occupancy "
        "FOR EACH ROW EXECUTE FUNCTION occupancy_contiguous()"
    )
