"""The part of verification that asks what became known later: chains of their tables, and what lies over the partition.

Reclassifications that no operator made follow from the evidence; they are derived again and must say the same.
"""

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from metering.findings import Check, Report
from metering.tables import CORRECTION, PERIOD_EVENT
from scheduler.core.model import AllocationId
from scheduler.store.chained import breaks, rows_of
from scheduler.store.evidence import missing_rows
from scheduler.store.ledger_tables import DEVICE_END, EVIDENCE, INCIDENT, OCCUPANCY, RECLASSIFICATION
from scheduler.store.overlays import evidence_row, reclassification_of
from scheduler.store.tables import ALLOCATION

CHAINED = (EVIDENCE, RECLASSIFICATION, PERIOD_EVENT, CORRECTION, DEVICE_END, INCIDENT)
_READERS = ((EVIDENCE, evidence_row), (RECLASSIFICATION, reclassification_of))


def verify_chained(connection: Connection, report: Report) -> None:
    """Checks the chain of every such table, row by row, and its head."""
    for table in CHAINED:
        for broken in breaks(connection, table):
            where = f"{table.name} {broken.what}" if broken.sequence is None else f"{table.name} {broken.sequence}"
            report.wrong(Check.CHAIN, where, f"{broken.what} {broken.expected}", f"{broken.what} {broken.found}")


def verify_covers(connection: Connection, report: Report) -> bool:
    """Checks that each reclassification can be read and lies inside what it covers; returns whether all do."""
    return _verify_words(connection, report) and _verify_inside(connection, report)


def verify_settled(connection: Connection, report: Report) -> None:
    """Checks that what is laid over the partition is what the evidence says; `verify_covers` must have held."""
    query = sa.select(EVIDENCE.c.allocation_id).distinct().order_by(EVIDENCE.c.allocation_id)
    said = list(connection.execute(query).scalars())
    known = set(
        connection.execute(sa.select(ALLOCATION.c.id).where(ALLOCATION.c.id.in_(query.order_by(None)))).scalars()
    )
    for name in said:
        report.count("evidence_allocations")
        if name not in known:
            report.wrong(Check.RECLASSIFICATION, f"evidence about allocation {name}", "an allocation", "none")
            continue
        for row in missing_rows(connection, AllocationId(name)):
            where = f"allocation {name}, device {row['device']} lane {row['lane']}"
            expected = f"{row['state']} over [{row['from_ms']}, {row['to_ms']})"
            report.wrong(Check.RECLASSIFICATION, where, f"{expected}, as the evidence says", "another")


def _verify_words(connection: Connection, report: Report) -> bool:
    """Returns whether every row could be read."""
    is_readable = True
    for table, read in _READERS:
        for row in rows_of(connection, table):
            report.count(f"{table.name}_rows")
            try:
                read(row)
            except (ValueError, LookupError, AssertionError, TypeError) as error:
                is_readable = False
                report.wrong(Check.CHAIN, f"{table.name} {row.sequence}", "a row that can be read", repr(error))
    return is_readable


def _verify_inside(connection: Connection, report: Report) -> bool:
    over, row = OCCUPANCY.c, RECLASSIFICATION.c
    fits = sa.and_(
        over.device == row.device,
        over.lane == row.lane,
        over.units == row.units,
        over.from_ms <= row.from_ms,
        over.to_ms >= row.to_ms,
        row.from_ms < row.to_ms,
    )
    joined = RECLASSIFICATION.outerjoin(OCCUPANCY, sa.and_(over.sequence == row.covers, fits))
    outside = sa.select(row.sequence).select_from(joined).where(over.sequence.is_(None)).order_by(row.sequence)
    found = list(connection.execute(outside).scalars())
    for sequence in found:
        report.wrong(
            Check.RECLASSIFICATION,
            f"reclassification {sequence}",
            "to lie inside the interval that it covers, with its units",
            "outside",
        )
    return not found
