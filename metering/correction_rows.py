"""Corrections as lines of the period in which they are charged."""

import json
from collections.abc import Iterator

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from metering.tables import CORRECTION
from metering.usage_columns import USAGE_COLUMNS
from scheduler.core.model import AccountId


def correction_cells(
    connection: Connection, from_ms: int, to_ms: int, tenant: AccountId | None
) -> Iterator[tuple[int, list[str]]]:
    """Yields the corrections that were charged in `[from_ms, to_ms)`, in their order: micro-units and native cells."""
    query = sa.select(CORRECTION).where(CORRECTION.c.recorded_ms >= from_ms, CORRECTION.c.recorded_ms < to_ms)
    if tenant is not None:
        query = query.where(CORRECTION.c.tenant == tenant)
    for row in connection.execute(query.order_by(CORRECTION.c.sequence)):
        cells: dict[str, str] = json.loads(row.cells)
        yield row.amount_micros, [cells.get(column, "") for column in USAGE_COLUMNS]


def corrected_tenants(connection: Connection, from_ms: int, to_ms: int) -> set[AccountId]:
    """Returns the tenants with corrections that were charged in a range."""
    query = sa.select(CORRECTION.c.tenant).distinct()
    query = query.where(CORRECTION.c.recorded_ms >= from_ms, CORRECTION.c.recorded_ms < to_ms)
    return {AccountId(name) for name in connection.execute(query).scalars()}
