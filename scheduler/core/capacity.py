"""What is free on which node, indexed so that placing a gang never scans the cluster.

A `Capacity` knows nodes, devices and grants, nothing of jobs or accounts. `take` and `give_back` are exact inverses, so
a planner may take while it thinks and give everything back before it returns. Nodes are bucketed by (class, pool) and
by the number of wholly free GPUs; devices that hold shares are kept by the units they have left.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from sortedcontainers import SortedList

from scheduler.core.model import (
    Device,
    DeviceHealth,
    DeviceId,
    GpuClass,
    Grant,
    Node,
    NodeAvailability,
    NodeName,
    PoolName,
)


@dataclass(slots=True, eq=False)
class NodeRoom:
    """A node's free resources. `free` are positions of devices that are schedulable and wholly free."""

    node: Node
    devices: tuple[Device, ...]
    cpu_free_millicores: int
    memory_free_bytes: int
    free: list[int] = field(default_factory=list)
    held_units: dict[DeviceId, int] = field(default_factory=dict)
    """Units of each device that grants hold, devices that left the node included; never 0."""
    whole_units: int = 0
    """Capacity units of all devices of the node, healthy or not: what CPU and memory shares are measured by."""
    usable: frozenset[DeviceId] = frozenset()
    """The devices on which a new job may be placed, were they free."""

    def __post_init__(self) -> None:
        """Looks at the devices once: every placement asks for a share of them, every start and end who is usable."""
        self.whole_units = sum(device.units for device in self.devices)
        self.usable = frozenset(device.id for device in self.devices if is_schedulable(self.node, device))

    def cpu_share(self, units: int) -> int:
        """Returns the CPU, in millicores, that belongs to so many of the node's capacity units."""
        return self.node.cpu_millicores * units // max(self.whole_units, units)

    def memory_share(self, units: int) -> int:
        """Returns the memory, in bytes, that belongs to so many of the node's capacity units."""
        return self.node.memory_bytes * units // max(self.whole_units, units)


def is_schedulable(node: Node, device: Device) -> bool:
    """Tells whether a new job may be placed on the device, were it free."""
    return node.availability is NodeAvailability.UP and device.health is DeviceHealth.OK and not device.is_foreign


@dataclass(slots=True, eq=False)
class PoolRoom:
    """The nodes of one class in one pool, by what is free on them."""

    by_free: dict[int, list[NodeName]] = field(default_factory=dict)
    """By number of wholly free GPUs, the nodes in name order. Plain lists: to move some thousand names along costs less
    than a tree does."""
    free_counts: list[int] = field(default_factory=list)
    """The keys of `by_free`, in order."""
    partial: SortedList[tuple[int, NodeName, int]] = field(default_factory=SortedList)
    """(units left, node, device position) of schedulable devices that hold shares and have room for more."""
    free_gpus: int = 0

    def put(self, free: int, name: NodeName) -> None:
        """Files a node under its number of free GPUs."""
        bucket = self.by_free.get(free)
        if bucket is None:
            self.by_free[free] = [name]
            insort(self.free_counts, free)
        else:
            insort(bucket, name)
        self.free_gpus += free

    def drop(self, free: int, name: NodeName) -> None:
        """Takes a node out of its bucket."""
        bucket = self.by_free[free]
        if len(bucket) == 1:
            del self.by_free[free]
            self.free_counts.remove(free)
        else:
            del bucket[bisect_left(bucket, name)]
        self.free_gpus -= free


PoolKey = tuple[GpuClass, PoolName]


class Capacity:
    """Free devices, CPU and memory of all nodes."""

    def __init__(self) -> None:
        self.rooms: dict[NodeName, NodeRoom] = {}
        self.pools: dict[PoolKey, PoolRoom] = {}
        self.inventory_version = 0
        """Rises with every change of a node or its devices; grants don't move it."""
        self._versions: dict[GpuClass, int] = {}
        self._watchers: list[set[NodeName]] = []
        self._pools_of: dict[GpuClass, list[PoolName]] = {}
        self._position: dict[DeviceId, tuple[NodeName, int]] = {}

    def pools_of(self, gpu_class: GpuClass) -> tuple[PoolName, ...]:
        """Returns the pools that have nodes of the class, or had, in name order."""
        return tuple(self._pools_of.get(gpu_class, ()))

    def classes(self) -> tuple[GpuClass, ...]:
        """Returns the GPU classes of the nodes there are, in name order."""
        return tuple(sorted({room.node.gpu_class for room in self.rooms.values()}))

    def version(self, gpu_class: GpuClass) -> int:
        """Returns a number that rises whenever anything of the class becomes free: what failed at it fails again."""
        return self._versions.get(gpu_class, 0)

    def raise_version(self, gpu_class: GpuClass) -> None:
        """Says that something of the class became free, or may be used again."""
        self._versions[gpu_class] = self._versions.get(gpu_class, 0) + 1

    def find(self, device: DeviceId) -> Device | None:
        """Returns a device by its id; None when it is not in the inventory (any more)."""
        place = self._position.get(device)
        return None if place is None else self.rooms[place[0]].devices[place[1]]

    def nodes_by_free(self, key: PoolKey, at_least: int) -> Iterator[NodeRoom]:
        """Yields the rooms of a pool with at least so many wholly free GPUs: fewest first, then by name."""
        pool = self.pools.get(key)
        if pool is None:
            return
        for free in pool.free_counts[bisect_left(pool.free_counts, at_least) :]:
            for name in pool.by_free[free]:
                yield self.rooms[name]

    def set_node(self, node: Node, devices: tuple[Device, ...]) -> None:
        """Adds a node, or replaces what is known of it; what grants hold on it stays held."""
        old = self.rooms.get(node.name)
        held: dict[DeviceId, int] = {}
        cpu_free, memory_free = node.cpu_millicores, node.memory_bytes
        if old is not None:
            held = old.held_units
            cpu_free -= old.node.cpu_millicores - old.cpu_free_millicores
            memory_free -= old.node.memory_bytes - old.memory_free_bytes
            self._unfile(old)
        room = NodeRoom(node, devices, cpu_free, memory_free, [], held)
        self.rooms[node.name] = room
        self.inventory_version += 1
        for position, device in enumerate(devices):
            self._position[device.id] = (node.name, position)
            if device.id in room.usable and device.id not in held:
                room.free.append(position)
        self._file(room)

    def remove_node(self, name: NodeName) -> None:
        """Forgets a node. Nothing may be held on it."""
        room = self.rooms[name]
        assert not room.held_units, f"node {name} still holds grants"
        self._unfile(room)
        del self.rooms[name]
        self.inventory_version += 1

    def take(self, grant: Grant) -> None:
        """Marks a grant's devices, CPU and memory as held. The units must be free."""
        room = self.rooms[grant.node]
        pool = self.pools[room.node.gpu_class, room.node.pool]
        before, held_units, units = len(room.free), room.held_units, grant.units
        for device_id in grant.devices:
            place = self._position.get(device_id)
            held = held_units.get(device_id, 0)
            held_units[device_id] = held + units
            if place is None or place[0] != grant.node:
                continue  # restored from the store for a device that has left the node since
            whole = room.devices[place[1]].units
            assert held + units <= whole, f"device {device_id} would hold more than it has"
            if device_id not in room.usable:
                continue
            if held == 0:
                room.free.remove(place[1])
            else:
                pool.partial.remove((whole - held, grant.node, place[1]))
            if held + units < whole:
                pool.partial.add((whole - held - units, grant.node, place[1]))
        room.cpu_free_millicores -= grant.cpu_millicores
        room.memory_free_bytes -= grant.memory_bytes
        self._refile_node(pool, room, before)

    def give_back(self, grant: Grant) -> None:
        """Undoes `take` of the same grant."""
        room = self.rooms[grant.node]
        pool = self.pools[room.node.gpu_class, room.node.pool]
        before, held_units, units = len(room.free), room.held_units, grant.units
        for device_id in grant.devices:
            held = held_units[device_id]
            left = held - units
            assert left >= 0, f"device {device_id} gives back more than it holds"
            if left:
                held_units[device_id] = left
            else:
                del held_units[device_id]
            place = self._position.get(device_id)
            if place is None or place[0] != grant.node or device_id not in room.usable:
                continue
            whole = room.devices[place[1]].units
            if held < whole:
                pool.partial.remove((whole - held, grant.node, place[1]))
            if left:
                pool.partial.add((whole - left, grant.node, place[1]))
            else:
                insort(room.free, place[1])
        room.cpu_free_millicores += grant.cpu_millicores
        room.memory_free_bytes += grant.memory_bytes
        self._refile_node(pool, room, before)
        self.raise_version(room.node.gpu_class)

    def watch(self) -> set[NodeName]:
        """Returns a set to which every node is added when something on it is taken or given back."""
        watcher: set[NodeName] = set()
        self._watchers.append(watcher)
        return watcher

    def versions(self) -> dict[GpuClass, int]:
        """Returns each class's version, to be put back after a planner has given back all that it took."""
        return dict(self._versions)

    def restore_versions(self, versions: dict[GpuClass, int]) -> None:
        """Says that nothing became free since `versions` was read: takes and their exact undoing only."""
        self._versions = versions

    def _refile_node(self, pool: PoolRoom, room: NodeRoom, before: int) -> None:
        for watcher in self._watchers:
            watcher.add(room.node.name)
        after = len(room.free)
        if after != before:
            pool.drop(before, room.node.name)
            pool.put(after, room.node.name)

    def _file(self, room: NodeRoom) -> None:
        key = (room.node.gpu_class, room.node.pool)
        pool = self.pools.get(key)
        if pool is None:
            pool = self.pools[key] = PoolRoom()
            names = self._pools_of.setdefault(room.node.gpu_class, [])
            names.append(room.node.pool)
            names.sort()
        pool.put(len(room.free), room.node.name)
        for entry in self._partial_entries(room):
            pool.partial.add(entry)
        self.raise_version(room.node.gpu_class)

    def _unfile(self, room: NodeRoom) -> None:
        pool = self.pools[room.node.gpu_class, room.node.pool]
        pool.drop(len(room.free), room.node.name)
        for entry in self._partial_entries(room):
            pool.partial.remove(entry)
        for device in room.devices:
            self._position.pop(device.id, None)

    @staticmethod
    def _partial_entries(room: NodeRoom) -> Iterable[tuple[int, NodeName, int]]:
        for position, device in enumerate(room.devices):
            held = room.held_units.get(device.id, 0)
            if 0 < held < device.units and is_schedulable(room.node, device):
                yield device.units - held, room.node.name, position

    def check(self) -> None:
        """Re-derives every index from the rooms and asserts that it is as filed."""
        by_free: dict[PoolKey, dict[int, set[NodeName]]] = {}
        partial: dict[PoolKey, list[tuple[int, NodeName, int]]] = {}
        for name, room in self.rooms.items():
            key = (room.node.gpu_class, room.node.pool)
            free = [
                position
                for position, device in enumerate(room.devices)
                if is_schedulable(room.node, device) and device.id not in room.held_units
            ]
            assert list(room.free) == free, f"node {name} files {list(room.free)} as free, and {free} are"
            by_free.setdefault(key, {}).setdefault(len(free), set()).add(name)
            partial.setdefault(key, []).extend(self._partial_entries(room))
            assert all(units > 0 for units in room.held_units.values()), f"node {name} keeps an empty holding"
        for key, pool in self.pools.items():
            wanted = by_free.get(key, {})
            assert {free: set(names) for free, names in pool.by_free.items()} == wanted, f"buckets of {key} are off"
            assert list(pool.free_counts) == sorted(wanted), f"bucket keys of {key} are off"
            assert list(pool.partial) == sorted(partial.get(key, ())), f"shared devices of {key} are off"
            assert pool.free_gpus == sum(free * len(names) for free, names in wanted.items()), f"sum of {key} is off"
