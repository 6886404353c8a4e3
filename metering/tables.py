"""Metering's tables beside the scheduler's: price books and packages, and what GPUs were seen to do.

`price_book` and `package` are append-only (triggers refuse update and delete), because lines name the version and the
package that they were rated by. `gpu_window` is evidence and statistics: it never makes money, and a window that comes
twice is stored once.
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
    retroactive_reason: str | None = None
    """Why it prices what was used before it was published; null for a book that does not."""


class PriceDraftRow(SQLModel, table=True):
    """A price book that is not published yet: it may be changed and withdrawn, and nothing is rated by it."""

    __tablename__ = "price_draft"
    version: str = Field(primary_key=True)
    body: dict[str, Any] = Field(sa_type=sa.JSON(), nullable=False)
    sha256: str
    saved_ms: int = _big()


class PackageRow(SQLModel, table=True):
    """GPU-hours that a tenant bought. `sha256` is the hash of all that is sold, so that a changed row is found."""

    __tablename__ = "package"
    id: str = Field(primary_key=True)
    tenant: str
    gpu_class: str
    gpu_hours: int = _big()
    price: str
    currency: str
    from_ms: int = _big()
    to_ms: int = _big()
    sold_ms: int = _big()
    sha256: str


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
PRICE_DRAFT = _table(PriceDraftRow)
PACKAGE = _table(PackageRow)
GPU_WINDOW = _table(GpuWindowRow)
