"""Budgets: `budget` for those who spend, `admin budget set|list|topup|end` for those who give."""

import uuid
from datetime import UTC, datetime
from typing import Annotated

import typer

from cli import moments, phrases, values
from cli.answers import Json, sub, text, truth
from cli.client import segment
from cli.errors import UsageProblem
from cli.layout import Column, View
from cli.render import listed
from cli.session import Session
from cli.verbs import Verb

Account = Annotated[str, typer.Argument(metavar="ACCOUNT", help="A tenant (acme), or a project of one (acme/vision).")]
Below = Annotated[str | None, typer.Option("-A", "--account", metavar="PATH", help="This account and those below it.")]


def budget(ctx: typer.Context, account: Below = None) -> None:
    """Tell what is left of your budgets, what was used and what is set aside for running jobs.

    HELD is set aside for jobs that run: an hour of their price, given back when they end. LEFT is what may still be
    spent. A soft budget only warns.

    Examples:
      turnstile budget
      turnstile budget -A acme/vision -o json
    """
    session: Session = ctx.obj
    query = {} if account is None else {"account": account}
    session.screen.listing(session.client.get("/v1/budgets", query), VIEW)


def change(
    ctx: typer.Context,
    account: Account,
    limit: Annotated[
        str | None, typer.Option("--limit", metavar="AMOUNT", help="Of each month: 5000, 5000USD.")
    ] = None,
    start: Annotated[str | None, typer.Option("--from", metavar="TIME", help="For one time instead of months.")] = None,
    end: Annotated[str | None, typer.Option("--to", metavar="TIME", help="Where that time ends, exclusive.")] = None,
    prepaid: Annotated[bool, typer.Option("--prepaid", help="Money paid ahead by `topup`, without a period.")] = False,
    overdraft: Annotated[str | None, typer.Option("--overdraft", metavar="AMOUNT", help="How far below 0.")] = None,
    soft: Annotated[bool, typer.Option("--soft", help="Warn only; refuse and stop nothing.")] = False,
) -> None:
    """Give an account a budget, in place of the one it has.

    Examples:
      turnstile admin budget set acme --limit 50000
      turnstile admin budget set acme/vision --limit 2000 --soft
      turnstile admin budget set acme/paper --limit 3000 --from 2026-11-01 --to 2027-02-01
      turnstile admin budget set globex --prepaid --overdraft 500
    """
    session: Session = ctx.obj
    if (limit is None) != prepaid:
        raise UsageProblem(
            "say a limit, or that the money is paid ahead",
            f"turnstile admin budget set {account} --limit 5000",
            f"turnstile admin budget set {account} --prepaid",
        )
    if (start is None) != (end is None) or (prepaid and start is not None):
        raise UsageProblem("a fixed time has --from and --to, and a limit", "--from 2026-11-01 --to 2027-02-01")
    body: dict[str, object] = {
        "period": "prepaid" if prepaid else "month" if start is None else "fixed",
        "hard": not soft,
    }
    if limit is not None:
        body["limit"] = _amount(limit, "--limit")
    if overdraft is not None:
        body["overdraft"] = _amount(overdraft, "--overdraft")
    if start is not None and end is not None:
        body["from_at"] = moments.write(_moment(start, "--from"))
        body["to_at"] = moments.write(_moment(end, "--to"))
    _tell(session, session.client.put(f"/v1/admin/budgets/{segment(account)}", body))


def listing(ctx: typer.Context, account: Below = None) -> None:
    """List budgets.

    Examples:
      turnstile admin budget list
      turnstile admin budget list -A acme -o csv
    """
    budget(ctx, account)


def topup(
    ctx: typer.Context,
    account: Account,
    amount: Annotated[str, typer.Argument(metavar="AMOUNT", help="500, 500USD.")],
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why: an order's number.")] = "top-up",
) -> None:
    """Add to a budget: money paid ahead, or more for the present period of a limit.

    Examples:
      turnstile admin budget topup globex 10000 --reason "order 4711"
      turnstile admin budget topup acme/vision 500
    """
    session: Session = ctx.obj
    body = {"amount": _amount(amount, "AMOUNT"), "reason": reason}
    # One key for all attempts of this top-up: whichever of them arrives, it is added once.
    path = f"/v1/admin/budgets/{segment(account)}/topup"
    _tell(session, session.client.post(path, body, key=str(uuid.uuid4())))


def end(ctx: typer.Context, account: Account) -> None:
    """End an account's budget: nothing limits what it spends, but for the budgets above it.

    Examples:
      turnstile admin budget end acme/vision
    """
    session: Session = ctx.obj
    answer = session.client.delete(f"/v1/admin/budgets/{segment(account)}")
    session.screen.document(answer, VIEW, [f"{account} has no budget of its own any more"])


BUDGET = (
    Verb("set", __name__, "change", "BUDGETS", "Give an account a budget"),
    Verb("list", __name__, "listing", "BUDGETS", "List budgets"),
    Verb("topup", __name__, "topup", "BUDGETS", "Add to a budget"),
    Verb("end", __name__, "end", "BUDGETS", "End an account's budget"),
)


def _amount(typed: str, flag: str) -> Json:
    amount, currency = values.money(typed, flag)
    return {"amount": f"{amount:f}", "currency": currency}


def _moment(typed: str, flag: str) -> datetime:
    try:
        found = datetime.fromisoformat(typed)
    except ValueError:
        raise UsageProblem(f"{flag} {typed!r} is not a time", f"{flag} 2026-11-01") from None
    return found.astimezone(UTC)


def _tell(session: Session, answer: Json) -> None:
    item = {key: value for key, value in answer.items() if key not in {"apiVersion", "kind", "generated_at"}}
    session.screen.listing(listed("BudgetList", [item]), VIEW)


def _money(item: Json, key: str) -> str | None:
    return phrases.money(sub(item, key))


def _bare(item: Json, key: str) -> str | None:
    amount = sub(item, key)
    return None if amount is None else phrases.money({"amount": text(amount, "amount")})


def _used(item: Json) -> str | None:
    ratio = item.get("used_ratio")
    return f"{round(100 * ratio)} %" if isinstance(ratio, int | float) else None


def _kind(item: Json) -> str | None:
    kind = text(item, "period")
    return f"{kind}, soft" if kind is not None and not truth(item, "is_hard") else kind


def _until(item: Json) -> str | None:
    ends = text(item, "period_ends_at")
    return None if ends is None else phrases.day(ends, text(item, "zone"))


def _near(item: Json) -> str | None:
    ratio = item.get("used_ratio")
    if not isinstance(ratio, int | float) or ratio < 0.8:  # the first warning's share
        return None
    return "(used up)" if ratio >= 1 else "(near)"


VIEW = View(
    columns=(
        Column("ACCOUNT", lambda item: text(item, "account")),
        Column("PERIOD", _kind),
        Column("BUDGET", lambda item: _bare(item, "paid"), is_right=True),
        Column("USED", lambda item: _bare(item, "used"), is_right=True),
        Column("HELD", lambda item: _bare(item, "held"), is_right=True),
        Column("OVERDRAFT", lambda item: _bare(item, "overdraft"), is_right=True, is_wide=True),
        Column("LEFT", lambda item: _money(item, "left"), is_right=True),
        Column("", _used, is_right=True),
        Column("UNTIL", _until),
        Column("", _near),
    ),
    name=lambda item: text(item, "account"),
    fields=(
        *("account", "period", "is_hard", "paid.amount", "used.amount", "held.amount", "left.amount", "left.currency"),
        *("overdraft.amount", "used_ratio", "period_begins_at", "period_ends_at", "zone"),
    ),
    empty="no budgets at or below your account: quota limits what may be used, and so do budgets above it",
)
