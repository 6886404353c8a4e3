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

    With -o wide: GPUs as they are booked (guaranteed+burst), the most that each user may hold, the weight and what debt
    leaves of it, jobs that run and wait beside their limits.

    Examples:
      turnstile quota
      turnstile quota -A acme/vision -o json
    """
    session: Session = ctx.obj
    filters = {} if account is None else {"account": account}
    session.screen.listing(session.client.listing("/v1/quota", filters), _QUOTA)


def _over(item: Json) -> str | None:
    return "over" if truth(item, "is_over_target") else None


def _booked(item: Json) -> str | None:
    """Held within the guarantee and beyond it."""
    inside, beyond = number(item, "held_guaranteed"), number(item, "held_burst")
    return None if inside is None else f"{inside}+{beyond}"


def _weight(item: Json) -> str | None:
    """The weight as it was set, and what debt leaves of it."""
    effective = text(item, "effective_weight")
    return (
        text(item, "weight") if effective is None else f"{text(item, 'weight')} ({effective.rstrip('0').rstrip('.')})"
    )


def _of(item: Json, count: str, limit: str) -> str | None:
    most = text(item, limit)
    return text(item, count) if most is None else f"{text(item, count)}/{most}"


_QUOTA = View(
    (
        Column("ACCOUNT", lambda item: text(item, "account")),
        Column("MODEL", lambda item: text(item, "gpu_model")),
        Column("GUARANTEE", lambda item: number(item, "guarantee"), is_right=True),
        Column("LIMIT", lambda item: number(item, "limit"), is_right=True),
        Column("HELD", lambda item: number(item, "held"), is_right=True),
        Column("SPOT", lambda item: number(item, "held_spot"), is_right=True, is_wide=True),
        Column("BOOKED", _booked, is_right=True, is_wide=True),
        Column("PER USER", lambda item: number(item, "user_limit"), is_right=True, is_wide=True),
        Column("WANTED", lambda item: number(item, "demand"), is_right=True),
        Column("TARGET", lambda item: number(item, "target"), is_right=True),
        Column("", _over),
        Column("DEBT", lambda item: text(item, "debt_credits"), is_right=True),
        Column("WEIGHT", _weight, is_right=True, is_wide=True),
        Column("RUN", lambda item: _of(item, "running_jobs", "running_limit"), is_right=True, is_wide=True),
        Column("WAIT", lambda item: _of(item, "waiting_jobs", "pending_limit"), is_right=True, is_wide=True),
    ),
    name=lambda item: text(item, "account"),
    fields=(
        *("account", "gpu_model", "guarantee", "limit", "held", "held_spot", "demand", "target"),
        *("is_over_target", "debt_credits", "guarantee_bought", "held_guaranteed", "held_burst", "weight"),
        *("effective_weight", "user_limit", "running_jobs", "running_limit", "waiting_jobs", "pending_limit"),
        "guaranteed_yields",
    ),
    empty="no account with terms, use or demand",
)
