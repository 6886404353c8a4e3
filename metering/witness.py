"""Which GPUs an allocation was seen with, where the platform and not the scheduler chooses them.

On Kubernetes the ledger's devices are slots of nodes, and the kubelet chooses the GPUs; agents read from it which
container has which, and deliver that as evidence. Statistics and lines join through it; nothing is billed by it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from metering.tables import DEVICE_WITNESS
from scheduler.core.model import AllocationId, DeviceId, NodeName
from scheduler.store.codec import grants_of
from scheduler.store.database import chunks
from scheduler.store.tables import ALLOCATION, DEVICE

FRESH_MS = 180_000
"""What was seen within so long is taken to be so still: three windows of the usual minute."""


@dataclass(frozen=True, slots=True)
class Holding:
    """A GPU was seen in an allocation's hands from `from_ms` to `to_ms`, by the node's clock."""

    device: str
    allocation: AllocationId
    from_ms: int
    to_ms: int
    witness: str


def write_witnesses(connection: Connection, node: NodeName, holdings: Sequence[Holding]) -> None:
    """Widens what is known of each allocation and GPU: the same in whatever order and however often it comes."""
    for holding in sorted(holdings, key=lambda each: (each.allocation, each.device)):
        where = (DEVICE_WITNESS.c.allocation_id == holding.allocation, DEVICE_WITNESS.c.device == holding.device)
        row = connection.execute(sa.select(DEVICE_WITNESS).where(*where)).first()
        if row is None:
            values = {
                "allocation_id": holding.allocation,
                "device": holding.device,
                "node": node,
                "from_ms": holding.from_ms,
                "to_ms": holding.to_ms,
                "witness": holding.witness,
            }
            connection.execute(sa.insert(DEVICE_WITNESS).values(values))
        elif holding.from_ms < row.from_ms or holding.to_ms > row.to_ms:
            spread = {"from_ms": min(row.from_ms, holding.from_ms), "to_ms": max(row.to_ms, holding.to_ms)}
            connection.execute(sa.update(DEVICE_WITNESS).where(*where).values(spread))


def has_witnesses(connection: Connection, from_ms: int, to_ms: int) -> bool:
    """Says whether any GPU was seen in an allocation's hands in `[from_ms, to_ms)`."""
    query = sa.select(DEVICE_WITNESS.c.device).where(DEVICE_WITNESS.c.to_ms > from_ms, DEVICE_WITNESS.c.from_ms < to_ms)
    return connection.execute(query.limit(1)).first() is not None


def seen_devices(connection: Connection, allocation: AllocationId, from_ms: int, to_ms: int) -> tuple[DeviceId, ...]:
    """Returns the GPUs that were seen in an allocation's hands in `[from_ms, to_ms]`, sorted; often none."""
    rows = connection.execute(
        sa.select(DEVICE_WITNESS.c.device)
        .where(
            DEVICE_WITNESS.c.allocation_id == allocation,
            DEVICE_WITNESS.c.to_ms >= from_ms,
            DEVICE_WITNESS.c.from_ms <= to_ms,
        )
        .order_by(DEVICE_WITNESS.c.device)
    ).scalars()
    return tuple(DeviceId(device) for device in rows)


def ledger_devices(connection: Connection, gpus: Iterable[tuple[NodeName, str]], now_ms: int) -> dict[str, str]:
    """Returns what the ledger calls each GPU (node, UUID): its UUID, or a slot of the allocation seen with it lately.

    GPUs that the ledger does not know, and that nobody was seen with, are left out.
    """
    node_of = {uuid: node for node, uuid in gpus}
    found: dict[str, str] = {}
    for part in chunks(sorted(node_of)):
        found.update(
            (id_, id_) for id_ in connection.execute(sa.select(DEVICE.c.id).where(DEVICE.c.id.in_(part))).scalars()
        )
    held: dict[AllocationId, list[str]] = {}
    for part in chunks(sorted(node_of.keys() - found.keys())):
        rows = connection.execute(
            sa.select(DEVICE_WITNESS.c.allocation_id, DEVICE_WITNESS.c.device)
            .where(DEVICE_WITNESS.c.device.in_(part), DEVICE_WITNESS.c.to_ms >= now_ms - FRESH_MS)
            .order_by(DEVICE_WITNESS.c.device, DEVICE_WITNESS.c.to_ms)
        )
        latest = {device: AllocationId(allocation) for allocation, device in rows}
        for device, allocation in latest.items():
            held.setdefault(allocation, []).append(device)
    for part in chunks(sorted(held)):
        grants = connection.execute(sa.select(ALLOCATION.c.id, ALLOCATION.c.grants).where(ALLOCATION.c.id.in_(part)))
        for id_, listed in grants:
            for grant in grants_of(listed):
                here = sorted(uuid for uuid in held[AllocationId(id_)] if node_of[uuid] == grant.node)
                # All slots of the grant are one tenant's, so any order will do, as long as it is always the same.
                found.update(zip(here, sorted(grant.devices), strict=False))
    return found
