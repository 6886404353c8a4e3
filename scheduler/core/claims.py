"""What is kept for a job while those that were stopped for it end: the claim, and what it holds of each node.

A claim names the very devices that its job will get. What of them is free it holds at once; the rest is booked ahead,
and taken as the victims let go, before anybody else can. `Claims` keeps that up: what a claim holds of a node follows
from the node, the live allocations and the claims alone, so a state that is rebuilt holds the same.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from scheduler.core.capacity import Capacity, NodeRoom, is_schedulable
from scheduler.core.future import Future
from scheduler.core.model import Allocation, DeviceId, GpuClass, Grant, JobId, NodeName
from scheduler.core.stretch import FIXED, Claim, Need, Rank, Stretch

REMEMBERED_MS = 86_400_000
"""For how long it is known how many gangs were stopped when: a day, more than any window of the rate limit."""


@dataclass(frozen=True, slots=True)
class Eviction:
    """So many gangs were stopped in a class, at an instant, by rules that the rate limit binds."""

    at_ms: int
    gpu_class: GpuClass
    gangs: int


class Claims:
    """The claims there are, in the order in which they were made, with what each holds now."""

    def __init__(self, capacity: Capacity, future: Future) -> None:
        self.by_job: dict[JobId, Claim] = {}
        self.recent: list[Eviction] = []
        self._capacity = capacity
        self._future = future
        self._on_node: dict[NodeName, dict[JobId, Grant]] = {}
        """By node, what each claim wants of it, in the order of the claims."""
        self._holds: dict[tuple[JobId, NodeName], Grant] = {}
        self._booked: set[tuple[JobId, NodeName]] = set()

    def add(self, claim: Claim, live: Iterable[Allocation]) -> list[tuple[Allocation, Grant, int]]:
        """Takes up a claim; `live` are those of its victims that have not ended.

        Returns when each of these was taken to end on each node, for `forget`: from now on they are taken to end soon.
        """
        self.by_job[claim.job] = claim
        ends = [
            (victim, grant, self._future.end_ms(victim.id, grant.node)) for victim in live for grant in victim.grants
        ]
        for victim, grant, end_ms in ends:
            self._retime(victim, grant, min(end_ms, claim.free_ms))
        for grant in claim.grants:
            self.lift(grant.node)
            self._on_node.setdefault(grant.node, {})[claim.job] = grant
            self.settle(grant.node)
        return ends

    def forget(self, job: JobId, ends: list[tuple[Allocation, Grant, int]]) -> None:
        """Undoes `add`."""
        self.drop(job)
        for victim, grant, end_ms in ends:
            self._retime(victim, grant, end_ms)

    def drop(self, job: JobId) -> Claim:
        """Lets go of all that a claim holds, which others on the same nodes may then top up from."""
        claim = self.by_job.pop(job)
        for grant in claim.grants:
            self.lift(grant.node)
            del self._on_node[grant.node][job]
            if not self._on_node[grant.node]:
                del self._on_node[grant.node]
            self.settle(grant.node)
        return claim

    def remember(self, claim: Claim) -> None:
        """Counts a claim's victims for the rate limit."""
        self.recent = [each for each in self.recent if each.at_ms > claim.made_ms - REMEMBERED_MS]
        if claim.guarded:
            self.recent.append(Eviction(claim.made_ms, claim.gpu_class, claim.guarded))

    def evicted_since(self, gpu_class: GpuClass, since_ms: int) -> int:
        """Returns how many gangs of a class were stopped after an instant by rules that the rate limit binds."""
        return sum(each.gangs for each in self.recent if each.gpu_class == gpu_class and each.at_ms > since_ms)

    def lift(self, node: NodeName) -> None:
        """Lets go of what claims hold of a node; `settle` takes it again."""
        for job in self._on_node.get(node, ()):
            if (job, node) in self._booked:
                self._booked.remove((job, node))
                self._future.unbook(_owner(job), node)
            held = self._holds.pop((job, node), None)
            if held is not None:
                self._future.drop(_owner(job), held)
                self._capacity.give_back(held)

    def settle(self, node: NodeName) -> None:
        """Takes for the claims on a node what of it is free, in their order."""
        room = self._capacity.rooms.get(node)
        if room is None:
            return
        for job, wanted in self._on_node.get(node, {}).items():
            claim, held = self.by_job[job], self._free_part(wanted)
            if held is not None:
                self._capacity.take(held)
                self._future.add(_owner(job), held, claim.end_ms)
                self._holds[job, node] = held
            if held != wanted:
                stretch = Stretch(claim.free_ms, claim.end_ms, _rest(wanted, held), Rank(FIXED), claim.free_ms)
                self._future.book(_owner(job), node, stretch)
                self._booked.add((job, node))

    def _retime(self, victim: Allocation, grant: Grant, end_ms: int) -> None:
        self._future.drop(victim.id, grant)
        self._future.add(victim.id, grant, end_ms)

    def _free_part(self, wanted: Grant) -> Grant | None:
        """Returns what of a grant could be taken now; None for nothing."""
        room = self._capacity.rooms[wanted.node]
        free = {room.devices[position].id for position in room.free}
        devices = tuple(each for each in wanted.devices if each in free or self._has_left(room, each, wanted.units))
        cpu = min(wanted.cpu_millicores, max(0, room.cpu_free_millicores))
        memory = min(wanted.memory_bytes, max(0, room.memory_free_bytes))
        return Grant(wanted.node, devices, wanted.units, cpu, memory) if devices or cpu or memory else None

    def _has_left(self, room: NodeRoom, device_id: DeviceId, units: int) -> bool:
        """Tells whether a device that others hold a part of has so much left."""
        device = self._capacity.find(device_id)
        if device is None or device.node != room.node.name or not is_schedulable(room.node, device):
            return False
        return device.units - room.held_units.get(device_id, 0) >= units

    def is_complete(self, claim: Claim) -> bool:
        """Tells whether a claim holds all that its job needs."""
        return all(self._holds.get((claim.job, grant.node)) == grant for grant in claim.grants)

    def kept_devices(self) -> frozenset[DeviceId]:
        """Returns the devices that claims keep empty now: nobody else holds a part of them."""
        kept = ((grant.node, device, grant.units) for grant in self._holds.values() for device in grant.devices)
        return frozenset(
            device for node, device, units in kept if self._capacity.rooms[node].held_units[device] == units
        )


def _owner(job: JobId) -> str:
    """Returns the name under which a claim holds its part in the shadow schedule."""
    return f"claim of {job}"


def _rest(wanted: Grant, held: Grant | None) -> Need:
    if held is None:
        return Need(len(wanted.devices), wanted.cpu_millicores, wanted.memory_bytes)
    return Need(
        len(wanted.devices) - len(held.devices),
        wanted.cpu_millicores - held.cpu_millicores,
        wanted.memory_bytes - held.memory_bytes,
    )
