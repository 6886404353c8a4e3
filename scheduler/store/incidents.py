"""What the centre was at fault for, by machine: one incident for all gangs that one loss of a node, or of a GPU, hit.

A gang that ends because its node or GPU was lost belongs to the latest incident of that machine, if it ran already when
that began, and the machine was not well again since; else an incident begins with it. Rows are only ever added, in the
transaction of the end, and chained: credits name the incident (`metering.core.credits`).
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from scheduler.clock import iso_utc
from scheduler.core.model import (
    AccountId,
    Allocation,
    AllocationId,
    Device,
    DeviceHealth,
    DeviceId,
    EndReason,
    JobId,
    NodeAvailability,
    NodeName,
)
from scheduler.core.occupancy import OccupancyState
from scheduler.store.chained import append
from scheduler.store.ledger_tables import DEVICE_CURSOR, INCIDENT, OCCUPANCY
from scheduler.store.nodes import KnownNode
from scheduler.store.tables import DEVICE
from scheduler.store.transaction import Transaction

OF_MACHINES = frozenset((EndReason.NODE_LOST, EndReason.GPU_ERROR))
"""Ends that one fault of a machine may bring to many gangs."""
STILL_MS = 600_000
"""Ends of one fault come one by one, and devices may look well until it is noticed: for so long that means nothing."""
_WELL = [state.value for state in (OccupancyState.IDLE, OccupancyState.ALLOCATED, OccupancyState.RESERVED_UNUSED)]


@dataclass(frozen=True, slots=True)
class Hit:
    """A gang that an incident hit, and when it ended for it."""

    incident: str
    reason: EndReason
    node: NodeName
    began_ms: int
    allocation: AllocationId
    job: JobId
    account: AccountId
    at_ms: int


def faulty_node(
    gang: Allocation, reason: EndReason | None, places: Mapping[DeviceId, tuple[KnownNode, Device]]
) -> NodeName | None:
    """Returns the machine whose fault ended a gang; None where that is nobody's, or cannot be told."""
    if reason not in OF_MACHINES:
        return None
    nodes = sorted({grant.node for grant in gang.grants})
    at_fault: set[NodeName] = set()
    for grant in gang.grants:
        for id_ in grant.devices:
            place = places.get(id_)
            if place is None or _is_at_fault(reason, *place):
                at_fault.add(grant.node)
    return min(at_fault) if at_fault else nodes[0] if len(nodes) == 1 else None


def _is_at_fault(reason: EndReason, known: KnownNode, device: Device) -> bool:
    if reason is EndReason.GPU_ERROR:
        return device.health is DeviceHealth.FAILED
    return known.is_removed or known.node.availability is NodeAvailability.DOWN


def note_incidents(tx: Transaction, ended: Iterable[tuple[Allocation, EndReason, NodeName, int]]) -> None:
    """Adds the gangs that ended by a machine's fault (gang, reason, machine, end) to its incident."""
    latest: dict[tuple[EndReason, NodeName], tuple[str, int, int]] = {}
    rows: list[dict[str, Any]] = []
    for gang, reason, node, end_ms in ended:
        key = (reason, node)
        found = latest.get(key) or _latest(tx.connection, key)
        if found is None or not _is_the_same(tx, node, found, gang.decided_ms):
            found = (f"{reason.value}/{node}/{iso_utc(tx.now_ms)}", end_ms, tx.now_ms)
        latest[key] = found
        rows.append(
            {
                "id": found[0],
                "reason": reason.value,
                "node": node,
                "began_ms": found[1],
                "allocation_id": gang.id,
                "job_id": gang.job,
                "account": gang.account,
                "at_ms": end_ms,
                "recorded_ms": tx.now_ms,
            }
        )
    append(tx.connection, INCIDENT, rows)


def _latest(connection: Connection, key: tuple[EndReason, NodeName]) -> tuple[str, int, int] | None:
    """Returns the latest incident of a machine: its id, when it began, and when it hit somebody last."""
    reason, node = key
    row = connection.execute(
        sa.select(INCIDENT.c.id, INCIDENT.c.began_ms, INCIDENT.c.recorded_ms)
        .where(INCIDENT.c.node == node, INCIDENT.c.reason == reason.value)
        .order_by(INCIDENT.c.sequence.desc())
        .limit(1)
    ).first()
    return None if row is None else (row.id, row.began_ms, row.recorded_ms)


def _is_the_same(tx: Transaction, node: NodeName, latest: tuple[str, int, int], decided_ms: int) -> bool:
    _, _, hit_ms = latest
    if decided_ms > hit_ms:
        return False  # it started there after the fault
    return tx.now_ms - hit_ms <= STILL_MS or not _was_well(tx, node, hit_ms)


def _was_well(tx: Transaction, node: NodeName, since_ms: int) -> bool:
    devices = sa.select(DEVICE.c.id).where(DEVICE.c.node == node)
    for table, start in ((DEVICE_CURSOR, DEVICE_CURSOR.c.since_ms), (OCCUPANCY, OCCUPANCY.c.from_ms)):
        # What this transaction lets go of says nothing: nobody has looked at the machine yet.
        between = (start > since_ms, start < tx.now_ms)
        query = sa.select(table.c.device).where(table.c.device.in_(devices), table.c.state.in_(_WELL), *between)
        if tx.connection.execute(query.limit(1)).first() is not None:
            return True
    return False


def incident_ids(connection: Connection, allocations: Collection[str]) -> dict[AllocationId, str]:
    """Returns the incident of each allocation that one hit; of few ids, as a page of allocations has them."""
    query = sa.select(INCIDENT.c.allocation_id, INCIDENT.c.id).where(INCIDENT.c.allocation_id.in_(allocations))
    return {AllocationId(allocation): id_ for allocation, id_ in connection.execute(query)}


def hits_between(connection: Connection, from_ms: int, to_ms: int) -> Sequence[Hit]:
    """Returns the gangs that incidents hit by ends in `[from_ms, to_ms)`, in the order in which they were written."""
    query = sa.select(INCIDENT).where(INCIDENT.c.at_ms >= from_ms, INCIDENT.c.at_ms < to_ms)
    return [_hit(row) for row in connection.execute(query.order_by(INCIDENT.c.sequence))]


def _hit(row: Row[Any]) -> Hit:
    return Hit(
        row.id,
        EndReason(row.reason),
        NodeName(row.node),
        row.began_ms,
        AllocationId(row.allocation_id),
        JobId(row.job_id),
        AccountId(row.account),
        row.at_ms,
    )
