"""Where a gang would fit if others were stopped: nodes with what evictions would free, and how many are open to it.

Exact: a gang fits as soon as one domain that may hold it has as many open nodes as it asks for. Nothing is taken from
the capacity; what is evicted here may be put back, in any order. Where something is booked ahead, a node is open if it
can spare the part with what was evicted gone: until `restore`, the shadow schedule has it so.
"""

from dataclasses import dataclass

from scheduler.core.capacity import NodeRoom
from scheduler.core.model import Allocation, AllocationId, DeviceId, GpuClass, Grant, NodeName, PoolName, Shape
from scheduler.core.placement import Spares, grant_on, is_named, needs_of, open_pools
from scheduler.core.state import ClusterState

GONE_MS = 1
"""An end before any time that is asked about."""
Domain = tuple[PoolName, str] | None
"""A pool and a label's value where all nodes of a gang must share that; None where any nodes will do."""


@dataclass(slots=True, eq=False)
class _Site:
    """A node as it would be."""

    room: NodeRoom
    domain: Domain
    held: dict[DeviceId, int]
    free: int
    cpu: int
    memory: int
    needs: tuple[int, int]
    usable: frozenset[DeviceId]
    is_booked: bool
    is_open: bool = False


class Openings:
    """The nodes that a gang could use in a class, with what has been evicted so far."""

    def __init__(self, state: ClusterState, shape: Shape, gpu_class: GpuClass, spares: Spares) -> None:
        self._shape = shape
        self._gpus = shape.gpus_per_node
        self._rooms = state.capacity.rooms
        self._gpu_class = gpu_class
        self._spares = spares
        self._pools = open_pools(state.capacity, shape, gpu_class, state.closed_pools)
        self._future = state.future
        self._ends: dict[tuple[AllocationId, NodeName], tuple[int, Grant]] = {}
        """When evicted gangs were taken to leave nodes on which something is booked."""
        self._sites: dict[NodeName, _Site | None] = {}
        self._open: dict[Domain, dict[NodeName, None]] = {}
        # A share may lie beside others on any node; whole GPUs only where enough of them are free.
        at_least = 0 if shape.is_share else self._gpus
        for pool in self._pools:
            for room in state.capacity.nodes_by_free((gpu_class, pool), at_least):
                self._site(room.node.name)

    def has_room(self) -> bool:
        """Tells whether the gang would fit."""
        return any(len(names) >= self._shape.nodes for names in self._open.values())

    def is_open(self, node: NodeName) -> bool:
        """Tells whether a node could hold its part of the gang."""
        site = self._sites.get(node)
        return site is not None and site.is_open

    def would_help(self, gang: Allocation) -> bool:
        """Tells whether a gang is on a node that could become open."""
        return any((site := self._site(grant.node)) is not None and not site.is_open for grant in gang.grants)

    def needs_gone(self, gang: Allocation) -> bool:
        """Tells at a glance whether the gang would not fit with this one back; False when that takes a trial."""
        enough = [len(names) for names in self._open.values() if len(names) >= self._shape.nodes]
        if enough != [self._shape.nodes] or self._shape.is_share:
            return False
        for grant in gang.grants:
            site = self._sites.get(grant.node)
            if site is not None and site.is_open and len(self._open[site.domain]) == self._shape.nodes:
                freed = sum(device in site.usable and not site.held.get(device) for device in grant.devices)
                if site.free - freed < self._gpus:
                    return True
        return False

    def evict(self, gang: Allocation) -> None:
        """Takes a gang off its nodes."""
        self._move(gang, -1)

    def put_back(self, gang: Allocation) -> None:
        """Undoes `evict`."""
        self._move(gang, +1)

    def _move(self, gang: Allocation, sign: int) -> None:
        for grant in gang.grants:
            site = self._site(grant.node)
            if site is None:
                continue
            for device in grant.devices:
                before = site.held.get(device, 0)
                after = site.held[device] = before + sign * grant.units
                if (before == 0) != (after == 0) and device in site.usable:
                    site.free += 1 if after == 0 else -1
            site.cpu -= sign * grant.cpu_millicores
            site.memory -= sign * grant.memory_bytes
            if site.is_booked:
                self._retime(gang, grant, is_gone=sign < 0)
            self._refile(site)

    def restore(self) -> None:
        """Gives the shadow schedule back as it was; nothing may be evicted or put back any more."""
        for (owner, _), (end_ms, grant) in self._ends.items():
            self._future.drop(owner, grant)
            self._future.add(owner, grant, end_ms)
        self._ends.clear()

    def _retime(self, gang: Allocation, grant: Grant, *, is_gone: bool) -> None:
        key = (gang.id, grant.node)
        if is_gone:
            self._ends[key] = self._future.end_ms(gang.id, grant.node), grant
        end_ms = GONE_MS if is_gone else self._ends.pop(key)[0]
        self._future.drop(gang.id, grant)
        self._future.add(gang.id, grant, end_ms)

    def grants(self) -> tuple[Grant, ...]:
        """Returns what the gang would hold, in rank order; it fits. In one pool if one is enough, best fit first."""
        count = self._shape.nodes
        choices: list[list[NodeName]] = []
        for domain in sorted(self._open, key=lambda each: each or ("", "")):
            names = self._open[domain]
            if len(names) < count:
                continue
            if domain is None:
                by_pool = [[name for name in names if self._rooms[name].node.pool == pool] for pool in self._pools]
                choices += [of_pool for of_pool in by_pool if len(of_pool) >= count]
            choices.append(list(names))
        sites = [site for name in choices[0] if (site := self._sites[name]) is not None]
        sites.sort(key=lambda site: (site.free, site.room.node.name))
        return tuple(grant_on(site.room, self._shape, self._devices(site)) for site in sites[:count])

    def _devices(self, site: _Site) -> list[DeviceId]:
        usable = [device for device in site.room.devices if device.id in site.usable]
        if self._shape.is_share:
            left = [(device.units - site.held.get(device.id, 0), device) for device in usable]
            fitting = [(units, device.id) for units, device in left if units >= self._shape.gpu_units]
            return [min(fitting)[1]]
        return [device.id for device in usable if not site.held.get(device.id)][: self._gpus]

    def _site(self, name: NodeName) -> _Site | None:
        """Returns the node as it would be; None for one that the gang may not use."""
        if name not in self._sites:
            site = self._sites[name] = self._made(self._rooms[name])
            if site is not None:
                self._refile(site)
        return self._sites[name]

    def _made(self, room: NodeRoom) -> _Site | None:
        node, level = room.node, self._shape.required_level
        domain: Domain = None
        if node.gpu_class != self._gpu_class or node.pool not in self._pools or not is_named(room, self._shape):
            return None
        if level is not None:
            label = node.labels.get(level)
            if label is None:
                return None
            domain = (node.pool, label)
        is_booked = node.name in self._future.booked
        free, cpu, memory = len(room.free), room.cpu_free_millicores, room.memory_free_bytes
        needs = needs_of(room, self._shape)
        return _Site(room, domain, dict(room.held_units), free, cpu, memory, needs, room.usable, is_booked)

    def _refile(self, site: _Site) -> None:
        cpu, memory = site.needs
        is_open = cpu <= site.cpu and memory <= site.memory and self._has_gpus(site)
        is_open = is_open and (not site.is_booked or self._spares(site.room, None))
        if is_open == site.is_open:
            return
        site.is_open = is_open
        names = self._open.setdefault(site.domain, {})
        if is_open:
            names[site.room.node.name] = None
        else:
            del names[site.room.node.name]

    def _has_gpus(self, site: _Site) -> bool:
        if site.free >= self._gpus:
            return True
        return self._shape.is_share and any(
            device.id in site.usable and device.units - site.held.get(device.id, 0) >= self._shape.gpu_units
            for device in site.room.devices
        )
