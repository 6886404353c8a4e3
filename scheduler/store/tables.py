"""The scheduler's tables, as SQLModel classes; hot paths use their Core tables (`JOB`, `OCCUPANCY`, …).

Times are integer UTC milliseconds (`*_ms`). JSON columns hold core values as `codec` writes them. Migrations make the
tables (`cli.daemon.migrations`), triggers included; a test holds that both say the same.

What never changes: `occupancy` (triggers refuse update, delete, gaps and overlaps), `account_name`, `device_end`,
`incident`, `evidence` and `reclassification` (triggers refuse update and delete). What is history: `job_event`,
`node_event`, `decision` and `decision_tape`, which are forgotten after a time.
Everything else is the present.
"""

from typing import Any

import sqlalchemy as sa
from sqlmodel import Field, SQLModel

BIG_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
"""A 64-bit key that SQLite takes for its rowid."""

HAS_DEADLINE = "deadline_ms IS NOT NULL AND ended_ms IS NULL"
"""Which jobs the index of deadlines holds."""

JsonObject = dict[str, Any]  # Any: JSON as the driver gives it; codec.py is the only reader


def _column(kind: "sa.types.TypeEngine[Any]", *, nullable: bool = False, **named: Any) -> Any:  # as Field() is typed
    return Field(sa_type=kind, nullable=nullable, **named)


def _big(*, nullable: bool = False) -> Any:
    return _column(sa.BigInteger(), nullable=nullable)


def _json() -> Any:
    return _column(sa.JSON())


class LeaderLeaseRow(SQLModel, table=True):
    """Which daemon leads; one row. `epoch` rises with each takeover and fences those before."""

    __tablename__ = "leader_lease"
    id: int = Field(primary_key=True)
    holder: str
    url: str
    epoch: int = _big()
    expires_ms: int = _big()


class LedgerHeadRow(SQLModel, table=True):
    """The last row of the occupancy chain; one row."""

    __tablename__ = "ledger_head"
    id: int = Field(primary_key=True)
    sequence: int = _big()
    hash: str


class AccountRow(SQLModel, table=True):
    """A node of the account tree; the id is its path."""

    __tablename__ = "account"
    id: str = Field(primary_key=True)
    display_name: str
    weight: int
    guarantee: JsonObject = _json()
    limit: JsonObject = _json()
    is_suspended: bool
    created_ms: int = _big()
    terms: JsonObject = _json()
    """Its further limits, as `codec.terms_json` writes them."""
    changed_ms: int = _big()


class MemberRow(SQLModel, table=True):
    """A user of an account, with the role that its tokens there have."""

    __tablename__ = "member"
    account: str = Field(primary_key=True)
    user: str = Field(primary_key=True)
    role: str
    may_use_high: bool
    created_ms: int = _big()


class AccountNameRow(SQLModel, table=True):
    """What an account was called from an instant on: append-only, and kept when the account is removed."""

    __tablename__ = "account_name"
    __table_args__ = (
        sa.Index("ix_account_name_account_from_ms", "account", "from_ms"),
        {"sqlite_autoincrement": True},
    )
    sequence: int | None = _column(BIG_KEY, primary_key=True)
    account: str
    from_ms: int = _big()
    name: str


class TokenRow(SQLModel, table=True):
    """A bearer token, by the hash of its secret."""

    __tablename__ = "token"
    id: str = Field(primary_key=True)
    secret_hash: str = Field(unique=True)
    role: str
    account: str
    user: str
    created_ms: int = _big()
    expires_ms: int | None = _big(nullable=True)
    revoked_ms: int | None = _big(nullable=True)


class PoolRow(SQLModel, table=True):
    """A set of nodes that the admin named; made when its first node is seen."""

    __tablename__ = "pool"
    name: str = Field(primary_key=True)
    is_closed: bool
    reason: str | None = None


class NodeRow(SQLModel, table=True):
    """A machine. `availability`, `reason` and `pool` are the executor's view; an admin's is told apart from it.

    Which are `drain_reason`, `assigned_pool`, and `kept_by`, the reservation that is in force.
    """

    __tablename__ = "node"
    name: str = Field(primary_key=True)
    gpu_class: str
    pool: str
    cpu_millicores: int = _big()
    memory_bytes: int = _big()
    labels: JsonObject = _json()
    availability: str
    reason: str | None = None
    drain_reason: str | None = None
    kept_by: str | None = None
    assigned_pool: str | None = None
    seen_ms: int = _big()
    removed_ms: int | None = _big(nullable=True)


class ReservationRow(SQLModel, table=True):
    """Nodes that an admin keeps free for a time; it stands while `ended_ms` is null, and names of those are unique."""

    __tablename__ = "reservation"
    __table_args__ = (
        sa.Index(
            "ix_reservation_name",
            "name",
            unique=True,
            sqlite_where=sa.text("ended_ms IS NULL"),
            postgresql_where=sa.text("ended_ms IS NULL"),
        ),
    )
    sequence: int | None = _column(BIG_KEY, primary_key=True)
    name: str
    start_ms: int = _big()
    end_ms: int = _big()
    nodes: list[str] = _json()
    account: str | None = None
    reason: str | None = None
    created_ms: int = _big()
    created_by: str
    is_in_force: bool
    ended_ms: int | None = _big(nullable=True)
    ended_by: str | None = None


class DeviceRow(SQLModel, table=True):
    """A GPU, MIG instance or slot, with its place among its node's devices."""

    __tablename__ = "device"
    id: str = Field(primary_key=True)
    node: str = Field(index=True)
    position: int
    gpu_class: str
    units: int = _big()
    health: str
    reason: str | None = None
    is_foreign: bool
    first_seen_ms: int = _big()
    removed_ms: int | None = _big(nullable=True)


class NodeEventRow(SQLModel, table=True):
    """What happened to a machine beside its GPUs' occupancy: its agent fell silent, a GPU reported an XID."""

    __tablename__ = "node_event"
    __table_args__ = (sa.Index("ix_node_event_node_at_ms", "node", "at_ms"), {"sqlite_autoincrement": True})
    sequence: int | None = _column(BIG_KEY, primary_key=True)
    node: str
    at_ms: int = _big()
    kind: str
    device: str | None = None
    detail: str


class JobRow(SQLModel, table=True):
    """A job, for ever. `allocation_id` is its present allocation or, when it waits or has ended, its last."""

    __tablename__ = "job"
    __table_args__ = (
        sa.Index("ix_job_state", "state"),
        sa.Index("ix_job_tenant_state_id", "tenant", "state", "id"),
        sa.Index("ix_job_account_user_name", "account", "user", "name"),
        sa.Index("ix_job_array_id", "array_id"),
        sa.Index(
            "ix_job_deadline_ms",
            "deadline_ms",
            sqlite_where=sa.text(HAS_DEADLINE),
            postgresql_where=sa.text(HAS_DEADLINE),
        ),
        # Ids are never given twice, not even after the newest jobs were archived.
        {"sqlite_autoincrement": True},
    )
    id: int | None = _column(BIG_KEY, primary_key=True)
    account: str
    tenant: str
    user: str
    name: str
    state: str
    reason: str | None = None
    detail: str | None = None
    exit_code: int | None = None
    gpu_class: str
    nodes: int
    gpu_units: int = _big()
    shape: JsonObject = _json()
    wanted: str
    priority: int
    time_limit_ms: int = _big()
    submitted_ms: int = _big()
    begin_ms: int | None = _big(nullable=True)
    is_backing_off: bool
    deadline_ms: int | None = _big(nullable=True)
    hold: str | None = None
    attempt: int
    retries_left: int
    allocation_id: str | None = None
    array_id: int | None = _big(nullable=True)
    array_index: int | None = None
    array_cap: int | None = None
    waits_for: str | None = _column(sa.Text(), nullable=True)
    """Dependencies not met yet, as `codec.waits_for_text` writes them; the rows of `job_dependency` say the same."""
    retry_on: str | None = None
    """End reasons with a space between them; null for all that are retried."""
    started_ms: int | None = _big(nullable=True)
    ended_ms: int | None = _big(nullable=True)
    launch: JsonObject = _json()
    labels: JsonObject = _json()
    notify: JsonObject | None = _column(sa.JSON(none_as_null=True), nullable=True)
    """The events that its user is to be told of, where they are other than by default."""


class JobDependencyRow(SQLModel, table=True):
    """What a waiting job still waits for, to be found by what it waits for. Gone once it is met, or the job is over."""

    __tablename__ = "job_dependency"
    __table_args__ = (
        sa.Index("ix_job_dependency_on_job", "on_job"),
        sa.Index("ix_job_dependency_on_array", "on_array"),
        sa.Index("ix_job_dependency_account_user_name", "account", "user", "name"),
    )
    job_id: int = _column(BIG_KEY, primary_key=True, sa_column_kwargs={"autoincrement": False})
    dependency: str = Field(primary_key=True)
    kind: str
    on_job: int | None = _big(nullable=True)
    on_array: int | None = _big(nullable=True)
    """All elements of this array."""
    account: str | None = None
    """Of a singleton: it waits for earlier jobs of this project, `user` and `name`."""
    user: str | None = None
    name: str | None = None


class SubmissionKeyRow(SQLModel, table=True):
    """What a client's idempotency key stood for."""

    __tablename__ = "submission_key"
    tenant: str = Field(primary_key=True)
    user: str = Field(primary_key=True)
    key: str = Field(primary_key=True)
    request_sha256: str
    job_ids: list[int] = _json()
    created_ms: int = _big()


class AllocationRow(SQLModel, table=True):
    """One start of a job, or the surplus nodes of an elastic one. Live while `ended_ms` is null."""

    __tablename__ = "allocation"
    __table_args__ = (
        sa.Index("ix_allocation_job_id", "job_id"),
        sa.Index("ix_allocation_ended_ms", "ended_ms"),
        sa.Index("ix_allocation_surplus_of", "surplus_of"),
    )
    id: str = Field(primary_key=True)
    job_id: int = _big()
    account: str
    user: str
    gpu_class: str
    booking: str
    phase: str
    segment: int
    grants: list[JsonObject] = _json()
    time_limit_ms: int = _big()
    attempt: int
    decided_ms: int = _big()
    started_ms: int | None = _big(nullable=True)
    checkpointed_ms: int | None = _big(nullable=True)
    stopping_ms: int | None = _big(nullable=True)
    stop_reason: str | None = None
    ended_ms: int | None = _big(nullable=True)
    end_reason: str | None = None
    exit_code: int | None = None
    detail: str | None = None
    surplus_of: str | None = None


class JobEventRow(SQLModel, table=True):
    """What users see as a job's history."""

    __tablename__ = "job_event"
    __table_args__ = (sa.Index("ix_job_event_job_id", "job_id"), {"sqlite_autoincrement": True})
    sequence: int | None = _column(BIG_KEY, primary_key=True)
    at_ms: int = _big()
    job_id: int = _big()
    kind: str
    detail: JsonObject = _json()


class SecretRow(SQLModel, table=True):
    """A value that an account's jobs may be given by name."""

    __tablename__ = "secret"
    account: str = Field(primary_key=True)
    name: str = Field(primary_key=True)
    value: str
    updated_ms: int = _big()
    updated_by: str


class NoticeTargetRow(SQLModel, table=True):
    """Where a user wants to be told of jobs, and of what by default; the user "" stands for the whole tenant."""

    __tablename__ = "notice_target"
    tenant: str = Field(primary_key=True)
    user: str = Field(primary_key=True)
    webhook: str | None = None
    secret: str | None = None
    email: str | None = None
    events: list[str] = _json()
    updated_ms: int = _big()


class NoticeCursorRow(SQLModel, table=True):
    """How far the history of jobs was gone through for notices; one row."""

    __tablename__ = "notice_cursor"
    id: int = Field(primary_key=True)
    sequence: int = _big()


class DeliveryRow(SQLModel, table=True):
    """A notice on its way. `cause` is unique: nothing is made a delivery of twice."""

    __tablename__ = "delivery"
    __table_args__ = (
        sa.Index("ix_delivery_tenant_user_id", "tenant", "user", "id"),
        sa.Index(
            "ix_delivery_next_ms",
            "next_ms",
            sqlite_where=sa.text("done_ms IS NULL"),
            postgresql_where=sa.text("done_ms IS NULL"),
        ),
    )
    id: str = Field(primary_key=True)
    tenant: str
    user: str
    channel: str
    event: str
    cause: str = Field(unique=True)
    made_ms: int = _big()
    body: JsonObject = _json()
    tries: int
    next_ms: int = _big()
    done_ms: int | None = _big(nullable=True)
    error: str | None = None


class DeviceCursorRow(SQLModel, table=True):
    """The open interval of a lane; moved by compare-and-swap on `version`."""

    __tablename__ = "device_cursor"
    device: str = Field(primary_key=True)
    lane: int = Field(primary_key=True)
    gpu_class: str
    since_ms: int = _big()
    version: int = _big()
    state: str
    units: int = _big()
    cause: str | None = None
    phase: str | None = None
    holder: str | None = None
    job_id: int | None = _big(nullable=True)
    allocation_id: str | None = None
    segment: int | None = None
    booking: str | None = None
    gpu_eq_units: int = _big()


class OccupancyRow(SQLModel, table=True):
    """A closed interval of a lane: append-only, without gap or overlap, chained by hashes."""

    __tablename__ = "occupancy"
    __table_args__ = (
        sa.CheckConstraint("to_ms > from_ms", name="ck_occupancy_to_after_from"),
        sa.Index("ix_occupancy_from_ms", "from_ms"),
        sa.Index("ix_occupancy_device_lane_from_ms", "device", "lane", "from_ms"),
        sa.Index("ix_occupancy_allocation_id", "allocation_id"),
    )
    sequence: int = _column(BIG_KEY, primary_key=True, sa_column_kwargs={"autoincrement": False})
    device: str
    lane: int
    gpu_class: str
    from_ms: int = _big()
    to_ms: int = _big()
    state: str
    units: int = _big()
    cause: str | None = None
    phase: str | None = None
    holder: str | None = None
    job_id: int | None = _big(nullable=True)
    allocation_id: str | None = None
    segment: int | None = None
    booking: str | None = None
    gpu_eq_units: int = _big()
    evidence: str
    recorded_ms: int = _big()
    idempotency_key: str = Field(unique=True)
    previous_hash: str
    hash: str


class ChainHeadRow(SQLModel, table=True):
    """The last row of each chained table beside the occupancy: see `chained`."""

    __tablename__ = "chain_head"
    name: str = Field(primary_key=True)
    sequence: int = _big()
    hash: str


class DeviceEndRow(SQLModel, table=True):
    """Where a device's life ended, because its GPU was partitioned otherwise: append-only, chained."""

    __tablename__ = "device_end"
    sequence: int = _column(BIG_KEY, primary_key=True, sa_column_kwargs={"autoincrement": False})
    device: str = Field(index=True)
    at_ms: int = _big()
    version: int = _big()
    """The greatest that a lane of it had: should the device come back, its lanes go on from there."""
    cause: str
    recorded_ms: int = _big()
    previous_hash: str
    hash: str


class IncidentRow(SQLModel, table=True):
    """A gang that a machine's fault ended, and the incident that this was: append-only, chained."""

    __tablename__ = "incident"
    sequence: int = _column(BIG_KEY, primary_key=True, sa_column_kwargs={"autoincrement": False})
    id: str
    """Of the incident: the same for all gangs that it hit."""
    reason: str
    node: str = Field(index=True)
    began_ms: int = _big()
    allocation_id: str = Field(unique=True)
    job_id: int = _big()
    account: str
    at_ms: int = _big()
    recorded_ms: int = _column(sa.BigInteger(), index=True)
    previous_hash: str
    hash: str


class EvidenceRow(SQLModel, table=True):
    """The inbox: what was said about the end of an allocation after it was written, each thing once by its key."""

    __tablename__ = "evidence"
    __table_args__ = (sa.Index("ix_evidence_allocation_id", "allocation_id"),)
    sequence: int = _column(BIG_KEY, primary_key=True, sa_column_kwargs={"autoincrement": False})
    key: str = Field(unique=True)
    kind: str
    allocation_id: str
    at_ms: int = _big()
    source: str
    end_reason: str | None = None
    actor: str
    note: str
    recorded_ms: int = _big()
    previous_hash: str
    hash: str


class ReclassificationRow(SQLModel, table=True):
    """What a part of a closed interval was, as became known later: laid over the partition, append-only, chained."""

    __tablename__ = "reclassification"
    __table_args__ = (
        sa.CheckConstraint("to_ms > from_ms", name="ck_reclassification_to_after_from"),
        sa.Index("ix_reclassification_covers", "covers"),
        sa.Index("ix_reclassification_allocation_id", "allocation_id"),
        sa.Index("ix_reclassification_to_ms", "to_ms"),
    )
    sequence: int = _column(BIG_KEY, primary_key=True, sa_column_kwargs={"autoincrement": False})
    covers: int = _big()
    device: str
    lane: int
    from_ms: int = _big()
    to_ms: int = _big()
    state: str
    units: int = _big()
    cause: str | None = None
    phase: str | None = None
    holder: str | None = None
    job_id: int | None = _big(nullable=True)
    allocation_id: str | None = None
    segment: int | None = None
    booking: str | None = None
    gpu_eq_units: int = _big()
    evidence: str
    actor: str
    reason: str
    recorded_ms: int = _big()
    previous_hash: str
    hash: str


class RateChangeRow(SQLModel, table=True):
    """List rates that came into force, by `class/booking`, in micro-credits per GPU-second; append-only."""

    __tablename__ = "rate_change"
    sequence: int | None = _column(BIG_KEY, primary_key=True)
    at_ms: int = _big()
    rates: JsonObject = _json()


class ClaimRow(SQLModel, table=True):
    """Devices kept for a job that others were stopped for. Live while `ended_ms` is null; then with its outcome."""

    __tablename__ = "claim"
    __table_args__ = (sa.Index("ix_claim_ended_ms", "ended_ms"),)
    sequence: int | None = _column(BIG_KEY, primary_key=True)
    job_id: int = _big()
    account: str
    user: str
    gpu_class: str
    booking: str
    grants: list[JsonObject] = _json()
    victims: list[str] = _json()
    guarded: int
    made_ms: int = _big()
    free_ms: int = _big()
    end_ms: int = _big()
    until_ms: int = _big()
    ended_ms: int | None = _big(nullable=True)
    outcome: str | None = None


class DecisionRow(SQLModel, table=True):
    """One line of the decision log. `subject` names the group or shape that waits; the others name a job."""

    __tablename__ = "decision"
    __table_args__ = (
        sa.Index("ix_decision_job_id", "job_id"),
        sa.Index("ix_decision_subject", "subject"),
        sa.Index("ix_decision_at_ms", "at_ms"),
        {"sqlite_autoincrement": True},
    )
    sequence: int | None = _column(BIG_KEY, primary_key=True)
    epoch: int = _big()
    decision: int = _big()
    at_ms: int = _big()
    version: int = _big()
    policy: str
    kind: str
    subject: str | None = None
    job_id: int | None = _big(nullable=True)
    allocation_id: str | None = None
    tenant: str | None = None
    reasons: list[JsonObject] = _json()
    words: str | None = None


class DecisionTapeRow(SQLModel, table=True):
    """A piece of the flight recorder's tape: a state, or the events and ticks that came after."""

    __tablename__ = "decision_tape"
    __table_args__ = (sa.Index("ix_decision_tape_at_ms", "at_ms"), {"sqlite_autoincrement": True})
    sequence: int | None = _column(BIG_KEY, primary_key=True)
    epoch: int = _big()
    at_ms: int = _big()
    kind: str
    last_decision: int = _big()
    body: bytes = _column(sa.LargeBinary())


def _table(model: type[SQLModel]) -> sa.Table:
    return model.metadata.tables[str(model.__tablename__)]


LEADER_LEASE = _table(LeaderLeaseRow)
LEDGER_HEAD = _table(LedgerHeadRow)
ACCOUNT = _table(AccountRow)
MEMBER = _table(MemberRow)
ACCOUNT_NAME = _table(AccountNameRow)
TOKEN = _table(TokenRow)
POOL = _table(PoolRow)
NODE = _table(NodeRow)
RESERVATION = _table(ReservationRow)
DEVICE = _table(DeviceRow)
NODE_EVENT = _table(NodeEventRow)
JOB = _table(JobRow)
JOB_DEPENDENCY = _table(JobDependencyRow)
SUBMISSION_KEY = _table(SubmissionKeyRow)
ALLOCATION = _table(AllocationRow)
JOB_EVENT = _table(JobEventRow)
SECRET = _table(SecretRow)
NOTICE_TARGET = _table(NoticeTargetRow)
NOTICE_CURSOR = _table(NoticeCursorRow)
DELIVERY = _table(DeliveryRow)
DEVICE_CURSOR = _table(DeviceCursorRow)
OCCUPANCY = _table(OccupancyRow)
RATE_CHANGE = _table(RateChangeRow)
CLAIM = _table(ClaimRow)
DECISION = _table(DecisionRow)
DECISION_TAPE = _table(DecisionTapeRow)
CHAIN_HEAD = _table(ChainHeadRow)
DEVICE_END = _table(DeviceEndRow)
INCIDENT = _table(IncidentRow)
EVIDENCE = _table(EvidenceRow)
RECLASSIFICATION = _table(ReclassificationRow)
