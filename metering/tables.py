"""Metering's tables beside the scheduler's: price books, and what GPUs were seen to do.

`price_book` is append-only (triggers refuse update and delete), because lines name the version that they were rated
by. `gpu_window` is evidence and statistics: it never makes money, and a window that comes twice is stored once.
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


def _table(model: type[SQLModel]) -> sa.Table:
    return model.metadata.tables[str(model.__tablename__)]


PRICE_BOOK = _table(PriceBookRow)
GPU_WINDOW = _table(GpuWindowRow)
