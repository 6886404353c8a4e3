"""Commands on nodes and devices: what the executor sees, and what the admin wants of it.

The executor's inventory is taken whole: what is absent from it is gone. A device that an allocation holds outlives its
place in the inventory: it stays with its node, failed, until it is free, and is removed by the next inventory then. A
removed device keeps its cursor, `unavailable(removed)`, so that its life has no gap should it come back; what is
partitioned otherwise ends its life (`repartition`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import sqlalchemy as sa

from scheduler.core.events import NodeChanged, NodeRemoved
from scheduler.core.model import (
    Device,
    DeviceHealth,
    DeviceId,
    NodeAvailability,
    NodeName,
)
from scheduler.core.occupancy import Evidence, OccupancyState, Occupant
from scheduler.executor import NodeInventory
from scheduler.refusal import RefusalCode, Refused
from scheduler.store.columns import JsonObject
from scheduler.store.database import chunks
from scheduler.store.ledger_tables import DEVICE_CURSOR
from scheduler.store.nodes import CLAIM_CAUSE, GONE, KnownNode, load_nodes, resting
from scheduler.store.partition import Lanes
from scheduler.store.repartition import repartition
from scheduler.store.tables import DEVICE, NODE, POOL
from scheduler.store.transaction import Transaction

_HELD = sa.select(DEVICE_CURSOR.c.device).where(DEVICE_CURSOR.c.state == OccupancyState.ALLOCATED.value).distinct()
_UPDATE_NODE = sa.update(NODE).where(NODE.c.name == sa.bindparam("at_name"))
_UPDATE_DEVICE = sa.update(DEVICE).where(DEVICE.c.id == sa.bindparam("at_id"))


@dataclass(frozen=True, slots=True)
class SyncInventory:
    """Takes the executor's inventory, which names every node and device once. Writes and says only what changed."""

    nodes: tuple[NodeInventory, ...]
    evidence: Evidence

    def execute(self, tx: Transaction) -> tuple[NodeName, ...]:
        """Returns the names of the nodes that changed, appeared or were removed. Refuses a contradictory inventory."""
        _check(self.nodes)
        stored = load_nodes(tx.connection, with_removed=True)
        _check_units(tx, self.nodes)
        held = {DeviceId(device) for (device,) in tx.connection.execute(_HELD)}
        wanted = _wanted(self.nodes, stored, held)
        changes = {name: known for name, known in wanted.items() if stored.get(name) != known}
        _save(tx, changes, stored)
        seen = sorted(inventory.node.name for inventory in self.nodes)
        for part in chunks(seen):
            tx.connection.execute(sa.update(NODE).where(NODE.c.name.in_(part)).values(seen_ms=tx.now_ms))
        settle(tx, changes, stored, self.evidence)
        repartition(tx, self.nodes, self.evidence)
        # A device that moved is named by the node it left before the node it came to.
        loses = {name for name, known in changes.items() if name in stored and _loses(stored[name], known)}
        for name in sorted(changes, key=lambda name: (name not in loses, name)):
            _say(tx, changes[name], stored.get(name))
        return tuple(sorted(changes))


@dataclass(frozen=True, slots=True)
class SetDrain:
    """Drains a node (running jobs finish, nothing new starts) or, with `reason` None, ends its drain."""

    node: NodeName
    reason: str | None
    actor: str

    def execute(self, tx: Transaction) -> bool:
        """Returns whether anything changed. Refuses an unknown node."""
        known = load_nodes(tx.connection, [self.node]).get(self.node)
        if known is None:
            raise Refused(RefusalCode.NOT_FOUND, f"there is no node {self.node}")
        if known.drain_reason == self.reason:
            return False
        changed = replace(known, drain_reason=self.reason)
        tx.connection.execute(sa.update(NODE).where(NODE.c.name == self.node).values(drain_reason=self.reason))
        settle(tx, {self.node: changed}, {self.node: known}, Evidence.OPERATOR)
        if changed.effective != known.effective:
            tx.emit(NodeChanged(tx.now_ms, changed.effective, changed.devices))
        return True


def _check(nodes: Sequence[NodeInventory]) -> None:
    names: set[NodeName] = set()
    devices: set[DeviceId] = set()
    for inventory in nodes:
        name = inventory.node.name
        if name in names:
            raise Refused(RefusalCode.INVALID, f"the inventory names node {name} twice")
        names.add(name)
        for device in inventory.devices:
            if device.id in devices:
                raise Refused(RefusalCode.INVALID, f"the inventory names device {device.id} twice, once on {name}")
            if device.node != name:
                raise Refused(RefusalCode.INVALID, f"device {device.id} says it is on {device.node}, not on {name}")
            if device.units <= 0:
                raise Refused(RefusalCode.INVALID, f"device {device.id} has {device.units} units; it needs some")
            devices.add(device.id)


def _check_units(tx: Transaction, nodes: Sequence[NodeInventory]) -> None:
    """Refuses a device that changed its size: its past could not add up. Repartitioned GPUs have new device ids."""
    sizes = {device.id: device.units for inventory in nodes for device in inventory.devices}
    for part in chunks(sorted(sizes)):
        for row in tx.connection.execute(sa.select(DEVICE.c.id, DEVICE.c.units).where(DEVICE.c.id.in_(part))):
            if row.units != sizes[row.id]:
                raise Refused(
                    RefusalCode.INVALID,
                    f"device {row.id} has {sizes[row.id]} units now and had {row.units}; give it another id",
                )


def _wanted(
    nodes: Iterable[NodeInventory], stored: dict[NodeName, KnownNode], held: set[DeviceId]
) -> dict[NodeName, KnownNode]:
    """Returns how each node is to be stored, those that vanished included."""
    place = {device.id: known.node.name for known in stored.values() for device in known.devices}
    wanted: dict[NodeName, KnownNode] = {}
    for inventory in nodes:
        name = inventory.node.name
        old = stored.get(name)
        listed = {device.id for device in inventory.devices}
        # A device held on another node stays there until it is free.
        devices = [
            device for device in inventory.devices if device.id not in held or place.get(device.id, name) == name
        ]
        devices += _lost(old, listed, held)
        wanted[name] = (
            KnownNode(inventory.node, None, tuple(devices))
            if old is None
            else replace(old, node=inventory.node, devices=tuple(devices), is_removed=False)
        )
    for name, old in stored.items():
        if name in wanted or old.is_removed:
            continue
        lost = _lost(old, set(), held)
        node = replace(old.node, availability=NodeAvailability.DOWN, reason=GONE)
        wanted[name] = replace(old, node=node, devices=tuple(lost), is_removed=not lost)
    return wanted


def _lost(old: KnownNode | None, listed: set[DeviceId], held: set[DeviceId]) -> list[Device]:
    if old is None:
        return []
    return [
        replace(device, health=DeviceHealth.FAILED, reason=GONE)
        for device in old.devices
        if device.id in held and device.id not in listed
    ]


def _loses(old: KnownNode, new: KnownNode) -> bool:
    return not {device.id for device in old.devices} <= {device.id for device in new.devices}


def _say(tx: Transaction, known: KnownNode, old: KnownNode | None) -> None:
    if known.is_removed:
        tx.emit(NodeRemoved(tx.now_ms, known.node.name))
        return
    is_same = old is not None and not old.is_removed
    if not (is_same and old is not None and (old.effective, old.devices) == (known.effective, known.devices)):
        tx.emit(NodeChanged(tx.now_ms, known.effective, known.devices))


def _save(tx: Transaction, changes: dict[NodeName, KnownNode], stored: dict[NodeName, KnownNode]) -> None:
    new = [{"seen_ms": tx.now_ms, **_node_values(tx, known)} for name, known in changes.items() if name not in stored]
    old = [_node_values(tx, known, key="at_name") for name, known in changes.items() if name in stored]
    if new:
        tx.connection.execute(sa.insert(NODE), new)
    if old:
        tx.connection.execute(_UPDATE_NODE, old)
    _save_devices(tx, changes, stored)
    pools = sorted({known.effective.pool for known in changes.values()})
    for part in chunks(pools):
        there = set(tx.connection.execute(sa.select(POOL.c.name).where(POOL.c.name.in_(part))).scalars())
        fresh = [{"name": name, "is_closed": False, "reason": None} for name in part if name not in there]
        if fresh:
            tx.connection.execute(sa.insert(POOL), fresh)


def _save_devices(tx: Transaction, changes: dict[NodeName, KnownNode], stored: dict[NodeName, KnownNode]) -> None:
    kept = {
        device.id: (position, device) for known in changes.values() for position, device in enumerate(known.devices)
    }
    before = [device.id for name in changes if name in stored for device in stored[name].devices]
    gone = sorted(set(before) - set(kept))
    for part in chunks(gone):
        tx.connection.execute(sa.update(DEVICE).where(DEVICE.c.id.in_(part)).values(removed_ms=tx.now_ms))
    known_ids: set[str] = set()
    for part in chunks(sorted(kept)):
        known_ids.update(tx.connection.execute(sa.select(DEVICE.c.id).where(DEVICE.c.id.in_(part))).scalars())
    rows = [(_device_values(position, device), device.id in known_ids) for position, device in kept.values()]
    new = [{"id": row["at_id"], "first_seen_ms": tx.now_ms, **row} for row, is_known in rows if not is_known]
    old = [row for row, is_known in rows if is_known]
    if new:
        for row in new:
            del row["at_id"]
        tx.connection.execute(sa.insert(DEVICE), new)
    if old:
        tx.connection.execute(_UPDATE_DEVICE, old)


def _node_values(tx: Transaction, known: KnownNode, key: str = "name") -> JsonObject:
    node = known.node
    return {
        key: node.name,
        "gpu_class": node.gpu_class,
        "pool": node.pool,
        "cpu_millicores": node.cpu_millicores,
        "memory_bytes": node.memory_bytes,
        "labels": dict(node.labels),
        "availability": node.availability.value,
        "reason": node.reason,
        "drain_reason": known.drain_reason,
        "removed_ms": tx.now_ms if known.is_removed else None,
    }


def _device_values(position: int, device: Device) -> JsonObject:
    return {
        "at_id": device.id,
        "node": device.node,
        "position": position,
        "gpu_class": device.gpu_class,
        "units": device.units,
        "health": device.health.value,
        "reason": device.reason,
        "is_foreign": device.is_foreign,
        "removed_ms": None,
    }


def settle(
    tx: Transaction, changes: dict[NodeName, KnownNode], stored: dict[NodeName, KnownNode], evidence: Evidence
) -> None:
    """Moves the free lanes of the changed nodes' devices to what they rest in now; opens a new device's first lane."""
    lanes = tx.lanes()
    present = {device.id: (known, device) for known in changes.values() for device in known.devices}
    absent = {
        device.id: (changes[name], device)
        for name in changes
        if name in stored
        for device in stored[name].devices
        if device.id not in present
    }
    lanes.load([*present, *absent])
    for device_id, (known, device) in {**absent, **present}.items():
        state, cause = resting(known, device)
        if device_id in absent:
            state, cause = OccupancyState.UNAVAILABLE, "removed"
        _rest(tx, lanes, device, Occupant(state, device.units, cause), evidence)
    lanes.flush()


def _rest(tx: Transaction, lanes: Lanes, device: Device, whole: Occupant, evidence: Evidence) -> None:
    open_lanes = lanes.of(device.id)
    if not open_lanes:
        lanes.open_device(device.id, device.gpu_class, tx.now_ms, whole)
        return
    rest = open_lanes[0]
    if rest.occupant.state is OccupancyState.ALLOCATED:
        return  # it shows when the allocation lets go
    if rest.occupant.cause == CLAIM_CAUSE and whole.state in {OccupancyState.IDLE, OccupancyState.RESERVED_UNUSED}:
        return  # it stays kept for the job that others were stopped for
    occupant = replace(whole, units=rest.occupant.units)
    if (rest.occupant, rest.gpu_class) != (occupant, device.gpu_class):
        lanes.move(rest, occupant, tx.now_ms, evidence, device.gpu_class)
