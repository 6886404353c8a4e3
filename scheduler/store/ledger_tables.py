"""The ledger's tables: who held which GPU when, what became known of it later, and by which names and rates.

The partition is `occupancy`, closed intervals without gap or overlap, and `device_cursor`, the open one of each lane;
`reclassification` is laid over it. What never changes: `occupancy` (triggers refuse update, delete, gaps and overlaps),
`account_name`, `device_end`, `incident`, `evidence` and `reclassification` (triggers refuse update and delete). Cursors
and the heads of the chains move on; `rate_change` is only added to.
"""

import sqlalchemy as sa
from sqlmodel import Field, SQLModel

from scheduler.store.columns import BIG_KEY, JsonObject, big, column, json, table_of


class LedgerHeadRow(SQLModel, table=True):
    """The last row of the occupancy chain; one row."""

    __tablename__ = "ledger_head"
    id: int = Field(primary_key=True)
    sequence: int = big()
    hash: str


class AccountNameRow(SQLModel, table=True):
    """What an account was called from an instant on: append-only, and kept when the account is removed."""

    __tablename__ = "account_name"
    __table_args__ = (
        sa.Index("ix_account_name_account_from_ms", "account", "from_ms"),
        {"sqlite_autoincrement": True},
    )
    sequence: int | None = column(BIG_KEY, primary_key=True)
    account: str
    from_ms: int = big()
    name: str


class DeviceCursorRow(SQLModel, table=True):
    """The open interval of a lane; moved by compare-and-swap on `version`."""

    __tablename__ = "device_cursor"
    device: str = Field(primary_key=True)
    lane: int = Field(primary_key=True)
    gpu_class: str
    since_ms: int = big()
    version: int = big()
    state: str
    units: int = big()
    cause: str | None = None
    phase: str | None = None
    holder: str | None = None
    job_id: int | None = big(nullable=True)
    allocation_id: str | None = None
    segment: int | None = None
    booking: str | None = None
    gpu_eq_units: int = big()


class OccupancyRow(SQLModel, table=True):
    """A closed interval of a lane: append-only, without gap or overlap, chained by hashes."""

    __tablename__ = "occupancy"
    __table_args__ = (
        sa.CheckConstraint("to_ms > from_ms", name="ck_occupancy_to_after_from"),
        sa.Index("ix_occupancy_from_ms", "from_ms"),
        sa.Index("ix_occupancy_device_lane_from_ms", "device", "lane", "from_ms"),
        sa.Index("ix_occupancy_allocation_id", "allocation_id"),
    )
    sequence: int = column(BIG_KEY, primary_key=True, sa_column_kwargs={"autoincrement": False})
    device: str
    lane: int
    gpu_class: str
    from_ms: int = big()
    to_ms: int = big()
    state: str
    units: int = big()
    cause: str | None = None
    phase: str | None = None
    holder: str | None = None
    job_id: int | None = big(nullable=True)
    allocation_id: str | None = None
    segment: int | None = None
    booking: str | None = None
    gpu_eq_units: int = big()
    evidence: str
    recorded_ms: int = big()
    idempotency_key: str = Field(unique=True)
    previous_hash: str
    hash: str


class ChainHeadRow(SQLModel, table=True):
    """The last row of each chained table beside the occupancy: see `chained`."""

    __tablename__ = "chain_head"
    name: str = Field(primary_key=True)
    sequence: int = big()
    hash: str


class DeviceEndRow(SQLModel, table=True):
    """Where a device's life ended, because its GPU was partitioned otherwise: append-only, chained."""

    __tablename__ = "device_end"
    sequence: int = column(BIG_KEY, primary_key=True, sa_column_kwargs={"autoincrement": False})
    device: str = Field(index=True)
    at_ms: int = big()
    version: int = big()
    """The greatest that a lane of it had: should the device come back, its lanes go on from there."""
    cause: str
    recorded_ms: int = big()
    previous_hash: str
    hash: str


class IncidentRow(SQLModel, table=True):
    """A gang that a machine's fault ended, and the incident that this was: append-only, chained."""

    __tablename__ = "incident"
    sequence: int = column(BIG_KEY, primary_key=True, sa_column_kwargs={"autoincrement": False})
    id: str
    """Of the incident: the same for all gangs that it hit."""
    reason: str
    node: str = Field(index=True)
    began_ms: int = big()
    allocation_id: str = Field(unique=True)
    job_id: int = big()
    account: str
    at_ms: int = big()
    recorded_ms: int = column(sa.BigInteger(), index=True)
    previous_hash: str
    hash: str


class EvidenceRow(SQLModel, table=True):
    """The inbox: what was said about the end of an allocation after it was written, each thing once by its key."""

    __tablename__ = "evidence"
    __table_args__ = (sa.Index("ix_evidence_allocation_id", "allocation_id"),)
    sequence: int = column(BIG_KEY, primary_key=True, sa_column_kwargs={"autoincrement": False})
    key: str = Field(unique=True)
    kind: str
    allocation_id: str
    at_ms: int = big()
    source: str
    end_reason: str | None = None
    actor: str
    note: str
    recorded_ms: int = big()
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
    sequence: int = column(BIG_KEY, primary_key=True, sa_column_kwargs={"autoincrement": False})
    covers: int = big()
    device: str
    lane: int
    from_ms: int = big()
    to_ms: int = big()
    state: str
    units: int = big()
    cause: str | None = None
    phase: str | None = None
    holder: str | None = None
    job_id: int | None = big(nullable=True)
    allocation_id: str | None = None
    segment: int | None = None
    booking: str | None = None
    gpu_eq_units: int = big()
    evidence: str
    actor: str
    reason: str
    recorded_ms: int = big()
    previous_hash: str
    hash: str


class RateChangeRow(SQLModel, table=True):
    """List rates that came into force, by `class/booking`, in micro-credits per GPU-second; append-only."""

    __tablename__ = "rate_change"
    sequence: int | None = column(BIG_KEY, primary_key=True)
    at_ms: int = big()
    rates: JsonObject = json()


LEDGER_HEAD = table_of(LedgerHeadRow)
ACCOUNT_NAME = table_of(AccountNameRow)
DEVICE_CURSOR = table_of(DeviceCursorRow)
OCCUPANCY = table_of(OccupancyRow)
CHAIN_HEAD = table_of(ChainHeadRow)
DEVICE_END = table_of(DeviceEndRow)
INCIDENT = table_of(IncidentRow)
EVIDENCE = table_of(EvidenceRow)
RECLASSIFICATION = table_of(ReclassificationRow)
RATE_CHANGE = table_of(RateChangeRow)
