"""Admission with budgets: implements `scheduler.admission.Admission` on the journal.

A submission is refused when all that it may cost exceeds what is left. A start sets an hour of its price aside (less
for a shorter limit), with its grace as far as there is money for that too. `metering.keeping` charges what gangs use,
sets more aside while they run, and stops those for which there is no more.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from zoneinfo import ZoneInfo

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.engine import Connection

from metering.budgets import Purse, first_over, headroom_events, micros_of, money, standing
from metering.charges import Pot, priced_after, set_aside
from metering.core.budget import CAPTURE_MS, HOLD_AHEAD_MS, Budget, Wanted, ahead_ms
from metering.core.civil import local_time
from metering.core.quantity import AMOUNT_DECIMALS, minor_unit
from metering.journal import spent_on_job
from metering.ledger import next_book_ms
from metering.pricing import Prices
from metering.tables import CHARGE_DUE, JOB_CAP
from scheduler.admission import BudgetLeft, CostQuestion, HoldAsk, HoldEvent, Money, OverBudget, Submission
from scheduler.core.events import HoldPriced
from scheduler.core.model import AccountId, AllocationId, JobId
from scheduler.refusal import Problem, RefusalCode, Refused
from scheduler.store.database import chunks

MINUTE_MS = 60_000
UTC_ZONE = ZoneInfo("UTC")
NOTHING = Money("0", "XXX")
"""What a gang without a price costs; XXX is ISO 4217's code for no currency."""


@dataclass(frozen=True, slots=True)
class BudgetAdmission(Prices):
    """Prices and budgets. `zone` is the centre's, whose days cut the lines that are charged."""

    zone: ZoneInfo = UTC_ZONE

    def admit(self, connection: Connection, asked: Submission, at_ms: int) -> Sequence[str]:
        """Returns warnings of soft budgets. Raises Refused (over_budget) with the longest limit that fits."""
        if not asked.questions:
            return ()
        price = _Dearest(self, connection, asked, at_ms)
        if asked.most is not None:
            price.check_cap(asked.most)
        purse = Purse.of(connection, asked.questions[0].account)
        if not purse.budgets:
            return ()
        needed = price.total()
        over = purse.over(connection, needed, at_ms)
        if over is not None:
            raise _refused(over, price, purse.budgets[over.account], at_ms)
        found = (first_over(connection, [each], needed, at_ms) for each in purse.warning)
        return [
            f"may cost {_shown(each.needed)}, and the soft budget of {each.account} has {_shown(each.left)} left"
            for each in found
            if each is not None
        ]

    def budget_left(self, connection: Connection, account: AccountId, at_ms: int) -> BudgetLeft | None:
        """Returns where the budget nearest to an account stands."""
        found = Purse.of(connection, account).nearest
        if found is None:
            return None
        where = standing(connection, found, at_ms)
        ends_ms = None if where.period is None else where.period.to_ms
        left = money(where.left_micros, found.currency)
        return BudgetLeft(found.account, found.kind.value, found.is_hard, left, ends_ms, found.zone)

    def cap(self, connection: Connection, jobs: Sequence[JobId], asked: Submission, at_ms: int) -> None:
        """Remembers each job's part of the most that all may cost together."""
        if asked.most is None or not jobs:
            return
        currency = asked.most.currency or _Dearest(self, connection, asked, at_ms).total().currency
        each = micros_of(asked.most) // asked.count
        rows = [{"job_id": job, "currency": currency, "micros": each} for job in jobs]
        for part in chunks(rows):
            connection.execute(JOB_CAP.insert(), part)

    def holds(self, connection: Connection, at_ms: int) -> "BudgetHolds":
        """Returns where one command's starts take their holds."""
        return BudgetHolds(self, connection, at_ms)

    def extend(self, connection: Connection, ask: HoldAsk, at_ms: int) -> None:
        """Has the next look come at once, which sets more aside. Raises Refused (over_budget)."""
        gang = CHARGE_DUE.c.allocation_id == ask.allocation
        units = connection.execute(sa.select(CHARGE_DUE.c.gpu_eq_units).where(gang)).scalar_one_or_none()
        needed = self.amount(connection, replace(ask.question, gpu_eq_units=units or ask.question.gpu_eq_units), at_ms)
        held_micros = Pot.of(connection, ask.allocation).held_micros.get(needed.currency, 0)
        more = money(max(0, micros_of(needed) - held_micros), needed.currency)
        purse = Purse.of(connection, ask.question.account)
        over = purse.over(connection, more, at_ms)
        if over is not None:
            left = _left(over, purse.budgets[over.account], at_ms)
            raise Refused(
                RefusalCode.OVER_BUDGET,
                f"job {ask.job} may cost {_shown(over.needed)} more, but {left}",
                tries=("a shorter limit", "ask a tenant admin or the operator to raise the budget"),
            )
        cap = cap_left(connection, ask.job)
        if cap is not None and micros_of(more) > cap:
            rest = money(max(0, cap), needed.currency)
            raise Refused(
                RefusalCode.OVER_BUDGET,
                f"job {ask.job} may cost {_shown(more)} more, but its --max-cost leaves {_shown(rest)}",
            )
        connection.execute(CHARGE_DUE.update().where(gang).values(due_ms=at_ms))

    def release(self, connection: Connection, allocations: Sequence[AllocationId], at_ms: int) -> None:  # noqa: ARG002
        """Has gangs that ended charged to their end at the next look, and the rest of their holds let go of.

        One that was charged to its end before is charged anew: what is known of it has changed.
        """
        insert = postgresql_insert if connection.dialect.name == "postgresql" else sqlite_insert
        allocations = [*allocations, *priced_after(connection, allocations)]
        fresh = {"due_ms": 0, "is_held": False, "gpu_eq_units": 0, "grace_ms": 0, "is_warned": False}
        for part in chunks(allocations):
            statement = insert(CHARGE_DUE).values([{"allocation_id": each, **fresh} for each in part])
            connection.execute(statement.on_conflict_do_update(index_elements=["allocation_id"], set_={"due_ms": 0}))

    def headroom(self, connection: Connection, at_ms: int) -> Sequence[HoldEvent]:
        """Returns the headroom of every account with a hard budget."""
        return headroom_events(connection, None, at_ms)

    def wanted(
        self, connection: Connection, question: CostQuestion, remaining_ms: int, grace_ms: int, at_ms: int
    ) -> tuple[Wanted, str]:
        """Returns what should be set aside for a gang that may run so long yet, and the currency."""
        hour = self.amount(connection, replace(question, time_limit_ms=HOLD_AHEAD_MS), at_ms)
        ahead = replace(question, time_limit_ms=max(1, ahead_ms(remaining_ms, grace_ms)))
        micros = micros_of(self.amount(connection, ahead, at_ms))
        cent = int(minor_unit(hour.currency) * 10**AMOUNT_DECIMALS)
        return Wanted(micros, micros_of(hour), remaining_ms <= HOLD_AHEAD_MS, cent), hour.currency

    def amount(self, connection: Connection, question: CostQuestion, at_ms: int) -> Money:
        """Returns the most that a gang can cost; NOTHING where it has no price."""
        quote = self.most_cost(connection, question, at_ms)
        return NOTHING if quote is None else quote.most


class BudgetHolds:
    """The holds of one command."""

    def __init__(self, admission: BudgetAdmission, connection: Connection, at_ms: int) -> None:
        self._admission = admission
        self._connection = connection
        self._at_ms = at_ms
        self._purses: dict[AccountId, Purse] = {}
        self._touched: set[AccountId] = set()
        self._priced: list[HoldPriced] = []

    def take(self, ask: HoldAsk) -> OverBudget | None:
        """Sets the first hour of a gang aside, or says whose budget lacks it; nothing is written then."""
        question, connection, at_ms = ask.question, self._connection, self._at_ms
        purse = self._purse(question.account)
        cap = cap_left(connection, ask.job)
        is_held = bool(purse.binding) or cap is not None
        look_in_ms = CAPTURE_MS
        if is_held:
            least = min(question.time_limit_ms, HOLD_AHEAD_MS)
            needed = self._admission.amount(connection, replace(question, time_limit_ms=least), at_ms)
            if not ask.is_surplus:
                self._learn(ask, purse, micros_of(needed))
            self._touch(purse)
            over = purse.over(connection, needed, at_ms)
            if over is not None:
                return over
            wanted, currency = self._admission.wanted(connection, question, question.time_limit_ms, ask.grace_ms, at_ms)
            limits = (wanted.micros, purse.left_micros(connection, currency, at_ms), cap)
            micros = max(0, min(limit for limit in limits if limit is not None))
            if micros > 0:
                set_aside(connection, (ask.allocation, ask.job), purse, (micros, currency), at_ms)
            look_in_ms = wanted.covered_by(micros, ask.grace_ms).look_in_ms
            edge_ms = next_book_ms(connection, at_ms)
            if edge_ms is not None:
                look_in_ms = min(look_in_ms, edge_ms - at_ms)
        connection.execute(
            CHARGE_DUE.insert().values(
                allocation_id=ask.allocation,
                due_ms=at_ms + look_in_ms,
                is_held=is_held,
                gpu_eq_units=question.gpu_eq_units,
                grace_ms=ask.grace_ms,
                is_warned=False,
            )
        )
        return None

    def events(self) -> Sequence[HoldEvent]:
        """Returns what holds cost and what is left now."""
        return [*self._priced, *headroom_events(self._connection, self._touched, self._at_ms)]

    def _learn(self, ask: HoldAsk, purse: Purse, micros: int) -> None:
        if purse.binding:
            question = ask.question
            self._priced.append(HoldPriced(self._at_ms, ask.job, question.gpu_class, question.booking, micros))

    def _touch(self, purse: Purse) -> None:
        self._touched.update(each.account for each in purse.binding)

    def _purse(self, account: AccountId) -> Purse:
        if account not in self._purses:
            self._purses[account] = Purse.of(self._connection, account)
        return self._purses[account]


def cap_left(connection: Connection, job: JobId) -> int | None:
    """Returns what a job may still cost by its own `--max-cost`, in 10**-6; None where it has none."""
    cap = connection.execute(sa.select(JOB_CAP.c.currency, JOB_CAP.c.micros).where(JOB_CAP.c.job_id == job)).first()
    return None if cap is None else int(cap.micros) - spent_on_job(connection, job, cap.currency)


class _Dearest:
    """The most that a submission can cost, at its own time limit or another."""

    def __init__(self, admission: BudgetAdmission, connection: Connection, asked: Submission, at_ms: int) -> None:
        self._amount: Callable[[CostQuestion], Money] = lambda question: admission.amount(connection, question, at_ms)
        self.asked = asked

    def total(self, limit_ms: int | None = None) -> Money:
        """Returns what all jobs may cost together, each in the class where it costs most."""
        questions = self.asked.questions
        if limit_ms is not None:
            questions = tuple(replace(each, time_limit_ms=limit_ms) for each in questions)
        dearest = max(map(self._amount, questions), key=micros_of)
        if dearest is NOTHING:
            return NOTHING
        return money(micros_of(dearest) * self.asked.count, dearest.currency)

    def check_cap(self, most: Money) -> None:
        """Raises Refused when the jobs may cost more than their owner lets them."""
        total = self.total()
        if total is NOTHING:
            raise Refused(
                RefusalCode.OVER_BUDGET,
                "max_cost cannot be kept: no price is known for these GPUs",
                tries=("without --max-cost",),
            )
        if most.currency and most.currency != total.currency:
            raise Refused(
                RefusalCode.INVALID,
                f"max_cost is in {most.currency} and prices are in {total.currency}",
                tries=(f"--max-cost '{most.amount} {total.currency}'",),
                problems=(Problem(f"must be in {total.currency}", "max_cost.currency"),),
            )
        if micros_of(total) > micros_of(most):
            fitting = self.longest_fit(micros_of(most))
            raise Refused(
                RefusalCode.OVER_BUDGET,
                f"may cost {_shown(total)}, but --max-cost allows {_shown(Money(most.amount, total.currency))}",
                tries=(*fitting, f"--max-cost {total.amount}"),
            )

    def longest_fit(self, left_micros: int) -> tuple[str, ...]:
        """Returns the flag of the longest time limit in minutes that costs no more, with what it costs; or nothing."""
        low, high = 0, self.asked.questions[0].time_limit_ms // MINUTE_MS
        while low < high:
            middle = (low + high + 1) // 2
            if micros_of(self.total(middle * MINUTE_MS)) <= left_micros:
                low = middle
            else:
                high = middle - 1
        if low >= 600:  # beyond ten hours nobody counts in minutes
            low -= low % 60
        if not low:
            return ()
        shown = f"{low // 60}h" if low % 60 == 0 else f"{low}m"
        return (f"-t {shown} ({_digits(self.total(low * MINUTE_MS).amount)})",)


def _refused(over: OverBudget, price: _Dearest, budget: Budget, at_ms: int) -> Refused:
    if budget.currency != over.needed.currency:
        tries: tuple[str, ...] = (f"ask a tenant admin or the operator for a budget in {over.needed.currency}",)
    else:
        tries = (*price.longest_fit(micros_of(over.left)), "ask a tenant admin or the operator to raise the budget")
    sentence = f"may cost {_shown(over.needed)}, but {_left(over, budget, at_ms)}"
    return Refused(RefusalCode.OVER_BUDGET, sentence, tries=tries)


def _left(over: OverBudget, budget: Budget, at_ms: int) -> str:
    zone = ZoneInfo(budget.zone)
    period = budget.period_at(at_ms, zone)
    until = ""
    if period is not None and period.to_ms is not None:
        end = local_time(period.to_ms, zone)
        until = f" until {end.day} {end:%B}"
    noun = "project" if "/" in over.account else "tenant"
    if budget.currency != over.needed.currency:
        return f"the budget of {noun} {over.account} is in {budget.currency}, which pays for nothing here"
    return f"{noun} {over.account} has {_digits(over.left.amount)} left{until}"


def _shown(amount: Money) -> str:
    return f"{_digits(amount.amount)} {amount.currency}"


def _digits(amount: str) -> str:
    return f"{Decimal(amount):,}"
