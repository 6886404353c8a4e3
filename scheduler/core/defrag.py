"""Defragmentation: which running gangs, placed elsewhere, would let a blocked gang start. Proposals only.

There is room enough for the blocked gang, in the wrong shape. A proposal empties as many nodes as it still needs, those
first that lose the least work, and stands only if every gang that has to leave is placed again beside it, in the same
plan; none of them is moved to a node that is promised or reserved. Gangs that were promised not to be disturbed
(`guaranteed` asked for), gangs of several nodes and gangs that start or stop are left alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from scheduler.core.capacity import NodeRoom
from scheduler.core.model import (
    Allocation,
    BookingWanted,
    DeviceId,
    GpuClass,
    Grant,
    JobId,
    NodeName,
    Phase,
    Shape,
)
from scheduler.core.placement import Spares, place
from scheduler.core.state import ClusterState

MOST_NODES_TRIED = 64
"""Nodes that may be emptied for one proposal: those with the least to lose come first, so more seldom help."""


@dataclass(frozen=True, slots=True)
class Move:
    """A gang that would be stopped on one node and started again on another."""

    job: JobId
    units: int
    from_node: NodeName
    to_node: NodeName
    lost_unit_ms: int
    """Work since its start that would be done again, if nothing of it was saved."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """Moves that would let a job start at once."""

    job: JobId
    gpu_class: GpuClass
    nodes: tuple[NodeName, ...]
    """Where it would run, in rank order."""
    moves: tuple[Move, ...]

    @property
    def lost_unit_ms(self) -> int:
        """Capacity units times milliseconds of work that would be done again."""
        return sum(move.lost_unit_ms for move in self.moves)


def propose(state: ClusterState, job_id: JobId, now_ms: int) -> Proposal | None:
    """Returns the moves that would let a pending job start; None where there are none, or where it needs none.

    Leaves the state as it was. Cost: a placement for each gang on the nodes that it tries to empty.
    """
    shape = state.jobs[job_id].shape
    if shape.is_share:
        return None
    for gpu_class in shape.gpu_classes:
        if place(state.capacity, shape, gpu_class, state.closed_pools) is not None:
            return None
    for gpu_class in shape.gpu_classes:
        found = _Attempt(state, job_id, gpu_class, now_ms).run()
        if found is not None:
            return found
    return None


class _Attempt:
    """One class: takes gangs out of nodes and puts them elsewhere, in the state's own capacity; undoes it all."""

    def __init__(self, state: ClusterState, job_id: JobId, gpu_class: GpuClass, now_ms: int) -> None:
        self._state = state
        self._job_id = job_id
        self._shape = state.jobs[job_id].shape
        self._gpu_class = gpu_class
        self._now_ms = now_ms
        self._on_node: dict[NodeName, list[Allocation]] = {}
        for allocation in state.allocations.values():
            if allocation.gpu_class == gpu_class:
                for grant in allocation.grants:
                    self._on_node.setdefault(grant.node, []).append(allocation)
        self._emptied: set[NodeName] = set()
        self._undo: list[tuple[Grant, Grant]] = []
        """(what was given back, what was taken for it), in order."""

    def run(self) -> Proposal | None:
        moves: list[Move] = []
        try:
            for room in self._candidates():
                if (made := self._empty(room)) is None:
                    continue
                moves += made
                grants = place(self._state.capacity, self._shape, self._gpu_class, self._state.closed_pools)
                if grants is not None:
                    used = tuple(grant.node for grant in grants)
                    # A node that was emptied and is not used after all was emptied for nothing. No other move leans on
                    # it: gangs go to room that was free from the beginning, never to an emptied node.
                    needed = tuple(move for move in moves if move.from_node in used)
                    return Proposal(self._job_id, self._gpu_class, used, needed)
        finally:
            for given, taken in reversed(self._undo):
                self._state.capacity.give_back(taken)
                self._state.capacity.take(given)
        return None

    def _candidates(self) -> list[NodeRoom]:
        """Returns the nodes that could hold a part once their gangs have left, those with the least to lose first."""
        shape, rooms = self._shape, self._state.capacity.rooms
        found: list[tuple[int, NodeName]] = []
        for name, held in self._on_node.items():
            room = rooms[name]
            if len(room.free) >= shape.gpus_per_node or not all(self._may_move(each) for each in held):
                continue
            if len(room.devices) >= shape.gpus_per_node:
                found.append((sum(self._lost(each) for each in held), name))
        return [rooms[name] for _, name in sorted(found)[:MOST_NODES_TRIED]]

    def _may_move(self, allocation: Allocation) -> bool:
        job = self._state.jobs[allocation.job]
        is_settled = allocation.phase is Phase.RUNNING and len(allocation.grants) == 1
        return is_settled and job.wanted is not BookingWanted.GUARANTEED

    def _lost(self, allocation: Allocation) -> int:
        began_ms = allocation.decided_ms if allocation.started_ms is None else allocation.started_ms
        return allocation.total_units * (self._now_ms - began_ms)

    def _empty(self, room: NodeRoom) -> list[Move] | None:
        """Places every gang of the node elsewhere; None, and nothing done, if one of them finds no place."""
        name, mark = room.node.name, len(self._undo)
        self._emptied.add(name)
        moves: list[Move] = []
        for allocation in sorted(self._on_node[name], key=lambda each: (-each.total_units, each.id)):
            moved = self._move(allocation)
            if moved is None:
                for given, taken in reversed(self._undo[mark:]):
                    self._state.capacity.give_back(taken)
                    self._state.capacity.take(given)
                del self._undo[mark:]
                self._emptied.discard(name)
                return None
            moves.append(moved)
        return moves

    def _move(self, allocation: Allocation) -> Move | None:
        capacity, (old,) = self._state.capacity, allocation.grants
        shape = self._state.jobs[allocation.job].shape
        capacity.give_back(old)
        grants = place(capacity, shape, allocation.gpu_class, self._state.closed_pools, self._may_go_to)
        if grants is None:
            capacity.take(old)
            return None
        (new,) = grants
        capacity.take(new)
        self._undo.append((old, new))
        return Move(allocation.job, allocation.total_units, old.node, new.node, self._lost(allocation))

    @property
    def _may_go_to(self) -> Spares:
        booked = self._state.future.booked

        def is_open(room: NodeRoom, _: DeviceId | None) -> bool:
            return room.node.name not in self._emptied and room.node.name not in booked

        return is_open


def blocked_by_fragmentation(state: ClusterState, shapes: set[Shape]) -> Iterator[JobId]:
    """Yields the oldest pending job of each of the shapes, by time of submission."""
    first = []
    for shape in shapes:
        jobs = [state.jobs[JobId(row.line[0][2])] for row in state.waiting.of_shape.get(shape, {}).values()]
        if jobs:
            first.append(min(jobs, key=lambda job: (job.submitted_ms, job.id)))
    yield from (job.id for job in sorted(first, key=lambda job: (job.submitted_ms, job.id)))
