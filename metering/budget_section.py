"""The budgets of a declared centre: each entry is the whole of an account's terms, as `admin budget set` takes them."""

from dataclasses import dataclass, replace
from decimal import Decimal
from functools import partial
from zoneinfo import ZoneInfo

from pydantic import Field
from sqlalchemy.engine import Connection

from metering.budget_routes import BudgetBody, BudgetCommand, currency_of, terms_of
from metering.budgets import end_budget, money, set_budget
from metering.core.budget import Budget, BudgetKind
from metering.journal import budgets
from scheduler.auth import Rights
from scheduler.clock import iso_utc
from scheduler.core.model import ROOT_ACCOUNT, AccountId
from scheduler.refusal import Problem, RefusalCode, Refused
from scheduler.routes.apply import SectionKind
from scheduler.routes.door import Door
from scheduler.store.declared import Change, ChangeKind, Found, Ground, Value
from scheduler.wire.declaration import ApplyBody
from scheduler.wire.text import AccountPath

BUDGETS = "budgets"


class BudgetEntry(BudgetBody):
    """The budget of an account, in place of the one that it has. `currency` is that of amounts which name none."""

    account: AccountPath
    currency: str | None = Field(None, pattern=r"^[A-Z]{3}$")

    @property
    def is_money(self) -> bool:
        """True for what is the centre's to give: money paid ahead, or an overdraft."""
        return BudgetKind(self.period) is BudgetKind.PREPAID or (
            self.overdraft is not None and Decimal(self.overdraft.amount) > 0
        )

    def said(self) -> BudgetBody:
        """Returns the terms, with each amount in its currency."""

        def whole(name: str) -> object:
            amount = getattr(self, name)
            if amount is None or amount.currency is not None:
                return amount
            return amount.model_copy(update={"currency": self.currency})

        return self.model_copy(update={name: whole(name) for name in ("limit", "overdraft")})


@dataclass(frozen=True, slots=True)
class DeclaredBudgets:
    """The budgets of a file. Periods are those of `zone`; a prune ends budgets that the caller may end."""

    entries: tuple[BudgetEntry, ...]
    rights: Rights
    zone: ZoneInfo
    now_ms: int

    def differences(self, ground: Ground) -> Found:
        """Returns the differences, in order of the file; then budgets that are pruned, or kept."""
        there = budgets(ground.connection)
        changes: list[Change] = []
        problems: list[Problem] = []
        seen: set[AccountId] = set()
        for index, entry in enumerate(self.entries):
            account = AccountId(entry.account)
            place = f"{BUDGETS}.{index}"
            if account in seen:
                problems.append(Problem(f"{account} has a budget in this file already", f"{place}.account"))
            seen.add(account)
            if account not in ground.accounts:
                problems.append(Problem(f"there is no account {account}", f"{place}.account"))
            try:
                change = self._change(ground.connection, there.get(account), entry)
            except Refused as refused:
                problems += _within(place, refused)
                continue
            changes += [] if change is None else [change]
        if ground.prunes:
            changes += [
                self._ended(budget)
                for account, budget in there.items()
                if account not in seen and account in ground.accounts and self.rights.may_see_account(account)
            ]
        return Found(tuple(changes), tuple(problems))

    def _change(self, connection: Connection, before: Budget | None, entry: BudgetEntry) -> Change | None:
        """Returns what differs; None for nothing. Raises Refused for terms that cannot be, or are not the caller's."""
        said = entry.said()
        account = AccountId(entry.account)
        after = terms_of(account, said, currency_of(connection, said, self.now_ms), self.zone)
        if before is not None:
            _require(self.rights, before)
            if (before.kind, before.currency) == (after.kind, after.currency):
                # What was added to the present period is no part of the terms: a new limit leaves it.
                after = replace(after, extra_micros=before.extra_micros, extra_from_ms=before.extra_from_ms)
            if before == after:
                return None
        was = {} if before is None else _shown(before)
        fields = tuple((name, was.get(name), value) for name, value in _shown(after).items() if was.get(name) != value)
        command = BudgetCommand(account, partial(_set, after, self.rights))
        return Change(BUDGETS, ChangeKind.CREATE if before is None else ChangeKind.CHANGE, account, fields, command)

    def _ended(self, budget: Budget) -> Change:
        try:
            _require(self.rights, budget)
        except Refused as refused:
            return Change(BUDGETS, ChangeKind.KEEP, budget.account, note=refused.message)
        return Change(
            BUDGETS,
            ChangeKind.REMOVE,
            budget.account,
            (),
            BudgetCommand(budget.account, partial(_end, budget, self.rights)),
        )


def budget_section(zone: ZoneInfo) -> SectionKind:
    """Returns the section of budgets, whose months are those of the zone."""

    def declare(door: Door, rights: Rights, _: ApplyBody, entries: list[BudgetEntry]) -> DeclaredBudgets:
        return DeclaredBudgets(tuple(entries), rights, zone, door.now_ms)

    return SectionKind(BUDGETS, BudgetEntry, _check, declare, named_by="account")


def _check(rights: Rights, entry: BudgetEntry) -> None:
    account = AccountId(entry.account)
    if account == ROOT_ACCOUNT or not rights.may_see_account(account):
        raise Refused(RefusalCode.NOT_FOUND, f"no account {entry.account!r} that this token may see")
    rights.require_budget(account, is_money=entry.is_money)


def _require(rights: Rights, budget: Budget) -> None:
    rights.require_budget(budget.account, is_money=budget.kind is BudgetKind.PREPAID or budget.overdraft_micros > 0)


def _set(budget: Budget, rights: Rights, connection: Connection, at_ms: int) -> None:
    set_budget(connection, budget, at_ms, rights.caller.user)


def _end(budget: Budget, rights: Rights, connection: Connection, at_ms: int) -> None:
    end_budget(connection, budget.account, at_ms, rights.caller.user)


def _within(place: str, refused: Refused) -> list[Problem]:
    """Returns the problems of one entry, each at its place in the file."""
    if not refused.problems:
        return [Problem(refused.message, f"{place}.account")]
    return [Problem(each.message, f"{place}.{each.field}" if each.field else place) for each in refused.problems]


def _shown(budget: Budget) -> dict[str, Value]:
    def amount(micros: int) -> str:
        told = money(micros, budget.currency)
        return f"{told.amount} {told.currency}"

    def moment(at_ms: int | None) -> str | None:
        return None if at_ms is None else iso_utc(at_ms)

    return {
        "period": budget.kind.value,
        "limit": None if budget.kind is BudgetKind.PREPAID else amount(budget.limit_micros),
        "overdraft": amount(budget.overdraft_micros) if budget.overdraft_micros else None,
        "hard": budget.is_hard,
        "from_at": moment(budget.from_ms),
        "to_at": moment(budget.to_ms),
        "zone": budget.zone,
    }
