"""The centre as the planner sees it: accounts, nodes, live jobs and allocations, with indexes for a cheap tick.

It changes only by `apply(event)`, and time moves it only by `release_due(now)`, which lets jobs whose begin time has
come join their queue. Finished jobs leave at once. `check()` derives every index again and asserts that it agrees;
`facts()` is what two states are compared by (memory against the database).

Jobs wait in groups: all pending jobs of one project, one shape, one wanted booking and one time limit, in that
project's order. Jobs of one group differ in nothing that placement, limits or backfill ask, so a tick looks at the
first of each group and at no other.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

from sortedcontainers import SortedList

from scheduler.core import events
from scheduler.core.capacity import Capacity
from scheduler.core.future import Future
from scheduler.core.lifecycle import ACTIVE, ENDS, check_transition
from scheduler.core.model import (
    ROOT_ACCOUNT,
    Account,
    AccountId,
    Allocation,
    AllocationId,
    Booking,
    BookingWanted,
    Device,
    EndReason,
    GpuClass,
    Job,
    JobId,
    JobState,
    Node,
    NodeName,
    Phase,
    PoolName,
    Shape,
    tenant_of,
)
from scheduler.core.stretch import (
    ALL_OF_NODE,
    FIXED,
    AdvanceReservation,
    Rank,
    Reservation,
    ReservationId,
    Stretch,
)

K = TypeVar("K")
QueueKey = tuple[int, int, int]  # (-priority, submitted_ms, id): a job's place inside its project


_RAN_ITS_COURSE = frozenset({None, EndReason.WALLTIME, EndReason.EXIT_NONZERO})
"""Ends that say how long such jobs run."""


class Group(NamedTuple):
    """What pending jobs share that wait in one line."""

    account: AccountId
    shape: Shape
    wanted: BookingWanted
    time_limit_ms: int


@dataclass(frozen=True, slots=True)
class Structure:
    """What the inventory says of a shape, whatever is free: how many nodes there are, match it, could ever hold it."""

    considered: int
    matching: int
    capable: int
    is_any_pool_open: bool
    down: str | None
    """A node that would hold it, were it up, with the reason that it is not."""


def group_of(job: Job) -> Group:
    """Returns the group that a job waits in when it is pending."""
    return Group(job.account, job.shape, job.wanted, job.time_limit_ms)


def queue_key(job: Job) -> QueueKey:
    """Returns a job's place inside its project: priority, then submit time, then id."""
    return (-job.priority, job.submitted_ms, job.id)


@lru_cache(maxsize=65_536)
def lineage(account: AccountId) -> tuple[AccountId, ...]:
    """Returns the account and those above it up to its tenant, nearest first; the centre itself is left out."""
    steps = account.split("/")
    return tuple(AccountId("/".join(steps[:count])) for count in range(len(steps), 0, -1))


def _add_to(counts: Counter[K], key: K, change: int) -> None:
    """Adds to a count and forgets it at 0, so that equal states have equal counts."""
    count = counts.get(key, 0) + change
    if count:
        counts[key] = count
    else:
        del counts[key]


class ClusterState:
    """All that a plan is made from. Not thread-safe: one thread owns it."""

    def __init__(self) -> None:
        self.accounts: dict[AccountId, Account] = {ROOT_ACCOUNT: Account(ROOT_ACCOUNT)}
        self.jobs: dict[JobId, Job] = {}
        self.allocations: dict[AllocationId, Allocation] = {}
        self.closed_pools: dict[PoolName, str | None] = {}
        self.capacity = Capacity()
        self.groups: dict[AccountId, dict[Group, SortedList[QueueKey]]] = {}
        self.of_shape: dict[Shape, dict[Group, SortedList[QueueKey]]] = {}
        """The same groups by their shape, so that a tick can pass over all groups of a shape that cannot fit."""
        self.ages: SortedList[tuple[int, JobId]] = SortedList()
        """(submitted_ms, id) of the jobs in groups, the oldest first."""
        self.timed: SortedList[tuple[int, JobId]] = SortedList()
        """(begin_ms, id) of pending jobs that are not yet let into their group."""
        self.held_units: Counter[tuple[AccountId, GpuClass, Booking]] = Counter()
        """Capacity units held by live allocations, for each account and all above it."""
        self.jobs_by: Counter[tuple[AccountId, JobState]] = Counter()
        """Live jobs of each tenant by state."""
        self.pending_units: Counter[tuple[AccountId, GpuClass]] = Counter()
        """Capacity units that each tenant's pending jobs ask for, under the first class that they name."""
        self.failed: dict[tuple[Shape, GpuClass], int] = {}
        """The capacity version at which a shape last did not fit in a class; it cannot fit until that rises."""
        self.future = Future(self.capacity)
        self.reservations: dict[JobId, Reservation] = {}
        """The starts promised to pending jobs, as the last plan left them."""
        self.advance: dict[ReservationId, AdvanceReservation] = {}
        self.used_permille: dict[GpuClass, int] = {}
        """What gangs of each class used of their time limits lately: a mean that fades by 1/32 a gang."""
        self.promises_version = 0
        """Rises whenever something that was booked ahead is no more, or is elsewhere."""
        self.promised_version = -1
        self.promised_serial = -1
        """The promises' version and the future's serial when the promises were last sought."""
        self.crowded_out: dict[tuple[Shape, GpuClass], tuple[int, int, int]] = {}
        """(capacity version, promises version, time limit): jobs of the shape with that limit or more fitted what was
        free and would have delayed a promise; they cannot start until either version rises."""
        self.structures: dict[Shape, tuple[int, Structure]] = {}
        """What the inventory alone says of a shape, with the inventory version it holds for."""
        self.shapes: dict[Shape, tuple[int, Shape]] = {}
        """Every shape seen, with its number: one object for all that share it, and an order that replays repeat."""
        self._apply: Mapping[type, Callable[[Any], None]] = {
            events.AccountChanged: self._account_changed,
            events.AccountRemoved: self._account_removed,
            events.NodeChanged: self._node_changed,
            events.NodeRemoved: self._node_removed,
            events.PoolChanged: self._pool_changed,
            events.JobSubmitted: self._job_submitted,
            events.JobChanged: self._job_changed,
            events.JobHeld: self._job_held,
            events.JobReleased: self._job_released,
            events.JobEnded: self._job_ended,
            events.AllocationMade: self._allocation_made,
            events.AllocationStarted: self._allocation_started,
            events.AllocationStopping: self._allocation_stopping,
            events.AllocationEnded: self._allocation_ended,
            events.ReservationMade: self._reservation_made,
            events.ReservationRemoved: self._reservation_removed,
            events.ReservationsPlanned: self._reservations_planned,
        }

    def apply(self, event: events.Event) -> None:
        """Takes in what happened. Raises IllegalTransition or KeyError for an event that cannot have happened."""
        self._apply[type(event)](event)

    def restore(self, job: Job) -> None:
        """Takes up a live job as the store holds it, in whatever state, when a state is rebuilt."""
        assert job.state not in ENDS, f"job {job.id} is {job.state} and does not belong in the state"
        self._add(job)

    def restore_allocation(self, allocation: Allocation) -> None:
        """Takes up a live allocation as the store holds it; its job and nodes are there already."""
        self.allocations[allocation.id] = allocation
        self._hold(allocation, +1)

    def release_due(self, now_ms: int) -> int:
        """Lets pending jobs whose begin time has come join their group; returns how many did."""
        released = 0
        while self.timed and self.timed[0][0] <= now_ms:
            _, job_id = self.timed.pop(0)
            self._enqueue(self.jobs[job_id])
            released += 1
        return released

    def next_due_ms(self) -> int | None:
        """Returns the next begin time of a pending job; None if none waits for time."""
        return self.timed[0][0] if self.timed else None

    def node(self, name: NodeName) -> Node:
        """Returns a node by name. Raises KeyError."""
        return self.capacity.rooms[name].node

    def device_holders(self) -> Iterator[tuple[Device, AllocationId]]:
        """Yields each held device of the inventory with the allocation that holds it (several for shares)."""
        for allocation in self.allocations.values():
            for grant in allocation.grants:
                for device_id in grant.devices:
                    device = self.capacity.find(device_id)
                    if device is not None:
                        yield device, allocation.id

    def held_by(self, account: AccountId, gpu_class: GpuClass, *bookings: Booking) -> int:
        """Returns the capacity units that an account and all below it hold, in the bookings named."""
        return sum(self.held_units[account, gpu_class, booking] for booking in bookings)

    def pending_groups(self) -> Iterator[tuple[Group, SortedList[QueueKey]]]:
        """Yields each group with the places of its jobs; accounts and groups in no particular order."""
        for groups in self.groups.values():
            yield from groups.items()

    # ---- events of the centre -------------------------------------------------------------------------------------

    def _account_changed(self, event: events.AccountChanged) -> None:
        self.accounts[event.account.id] = event.account

    def _account_removed(self, event: events.AccountRemoved) -> None:
        del self.accounts[event.account]

    def _node_changed(self, event: events.NodeChanged) -> None:
        self.capacity.set_node(event.node, event.devices)

    def _node_removed(self, event: events.NodeRemoved) -> None:
        self.capacity.remove_node(event.node)

    def _pool_changed(self, event: events.PoolChanged) -> None:
        self.capacity.inventory_version += 1
        self.promises_version += 1
        if event.is_closed:
            self.closed_pools[event.pool] = event.reason
        else:
            self.closed_pools.pop(event.pool, None)
            for gpu_class, pool_name in self.capacity.pools:
                if pool_name == event.pool:
                    self.capacity.raise_version(gpu_class)

    # ---- events of waiting jobs -----------------------------------------------------------------------------------

    def _job_submitted(self, event: events.JobSubmitted) -> None:
        assert event.job.id not in self.jobs, f"job {event.job.id} is submitted twice"
        assert event.job.state in {JobState.PENDING, JobState.HELD}, "a job begins pending or held"
        self._add(event.job)

    def _job_changed(self, event: events.JobChanged) -> None:
        old = self.jobs[event.job.id]
        assert old.state is event.job.state, f"job {old.id} changes its state by an event of its own"
        self._remove(old)
        self._add(event.job)

    def _job_held(self, event: events.JobHeld) -> None:
        job = self.jobs[event.job]
        if job.state is not JobState.HELD:
            check_transition(job.id, job.state, JobState.HELD)
        self._remove(job)
        self._add(replace(job, state=JobState.HELD, hold=event.kind))

    def _job_released(self, event: events.JobReleased) -> None:
        job = self.jobs[event.job]
        check_transition(job.id, job.state, JobState.PENDING)
        self._remove(job)
        self._add(replace(job, state=JobState.PENDING, hold=None))

    def _job_ended(self, event: events.JobEnded) -> None:
        job = self.jobs[event.job]
        check_transition(job.id, job.state, event.state)
        self._remove(job)

    # ---- events of allocations ------------------------------------------------------------------------------------

    def _allocation_made(self, event: events.AllocationMade) -> None:
        allocation = event.allocation
        job = self.jobs[allocation.job]
        check_transition(job.id, job.state, JobState.STARTING)
        self._remove(job)
        self._add(job.started_as(allocation.id, allocation.attempt))
        self.restore_allocation(allocation)

    def _allocation_started(self, event: events.AllocationStarted) -> None:
        allocation = self.allocations[event.allocation]
        if allocation.phase is Phase.STARTING:
            self._move(replace(allocation, phase=Phase.RUNNING, started_ms=event.at_ms), JobState.RUNNING)
        else:
            # It was asked to end before its start was seen: it keeps stopping, and began when it began.
            self.allocations[allocation.id] = replace(allocation, started_ms=event.at_ms)
        if event.at_ms != allocation.decided_ms:
            for grant in allocation.grants:
                self.future.drop(allocation.id, grant)
                self.future.add(allocation.id, grant, event.at_ms + allocation.time_limit_ms)

    def _allocation_stopping(self, event: events.AllocationStopping) -> None:
        allocation = self.allocations[event.allocation]
        self._move(replace(allocation, phase=Phase.STOPPING, stop_reason=event.reason), JobState.STOPPING)

    def _allocation_ended(self, event: events.AllocationEnded) -> None:
        allocation = self.allocations.pop(event.allocation)
        self._hold(allocation, -1)
        old = self.jobs[allocation.job]
        check_transition(old.id, old.state, event.job.state)
        self._remove(old)
        if event.job.state not in ENDS:
            self._add(event.job)
        if event.reason in _RAN_ITS_COURSE:
            self._learn(allocation, event.at_ms)

    def _learn(self, allocation: Allocation, end_ms: int) -> None:
        began_ms = allocation.decided_ms if allocation.started_ms is None else allocation.started_ms
        used = 1000 * max(0, end_ms - began_ms) // max(1, allocation.time_limit_ms)
        before = self.used_permille.get(allocation.gpu_class, 1000)
        self.used_permille[allocation.gpu_class] = (31 * before + min(1000, used)) // 32

    def _move(self, allocation: Allocation, state: JobState) -> None:
        job = self.jobs[allocation.job]
        check_transition(job.id, job.state, state)
        self.allocations[allocation.id] = allocation
        self._remove(job)
        self._add(replace(job, state=state))

    def _hold(self, allocation: Allocation, sign: int) -> None:
        began_ms = allocation.decided_ms if allocation.started_ms is None else allocation.started_ms
        for grant in allocation.grants:
            if sign > 0:
                self.capacity.take(grant)
                self.future.add(allocation.id, grant, began_ms + allocation.time_limit_ms)
            else:
                self.capacity.give_back(grant)
                self.future.drop(allocation.id, grant)
        units = sign * allocation.total_units
        for account in lineage(allocation.account):
            key = (account, allocation.gpu_class, allocation.booking)
            _add_to(self.held_units, key, units)

    # ---- what is booked ahead -------------------------------------------------------------------------------------

    def _reservation_made(self, event: events.ReservationMade) -> None:
        made = event.reservation
        if made.id in self.advance:
            self._book_advance(self.advance[made.id], is_kept=False)
        self.advance[made.id] = made
        self._book_advance(made, is_kept=True)

    def _reservation_removed(self, event: events.ReservationRemoved) -> None:
        self._book_advance(self.advance.pop(event.reservation), is_kept=False)

    def _book_advance(self, made: AdvanceReservation, *, is_kept: bool) -> None:
        self.promises_version += 1
        for name in made.nodes:
            if not is_kept:
                self.future.unbook(made.id, name)
                continue
            self.future.book(
                made.id,
                name,
                Stretch(made.start_ms, made.end_ms, ALL_OF_NODE, Rank(FIXED, made.account), made.start_ms),
            )

    def _reservations_planned(self, event: events.ReservationsPlanned) -> None:
        planned = {reservation.job: reservation for reservation in event.reservations}
        broken = [job_id for job_id, old in self.reservations.items() if planned.get(job_id) != old]
        for job_id in broken:
            self._break_promise(job_id)
        for job_id, reservation in planned.items():
            if job_id not in self.reservations and job_id in self.jobs:
                self.reservations[job_id] = reservation
                self.future.promise(reservation)
                self.promises_version += 1
        # What one promise left behind may serve another: only when none was left is there nothing to seek.
        is_settled = event.is_whole and not broken
        self.promised_version = self.promises_version if is_settled else -1
        self.promised_serial = self.future.serial

    def _break_promise(self, job_id: JobId) -> None:
        self.future.unpromise(self.reservations.pop(job_id))
        self.promises_version += 1

    # ---- indexes of jobs ------------------------------------------------------------------------------------------

    def _add(self, job: Job) -> None:
        _, shape = self.shapes.setdefault(job.shape, (len(self.shapes), job.shape))
        if shape is not job.shape:
            job = replace(job, shape=shape)
        self.jobs[job.id] = job
        self._count(job, +1)
        if job.state is JobState.PENDING:
            if job.begin_ms is not None:
                self.timed.add((job.begin_ms, job.id))
            else:
                self._enqueue(job)

    def _remove(self, job: Job) -> None:
        del self.jobs[job.id]
        self._count(job, -1)
        if job.state is not JobState.PENDING:
            return
        if job.id in self.reservations:
            self._break_promise(job.id)
        if job.begin_ms is not None and (job.begin_ms, job.id) in self.timed:
            self.timed.remove((job.begin_ms, job.id))
            return
        groups = self.groups[job.account]
        group = group_of(job)
        line = groups[group]
        line.remove(queue_key(job))
        self.ages.remove((job.submitted_ms, job.id))
        if not line:
            del groups[group]
            alike = self.of_shape[group.shape]
            del alike[group]
            if not alike:
                del self.of_shape[group.shape]
            if not groups:
                del self.groups[job.account]

    def _enqueue(self, job: Job) -> None:
        groups = self.groups.setdefault(job.account, {})
        group = group_of(job)
        line = groups.get(group)
        if line is None:
            line = groups[group] = SortedList()
            self.of_shape.setdefault(group.shape, {})[group] = line
        line.add(queue_key(job))
        self.ages.add((job.submitted_ms, job.id))

    def _count(self, job: Job, sign: int) -> None:
        tenant = tenant_of(job.account)
        _add_to(self.jobs_by, (tenant, job.state), sign)
        if job.state is JobState.PENDING:
            _add_to(self.pending_units, (tenant, job.shape.gpu_classes[0]), sign * job.shape.total_units)

    # ---- proofs ---------------------------------------------------------------------------------------------------

    def facts(self) -> dict[str, object]:
        """Returns all that the state knows, without its indexes: equal facts mean equal states."""
        rooms = self.capacity.rooms
        return {
            "accounts": dict(self.accounts),
            "jobs": dict(self.jobs),
            "allocations": dict(self.allocations),
            "closed_pools": dict(self.closed_pools),
            "advance": dict(self.advance),
            "nodes": {name: (room.node, room.devices) for name, room in rooms.items()},
        }

    def check(self) -> None:
        """Derives every index again and asserts that it agrees; linear in all that there is, for tests and doctor."""
        self.capacity.check()
        again = ClusterState()
        again.accounts = dict(self.accounts)
        again.closed_pools = dict(self.closed_pools)
        for room in self.capacity.rooms.values():
            again.capacity.set_node(room.node, room.devices)
        for job in self.jobs.values():
            again.restore(job)
            assert (job.state in ACTIVE) == (job.allocation is not None), (
                f"job {job.id} is {job.state} and held wrongly"
            )
            assert job.state is not JobState.HELD or job.hold is not None, f"job {job.id} is held by nobody"
        for allocation in self.allocations.values():
            again.restore_allocation(allocation)
            job = self.jobs[allocation.job]
            assert job.allocation == allocation.id, f"allocation {allocation.id} is not its job's"
            assert len(allocation.grants) == job.shape.nodes, f"allocation {allocation.id} is not the whole gang"
        due = [entry for entry in again.timed if entry not in self.timed]
        for begin_ms, job_id in due:
            again.timed.remove((begin_ms, job_id))
            again._enqueue(self.jobs[job_id])
        for name, room in self.capacity.rooms.items():
            other = again.capacity.rooms[name]
            assert room.held_units == other.held_units, f"node {name} holds what no allocation has"
            assert room.cpu_free_millicores == other.cpu_free_millicores >= 0, f"CPU of node {name} is off"
            assert room.memory_free_bytes == other.memory_free_bytes >= 0, f"memory of node {name} is off"
        for mine, derived in (
            (self.groups, again.groups),
            (self.of_shape, again.of_shape),
            (self.ages, again.ages),
            (self.future.facts(), again.future.facts()),
            (self.timed, again.timed),
            (self.held_units, again.held_units),
            (self.jobs_by, again.jobs_by),
            (self.pending_units, again.pending_units),
        ):
            assert mine == derived, f"an index is off: {mine} instead of {derived}"
