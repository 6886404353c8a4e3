"""Queries that only the API asks: whose jobs these are, which have ended, what is free where."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from scheduler.core.lifecycle import ACTIVE, ENDS
from scheduler.core.model import (
    AccountId,
    DeviceId,
    GpuClass,
    JobId,
    JobState,
    Node,
    NodeName,
    UserName,
)
from scheduler.core.occupancy import Interval, OccupancyState
from scheduler.store.codec import INTERVAL_COLUMNS, grants_of, interval_of
from scheduler.store.database import chunks
from scheduler.store.ledger_tables import DEVICE_CURSOR, OCCUPANCY
from scheduler.store.nodes import load_nodes
from scheduler.store.tables import ALLOCATION, DEVICE, JOB

Ref = tuple[JobId, int | None]
"""A job's id, or an array's id with an index."""

_ACTIVE = sorted(state.value for state in ACTIVE)
_ENDED = sorted(state.value for state in ENDS)
_OWNER = (JOB.c.id, JOB.c.account, JOB.c.user, JOB.c.state, JOB.c.array_id, JOB.c.array_index)


@dataclass(frozen=True, slots=True)
class JobOwner:
    """Whose a job is."""

    id: JobId
    account: AccountId
    user: UserName
    state: JobState
    array_id: JobId | None
    array_index: int | None


@dataclass(frozen=True, slots=True)
class NodeCount:
    """A node as people see it, with what is free on it."""

    node: Node
    gpus: int
    gpus_free: int
    drained_by: str | None
    """`operator` or `executor`; None for a node that takes jobs or is down."""
    jobs: tuple[JobId, ...]
    """Jobs that hold GPUs on it, in order of their ids."""
    kept_by: str | None = None
    """The reservation that is in force on it."""


def owners(connection: Connection, refs: Iterable[Ref]) -> dict[Ref, tuple[JobOwner, ...]]:
    """Returns the jobs that each ref means, in order of ids: of an array's own id all of its elements.

    Refs that mean nothing are left out. Cost: a statement for each thousand refs, and one for each array.
    """
    wanted = list(dict.fromkeys(refs))
    plain = [job for job, index in wanted if index is None]
    by_id = {each.id: each for each in owners_by_id(connection, plain)}
    arrays = {each.id for each in by_id.values() if each.array_id == each.id}
    arrays |= {job for job, index in wanted if index is not None}
    elements: dict[JobId, list[JobOwner]] = {}
    for part in chunks(sorted(arrays)):
        for each in _owners(connection, JOB.c.array_id.in_(part)):
            if each.array_id is not None:
                elements.setdefault(each.array_id, []).append(each)
    found: dict[Ref, tuple[JobOwner, ...]] = {}
    for job, index in wanted:
        if index is not None:
            mine = [each for each in elements.get(job, ()) if each.array_index == index]
        else:
            mine = elements.get(job) or ([by_id[job]] if job in by_id else [])
        if mine:
            found[job, index] = tuple(mine)
    return found


def owners_by_id(connection: Connection, jobs: Sequence[JobId]) -> tuple[JobOwner, ...]:
    """Returns whose these very jobs are; ids that mean no job are left out. A statement for each thousand."""
    return tuple(each for part in chunks(jobs) for each in _owners(connection, JOB.c.id.in_(part)))


def _owners(connection: Connection, condition: "sa.ColumnElement[bool]") -> list[JobOwner]:
    rows = connection.execute(sa.select(*_OWNER).where(condition).order_by(JOB.c.id))
    return [
        JobOwner(JobId(id_), AccountId(account), UserName(user), JobState(state), array, index)
        for id_, account, user, state, array, index in rows
    ]


def ended_among(connection: Connection, jobs: Collection[JobId]) -> set[JobId]:
    """Returns those of the jobs that have ended, or that are not there (any more)."""
    live: set[JobId] = set()
    for part in chunks(sorted(jobs)):
        statement = sa.select(JOB.c.id).where(JOB.c.id.in_(part), JOB.c.state.not_in(_ENDED))
        live.update(JobId(id_) for id_ in connection.execute(statement).scalars())
    return set(jobs) - live


def held_units(connection: Connection, tenant: AccountId | None) -> dict[GpuClass, int]:
    """Returns the capacity units that a tenant's gangs hold, by class; of all tenants together for None."""
    statement = sa.select(JOB.c.gpu_class, sa.func.sum(JOB.c.nodes * JOB.c.gpu_units)).where(JOB.c.state.in_(_ACTIVE))
    if tenant is not None:
        statement = statement.where(JOB.c.tenant == tenant)
    rows = connection.execute(statement.group_by(JOB.c.gpu_class).order_by(JOB.c.gpu_class))
    return {GpuClass(gpu_class): int(units) for gpu_class, units in rows}


def pending_by_class(connection: Connection) -> dict[GpuClass, int]:
    """Returns how many jobs are pending, under the first class that each names. Linear in pending jobs."""
    rows = connection.execute(
        sa.select(JOB.c.gpu_class, sa.func.count())
        .where(JOB.c.state == JobState.PENDING.value)
        .group_by(JOB.c.gpu_class)
    )
    return {GpuClass(gpu_class): count for gpu_class, count in rows}


def node_counts(connection: Connection) -> list[NodeCount]:
    """Returns all nodes by name. Linear in nodes, devices and live allocations."""
    is_free = sa.and_(DEVICE_CURSOR.c.state == OccupancyState.IDLE.value, DEVICE_CURSOR.c.units == DEVICE.c.units)
    rows = connection.execute(
        sa.select(DEVICE.c.node, sa.func.sum(sa.case((is_free, 1), else_=0)))
        .join(DEVICE_CURSOR, sa.and_(DEVICE_CURSOR.c.device == DEVICE.c.id, DEVICE_CURSOR.c.lane == 0))
        .where(DEVICE.c.removed_ms.is_(None))
        .group_by(DEVICE.c.node)
    )
    free = {NodeName(node): int(count) for node, count in rows}
    jobs: dict[NodeName, set[JobId]] = {}
    for job, grants in connection.execute(
        sa.select(ALLOCATION.c.job_id, ALLOCATION.c.grants).where(ALLOCATION.c.ended_ms.is_(None))
    ):
        for grant in grants_of(grants):
            jobs.setdefault(grant.node, set()).add(JobId(job))
    found = []
    for name, known in load_nodes(connection).items():
        effective = known.effective
        drained_by = None
        if effective.availability.value == "draining":
            drained_by = "operator" if known.drain_reason is not None else "executor"
        count = free.get(name, 0)
        here = tuple(sorted(jobs.get(name, ())))
        found.append(NodeCount(effective, len(known.devices), count, drained_by, here, known.kept_by))
    return found


def node_history(connection: Connection, node: NodeName, most: int) -> tuple[list[str], list[Interval]]:
    """Returns the ids of a node's GPUs, removed ones included, and their latest closed intervals, newest first."""
    devices = list(
        connection.execute(
            sa.select(DEVICE.c.id).where(DEVICE.c.node == node).order_by(DEVICE.c.position, DEVICE.c.id)
        ).scalars()
    )
    rows = connection.execute(
        sa.select(*INTERVAL_COLUMNS)
        .where(OCCUPANCY.c.device.in_(devices))
        .order_by(OCCUPANCY.c.from_ms.desc(), OCCUPANCY.c.device, OCCUPANCY.c.lane)
        .limit(most)
    )
    return [DeviceId(device) for device in devices], [interval_of(row) for row in rows]
