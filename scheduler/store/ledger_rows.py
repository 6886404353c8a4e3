"""The occupancy ledger as core values, streamed: what metering reads to bill, to export and to verify.

Every listing is paged by an index, so memory stays flat however long the ledger is: rows in the order of the chain,
rows of one device in the order of time, and allocations in the order of their ids with all that they ever held.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from scheduler.core.ending import COMPLETED, RecordedEnd, settled_end
from scheduler.core.model import (
    AccountId,
    AllocationId,
    Booking,
    DeviceId,
    EndReason,
    GpuClass,
    Grant,
    JobId,
    NodeName,
    Phase,
    UserName,
    tenant_of,
)
from scheduler.core.occupancy import Cursor, Interval
from scheduler.store.codec import (
    CURSOR_COLUMNS,
    INTERVAL_COLUMNS,
    cursor_of,
    grants_of_text,
    interval_of,
    labels_of_text,
)
from scheduler.store.database import chunks
from scheduler.store.incidents import incident_ids
from scheduler.store.ledger_tables import DEVICE_CURSOR, OCCUPANCY, RECLASSIFICATION
from scheduler.store.overlays import evidence_of, held_now, known_now
from scheduler.store.tables import ALLOCATION, DEVICE, JOB

PAGE_ROWS = 5_000
END_OF_CHAIN = (1 << 63) - 1
"""After every sequence there can be."""
_ALLOCATION_PLACE = [column.name for column in INTERVAL_COLUMNS].index("allocation_id")
_TO_PLACE = [column.name for column in INTERVAL_COLUMNS].index("to_ms")
PAGE_ALLOCATIONS = 256
"""Allocations read at once, with all their rows: some thousand rows even where gangs are large."""

IdRange = tuple[str, str | None]
"""Ids of allocations after the first and up to the second; None: to the end."""
ALL_IDS: IdRange = ("", None)

# Made once: building a statement costs as much as running it, and leaves cycles for the collector.
_IDS: sa.BindParameter[Any] = sa.bindparam("ids", expanding=True)
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
_NOT_HELD = frozenset(("recorded_ms", "idempotency_key", "previous_hash", "hash"))
"""What of a row says nothing about who held what: half of its bytes."""
_HELD_COLUMNS = tuple(
    sa.literal_column("0" if column.name == "recorded_ms" else "''").label(column.name)
    if column.name in _NOT_HELD
    else column
    for column in INTERVAL_COLUMNS
)
_HELD_BY = sa.select(*_HELD_COLUMNS).where(OCCUPANCY.c.allocation_id.in_(_IDS))
_HELD_NOW_BY = sa.select(*CURSOR_COLUMNS).where(DEVICE_CURSOR.c.allocation_id.in_(_IDS))
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


@dataclass(frozen=True, slots=True)
class LedgerAllocation:
    """An allocation with the names of what it was for, and everything that it holds or ever held."""

    id: AllocationId
    job: JobId
    job_name: str | None  # None when the job's row is gone
    job_label: str  # as people type it: `4711`, `4711_3`
    labels: Mapping[str, str]
    account: AccountId
    user: UserName
    gpu_class: GpuClass
    booking: Booking
    phase: Phase
    segment: int
    grants: tuple[Grant, ...]
    decided_ms: int
    started_ms: int | None
    ended_ms: int | None
    end_reason: EndReason | None
    rows: tuple[Any, ...]
    """Its closed intervals as plain tuples in the order of `codec.INTERVAL_COLUMNS`; without keys and hashes."""
    cursors: tuple[Cursor, ...]
    checkpointed_ms: int | None = None
    """Until when its job last said that its work is saved."""
    surplus_of: AllocationId | None = None
    """The gang whose surplus nodes these are; None for a gang."""
    incident: str | None = None
    """The incident of a machine that ended it, `reason/node/time`; None where none is on record."""

    @property
    def intervals(self) -> tuple[Interval, ...]:
        """Its closed intervals, made anew each time. Raises what reading a row raises."""
        return tuple(map(interval_of, self.rows))

    @property
    def devices(self) -> frozenset[DeviceId]:
        """The devices that it was granted."""
        return frozenset(device for grant in self.grants for device in grant.devices)


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


_ELEMENT = JOB.c.array_id.cast(sa.Text) + "_" + JOB.c.array_index.cast(sa.Text)
"""What an element of an array is called; NULL for any other job."""


# JSON is read as text: many allocations share few labels, and the same GPUs are granted again and again.
_ALLOCATIONS: sa.Select[Any] = sa.select(
    *(sa.cast(column, sa.Text).label("grants") if column.name == "grants" else column for column in ALLOCATION.c),
    JOB.c.name.label("job_name"),
    sa.cast(JOB.c.labels, sa.Text).label("job_labels"),
    _ELEMENT.label("element"),
).select_from(ALLOCATION.outerjoin(JOB, JOB.c.id == ALLOCATION.c.job_id))


def allocations(
    connection: Connection,
    from_ms: int,
    to_ms: int,
    tenant: AccountId | None = None,
    *,
    ids: IdRange = ALL_IDS,
    as_written: bool = False,
) -> Iterator[LedgerAllocation]:
    """Yields the allocations that lived in `[from_ms, to_ms)`, by id, each with all its rows, also those outside.

    Rows, end and reason are as known now, with reclassifications laid over them, unless they are wanted as written.
    """
    last, until = ids
    while True:
        page = _allocation_page(connection, (from_ms, to_ms), tenant, (last, until))
        yield from _with_rows(connection, page, as_written=as_written)
        if len(page) < PAGE_ALLOCATIONS:
            return
        last = page[-1].id


def id_ranges(
    connection: Connection, from_ms: int, to_ms: int, tenant: AccountId | None, size: int
) -> Iterator[IdRange]:
    """Yields ranges of ids, in order, that have all that `allocations` yields: at most `size` each, and one range."""
    last = ""
    while True:
        query = sa.select(ALLOCATION.c.id).where(*_wanted((from_ms, to_ms), tenant, (last, None)))
        found = connection.execute(query.order_by(ALLOCATION.c.id).offset(size - 1).limit(1)).scalar()
        yield last, found
        if found is None:
            return
        last = found


def allocations_by_id(connection: Connection, ids: Sequence[AllocationId]) -> list[LedgerAllocation]:
    """Returns allocations by id, each with all its rows as known now; ids that mean none are left out."""
    found: list[LedgerAllocation] = []
    for start in range(0, len(ids), PAGE_ALLOCATIONS):
        part = ids[start : start + PAGE_ALLOCATIONS]
        page = connection.execute(_ALLOCATIONS.where(ALLOCATION.c.id.in_(part)).order_by(ALLOCATION.c.id)).all()
        found += _with_rows(connection, page, as_written=False)
    return found


def tenants_between(connection: Connection, from_ms: int, to_ms: int) -> set[AccountId]:
    """Returns the tenants whose allocations lived in `[from_ms, to_ms)`."""
    query = sa.select(ALLOCATION.c.account).distinct().where(*_lived(from_ms, to_ms))
    return {tenant_of(AccountId(account)) for account in connection.execute(query).scalars()}


def _lived(from_ms: int, to_ms: int) -> tuple[sa.ColumnElement[bool], ...]:
    # An allocation may have been given a part of the range after its end was written.
    given = sa.select(RECLASSIFICATION.c.allocation_id).where(
        RECLASSIFICATION.c.to_ms > from_ms, RECLASSIFICATION.c.allocation_id.is_not(None)
    )
    ended = sa.or_(ALLOCATION.c.ended_ms.is_(None), ALLOCATION.c.ended_ms > from_ms, ALLOCATION.c.id.in_(given))
    return ALLOCATION.c.decided_ms < to_ms, ended


def _wanted(span: tuple[int, int], tenant: AccountId | None, ids: IdRange) -> Iterator[sa.ColumnElement[bool]]:
    after, until = ids
    yield ALLOCATION.c.id > after
    if until is not None:
        yield ALLOCATION.c.id <= until
    yield from _lived(*span)
    if tenant is not None:
        inside = sa.func.substr(ALLOCATION.c.account, 1, len(tenant) + 1) == f"{tenant}/"
        yield sa.or_(ALLOCATION.c.account == tenant, inside)


def _allocation_page(
    connection: Connection, span: tuple[int, int], tenant: AccountId | None, ids: IdRange
) -> Sequence[Row[Any]]:
    query = _ALLOCATIONS.where(*_wanted(span, tenant, ids))
    return connection.execute(query.order_by(ALLOCATION.c.id).limit(PAGE_ALLOCATIONS)).all()


def _with_rows(connection: Connection, page: Sequence[Row[Any]], *, as_written: bool) -> Iterator[LedgerAllocation]:
    ids = [row.id for row in page]
    closed: dict[str, list[Any]] = {name: [] for name in ids}
    for held_row in plain_rows(connection, _HELD_BY, ids=ids):
        closed[held_row[_ALLOCATION_PLACE]].append(held_row)
    hit = incident_ids(connection, ids)
    settled: dict[str, tuple[int | None, EndReason | None]] = {}
    if not as_written and has_reclassifications(connection):
        closed, settled = _as_known(connection, page, closed)
    held: dict[str, list[Cursor]] = {name: [] for name in ids}
    for row in connection.execute(_HELD_NOW_BY, {"ids": ids}):
        held[row.allocation_id].append(cursor_of(row))
    for row in page:
        written = row.ended_ms, EndReason(row.end_reason) if row.end_reason else None
        ended_ms, end_reason = settled.get(row.id, written) if settled else written
        yield LedgerAllocation(
            id=AllocationId(row.id),
            job=JobId(row.job_id),
            job_name=row.job_name,
            job_label=row.element or str(row.job_id),
            labels=labels_of_text(row.job_labels) if row.job_labels else {},
            account=AccountId(row.account),
            user=UserName(row.user),
            gpu_class=GpuClass(row.gpu_class),
            booking=Booking(row.booking),
            phase=Phase(row.phase),
            segment=row.segment,
            grants=grants_of_text(row.grants),
            decided_ms=row.decided_ms,
            started_ms=row.started_ms,
            ended_ms=ended_ms,
            end_reason=end_reason,
            rows=tuple(closed[row.id]),
            cursors=tuple(held[row.id]),
            checkpointed_ms=row.checkpointed_ms,
            surplus_of=None if row.surplus_of is None else AllocationId(row.surplus_of),
            incident=hit.get(AllocationId(row.id)),
        )


def has_reclassifications(connection: Connection) -> bool:
    """Says whether anything is laid over the partition."""
    return connection.execute(sa.select(RECLASSIFICATION.c.sequence).limit(1)).first() is not None


def _as_known(
    connection: Connection, page: Sequence[Row[Any]], closed: dict[str, list[Any]]
) -> tuple[dict[str, list[Any]], dict[str, tuple[int | None, EndReason | None]]]:
    """Returns the rows of a page as known now, and when and why the allocations ended of which more was said."""
    known = held_now(connection, [row.id for row in page], closed)
    said = evidence_of(connection, [row.id for row in page])
    settled: dict[str, tuple[int | None, EndReason | None]] = {}
    for row in page:
        if row.ended_ms is None:
            continue
        reason = EndReason(row.end_reason) if row.end_reason else None
        # Where it ended stands in its rows; by which word, in the inbox.
        ends = [held[_TO_PLACE] for held in known[row.id]]
        ended_ms = max(ends, default=row.ended_ms)
        if row.id in said:
            word = settled_end(RecordedEnd(0, row.ended_ms, ended_ms, reason), said[AllocationId(row.id)]).reason
            reason = None if word == COMPLETED else EndReason(word)
        settled[row.id] = ended_ms, reason
    return known, settled
