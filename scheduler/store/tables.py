"""The scheduler's tables of what is, as SQLModel classes; hot paths use their Core tables (`JOB`, `ALLOCATION`, …).

Times are integer UTC milliseconds (`*_ms`). JSON columns hold core values as `codec` writes them. Migrations make the
tables (`cli.daemon.migrations`); a test holds that both say the same. What never changes is in `ledger_tables`, what is
forgotten after a time in `history_tables`.
"""

import sqlalchemy as sa
from sqlmodel import Field, SQLModel

from scheduler.store.columns import BIG_KEY, JsonObject, big, column, json, table_of

HAS_DEADLINE = "deadline_ms IS NOT NULL AND ended_ms IS NULL"
"""Which jobs the index of deadlines holds."""


class LeaderLeaseRow(SQLModel, table=True):
    """Which daemon leads; one row. `epoch` rises with each takeover and fences those before."""

    __tablename__ = "leader_lease"
    id: int = Field(primary_key=True)
    holder: str
    url: str
    epoch: int = big()
    expires_ms: int = big()


class AccountRow(SQLModel, table=True):
    """A node of the account tree; the id is its path."""

    __tablename__ = "account"
    id: str = Field(primary_key=True)
    display_name: str
    weight: int
    guarantee: JsonObject = json()
    limit: JsonObject = json()
    is_suspended: bool
    created_ms: int = big()
    terms: JsonObject = json()
    """Its further limits, as `codec.terms_json` writes them."""
    changed_ms: int = big()


class MemberRow(SQLModel, table=True):
    """A user of an account, with the role that its tokens there have."""

    __tablename__ = "member"
    account: str = Field(primary_key=True)
    user: str = Field(primary_key=True)
    role: str
    may_use_high: bool
    created_ms: int = big()


class TokenRow(SQLModel, table=True):
    """A bearer token, by the hash of its secret."""

    __tablename__ = "token"
    id: str = Field(primary_key=True)
    secret_hash: str = Field(unique=True)
    role: str
    account: str
    user: str
    created_ms: int = big()
    expires_ms: int | None = big(nullable=True)
    revoked_ms: int | None = big(nullable=True)


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
    cpu_millicores: int = big()
    memory_bytes: int = big()
    labels: JsonObject = json()
    availability: str
    reason: str | None = None
    drain_reason: str | None = None
    kept_by: str | None = None
    assigned_pool: str | None = None
    seen_ms: int = big()
    removed_ms: int | None = big(nullable=True)


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
    sequence: int | None = column(BIG_KEY, primary_key=True)
    name: str
    start_ms: int = big()
    end_ms: int = big()
    nodes: list[str] = json()
    account: str | None = None
    reason: str | None = None
    created_ms: int = big()
    created_by: str
    is_in_force: bool
    ended_ms: int | None = big(nullable=True)
    ended_by: str | None = None


class DeviceRow(SQLModel, table=True):
    """A GPU, MIG instance or slot, with its place among its node's devices."""

    __tablename__ = "device"
    id: str = Field(primary_key=True)
    node: str = Field(index=True)
    position: int
    gpu_class: str
    units: int = big()
    health: str
    reason: str | None = None
    is_foreign: bool
    first_seen_ms: int = big()
    removed_ms: int | None = big(nullable=True)


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
    id: int | None = column(BIG_KEY, primary_key=True)
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
    gpu_units: int = big()
    shape: JsonObject = json()
    wanted: str
    priority: int
    time_limit_ms: int = big()
    submitted_ms: int = big()
    begin_ms: int | None = big(nullable=True)
    is_backing_off: bool
    deadline_ms: int | None = big(nullable=True)
    hold: str | None = None
    attempt: int
    retries_left: int
    allocation_id: str | None = None
    array_id: int | None = big(nullable=True)
    array_index: int | None = None
    array_cap: int | None = None
    waits_for: str | None = column(sa.Text(), nullable=True)
    """Dependencies not met yet, as `codec.waits_for_text` writes them; the rows of `job_dependency` say the same."""
    retry_on: str | None = None
    """End reasons with a space between them; null for all that are retried."""
    started_ms: int | None = big(nullable=True)
    ended_ms: int | None = big(nullable=True)
    launch: JsonObject = json()
    labels: JsonObject = json()
    notify: JsonObject | None = column(sa.JSON(none_as_null=True), nullable=True)
    """The events that its user is to be told of, where they are other than by default."""


class JobDependencyRow(SQLModel, table=True):
    """What a waiting job still waits for, to be found by what it waits for. Gone once it is met, or the job is over."""

    __tablename__ = "job_dependency"
    __table_args__ = (
        sa.Index("ix_job_dependency_on_job", "on_job"),
        sa.Index("ix_job_dependency_on_array", "on_array"),
        sa.Index("ix_job_dependency_account_user_name", "account", "user", "name"),
    )
    job_id: int = column(BIG_KEY, primary_key=True, sa_column_kwargs={"autoincrement": False})
    dependency: str = Field(primary_key=True)
    kind: str
    on_job: int | None = big(nullable=True)
    on_array: int | None = big(nullable=True)
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
    job_ids: list[int] = json()
    created_ms: int = big()


class AllocationRow(SQLModel, table=True):
    """One start of a job, or the surplus nodes of an elastic one. Live while `ended_ms` is null."""

    __tablename__ = "allocation"
    __table_args__ = (
        sa.Index("ix_allocation_job_id", "job_id"),
        sa.Index("ix_allocation_ended_ms", "ended_ms"),
        sa.Index("ix_allocation_surplus_of", "surplus_of"),
    )
    id: str = Field(primary_key=True)
    job_id: int = big()
    account: str
    user: str
    gpu_class: str
    booking: str
    phase: str
    segment: int
    grants: list[JsonObject] = json()
    time_limit_ms: int = big()
    attempt: int
    decided_ms: int = big()
    started_ms: int | None = big(nullable=True)
    checkpointed_ms: int | None = big(nullable=True)
    stopping_ms: int | None = big(nullable=True)
    stop_reason: str | None = None
    ended_ms: int | None = big(nullable=True)
    end_reason: str | None = None
    exit_code: int | None = None
    detail: str | None = None
    surplus_of: str | None = None


class SecretRow(SQLModel, table=True):
    """A value that an account's jobs may be given by name."""

    __tablename__ = "secret"
    account: str = Field(primary_key=True)
    name: str = Field(primary_key=True)
    value: str
    updated_ms: int = big()
    updated_by: str


class NoticeTargetRow(SQLModel, table=True):
    """Where a user wants to be told of jobs, and of what by default; the user "" stands for the whole tenant."""

    __tablename__ = "notice_target"
    tenant: str = Field(primary_key=True)
    user: str = Field(primary_key=True)
    webhook: str | None = None
    secret: str | None = None
    email: str | None = None
    events: list[str] = json()
    updated_ms: int = big()


class NoticeCursorRow(SQLModel, table=True):
    """How far the history of jobs was gone through for notices; one row."""

    __tablename__ = "notice_cursor"
    id: int = Field(primary_key=True)
    sequence: int = big()


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
    made_ms: int = big()
    body: JsonObject = json()
    tries: int
    next_ms: int = big()
    done_ms: int | None = big(nullable=True)
    error: str | None = None


class ClaimRow(SQLModel, table=True):
    """Devices kept for a job that others were stopped for. Live while `ended_ms` is null; then with its outcome."""

    __tablename__ = "claim"
    __table_args__ = (sa.Index("ix_claim_ended_ms", "ended_ms"),)
    sequence: int | None = column(BIG_KEY, primary_key=True)
    job_id: int = big()
    account: str
    user: str
    gpu_class: str
    booking: str
    grants: list[JsonObject] = json()
    victims: list[str] = json()
    guarded: int
    made_ms: int = big()
    free_ms: int = big()
    end_ms: int = big()
    until_ms: int = big()
    ended_ms: int | None = big(nullable=True)
    outcome: str | None = None


LEADER_LEASE = table_of(LeaderLeaseRow)
ACCOUNT = table_of(AccountRow)
MEMBER = table_of(MemberRow)
TOKEN = table_of(TokenRow)
POOL = table_of(PoolRow)
NODE = table_of(NodeRow)
RESERVATION = table_of(ReservationRow)
DEVICE = table_of(DeviceRow)
JOB = table_of(JobRow)
JOB_DEPENDENCY = table_of(JobDependencyRow)
SUBMISSION_KEY = table_of(SubmissionKeyRow)
ALLOCATION = table_of(AllocationRow)
SECRET = table_of(SecretRow)
NOTICE_TARGET = table_of(NoticeTargetRow)
NOTICE_CURSOR = table_of(NoticeCursorRow)
DELIVERY = table_of(DeliveryRow)
CLAIM = table_of(ClaimRow)
