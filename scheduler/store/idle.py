"""Running jobs whose GPUs may be idle, and the end of those that asked to be ended then."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from scheduler.core.model import AllocationId, EndReason, JobId, JobState
from scheduler.store.codec import grants_of, launch_of
from scheduler.store.database import chunks
from scheduler.store.gangs import stop
from scheduler.store.history_tables import JOB_EVENT
from scheduler.store.tables import ALLOCATION, JOB
from scheduler.store.transaction import Transaction

IDLE = "idle"
"""The kind of the line in a job's history that says that its GPUs do nothing."""


@dataclass(frozen=True, slots=True)
class RunningGang:
    """A running job as whoever watches for idleness needs it. `idle_stop_seconds` is None where nobody asked."""

    job: JobId
    allocation: AllocationId
    devices: frozenset[str]
    started_ms: int
    idle_stop_seconds: int | None


def running_gangs(connection: Connection) -> Iterator[RunningGang]:
    """Yields the running jobs, in order of their numbers."""
    surplus = ALLOCATION.alias("surplus")
    its_surplus = sa.and_(surplus.c.surplus_of == ALLOCATION.c.id, surplus.c.ended_ms.is_(None))
    columns = (ALLOCATION.c.id, ALLOCATION.c.grants, surplus.c.grants.label("more"), ALLOCATION.c.started_ms)
    statement = (
        sa.select(JOB.c.id, JOB.c.launch, *columns)
        .join(ALLOCATION, ALLOCATION.c.id == JOB.c.allocation_id)
        .outerjoin(surplus, its_surplus)
        .where(JOB.c.state == JobState.RUNNING.value, ALLOCATION.c.started_ms.is_not(None))
        .order_by(JOB.c.id)
    )
    for job, launch, allocation, grants, more, started_ms in connection.execute(statement):
        held = (*grants_of(grants), *grants_of(more or []))
        devices = frozenset(str(device) for grant in held for device in grant.devices)
        yield RunningGang(
            JobId(job), AllocationId(allocation), devices, started_ms, launch_of(launch).idle_stop_seconds
        )


def idle_told(connection: Connection, allocations: Sequence[AllocationId]) -> dict[AllocationId, int]:
    """Returns when the job of each of these was last noted to be idle, of those that were since they started."""
    told: dict[AllocationId, int] = {}
    for part in chunks(allocations):
        statement = (
            sa.select(ALLOCATION.c.id, sa.func.max(JOB_EVENT.c.at_ms))
            .join(JOB_EVENT, JOB_EVENT.c.job_id == ALLOCATION.c.job_id)
            .where(ALLOCATION.c.id.in_(part), JOB_EVENT.c.kind == IDLE, JOB_EVENT.c.at_ms >= ALLOCATION.c.started_ms)
            .group_by(ALLOCATION.c.id)
        )
        told.update((AllocationId(id_), at_ms) for id_, at_ms in connection.execute(statement))
    return told


@dataclass(frozen=True, slots=True)
class StopIdle:
    """Asks gangs to end because their GPUs were idle for as long as their jobs allow."""

    allocations: tuple[AllocationId, ...]

    def execute(self, tx: Transaction) -> int:
        """Returns how many are being stopped by this; those that end already are left as they are."""
        return len(stop(tx, self.allocations, EndReason.IDLE_STOP, "idle"))
