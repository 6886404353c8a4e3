"""The smallest changes that would start a waiting job now, each one tried against the planner before it is told.

`search` says what to try next and is told the outcome; who drives it decides when each try runs, so that ticks may pass
between two of them. What it returns held when it was tried: cancel the job, submit it so, and it starts.
"""

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, replace

from scheduler.core.model import GPU_UNITS, BookingWanted, GpuClass, Job, JobId, JobState
from scheduler.core.placement import count_fitting
from scheduler.core.policy import Policy
from scheduler.core.state import ClusterState
from scheduler.core.supposing import would_start

_MINUTE_MS = 60_000
LIMITS_MS = tuple(minutes * _MINUTE_MS for minutes in (5, 15, 30, 60, 120, 240, 480, 720, 1440, 2880))
"""Time limits that people type. The longest that helps is found by halving, so a search tries four at most."""
MOST_CLASSES = 2
"""Other GPU classes that are tried: those with the most free."""
MOST_TOLD = 4

Search = Generator[Job, bool, tuple[Job, ...]]
"""Yields what to try, is sent whether it would start now, returns what would."""


@dataclass(frozen=True, slots=True)
class Room:
    """What a search goes by: nodes that could take the job's part now, and other classes with free GPUs."""

    nodes_fit: int
    classes: tuple[GpuClass, ...]


def room_for(state: ClusterState, job: Job) -> Room:
    """Returns what is free for a job, as of now."""
    fit = count_fitting(state.capacity, job.shape, state.closed_pools)
    free: dict[GpuClass, int] = {}
    for (gpu_class, pool), room in state.capacity.pools.items():
        if gpu_class not in job.shape.gpu_classes and pool not in state.closed_pools:
            free[gpu_class] = free.get(gpu_class, 0) + room.free_gpus
    best = sorted((each for each in free if free[each]), key=lambda each: (-free[each], each))
    return Room(fit, tuple(best[:MOST_CLASSES]))


def search(job: Job, room: Room) -> Search:
    """Looks for changes that would start a pending job now, each as small as it goes; at most MOST_TOLD are returned.

    Tries some ten jobs, each of which costs a tick.
    """
    found: list[Job] = []
    found += yield from _longest(job)
    found += yield from _first([_smaller(job, nodes) for nodes in _node_counts(job, room)])
    if not found and 0 < room.nodes_fit < job.shape.nodes:
        found += yield from _longest(_smaller(job, room.nodes_fit))
    found += yield from _first(_with_fewer_gpus(job))
    if job.wanted is BookingWanted.GUARANTEED:
        found += yield from _first([replace(job, wanted=BookingWanted.AUTO)])
    if job.wanted is not BookingWanted.SPOT:
        found += yield from _first([replace(job, wanted=BookingWanted.SPOT)])
    for gpu_class in room.classes:
        found += yield from _first([_of_class(job, gpu_class)])
    return tuple(found[:MOST_TOLD])


def suggestions(state: ClusterState, policy: Policy, now_ms: int, job_id: JobId) -> tuple[Job, ...]:
    """Returns the changes of a pending job that would start it in the next tick; the state is as before.

    Raises KeyError for a job that is not live. Costs some ten ticks; a daemon drives `search` itself.
    """
    job = state.jobs[job_id]
    if job.state is not JobState.PENDING or job_id in state.claims.by_job:
        return ()
    steps = search(job, room_for(state, job))
    try:
        asked = next(steps)
        while True:
            asked = steps.send(would_start(state, policy, now_ms, asked, job_id))
    except StopIteration as done:
        found: tuple[Job, ...] = done.value
        return found


def _first(candidates: Iterable[Job]) -> Generator[Job, bool, list[Job]]:
    """Tries one after the other until one would start."""
    for each in candidates:
        if (yield each):
            return [each]
    return []


def _longest(job: Job) -> Generator[Job, bool, list[Job]]:
    """Tries shorter limits, by halving, and returns the job with the longest that would start, if one would."""
    limits = [each for each in LIMITS_MS if each < job.time_limit_ms]
    best: list[Job] = []
    low, high = 0, len(limits)
    while low < high:
        middle = (low + high) // 2
        asked = replace(job, time_limit_ms=limits[middle])
        if (yield asked):
            best, low = [asked], middle + 1
        else:
            high = middle
    return best


def _node_counts(job: Job, room: Room) -> Sequence[int]:
    nodes = job.shape.nodes
    counts = {room.nodes_fit, nodes // 2, 1}
    return sorted((each for each in counts if 0 < each < nodes), reverse=True)


def _smaller(job: Job, nodes: int) -> Job:
    return replace(job, shape=replace(job.shape, nodes=nodes))


def _with_fewer_gpus(job: Job) -> list[Job]:
    """Returns the job with a half, a quarter, … of its whole GPUs a node; CPU and memory shrink with them."""
    whole, rest = divmod(job.shape.gpu_units, GPU_UNITS)
    made: list[Job] = []
    while rest == 0 and whole > 1:
        whole //= 2
        part = whole * GPU_UNITS, job.shape.gpu_units
        shape = replace(
            job.shape,
            gpu_units=part[0],
            cpu_millicores=_scaled(job.shape.cpu_millicores, part),
            memory_bytes=_scaled(job.shape.memory_bytes, part),
        )
        made.append(replace(job, shape=shape))
    return made


def _of_class(job: Job, gpu_class: GpuClass) -> Job:
    """Returns the job on another class, in whatever pool has it."""
    return replace(job, shape=replace(job.shape, gpu_classes=(gpu_class,), pool=None))


def _scaled(amount: int | None, part: tuple[int, int]) -> int | None:
    return None if amount is None else amount * part[0] // part[1]
