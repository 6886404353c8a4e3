"""Budgets over HTTP: who may look sees their own; who may set them changes them by commands of the store."""

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Literal
from zoneinfo import ZoneInfo

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from pydantic import AwareDatetime, Field
from sqlalchemy.engine import Connection

from metering.budgets import end_budget, headroom_events, money, set_budget, standing, standings, top_up, warned_at
from metering.core.budget import Budget, BudgetKind, Standing
from metering.core.quantity import AMOUNT_DECIMALS, Rounding, divide, minor_unit
from metering.journal import budgets
from metering.ledger import current_book
from scheduler.auth import READS_JOBS, SETS_BUDGETS, Rights, is_within
from scheduler.clock import iso_utc
from scheduler.core.model import ROOT_ACCOUNT, AccountId
from scheduler.refusal import Problem, RefusalCode, Refused
from scheduler.routes.bodies import body_of
from scheduler.routes.door import Door, answer
from scheduler.routes.submitting import checked_key
from scheduler.store import centre
from scheduler.store.transaction import Transaction
from scheduler.wire.problems import Json, envelope, page
from scheduler.wire.requests import Strict, parse
from scheduler.wire.spec import MoneySpec, invalid
from scheduler.wire.text import Words

AccountRef = Annotated[str, Path(max_length=256)]


class BudgetBody(Strict):
    """The terms of a budget."""

    period: Literal["month", "fixed", "prepaid"] = "month"
    limit: MoneySpec | None = Field(None, description="Of each month, or of the fixed time; none for prepaid money.")
    overdraft: MoneySpec | None = Field(None, description="How far below nothing the balance may go.")
    hard: bool = Field(True, description="False: only warns.")
    from_at: AwareDatetime | None = None
    to_at: AwareDatetime | None = None


class TopUpBody(Strict):
    """Money for a budget: paid ahead, or more for the present period of a limit."""

    amount: MoneySpec
    reason: Annotated[Words, Field(min_length=1, max_length=256)]


@dataclass(frozen=True, slots=True)
class BudgetCommand:
    """Changes a budget and tells the planner what is left."""

    account: AccountId
    change: Callable[[Connection, int], object]

    def execute(self, tx: Transaction) -> Standing | None:
        """Returns where the budget stands then; None when there is none any more."""
        if tx.is_suspended(self.account) is None:
            raise Refused(RefusalCode.NOT_FOUND, f"there is no account {self.account}")
        connection = tx.connection
        self.change(connection, tx.now_ms)
        for event in headroom_events(connection, [self.account], tx.now_ms):
            tx.emit(event)
        budget = budgets(connection, [self.account]).get(self.account)
        return None if budget is None else standing(connection, budget, tx.now_ms)


def budget_routes(zone: ZoneInfo) -> Callable[[Door], APIRouter]:
    """Returns the factory of the routes of budgets, whose months are those of the zone."""
    return lambda door: _routes(door, zone)


def _routes(door: Door, zone: ZoneInfo) -> APIRouter:
    router = APIRouter(tags=["money"])
    reader = door.allow(READS_JOBS)
    setter = door.allow_change(SETS_BUDGETS)

    @router.get("/v1/budgets", summary="Budgets: what is left, used and set aside")
    async def list_budgets(
        rights: Annotated[Rights, Depends(reader)],
        account: Annotated[str | None, Query(min_length=1, max_length=256, description="It and those below.")] = None,
    ) -> Response:
        root = rights.visible_root if account is None else AccountId(account)
        if not rights.may_see_account(root):
            raise Refused(RefusalCode.NOT_FOUND, f"no account {account!r} that this token may see")
        found = await door.read(lambda connection: _listed(connection, root, door.now_ms))
        return answer(page("BudgetList", door.now_ms, found))

    @router.put("/v1/admin/budgets/{path:path}", summary="Set a budget", openapi_extra=body_of(BudgetBody))
    async def put_budget(request: Request, path: AccountRef, rights: Annotated[Rights, Depends(setter)]) -> Response:
        account = _checked(path, rights)
        asked = parse(BudgetBody, await request.body())
        currency = await door.read(lambda connection: currency_of(connection, asked, door.now_ms))
        budget = terms_of(account, asked, currency, zone)
        rights.require_budget(account, is_money=budget.kind is BudgetKind.PREPAID or budget.overdraft_micros > 0)

        def set_it(connection: Connection, at_ms: int) -> None:
            _require_own(connection, account, rights)
            set_budget(connection, budget, at_ms, rights.caller.user)

        done = await door.carry_out(BudgetCommand(account, set_it))
        return answer(envelope("Budget", door.now_ms, **_shown(done)))

    @router.delete("/v1/admin/budgets/{path:path}", summary="End a budget")
    async def delete_budget(path: AccountRef, rights: Annotated[Rights, Depends(setter)]) -> Response:
        account = _checked(path, rights)

        def end_it(connection: Connection, at_ms: int) -> None:
            _require_own(connection, account, rights)
            end_budget(connection, account, at_ms, rights.caller.user)

        await door.carry_out(BudgetCommand(account, end_it))
        return answer(envelope("BudgetEnded", door.now_ms, account=account))

    @router.post("/v1/admin/budgets/{path:path}/topup", summary="Add to a budget", openapi_extra=body_of(TopUpBody))
    async def add(
        request: Request,
        path: AccountRef,
        rights: Annotated[Rights, Depends(setter)],
        idempotency_key: Annotated[str | None, Header(description="The same key adds once.")] = None,
    ) -> Response:
        account, key = _checked(path, rights), checked_key(idempotency_key)
        asked = parse(TopUpBody, await request.body())
        who = rights.caller.user

        def change(connection: Connection, at_ms: int) -> None:
            budget = budgets(connection, [account]).get(account)
            if budget is None:
                raise Refused(
                    RefusalCode.NOT_FOUND,
                    f"{account} has no budget",
                    tries=(f"turnstile admin budget set {account} --prepaid",),
                )
            rights.require_budget(account, is_money=budget.kind is BudgetKind.PREPAID)
            top_up(
                connection, budget, _micros(asked.amount, budget.currency, "amount"), at_ms, (who, asked.reason, key)
            )

        done = await door.carry_out(BudgetCommand(account, change))
        return answer(envelope("Budget", door.now_ms, **_shown(done)), 201)

    return router


def _listed(connection: Connection, root: AccountId, now_ms: int) -> list[Json]:
    known = {each.account.id for each in centre.accounts(connection)}
    found = standings(connection, now_ms).items()
    return [
        _item(each, warned_at(connection, each))
        for account, each in found
        if account in known and is_within(account, root)
    ]


def _checked(path: str, rights: Rights) -> AccountId:
    account = AccountId(path)
    if account == ROOT_ACCOUNT or not rights.may_see_account(account):
        raise Refused(RefusalCode.NOT_FOUND, f"no account {path!r} that this token may see")
    rights.require_budget(account, is_money=False)
    return account


def _require_own(connection: Connection, account: AccountId, rights: Rights) -> None:
    """Raises Refused when the budget that is there holds money or an overdraft that the centre gave."""
    there = budgets(connection, [account]).get(account)
    if there is not None:
        rights.require_budget(account, is_money=there.kind is BudgetKind.PREPAID or there.overdraft_micros > 0)


def currency_of(connection: Connection, asked: BudgetBody, now_ms: int) -> str:
    """Returns the currency of a budget: that of its amounts, which is that of the prices."""
    book = current_book(connection, now_ms)
    named = {each.currency for each in (asked.limit, asked.overdraft) if each is not None and each.currency is not None}
    if len(named) > 1:
        raise invalid((Problem("limit and overdraft are in two currencies", "overdraft.currency"),))
    currency = next(iter(named), book.currency if book else None)
    if currency is None:
        raise invalid((Problem("no price book is published yet, so name a currency", "limit.currency"),))
    if book is not None and book.currency != currency:
        raise invalid((Problem(f"prices are in {book.currency}", "limit.currency"),))
    return currency


def terms_of(account: AccountId, asked: BudgetBody, currency: str, zone: ZoneInfo) -> Budget:
    """Returns the budget that is asked for. Raises Refused (invalid) with all that is wrong in it."""
    kind = BudgetKind(asked.period)
    problems = []
    if (asked.limit is None) != (kind is BudgetKind.PREPAID):
        problems.append(Problem("a limit is needed, but for prepaid money, which has none", "limit"))
    is_fixed = kind is BudgetKind.FIXED
    if ((asked.from_at is None) or (asked.to_at is None)) == is_fixed or (
        not is_fixed and (asked.from_at or asked.to_at)
    ):
        problems.append(Problem("a fixed budget, and no other, has from_at and to_at", "from_at"))
    elif asked.from_at and asked.to_at and asked.from_at >= asked.to_at:
        problems.append(Problem("is not before to_at", "from_at"))
    if problems:
        raise invalid(tuple(problems))
    return Budget(
        account,
        kind,
        currency,
        zone.key,
        0 if asked.limit is None else _micros(asked.limit, currency, "limit"),
        0 if asked.overdraft is None else _micros(asked.overdraft, currency, "overdraft"),
        asked.hard,
        None if asked.from_at is None else int(asked.from_at.timestamp()) * 1000,
        None if asked.to_at is None else int(asked.to_at.timestamp()) * 1000,
    )


def _micros(amount: MoneySpec, currency: str, field: str) -> int:
    if amount.currency not in {None, currency}:
        raise invalid((Problem(f"the budget is in {currency}", f"{field}.currency"),))
    return int(Decimal(amount.amount).scaleb(AMOUNT_DECIMALS).to_integral_exact())


def _shown(where: Standing | None) -> Json:
    assert where is not None, "a budget that was just changed is there"
    return _item(where, ())


def _item(where: Standing, warned: tuple[int, ...]) -> Json:
    budget, period = where.budget, where.period

    cent = int(minor_unit(budget.currency).scaleb(AMOUNT_DECIMALS))

    def whole(micros: int, mode: Rounding = Rounding.DOWN) -> int:
        return divide(micros, cent, mode) * cent

    def amount(micros: int) -> Json:
        told = money(micros, budget.currency)
        return {"amount": told.amount, "currency": told.currency}

    # Never told more than is left, nor less than is held; used is the rest, so that what is told adds up.
    held, left = whole(where.held_micros, Rounding.UP), whole(where.left_micros)
    used = whole(where.paid_micros + budget.overdraft_micros) - held - left if period else where.used_micros
    return {
        "account": budget.account,
        "period": budget.kind.value,
        "is_hard": budget.is_hard,
        "paid": amount(where.paid_micros),
        "used": amount(used),
        "held": amount(held),
        "left": amount(left),
        "overdraft": amount(budget.overdraft_micros),
        "used_ratio": where.used_permille / 1000,
        "period_begins_at": None if period is None or not period.from_ms else iso_utc(period.from_ms),
        "period_ends_at": None if period is None or period.to_ms is None else iso_utc(period.to_ms),
        "zone": budget.zone,
        "warned_percents": list(warned),
    }
