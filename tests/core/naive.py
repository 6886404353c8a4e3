"""The shadow schedule by brute force, for comparison: whole GPUs on nodes, counted at every minute that matters."""

from collections.abc import Iterable
from dataclasses import replace

from scheduler.core.model import Job, JobState
from scheduler.core.state import ClusterState
from scheduler.core.stretch import FIXED, Reservation


def free_at(state: ClusterState, node: str, at_ms: int, now_ms: int, promises: Iterable[Reservation]) -> int:
    """GPUs of a node that neither a running gang (until its limit) nor a promise holds at a time."""
    room = state.capacity.rooms[node]  # type: ignore[index] # a plain string will do
    if room.node.availability != "up":
        return 0
    held = set()
    for allocation in state.allocations.values():
        end_ms = (allocation.started_ms or allocation.decided_ms) + allocation.time_limit_ms
        assert end_ms > now_ms, "the histories of these tests end every gang by its limit"
        if end_ms > at_ms:
            held |= {device for grant in allocation.grants if grant.node == node for device in grant.devices}
    free = sum(device.health == "ok" and device.id not in held for device in room.devices)
    for promise in promises:
        if promise.start_ms <= at_ms < promise.end_ms:
            free -= sum(need.gpus for name, need in promise.parts if name == node)
    return free


def open_nodes(state: ClusterState, job: Job, start_ms: int, now_ms: int, promises: Iterable[Reservation]) -> list[str]:
    """Nodes that could hold the job's part from a time until its limit, leaving the promises whole."""
    promises = list(promises)
    end_ms = start_ms + job.time_limit_ms
    moments = {start_ms, *(promise.start_ms for promise in promises if start_ms < promise.start_ms < end_ms)}
    return [
        name
        for name in state.capacity.rooms
        if all(free_at(state, name, moment, now_ms, promises) >= job.shape.gpus_per_node for moment in moments)
    ]


def earliest_ms(state: ClusterState, job: Job, now_ms: int, promises: Iterable[Reservation]) -> int | None:
    """The first time at which the gang fits, in one pool if one can ever hold it; None if it never does."""
    promises = list(promises)
    ends = [(each.started_ms or each.decided_ms) + each.time_limit_ms for each in state.allocations.values()]
    moments = sorted({now_ms, *ends, *(promise.end_ms for promise in promises)})
    pools = {name: room.node.pool for name, room in state.capacity.rooms.items()}
    for is_one_pool in (True, False):
        for moment in moments:
            names = open_nodes(state, job, moment, now_ms, promises)
            counts = [sum(pools[name] == pool for name in names) for pool in set(pools.values())]  # type: ignore[index]
            if (max(counts, default=0) if is_one_pool else len(names)) >= job.shape.nodes:
                return moment
    return None


def may_start(state: ClusterState, job: Job, now_ms: int) -> bool:
    """Whether a pending gang of whole GPUs could start now without delay to any promise but its own."""
    assert job.state is JobState.PENDING
    others = [each for each in state.reservations.values() if each.job != job.id]
    assert all(each.strength < FIXED for each in others)
    if job.id not in state.reservations:
        others = [replace(each, start_ms=each.kept_from_ms) for each in others]
    return len(open_nodes(state, job, now_ms, now_ms, others)) >= job.shape.nodes
