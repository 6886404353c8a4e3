"""Where a gang fits, or why it does not: best fit on whole GPUs, then on shares, through the capacity's indexes.

Best fit keeps large holes: a node whose free GPUs the job uses up is taken before one that would keep a remainder. A
gang stays inside one pool where one pool can hold it, because nodes of a pool share their network.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from heapq import merge
from itertools import islice
from zlib import crc32

from scheduler.core.capacity import Capacity, NodeRoom, PoolKey, is_schedulable
from scheduler.core.fragmentation import WHOLE
from scheduler.core.model import GPU_UNITS, DeviceId, GpuClass, Grant, NodeAvailability, NodeName, PoolName, Shape
from scheduler.core.plan import ShapeVerdict
from scheduler.core.reasons import Reason, ReasonCode
from scheduler.core.state import ClusterState, Structure
from scheduler.core.topology import Domains, levels_for

ClosedPools = dict[PoolName, str | None]
Spares = Callable[[NodeRoom, DeviceId | None], bool]
"""Whether a node can spare a gang's part now: asked with a device when a share would go beside others on it."""
Chooser = Callable[[PoolKey, Shape], Iterator[tuple[int, NodeName, int]]]
"""For a pool and a shape: (cost, node, device position of a share or WHOLE) where there is room, the best first."""


def place(
    capacity: Capacity, shape: Shape, gpu_class: GpuClass, closed: ClosedPools, spares: Spares | None = None
) -> tuple[Grant, ...] | None:
    """Returns the grants of a whole gang in one class, in rank order, or None. Takes nothing.

    `spares` says of a node that has room whether it may be used: backfill passes over nodes that are booked ahead.
    Costs what the gang's nodes cost, plus the nodes passed over because CPU, memory or a constraint ruled them out.
    """
    pools = open_pools(capacity, shape, gpu_class, closed)
    if shape.is_share:
        return _place_shares(capacity, shape, gpu_class, pools, spares)
    gpus = shape.gpus_per_node
    best: list[NodeRoom] | None = None
    for pool in pools:
        rooms = list(islice(_fitting(capacity.nodes_by_free((gpu_class, pool), gpus), shape, spares), shape.nodes))
        if len(rooms) == shape.nodes and (best is None or _waste(rooms, gpus) < _waste(best, gpus)):
            best = rooms
    if best is None and len(pools) > 1 and shape.nodes > 1:
        streams = (_fitting(capacity.nodes_by_free((gpu_class, pool), gpus), shape, spares) for pool in pools)
        rooms = list(islice(merge(*streams, key=_by_free), shape.nodes))
        best = rooms if len(rooms) == shape.nodes else None
    if best is None:
        return None
    return tuple(grant_on(room, shape, [room.devices[position].id for position in room.free[:gpus]]) for room in best)


def place_near(
    domains: Domains,
    labels: tuple[str, ...],
    shape: Shape,
    where: tuple[GpuClass, list[PoolName]],
    spares: Spares | None = None,
) -> tuple[Grant, ...] | None:
    """Returns the grants of a gang in the lowest level that holds it, in the fullest such domain, or None.

    Costs the domains passed over because CPU, memory or a constraint ruled them out, and the nodes of the one taken.
    """
    gpu_class, pools = where
    gpus = shape.gpus_per_node
    for label in levels_for(shape, labels):
        for pool in pools:
            key = (gpu_class, pool)
            for domain in domains.fullest(key, label, gpus, shape.nodes):
                rooms = list(islice(_fitting(domains.rooms(key, label, domain, gpus), shape, spares), shape.nodes))
                if len(rooms) == shape.nodes:
                    return tuple(
                        grant_on(room, shape, [room.devices[position].id for position in room.free[:gpus]])
                        for room in rooms
                    )
    return None


def place_more(
    capacity: Capacity, shape: Shape, placed: tuple[Grant, ...], most: int, terms: tuple[tuple[str, ...], Spares]
) -> tuple[Grant, ...]:
    """Returns further parts of a gang of whole GPUs beside those placed, at most so many; maybe none. Takes nothing.

    `terms` are the labels that say what is near, the nearest first, and the question of `place`. They lie in the pools
    of the gang, near its nodes first, and where it must share a label's value, nowhere else. Costs the pools' nodes.
    """
    labels, spares = terms
    used = {grant.node for grant in placed}
    nodes = [capacity.rooms[name].node for name in sorted(used)]
    pools = sorted({(node.gpu_class, node.pool) for node in nodes})
    scopes: list[tuple[str, str] | None] = []
    for label in levels_for(shape, labels):
        values = {node.labels.get(label) for node in nodes}
        value = values.pop()
        if value is not None and not values:
            scopes.append((label, value))
    if shape.required_level is None:
        scopes.append(None)
    found: list[Grant] = []
    for scope in scopes:
        streams = [capacity.nodes_by_free(pool, shape.gpus_per_node) for pool in pools]
        for room in _fitting(merge(*streams, key=_by_free), shape, spares):
            if len(found) == most:
                return tuple(found)
            if room.node.name in used or (scope is not None and room.node.labels.get(scope[0]) != scope[1]):
                continue
            used.add(room.node.name)
            found.append(grant_on(room, shape, [room.devices[each].id for each in room.free[: shape.gpus_per_node]]))
    return tuple(found)


def place_by(
    chooser: Chooser,
    capacity: Capacity,
    shape: Shape,
    where: tuple[GpuClass, list[PoolName]],
    spares: Spares | None = None,
) -> tuple[Grant, ...] | None:
    """Returns the grants of a whole gang where a chooser's costs are least, in one pool if one can hold it, or None."""
    gpu_class, pools = where
    best: tuple[int, list[tuple[NodeName, int]]] | None = None
    for group in [[pool] for pool in pools] + ([pools] if len(pools) > 1 and shape.nodes > 1 else []):
        if len(group) > 1 and best is not None:
            break
        streams = [chooser((gpu_class, pool), shape) for pool in group]
        cost, found = 0, []
        for each, name, position in streams[0] if len(streams) == 1 else merge(*streams):
            room = capacity.rooms[name]
            beside = None if position < 0 or position in room.free else room.devices[position].id
            if is_named(room, shape) and (spares is None or spares(room, beside)):
                cost += each
                found.append((name, position))
                if len(found) == shape.nodes:
                    break
        if len(found) == shape.nodes and (best is None or cost < best[0]):
            best = (cost, found)
    if best is None:
        return None
    grants: list[Grant] = []
    for name, position in best[1]:
        room = capacity.rooms[name]
        taken = room.free[: shape.gpus_per_node] if position < 0 else [position]
        grants.append(grant_on(room, shape, [room.devices[each].id for each in taken]))
    return tuple(grants)


def at_random(capacity: Capacity, salt: str) -> Chooser:
    """Returns a chooser that draws nodes by a hash of their names and a salt. Linear in the nodes."""

    def draw(key: PoolKey, shape: Shape) -> Iterator[tuple[int, NodeName, int]]:
        drawn: list[tuple[int, NodeName, int]] = []
        for room in capacity.nodes_by_free(key, 0):
            if not _fits_now(room, shape):
                continue
            position = WHOLE
            if shape.is_share:
                position = next(
                    place
                    for place, device in enumerate(room.devices)
                    if is_schedulable(room.node, device)
                    and device.units - room.held_units.get(device.id, 0) >= shape.gpu_units
                )
            drawn.append((crc32(f"{salt}/{room.node.name}".encode()), room.node.name, position))
        return iter(sorted(drawn))

    return draw


def verdict(
    capacity: Capacity, shape: Shape, closed: ClosedPools, structures: dict[Shape, tuple[int, Structure]]
) -> ShapeVerdict:
    """Returns why no gang of the shape fits now. Scans the nodes once for each change of the inventory."""
    structure = _known_structure(capacity, shape, closed, structures)
    need = -(-shape.total_units // GPU_UNITS)
    if not structure.is_any_pool_open:
        detail = next((closed[pool] for pool in sorted(closed) if shape.pool in {None, pool}), None)
        reason = Reason(ReasonCode.POOL_CLOSED, detail=detail)
    elif not structure.matching or (structure.matching < shape.nodes and _is_choosy(shape)):
        reason = Reason(ReasonCode.CONSTRAINT, need=shape.nodes, free=structure.matching)
    elif structure.capable < shape.nodes:
        reason = Reason(ReasonCode.NODES_DOWN, need=shape.nodes, free=structure.capable, detail=structure.down)
    else:
        free = _free_gpus(capacity, shape, closed)
        reason = Reason(ReasonCode.FRAGMENTATION if free >= need else ReasonCode.CAPACITY, need=need, free=free)
    return ShapeVerdict(shape, (reason,), structure.considered)


def _is_choosy(shape: Shape) -> bool:
    return bool(shape.only_nodes or shape.exclude_nodes or shape.constraints)


def crowded(
    capacity: Capacity,
    shape: Shape,
    closed: ClosedPools,
    structures: dict[Shape, tuple[int, Structure]],
    until_ms: int | None,
) -> ShapeVerdict:
    """Returns that gangs of the shape fit what is free, which is promised to others from `until_ms` on."""
    structure = _known_structure(capacity, shape, closed, structures)
    need, free = -(-shape.total_units // GPU_UNITS), _free_gpus(capacity, shape, closed)
    reason = Reason(ReasonCode.RESERVATION, need=need, free=free, until_ms=until_ms)
    return ShapeVerdict(shape, (reason,), structure.considered)


def _known_structure(
    capacity: Capacity, shape: Shape, closed: ClosedPools, structures: dict[Shape, tuple[int, Structure]]
) -> Structure:
    version, structure = structures.get(shape, (-1, None))
    if structure is None or version != capacity.inventory_version:
        structure = _structure(capacity, shape, closed)
        structures[shape] = (capacity.inventory_version, structure)
    return structure


def count_fitting(capacity: Capacity, shape: Shape, closed: ClosedPools) -> int:
    """Returns how many nodes could hold one node's part of the gang right now. Linear in the nodes."""
    return sum(_fits_now(room, shape) for room in _rooms(capacity, shape, closed) if is_named(room, shape))


def fits(
    state: ClusterState, shape: Shape, gpu_class: GpuClass, closed: ClosedPools, spares: Spares | None = None
) -> bool:
    """Tells whether a gang of the shape could be placed in a class now, whatever the rule that chooses where."""
    level = shape.required_level
    if level is None:
        return place(state.capacity, shape, gpu_class, closed, spares) is not None
    pools = open_pools(state.capacity, shape, gpu_class, closed)
    return place_near(state.domains, (level,), shape, (gpu_class, pools), spares) is not None


def free_if_up(capacity: Capacity, shape: Shape, closed: ClosedPools, spares: Spares | None = None) -> int:
    """Returns how many nodes could hold a part of the gang now, were all that are down or drained to take jobs again.

    As many besides as are missing for the gang, and of GPUs in use by others none. Linear in the nodes.
    """
    rooms = list(named_rooms(capacity, shape, closed))
    missing = max(0, shape.nodes - len(rooms))
    if spares is not None:
        rooms = [room for room in rooms if spares(room, None)]
    return missing + sum(_fits_now(room, shape) or _would_fit(room, shape) for room in rooms)


def named_rooms(capacity: Capacity, shape: Shape, closed: ClosedPools) -> Iterator[NodeRoom]:
    """Yields the nodes of the shape's classes that its job's choice allows, whatever their state."""
    return (room for room in _rooms(capacity, shape, closed) if is_named(room, shape))


def _would_fit(room: NodeRoom, shape: Shape) -> bool:
    """Tells whether a node that could not hold the gang's part as it is has the GPUs for it."""
    if _could_hold(room, shape) or not _has_cpu_and_memory(room, shape):
        return False
    unused = sum(1 for device in room.devices if not device.is_foreign and not room.held_units.get(device.id))
    return unused >= shape.gpus_per_node


def _structure(capacity: Capacity, shape: Shape, closed: ClosedPools) -> Structure:
    level = shape.required_level
    # By class, for a gang is of one, and by domain of the level that it must share; None: all one.
    named: Counter[tuple[GpuClass, str | None]] = Counter()
    able: Counter[tuple[GpuClass, str | None]] = Counter()
    considered = 0
    down: str | None = None
    for room in _rooms(capacity, shape, closed):
        considered += 1
        if not is_named(room, shape):
            continue
        domain = None if level is None else room.node.labels.get(level)
        if level is not None and domain is None:
            continue
        named[room.node.gpu_class, domain] += 1
        if _could_hold(room, shape):
            able[room.node.gpu_class, domain] += 1
        elif down is None and room.node.availability is not NodeAvailability.UP:
            down = f"{room.node.name}: {room.node.reason or room.node.availability}"
    is_any_open = any(open_pools(capacity, shape, gpu_class, closed) for gpu_class in shape.gpu_classes)
    matching, capable = max(named.values(), default=0), max(able.values(), default=0)
    if level is not None and matching < shape.nodes:
        matching = 0  # no domain has so many nodes, up or down
    return Structure(considered, matching, capable, is_any_open, down)


def _free_gpus(capacity: Capacity, shape: Shape, closed: ClosedPools) -> int:
    """Returns the free GPUs of the class that has the most of them on nodes that the job may use."""
    free: Counter[GpuClass] = Counter()
    if shape.only_nodes or shape.exclude_nodes or shape.constraints:
        for room in _rooms(capacity, shape, closed):
            if is_named(room, shape):
                free[room.node.gpu_class] += len(room.free)
    else:
        for gpu_class in shape.gpu_classes:
            for pool in open_pools(capacity, shape, gpu_class, closed):
                free[gpu_class] += capacity.pools[gpu_class, pool].free_gpus
    return max(free.values(), default=0)


def _rooms(capacity: Capacity, shape: Shape, closed: ClosedPools) -> Iterator[NodeRoom]:
    for gpu_class in shape.gpu_classes:
        for pool in open_pools(capacity, shape, gpu_class, closed):
            yield from capacity.nodes_by_free((gpu_class, pool), 0)


def open_pools(capacity: Capacity, shape: Shape, gpu_class: GpuClass, closed: ClosedPools) -> list[PoolName]:
    """Returns the pools of a class in which the job may start, in name order."""
    return [pool for pool in capacity.pools_of(gpu_class) if pool not in closed and shape.pool in (None, pool)]


def _by_free(room: NodeRoom) -> tuple[int, str]:
    return len(room.free), room.node.name


def _waste(rooms: list[NodeRoom], gpus: int) -> int:
    return sum(len(room.free) - gpus for room in rooms)


def _fitting(rooms: Iterable[NodeRoom], shape: Shape, spares: Spares | None) -> Iterator[NodeRoom]:
    fitting = (room for room in rooms if is_named(room, shape) and _has_cpu_and_memory(room, shape))
    return fitting if spares is None else (room for room in fitting if spares(room, None))


def is_named(room: NodeRoom, shape: Shape) -> bool:
    """Tells whether the job's choice of nodes and labels allows the node."""
    name, labels = room.node.name, room.node.labels
    return (
        (not shape.only_nodes or name in shape.only_nodes)
        and name not in shape.exclude_nodes
        and all(labels.get(label) == value for label, value in shape.constraints)
    )


def needs_of(room: NodeRoom, shape: Shape) -> tuple[int, int]:
    """Returns the CPU and the memory that a part of the gang takes on a node."""
    cpu = room.cpu_share(shape.gpu_units) if shape.cpu_millicores is None else shape.cpu_millicores
    memory = room.memory_share(shape.gpu_units) if shape.memory_bytes is None else shape.memory_bytes
    return cpu, memory


def _has_cpu_and_memory(room: NodeRoom, shape: Shape) -> bool:
    cpu, memory = needs_of(room, shape)
    return cpu <= room.cpu_free_millicores and memory <= room.memory_free_bytes


def _could_hold(room: NodeRoom, shape: Shape) -> bool:
    cpu, memory = needs_of(room, shape)
    usable = sum(1 for device in room.devices if is_schedulable(room.node, device))
    return usable >= shape.gpus_per_node and cpu <= room.node.cpu_millicores and memory <= room.node.memory_bytes


def _fits_now(room: NodeRoom, shape: Shape) -> bool:
    if not _has_cpu_and_memory(room, shape):
        return False
    if len(room.free) >= shape.gpus_per_node:
        return True
    return shape.is_share and any(
        is_schedulable(room.node, device) and 0 < room.held_units.get(device.id, 0) <= device.units - shape.gpu_units
        for device in room.devices
    )


def grant_on(room: NodeRoom, shape: Shape, devices: list[DeviceId]) -> Grant:
    """Returns what a part of the gang holds on a node with these devices."""
    cpu, memory = needs_of(room, shape)
    units = shape.gpu_units // len(devices)
    return Grant(room.node.name, tuple(devices), units, cpu, memory)


def _place_shares(
    capacity: Capacity, shape: Shape, gpu_class: GpuClass, pools: list[PoolName], spares: Spares | None
) -> tuple[Grant, ...] | None:
    grants: list[Grant] = []
    used: set[NodeName] = set()
    for _ in range(shape.nodes):
        grant = _place_share((capacity, shape, gpu_class, pools), used, spares)
        if grant is None:
            return None
        used.add(grant.node)
        grants.append(grant)
    return tuple(grants)


def _place_share(
    asked: tuple[Capacity, Shape, GpuClass, list[PoolName]], used: set[NodeName], spares: Spares | None
) -> Grant | None:
    """Takes the device with the least room that is enough; a whole one, on the fullest node, if there is none."""
    capacity, shape, gpu_class, pools = asked
    candidates: list[tuple[int, NodeName, int]] = []
    for pool in pools:
        entries = capacity.pools[gpu_class, pool].partial
        for left, name, position in entries.irange((shape.gpu_units, NodeName(""), 0)):
            room = capacity.rooms[name]
            if (
                name not in used
                and is_named(room, shape)
                and _has_cpu_and_memory(room, shape)
                and (spares is None or spares(room, room.devices[position].id))
            ):
                candidates.append((left, name, position))
                break
    if candidates:
        _, found, position = min(candidates)
        room = capacity.rooms[found]
        return grant_on(room, shape, [room.devices[position].id])
    streams = (_fitting(capacity.nodes_by_free((gpu_class, pool), 1), shape, spares) for pool in pools)
    whole = next((room for room in merge(*streams, key=_by_free) if room.node.name not in used), None)
    return None if whole is None else grant_on(whole, shape, [whole.devices[whole.free[0]].id])
