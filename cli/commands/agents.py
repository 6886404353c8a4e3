"""Agents of GPU nodes, as operators see them: `admin agent …`."""

from typing import Annotated

import typer

from cli import phrases
from cli.answers import Json, number, text
from cli.client import step
from cli.layout import Column, View
from cli.render import listed
from cli.session import Session
from cli.verbs import Verb


def listing(ctx: typer.Context) -> None:
    """List the agents of nodes: when each was heard, what it reads, what is wrong.

    Examples:
      turnstile admin agent list
      turnstile admin agent list -o json | jq '.items[] | select(.is_silent)'
    """
    session: Session = ctx.obj
    answer = session.client.listing("/v1/admin/agents")
    session.screen.listing(answer, _view(answer))


def forget(ctx: typer.Context, node: Annotated[list[str], typer.Argument(metavar="NODE...")]) -> None:
    """Expect no agent on nodes any more, so that its silence drains them no longer. One that speaks again is heard.

    Examples:
      turnstile admin agent forget gpu-017
    """
    session: Session = ctx.obj
    done: list[dict[str, object]] = []
    for each in node:
        done.append(dict(session.client.delete(f"/v1/admin/agents/{step(each)}")))
        session.screen.say(f"no agent is expected on {each}")
    if session.screen.style.is_machine:
        answer = listed("AgentList", done)
        session.screen.listing(answer, _view(answer))


AGENT = (
    Verb("list", __name__, "listing", "AGENTS", "List the agents of nodes, and what is wrong"),
    Verb("forget", __name__, "forget", "AGENTS", "Expect no agent on nodes any more"),
)


def _state(agent: Json) -> str:
    return "silent" if agent.get("is_silent") else "heard"


def _problems(agent: Json) -> str | None:
    problems = agent.get("problems")
    return "; ".join(str(each) for each in problems) if isinstance(problems, list) and problems else None


def _view(answer: Json) -> View:
    now = phrases.answered_at(answer)
    return View(
        columns=(
            Column("NODE", lambda each: text(each, "node")),
            Column("STATE", _state, paint=lambda each: "red" if each.get("is_silent") else "green"),
            Column("HEARD", lambda each: phrases.clock(text(each, "last_heard_at"), now, has_seconds=True)),
            Column("GPUS", lambda each: number(each, "gpus"), is_right=True),
            Column("ILL", lambda each: number(each, "gpus_ill"), is_right=True),
            Column("SKEW S", lambda each: number(each, "clock_skew_seconds"), is_right=True),
            Column("DRIVER", lambda each: text(each, "driver_version"), is_wide=True),
            Column("VERSION", lambda each: text(each, "version"), is_wide=True),
            Column("PROBLEMS", _problems),
        ),
        name=lambda each: text(each, "node"),
        fields=(
            "node", "is_silent", "last_heard_at", "first_heard_at", "gpus", "gpus_ill", "clock_skew_seconds",
            "collector", "driver_version", "version",
        ),
        empty="no agent was ever heard",
    )  # fmt: skip
