"""Allocations as the ledger has them, streamed: each with the names of what it was for and all that it ever held.

They are read by pages of their ids, with the rows of a whole page at once, so memory stays flat however many there
are. Statements are made once and rows stay tuples: millions of rows of a quarter of a million allocations are a month
of a large centre, and each is read to bill it and to prove it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

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
from scheduler.store.incidents import incident_ids
from scheduler.store.ledger_rows import has_reclassifications, plain_rows
from scheduler.store.ledger_tables import DEVICE_CURSOR, OCCUPANCY, RECLASSIFICATION
from scheduler.store.overlays import evidence_of, held_now
from scheduler.store.tables import ALLOCATION, JOB

PAGE_ALLOCATIONS = 256
"""Allocations read at once, with all their rows: some thousand rows even where gangs are large."""
_ALLOCATION_PLACE = [column.name for column in INTERVAL_COLUMNS].index("allocation_id")
_TO_PLACE = [column.name for column in INTERVAL_COLUMNS].index("to_ms")

IdRange = tuple[str, str | None]
"""Ids of allocations after the first and up to the second; None: to the end."""
ALL_IDS: IdRange = ("", None)

# Made once: building a statement costs as much as running it, and leaves cycles for the collector.
_IDS: sa.BindParameter[Any] = sa.bindparam("ids", expanding=True)
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
_HOLDING_NOW = sa.select(DEVICE_CURSOR.c.allocation_id).where(DEVICE_CURSOR.c.allocation_id.is_not(None)).distinct()
_ELEMENT = JOB.c.array_id.cast(sa.Text) + "_" + JOB.c.array_index.cast(sa.Text)
"""What an element of an array is called; NULL for any other job."""


class _Written(NamedTuple):
    """A row of `allocation` with its job's names."""

    id: str
    job_id: int
    account: str
    user: str
    gpu_class: str
    booking: str
    phase: str
    segment: int
    grants: str
    decided_ms: int
    started_ms: int | None
    ended_ms: int | None
    end_reason: str | None
    checkpointed_ms: int | None
    surplus_of: str | None
    job_name: str | None
    job_labels: str | None
    element: str | None


# JSON is read as text: many allocations share few labels, and the same GPUs are granted again and again.
_OF_JOB = (JOB.c.name.label("job_name"), sa.cast(JOB.c.labels, sa.Text).label("job_labels"), _ELEMENT.label("element"))
_ALLOCATIONS: sa.Select[Any] = sa.select(
    *(
        sa.cast(ALLOCATION.c[name], sa.Text).label(name) if name == "grants" else ALLOCATION.c[name]
        for name in _Written._fields[: -len(_OF_JOB)]
    ),
    *_OF_JOB,
).select_from(ALLOCATION.outerjoin(JOB, JOB.c.id == ALLOCATION.c.job_id))
_BY_IDS = _ALLOCATIONS.where(ALLOCATION.c.id.in_(_IDS)).order_by(ALLOCATION.c.id)


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
    values = {"since_ms": from_ms, "until_ms": to_ms, "until": ids[1], "most": PAGE_ALLOCATIONS} | _of_tenant(tenant)
    query = _listed(has_until=ids[1] is not None, has_tenant=tenant is not None)
    holding, is_settled = _holding_now(connection), not as_written and has_reclassifications(connection)
    last = ids[0]
    while True:
        page = list(map(_Written._make, plain_rows(connection, query, **values, after=last)))
        yield from _with_rows(connection, page, holding, is_settled=is_settled)
        if len(page) < PAGE_ALLOCATIONS:
            return
        last = page[-1].id


def id_ranges(
    connection: Connection, from_ms: int, to_ms: int, tenant: AccountId | None, size: int
) -> Iterator[IdRange]:
    """Yields ranges of ids, in order, that have all that `allocations` yields: at most `size` each, and one range."""
    values = {"since_ms": from_ms, "until_ms": to_ms, "skipped": size - 1} | _of_tenant(tenant)
    query = _size_on(has_tenant=tenant is not None)
    last = ""
    while True:
        found = connection.execute(query, {**values, "after": last}).scalar()
        yield last, found
        if found is None:
            return
        last = found


def allocations_by_id(connection: Connection, ids: Sequence[AllocationId]) -> list[LedgerAllocation]:
    """Returns allocations by id, each with all its rows as known now; ids that mean none are left out."""
    found: list[LedgerAllocation] = []
    if not ids:
        return found
    holding, is_settled = _holding_now(connection), has_reclassifications(connection)
    for start in range(0, len(ids), PAGE_ALLOCATIONS):
        part = ids[start : start + PAGE_ALLOCATIONS]
        page = list(map(_Written._make, plain_rows(connection, _BY_IDS, ids=part)))
        found += _with_rows(connection, page, holding, is_settled=is_settled)
    return found


def tenants_between(connection: Connection, from_ms: int, to_ms: int) -> set[AccountId]:
    """Returns the tenants whose allocations lived in `[from_ms, to_ms)`."""
    query = sa.select(ALLOCATION.c.account).distinct().where(*_lived())
    accounts = connection.execute(query, {"since_ms": from_ms, "until_ms": to_ms}).scalars()
    return {tenant_of(AccountId(account)) for account in accounts}


def _lived() -> tuple[sa.ColumnElement[bool], ...]:
    since: sa.BindParameter[int] = sa.bindparam("since_ms", type_=sa.BigInteger)
    # An allocation may have been given a part of the range after its end was written.
    given = sa.select(RECLASSIFICATION.c.allocation_id).where(
        RECLASSIFICATION.c.to_ms > since, RECLASSIFICATION.c.allocation_id.is_not(None)
    )
    ended = sa.or_(ALLOCATION.c.ended_ms.is_(None), ALLOCATION.c.ended_ms > since, ALLOCATION.c.id.in_(given))
    return ALLOCATION.c.decided_ms < sa.bindparam("until_ms", type_=sa.BigInteger), ended


def _of_tenant(tenant: AccountId | None) -> dict[str, object]:
    """Returns what `_wanted` asks of accounts: the tenant's own, and those inside of it."""
    return {} if tenant is None else {"tenant": tenant, "inside": f"{tenant}/", "letters": len(tenant) + 1}


def _wanted(*, has_tenant: bool) -> Iterator[sa.ColumnElement[bool]]:
    yield ALLOCATION.c.id > sa.bindparam("after", type_=sa.String)
    yield from _lived()
    if has_tenant:
        beginning = sa.func.substr(ALLOCATION.c.account, 1, sa.bindparam("letters", type_=sa.Integer))
        inside = beginning == sa.bindparam("inside", type_=sa.String)
        yield sa.or_(ALLOCATION.c.account == sa.bindparam("tenant"), inside)


@cache
def _listed(*, has_until: bool, has_tenant: bool) -> sa.Select[Any]:
    query = _ALLOCATIONS.where(*_wanted(has_tenant=has_tenant))
    if has_until:
        query = query.where(ALLOCATION.c.id <= sa.bindparam("until", type_=sa.String))
    return query.order_by(ALLOCATION.c.id).limit(sa.bindparam("most", type_=sa.Integer))


@cache
def _size_on(*, has_tenant: bool) -> sa.Select[Any]:
    """Returns the query of the id that is so many after another one."""
    query = sa.select(ALLOCATION.c.id).where(*_wanted(has_tenant=has_tenant)).order_by(ALLOCATION.c.id)
    return query.offset(sa.bindparam("skipped", type_=sa.Integer)).limit(1)


def _holding_now(connection: Connection) -> frozenset[str]:
    """Returns the allocations that hold anything now: as many as devices at most, and few of those that are read."""
    return frozenset(connection.execute(_HOLDING_NOW).scalars())


def _with_rows(
    connection: Connection, page: Sequence[_Written], holding: frozenset[str], *, is_settled: bool
) -> Iterator[LedgerAllocation]:
    if not page:
        return
    ids = [row.id for row in page]
    closed: dict[str, list[Any]] = {name: [] for name in ids}
    # Rows come by the index of allocations, mostly one allocation's together: a look-up for all of those.
    for name, rows in groupby(plain_rows(connection, _HELD_BY, ids=ids), itemgetter(_ALLOCATION_PLACE)):
        closed[name].extend(rows)
    hit = incident_ids(connection, ids)
    settled: dict[str, tuple[int | None, EndReason | None]] = {}
    if is_settled:
        closed, settled = _as_known(connection, page, closed)
    held: dict[str, list[Cursor]] = {}
    now = [name for name in ids if name in holding]
    for row in connection.execute(_HELD_NOW_BY, {"ids": now}) if now else ():
        held.setdefault(row.allocation_id, []).append(cursor_of(row))
    for written in page:
        yield _allocation_of(written, closed[written.id], held, settled, hit)


def _allocation_of(
    row: _Written,
    rows: Sequence[Any],
    held: Mapping[str, Sequence[Cursor]],
    settled: Mapping[str, tuple[int | None, EndReason | None]],
    hit: Mapping[AllocationId, str],
) -> LedgerAllocation:
    id_, job_id, account, user, gpu_class, booking, phase, segment, grants, decided_ms, started_ms = row[:11]
    written_ms, word, checkpointed_ms, surplus_of, job_name, job_labels, element = row[11:]
    ended_ms, end_reason = settled.get(id_) or (written_ms, EndReason(word) if word else None)
    allocation = AllocationId(id_)
    return LedgerAllocation(
        allocation,
        JobId(job_id),
        job_name,
        element or str(job_id),
        labels_of_text(job_labels) if job_labels else {},
        AccountId(account),
        UserName(user),
        GpuClass(gpu_class),
        Booking(booking),
        Phase(phase),
        segment,
        grants_of_text(grants),
        decided_ms,
        started_ms,
        ended_ms,
        end_reason,
        tuple(rows),
        tuple(held.get(id_, ())),
        checkpointed_ms,
        None if surplus_of is None else AllocationId(surplus_of),
        hit.get(allocation),
    )


def _as_known(
    connection: Connection, page: Sequence[_Written], closed: dict[str, list[Any]]
) -> tuple[dict[str, list[Any]], dict[str, tuple[int | None, EndReason | None]]]:
    """Returns the rows of a page as known now, and when and why the allocations ended of which more was said."""
    ids = [row.id for row in page]
    known, said = held_now(connection, ids, closed), evidence_of(connection, ids)
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
