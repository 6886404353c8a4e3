"""Budgets in SQL: their terms, where they stand, who pays for an account, and whether a hold fits.

Every function works inside the caller's transaction. Terms are append-only; what is charged is counted anew when an
account's terms change, so a budget counts from its period's beginning and not from when it was set.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from zoneinfo import ZoneInfo

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from metering.core.budget import Budget, BudgetKind, Standing
from metering.core.journal import EntryKind, JournalEntry, Ledger, transfer
from metering.core.quantity import AMOUNT_DECIMALS, Rounding, divide, fixed, minor_unit
from metering.journal import NO_BUDGET, balance, balance_below, budgets, next_entry_id, post, recount_use, use_of
from metering.tables import BUDGET_NOTICE, BUDGET_TERM, CHARGE_DUE, POSTING, POSTING_ENTRY, PRICE_BOOK
from scheduler.admission import Money, OverBudget
from scheduler.core.events import HeadroomChanged
from scheduler.core.model import AccountId, lineage
from scheduler.refusal import RefusalCode, Refused
from scheduler.store.tables import ALLOCATION

MICROS = 10**AMOUNT_DECIMALS


def money(micros: int, currency: str, mode: Rounding = Rounding.DOWN) -> Money:
    """Returns an amount as people read it, in the currency's minor unit."""
    decimals = -int(minor_unit(currency).as_tuple().exponent)
    return Money(fixed(divide(micros, 10 ** (AMOUNT_DECIMALS - decimals), mode), decimals), currency)


# ---- terms ----------------------------------------------------------------------------------------------------------


def set_budget(connection: Connection, budget: Budget, at_ms: int, actor: str) -> None:
    """Gives an account a budget, in place of the one it has; gangs that run below it are looked at soon."""
    _append(connection, budget, at_ms, actor)
    recount_use(connection, budget.account)
    if budget.is_hard:
        watch(connection, budget.account)


def end_budget(connection: Connection, account: AccountId, at_ms: int, actor: str) -> bool:
    """Ends an account's budget; False when it has none. Money paid ahead stays where it is."""
    budget = budgets(connection, [account]).get(account)
    if budget is None:
        return False
    _append(connection, budget, at_ms, actor, is_end=True)
    recount_use(connection, account)
    return True


def top_up(connection: Connection, budget: Budget, micros: int, at_ms: int, told: tuple[str, str, str | None]) -> None:
    """Adds to a budget: money paid ahead by an entry of the journal, to a limit for its present period only.

    `told` is who, why, and a key under which the same is added once. Raises Refused: wrong_state outside of a fixed
    budget's time, conflict for a key that stood for another amount.
    """
    actor, reason, key = told
    if micros <= 0:
        raise Refused(RefusalCode.INVALID, "a top-up is more than 0")
    if budget.kind is BudgetKind.PREPAID:
        legs = transfer((Ledger.RECEIVABLE, budget.account), (Ledger.PREPAID, budget.account), micros)
        name = f"topup/{budget.account}/{key or next_entry_id(connection)}"
        entry = JournalEntry(name, EntryKind.TOPUP, budget.currency, at_ms, legs, actor=actor, reason=reason)
        known = connection.execute(sa.select(POSTING_ENTRY.c.at_ms).where(POSTING_ENTRY.c.key == name)).scalar()
        post(connection, entry if known is None else replace(entry, at_ms=known))
    else:
        period = budget.period_at(at_ms, ZoneInfo(budget.zone))
        if period is None:
            raise Refused(
                RefusalCode.WRONG_STATE,
                f"the budget of {budget.account} is for another time; a top-up is for the present one",
                tries=("turnstile admin budget set",),
            )
        if not _is_repeated(connection, budget, micros, key):
            _append(connection, budget.topped_up(micros, period), at_ms, actor, (key, reason, micros))
    watch(connection, budget.account, only_warned=True)


def _is_repeated(connection: Connection, budget: Budget, micros: int, key: str | None) -> bool:
    if key is None:
        return False
    query = sa.select(BUDGET_TERM.c.topup_micros).where(
        BUDGET_TERM.c.account == budget.account, BUDGET_TERM.c.topup_key == key
    )
    known = connection.execute(query).scalar()
    if known is not None and known != micros:
        raise Refused(RefusalCode.CONFLICT, f"the key {key!r} stood for another top-up; use a new one")
    return known is not None


def warned_at(connection: Connection, where: Standing) -> tuple[int, ...]:
    """Returns the shares of a budget that were passed in its present period."""
    if where.period is None:
        return ()
    query = sa.select(BUDGET_NOTICE.c.percent).where(
        BUDGET_NOTICE.c.account == where.budget.account, BUDGET_NOTICE.c.from_ms == where.period.from_ms
    )
    return tuple(sorted(connection.execute(query).scalars()))


def watch(connection: Connection, account: AccountId, *, only_warned: bool = False) -> None:
    """Has the gangs that run below an account looked at at once, and money set aside for them."""
    inside = sa.or_(ALLOCATION.c.account == account, ALLOCATION.c.account.startswith(f"{account}/", autoescape=True))
    live = sa.select(ALLOCATION.c.id).where(ALLOCATION.c.ended_ms.is_(None), inside)
    statement = CHARGE_DUE.update().where(CHARGE_DUE.c.allocation_id.in_(live))
    if only_warned:
        statement = statement.where(CHARGE_DUE.c.is_warned)
    connection.execute(statement.values(due_ms=0, is_held=True))


def _append(
    connection: Connection,
    budget: Budget,
    at_ms: int,
    actor: str,
    topup: tuple[str | None, str | None, int | None] = (None, None, None),
    *,
    is_end: bool = False,
) -> None:
    key, reason, micros = topup
    connection.execute(
        BUDGET_TERM.insert().values(
            account=budget.account,
            at_ms=at_ms,
            actor=actor,
            kind=NO_BUDGET if is_end else budget.kind.value,
            topup_key=key,
            topup_micros=micros,
            reason=reason,
            is_hard=budget.is_hard,
            currency=budget.currency,
            zone=budget.zone,
            limit_micros=budget.limit_micros,
            overdraft_micros=budget.overdraft_micros,
            from_ms=budget.from_ms,
            to_ms=budget.to_ms,
            extra_micros=budget.extra_micros,
            extra_from_ms=budget.extra_from_ms,
        )
    )


# ---- where they stand -----------------------------------------------------------------------------------------------


def standing(connection: Connection, budget: Budget, at_ms: int) -> Standing:
    """Returns where a budget stands: reads a handful of rows, however long the journal is."""
    period = budget.period_at(at_ms, ZoneInfo(budget.zone))
    held = -balance_below(connection, Ledger.HOLD, budget.account, budget.currency)
    if budget.kind is BudgetKind.PREPAID:
        paid = _paid(connection, budget)
        net = -balance(connection, Ledger.PREPAID, budget.account, budget.currency)
        return Standing(budget, period, paid, paid - net - held, held)
    if period is None:
        return Standing(budget, None, 0, 0, held)
    used = use_of(connection, budget.account, period.from_ms)
    return Standing(budget, period, budget.allowed_micros(period), used, held)


def standings(connection: Connection, at_ms: int) -> dict[AccountId, Standing]:
    """Returns where every budget stands, in order of accounts."""
    return {account: standing(connection, budget, at_ms) for account, budget in budgets(connection).items()}


def headroom_events(connection: Connection, accounts: Iterable[AccountId] | None, at_ms: int) -> list[HeadroomChanged]:
    """Returns what may still be set aside by accounts with hard budgets; None for those of the accounts without one."""
    asked = None if accounts is None else sorted(set(accounts))
    found = budgets(connection, asked)
    currency = priced_in(connection, at_ms) if any(each.is_hard for each in found.values()) else None
    events = []
    for account in found if asked is None else asked:
        budget = found.get(account)
        left = None
        if budget is not None and budget.is_hard:
            left = standing(connection, budget, at_ms).left_micros
            # Money of another currency than prices pays for nothing: were it told, starts would be tried for ever.
            left = min(left, 0) if currency not in {None, budget.currency} else left
        pays = budget is not None and budget.kind is BudgetKind.PREPAID
        events.append(HeadroomChanged(at_ms, account, left, pays))
    return events


def priced_in(connection: Connection, at_ms: int) -> str | None:
    """Returns the currency of the prices in force; None where there are none."""
    row = PRICE_BOOK.c
    query = sa.select(row.currency).where(row.effective_ms <= at_ms).order_by(row.effective_ms.desc()).limit(1)
    return connection.execute(query).scalar()


def _paid(connection: Connection, budget: Budget) -> int:
    query = (
        sa.select(sa.func.sum(POSTING.c.micros))
        .join(POSTING_ENTRY, POSTING_ENTRY.c.id == POSTING.c.entry_id)
        .where(
            POSTING.c.ledger == Ledger.PREPAID.value,
            POSTING.c.account == budget.account,
            POSTING_ENTRY.c.kind == EntryKind.TOPUP.value,
            POSTING_ENTRY.c.currency == budget.currency,
        )
    )
    return -int(connection.execute(query).scalar() or 0)


# ---- what fits ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Purse:
    """Who pays for an account, and the budgets that bind it."""

    account: AccountId
    budgets: Mapping[AccountId, Budget]
    """Of the account and those above it."""

    @classmethod
    def of(cls, connection: Connection, account: AccountId) -> "Purse":
        """Returns the purse of an account: one query."""
        return cls(account, budgets(connection, lineage(account)))

    @property
    def payer(self) -> tuple[Ledger, AccountId]:
        """The nearest account with money paid ahead pays; where there is none, the account owes."""
        for step in lineage(self.account):
            budget = self.budgets.get(step)
            if budget is not None and budget.kind is BudgetKind.PREPAID:
                return Ledger.PREPAID, step
        return Ledger.RECEIVABLE, self.account

    @property
    def binding(self) -> list[Budget]:
        """The hard budgets that a hold must fit, nearest first. Money paid ahead further up is not touched."""
        return [each for each in self._counted() if each.is_hard]

    @property
    def nearest(self) -> Budget | None:
        """The budget nearest to the account that counts for it."""
        return next(iter(self._counted()), None)

    @property
    def warning(self) -> list[Budget]:
        """The soft budgets, nearest first."""
        return [each for each in self._counted() if not each.is_hard]

    def over(self, connection: Connection, needed: Money, at_ms: int) -> OverBudget | None:
        """Returns the nearest hard budget that has less left than is needed; one of another currency has nothing."""
        return first_over(connection, self.binding, needed, at_ms)

    def left_micros(self, connection: Connection, currency: str, at_ms: int) -> int | None:
        """Returns the least that is left in the hard budgets; None where there is none."""
        return min(
            (
                standing(connection, each, at_ms).left_micros if each.currency == currency else 0
                for each in self.binding
            ),
            default=None,
        )

    def _counted(self) -> list[Budget]:
        payer = self.payer[1]
        found = (self.budgets.get(step) for step in lineage(self.account))
        return [each for each in found if each and (each.kind is not BudgetKind.PREPAID or each.account == payer)]


def first_over(connection: Connection, binding: Iterable[Budget], needed: Money, at_ms: int) -> OverBudget | None:
    """Returns the first budget that has less left than is needed."""
    micros = micros_of(needed)
    for budget in binding:
        left = standing(connection, budget, at_ms).left_micros
        if budget.currency != needed.currency:
            if micros > 0:
                return OverBudget(budget.account, needed, money(0, budget.currency))
        elif micros > 0 and micros > left:
            return OverBudget(budget.account, needed, money(left, budget.currency))
    return None


def micros_of(amount: Money) -> int:
    """Returns an amount of people's in 10**-6, exactly: it has no more digits."""
    return int(Decimal(amount.amount).scaleb(AMOUNT_DECIMALS).to_integral_exact())
