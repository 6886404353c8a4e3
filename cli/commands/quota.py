"""`quota`: what accounts may hold, hold and should hold."""

from typing import Annotated

import typer

from cli.answers import Json, number, text, truth
from cli.layout import Column, View
from cli.session import Session


def quota(
    ctx: typer.Context,
    account: Annotated[
        str | None, typer.Option("-A", "--account", metavar="PATH", help="This account and those below it.")
    ] = None,
) -> None:
    """Tell guarantee, limit, use, target and debt of your accounts, by GPU class.

    TARGET is the fair share at this moment: what is over it is asked to give way first. DEBT is decayed use beyond the
    guarantee, in credits; who owes less goes first.

    Examples:
      turnstile quota
      turnstile quota -A acme/vision -o json
    """
    session: Session = ctx.obj
    filters = {} if account is None else {"account": account}
    session.screen.listing(session.client.listing("/v1/quota", filters), _QUOTA)


def _over(item: Json) -> str | None:
    return "over" if truth(item, "is_over_target") else None


_QUOTA = View(
    (
        Column("ACCOUNT", lambda item: text(item, "account")),
        Column("MODEL", lambda item: text(item, "gpu_model")),
        Column("GUARANTEE", lambda item: number(item, "guarantee"), is_right=True),
        Column("LIMIT", lambda item: number(item, "limit"), is_right=True),
        Column("HELD", lambda item: number(item, "held"), is_right=True),
        Column("SPOT", lambda item: number(item, "held_spot"), is_right=True, is_wide=True),
        Column("WANTED", lambda item: number(item, "demand"), is_right=True),
        Column("TARGET", lambda item: number(item, "target"), is_right=True),
        Column("", _over),
        Column("DEBT", lambda item: text(item, "debt_credits"), is_right=True),
    ),
    name=lambda item: text(item, "account"),
    fields=(
        *("account", "gpu_model", "guarantee", "limit", "held", "held_spot", "demand", "target"),
        *("is_over_target", "debt_credits"),
    ),
    empty="no account with terms, use or demand",
)
