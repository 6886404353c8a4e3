"""The occupancy ledger as core values, streamed: what metering reads to bill, to export and to verify.

Every listing is paged by an index, so memory stays flat however long the ledger is: rows in the order of the chain,
and rows of one device in the order of time. `ledger_allocations` has the allocations, with all that they ever held.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from scheduler.core.model import (
    AllocationId,
    Booking,
    DeviceId,
    GpuClass,
    NodeName,
    Phase,
)
from scheduler.core.occupancy import Cursor, Interval
from scheduler.store.codec import (
    CURSOR_COLUMNS,
    INTERVAL_COLUMNS,
    cursor_of,
    interval_of,
)
from scheduler.store.database import chunks
from scheduler.store.ledger_tables import DEVICE_CURSOR, OCCUPANCY, RECLASSIFICATION
from scheduler.store.overlays import known_now
from scheduler.store.tables import ALLOCATION, DEVICE

PAGE_ROWS = 5_000
END_OF_CHAIN = (1 << 63) - 1
"""After every sequence there can be."""

# Made once: building a statement costs as much as running it, and leaves cycles for the collector.
_CHAIN_PAGE = (
    sa.select(*INTERVAL_COLUMNS)
    .where(OCCUPANCY.c.sequence > sa.bindparam("after"), OCCUPANCY.c.sequence <= sa.bindparam("until"))
    .order_by(OCCUPANCY.c.sequence)
    .limit(sa.bindparam("most", type_=sa.Integer))
)
_BRIEF_PAGE = (
    sa.select(
        *(OCCUPANCY.c[name] for name in ("sequence", "device", "lane", "from_ms", "to_ms", "state", "units")),
        *(OCCUPANCY.c[name] for name in ("phase", "allocation_id")),
    )
    .where(
        OCCUPANCY.c.from_ms < sa.bindparam("until"),
        OCCUPANCY.c.to_ms > sa.bindparam("since"),
        sa.tuple_(OCCUPANCY.c.from_ms, OCCUPANCY.c.sequence)
        > sa.tuple_(sa.bindparam("after_ms"), sa.bindparam("after_sequence")),
    )
    .order_by(OCCUPANCY.c.from_ms, OCCUPANCY.c.sequence)
    .limit(sa.bindparam("most", type_=sa.Integer))
)
_LAST_OF_LANE = (
    sa.select(*INTERVAL_COLUMNS)
    .where(OCCUPANCY.c.device == sa.bindparam("of_device"), OCCUPANCY.c.lane == sa.bindparam("of_lane"))
    .order_by(OCCUPANCY.c.from_ms.desc())
    .limit(1)
)


@dataclass(frozen=True, slots=True)
class LedgerDevice:
    """A device that the ledger knows, there or gone."""

    id: DeviceId
    node: NodeName
    gpu_class: GpuClass
    units: int
    first_seen_ms: int
    removed_ms: int | None


@dataclass(frozen=True, slots=True)
class ClosedTotal:
    """All closed intervals of one device, added up: capacity units × milliseconds, the first start, the last end."""

    unit_ms: int
    first_ms: int
    last_ms: int


def chain_pages(connection: Connection, after: int = 0, until: int = END_OF_CHAIN) -> Iterator[list[Any]]:
    """Yields pages of `occupancy` in `(after, until]`, in chain order, as plain tuples; `codec.interval_of` reads one.

    Rows and not intervals, so that whoever verifies can go on after one that cannot be read; and plain, because
    millions of them are looked at.
    """
    while True:
        rows = plain_rows(connection, _CHAIN_PAGE, after=after, until=until, most=PAGE_ROWS)
        yield rows
        if len(rows) < PAGE_ROWS:
            return
        after = rows[-1][0]


def plain_rows(connection: Connection, query: sa.Select[Any], **values: object) -> list[Any]:
    """Returns a query's rows as the driver's tuples, in a third of the time. For columns of integers and text only."""
    result = connection.execute(query, values)
    assert result.cursor is not None, "a select has rows"
    rows = list(result.cursor.fetchall())
    result.close()
    return rows


def closed_totals(connection: Connection) -> dict[DeviceId, ClosedTotal]:
    """Returns the closed intervals of each device added up. Reads the whole ledger, inside the database."""
    row = OCCUPANCY.c
    query = sa.select(
        row.device,
        # PostgreSQL sums big integers to a numeric; as one it comes back whole, and int() takes it.
        sa.func.sum(row.units * (row.to_ms - row.from_ms)),
        sa.func.min(row.from_ms),
        sa.func.max(row.to_ms),
    ).group_by(row.device)
    return {
        DeviceId(device): ClosedTotal(int(unit_ms), first_ms, last_ms)
        for device, unit_ms, first_ms, last_ms in connection.execute(query)
    }


def ended_between(connection: Connection, from_ms: int, to_ms: int) -> tuple[int | None, int | None]:
    """Returns the least and greatest sequence of intervals that ended in `(from_ms, to_ms]`; None for none."""
    query = sa.select(sa.func.min(OCCUPANCY.c.sequence), sa.func.max(OCCUPANCY.c.sequence))
    row = connection.execute(query.where(OCCUPANCY.c.to_ms > from_ms, OCCUPANCY.c.to_ms <= to_ms)).one()
    return row[0], row[1]


def hash_at(connection: Connection, sequence: int) -> str | None:
    """Returns the hash of one row of the chain; None when there is none with this sequence."""
    found: str | None = connection.execute(sa.select(OCCUPANCY.c.hash).where(OCCUPANCY.c.sequence == sequence)).scalar()
    return found


def last_sequence(connection: Connection) -> int:
    """Returns the greatest sequence of the chain; 0 for none."""
    return connection.execute(sa.select(sa.func.max(OCCUPANCY.c.sequence))).scalar() or 0


def devices(connection: Connection) -> list[LedgerDevice]:
    """Returns every device that was ever seen, by id."""
    found = [
        LedgerDevice(
            DeviceId(row.id),
            NodeName(row.node),
            GpuClass(row.gpu_class),
            row.units,
            row.first_seen_ms,
            row.removed_ms,
        )
        for row in connection.execute(sa.select(DEVICE))
    ]
    return sorted(found, key=lambda device: device.id)


def devices_in_ledger(connection: Connection) -> set[DeviceId]:
    """Returns every device that an interval, closed or open, names."""
    closed, held = sa.select(OCCUPANCY.c.device), sa.select(DEVICE_CURSOR.c.device)
    return set(connection.execute(sa.union(closed, held)).scalars())


def orphans(connection: Connection) -> Iterator[tuple[int | None, DeviceId, AllocationId]]:
    """Yields sequence (None for an open interval), device and allocation of rows whose allocation does not exist."""
    for table in (OCCUPANCY, DEVICE_CURSOR):
        sequence = table.c.sequence if table is OCCUPANCY else sa.null().label("sequence")
        query = (
            sa.select(sequence, table.c.device, table.c.allocation_id)
            .select_from(table.outerjoin(ALLOCATION, ALLOCATION.c.id == table.c.allocation_id))
            .where(table.c.allocation_id.is_not(None), ALLOCATION.c.id.is_(None))
            .limit(PAGE_ROWS)
        )
        for row in connection.execute(query):
            yield row.sequence, row.device, row.allocation_id


BriefInterval = tuple[int, str, int, int, int, str, int, str | None, str | None]
"""Sequence (0 while it is open), device, lane, start, end, state, units, phase and allocation of an interval."""


Starts = tuple[int, int]
"""When intervals begin: at the first or later, before the second."""
ANY_START: Starts = (-1, END_OF_CHAIN)


def known_between(
    connection: Connection, from_ms: int, to_ms: int, starts: Starts = ANY_START
) -> Iterator[BriefInterval]:
    """Yields what is known now of the closed past in `[from_ms, to_ms)`, by the starts of the intervals as written.

    Of intervals that were written to begin in `starts` only. Pieces of the intervals that overlap it, whole, some
    beyond it. Those of a lane come in the order of time. Memory grows with what was reclassified there.
    """
    laid: set[int] = set()
    if has_reclassifications(connection):
        covers = sa.select(RECLASSIFICATION.c.covers).where(
            RECLASSIFICATION.c.from_ms < to_ms, RECLASSIFICATION.c.to_ms > from_ms
        )
        laid = set(connection.execute(covers).scalars())
    for page in _brief_pages(connection, from_ms, to_ms, starts):
        covered = laid.intersection(row[0] for row in page) if laid else None
        if not covered:
            yield from page
            continue
        pieces = _known_pieces(connection, sorted(covered))
        for row in page:
            if row[0] in covered:
                yield from pieces[row[0]]
            else:
                yield row


def _brief_pages(connection: Connection, from_ms: int, to_ms: int, starts: Starts) -> Iterator[list[BriefInterval]]:
    after = (starts[0] - 1, END_OF_CHAIN)
    while True:
        page = plain_rows(
            connection,
            _BRIEF_PAGE,
            since=from_ms,
            until=min(to_ms, starts[1]),
            after_ms=after[0],
            after_sequence=after[1],
            most=PAGE_ROWS,
        )
        yield page
        if len(page) < PAGE_ROWS:
            return
        after = page[-1][3], page[-1][0]


def _known_pieces(connection: Connection, sequences: Sequence[int]) -> dict[int, list[BriefInterval]]:
    pieces: dict[int, list[BriefInterval]] = {sequence: [] for sequence in sequences}
    for part in chunks(sequences):
        written = connection.execute(sa.select(*INTERVAL_COLUMNS).where(OCCUPANCY.c.sequence.in_(part)))
        for piece in known_now(connection, map(interval_of, written.all())):
            pieces[piece.sequence].append(_brief(piece.sequence, piece, piece.from_ms, piece.to_ms))
    return pieces


def brief_cursors(connection: Connection, until_ms: int) -> Iterator[BriefInterval]:
    """Yields the open intervals that began before an instant, as if they ended there, by device and lane."""
    for cursor in cursors(connection):
        if cursor.since_ms < until_ms:
            yield _brief(0, cursor, cursor.since_ms, until_ms)


def _brief(sequence: int, row: Interval | Cursor, from_ms: int, to_ms: int) -> BriefInterval:
    what = row.occupant
    phase = None if what.phase is None else what.phase.value
    return sequence, row.device, row.lane, from_ms, to_ms, what.state.value, what.units, phase, what.allocation


def intervals_of_device(connection: Connection, device: DeviceId, from_ms: int, to_ms: int) -> Iterator[Interval]:
    """Yields the intervals of a device that overlap `[from_ms, to_ms)` as written, by start and lane."""
    query = sa.select(*INTERVAL_COLUMNS).where(
        OCCUPANCY.c.device == device, OCCUPANCY.c.from_ms < to_ms, OCCUPANCY.c.to_ms > from_ms
    )
    query = query.order_by(OCCUPANCY.c.from_ms, OCCUPANCY.c.lane).execution_options(yield_per=PAGE_ROWS)
    yield from map(interval_of, connection.execute(query))


def cursors(connection: Connection, device: DeviceId | None = None) -> list[Cursor]:
    """Returns the open intervals, of one device or of all, by device and lane."""
    query = sa.select(*CURSOR_COLUMNS)
    if device is not None:
        query = query.where(DEVICE_CURSOR.c.device == device)
    return sorted(map(cursor_of, connection.execute(query)), key=lambda cursor: (cursor.device, cursor.lane))


def cursor_rows(connection: Connection) -> list[Row[Any]]:
    """Returns the rows of `device_cursor` as they stand; `codec.cursor_of` reads one."""
    query = sa.select(*CURSOR_COLUMNS).order_by(DEVICE_CURSOR.c.device, DEVICE_CURSOR.c.lane)
    return list(connection.execute(query))


def last_of_lane(connection: Connection, device: DeviceId, lane: int) -> Interval | None:
    """Returns the last closed interval of a lane."""
    row = connection.execute(_LAST_OF_LANE, {"of_device": device, "of_lane": lane}).first()
    return interval_of(row) if row else None


def life_start_ms(connection: Connection, device: DeviceId) -> int:
    """Returns when the ledger's knowledge of a device begins; 0 for a device without any interval."""
    first = sa.select(sa.func.min(OCCUPANCY.c.from_ms)).where(OCCUPANCY.c.device == device, OCCUPANCY.c.lane == 0)
    since = sa.select(sa.func.min(DEVICE_CURSOR.c.since_ms)).where(DEVICE_CURSOR.c.device == device)
    closed_ms, open_ms = connection.execute(first).scalar(), connection.execute(since).scalar()
    return closed_ms if closed_ms is not None else (open_ms or 0)


def has_run(connection: Connection, allocation: AllocationId, before_ms: int) -> bool:
    """Says whether an allocation was in phase running at some time before an instant."""
    query = sa.select(OCCUPANCY.c.sequence).where(
        OCCUPANCY.c.allocation_id == allocation,
        OCCUPANCY.c.phase == Phase.RUNNING.value,
        OCCUPANCY.c.to_ms <= before_ms,
    )
    return connection.execute(query.limit(1)).first() is not None


def held_terms(
    connection: Connection, phases: Sequence[Phase], from_ms: int, to_ms: int
) -> set[tuple[GpuClass, Booking]]:
    """Returns the GPU classes and bookings that were held in one of the phases at some time in `[from_ms, to_ms)`."""
    words = [phase.value for phase in phases]
    closed = sa.select(OCCUPANCY.c.gpu_class, OCCUPANCY.c.booking).where(
        OCCUPANCY.c.from_ms < to_ms, OCCUPANCY.c.to_ms > from_ms, OCCUPANCY.c.phase.in_(words)
    )
    held = sa.select(DEVICE_CURSOR.c.gpu_class, DEVICE_CURSOR.c.booking).where(
        DEVICE_CURSOR.c.since_ms < to_ms, DEVICE_CURSOR.c.phase.in_(words)
    )
    return {(GpuClass(row.gpu_class), Booking(row.booking)) for row in connection.execute(sa.union(closed, held))}


def has_reclassifications(connection: Connection) -> bool:
    """Says whether anything is laid over the partition."""
    return connection.execute(sa.select(RECLASSIFICATION.c.sequence).limit(1)).first() is not None
