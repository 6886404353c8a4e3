"""Reads the partition as it is known now: closed intervals with their reclassifications laid over them."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from scheduler.core.ending import EndEvidence, EvidenceKind
from scheduler.core.model import AllocationId, DeviceId
from scheduler.core.occupancy import Evidence, Interval, OccupancyState
from scheduler.core.overlay import Reclassification, laid_over
from scheduler.store.codec import INTERVAL_COLUMNS, interval_of, occupant_of, occupant_values
from scheduler.store.database import chunks
from scheduler.store.ledger_tables import EVIDENCE, OCCUPANCY, RECLASSIFICATION

_OCCUPANT = ("state", "units", "cause", "phase", "holder", "job_id", "allocation_id", "segment", "booking")
_COLUMNS = tuple(
    RECLASSIFICATION.c[name]
    for name in ("sequence", "covers", "device", "lane", "from_ms", "to_ms", "evidence", *_OCCUPANT, "gpu_eq_units")
)
_PAGE_ROWS = 5_000


def over(connection: Connection, sequences: Sequence[int]) -> dict[int, list[Reclassification]]:
    """Returns what is laid over these intervals, by their sequence and in order; intervals without any are left out."""
    found: dict[int, list[Reclassification]] = {}
    for part in chunks(sequences):
        query = sa.select(*_COLUMNS).where(RECLASSIFICATION.c.covers.in_(part)).order_by(RECLASSIFICATION.c.sequence)
        for row in connection.execute(query):
            found.setdefault(row.covers, []).append(reclassification_of(row))
    return found


def reclassification_of(row: Any) -> Reclassification:
    """Returns a row of `reclassification` as a core value."""
    occupant = occupant_of([getattr(row, name) for name in (*_OCCUPANT, "gpu_eq_units")])
    device = DeviceId(row.device)
    return Reclassification(
        row.sequence, row.covers, device, row.lane, row.from_ms, row.to_ms, occupant, Evidence(row.evidence)
    )


def known_now(connection: Connection, intervals: Iterable[Interval]) -> Iterator[Interval]:
    """Yields intervals with what is laid over them, in the same order; pieces of one follow each other in time."""
    page: list[Interval] = []
    for interval in intervals:
        page.append(interval)
        if len(page) == _PAGE_ROWS:
            yield from _known(connection, page)
            page = []
    yield from _known(connection, page)


def _known(connection: Connection, page: Sequence[Interval]) -> Iterator[Interval]:
    laid = over(connection, [interval.sequence for interval in page])
    for interval in page:
        rows = laid.get(interval.sequence)
        if rows is None:
            yield interval
        else:
            yield from laid_over(interval, rows)


def held_now(connection: Connection, ids: Sequence[str], closed: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Returns each allocation's rows as known now: its own with what is laid over them, and what it was given later.

    `closed` has the rows of each allocation as they were written, as tuples in the order of INTERVAL_COLUMNS.
    """
    own = [row[0] for rows in closed.values() for row in rows]
    laid = over(connection, own) if own else {}
    given = _given(connection, ids, set(own))
    if not laid and not given:
        return closed
    known: dict[str, list[Any]] = {name: [] for name in ids}
    for name, rows in closed.items():
        for row in rows:
            if row[0] in laid:
                _put(known, laid_over(interval_of(row), laid[row[0]]))
            else:
                known[name].append(row)
    for interval, rows in given:
        _put(known, laid_over(interval, rows))
    return known


def _given(connection: Connection, ids: Sequence[str], own: set[int]) -> list[tuple[Interval, list[Reclassification]]]:
    """Returns intervals of nobody that were given to one of the allocations later."""
    wanted = sa.select(RECLASSIFICATION.c.covers).where(RECLASSIFICATION.c.allocation_id.in_(ids)).distinct()
    others = [sequence for sequence in connection.execute(wanted).scalars() if sequence not in own]
    found: list[tuple[Interval, list[Reclassification]]] = []
    for part in chunks(sorted(others)):
        laid = over(connection, part)
        rows = connection.execute(sa.select(*INTERVAL_COLUMNS).where(OCCUPANCY.c.sequence.in_(part)))
        found += [(interval_of(row), laid[row.sequence]) for row in rows]
    return found


def _put(known: dict[str, list[Any]], pieces: Iterable[Interval]) -> None:
    for piece in pieces:
        allocation = piece.occupant.allocation
        if allocation is not None and allocation in known:
            known[allocation].append(_row_of(piece))


def _row_of(piece: Interval) -> tuple[Any, ...]:
    names = (piece.sequence, piece.device, piece.lane, piece.gpu_class, piece.from_ms, piece.to_ms)
    what = occupant_values(piece.occupant).values()
    rest = (piece.evidence.value, piece.recorded_ms, piece.idempotency_key, piece.previous_hash, piece.hash)
    return (*names, *what, *rest)


def unknown_stretches(connection: Connection, from_ms: int, to_ms: int) -> Iterator[Interval]:
    """Yields what is unknown still in `[from_ms, to_ms)`, cut to it, by device, time and lane."""
    row = OCCUPANCY.c
    later = sa.select(RECLASSIFICATION.c.covers).where(RECLASSIFICATION.c.state == OccupancyState.UNKNOWN.value)
    query = (
        sa.select(*INTERVAL_COLUMNS)
        .where(row.from_ms < to_ms, row.to_ms > from_ms)
        .where(sa.or_(row.state == OccupancyState.UNKNOWN.value, row.sequence.in_(later)))
        .order_by(row.device, row.from_ms, row.lane)
    )
    for piece in known_now(connection, map(interval_of, connection.execute(query).all())):
        is_inside = piece.from_ms < to_ms and piece.to_ms > from_ms
        if piece.occupant.state is OccupancyState.UNKNOWN and is_inside:
            yield piece


def evidence_of(connection: Connection, ids: Sequence[str]) -> dict[AllocationId, list[EndEvidence]]:
    """Returns what the inbox holds of these allocations, in the order in which it came."""
    found: dict[AllocationId, list[EndEvidence]] = {}
    for part in chunks(ids):
        query = sa.select(EVIDENCE).where(EVIDENCE.c.allocation_id.in_(part)).order_by(EVIDENCE.c.sequence)
        for row in connection.execute(query):
            said = evidence_row(row)
            found.setdefault(said.allocation, []).append(said)
    return found


def evidence_row(row: Any) -> EndEvidence:
    """Returns a row of `evidence` as a core value."""
    kind, source = EvidenceKind(row.kind), Evidence(row.source)
    return EndEvidence(row.sequence, AllocationId(row.allocation_id), kind, row.at_ms, source, row.end_reason)
