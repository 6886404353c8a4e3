"""Billing periods: `admin ledger periods`, `admin ledger close`, `admin ledger correct`."""

from typing import Annotated

import typer

from cli import values
from cli.answers import text, whole
from cli.errors import UsageProblem
from cli.layout import Column, View
from cli.session import Session
from cli.waiting import waiting

PERIOD = "--period 2026-11"


def periods(ctx: typer.Context) -> None:
    """List the billing periods: open, closing (late facts are waited for), or closed for ever.

    Examples:
      turnstile admin ledger periods
    """
    session: Session = ctx.obj
    answer = session.client.get("/v1/admin/ledger/periods")
    session.screen.listing(answer, _VIEW)


def close(
    ctx: typer.Context,
    period: Annotated[str, typer.Option("--period", metavar="YYYY-MM", help="Which month.")],
    is_early: Annotated[
        bool, typer.Option("--early", help="Now, though late facts are waited for; nothing may be unknown.")
    ] = False,
) -> None:
    """Close a billing period: recompute it, prove it, write its files and seal them. It never opens again.

    Refused while it is not over, an earlier one is open, late facts are waited for, or the ledger cannot be proved.
    Time that is unknown still when it closes is the provider's.

    Examples:
      turnstile admin ledger close --period 2026-11
    """
    session: Session = ctx.obj
    asked = {"period": _name(period), "is_early": is_early}
    with waiting(session.screen, f"proving, writing and sealing {asked['period']}"):
        answer = session.client.post("/v1/admin/ledger/close", asked)
    told = [f"{text(answer, 'period')} is closed; manifest {text(answer, 'manifest_sha256')}"]
    session.screen.document(answer, _VIEW, told)


def correct(
    ctx: typer.Context,
    period: Annotated[str, typer.Option("--period", metavar="YYYY-MM", help="A closed month.")],
    line: Annotated[str | None, typer.Option("--line", metavar="ID", help="A line_id of its usage lines.")] = None,
    amount: Annotated[
        str | None, typer.Option("--amount", metavar="AMOUNT", help="What is charged more, or less: -12.30.")
    ] = None,
    reason: Annotated[str | None, typer.Option("-r", "--reason", metavar="TEXT", help="The tenant reads it.")] = None,
) -> None:
    """Correct a closed period in the open one: all that became known of it, or one line by an amount.

    The daemon does the first by itself; this does it now. The line keeps its own charge period and names what it
    corrects. The same line, amount and reason again is no further correction: for one, give another reason.

    Examples:
      turnstile admin ledger correct --period 2026-11
      turnstile admin ledger correct --period 2026-11 --line 01JD…/1/2026-11-02/2026-11 --amount -12.30 -r goodwill
    """
    session: Session = ctx.obj
    body: dict[str, object] = {"period": _name(period)}
    given = {"line_id": line, "amount": amount, "reason": reason}
    if any(each is not None for each in given.values()):
        if None in given.values():
            raise UsageProblem("a correction of a line needs --line, --amount and --reason", PERIOD)
        values.money((amount or "").removeprefix("-"), "--amount")
        body |= given
    answer = session.client.post("/v1/admin/ledger/correct", body)
    count = whole(answer, "corrections") or 0
    told = f"{count} correction{'' if count == 1 else 's'}" if count else "nothing to correct"
    session.screen.document(answer, _DONE, [told])


def _name(typed: str) -> str:
    year, _, month = typed.partition("-")
    is_month = len(typed) == len("2026-11") and (year + month).isdecimal() and typed.isascii()
    if not is_month or not 1 <= int(month) <= 12:
        raise UsageProblem(f"--period {typed!r} is not a month", PERIOD)
    return typed


_VIEW = View(
    columns=(
        Column("PERIOD", lambda each: text(each, "period")),
        Column("STATUS", lambda each: text(each, "status")),
        Column("FROM", lambda each: text(each, "from"), is_wide=True),
        Column("TO", lambda each: text(each, "to"), is_wide=True),
        Column("ZONE", lambda each: text(each, "zone")),
        Column("CLOSES FROM", lambda each: text(each, "closes_from")),
        Column("CLOSED", lambda each: text(each, "closed_at")),
        Column("BY", lambda each: text(each, "closed_by"), is_wide=True),
        Column("MANIFEST", lambda each: text(each, "manifest_sha256"), is_wide=True),
    ),
    name=lambda each: text(each, "period"),
    fields=(
        *("period", "status", "from", "to", "zone", "closes_from", "closed_at", "closed_by", "manifest_sha256"),
        "seal",
    ),
    empty="no period yet: no GPU was ever seen",
)
_DONE = View((), lambda each: text(each, "line_id") or text(each, "corrections"), ("corrections", "line_id"))
