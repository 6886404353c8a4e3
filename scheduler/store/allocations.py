"""Commands that decide over GPUs: carry out a plan, ask gangs to stop.

A plan was made from a state that may have moved on since. Each gang is checked again against the database, in the
plan's order, and taken whole or not at all; what does not fit any more is reported and simply waits for the next tick.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import sqlalchemy as sa
from ulid import ULID

from scheduler.admission import CostQuestion, HoldAsk
from scheduler.core.events import AllocationMade
from scheduler.core.lifecycle import ACTIVE
from scheduler.core.model import (
    Account,
    AccountId,
    Allocation,
    AllocationId,
    Booking,
    Device,
    DeviceHealth,
    DeviceId,
    EndReason,
    Grant,
    Job,
    JobId,
    JobState,
    Node,
    NodeAvailability,
    NodeName,
    Phase,
    Shape,
    accepts,
)
from scheduler.core.occupancy import Evidence, OccupancyState, Occupant, charged_units
from scheduler.core.plan import Plan, Start, Surplus
from scheduler.core.state import lineage
from scheduler.core.stretch import AdvanceReservation
from scheduler.executor import StartOrder
from scheduler.store import claims
from scheduler.store.codec import JOB_COLUMNS, grants_json, job_of, launch_of
from scheduler.store.columns import JsonObject
from scheduler.store.database import chunks
from scheduler.store.gangs import order_of, stop
from scheduler.store.nodes import CLAIM_CAUSE, load_nodes
from scheduler.store.partition import Lanes
from scheduler.store.prepared import Prepared, json_text
from scheduler.store.promotions import promote
from scheduler.store.reservations import live_reservations
from scheduler.store.secrets import resolve
from scheduler.store.tables import ALLOCATION, JOB, POOL
from scheduler.store.transaction import Transaction

_ALLOCATION_NAMES = (
    *("id", "job_id", "account", "user", "gpu_class", "booking", "phase", "segment", "grants", "time_limit_ms"),
    *("attempt", "decided_ms", "surplus_of"),
)
_INSERT_ALLOCATION = Prepared(sa.insert(ALLOCATION), _ALLOCATION_NAMES)
_UPDATE_JOB = Prepared(
    sa.update(JOB).where(JOB.c.id == sa.bindparam("at_id")),
    ("state", "gpu_class", "attempt", "allocation_id", "begin_ms", "is_backing_off", "at_id"),
)
_ACTIVE_STATES = sorted(state.value for state in ACTIVE)


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of a plan: gangs to start, starts and claims that no longer hold with why, gangs to stop."""

    started: tuple[StartOrder, ...]
    rejected: tuple[tuple[JobId, str], ...]
    stopped: tuple[Allocation, ...]
    promoted: tuple[AllocationId, ...] = ()


@dataclass(frozen=True, slots=True)
class ApplyPlan:
    """Carries out what a plan decided, as far as it still holds."""

    plan: Plan

    def execute(self, tx: Transaction) -> Applied:
        """Returns what is to be started and stopped, and what was rejected with the reason as a short sentence."""
        claims.lapse(tx, self.plan.lapses)
        made = claims.make(tx, self.plan.claims, self.plan.terms)
        victims = {victim for claim in self.plan.claims for victim in claim.victims}
        stopped = list(made.stopped)
        for order in self.plan.stops:
            if order.allocation not in victims:
                stopped += stop(tx, [order.allocation], order.reason, None)
        promoted = promote(tx, self.plan.promotions)
        attempt = _Starts(tx, self.plan.starts, self.plan.terms)
        for start in self.plan.starts:
            attempt.take(start)
        attempt.write()
        rejected = (*made.rejected, *attempt.rejected)
        return Applied(tuple(attempt.orders), rejected, tuple(stopped), promoted)


@dataclass(frozen=True, slots=True)
class MarkStopping:
    """Asks gangs to end; those that stop already, or are gone, are left as they are."""

    allocations: tuple[AllocationId, ...]
    reason: EndReason

    def execute(self, tx: Transaction) -> tuple[Allocation, ...]:
        """Returns the gangs that stop from now on."""
        return stop(tx, self.allocations, self.reason, None)


class _Starts:
    """One plan's starts, on what the database holds now: reads in bulk, checks one by one, writes in bulk."""

    def __init__(self, tx: Transaction, starts: Sequence[Start], terms: Mapping[AccountId, Account]) -> None:
        self._terms = terms
        self._changed: dict[AccountId, AccountId | None] = {}
        self.orders: list[StartOrder] = []
        self.rejected: list[tuple[JobId, str]] = []
        self._tx = tx
        self._taken: set[JobId] = set()
        self._jobs: dict[JobId, Job] = {}
        self._launches: dict[JobId, JsonObject] = {}
        for part in chunks([start.job for start in starts]):
            for row in tx.connection.execute(sa.select(*JOB_COLUMNS, JOB.c.launch).where(JOB.c.id.in_(part))).all():
                job = job_of(row[:-1])
                self._jobs[job.id] = job
                self._launches[job.id] = row[-1]
        self._active = _active_elements(tx, self._jobs.values())
        grants = [grant for start in starts for grant in _all_grants(start)]
        known = load_nodes(tx.connection, {grant.node for grant in grants})
        self._nodes: dict[NodeName, Node] = {name: node.effective for name, node in known.items()}
        self._whole_units = {name: node.whole_units for name, node in known.items()}
        self._devices: dict[DeviceId, Device] = {
            device.id: device for node in known.values() for device in node.devices
        }
        closed = tx.connection.execute(sa.select(POOL.c.name).where(POOL.c.is_closed))
        self._closed_pools = set(closed.scalars())
        self._reservations: dict[NodeName, list[AdvanceReservation]] = {}
        for each in live_reservations(tx.connection):
            for name in each.nodes:
                self._reservations.setdefault(name, []).append(each)
        self._lanes: Lanes = tx.lanes()
        self._lanes.load(device for grant in grants for device in grant.devices)
        self._claims = {claim.job for claim in claims.live_claims(tx.connection)} if starts else set()
        self._started_claims: list[JobId] = []
        self._allocation_rows: list[JsonObject] = []
        self._job_rows: list[JsonObject] = []
        self._holds = tx.admission.holds(tx.connection, tx.now_ms)

    def take(self, start: Start) -> None:
        """Takes one gang whole, or notes why not."""
        job = self._jobs.get(start.job)
        if job is None:
            self.rejected.append((start.job, "there is no such job"))
            return
        why = self._why_not_job(job, start) or self._why_not_grants(job, start, start.grants)
        if why is not None:
            self.rejected.append((start.job, why))
            return
        allocation = self._allocation(job, start)
        why = self._why_not_money(allocation)
        if why is not None:
            self.rejected.append((start.job, why))
            return
        self._make(job, allocation, self._surplus(job, start, allocation))

    def write(self) -> None:
        """Writes all gangs that were taken."""
        _INSERT_ALLOCATION.many(self._tx.connection, self._allocation_rows)
        _UPDATE_JOB.many(self._tx.connection, self._job_rows)
        claims.end(self._tx, self._started_claims, claims.STARTED)
        self._lanes.flush()
        for event in self._holds.events():
            self._tx.emit(event)

    def _why_not_money(self, allocation: Allocation) -> str | None:
        """Sets aside what the start costs at first; returns who has not so much."""
        charged = allocation.charged_units
        assert charged is not None, "the store says what each start is charged for"
        question = CostQuestion(
            allocation.account, allocation.gpu_class, allocation.booking, charged, allocation.time_limit_ms
        )
        grace_ms = int(1000 * launch_of(self._launches[allocation.job]).grace_seconds)
        is_surplus = allocation.surplus_of is not None
        over = self._holds.take(HoldAsk(allocation.id, allocation.job, question, grace_ms, is_surplus=is_surplus))
        if over is None:
            return None
        needed, left = over.needed, over.left
        return f"{over.account} has {left.amount} {left.currency} left, and {needed.amount} are to be set aside"

    def _surplus(self, job: Job, start: Start, gang: Allocation) -> Allocation | None:
        """Returns the surplus nodes that the gang gets; None where it asks for none, or what it asks holds no more."""
        asked = start.surplus
        if asked is None or not _may_have(start, job.shape, asked):
            return None
        if self._why_not_grants(job, start, asked.grants) is not None:
            return None
        surplus = replace(
            gang,
            id=AllocationId(str(ULID.from_timestamp(self._tx.now_ms))),
            booking=asked.booking,
            grants=asked.grants,
            charged_units=sum(self._charged(grant) for grant in asked.grants),
            surplus_of=gang.id,
        )
        return surplus if self._why_not_money(surplus) is None else None

    def _why_not_job(self, job: Job, start: Start) -> str | None:
        if job.state is not JobState.PENDING or job.id in self._taken:
            return "the job starts already" if job.id in self._taken else f"the job is {job.state}"
        early = self._why_too_early(job)
        if early is not None:
            return early
        if not _has_shape(start, job.shape):
            return "the job has another shape"
        if not accepts(job.wanted, start.booking):
            return f"the job asks for {job.wanted}"
        return self._why_other_terms(job, start)

    def _why_other_terms(self, job: Job, start: Start) -> str | None:
        """Limits and promises were the planner's to hold, by the terms as it knew them."""
        if job.account != start.account:
            return f"the job is for {job.account} by now"
        if job.time_limit_ms > start.time_limit_ms:
            return "the job may run longer than when the plan was made"
        suspended = next((step for step in lineage(job.account) if self._tx.is_suspended(step)), None)
        if suspended is not None:
            return f"{suspended} is suspended"
        if job.account not in self._changed:
            self._changed[job.account] = self._tx.changed_account(job.account, self._terms)
        changed = self._changed[job.account]
        return None if changed is None else f"{changed} has other terms since the plan was made"

    def _why_not_grants(self, job: Job, start: Start, grants: Sequence[Grant]) -> str | None:
        return self._why_not_reserved(job, grants) or self._why_not_devices(start, grants)

    def _why_not_reserved(self, job: Job, grants: Sequence[Grant]) -> str | None:
        for grant in grants:
            for each in self._reservations.get(grant.node, ()):
                if each.keeps_out(grant.node, job, self._tx.now_ms):
                    return f"node {grant.node} is kept by reservation {each.id}"
        return None

    def _why_too_early(self, job: Job) -> str | None:
        if job.begin_ms is not None and job.begin_ms > self._tx.now_ms:
            return "the job's begin time is not come"
        if job.waits_for:
            return f"the job waits for {job.waits_for[0]}"
        if job.array is not None and job.array_cap is not None and self._active[job.array] >= job.array_cap:
            return f"{job.array_cap} of array {job.array} hold GPUs already"
        return None

    def _why_not_devices(self, start: Start, grants: Sequence[Grant]) -> str | None:
        seen: set[DeviceId] = set()
        for grant in grants:
            node = self._nodes.get(grant.node)
            if node is None:
                return f"node {grant.node} is gone"
            if node.availability is not NodeAvailability.UP:
                return f"node {node.name} is {node.availability}"
            if node.pool in self._closed_pools:
                return f"pool {node.pool} is closed"
            for device_id in grant.devices:
                why = self._why_not_device(grant, device_id, start)
                if why is not None or device_id in seen:
                    return why or f"device {device_id} is named twice"
                seen.add(device_id)
        return None

    def _why_not_device(self, grant: Grant, device_id: DeviceId, start: Start) -> str | None:
        device = self._devices.get(device_id)
        if device is None or device.node != grant.node:
            return f"device {device_id} is not on node {grant.node}"
        if device.health is not DeviceHealth.OK or device.is_foreign or device.gpu_class != start.gpu_class:
            return f"device {device_id} is not to be had"
        rest = self._lanes.of(device_id)[0].occupant
        # Whether it may be taken out of a reservation was asked before.
        if rest.state not in {OccupancyState.IDLE, OccupancyState.RESERVED_UNUSED} or rest.units < grant.units:
            return f"device {device_id} is taken"
        # A claim's job starts on what its claim names, which nobody else could have claimed meanwhile.
        if rest.cause == CLAIM_CAUSE and start.job not in self._claims:
            return f"device {device_id} is kept for another job"
        if grant.units < device.units and len(grant.devices) != 1:
            return "a share is of one device"
        return None

    def _allocation(self, job: Job, start: Start) -> Allocation:
        now_ms = self._tx.now_ms
        return Allocation(
            id=AllocationId(str(ULID.from_timestamp(now_ms))),
            job=job.id,
            account=job.account,
            user=job.user,
            gpu_class=start.gpu_class,
            booking=start.booking,
            grants=start.grants,
            decided_ms=now_ms,
            attempt=job.attempt + 1,
            time_limit_ms=job.time_limit_ms,
            charged_units=sum(self._charged(grant) for grant in start.grants),
        )

    def _make(self, job: Job, allocation: Allocation, surplus: Allocation | None) -> None:
        now_ms = self._tx.now_ms
        for each in (allocation,) if surplus is None else (allocation, surplus):
            for grant in each.grants:
                self._hold(each, grant)
            self._allocation_rows.append(_allocation_values(each))
        self._job_rows.append(
            {
                "at_id": job.id,
                "state": JobState.STARTING.value,
                "gpu_class": allocation.gpu_class,
                "attempt": allocation.attempt,
                "allocation_id": allocation.id,
                "begin_ms": None,
                "is_backing_off": False,
            }
        )
        self._taken.add(job.id)
        if job.id in self._claims:
            self._started_claims.append(job.id)
        if job.array is not None and job.array_cap is not None:
            self._active[job.array] += 1
        launch = launch_of(self._launches[job.id])
        secrets = resolve(self._tx.connection, job.account, launch.secrets)
        self.orders.append(order_of(allocation, surplus, job.shape, (launch, job.array_index, job.array, secrets)))
        self._tx.emit(AllocationMade(now_ms, allocation))
        nodes = None if not job.shape.is_elastic else len(self.orders[-1].allocation.grants)
        facts = {"allocation": allocation.id, "booking": allocation.booking.value, "nodes": nodes}
        self._tx.note(job.id, "allocated", now_ms, **facts)
        if surplus is not None:
            self._tx.emit(AllocationMade(now_ms, surplus))

    def _charged(self, grant: Grant) -> int:
        node = self._nodes[grant.node]
        return charged_units(
            grant.units * len(grant.devices),
            (grant.cpu_millicores, node.cpu_millicores),
            (grant.memory_bytes, node.memory_bytes),
            self._whole_units[grant.node],
        )

    def _hold(self, allocation: Allocation, grant: Grant) -> None:
        charged = self._charged(grant)
        each, over = divmod(charged, len(grant.devices))
        for position, device_id in enumerate(grant.devices):
            occupant = Occupant(
                OccupancyState.ALLOCATED,
                grant.units,
                phase=Phase.STARTING,
                holder=allocation.account,
                job=allocation.job,
                allocation=allocation.id,
                segment=allocation.segment,
                booking=allocation.booking,
                gpu_eq_units=each + (over if position == 0 else 0),
            )
            if grant.units == self._devices[device_id].units:
                self._lanes.move(self._lanes.of(device_id)[0], occupant, self._tx.now_ms, Evidence.CONTROLLER)
            else:
                self._lanes.cut(device_id, occupant, self._tx.now_ms)


def _has_shape(start: Start, shape: Shape) -> bool:
    return (
        start.gpu_class in shape.gpu_classes
        and len(start.grants) == shape.nodes
        and all(grant.units * len(grant.devices) == shape.gpu_units for grant in start.grants)
    )


def _may_have(start: Start, shape: Shape, surplus: Surplus) -> bool:
    """Tells whether the nodes are further ones of a gang of the shape, and not too many."""
    nodes = {grant.node for grant in _all_grants(start)}
    return (
        len(nodes) == len(start.grants) + len(surplus.grants) <= (shape.most_nodes or 0)
        and surplus.booking is not Booking.GUARANTEED
        and all(grant.units * len(grant.devices) == shape.gpu_units for grant in surplus.grants)
    )


def _all_grants(start: Start) -> tuple[Grant, ...]:
    return start.grants if start.surplus is None else (*start.grants, *start.surplus.grants)


def _active_elements(tx: Transaction, jobs: Iterable[Job]) -> Counter[JobId]:
    """Returns how many elements hold GPUs of each array with a cap that one of the jobs is of."""
    arrays = sorted({job.array for job in jobs if job.array is not None and job.array_cap is not None})
    active: Counter[JobId] = Counter()
    for part in chunks(arrays):
        statement = sa.select(JOB.c.array_id, sa.func.count()).where(
            JOB.c.array_id.in_(part), JOB.c.state.in_(_ACTIVE_STATES)
        )
        active.update({JobId(id_): n for id_, n in tx.connection.execute(statement.group_by(JOB.c.array_id))})
    return active


def _allocation_values(allocation: Allocation) -> JsonObject:
    return {
        "id": allocation.id,
        "job_id": allocation.job,
        "account": allocation.account,
        "user": allocation.user,
        "gpu_class": allocation.gpu_class,
        "booking": allocation.booking.value,
        "phase": allocation.phase.value,
        "segment": allocation.segment,
        "grants": json_text(grants_json(allocation.grants)),
        "time_limit_ms": allocation.time_limit_ms,
        "attempt": allocation.attempt,
        "decided_ms": allocation.decided_ms,
        "surplus_of": allocation.surplus_of,
    }
