"""Everything that keeps a job from starting now, for a question about one job.

A tick records of a job what it had to look at: the first thing that stops it. Somebody who asks wants all of them, for
what is behind the first shows only when that is gone. `blockers` adds to the plan's record what the plan had no need to
find: every suspension, limit and budget on the job's path, and whether there would be room, were the rest out of the
way. Removing all that it names lets the job start in the next tick.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from scheduler.core.ahead import Ahead, ahead_of
from scheduler.core.booking import Bookings
from scheduler.core.future import Asker
from scheduler.core.model import GPU_UNITS, Booking, HoldKind, Job, JobState, Shape, tenant_of
from scheduler.core.placement import ClosedPools, Spares, crowded, fits, free_if_up, named_rooms, verdict
from scheduler.core.plan import Plan
from scheduler.core.reasons import Reason, ReasonCode
from scheduler.core.reservation import rank_of, spares_until
from scheduler.core.state import ClusterState
from scheduler.core.waiting import Group

MOST_NAMED = 5
"""Dependencies that a reason names."""
_ROOM = frozenset({ReasonCode.CAPACITY, ReasonCode.FRAGMENTATION, ReasonCode.RESERVATION})
_OWN = frozenset(
    {
        *(ReasonCode.HELD_ADMIN, ReasonCode.HELD_USER, ReasonCode.DEPENDENCY),
        *(ReasonCode.BEGIN_TIME, ReasonCode.BACKOFF),
    }
)
"""What stops this one job: when it goes, nobody else moves. What else goes is shared with those who wait for it too."""
_COUNTED = frozenset({ReasonCode.QUOTA_TENANT, ReasonCode.QUOTA_PROJECT, ReasonCode.QUOTA_USER, ReasonCode.GUARANTEE})
"""What counts gangs that run against an account."""
_PLACES = {code: place for place, code in enumerate(ReasonCode)}


@dataclass(frozen=True, slots=True)
class Blockers:
    """What keeps a pending or held job from starting, the dominating reason first, and who is ahead of it."""

    reasons: tuple[Reason, ...]
    ahead: Ahead
    is_in_line: bool
    """True for a job that waits for its turn like any other; nobody is ahead of one that does not."""


def blockers(state: ClusterState, plan: Plan, job: Job) -> Blockers:
    """Returns all that keeps a waiting job from starting, as of the plan; costs a walk of the order at most."""
    claimed = plan.preempting.get(job.id)
    if claimed is not None:
        return Blockers((claimed,), Ahead(), is_in_line=False)
    group, key = state.group_of(job), state.queue_key_of(job)
    is_in_line = state.waiting.has(job, key)
    bookings = Bookings(state)
    for other in plan.kept.values():
        if other != group:
            bookings.keep_guarantee(other)
    found = [*bookings.suspensions(job.account), *own_reasons(plan, job)]
    if job.array_cap is not None and not is_in_line and state.throttle.bars(job, key):
        found.append(_over_cap(job))
    if is_in_line and (block := plan.blocks.get(group)) is not None:
        found.append(block)
    room = _room(state, plan, job, bookings)
    record = plan.verdicts.get(job.shape) if is_in_line else None
    if record is not None:
        known = {ReasonCode.RESERVATION: _ROOM}.get(record.reasons[0].code, _ROOM - {ReasonCode.RESERVATION})
        room = [reason for reason in room if reason.code not in known or record.reasons[0].code not in _ROOM]
        found += record.reasons
    found = _ordered([*found, *room])
    if not found:
        found = [Reason(ReasonCode.ORDER)]  # behind the cap on starts of one tick, or submitted after the plan was made
    ahead = Ahead()
    if is_in_line or any(reason.code not in _OWN for reason in found):
        ahead = ahead_of(state, plan, job, lambda other: _stays_blocked(plan, found, group, other))
        is_behind = ahead.jobs > 0 or _is_behind_promises(state, job) or _is_behind_limited(state, plan, job, found)
        if is_behind and any(reason.code not in _OWN for reason in found):
            found = _ordered([*found, Reason(ReasonCode.ORDER)])
    return Blockers(tuple(found), ahead, is_in_line)


def own_reasons(plan: Plan, job: Job) -> list[Reason]:
    """Returns what the job itself waits for before it may stand in line, as far as the job and the plan tell."""
    found: list[Reason] = []
    if job.state is JobState.HELD:
        found.append(Reason(ReasonCode.HELD_ADMIN if job.hold is HoldKind.ADMIN else ReasonCode.HELD_USER))
    if job.waits_for:
        found.append(_dependency(job))
    if job.begin_ms is not None and job.begin_ms > plan.now_ms:
        code = ReasonCode.BACKOFF if job.is_backing_off else ReasonCode.BEGIN_TIME
        found.append(Reason(code, until_ms=job.begin_ms))
    crowd = None if job.array is None else plan.crowds.get(job.array)
    if crowd is not None and not found and job.id not in crowd.in_line:
        found.append(_over_cap(job))
    return found


def in_dominance(reasons: Iterable[Reason]) -> tuple[Reason, ...]:
    """Returns reasons with the dominating one first, each once."""
    return tuple(_ordered(reasons))


def _ordered(reasons: Iterable[Reason]) -> list[Reason]:
    once: dict[tuple[ReasonCode, str | None, str | None], Reason] = {}
    for reason in reasons:
        once.setdefault((reason.code, reason.detail, reason.unit), reason)
    return sorted(once.values(), key=lambda reason: _PLACES[reason.code])


def _dependency(job: Job) -> Reason:
    named = [str(each) for each in job.waits_for[:MOST_NAMED]]
    more = len(job.waits_for) - len(named)
    return Reason(ReasonCode.DEPENDENCY, detail=", ".join(named) + (f" and {more} more" if more else ""))


def _over_cap(job: Job) -> Reason:
    return Reason(ReasonCode.ARRAY_LIMIT, detail=f"at most {job.array_cap} of array {job.array} at once")


def _stays_blocked(plan: Plan, named: list[Reason], own: Group, other: Group) -> bool:
    """Tells whether another group could still not start, were everything out of the way that is named for a job."""
    block = plan.blocks.get(other)
    if block is None or other == own:
        return False
    if block.code is ReasonCode.GUARANTEE and tenant_of(other.account) != tenant_of(own.account):
        return True
    return not any(each.code is block.code and each.detail == block.detail for each in named)


def _is_behind_limited(state: ClusterState, plan: Plan, job: Job, named: list[Reason]) -> bool:
    """Tells whether others come first whom only a limit keeps: gangs that end make room under that for them, too.

    They count as ahead of nobody, for a limit may keep thousands; that they have the next turn is told all the same.
    """
    if all(reason.code not in _ROOM | _COUNTED for reason in named):
        return False
    group = state.group_of(job)

    def is_blocked(other: Group) -> bool:
        block = plan.blocks.get(other)
        return block is not None and block.code not in _COUNTED and _stays_blocked(plan, named, group, other)

    return ahead_of(state, plan, job, is_blocked, enough=1).jobs > 0


def _is_behind_promises(state: ClusterState, job: Job) -> bool:
    """Tells whether others are promised a start in the job's classes: a tick tries these before it walks the order."""
    classes = job.shape.gpu_classes
    return any(each.job != job.id and each.gpu_class in classes for each in state.reservations.values())


def _room(state: ClusterState, plan: Plan, job: Job, bookings: Bookings) -> list[Reason]:
    """Returns what accounts and nodes have against the job, class by class; nothing if it could start in one."""
    group, shape = state.group_of(job), job.shape
    found: list[Reason] = []
    for gpu_class in shape.gpu_classes:
        single = shape if len(shape.gpu_classes) == 1 else replace(shape, gpu_classes=(gpu_class,))
        booking, against = bookings.obstacles(group, gpu_class)
        against += _on_nodes(state, plan, single, (job, booking))
        if not against:
            return []
        found += against
    return found


def _on_nodes(state: ClusterState, plan: Plan, shape: Shape, asked: tuple[Job, Booking]) -> list[Reason]:
    """Returns what keeps a gang of a shape of one class from being placed."""
    capacity, closed, gpu_class = state.capacity, state.closed_pools, shape.gpu_classes[0]
    first = verdict(capacity, shape, closed, {}).reasons[0]
    found: list[Reason] = []
    if first.code is ReasonCode.POOL_CLOSED:
        found.append(first)
        closed = {}
        first = verdict(capacity, shape, closed, {}).reasons[0]
    if first.code is ReasonCode.POOL_CLOSED:
        return _ordered([*found, first])  # there is no such pool at all
    job = asked[0]
    kept = _kept_by_admin(state, plan, shape, (job, closed))
    spares, is_promised = _spares(state, plan, shape, asked), job.id in state.reservations
    if first.code in {ReasonCode.CONSTRAINT, ReasonCode.NODES_DOWN}:
        found.append(first)
        free_nodes = free_if_up(capacity, shape, closed)
        if free_nodes < shape.nodes:
            return [*found, _full(shape, free_nodes), *kept]
        is_spare = is_promised or free_if_up(capacity, shape, closed, spares) >= shape.nodes
    elif not fits(state, shape, gpu_class, closed):
        return [*found, first, *kept]
    else:
        is_spare = is_promised or fits(state, shape, gpu_class, closed, spares)
    return found if is_spare else [*found, _promised_away(state, shape, closed)]


def _kept_by_admin(state: ClusterState, plan: Plan, shape: Shape, asked: tuple[Job, ClosedPools]) -> list[Reason]:
    """Returns that an admin keeps so many nodes that those left would not do for the gang, were they all free."""
    job, closed = asked
    rooms = list(named_rooms(state.capacity, shape, closed))
    left, soonest_ms = max(shape.nodes, len(rooms)), []
    for room in rooms:
        against = [each for each in state.advance.values() if each.keeps_out(room.node.name, job, plan.now_ms)]
        left -= bool(against)
        soonest_ms += [each.start_ms for each in against]
    if left >= shape.nodes:
        return []
    free = left * shape.gpu_units // GPU_UNITS
    return [Reason(ReasonCode.RESERVATION, -(-shape.total_units // GPU_UNITS), free, min(soonest_ms))]


def _full(shape: Shape, free_nodes: int) -> Reason:
    """Returns that there is no room, counted in nodes' parts, beside nodes that are down."""
    need, free = -(-shape.total_units // GPU_UNITS), free_nodes * shape.gpu_units // GPU_UNITS
    return Reason(ReasonCode.CAPACITY, need=need, free=free)


def _spares(state: ClusterState, plan: Plan, shape: Shape, asked: tuple[Job, Booking]) -> Spares:
    job, booking = asked
    span_ms = (plan.now_ms, plan.now_ms + job.time_limit_ms)
    return spares_until(state.future, shape, span_ms, Asker(rank_of(job.account, booking), is_promised=False))


def _promised_away(state: ClusterState, shape: Shape, closed: ClosedPools) -> Reason:
    """Returns that what is free for the job is promised to others before its limit."""
    starts = [each.start_ms for each in state.reservations.values() if each.gpu_class in shape.gpu_classes]
    return crowded(state.capacity, shape, closed, {}, min(starts, default=None)).reasons[0]
