"""When what is held becomes free again, node by node: the shadow schedule that reservations are laid into.

A `Future` knows the grants that running gangs hold with the time at which their limits end, and the stretches of nodes
that are booked ahead; nothing of jobs, accounts or the order. Every `add` has an exact inverse in `drop`, so a planner
may try what it likes and undo it. For each need that is searched for, an index keeps the nodes by the time at which
they could hold it; only nodes that changed since the last search are looked at again.

A gang past its limit is taken to end after its grace, and one past that after a further grace each time.
"""

from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import NamedTuple

from sortedcontainers import SortedList

from scheduler.core.capacity import Capacity, NodeRoom, PoolKey
from scheduler.core.model import DeviceId, Grant, NodeName
from scheduler.core.stretch import FIXED, Need, Rank, Reservation, Stretch, is_within

NEVER_MS = 1 << 62
"""Later than any time; when a node that cannot hold a need will be able to."""
_MOST_INDEXES = 32
"""Needs whose index is kept. Clusters know few sizes of job; an index that was dropped is built again in one scan."""
_MOST_GAINS = 256
"""Gains that an index remembers. More than a busy tick frees; past them a promise is sought once too often, no more."""


class Wanted(NamedTuple):
    """What is asked of each node, before the node's own share of CPU and memory is worked out. None: that share."""

    gpus: int
    gpu_units: int
    cpu_millicores: int | None
    memory_bytes: int | None

    def on(self, room: NodeRoom) -> Need:
        """Returns the need on a certain node."""
        cpu = room.cpu_share(self.gpu_units) if self.cpu_millicores is None else self.cpu_millicores
        memory = room.memory_share(self.gpu_units) if self.memory_bytes is None else self.memory_bytes
        return Need(self.gpus, cpu, memory)


class Asker(NamedTuple):
    """Who wants a part of a node. What was promised before does not give way to nodes that are emptied for others."""

    rank: Rank
    is_promised: bool


class Release(NamedTuple):
    """At a time, so much of a node becomes free."""

    at_ms: int
    gpus: int
    cpu_millicores: int
    memory_bytes: int


@dataclass(slots=True, eq=False)
class _Index:
    """The nodes of a pool by the time from which they can hold a need for ever, bookings aside."""

    entries: SortedList[tuple[int, NodeName]] = field(default_factory=SortedList)
    at_ms: dict[NodeName, int] = field(default_factory=dict)
    stale: set[NodeName] = field(default_factory=set)
    gains: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=_MOST_GAINS))
    """(serial, time) of the last nodes that became able to hold the need sooner than before."""
    forgets_until: int = 0
    """Gains up to this serial are not known (any more)."""


class Future:
    """What running gangs will give back, and what is booked ahead, over a `Capacity` that says what is free now."""

    def __init__(self, capacity: Capacity) -> None:
        self._capacity = capacity
        self.booked: dict[NodeName, dict[str, Stretch]] = {}
        """By node, the stretches booked on it, each by its owner."""
        self._holds: dict[NodeName, dict[str, tuple[int, Grant]]] = {}
        self._limits: list[tuple[int, str, NodeName]] = []
        self._sorted: dict[NodeName, list[Release]] = {}
        self._indexes: OrderedDict[tuple[PoolKey, Wanted], _Index] = OrderedDict()
        self._by_pool: dict[PoolKey, list[_Index]] = {}
        self._inventory_version = -1
        self.serial = 0
        """Rises with every gain that an index has seen."""

    # ---- what is held --------------------------------------------------------------------------------------------

    def add(self, owner: str, grant: Grant, end_ms: int) -> None:
        """Notes that a gang holds the grant until its limit; the capacity has taken it already."""
        self._holds.setdefault(grant.node, {})[owner] = (end_ms, grant)
        heappush(self._limits, (end_ms, owner, grant.node))
        self._changed(grant.node)

    def drop(self, owner: str, grant: Grant) -> None:
        """Undoes `add` of the same owner on the same node."""
        holds = self._holds[grant.node]
        del holds[owner]
        if not holds:
            del self._holds[grant.node]
        self._changed(grant.node)

    def end_ms(self, owner: str, node: NodeName) -> int:
        """Returns when the owner is taken to leave the node. Raises KeyError."""
        return self._holds[node][owner][0]

    def move_to(self, now_ms: int, grace_ms: int) -> None:
        """Puts off the end of gangs that should have ended by now; costs what is overdue."""
        while self._limits and self._limits[0][0] <= now_ms:
            end_ms, owner, node = heappop(self._limits)
            held = self._holds.get(node, {}).get(owner)
            if held is None or held[0] != end_ms:
                continue
            step_ms = max(1, grace_ms)
            later_ms = end_ms + ((now_ms - end_ms) // step_ms + 1) * step_ms
            self._holds[node][owner] = (later_ms, held[1])
            heappush(self._limits, (later_ms, owner, node))
            self._changed(node)

    # ---- what is booked ------------------------------------------------------------------------------------------

    def book(self, owner: str, node: NodeName, stretch: Stretch) -> None:
        """Books a part of a node ahead."""
        self.booked.setdefault(node, {})[owner] = stretch

    def unbook(self, owner: str, node: NodeName) -> None:
        """Undoes `book`."""
        stretches = self.booked[node]
        del stretches[owner]
        if not stretches:
            del self.booked[node]

    def promise(self, reservation: Reservation) -> None:
        """Books all that a waiting job is promised."""
        owner, rank = f"job {reservation.job}", Rank(reservation.strength)
        for node, need in reservation.parts:
            self.book(
                owner, node, Stretch(reservation.start_ms, reservation.end_ms, need, rank, reservation.kept_from_ms)
            )

    def unpromise(self, reservation: Reservation) -> None:
        """Undoes `promise`."""
        for node, _ in reservation.parts:
            self.unbook(f"job {reservation.job}", node)

    # ---- questions -----------------------------------------------------------------------------------------------

    def is_clear(self, room: NodeRoom, need: Need, since_ms: int, until_ms: int, asker: Asker) -> bool:
        """Tells whether the node can spare the need over the whole time, leaving whole what is booked on it.

        What of the need is free now is not asked again for a time before the first booking.
        """
        stretches = self.booked.get(room.node.name)
        if not stretches:
            return True
        binding = [each for each in _binding(stretches, asker) if each.end_ms > since_ms]
        for start_ms in {max(since_ms, each.start_ms) for each in binding if each.start_ms < until_ms}:
            if not self._left_at(room, start_ms, binding).covers(need):
                return False
        return True

    def starts(
        self, room: NodeRoom, need: Need, now_ms: int, length_ms: int, asker: Asker
    ) -> Iterator[tuple[int, int]]:
        """Yields, in order, the spans (first, last) of times at which so much could start here and stay so long."""
        binding = _binding(self.booked.get(room.node.name, {}), asker)
        moments = {now_ms}
        moments.update(release.at_ms for release in self.releases(room))
        for each in binding:
            moments.update((each.start_ms, each.end_ms))
        begin_ms: int | None = None
        for moment in sorted(at_ms for at_ms in moments if at_ms >= now_ms):
            if self._left_at(room, moment, binding).covers(need):
                if begin_ms is None:
                    begin_ms = moment
            elif begin_ms is not None:
                if moment - begin_ms >= length_ms:
                    yield begin_ms, moment - length_ms
                begin_ms = None
        if begin_ms is not None:
            yield begin_ms, NEVER_MS

    def by_time(self, key: PoolKey, wanted: Wanted) -> Iterator[tuple[int, NodeName]]:
        """Yields (from when, node) for the nodes of a pool that can hold the need some day, soonest first.

        Bookings are not asked; a time of 0 is now. Costs the nodes that changed since the same question, then each
        node that is taken.
        """
        index = self._index(key, wanted)
        for at_ms, name in index.entries:
            if at_ms == NEVER_MS:
                return
            yield at_ms, name

    def has_improved(self, key: PoolKey, wanted: Wanted, since_serial: int, before_ms: int) -> bool:
        """Tells whether a node of the pool became able to hold the need, by an earlier time than before and than that.

        True when in doubt. Costs the nodes that changed since the same question.
        """
        index = self._index(key, wanted)
        if since_serial < index.forgets_until:
            return True
        for serial, at_ms in reversed(index.gains):
            if serial <= since_serial:
                return False
            if at_ms < before_ms:
                return True
        return False

    def free_from(self, room: NodeRoom, need: Need) -> int:
        """Returns the time from which a node can hold the need for ever, bookings aside: 0 for now, or NEVER_MS."""
        gpus, cpu, memory = len(room.free), room.cpu_free_millicores, room.memory_free_bytes
        if gpus >= need.gpus and cpu >= need.cpu_millicores and memory >= need.memory_bytes:
            return 0
        for release in self.releases(room):
            gpus += release.gpus
            cpu += release.cpu_millicores
            memory += release.memory_bytes
            if gpus >= need.gpus and cpu >= need.cpu_millicores and memory >= need.memory_bytes:
                return release.at_ms
        return NEVER_MS

    def whole_ms(self, room: NodeRoom, device: DeviceId) -> int:
        """Returns when the last of the gangs that share a device is taken to leave it."""
        holds = self._holds.get(room.node.name, {}).values()
        return max((end_ms for end_ms, grant in holds if device in grant.devices), default=0)

    def releases(self, room: NodeRoom) -> list[Release]:
        """Returns what becomes free on a node, in order of time."""
        if self._inventory_version != self._capacity.inventory_version:
            self._forget()
        found = self._sorted.get(room.node.name)
        if found is None:
            found = self._sorted[room.node.name] = _releases(room, self._holds.get(room.node.name, {}))
        return found

    def facts(self) -> dict[NodeName, dict[str, Grant]]:
        """Returns what is held on each node by whom, for proofs."""
        return {node: {owner: grant for owner, (_, grant) in holds.items()} for node, holds in self._holds.items()}

    def _left_at(self, room: NodeRoom, at_ms: int, binding: list[Stretch]) -> Need:
        gpus, cpu, memory = len(room.free), room.cpu_free_millicores, room.memory_free_bytes
        for release in self.releases(room):
            if release.at_ms > at_ms:
                break
            gpus += release.gpus
            cpu += release.cpu_millicores
            memory += release.memory_bytes
        for each in binding:
            if each.start_ms <= at_ms < each.end_ms:
                gpus -= each.need.gpus
                cpu -= each.need.cpu_millicores
                memory -= each.need.memory_bytes
        return Need(gpus, cpu, memory)

    def _changed(self, node: NodeName) -> None:
        self._sorted.pop(node, None)
        room = self._capacity.rooms.get(node)
        if room is not None:
            for index in self._by_pool.get((room.node.gpu_class, room.node.pool), ()):
                index.stale.add(node)

    def _forget(self) -> None:
        """Starts anew after a change of the inventory, which is rare and may touch any node."""
        self._sorted.clear()
        self._indexes.clear()
        self._by_pool.clear()
        self._inventory_version = self._capacity.inventory_version

    def _index(self, key: PoolKey, wanted: Wanted) -> _Index:
        if self._inventory_version != self._capacity.inventory_version:
            self._forget()
        index = self._indexes.get((key, wanted))
        if index is None:
            self.serial += 1
            index = _Index(forgets_until=self.serial)
            index.stale.update(room.node.name for room in self._capacity.nodes_by_free(key, 0))
            self._indexes[key, wanted] = index
            self._by_pool.setdefault(key, []).append(index)
            if len(self._indexes) > _MOST_INDEXES:
                (old_key, _), old = self._indexes.popitem(last=False)
                self._by_pool[old_key].remove(old)
        else:
            self._indexes.move_to_end((key, wanted))
        for name in index.stale:
            room = self._capacity.rooms[name]
            at_ms = self.free_from(room, wanted.on(room))
            before_ms = index.at_ms.get(name)
            if before_ms == at_ms:
                continue
            if before_ms is not None:
                index.entries.remove((before_ms, name))
            index.entries.add((at_ms, name))
            index.at_ms[name] = at_ms
            if before_ms is None or at_ms < before_ms:
                self.serial += 1
                if len(index.gains) == _MOST_GAINS:
                    index.forgets_until = index.gains[0][0]
                index.gains.append((self.serial, at_ms))
        index.stale.clear()
        return index


def _binding(stretches: Mapping[str, Stretch], asker: Asker) -> list[Stretch]:
    """Returns what the asker must leave whole, each from when it must."""
    binding = [each for each in stretches.values() if _binds(each.rank, asker.rank)]
    if asker.is_promised:
        return binding
    return [
        each if each.kept_from_ms == each.start_ms else each._replace(start_ms=each.kept_from_ms) for each in binding
    ]


def _binds(booked: Rank, asking: Rank) -> bool:
    """A stretch binds unless what asks is stronger, or is of the account that it is kept for."""
    if booked.strength >= FIXED:
        account = asking.account
        return booked.account is None or account is None or not is_within(account, booked.account)
    return booked.strength >= asking.strength


def _releases(room: NodeRoom, holds: dict[str, tuple[int, Grant]]) -> list[Release]:
    """A device that several shares hold becomes whole when the last of them ends."""
    last_ms: dict[DeviceId, int] = {}
    parts: dict[int, list[int]] = {}
    for end_ms, grant in holds.values():
        part = parts.setdefault(end_ms, [0, 0, 0])
        part[1] += grant.cpu_millicores
        part[2] += grant.memory_bytes
        for device in grant.devices:
            if device in room.usable and last_ms.get(device, 0) < end_ms:
                last_ms[device] = end_ms
    for end_ms in last_ms.values():
        parts[end_ms][0] += 1
    return [Release(at_ms, *parts[at_ms]) for at_ms in sorted(parts)]
