"""Nodes and devices as stored: the executor's view and the admin's drain side by side, and what follows from both.

`KnownNode.effective` is what the planner sees: the worse of both views. `resting` is what the ledger calls a lane of a
device while no allocation holds it.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from scheduler.core.model import Device, DeviceHealth, Node, NodeAvailability, NodeName, PoolName
from scheduler.core.occupancy import OccupancyState
from scheduler.store.codec import DEVICE_COLUMNS, device_of, node_of
from scheduler.store.database import chunks
from scheduler.store.tables import DEVICE, NODE

GONE = "not in the inventory any more"
"""The reason of a node or device that vanished while an allocation held it; it is removed once it is free."""

CLAIM_CAUSE = "claim"
"""Why a device is `reserved_unused`: it is kept for a job that others were stopped for."""


@dataclass(frozen=True, slots=True)
class KnownNode:
    """A stored node. `node` carries the executor's availability; `devices` are all it has now, in order."""

    node: Node
    drain_reason: str | None
    devices: tuple[Device, ...]
    is_removed: bool = False
    kept_by: str | None = None
    """The advance reservation that is in force on it."""
    assigned_pool: PoolName | None = None
    """The pool that an admin put it into, whatever the executor says."""

    @property
    def effective(self) -> Node:
        """The node as the planner sees it: an admin's drain makes an `up` node `draining`, for the admin's reason."""
        node = self.node if self.assigned_pool is None else replace(self.node, pool=self.assigned_pool)
        if self.drain_reason is None or node.availability is NodeAvailability.DOWN:
            return node
        return replace(node, availability=NodeAvailability.DRAINING, reason=self.drain_reason)

    @property
    def whole_units(self) -> int:
        """Capacity units of all its devices, healthy or not."""
        return sum(device.units for device in self.devices)


def load_nodes(
    connection: Connection, names: Collection[NodeName] | None = None, *, with_removed: bool = False
) -> dict[NodeName, KnownNode]:
    """Returns stored nodes by name, in name order: all of them, or those named that there are."""
    nodes = sa.select(NODE)
    devices = sa.select(*DEVICE_COLUMNS).where(DEVICE.c.removed_ms.is_(None)).order_by(DEVICE.c.position, DEVICE.c.id)
    if not with_removed:
        nodes = nodes.where(NODE.c.removed_ms.is_(None))
    rows = []
    of_node: dict[str, list[Device]] = {}
    for part in [None] if names is None else chunks(sorted(names)):
        for row in connection.execute(nodes if part is None else nodes.where(NODE.c.name.in_(part))).all():
            rows.append(row)  # noqa: PERF402  # rows of several chunks
        for row in connection.execute(devices if part is None else devices.where(DEVICE.c.node.in_(part))).all():
            device = device_of(row)
            of_node.setdefault(device.node, []).append(device)
    return {
        NodeName(row.name): KnownNode(
            node_of(row, NodeAvailability(row.availability), row.reason),
            row.drain_reason,
            tuple(of_node.get(row.name, ())),
            row.removed_ms is not None,
            row.kept_by,
            None if row.assigned_pool is None else PoolName(row.assigned_pool),
        )
        for row in sorted(rows, key=lambda row: str(row.name))
    }


def resting(known: KnownNode, device: Device) -> tuple[OccupancyState, str | None]:
    """Returns what a lane of the device is while nobody of ours holds it, with the cause as a short code."""
    availability = known.node.availability
    is_gone = known.is_removed or GONE in {device.reason, known.node.reason}
    # The first that holds: what cannot be used at all, then what others use, then what is to be left alone.
    rules = (
        (is_gone, OccupancyState.UNAVAILABLE, "removed"),
        (device.health is DeviceHealth.FAILED, OccupancyState.UNAVAILABLE, "gpu_failed"),
        (availability is NodeAvailability.DOWN, OccupancyState.UNAVAILABLE, "node_down"),
        (device.is_foreign, OccupancyState.FOREIGN, None),
        (known.drain_reason is not None, OccupancyState.DRAINING, "admin_drain"),
        (availability is NodeAvailability.DRAINING, OccupancyState.DRAINING, "node_draining"),
        (device.health is DeviceHealth.DRAINING, OccupancyState.DRAINING, "gpu_draining"),
        (known.kept_by is not None, OccupancyState.RESERVED_UNUSED, "reservation"),
    )
    return next(((state, cause) for holds, state, cause in rules if holds), (OccupancyState.IDLE, None))
