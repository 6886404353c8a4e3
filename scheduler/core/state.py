"""The centre as the planner sees it: accounts, nodes, live jobs and allocations, with indexes for a cheap tick.

It changes only by `apply(event)`, and time moves it only by `release_due(now)`, which lets jobs whose begin time has
come join their queue. Finished jobs leave at once. `check()` derives every index again and asserts that it agrees;
`facts()` is what two states are compared by (memory against the database).

Pending jobs are kept by `waiting`, what accounts hold and owe by `usage`, what there is by `capacity` and `supply`.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sortedcontainers import SortedList

from scheduler.core import events
from scheduler.core.capacity import Capacity
from scheduler.core.claims import Claims
from scheduler.core.debt import HALF_LIFE_MS
from scheduler.core.demand import Demand, Supply
from scheduler.core.fragmentation import Fragments, Mix
from scheduler.core.future import Future
from scheduler.core.headroom import Headroom
from scheduler.core.lifecycle import ACTIVE, ENDS, WAITING, check_transition
from scheduler.core.model import (
    GPU_UNITS,
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
    OrderWeights,
    Phase,
    PoolName,
    Shape,
    lineage,
    tenant_of,
)
from scheduler.core.occupancy import charged_units
from scheduler.core.stretch import (
    ALL_OF_NODE,
    FIXED,
    AdvanceReservation,
    Claim,
    Rank,
    Reservation,
    ReservationId,
    Stretch,
)
from scheduler.core.tally import add
from scheduler.core.throttle import Throttle
from scheduler.core.topology import Domains
from scheduler.core.usage import Usage
from scheduler.core.waiting import Group, QueueKey, Waiting, queue_key

__all__ = ["ClusterState", "Group", "Structure", "lineage"]

Stake = tuple[AccountId, Booking]
"""Who holds a gang, and how."""
_RAN_ITS_COURSE = frozenset({None, EndReason.WALLTIME, EndReason.EXIT_NONZERO})
"""Ends that say how long such jobs run."""


@dataclass(frozen=True, slots=True)
class Structure:
    """What the inventory says of a shape, whatever is free: how many nodes there are, match it, could ever hold it."""

    considered: int
    matching: int
    capable: int
    is_any_pool_open: bool
    down: str | None
    """A node that would hold it, were it up, with the reason that it is not."""


class ClusterState:
    """All that a plan is made from. Not thread-safe: one thread owns it."""

    def __init__(self, half_life_ms: int = HALF_LIFE_MS) -> None:
        self.accounts: dict[AccountId, Account] = {ROOT_ACCOUNT: Account(ROOT_ACCOUNT)}
        self.jobs: dict[JobId, Job] = {}
        self.allocations: dict[AllocationId, Allocation] = {}
        self.closed_pools: dict[PoolName, str | None] = {}
        self.capacity = Capacity()
        self.waiting = Waiting()
        self.timed: SortedList[tuple[int, JobId]] = SortedList()
        """(begin_ms, id) of pending jobs that are not yet let into their group."""
        self.throttle = Throttle(self._enter_line, self._leave_line)
        """Elements of arrays with a cap."""
        self.usage = Usage(half_life_ms)
        self.supply = Supply()
        self.headroom = Headroom()
        """What money lets start. No part of `facts`: a state that is built anew is told by events, as this one was."""
        self.guarantees: dict[GpuClass, dict[AccountId, int]] = {}
        """Capacity units that each tenant has bought of a class."""
        self.jobs_by: Counter[tuple[AccountId, JobState]] = Counter()
        """Live jobs of each tenant by state."""
        self.waiting_jobs: Counter[AccountId] = Counter()
        """Jobs that wait, pending or held, of each account and all below it."""
        self.pending_units: Counter[tuple[AccountId, GpuClass]] = Counter()
        """Capacity units that each tenant's pending jobs ask for, under the first class that they name."""
        self.failed: dict[tuple[Shape, GpuClass], int] = {}
        """The capacity version at which a shape last did not fit in a class; it cannot fit until that rises."""
        self.future = Future(self.capacity)
        self.claims = Claims(self.capacity, self.future)
        self.evictable: dict[GpuClass, dict[Stake, dict[AllocationId, Allocation]]] = {}
        """Gangs that others may take the place of: burst and spot, not asked to end yet."""
        self.leaving_units: Counter[tuple[AccountId, GpuClass]] = Counter()
        """Capacity units, spot apart, of gangs that were asked to end; an account's include those below it."""
        self.weighed_ms: dict[GpuClass, int] = {}
        """When preemption between accounts was last considered in a class."""
        self.mix = Mix()
        """The sizes of recent jobs."""
        self._fragments: Fragments | None = None
        self._domains: Domains | None = None
        self.reservations: dict[JobId, Reservation] = {}
        """The starts promised to pending jobs, as the last plan left them."""
        self.advance: dict[ReservationId, AdvanceReservation] = {}
        self.used_permille: dict[GpuClass, int] = {}
        """What gangs of each class used of their time limits lately: a mean that fades by 1/32 a gang."""
        self.promises_version = 0
        """Rises whenever something that was booked ahead is no more, or is elsewhere."""
        self.promised_version = self.promised_serial = self.planned_version = -1
        """The promises' version and the future's serial when the promises were last sought; the version as the last
        plan found it."""
        self.crowded_out: dict[tuple[Shape, GpuClass], tuple[int, int, int]] = {}
        """(capacity version, promises version, time limit): jobs of the shape with that limit or more fitted what was
        free and would have delayed a promise; they cannot start until either version rises."""
        self.structures: dict[Shape, tuple[int, Structure]] = {}
        """What the inventory alone says of a shape, with the inventory version it holds for."""
        self._apply: Mapping[type, Callable[[Any], None]] = {
            events.AccountChanged: self._account_changed,
            events.AccountRemoved: self._account_removed,
            events.RatesChanged: self._rates_changed,
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
            events.AllocationPromoted: self._allocation_promoted,
            events.AllocationExtended: self._allocation_extended,
            events.AllocationStopping: self._allocation_stopping,
            events.AllocationEnded: self._allocation_ended,
            events.AllocationCheckpointed: self._allocation_checkpointed,
            events.ClaimMade: self._claim_made,
            events.ClaimEnded: self._claim_ended,
            events.PreemptionWeighed: self._preemption_weighed,
            events.ReservationMade: self._reservation_made,
            events.ReservationRemoved: self._reservation_removed,
            events.ReservationsPlanned: self._reservations_planned,
            events.HeadroomChanged: self._headroom_changed,
            events.HoldPriced: self._hold_priced,
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
        charged = self._charged_units(allocation)
        began_ms = allocation.decided_ms if allocation.started_ms is None else allocation.started_ms
        for grant in allocation.grants:
            self.claims.lift(grant.node)
            self.capacity.take(grant)
            self.future.add(allocation.id, grant, began_ms + allocation.time_limit_ms)
            self.claims.settle(grant.node)
        self.usage.take(allocation, charged, lineage(allocation.account))
        job = self.jobs[allocation.job]
        if _is_promotable(allocation, job):
            self.usage.file_promotable(allocation, job.submitted_ms)
        self._file_standing(allocation)

    def restore_claim(self, claim: Claim) -> None:
        """Takes up a claim as the store holds it; its job, nodes and victims are there already."""
        job = self.jobs.get(claim.job)
        if job is not None and job.state is JobState.PENDING and not job.waits_for:
            self._part(job)
        live = [self.allocations[victim] for victim in claim.victims if victim in self.allocations]
        self.claims.add(claim, live)
        if job is not None:
            self.throttle.count(job, +1)
        self.usage.hold_claim(claim, lineage(claim.account), +1)

    def restore_burst_use(
        self, account: AccountId, gpu_class: GpuClass, charged_units: int, span_ms: tuple[int, int]
    ) -> None:
        """Counts burst use that is over in the debts of an account and all above it, in whatever order it comes."""
        self.usage.restore_burst_use(lineage(account), gpu_class, charged_units, span_ms)

    @property
    def fragments(self) -> Fragments:
        """Returns the scores of placements by expected fragmentation, which are kept from the first question on."""
        if self._fragments is None:
            self._fragments = Fragments(self.capacity, self.mix)
        return self._fragments

    @property
    def domains(self) -> Domains:
        """Returns which nodes are near each other, kept from the first question on."""
        if self._domains is None:
            self._domains = Domains(self.capacity)
        return self._domains

    def put_node(self, node: Node, devices: tuple[Device, ...]) -> None:
        """Adds a node, or replaces what is known of it."""
        self.claims.lift(node.name)
        self.capacity.set_node(node, devices)
        self.claims.settle(node.name)
        self.supply.put(self.capacity.rooms[node.name])

    def release_due(self, now_ms: int) -> int:
        """Lets pending jobs whose begin time has come join their group; returns how many did."""
        released = 0
        while self.timed and self.timed[0][0] <= now_ms:
            _, job_id = self.timed.pop(0)
            self._queue(self.jobs[job_id])
            released += 1
        return released

    def next_due_ms(self) -> int | None:
        """Returns the next begin time of a pending job; None if none waits for time."""
        return self.timed[0][0] if self.timed else None

    def node(self, name: NodeName) -> Node:
        """Returns a node by name. Raises KeyError."""
        return self.capacity.rooms[name].node

    def forget_shapes(self, count: int) -> None:
        """Forgets all shapes but the first `count`, which no job has any more, and what is remembered of them."""
        for shape in self.waiting.forget_shapes(count):
            self.structures.pop(shape, None)
            for gpu_class in shape.gpu_classes:
                self.failed.pop((shape, gpu_class), None)
                self.crowded_out.pop((shape, gpu_class), None)

    def device_holders(self) -> Iterator[tuple[Device, AllocationId]]:
        """Yields each held device of the inventory with the allocation that holds it (several for shares)."""
        for allocation in self.allocations.values():
            for grant in allocation.grants:
                for device_id in grant.devices:
                    device = self.capacity.find(device_id)
                    if device is not None:
                        yield device, allocation.id

    @property
    def held_units(self) -> Mapping[tuple[AccountId, GpuClass, Booking], int]:
        """Capacity units that live allocations hold, by account (with all below it), class and booking."""
        return self.usage.held_units

    def held_by(self, account: AccountId, gpu_class: GpuClass, *bookings: Booking) -> int:
        """Returns the capacity units that an account and all below it hold, in the bookings named."""
        held, total = self.usage.held_units, 0
        for booking in bookings:
            total += held.get((account, gpu_class, booking), 0)
        return total

    def capacity_units(self, gpu_class: GpuClass) -> int:
        """Returns the units of a class that may be divided: see `Supply.units`."""
        return self.supply.units(self.capacity, gpu_class, self.closed_pools)

    def settled_demand(self) -> Demand:
        """Returns what eligible pending jobs ask for, by the inventory as it is; costs what changed since last time."""
        demand = self.waiting.demand
        demand.settle(
            self.capacity.inventory_version, lambda shape: self.supply.feasible_class(shape, self.closed_pools)
        )
        return demand

    def group_of(self, job: Job) -> Group:
        """Returns the group that a job waits in when it is pending."""
        return self.waiting.group_of(job)

    def pending_groups(self) -> Iterator[tuple[Group, SortedList[QueueKey]]]:
        """Yields each group with the places of its jobs; accounts and groups in no particular order."""
        return self.waiting.lines()

    # ---- events of the centre -------------------------------------------------------------------------------------

    def _account_changed(self, event: events.AccountChanged) -> None:
        self.put_account(event.account)

    def put_account(self, account: Account) -> None:
        """Adds an account, or replaces its terms."""
        old = self.accounts.get(account.id) or Account(account.id)
        # Elements behind their array's line stand in no group, so the account of these alone waits in none.
        names = self._waiting_within(account.id) if old.is_by_user != account.is_by_user else []
        if old.order_weights != account.order_weights:
            names = list(dict.fromkeys([*names, account.id]))
        moved = [job for name in names for job in self._queued_jobs(name)]
        for job in moved:
            self._unqueue(job)
        self.accounts[account.id] = account
        for accounts, is_in in (
            (self.waiting.by_user, account.is_by_user),
            (self.waiting.by_turns, account.takes_turns),
            (self.waiting.binding, account.is_suspended or account.is_limited),
            (self.waiting.yielding, account.guaranteed_yields),
        ):
            if is_in:
                accounts.add(account.id)
            else:
                accounts.discard(account.id)
        for job in moved:
            self._queue(job)
        self._file_guarantee(account.id, account.guarantee)

    def _waiting_within(self, account: AccountId) -> list[AccountId]:
        return [name for name in self.waiting.groups if account in lineage(name)]

    def _account_removed(self, event: events.AccountRemoved) -> None:
        self.put_account(Account(event.account))
        del self.accounts[event.account]
        self.usage.debts.values.pop(event.account, None)

    def _file_guarantee(self, account: AccountId, guarantee: Mapping[GpuClass, int]) -> None:
        if account != tenant_of(account):
            return
        for gpu_class in [*self.guarantees, *(each for each in guarantee if each not in self.guarantees)]:
            tenants = self.guarantees.setdefault(gpu_class, {})
            tenants.pop(account, None)
            if guarantee.get(gpu_class):
                tenants[account] = guarantee[gpu_class] * GPU_UNITS
            if not tenants:
                del self.guarantees[gpu_class]

    def _rates_changed(self, event: events.RatesChanged) -> None:
        live = ((allocation, lineage(allocation.account)) for allocation in self.allocations.values())
        self.usage.change_rates(event.at_ms, event.rates, live)
        self.headroom.forget_needs()

    def _headroom_changed(self, event: events.HeadroomChanged) -> None:
        self.headroom.change(event.account, event.left_micros, is_prepaid=event.is_prepaid)

    def _hold_priced(self, event: events.HoldPriced) -> None:
        job = self.jobs.get(event.job)
        if job is not None:
            self.headroom.learn(self.group_of(job), event.gpu_class, event.booking, event.micros)

    def _node_changed(self, event: events.NodeChanged) -> None:
        self.put_node(event.node, event.devices)

    def _node_removed(self, event: events.NodeRemoved) -> None:
        self.claims.lift(event.node)
        self.capacity.remove_node(event.node)
        self.supply.drop(event.node)

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
        self.mix.add(event.job.shape)
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
        if allocation.surplus_of is not None:
            assert job.allocation == allocation.surplus_of, f"job {job.id} has no gang {allocation.surplus_of}"
            self.restore_allocation(allocation)
            return
        check_transition(job.id, job.state, JobState.STARTING)
        self._remove(job)
        if job.id in self.claims.by_job:
            self._drop_claim(job.id)
        self._add(job.started_as(allocation.id, allocation.attempt))
        self.restore_allocation(allocation)

    def _allocation_started(self, event: events.AllocationStarted) -> None:
        allocation = self.allocations[event.allocation]
        if allocation.phase is Phase.STARTING:
            self._move(replace(allocation, phase=Phase.RUNNING, started_ms=event.at_ms), JobState.RUNNING)
        else:
            # It was asked to end before its start was seen: it keeps stopping, and began when it began.
            self._replace(replace(allocation, started_ms=event.at_ms))
        if event.at_ms != allocation.decided_ms:
            for grant in allocation.grants:
                self.future.drop(allocation.id, grant)
                self.future.add(allocation.id, grant, event.at_ms + allocation.time_limit_ms)

    def _allocation_promoted(self, event: events.AllocationPromoted) -> None:
        old = self.allocations[event.allocation]
        new = replace(old, booking=event.booking, segment=event.segment)
        self.usage.rebook(old, new, event.at_ms, lineage(old.account))
        self.usage.drop_promotable(old, self.jobs[old.job].submitted_ms)
        self._replace(new)

    def _allocation_extended(self, event: events.AllocationExtended) -> None:
        allocation = replace(self.allocations[event.allocation], time_limit_ms=event.time_limit_ms)
        self._replace(allocation)
        job = self.jobs[allocation.job]
        self._remove(job)
        self._add(replace(job, time_limit_ms=event.time_limit_ms))
        began_ms = allocation.decided_ms if allocation.started_ms is None else allocation.started_ms
        for grant in allocation.grants:
            self.future.drop(allocation.id, grant)
            self.future.add(allocation.id, grant, began_ms + event.time_limit_ms)
        # What was promised behind it is looked at again: it is promised anew for when there is room.
        self.promises_version += 1

    def _allocation_checkpointed(self, event: events.AllocationCheckpointed) -> None:
        self._replace(replace(self.allocations[event.allocation], checkpointed_ms=event.at_ms))

    def _allocation_stopping(self, event: events.AllocationStopping) -> None:
        allocation = self.allocations[event.allocation]
        self.usage.drop_promotable(allocation, self.jobs[allocation.job].submitted_ms)
        self._move(replace(allocation, phase=Phase.STOPPING, stop_reason=event.reason), JobState.STOPPING)

    def _allocation_ended(self, event: events.AllocationEnded) -> None:
        allocation = self.allocations.pop(event.allocation)
        self._unfile_standing(allocation)
        for grant in allocation.grants:
            self.claims.lift(grant.node)
            self.capacity.give_back(grant)
            self.future.drop(allocation.id, grant)
            self.claims.settle(grant.node)
        old = self.jobs[allocation.job]
        self.usage.drop_promotable(allocation, old.submitted_ms)
        self.usage.release(allocation, event.at_ms, lineage(allocation.account))
        if allocation.surplus_of is not None:
            return
        assert allocation.id not in self.usage.surplus, f"allocation {allocation.id} ends before its surplus"
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
        if allocation.surplus_of is not None:
            self._replace(allocation)
            return
        check_transition(job.id, job.state, state)
        self._replace(allocation)
        self._remove(job)
        self._add(replace(job, state=state))

    def _replace(self, allocation: Allocation) -> None:
        self._unfile_standing(self.allocations[allocation.id])
        self.allocations[allocation.id] = allocation
        self._file_standing(allocation)

    def _file_standing(self, allocation: Allocation) -> None:
        """Files a gang among those that others may take the place of, or among those that leave."""
        gpu_class, is_guaranteed = allocation.gpu_class, allocation.booking is Booking.GUARANTEED
        if allocation.phase is not Phase.STOPPING:
            if is_guaranteed:
                self.usage.guaranteed.setdefault((allocation.account, gpu_class), {})[allocation.id] = allocation
            else:
                stakes = self.evictable.setdefault(gpu_class, {})
                stakes.setdefault((allocation.account, allocation.booking), {})[allocation.id] = allocation
        elif allocation.booking is not Booking.SPOT:
            for account in lineage(allocation.account):
                add(self.leaving_units, (account, gpu_class), allocation.total_units)

    def _unfile_standing(self, allocation: Allocation) -> None:
        gpu_class, whose = allocation.gpu_class, (allocation.account, allocation.gpu_class)
        stake, guaranteed = (allocation.account, allocation.booking), self.usage.guaranteed
        stakes = self.evictable.get(gpu_class, {})
        gangs = stakes.get(stake, {})
        if gangs.pop(allocation.id, None) is not None:
            if not gangs:
                del stakes[stake]
                if not stakes:
                    del self.evictable[gpu_class]
        elif guaranteed.get(whose, {}).pop(allocation.id, None) is not None:
            if not guaranteed[whose]:
                del guaranteed[whose]
        elif allocation.phase is Phase.STOPPING and allocation.booking is not Booking.SPOT:
            for account in lineage(allocation.account):
                add(self.leaving_units, (account, gpu_class), -allocation.total_units)

    # ---- claims ---------------------------------------------------------------------------------------------------

    def _claim_made(self, event: events.ClaimMade) -> None:
        job = self.jobs[event.claim.job]
        assert job.state is JobState.PENDING, f"job {job.id} is {job.state} and needs no claim"
        assert job.id not in self.claims.by_job, f"job {job.id} claims twice"
        if job.id in self.reservations:
            self._break_promise(job.id)
        self.restore_claim(event.claim)
        self.claims.remember(event.claim)
        self.promises_version += 1

    def _claim_ended(self, event: events.ClaimEnded) -> None:
        self._drop_claim(event.job)
        job = self.jobs.get(event.job)
        if job is not None and job.state is JobState.PENDING and not job.waits_for:
            self._join(job)

    def _drop_claim(self, job_id: JobId) -> None:
        claim = self.claims.drop(job_id)
        self.promises_version += 1  # what it had booked is there for others, now and in what is promised
        job = self.jobs.get(job_id)
        if job is not None:
            self.throttle.count(job, -1)
        self.usage.hold_claim(claim, lineage(claim.account), -1)

    def _preemption_weighed(self, event: events.PreemptionWeighed) -> None:
        self.weighed_ms.update(dict.fromkeys(event.gpu_classes, event.at_ms))

    def _charged_units(self, allocation: Allocation) -> int:
        if allocation.charged_units is not None:
            return allocation.charged_units
        total = 0
        for grant in allocation.grants:
            room = self.capacity.rooms[grant.node]
            total += charged_units(
                grant.units * len(grant.devices),
                (grant.cpu_millicores, room.node.cpu_millicores),
                (grant.memory_bytes, room.node.memory_bytes),
                room.whole_units,
            )
        return total

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
        is_untouched = self.promises_version == self.planned_version
        planned = {reservation.job: reservation for reservation in event.reservations}
        broken = [job_id for job_id, old in self.reservations.items() if planned.get(job_id) != old]
        for job_id in broken:
            self._break_promise(job_id)
        for job_id, reservation in planned.items():
            if job_id not in self.reservations and job_id in self.jobs:
                self.reservations[job_id] = reservation
                self.future.promise(reservation)
                self.promises_version += 1
        # What a promise or a claim left behind may serve another, which was sought beside it: only when none was left,
        # neither in the plan nor since it was made, is there nothing to seek.
        is_settled = event.is_whole and not broken and is_untouched
        self.promised_version = self.promises_version if is_settled else -1
        self.promised_serial = self.future.serial

    def _break_promise(self, job_id: JobId) -> None:
        self.future.unpromise(self.reservations.pop(job_id))
        self.promises_version += 1

    # ---- indexes of jobs ------------------------------------------------------------------------------------------

    def _add(self, job: Job) -> None:
        shape = self.waiting.intern(job.shape)
        if shape is not job.shape:
            job = replace(job, shape=shape)
        self.jobs[job.id] = job
        self._count(job, +1)
        if self._has_place(job):
            self.throttle.count(job, +1)
        if job.state is JobState.PENDING and not job.waits_for and job.id not in self.claims.by_job:
            self._join(job)

    def _remove(self, job: Job) -> None:
        self._count(job, -1)
        if self._has_place(job):
            self.throttle.count(job, -1)
        if job.state is JobState.PENDING and not job.waits_for and job.id not in self.claims.by_job:
            self._part(job)
        del self.jobs[job.id]

    def _has_place(self, job: Job) -> bool:
        """Tells whether the job counts against the cap of its array: it holds GPUs, or a claim to some."""
        return job.state in ACTIVE or job.id in self.claims.by_job

    def _join(self, job: Job) -> None:
        """Lets a job that nothing but time keeps from standing in line wait for that, or queue."""
        if job.begin_ms is not None:
            self.timed.add((job.begin_ms, job.id))
        else:
            self._queue(job)

    def _part(self, job: Job) -> None:
        """Undoes `_join`."""
        if job.begin_ms is not None and (job.begin_ms, job.id) in self.timed:
            self.timed.remove((job.begin_ms, job.id))
        else:
            self._unqueue(job)

    def _queue(self, job: Job) -> None:
        """Lets a job that may start now stand in line, or behind it where its array is at its cap."""
        if job.array_cap is None:
            self.waiting.add(job, self.queue_key_of(job))
        else:
            self.throttle.add(job, self.queue_key_of(job))

    def _unqueue(self, job: Job) -> None:
        """Undoes `_queue`."""
        if job.array_cap is None:
            self._leave_line(job.id)
        else:
            self.throttle.remove(job, self.queue_key_of(job))

    def _enter_line(self, job_id: JobId) -> None:
        job = self.jobs[job_id]
        self.waiting.add(job, self.queue_key_of(job))

    def _leave_line(self, job_id: JobId) -> None:
        job = self.jobs[job_id]
        if job_id in self.reservations:
            self._break_promise(job_id)
        self.waiting.remove(job, self.queue_key_of(job))

    def _queued_jobs(self, account: AccountId) -> list[Job]:
        """Returns the jobs of a project that may start now, in line or behind it."""
        behind = [each for each in self.throttle.waiting() if self.jobs[each].account == account]
        return [self.jobs[each] for each in dict.fromkeys([*self.waiting.jobs_of(account), *behind])]

    def queue_key_of(self, job: Job) -> QueueKey:
        """Returns a job's place in its project's order, whether it stands in line or would."""
        account = self.accounts.get(job.account)
        return queue_key(job, account.order_weights if account else OrderWeights())

    def _count(self, job: Job, sign: int) -> None:
        tenant = tenant_of(job.account)
        add(self.jobs_by, (tenant, job.state), sign)
        if job.state in WAITING:
            for account in lineage(job.account):
                add(self.waiting_jobs, account, sign)
        if job.state is JobState.PENDING:
            add(self.pending_units, (tenant, job.shape.gpu_classes[0]), sign * job.shape.total_units)

    # ---- proofs ---------------------------------------------------------------------------------------------------

    def facts(self) -> dict[str, object]:
        """Returns all that the state knows, without its indexes: equal facts mean equal states."""
        rooms = self.capacity.rooms
        return {
            "accounts": dict(self.accounts),
            "jobs": dict(self.jobs),
            "allocations": dict(self.allocations),
            "claims": dict(self.claims.by_job),
            "closed_pools": dict(self.closed_pools),
            "advance": dict(self.advance),
            "nodes": {name: (room.node, room.devices) for name, room in rooms.items()},
        }

    def _check_size(self, allocation: Allocation) -> None:
        job = self.jobs[allocation.job]
        if allocation.surplus_of is None:
            assert job.allocation == allocation.id, f"allocation {allocation.id} is not its job's"
            assert len(allocation.grants) == job.shape.nodes, f"allocation {allocation.id} is not the whole gang"
            return
        gang = self.allocations.get(allocation.surplus_of)
        assert gang is not None, f"surplus {allocation.id} is of no live gang"
        assert gang.job == job.id, f"surplus {allocation.id} is of a gang of job {gang.job}"
        assert job.shape.nodes + len(allocation.grants) <= (job.shape.most_nodes or 0), f"job {job.id} is too large"
        assert allocation.booking is not Booking.GUARANTEED, f"surplus {allocation.id} is guaranteed"
        taken = {grant.node for grant in gang.grants} & {grant.node for grant in allocation.grants}
        assert not taken, f"job {job.id} runs twice on {taken}"

    def debt_facts(self) -> dict[str, object]:
        """Returns what follows from the ledger and the price books: what accounts owe, and the rates in force."""
        return self.usage.facts()

    def check(self) -> None:
        """Derives every index again and asserts that it agrees; linear in all that there is, for tests and doctor."""
        self.capacity.check()
        again = ClusterState(self.usage.debts.half_life_ms)
        for at_ms, rates in self.usage.rates.history():
            again.usage.rates.change(at_ms, rates)
        for account in self.accounts.values():
            again.put_account(account)
        again.closed_pools = dict(self.closed_pools)
        for room in self.capacity.rooms.values():
            again.put_node(room.node, room.devices)
        for job in self.jobs.values():
            again.restore(job)
            assert (job.state in ACTIVE) == (job.allocation is not None), (
                f"job {job.id} is {job.state} and held wrongly"
            )
            assert job.state is not JobState.HELD or job.hold is not None, f"job {job.id} is held by nobody"
        for allocation in self.allocations.values():
            again.restore_allocation(allocation)
            self._check_size(allocation)
        due = [entry for entry in again.timed if entry not in self.timed]
        for begin_ms, job_id in due:
            again.timed.remove((begin_ms, job_id))
            again._queue(again.jobs[job_id])
        for claim in self.claims.by_job.values():
            again.restore_claim(claim)
        for name, room in self.capacity.rooms.items():
            other = again.capacity.rooms[name]
            assert room.held_units == other.held_units, f"node {name} holds what no allocation has"
            assert room.cpu_free_millicores == other.cpu_free_millicores >= 0, f"CPU of node {name} is off"
            assert room.memory_free_bytes == other.memory_free_bytes >= 0, f"memory of node {name} is off"
        mine_demand, derived_demand = self.settled_demand(), again.settled_demand()
        for owing, debt in again.usage.debts.values.items():
            charge = self.usage.debts.charge(owing)
            assert charge == debt.now.charge, f"{owing} is charged {charge} instead of {debt.now.charge}"
        for mine, derived in (
            (self.waiting.facts(), again.waiting.facts()),
            (self.future.facts(), again.future.facts()),
            (self.timed, again.timed),
            (self.throttle.facts(), again.throttle.facts()),
            (self.usage.held_units, again.usage.held_units),
            (self.usage.spot_charge, again.usage.spot_charge),
            (self.usage.promotable, again.usage.promotable),
            (self.evictable, again.evictable),
            (self.usage.guaranteed, again.usage.guaranteed),
            (self.waiting.yielding, again.waiting.yielding),
            (self.usage.surplus, again.usage.surplus),
            (self.leaving_units, again.leaving_units),
            (self.usage.gangs, again.usage.gangs),
            (self.usage.user_units, again.usage.user_units),
            (self.jobs_by, again.jobs_by),
            (self.waiting_jobs, again.waiting_jobs),
            (self.pending_units, again.pending_units),
            (self.guarantees, again.guarantees),
            (self.waiting.binding, again.waiting.binding),
            (self.supply.kinds, again.supply.kinds),
            (self.supply.impaired, again.supply.impaired),
            (mine_demand.totals, derived_demand.totals),
            (mine_demand.sizes, derived_demand.sizes),
            (mine_demand.user_totals, derived_demand.user_totals),
        ):
            assert mine == derived, f"an index is off: {mine} instead of {derived}"


def _is_promotable(allocation: Allocation, job: Job) -> bool:
    return (
        allocation.booking is Booking.BURST
        and allocation.surplus_of is None
        and allocation.phase is not Phase.STOPPING
        and job.wanted is BookingWanted.AUTO
    )
