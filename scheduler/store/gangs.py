"""What the commands on allocations share: reading live gangs, finding their lanes, asking them to stop."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import sqlalchemy as sa

from scheduler.core.events import AllocationStopping
from scheduler.core.model import (
    AccountId,
    Allocation,
    AllocationId,
    DeviceId,
    EndReason,
    JobId,
    JobState,
    Phase,
    tenant_of,
)
from scheduler.core.occupancy import Cursor, Evidence
from scheduler.store.codec import ALLOCATION_COLUMNS, allocation_of
from scheduler.store.database import chunks
from scheduler.store.partition import Lanes, in_phase
from scheduler.store.tables import ALLOCATION, JOB, JsonObject
from scheduler.store.transaction import Transaction

_UPDATE_STOPPING = sa.update(ALLOCATION).where(ALLOCATION.c.id == sa.bindparam("at_id"))


def load_live(tx: Transaction, ids: Sequence[AllocationId]) -> dict[AllocationId, Allocation]:
    """Returns those of the allocations that have not ended."""
    live: dict[AllocationId, Allocation] = {}
    for part in chunks(ids):
        statement = sa.select(*ALLOCATION_COLUMNS).where(ALLOCATION.c.id.in_(part), ALLOCATION.c.ended_ms.is_(None))
        for row in tx.connection.execute(statement).all():
            allocation = allocation_of(row)
            live[allocation.id] = allocation
    return live


def devices_of(allocation: Allocation) -> Iterator[DeviceId]:
    """Yields the devices of a gang, in rank order."""
    for grant in allocation.grants:
        yield from grant.devices


def lanes_of(lanes: Lanes, allocation: Allocation) -> list[Cursor]:
    """Returns the open lanes that a live gang holds, one a device, in rank order."""
    held = []
    for device in devices_of(allocation):
        mine = [cursor for cursor in lanes.of(device).values() if cursor.occupant.allocation == allocation.id]
        # A live allocation and its lanes are written in one transaction; what differs was not written by us.
        assert len(mine) == 1, f"allocation {allocation.id} holds {len(mine)} lanes of {device}"
        held.append(mine[0])
    return held


def stop(
    tx: Transaction,
    ids: Sequence[AllocationId],
    reason: EndReason,
    actor: str | None,
    by: tuple[JobId, AccountId] | None = None,
) -> tuple[Allocation, ...]:
    """Marks live gangs that start or run as stopping; returns those, as they are then. Others are left as they are.

    `by` is the job that they make room for: its id is told to owners within the same tenant, and to nobody else.
    """
    live = load_live(tx, list(dict.fromkeys(ids)))
    stopping = [
        replace(live[id_], phase=Phase.STOPPING, stop_reason=reason)
        for id_ in dict.fromkeys(ids)
        if id_ in live and live[id_].phase is not Phase.STOPPING
    ]
    lanes = tx.lanes()
    lanes.load(device for allocation in stopping for device in devices_of(allocation))
    rows: list[JsonObject] = []
    for allocation in stopping:
        for cursor in lanes_of(lanes, allocation):
            lanes.move(cursor, in_phase(cursor.occupant, Phase.STOPPING), tx.now_ms, Evidence.CONTROLLER)
        rows.append(
            {
                "at_id": allocation.id,
                "phase": Phase.STOPPING.value,
                "stopping_ms": tx.now_ms,
                "stop_reason": reason.value,
            }
        )
        tx.emit(AllocationStopping(tx.now_ms, allocation.id, reason))
        known = by[0] if by is not None and tenant_of(by[1]) == tenant_of(allocation.account) else None
        tx.note(allocation.job, "stopping", tx.now_ms, reason=reason, actor=actor, allocation=allocation.id, by=known)
    if rows:
        tx.connection.execute(_UPDATE_STOPPING, rows)
    for part in chunks([allocation.job for allocation in stopping]):
        tx.connection.execute(sa.update(JOB).where(JOB.c.id.in_(part)).values(state=JobState.STOPPING.value))
    lanes.flush()
    return tuple(stopping)
