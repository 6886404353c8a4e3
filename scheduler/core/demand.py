"""What could be had and what is wanted, per GPU class: the two sides of a fair division, kept up as events come.

`Supply` counts nodes by kind, so that a question about the inventory looks at the kinds and not at the nodes. `Demand`
adds up pending jobs for each account and all above it; a job counts only if nothing but order, capacity, fragmentation
or a reservation can stop it, so a shape that the inventory rules out counts nowhere until the inventory changes.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

from scheduler.core.capacity import Capacity, NodeRoom, is_schedulable
from scheduler.core.model import (
    AccountId,
    DeviceHealth,
    GpuClass,
    NodeAvailability,
    NodeName,
    PoolName,
    Shape,
    UserName,
    lineage,
)
from scheduler.core.occupancy import charged_units
from scheduler.core.tally import add, add_nested


class NodeKind(NamedTuple):
    """What nodes have in common that can hold the same gangs. `usable_gpus` are those that a new job may get."""

    gpu_class: GpuClass
    pool: PoolName
    usable_gpus: int
    usable_units: int
    whole_units: int
    cpu_millicores: int
    memory_bytes: int
    labels: frozenset[tuple[str, str]]


class Supply:
    """The nodes there are, by kind."""

    def __init__(self) -> None:
        self.kinds: Counter[NodeKind] = Counter()
        self.impaired: set[NodeName] = set()
        """Nodes with a device on which nothing new may start."""
        self._kind_of: dict[NodeName, NodeKind] = {}

    def put(self, room: NodeRoom) -> None:
        """Counts a node as it is now."""
        self.drop(room.node.name)
        node = room.node
        usable = [device for device in room.devices if is_schedulable(node, device)]
        kind = NodeKind(
            node.gpu_class,
            node.pool,
            len(usable),
            sum(device.units for device in usable),
            room.whole_units,
            node.cpu_millicores,
            node.memory_bytes,
            frozenset(node.labels.items()),
        )
        self.kinds[kind] += 1
        self._kind_of[node.name] = kind
        if len(usable) < len(room.devices):
            self.impaired.add(node.name)

    def drop(self, name: NodeName) -> None:
        """Counts a node no more; does nothing for one that was not counted."""
        kind = self._kind_of.pop(name, None)
        if kind is None:
            return
        self.impaired.discard(name)
        self.kinds[kind] -= 1
        if not self.kinds[kind]:
            del self.kinds[kind]

    def units(self, capacity: Capacity, gpu_class: GpuClass, closed: Collection[PoolName]) -> int:
        """Returns the class's capacity: what may be given out, and what our jobs still hold of what is draining.

        A closed pool drains as a whole. Foreign and failed devices are no capacity.
        """
        total = 0
        for kind, count in self.kinds.items():
            if kind.gpu_class == gpu_class and kind.pool not in closed:
                total += count * kind.usable_units
        names = self.impaired
        if closed:
            names = names | {name for name, kind in self._kind_of.items() if kind.pool in closed}
        for name in names:
            kind = self._kind_of[name]
            if kind.gpu_class == gpu_class:
                total += _held_while_leaving(capacity.rooms[name], is_leaving=kind.pool in closed)
        return total

    def could_hold(self, shape: Shape, gpu_class: GpuClass, closed: Collection[PoolName]) -> bool:
        """Tells whether a gang of the shape would fit the class's open nodes, were they empty."""
        if shape.only_nodes:
            names = [name for name in shape.only_nodes if name in self._kind_of and name not in shape.exclude_nodes]
            kinds: Iterable[tuple[NodeKind, int]] = [(self._kind_of[name], 1) for name in names]
        elif shape.exclude_nodes:
            left = Counter(self.kinds)
            left.subtract(self._kind_of[name] for name in shape.exclude_nodes if name in self._kind_of)
            kinds = left.items()
        else:
            kinds = self.kinds.items()
        return sum(count for kind, count in kinds if _fits(kind, shape, gpu_class, closed)) >= shape.nodes

    def feasible_class(self, shape: Shape, closed: Collection[PoolName]) -> GpuClass | None:
        """Returns the first class that the shape names and that could hold it; None where no class could."""
        return next((each for each in shape.gpu_classes if self.could_hold(shape, each, closed)), None)

    def charged_units(self, shape: Shape, gpu_class: GpuClass) -> int:
        """Returns the units that a gang of the shape would be charged for on the node kind that charges it least."""
        if shape.cpu_millicores is None and shape.memory_bytes is None:
            return shape.total_units
        sizes = {
            (kind.cpu_millicores, kind.memory_bytes, kind.whole_units)
            for kind in self.kinds
            if kind.gpu_class == gpu_class
        }
        charges = (
            charged_units(shape.gpu_units, (shape.cpu_millicores or 0, cpu), (shape.memory_bytes or 0, memory), units)
            for cpu, memory, units in sizes
        )
        return shape.nodes * min(charges, default=shape.gpu_units)


def _held_while_leaving(room: NodeRoom, *, is_leaving: bool) -> int:
    if room.node.availability is NodeAvailability.DOWN:
        return 0
    return sum(
        room.held_units.get(device.id, 0)
        for device in room.devices
        if (is_leaving or not is_schedulable(room.node, device))
        and device.health is not DeviceHealth.FAILED
        and not device.is_foreign
    )


def _fits(kind: NodeKind, shape: Shape, gpu_class: GpuClass, closed: Collection[PoolName]) -> bool:
    return (
        kind.gpu_class == gpu_class
        and kind.pool not in closed
        and shape.pool in (None, kind.pool)
        and kind.usable_gpus >= shape.gpus_per_node
        and (shape.cpu_millicores or 0) <= kind.cpu_millicores
        and (shape.memory_bytes or 0) <= kind.memory_bytes
        and kind.labels.issuperset(shape.constraints)
    )


class Wanted(NamedTuple):
    """Capacity units that pending jobs ask for."""

    auto: int
    """By jobs that take what booking they get."""
    guaranteed: int
    """By jobs that accept no booking but `guaranteed`."""


DemandKey = tuple[AccountId, bool, UserName | None]
"""Whose jobs: the project, whether only `guaranteed` will do, and the user where a limit per user binds the project."""


class Demand:
    """Units that eligible pending jobs ask for, spot apart, by account and class, each job in one class.

    An elastic gang asks for the most that it may have.
    """

    def __init__(self) -> None:
        self._by_shape: dict[Shape, Counter[DemandKey]] = {}
        self._class_of: dict[Shape, GpuClass | None] = {}
        self._unsettled: set[Shape] = set()
        self._version = 0
        self.totals: Counter[tuple[AccountId, GpuClass, bool]] = Counter()
        """Units by account, class and whether only `guaranteed` will do; an account's include those below it."""
        self.sizes: dict[tuple[AccountId, GpuClass], Counter[int]] = {}
        """How many gangs of each size, by account and class: what a limit on running jobs is measured against."""
        self.user_totals: dict[tuple[AccountId, GpuClass], Counter[UserName]] = {}
        """Units of each user, by account and class, where a limit per user binds the user's project."""

    def add(
        self,
        account: AccountId,
        shape: Shape,
        units: int,
        *,
        is_guaranteed_only: bool,
        user: UserName | None = None,
    ) -> None:
        """Adds a pending job's units, or takes them away when negative."""
        key = (account, is_guaranteed_only, user)
        sums = self._by_shape.get(shape)
        if sums is None:
            sums = self._by_shape[shape] = Counter()
            self._unsettled.add(shape)
        add(sums, key, units)
        gpu_class = self._class_of.get(shape)
        if gpu_class is not None:
            self._count(key, gpu_class, shape.largest_units, units)
        if not sums:
            del self._by_shape[shape]
            self._class_of.pop(shape, None)
            self._unsettled.discard(shape)

    def settle(self, version: int, feasible_class: Callable[[Shape], GpuClass | None]) -> None:
        """Moves each shape's sums to the class that it is feasible in at this version of the inventory.

        Looks at new shapes only while the version stays the same.
        """
        for shape in self._unsettled if version == self._version else self._by_shape:
            old, new = self._class_of.get(shape), feasible_class(shape)
            self._class_of[shape] = new
            if old == new:
                continue
            for key, units in self._by_shape[shape].items():
                if old is not None:
                    self._count(key, old, shape.largest_units, -units)
                if new is not None:
                    self._count(key, new, shape.largest_units, units)
        self._unsettled.clear()
        self._version = version

    def of(self, account: AccountId, gpu_class: GpuClass) -> Wanted:
        """Returns what pending jobs of the account and all below it ask for, limits apart; after `settle`."""
        return Wanted(
            self.totals.get((account, gpu_class, False), 0),
            self.totals.get((account, gpu_class, True), 0),
        )

    def largest(self, account: AccountId, gpu_class: GpuClass, count: int) -> int:
        """Returns the units of the account's `count` largest waiting gangs in the class; after `settle`."""
        total = 0
        sizes = self.sizes.get((account, gpu_class), Counter())
        for size in sorted(sizes, reverse=True):
            taken = min(count, sizes[size])
            total += taken * size
            count -= taken
        return total

    def _count(self, key: DemandKey, gpu_class: GpuClass, size: int, units: int) -> None:
        project, is_guaranteed_only, user = key
        for account in lineage(project):
            add(self.totals, (account, gpu_class, is_guaranteed_only), units)
            add_nested(self.sizes, (account, gpu_class), size, units // size)
            if user is not None:
                add_nested(self.user_totals, (account, gpu_class), user, units)
