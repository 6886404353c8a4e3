"""Metering's tables beside the scheduler's: price books, and what GPUs were seen to do.

`price_book` is append-only (triggers refuse update and delete), because lines name the version that they were rated
by. `gpu_window` is evidence and statistics: it never makes money, and a window that comes twice is stored once. `agent`
is what the agents of GPU nodes last said, `agent_batch` which of their batches were taken in, and `device_witness` which
GPUs were seen in an allocation's hands where the platform chooses them.
"""

from typing import Any

import sqlalchemy as sa
from sqlmodel import Field, SQLModel


def _big(*, nullable: bool = False, primary_key: bool = False) -> Any:  # Any: as Field() is typed
    return Field(sa_type=sa.BigInteger(), nullable=nullable, primary_key=primary_key)


class PriceBookRow(SQLModel, table=True):
    """A published price book: `body` is its content, `sha256` the hash of the body's canonical JSON."""

    __tablename__ = "price_book"
    version: str = Field(primary_key=True)
    effective_ms: int = Field(sa_type=sa.BigInteger(), nullable=False, unique=True)
    currency: str
    body: dict[str, Any] = Field(sa_type=sa.JSON(), nullable=False)
    sha256: str
    published_ms: int = _big()


class GpuWindowRow(SQLModel, table=True):
    """What one GPU did over `[from_ms, to_ms)`, folded from samples; null is unknown, never zero."""

    __tablename__ = "gpu_window"
    __table_args__ = (sa.Index("ix_gpu_window_to_ms", "to_ms"),)
    device: str = Field(primary_key=True)
    from_ms: int = _big(primary_key=True)
    to_ms: int = _big()
    coverage_ms: int = _big()
    utilization_mean_ppm: int | None = None
    utilization_max_ppm: int | None = None
    memory_mean_bytes: int | None = _big(nullable=True)
    memory_max_bytes: int | None = _big(nullable=True)
    power_mean_milliwatts: int | None = _big(nullable=True)
    energy_millijoules: int | None = _big(nullable=True)


class AgentRow(SQLModel, table=True):
    """The agent of a machine, as last heard. `heard_ms` is the daemon's time, at most a minute behind the truth."""

    __tablename__ = "agent"
    node: str = Field(primary_key=True)
    instance: str
    version: str
    collector: str
    driver_version: str | None = None
    first_ms: int = _big()
    heard_ms: int = _big()
    skew_ms: int = _big()
    silent_ms: int | None = _big(nullable=True)
    problems: list[str] = Field(sa_type=sa.JSON(), nullable=False)
    devices: list[dict[str, Any]] = Field(sa_type=sa.JSON(), nullable=False)


class AgentBatchRow(SQLModel, table=True):
    """A batch of evidence that was taken in: the same key again changes nothing."""

    __tablename__ = "agent_batch"
    __table_args__ = (sa.Index("ix_agent_batch_taken_ms", "taken_ms"),)
    node: str = Field(primary_key=True)
    key: str = Field(primary_key=True)
    sha256: str
    taken_ms: int = _big()


class DeviceWitnessRow(SQLModel, table=True):
    """A GPU was seen in an allocation's hands from `from_ms` to `to_ms`, by the word in `witness`."""

    __tablename__ = "device_witness"
    allocation_id: str = Field(primary_key=True)
    device: str = Field(primary_key=True)
    node: str
    from_ms: int = _big()
    to_ms: int = _big()
    witness: str


def _table(model: type[SQLModel]) -> sa.Table:
    return model.metadata.tables[str(model.__tablename__)]


PRICE_BOOK = _table(PriceBookRow)
GPU_WINDOW = _table(GpuWindowRow)
AGENT = _table(AgentRow)
AGENT_BATCH = _table(AgentBatchRow)
DEVICE_WITNESS = _table(DeviceWitnessRow)
