"""What a daemon reads to start from: the state's parts, the live orders, and the ledger from end to end.

Each function takes the connection of a `Database.read()` transaction, so that several agree with one another. Queries
for people and metrics are in `queries` (jobs) and `centre` (the rest).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from scheduler.core.claims import REMEMBERED_MS, Eviction
from scheduler.core.debt import HALF_LIFE_MS
from scheduler.core.events import RatesChanged, ReservationMade
from scheduler.core.lifecycle import ACTIVE, WAITING
from scheduler.core.model import Account, Allocation, Device, Job, JobId, Node, PoolName
from scheduler.core.occupancy import Cursor, Interval
from scheduler.core.state import ClusterState
from scheduler.core.stretch import AdvanceReservation, Claim
from scheduler.executor import StartOrder
from scheduler.store.claims import live_claims, recent_evictions
from scheduler.store.codec import (
    ACCOUNT_COLUMNS,
    ALLOCATION_COLUMNS,
    CURSOR_COLUMNS,
    INTERVAL_COLUMNS,
    JOB_COLUMNS,
    account_of,
    allocation_of,
    cursor_of,
    interval_of,
    job_of,
    launch_of,
    shape_of_text,
)
from scheduler.store.gangs import order_of
from scheduler.store.history_tables import JOB_EVENT
from scheduler.store.ledger_tables import DEVICE_CURSOR, LEDGER_HEAD, OCCUPANCY
from scheduler.store.nodes import load_nodes
from scheduler.store.rates import FORGOTTEN_HALF_LIVES, BurstUse, ended_burst_use, rate_history
from scheduler.store.reservations import live_reservations
from scheduler.store.secrets import resolve
from scheduler.store.tables import ACCOUNT, ALLOCATION, JOB, POOL

STREAM_ROWS = 2000
"""Rows held in memory at once while a long table is read."""
_LIVE_STATES = sorted(state.value for state in WAITING | ACTIVE)
_LIVE_ALLOCATIONS = sa.select(*ALLOCATION_COLUMNS).where(ALLOCATION.c.ended_ms.is_(None)).order_by(ALLOCATION.c.id)


@dataclass(frozen=True, slots=True)
class StateParts:
    """All that a ClusterState is built from, each part in order of its ids."""

    accounts: tuple[Account, ...]
    closed_pools: Mapping[PoolName, str | None]
    nodes: tuple[tuple[Node, tuple[Device, ...]], ...]
    jobs: tuple[Job, ...]
    allocations: tuple[Allocation, ...]
    rates: tuple[RatesChanged, ...] = ()
    burst_use: tuple[BurstUse, ...] = ()
    reservations: tuple[AdvanceReservation, ...] = ()
    claims: tuple[Claim, ...] = ()
    evictions: tuple[Eviction, ...] = ()


@dataclass(frozen=True, slots=True)
class LedgerHead:
    """The last row of the occupancy chain; sequence 0 before the first."""

    sequence: int
    hash: str


def load_state_parts(connection: Connection, half_life_ms: int = HALF_LIFE_MS) -> StateParts:
    """Returns what the scheduler holds in memory: linear in what lives, and in burst use not yet forgotten."""
    accounts = connection.execute(sa.select(*ACCOUNT_COLUMNS).order_by(ACCOUNT.c.id))
    pools = connection.execute(sa.select(POOL.c.name, POOL.c.reason).where(POOL.c.is_closed).order_by(POOL.c.name))
    return StateParts(
        accounts=tuple(account_of(row) for row in accounts),
        closed_pools={PoolName(name): reason for name, reason in pools},
        nodes=tuple((known.effective, known.devices) for known in load_nodes(connection).values()),
        jobs=tuple(_live_jobs(connection)),
        allocations=_live_allocations(connection),
        rates=rate_history(connection),
        burst_use=ended_burst_use(connection, latest_known_ms(connection) - FORGOTTEN_HALF_LIVES * half_life_ms),
        reservations=live_reservations(connection),
        claims=live_claims(connection),
        evictions=recent_evictions(connection, latest_known_ms(connection) - REMEMBERED_MS),
    )


def build_state(parts: StateParts, half_life_ms: int = HALF_LIFE_MS) -> ClusterState:
    """Returns the state that the parts make: equal to the one that lived through every event."""
    state = ClusterState(half_life_ms)
    for change in parts.rates:
        state.apply(change)
    for account in parts.accounts:
        state.put_account(account)
    state.closed_pools.update(parts.closed_pools)
    for node, devices in parts.nodes:
        state.put_node(node, devices)
    for job in parts.jobs:
        state.restore(job)
    for allocation in parts.allocations:
        state.restore_allocation(allocation)
    for claim in parts.claims:
        state.restore_claim(claim)
    state.claims.recent += parts.evictions
    for made in parts.reservations:
        state.apply(ReservationMade(made.start_ms, made))
    for use in parts.burst_use:
        state.restore_burst_use(use.account, use.gpu_class, use.charged_units, (use.from_ms, use.to_ms))
    return state


def live_orders(connection: Connection) -> list[StartOrder]:
    """Returns an order for each live gang, on all its nodes, for an executor that takes them up again."""
    surplus = {each.surplus_of: each for each in _live_allocations(connection) if each.surplus_of is not None}
    statement = (
        sa.select(*ALLOCATION_COLUMNS, sa.cast(JOB.c.shape, sa.Text), JOB.c.launch, JOB.c.array_index, JOB.c.array_id)
        .join(JOB, JOB.c.id == ALLOCATION.c.job_id)
        .where(ALLOCATION.c.ended_ms.is_(None), ALLOCATION.c.surplus_of.is_(None))
        .order_by(ALLOCATION.c.id)
    )
    orders = []
    charged = _charged_units(connection)
    for row in connection.execute(statement).all():
        allocation, launch, shape = allocation_of(row[:-4]), launch_of(row[-3]), shape_of_text(row[-4])
        allocation = replace(allocation, charged_units=charged[allocation.id])
        array = None if row[-1] is None else JobId(row[-1])
        secrets = resolve(connection, allocation.account, launch.secrets)
        orders.append(order_of(allocation, surplus.get(allocation.id), shape, (launch, row[-2], array, secrets)))
    return orders


def cursors(connection: Connection) -> Iterator[Cursor]:
    """Yields every open lane, by device and lane."""
    statement = sa.select(*CURSOR_COLUMNS).order_by(DEVICE_CURSOR.c.device, DEVICE_CURSOR.c.lane)
    for row in connection.execution_options(yield_per=STREAM_ROWS).execute(statement):
        yield cursor_of(row)


def occupancy(
    connection: Connection, from_ms: int | None = None, to_ms: int | None = None, after_sequence: int = 0
) -> Iterator[Interval]:
    """Yields the closed intervals that touch `[from_ms, to_ms)`, whole, in sequence order. Memory is constant."""
    statement = sa.select(*INTERVAL_COLUMNS).where(OCCUPANCY.c.sequence > after_sequence)
    if from_ms is not None:
        statement = statement.where(OCCUPANCY.c.to_ms > from_ms)
    if to_ms is not None:
        statement = statement.where(OCCUPANCY.c.from_ms < to_ms)
    statement = statement.order_by(OCCUPANCY.c.sequence)
    for row in connection.execution_options(yield_per=STREAM_ROWS).execute(statement):
        yield interval_of(row)


def ledger_head(connection: Connection) -> LedgerHead:
    """Returns the head of the occupancy chain."""
    row = connection.execute(sa.select(LEDGER_HEAD.c.sequence, LEDGER_HEAD.c.hash).where(LEDGER_HEAD.c.id == 1)).one()
    return LedgerHead(row.sequence, row.hash)


def latest_known_ms(connection: Connection) -> int:
    """Returns the latest time that the store knows, 0 when it is empty: the floor of a daemon's clock."""
    latest = [
        sa.select(sa.func.max(DEVICE_CURSOR.c.since_ms)),
        sa.select(OCCUPANCY.c.recorded_ms).order_by(OCCUPANCY.c.sequence.desc()).limit(1),
        sa.select(JOB_EVENT.c.at_ms).order_by(JOB_EVENT.c.sequence.desc()).limit(1),
    ]
    return max(connection.execute(statement).scalar() or 0 for statement in latest)


def _live_allocations(connection: Connection) -> tuple[Allocation, ...]:
    """Returns what runs, charged as the ledger has it: a node may have lost GPUs or gained some since the start."""
    charged = _charged_units(connection)
    found = (allocation_of(each) for each in connection.execute(_LIVE_ALLOCATIONS))
    return tuple(replace(each, charged_units=charged[each.id]) for each in found)


def _charged_units(connection: Connection) -> dict[str, int]:
    row = DEVICE_CURSOR.c
    sums = sa.select(row.allocation_id, sa.func.sum(row.gpu_eq_units)).where(row.allocation_id.is_not(None))
    return {id_: int(units) for id_, units in connection.execute(sums.group_by(row.allocation_id)).all()}


def _live_jobs(connection: Connection) -> Iterator[Job]:
    statement = sa.select(*JOB_COLUMNS).where(JOB.c.state.in_(_LIVE_STATES)).order_by(JOB.c.id)
    for row in connection.execution_options(yield_per=STREAM_ROWS).execute(statement):
        yield job_of(row)
