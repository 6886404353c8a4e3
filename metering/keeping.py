"""The keeping of budgets: charges what gangs used, sets more aside for those that go on, stops those without money.

`KeepBudgets` is one command, carried out every few seconds by the daemon that leads. It looks at the allocations whose
time has come (`charge_due`), so it costs what is due and not what runs; after a restart, or on another daemon, it goes
on from what the database says.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.engine import Connection

from metering.admission import BudgetAdmission, cap_left
from metering.budgets import Purse, headroom_events, standing
from metering.charges import Pot, charge, let_go, lines_due, set_aside
from metering.core.budget import CAPTURE_MS, WARN_PERCENTS, Standing
from metering.journal import budgets
from metering.ledger import next_book_ms
from metering.tables import BUDGET_NOTICE, CHARGE_DUE
from metering.timelines import Prices, load_prices
from scheduler.admission import CostQuestion
from scheduler.core.model import AccountId, AllocationId, EndReason, JobId, Phase, lineage
from scheduler.store.gangs import stop
from scheduler.store.ledger_allocations import LedgerAllocation, allocations_by_id
from scheduler.store.tables import ALLOCATION
from scheduler.store.transaction import Transaction

MOST_LOOKS = 256
"""Allocations that one command looks at: a fraction of a second's work, for nobody's write may wait for all of them."""
MOST_TOLD = 100
"""Running jobs whose owners are told that 80 % of their budget is used up; the log and `budget` tell everybody."""
_DUE = CHARGE_DUE.c.due_ms


@dataclass(frozen=True, slots=True)
class Notice:
    """A share of a budget is used up, for the first time in its period."""

    account: AccountId
    percent: int


@dataclass(frozen=True, slots=True)
class Kept:
    """What one look did."""

    looked_at: int
    settled: int
    """Allocations that ended, charged to their end."""
    stopped: tuple[AllocationId, ...]
    notices: tuple[Notice, ...]


def is_due(connection: Connection, now_ms: int) -> bool:
    """Says whether any allocation is to be looked at: one look into an index."""
    return connection.execute(sa.select(CHARGE_DUE.c.allocation_id).where(now_ms >= _DUE).limit(1)).first() is not None


@dataclass(frozen=True, slots=True)
class KeepBudgets:
    """Looks at what is due; `is_whole` looks at every budget besides, for a month may have begun."""

    admission: BudgetAdmission
    is_whole: bool = False

    def execute(self, tx: Transaction) -> Kept:
        """Returns what was done. Raises StoreCorrupt when the ledger contradicts itself."""
        connection = tx.after_ledger()
        looks = _Looks(tx, self.admission)
        looks.all()
        if looks.stops:
            stop(tx, looks.stops, EndReason.BUDGET_STOP, "budget")
        touched = None if self.is_whole else looks.touched
        for event in headroom_events(connection, touched, tx.now_ms):
            tx.emit(event)
        notices = _notices(connection, touched, tx.now_ms)
        for notice in notices:
            if notice.percent < 100:
                for job in _running_below(connection, notice.account):
                    tx.note(job, f"budget{notice.percent}", tx.now_ms, account=notice.account)
        return Kept(looks.count, looks.settled, tuple(looks.stops), notices)


class _Looks:
    """The looks of one command."""

    def __init__(self, tx: Transaction, admission: BudgetAdmission) -> None:
        self.stops: list[AllocationId] = []
        self.touched: set[AccountId] = set()
        self.count = self.settled = 0
        self._tx = tx
        self._connection = tx.connection
        self._now_ms = tx.now_ms
        self._admission = admission
        self._prices = Prices(())
        self._edge_ms: int | None = None

    def all(self) -> None:
        """Looks at what is due, the longest due first."""
        query = (
            sa.select(CHARGE_DUE, ALLOCATION.c.time_limit_ms)
            .select_from(CHARGE_DUE.outerjoin(ALLOCATION, ALLOCATION.c.id == CHARGE_DUE.c.allocation_id))
            .where(self._now_ms >= _DUE)
            .order_by(_DUE, CHARGE_DUE.c.allocation_id)
            .limit(MOST_LOOKS)
        )
        due = self._connection.execute(query).all()
        if not due:
            return
        self._prices = load_prices(self._connection)
        self._edge_ms = next_book_ms(self._connection, self._now_ms)
        found = {each.id: each for each in allocations_by_id(self._connection, [row.allocation_id for row in due])}
        for row in due:
            self.count += 1
            allocation = found.get(row.allocation_id)
            if allocation is None:
                self._forget(row.allocation_id)
            else:
                self._look(row, allocation)

    def _look(self, row: Any, allocation: LedgerAllocation) -> None:
        admission, now_ms = self._admission, self._now_ms
        lines = lines_due(self._connection, allocation, self._prices, admission.zone, now_ms)
        did_charge = charge(self._connection, allocation, lines, admission.zone.key, now_ms)
        if allocation.ended_ms is not None:
            self.settled += 1
            let_go(self._connection, allocation, now_ms)
            self._forget(allocation.id)
            self.touched.update(lineage(allocation.account))
        elif row.is_held and allocation.phase is not Phase.STOPPING:
            self.touched.update(lineage(allocation.account))
            self._extend(row, allocation)
        else:
            if did_charge:
                self.touched.update(lineage(allocation.account))
            self._next(allocation.id, CAPTURE_MS, is_warned=row.is_warned)

    def _extend(self, row: Any, allocation: LedgerAllocation) -> None:
        """Sets more aside for a gang that goes on; one for which there is no more is warned, and stopped in time."""
        connection, now_ms = self._connection, self._now_ms
        began_ms = now_ms if allocation.started_ms is None else allocation.started_ms
        remaining_ms = max(0, began_ms + row.time_limit_ms - now_ms)
        units = row.gpu_eq_units or _charged_units(allocation)
        question = CostQuestion(
            allocation.account, allocation.gpu_class, allocation.booking, units, max(1, remaining_ms)
        )
        wanted, currency = self._admission.wanted(connection, question, remaining_ms, row.grace_ms, now_ms)
        held = Pot.of(connection, allocation.id).held_micros.get(currency, 0)
        purse = Purse.of(connection, allocation.account)
        limits = (
            wanted.micros - held,
            purse.left_micros(connection, currency, now_ms),
            cap_left(connection, allocation.job),
        )
        more = min(limit for limit in limits if limit is not None)
        if more > 0:
            set_aside(connection, (allocation.id, allocation.job), purse, (more, currency), now_ms)
            held += more
        cover = wanted.covered_by(held, row.grace_ms)
        is_short = more < wanted.micros - held and held + wanted.cent_micros <= wanted.micros
        if is_short and not row.is_warned:
            minutes = cover.cover_ms // 60_000
            self._tx.note(allocation.job, "budget100", now_ms, allocation=allocation.id, minutes_left=minutes)
        if cover.must_stop:
            self.stops.append(allocation.id)
        self._next(allocation.id, cover.look_in_ms, is_warned=is_short)

    def _next(self, allocation: AllocationId, in_ms: int, *, is_warned: bool) -> None:
        due_ms = self._now_ms + in_ms
        if self._edge_ms is not None:
            due_ms = min(due_ms, self._edge_ms)
        statement = CHARGE_DUE.update().where(CHARGE_DUE.c.allocation_id == allocation)
        self._connection.execute(statement.values(due_ms=due_ms, is_warned=is_warned))

    def _forget(self, allocation: str) -> None:
        self._connection.execute(CHARGE_DUE.delete().where(CHARGE_DUE.c.allocation_id == allocation))


def _charged_units(allocation: LedgerAllocation) -> int:
    """Returns what a gang is charged for by its open lanes: one that started before there were budgets."""
    return sum(cursor.occupant.gpu_eq_units for cursor in allocation.cursors)


def _notices(connection: Connection, accounts: Iterable[AccountId] | None, now_ms: int) -> tuple[Notice, ...]:
    """Writes down which budgets have passed a warning's share for the first time in their period."""
    found = []
    asked = None if accounts is None else sorted(set(accounts))
    insert = postgresql_insert if connection.dialect.name == "postgresql" else sqlite_insert
    for account, budget in budgets(connection, asked).items() if asked is None or asked else ():
        where = standing(connection, budget, now_ms)
        for percent in _passed(where):
            assert where.period is not None, "only a period can be used up"
            values = {"account": account, "from_ms": where.period.from_ms, "percent": percent, "at_ms": now_ms}
            new = insert(BUDGET_NOTICE).values(**values).on_conflict_do_nothing().returning(BUDGET_NOTICE.c.percent)
            if connection.execute(new).first() is not None:
                found.append(Notice(account, percent))
    return tuple(found)


def _running_below(connection: Connection, account: AccountId) -> list[JobId]:
    """Returns the jobs that run below an account, the newest MOST_TOLD of them."""
    inside = sa.or_(ALLOCATION.c.account == account, ALLOCATION.c.account.startswith(f"{account}/", autoescape=True))
    query = sa.select(ALLOCATION.c.job_id).where(ALLOCATION.c.ended_ms.is_(None), inside).distinct()
    found = connection.execute(query.order_by(ALLOCATION.c.job_id.desc()).limit(MOST_TOLD)).scalars()
    return [JobId(job) for job in found]


def _passed(where: Standing) -> list[int]:
    if where.period is None:
        return []
    return [percent for percent in WARN_PERCENTS if where.used_permille >= 10 * percent]
