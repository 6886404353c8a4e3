"""Claims as stored: made together with the stops that free their devices, ended by a start or given up.

What of a claim's whole GPUs is free rests as `reserved_unused(claim)` in the ledger until its job starts. Ended claims
are kept for a day: they are what the rate limit of preemption is rebuilt from.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from scheduler.core.claims import REMEMBERED_MS, Eviction
from scheduler.core.events import ClaimEnded, ClaimMade
from scheduler.core.model import (
    Account,
    AccountId,
    Allocation,
    AllocationId,
    Booking,
    DeviceHealth,
    DeviceId,
    EndReason,
    GpuClass,
    Grant,
    Job,
    JobId,
    JobState,
    NodeAvailability,
    UserName,
    accepts,
    lineage,
)
from scheduler.core.occupancy import Evidence, OccupancyState, Occupant
from scheduler.core.plan import Lapse
from scheduler.core.stretch import AdvanceReservation, Claim
from scheduler.store.codec import JOB_COLUMNS, grants_json, grants_of, job_of
from scheduler.store.database import chunks
from scheduler.store.gangs import load_live, stop
from scheduler.store.nodes import CLAIM_CAUSE, load_nodes, resting
from scheduler.store.partition import Lanes
from scheduler.store.reservations import live_reservations
from scheduler.store.tables import CLAIM, DEVICE, JOB, POOL
from scheduler.store.transaction import Transaction

STARTED = "started"
"""Outcome of a claim whose job started from it."""

_NAMES = (
    *("job_id", "account", "user", "gpu_class", "booking", "grants", "victims", "guarded"),
    *("made_ms", "free_ms", "end_ms", "until_ms"),
)
_LIVE = sa.select(*(CLAIM.c[name] for name in _NAMES)).where(CLAIM.c.ended_ms.is_(None)).order_by(CLAIM.c.sequence)


def live_claims(connection: Connection) -> tuple[Claim, ...]:
    """Returns the claims that stand, in the order in which they were made."""
    return tuple(
        Claim(
            JobId(row.job_id),
            AccountId(row.account),
            UserName(row.user),
            GpuClass(row.gpu_class),
            Booking(row.booking),
            grants_of(row.grants),
            tuple(AllocationId(victim) for victim in row.victims),
            row.guarded,
            row.made_ms,
            row.free_ms,
            row.end_ms,
            row.until_ms,
        )
        for row in connection.execute(_LIVE).all()
    )


def recent_evictions(connection: Connection, since_ms: int) -> tuple[Eviction, ...]:
    """Returns what the rate limit counts, from an instant on."""
    statement = (
        sa.select(CLAIM.c.made_ms, CLAIM.c.gpu_class, CLAIM.c.guarded)
        .where(CLAIM.c.made_ms > since_ms, CLAIM.c.guarded > 0)
        .order_by(CLAIM.c.sequence)
    )
    rows = connection.execute(statement).all()
    return tuple(Eviction(made_ms, GpuClass(gpu_class), gangs) for made_ms, gpu_class, gangs in rows)


@dataclass(frozen=True, slots=True)
class Made:
    """What became of the claims of a plan."""

    stopped: tuple[Allocation, ...]
    rejected: tuple[tuple[JobId, str], ...]


def make(tx: Transaction, claims: Sequence[Claim], terms: Mapping[AccountId, Account]) -> Made:
    """Asks the victims of each claim to end and keeps for it what is free; a claim that does not hold stops nobody.

    `terms` are those of the accounts on the claims' paths as the plan knew them.
    """
    if not claims:
        return Made((), ())
    rejected: list[tuple[JobId, str]] = []
    stopped: list[Allocation] = []
    for claim in claims:
        why = _why_not(tx, claim)
        changed = tx.changed_account(claim.account, terms)
        if why is None and changed is not None:
            why = f"{changed} has other terms since the plan was made"
        if why is not None:
            rejected.append((claim.job, why))
            continue
        stopped += stop(tx, claim.victims, EndReason.PREEMPTED, None, by=(claim.job, claim.account))
        tx.connection.execute(sa.insert(CLAIM), [_values(claim)])
        lanes = tx.lanes()
        lanes.load(_devices(claim.grants))
        reserve(lanes, [claim], set(_devices(claim.grants)), tx.now_ms, _sizes(tx, claim.grants))
        lanes.flush()
        tx.emit(ClaimMade(tx.now_ms, claim))
        tx.note(claim.job, "preempting", tx.now_ms, victims=len(claim.victims))
    old_ms = tx.now_ms - REMEMBERED_MS
    tx.connection.execute(sa.delete(CLAIM).where(CLAIM.c.ended_ms < old_ms))
    return Made(tuple(stopped), tuple(rejected))


def lapse(tx: Transaction, lapses: Sequence[Lapse]) -> None:
    """Gives claims up: what was kept is free again. Those that are over already are left as they are."""
    standing = {claim.job: claim for claim in live_claims(tx.connection)} if lapses else {}
    for given_up in lapses:
        claim = standing.get(given_up.job)
        if claim is None:
            continue
        end(tx, [claim.job], given_up.why)
        _release(tx, claim)
        tx.emit(ClaimEnded(tx.now_ms, claim.job))
        tx.note(claim.job, "claim_lost", tx.now_ms, why=given_up.why)


def end(tx: Transaction, jobs: Sequence[JobId], outcome: str) -> None:
    """Closes the rows of claims that are over."""
    for part in chunks(jobs):
        statement = sa.update(CLAIM).where(CLAIM.c.job_id.in_(part), CLAIM.c.ended_ms.is_(None))
        tx.connection.execute(statement.values(ended_ms=tx.now_ms, outcome=outcome))


def reserve(
    lanes: Lanes, claims: Iterable[Claim], freed: set[DeviceId], at_ms: int, sizes: dict[DeviceId, int]
) -> None:
    """Keeps for claims what of their whole GPUs is idle among the freed ones, from an instant or since it is idle.

    `sizes` are the units of devices. Shares stay idle until they are taken: a lane tells no claim's part from the rest.
    """
    for claim in claims:
        for grant in claim.grants:
            for device in grant.devices:
                if device not in freed or sizes.get(device) != grant.units:
                    continue
                rest = lanes.of(device)[0]
                if rest.occupant.state is OccupancyState.IDLE and rest.occupant.units == grant.units:
                    kept = Occupant(OccupancyState.RESERVED_UNUSED, grant.units, CLAIM_CAUSE)
                    lanes.move(rest, kept, max(at_ms, rest.since_ms), Evidence.CONTROLLER)


def _release(tx: Transaction, claim: Claim) -> None:
    lanes = tx.lanes()
    lanes.load(_devices(claim.grants))
    nodes = load_nodes(tx.connection, {grant.node for grant in claim.grants})
    for known in nodes.values():
        for device in known.devices:
            if device.id not in _devices(claim.grants):
                continue
            rest = lanes.of(device.id)[0]
            if (rest.occupant.state, rest.occupant.cause) == (OccupancyState.RESERVED_UNUSED, CLAIM_CAUSE):
                state, cause = resting(known, device)
                lanes.move(rest, Occupant(state, rest.occupant.units, cause), tx.now_ms, Evidence.CONTROLLER)
    lanes.flush()


def _why_not(tx: Transaction, claim: Claim) -> str | None:
    """Returns why a claim does not hold on what the database has now."""
    row = tx.connection.execute(sa.select(*JOB_COLUMNS).where(JOB.c.id == claim.job)).one_or_none()
    if row is None:
        return "there is no such job"
    return _why_not_job(tx, claim, job_of(row)) or _why_not_devices(tx, claim)


def _why_not_job(tx: Transaction, claim: Claim, job: Job) -> str | None:
    suspended = next((step for step in lineage(claim.account) if tx.is_suspended(step)), None)
    kept = [each for each in live_reservations(tx.connection) if _keeps_out(each, claim, job, tx.now_ms)]
    rules = (
        (job.state is not JobState.PENDING, f"the job is {job.state}"),
        (job.begin_ms is not None and job.begin_ms > tx.now_ms, "the job's begin time is not come"),
        (not accepts(job.wanted, claim.booking), f"the job asks for {job.wanted}"),
        (job.account != claim.account, f"the job is for {job.account} by now"),
        (suspended is not None, f"{suspended} is suspended"),
        (bool(kept), f"its nodes are kept by reservation {kept[0].id if kept else ''}"),
    )
    return next((why for forbids, why in rules if forbids), None)


def _keeps_out(made: AdvanceReservation, claim: Claim, job: Job, now_ms: int) -> bool:
    return any(made.keeps_out(grant.node, job, now_ms) for grant in claim.grants)


def _why_not_devices(tx: Transaction, claim: Claim) -> str | None:
    live = load_live(tx, claim.victims)
    nodes = load_nodes(tx.connection, {grant.node for grant in claim.grants})
    closed = set(tx.connection.execute(sa.select(POOL.c.name).where(POOL.c.is_closed)).scalars())
    lanes = tx.lanes()
    lanes.load(_devices(claim.grants))
    for grant in claim.grants:
        known = nodes.get(grant.node)
        if known is None or known.effective.availability is not NodeAvailability.UP or known.node.pool in closed:
            return f"node {grant.node} is not to be had"
        healthy = {each.id for each in known.devices if each.health is DeviceHealth.OK and not each.is_foreign}
        for device in grant.devices:
            units = sum(
                cursor.occupant.units for cursor in lanes.of(device).values() if _can_be_had(cursor.occupant, live)
            )
            if device not in healthy or units < grant.units:
                return f"device {device} is taken"
    return None


def _can_be_had(occupant: Occupant, victims: Iterable[AllocationId]) -> bool:
    if occupant.state is OccupancyState.RESERVED_UNUSED:
        return occupant.cause != CLAIM_CAUSE
    return occupant.state is OccupancyState.IDLE or occupant.allocation in set(victims)


def _sizes(tx: Transaction, grants: Iterable[Grant]) -> dict[DeviceId, int]:
    sizes: dict[DeviceId, int] = {}
    for part in chunks(_devices(grants)):
        for row in tx.connection.execute(sa.select(DEVICE.c.id, DEVICE.c.units).where(DEVICE.c.id.in_(part))):
            sizes[DeviceId(row.id)] = row.units
    return sizes


def _devices(grants: Iterable[Grant]) -> list[DeviceId]:
    return [device for grant in grants for device in grant.devices]


def _values(claim: Claim) -> dict[str, object]:
    return {
        "job_id": claim.job,
        "account": claim.account,
        "user": claim.user,
        "gpu_class": claim.gpu_class,
        "booking": claim.booking.value,
        "grants": grants_json(claim.grants),
        "victims": list(claim.victims),
        "guarded": claim.guarded,
        "made_ms": claim.made_ms,
        "free_ms": claim.free_ms,
        "end_ms": claim.end_ms,
        "until_ms": claim.until_ms,
    }
