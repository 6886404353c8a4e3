"""What the commands on allocations share: reading live gangs, finding their lanes, asking them to stop."""

from collections.abc import Iterator, Mapping, Sequence
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
    Shape,
    tenant_of,
)
from scheduler.core.occupancy import Cursor, Evidence
from scheduler.executor import LaunchSpec, StartOrder
from scheduler.store.codec import ALLOCATION_COLUMNS, allocation_of
from scheduler.store.columns import JsonObject
from scheduler.store.database import chunks
from scheduler.store.partition import Lanes, in_phase
from scheduler.store.tables import ALLOCATION, JOB
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


def load_surplus(tx: Transaction, gangs: Sequence[AllocationId]) -> dict[AllocationId, Allocation]:
    """Returns the surplus nodes that live gangs still have, by gang."""
    found: dict[AllocationId, Allocation] = {}
    for part in chunks(gangs):
        statement = sa.select(*ALLOCATION_COLUMNS)
        statement = statement.where(ALLOCATION.c.surplus_of.in_(part), ALLOCATION.c.ended_ms.is_(None))
        for row in tx.connection.execute(statement).all():
            surplus = allocation_of(row)
            assert surplus.surplus_of is not None, "it was asked for by its gang"
            found[surplus.surplus_of] = surplus
    return found


def order_of(
    gang: Allocation,
    surplus: Allocation | None,
    shape: Shape,
    what: tuple[LaunchSpec, int | None, JobId | None, Mapping[str, str]],
) -> StartOrder:
    """Returns what an executor is told of a gang: one allocation on all its nodes, those of its surplus last.

    `what` is the launch spec, the element's index, its array, and the values of the secrets.
    """
    launch, array_index, array, secrets = what
    least = len(gang.grants) if shape.is_elastic else None
    if surplus is not None:
        gang = replace(gang, grants=(*gang.grants, *surplus.grants))
    is_shrinking = surplus is not None and surplus.phase is Phase.STOPPING and gang.phase is not Phase.STOPPING
    return StartOrder(
        gang, launch, array_index, array, secrets, least, None if surplus is None else surplus.id, is_shrinking
    )


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

    A gang's surplus nodes stop with it. Where the ids name surplus nodes alone, their gang goes on without them.
    `by` is the job that they make room for: its id is told to owners within the same tenant, and to nobody else.
    """
    live = load_live(tx, list(dict.fromkeys(ids)))
    surplus = load_surplus(tx, list(live))
    found = {id_: live[id_] for id_ in ids if id_ in live} | {each.id: each for each in surplus.values()}
    stopping = [
        replace(each, phase=Phase.STOPPING, stop_reason=reason)
        for each in found.values()
        if each.phase is not Phase.STOPPING
    ]
    ending = {each.id for each in stopping if each.surplus_of is None}
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
        is_with_gang = allocation.surplus_of in ending
        gang = None if is_with_gang else allocation.surplus_of
        tx.emit(AllocationStopping(tx.now_ms, allocation.id, reason, gang, is_with_gang))
        if is_with_gang:
            continue  # the history tells of the gang
        known = by[0] if by is not None and tenant_of(by[1]) == tenant_of(allocation.account) else None
        kind, nodes = ("stopping", None) if gang is None else ("shrinking", len(allocation.grants))
        facts = {"reason": reason, "actor": actor, "allocation": gang or allocation.id, "by": known, "nodes": nodes}
        tx.note(allocation.job, kind, tx.now_ms, **facts)
    if rows:
        tx.connection.execute(_UPDATE_STOPPING, rows)
    for part in chunks([allocation.job for allocation in stopping if allocation.id in ending]):
        tx.connection.execute(sa.update(JOB).where(JOB.c.id.in_(part)).values(state=JobState.STOPPING.value))
    lanes.flush()
    return tuple(stopping)
