"""Where a gang breaks up least: expected fragmentation for the recent mix of jobs (FGD: Weng et al., USENIX ATC 2023).

A node's expected fragmentation is what of its free GPUs the jobs of the mix could not use, on average over the mix: all
of it for a job that does not fit the node, else the devices that are too small for it; the mix of a class is of jobs
that take it. A placement costs what it adds, plus three terms that the paper lacks. One is what it strands: free GPUs
beyond what the node's free CPU and memory would feed at the mix's average needs, which the expectation sees only when
hardly a job fits any more. Another is a little best fit, which settles what ties would leave to the order of the nodes:
the paper's figures depend on a rounded score and a lucky order. The last matters to jobs of several classes: a free GPU
is of the less use the less its class is asked for, so they leave alone what others name. Measured on the paper's
own experiment: see benchmarks/yardsticks.py, `openb`.

All quantities are integers; costs are in thousandths of a capacity unit.
"""

from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from sortedcontainers import SortedList

from scheduler.core.capacity import Capacity, NodeRoom, PoolKey, is_schedulable
from scheduler.core.model import GPU_UNITS, GpuClass, NodeName, Shape
from scheduler.core.tally import add_nested

_RECENT_JOBS = 2048
"""Jobs that the mix is taken from: enough for sizes of one in a hundred, few enough to follow a change within a day."""
_REFRESH_JOBS = 512
"""Submissions between two looks at the mix. Every score hangs on it, so it must stand still for a while."""
_MOST_SIZES = 64
"""Sizes in the mix, the most frequent ones."""
_MOST_INDEXES = 256
"""Shapes whose scores are kept; openb has 150 sizes of pod."""
_MOST_KNOWN = 200_000
"""Node states whose fragmentation is remembered."""
_TIGHTNESS_PERMILLE = 1
"""Weight of best fit: a GPU's worth of room left over costs as much as a thousandth of a GPU broken up."""
WHOLE = -1
"""In a choice: wholly free devices, in order, and not one that is shared."""


class Size(NamedTuple):
    """One node's part of the jobs of the mix, and how many there were. None: the node's share, which always fits."""

    weight: int
    gpu_units: int
    cpu_millicores: int | None
    memory_bytes: int | None


@dataclass(frozen=True, slots=True)
class Sizes:
    """The jobs of the mix that take a class.

    `sizes`: the most frequent, of `weight` in all. `average`: CPU, memory and GPU units of those that name their CPU or
    memory, for the ratios.
    """

    sizes: tuple[Size, ...] = ()
    weight: int = 1
    average: tuple[int, int, int] = (0, 0, 1)


_NOTHING_KNOWN = Sizes()
_Need = tuple[int, int | None, int | None]


class Mix:
    """The sizes of recent jobs, by the classes that they take."""

    def __init__(self) -> None:
        self.version = 0
        self._by_class: dict[GpuClass, Sizes] = {}
        self._recent: deque[Shape] = deque()
        self._counts: dict[tuple[GpuClass, ...], Counter[_Need]] = {}
        self._since = 0

    def of(self, gpu_class: GpuClass) -> Sizes:
        """Returns the sizes of recent jobs as a node of this class sees them."""
        return self._by_class.get(gpu_class, _NOTHING_KNOWN)

    def add(self, shape: Shape) -> None:
        """Counts a job that was submitted; one without GPUs can use no fragment and has no part in this."""
        if shape.gpu_units == 0:
            return
        self._count(shape, +1)
        self._recent.append(shape)
        if len(self._recent) > _RECENT_JOBS:
            self._count(self._recent.popleft(), -1)
        self._since += 1
        if self._since >= min(_REFRESH_JOBS, max(1, len(self._recent) // 2)):
            self._refresh()

    def asked(self) -> Iterator[tuple[tuple[GpuClass, ...], int]]:
        """Yields which classes recent jobs take, and how many units these jobs asked for."""
        for classes, counts in self._counts.items():
            yield classes, sum(units * count for (units, _, _), count in counts.items())

    def _count(self, shape: Shape, sign: int) -> None:
        need = (shape.gpu_units, shape.cpu_millicores, shape.memory_bytes)
        add_nested(self._counts, shape.gpu_classes, need, sign * shape.nodes)

    def _refresh(self) -> None:
        self._since = 0
        takers: dict[GpuClass, Counter[_Need]] = {}
        for classes, counts in self._counts.items():
            for gpu_class in classes:
                takers.setdefault(gpu_class, Counter()).update(counts)
        self._by_class = {gpu_class: _sizes(counts) for gpu_class, counts in takers.items()}
        self.version += 1


def _sizes(counts: Counter[_Need]) -> Sizes:
    ranked = sorted(counts.items(), key=lambda entry: (-entry[1], str(entry[0])))[:_MOST_SIZES]
    sizes = tuple(Size(count, *key) for key, count in ranked)
    average = (
        sum(size.weight * (size.cpu_millicores or 0) for size in sizes),
        sum(size.weight * (size.memory_bytes or 0) for size in sizes),
        sum(size.weight * size.gpu_units for size in sizes),
    )
    return Sizes(sizes, sum(size.weight for size in sizes), average)


def pressure(capacity: Capacity, mix: Mix) -> dict[GpuClass, int]:
    """Returns how much each class is asked for: millionths of a unit asked by recent jobs a unit that there is.

    What a job asks is spread over all GPUs that would do for it, so one that takes any class presses on all alike.
    """
    supply: Counter[GpuClass] = Counter()
    for room in capacity.rooms.values():
        supply[room.node.gpu_class] += sum(device.units for device in room.devices)
    found: dict[GpuClass, int] = dict.fromkeys(sorted(supply), 0)
    for classes, units in mix.asked():
        there = {gpu_class for gpu_class in classes if supply[gpu_class]}
        for gpu_class in there:
            found[gpu_class] += 1_000_000 * units // sum(supply[each] for each in there)
    return found


class NodeState(NamedTuple):
    """What of a node's free resources matters to fragmentation. `lefts`: units left on each device, most first."""

    gpu_class: GpuClass
    lefts: tuple[int, ...]
    cpu_millicores: int
    memory_bytes: int


@dataclass(slots=True, eq=False)
class _Index:
    """The nodes of a pool by what a shape would cost there, with the device that a share would take."""

    entries: SortedList[tuple[int, NodeName, int]] = field(default_factory=SortedList)
    entry_of: dict[NodeName, tuple[int, NodeName, int]] = field(default_factory=dict)
    stale: set[NodeName] = field(default_factory=set)


class Fragments:
    """Scores of placements, kept until their node or the mix changes."""

    def __init__(self, capacity: Capacity, mix: Mix) -> None:
        self._capacity = capacity
        self._mix = mix
        self._changed = capacity.watch()
        self._versions = (-1, -1)
        self._indexes: OrderedDict[tuple[PoolKey, Shape], _Index] = OrderedDict()
        self._by_pool: dict[PoolKey, list[_Index]] = {}
        self._known: dict[NodeState, int] = {}
        self._pressure: dict[GpuClass, int] = {}
        self._highest = 1

    def cheapest(self, key: PoolKey, shape: Shape) -> Iterator[tuple[int, NodeName, int]]:
        """Yields (cost, node, device position or WHOLE) for the nodes of a pool that have room, the cheapest first.

        Costs the nodes that changed since the same question, then each node that is taken.
        """
        return iter(self._index(key, shape).entries)

    def _index(self, key: PoolKey, shape: Shape) -> _Index:
        versions = (self._mix.version, self._capacity.inventory_version)
        if versions != self._versions:
            self._indexes.clear()
            self._by_pool.clear()
            self._known.clear()
            self._changed.clear()
            self._versions = versions
            self._pressure = pressure(self._capacity, self._mix)
            self._highest = max(1, *self._pressure.values()) if self._pressure else 1
        for name in self._changed:
            room = self._capacity.rooms[name]
            for index in self._by_pool.get((room.node.gpu_class, room.node.pool), ()):
                index.stale.add(name)
        self._changed.clear()
        found = self._indexes.get((key, shape))
        if found is None:
            found = self._indexes[key, shape] = _Index()
            found.stale.update(room.node.name for room in self._capacity.nodes_by_free(key, 0))
            self._by_pool.setdefault(key, []).append(found)
            if len(self._indexes) > _MOST_INDEXES:
                (old_key, _), old = self._indexes.popitem(last=False)
                self._by_pool[old_key].remove(old)
        else:
            self._indexes.move_to_end((key, shape))
        self._refresh(found, shape)
        return found

    def _refresh(self, index: _Index, shape: Shape) -> None:
        for name in index.stale:
            cost = self._cost(self._capacity.rooms[name], shape)
            entry = None if cost is None else (cost[0], name, cost[1])
            before = index.entry_of.get(name)
            if before == entry:
                continue
            if before is not None:
                index.entries.remove(before)
                del index.entry_of[name]
            if entry is not None:
                index.entries.add(entry)
                index.entry_of[name] = entry
        index.stale.clear()

    def _cost(self, room: NodeRoom, shape: Shape) -> tuple[int, int] | None:
        """Returns the least cost of one node's part here and where it would go; None if it has no room."""
        cpu = room.cpu_share(shape.gpu_units) if shape.cpu_millicores is None else shape.cpu_millicores
        memory = room.memory_share(shape.gpu_units) if shape.memory_bytes is None else shape.memory_bytes
        cpu, memory = room.cpu_free_millicores - cpu, room.memory_free_bytes - memory
        if cpu < 0 or memory < 0:
            return None
        lefts = [
            (device.units - room.held_units.get(device.id, 0), position)
            for position, device in enumerate(room.devices)
            if is_schedulable(room.node, device)
        ]
        gpu_class = room.node.gpu_class
        before = NodeState(
            gpu_class, _ranked(left for left, _ in lefts), room.cpu_free_millicores, room.memory_free_bytes
        )
        base = self._burden(before)
        if shape.gpu_units == 0:
            return self._burden(NodeState(gpu_class, before.lefts, cpu, memory)) - base, WHOLE
        if not shape.is_share:
            gpus = shape.gpus_per_node
            if len(room.free) < gpus:
                return None
            after = NodeState(gpu_class, before.lefts[gpus:], cpu, memory)
            return self._burden(after) - base, WHOLE
        best: tuple[int, int] | None = None
        tried: set[int] = set()
        for left, position in lefts:
            if left < shape.gpu_units or left in tried:
                continue
            tried.add(left)
            rest = [other for other, place in lefts if place != position]
            after = NodeState(gpu_class, _ranked([*rest, left - shape.gpu_units]), cpu, memory)
            cost = (self._burden(after) - base, position)
            best = cost if best is None else min(best, cost)
        return best

    def _burden(self, state: NodeState) -> int:
        """Returns what is broken up, stranded and left over on a node, in thousandths of a unit."""
        known = self._known.get(state)
        if known is None:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            known = self._known[state] = self._measure(state)
        return known

    def _measure(self, state: NodeState) -> int:
        mix, lefts = self._mix.of(state.gpu_class), state.lefts
        total = sum(lefts)
        whole = lefts.count(GPU_UNITS)
        largest = lefts[0] if lefts else 0
        broken = 0
        for weight, units, cpu, memory in mix.sizes:
            if (cpu or 0) > state.cpu_millicores or (memory or 0) > state.memory_bytes:
                broken += weight * total
            elif units >= GPU_UNITS:
                broken += weight * (total - whole * GPU_UNITS if whole * GPU_UNITS >= units else total)
            else:
                broken += weight * (sum(left for left in lefts if left < units) if largest >= units else total)
        cpu_sum, memory_sum, unit_sum = mix.average
        fed_by_cpu = state.cpu_millicores * unit_sum // cpu_sum if cpu_sum else total
        fed_by_memory = state.memory_bytes * unit_sum // memory_sum if memory_sum else total
        stranded = max(0, total - fed_by_cpu, total - fed_by_memory)
        room_left = total + fed_by_cpu + fed_by_memory
        unasked = self._highest - self._pressure.get(state.gpu_class, 0)
        of_less_use = 1000 * total * unasked // self._highest
        return 1000 * broken // mix.weight + of_less_use + 1000 * stranded + _TIGHTNESS_PERMILLE * room_left


def _ranked(lefts: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted((left for left in lefts if left), reverse=True))
