"""Which nodes are near each other: gangs go into the lowest level of the network that holds them, the fullest there.

A level is a node label (`rack`, `spine`), a domain all nodes of a pool with the same value of it. For each level and
number of free GPUs an index keeps the domains by how many of their nodes have so many; only nodes that changed since
the last question are counted again.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from sortedcontainers import SortedList

from scheduler.core.capacity import Capacity, NodeRoom, PoolKey
from scheduler.core.model import NodeName, Shape

Domain = str  # the label's value


def levels_for(shape: Shape, labels: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the levels to try for a gang, the lowest first: up to the one that it names, else all."""
    if shape.topology is None:
        return labels
    level, _ = shape.topology
    return labels[: labels.index(level) + 1] if level in labels else (level,)


@dataclass(slots=True, eq=False)
class _Level:
    """The domains of one label in one pool."""

    members: dict[Domain, set[NodeName]] = field(default_factory=dict)
    free_of: dict[NodeName, int] = field(default_factory=dict)
    counts: dict[int, Counter[Domain]] = field(default_factory=dict)
    """By number of GPUs: how many nodes of each domain have so many free."""
    ranked: dict[int, SortedList[tuple[int, Domain]]] = field(default_factory=dict)
    """The same, in order; built for the numbers that were asked for."""
    stale: set[NodeName] = field(default_factory=set)


class Domains:
    """The domains of every level that was ever asked for."""

    def __init__(self, capacity: Capacity) -> None:
        self._capacity = capacity
        self._changed = capacity.watch()
        self._inventory_version = -1
        self._levels: dict[tuple[PoolKey, str], _Level] = {}

    def fullest(self, key: PoolKey, label: str, gpus: int, nodes: int) -> Iterator[Domain]:
        """Yields the domains with so many nodes that have so many free GPUs: those with the fewest such nodes first."""
        level = self._level(key, label)
        ranked = level.ranked.get(gpus)
        if ranked is None:
            counts = Counter(dict.fromkeys(level.members, 0))
            for domain, names in level.members.items():
                counts[domain] = sum(level.free_of[name] >= gpus for name in names)
            level.counts[gpus] = counts
            ranked = level.ranked[gpus] = SortedList((count, domain) for domain, count in counts.items())
        for _, domain in list(ranked.irange((nodes, ""))):
            yield domain

    def rooms(self, key: PoolKey, label: str, domain: Domain, gpus: int) -> list[NodeRoom]:
        """Returns a domain's nodes with so many free GPUs: fewest free first, then by name."""
        level = self._level(key, label)
        names = [name for name in level.members[domain] if level.free_of[name] >= gpus]
        names.sort(key=lambda name: (level.free_of[name], name))
        return [self._capacity.rooms[name] for name in names]

    def members(self, key: PoolKey, label: str) -> dict[Domain, set[NodeName]]:
        """Returns the nodes of each domain of a level; not to be changed."""
        return self._level(key, label).members

    def _level(self, key: PoolKey, label: str) -> _Level:
        if self._inventory_version != self._capacity.inventory_version:
            self._levels.clear()
            self._changed.clear()
            self._inventory_version = self._capacity.inventory_version
        rooms = self._capacity.rooms
        if self._changed:
            for (pool, _), level in self._levels.items():
                level.stale.update(
                    name for name in self._changed if (rooms[name].node.gpu_class, rooms[name].node.pool) == pool
                )
            self._changed.clear()
        found = self._levels.get((key, label))
        if found is None:
            found = self._levels[key, label] = _Level()
            for room in self._capacity.nodes_by_free(key, 0):
                domain = room.node.labels.get(label)
                if domain is not None:
                    found.members.setdefault(domain, set()).add(room.node.name)
                    found.free_of[room.node.name] = len(room.free)
        for name in found.stale:
            if name in found.free_of:
                self._count(found, rooms[name].node.labels[label], name, len(rooms[name].free))
        found.stale.clear()
        return found

    @staticmethod
    def _count(level: _Level, domain: Domain, name: NodeName, free: int) -> None:
        before = level.free_of[name]
        level.free_of[name] = free
        for gpus, counts in level.counts.items():
            change = (free >= gpus) - (before >= gpus)
            if change:
                ranked = level.ranked[gpus]
                ranked.remove((counts[domain], domain))
                counts[domain] += change
                ranked.add((counts[domain], domain))
