"""Answers about jobs, for people and metrics: lists, single jobs, their starts and history, counts.

Each function takes the connection of a `Database.read()` transaction. Lists are filtered and paged by the database;
pages go by job id, so a page stays right while jobs come and go. Who may see what is decided by the caller.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from scheduler.core.model import (
    AccountId,
    Allocation,
    AllocationId,
    Booking,
    EndReason,
    GpuClass,
    Grant,
    Job,
    JobId,
    JobState,
    PoolName,
    UserName,
)
from scheduler.executor import LaunchSpec
from scheduler.store.codec import (
    ALLOCATION_COLUMNS,
    JOB_COLUMNS,
    Row,
    allocation_of,
    grants_of,
    job_of,
    launch_of,
)
from scheduler.store.history_tables import JOB_EVENT
from scheduler.store.tables import ALLOCATION, JOB

JobKey = Literal["account", "tenant", "user", "state", "reason", "gpu_class"]
"""What jobs may be counted by."""

_SURPLUS = ALLOCATION.alias("surplus")
_IS_ITS_SURPLUS = sa.and_(
    _SURPLUS.c.surplus_of == JOB.c.allocation_id,
    # What was taken from a gang while it ran is its own no more.
    sa.or_(_SURPLUS.c.ended_ms.is_(None), _SURPLUS.c.ended_ms == ALLOCATION.c.ended_ms),
)
_RECORD_COLUMNS = (
    *(JOB.c.name, JOB.c.tenant, JOB.c.gpu_class, JOB.c.reason, JOB.c.detail, JOB.c.exit_code, JOB.c.started_ms),
    *(JOB.c.ended_ms, JOB.c.launch, JOB.c.labels, JOB.c.allocation_id, ALLOCATION.c.booking, ALLOCATION.c.grants),
    _SURPLUS.c.grants.label("surplus_grants"),
)
_SELECT_RECORD = (
    sa.select(*JOB_COLUMNS, *_RECORD_COLUMNS)
    .outerjoin(ALLOCATION, ALLOCATION.c.id == JOB.c.allocation_id)
    .outerjoin(_SURPLUS, _IS_ITS_SURPLUS)
)


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A job with all that is stored of it. `job` is the scheduler's view, with the state it ended in if it did."""

    job: Job
    name: str
    tenant: AccountId
    gpu_class: GpuClass
    """The class that it runs or ran on; before its first start, the first that it asks for."""
    reason: EndReason | None
    detail: str | None
    exit_code: int | None
    started_ms: int | None
    """Its first start."""
    ended_ms: int | None
    launch: LaunchSpec
    labels: Mapping[str, str]
    last_allocation: AllocationId | None
    """Its present allocation, or the last it had."""
    booking: Booking | None
    grants: tuple[Grant, ...]
    """Of `last_allocation`, with the surplus nodes that it has, or had until its end."""


@dataclass(frozen=True, slots=True)
class AllocationRecord:
    """One start of a job, live or over."""

    allocation: Allocation
    stopping_ms: int | None
    ended_ms: int | None
    end_reason: EndReason | None
    exit_code: int | None
    detail: str | None


@dataclass(frozen=True, slots=True)
class HistoryLine:
    """One thing that happened to a job, in the words of `kind` and its facts."""

    sequence: int
    at_ms: int
    kind: str
    detail: Mapping[str, str | int]


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Which jobs are meant; a field that is None (or states that are empty) leaves out nothing."""

    under: AccountId | None = None
    """This account and all below it; a tenant is one step of a path."""
    users: tuple[UserName, ...] | None = None
    states: tuple[JobState, ...] = ()
    pool: PoolName | None = None
    """Jobs that ask for this pool."""
    name: str | None = None
    name_prefix: str | None = None
    """Jobs whose name begins so: those of a sweep."""
    since_ms: int | None = None
    """Jobs that are not over, or ended at this time or later."""
    array: JobId | None = None
    ids: tuple[JobId, ...] | None = None


def list_jobs(
    connection: Connection,
    wanted: JobFilter,
    *,
    after: JobId | None = None,
    limit: int = 200,
    newest_first: bool = False,
) -> list[JobRecord]:
    """Returns at most `limit` jobs in order of id; `after` is the last id of the page before."""
    statement = _SELECT_RECORD.where(*_conditions(wanted))
    if after is not None:
        statement = statement.where(JOB.c.id < after if newest_first else JOB.c.id > after)
    statement = statement.order_by(JOB.c.id.desc() if newest_first else JOB.c.id).limit(limit)
    return [_record(row) for row in connection.execute(statement)]


def job_ids(connection: Connection, wanted: JobFilter, limit: int) -> list[JobId]:
    """Returns the ids of the jobs meant, lowest first, at most `limit`: for actions on many."""
    statement = sa.select(JOB.c.id).where(*_conditions(wanted)).order_by(JOB.c.id).limit(limit)
    return [JobId(id_) for id_ in connection.execute(statement).scalars()]


def job(connection: Connection, id_: JobId) -> JobRecord | None:
    """Returns one job; None if there is none."""
    row = connection.execute(_SELECT_RECORD.where(JOB.c.id == id_)).one_or_none()
    return None if row is None else _record(row)


def array_element(connection: Connection, array: JobId, index: int) -> JobRecord | None:
    """Returns the element of an array with this index; None if there is none."""
    row = connection.execute(_SELECT_RECORD.where(JOB.c.array_id == array, JOB.c.array_index == index)).one_or_none()
    return None if row is None else _record(row)


def newest_job_named(connection: Connection, under: AccountId, user: UserName, name: str) -> JobRecord | None:
    """Returns the user's newest job of this name in the account or below it; None if there is none."""
    found = list_jobs(connection, JobFilter(under=under, users=(user,), name=name), limit=1, newest_first=True)
    return found[0] if found else None


def allocations_of(connection: Connection, id_: JobId) -> list[AllocationRecord]:
    """Returns a job's starts, first to last; the surplus nodes of an elastic one before the gang that they are of."""
    more = (
        *(ALLOCATION.c.stopping_ms, ALLOCATION.c.ended_ms, ALLOCATION.c.end_reason),
        *(ALLOCATION.c.exit_code, ALLOCATION.c.detail),
    )
    statement = sa.select(*ALLOCATION_COLUMNS, *more).where(ALLOCATION.c.job_id == id_)
    statement = statement.order_by(ALLOCATION.c.attempt, ALLOCATION.c.surplus_of.is_(None), ALLOCATION.c.id)
    return [
        AllocationRecord(
            allocation_of(row[:-5]), row[-5], row[-4], None if row[-3] is None else EndReason(row[-3]), row[-2], row[-1]
        )
        for row in connection.execute(statement)
    ]


def history_of(connection: Connection, id_: JobId) -> list[HistoryLine]:
    """Returns what happened to a job, in order."""
    columns = (JOB_EVENT.c.sequence, JOB_EVENT.c.at_ms, JOB_EVENT.c.kind, JOB_EVENT.c.detail)
    statement = sa.select(*columns).where(JOB_EVENT.c.job_id == id_).order_by(JOB_EVENT.c.sequence)
    return [HistoryLine(*row) for row in connection.execute(statement)]


def count_jobs_by(
    connection: Connection, keys: Sequence[JobKey], wanted: JobFilter | None = None
) -> dict[tuple[str | None, ...], int]:
    """Returns how many jobs there are for each combination of the keys that occurs."""
    columns = [JOB.c[key] for key in keys]
    statement = sa.select(*columns, sa.func.count()).where(*_conditions(wanted or JobFilter())).group_by(*columns)
    return {tuple(row[:-1]): row[-1] for row in connection.execute(statement)}


def _conditions(wanted: JobFilter) -> list[sa.ColumnElement[bool]]:
    found: list[sa.ColumnElement[bool]] = []
    if wanted.under:
        # A tenant has an index of its own; below it, the path decides.
        found.append(
            sa.or_(JOB.c.account == wanted.under, JOB.c.account.startswith(f"{wanted.under}/", autoescape=True))
            if "/" in wanted.under
            else JOB.c.tenant == wanted.under
        )
    if wanted.users is not None:
        found.append(JOB.c.user.in_(wanted.users))
    if wanted.states:
        found.append(JOB.c.state.in_([state.value for state in wanted.states]))
    if wanted.pool is not None:
        found.append(JOB.c.shape["pool"].as_string() == wanted.pool)
    if wanted.name is not None:
        found.append(JOB.c.name == wanted.name)
    if wanted.name_prefix is not None:
        found.append(JOB.c.name.startswith(wanted.name_prefix, autoescape=True))
    if wanted.since_ms is not None:
        found.append(sa.or_(JOB.c.ended_ms.is_(None), JOB.c.ended_ms >= wanted.since_ms))
    if wanted.array is not None:
        found.append(JOB.c.array_id == wanted.array)
    if wanted.ids is not None:
        found.append(JOB.c.id.in_(wanted.ids))
    return found


def _record(row: Row) -> JobRecord:
    known = job_of(row[: len(JOB_COLUMNS)])
    name, tenant, gpu_class, reason, detail, exit_code, started_ms, *rest = row[len(JOB_COLUMNS) :]
    ended_ms, launch, labels, last_allocation, booking, grants, surplus = rest
    return JobRecord(
        known,
        name,
        AccountId(tenant),
        GpuClass(gpu_class),
        None if reason is None else EndReason(reason),
        detail,
        exit_code,
        started_ms,
        ended_ms,
        launch_of(launch),
        labels,
        None if last_allocation is None else AllocationId(last_allocation),
        None if booking is None else Booking(booking),
        (*grants_of(grants or []), *grants_of(surplus or [])),
    )
