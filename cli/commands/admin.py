"""`admin`: the table of its nouns, and those that are small: nodes."""

from typing import Annotated

import typer

from cli import phrases
from cli.answers import Json, number, text
from cli.client import step
from cli.commands.cluster import NODES
from cli.errors import UsageProblem
from cli.layout import Column, View
from cli.render import listed
from cli.session import Session
from cli.values import count
from cli.verbs import Verb


def node_list(ctx: typer.Context) -> None:
    """List nodes, and who drained them.

    Examples:
      turnstile admin node list -o wide
    """
    session: Session = ctx.obj
    session.screen.listing(session.client.listing("/v1/nodes"), NODES)


def node_drain(
    ctx: typer.Context,
    node: Annotated[list[str], typer.Argument(metavar="NODE...")],
    reason: Annotated[str, typer.Option("-r", "--reason", metavar="TEXT", help="What people will read about it.")],
) -> None:
    """Let nothing new start on nodes; what runs there goes on.

    Examples:
      turnstile admin node drain gpu-017 -r "fan 3 fails, ticket 4411"
    """
    if not reason.strip():
        raise UsageProblem("a drain has a reason that others can read", '-r "fan 3 fails, ticket 4411"')
    _each_node(ctx.obj, node, "drain", {"reason": reason}, "draining {}: jobs there go on, none is started")


def node_resume(ctx: typer.Context, node: Annotated[list[str], typer.Argument(metavar="NODE...")]) -> None:
    """Let jobs start on drained nodes again.

    Examples:
      turnstile admin node resume gpu-017
    """
    _each_node(ctx.obj, node, "resume", {}, "resumed {}")


def node_history(
    ctx: typer.Context,
    node: Annotated[str, typer.Argument(metavar="NODE")],
    limit: Annotated[str, typer.Option("--limit", help="At most so many intervals.")] = "200",
) -> None:
    """Tell what became of a node and its GPUs, newest first: occupancy, and what its agent reported.

    Examples:
      turnstile admin node history gpu-017
    """
    session: Session = ctx.obj
    answer = session.client.get(f"/v1/admin/nodes/{step(node)}/history", {"limit": count(limit, "--limit")})
    session.screen.listing(answer, _node_history_view(answer))


NODE = (
    Verb("list", __name__, "node_list", "NODES", "List nodes, and who drained them"),
    Verb("drain", __name__, "node_drain", "NODES", "Let nothing new start on nodes"),
    Verb("resume", __name__, "node_resume", "NODES", "Let jobs start on nodes again"),
    Verb("history", __name__, "node_history", "NODES", "Tell what became of a node's GPUs"),
)
JOB = (
    Verb("cancel", "cli.commands.act", "cancel", "JOBS", "Cancel jobs, anybody's"),
    Verb("requeue", "cli.commands.act", "requeue", "JOBS", "Stop running jobs and queue them again"),
    Verb("boost", "cli.commands.act", "boost", "JOBS", "Put waiting jobs before others of their project"),
    Verb("explain", "cli.commands.decisions", "explain", "JOBS", "Tell why a job waits, or waited then"),
)
ADMIN = (
    Verb("tenant", "cli.commands.accounts", "TENANT", "ACCOUNTS", "Tenants: create, list, show, set, suspend"),
    Verb("project", "cli.commands.accounts", "PROJECT", "ACCOUNTS", "Projects, of any depth: create, list, show, set"),
    Verb("user", "cli.commands.users", "USER", "ACCOUNTS", "Users of accounts: create, list, set, remove"),
    Verb("quota", "cli.commands.accounts", "QUOTA", "ACCOUNTS", "Guarantees and limits: set, list"),
    Verb("apply", "cli.commands.apply", "apply", "ACCOUNTS", "Make the centre what a file declares"),
    Verb("token", "cli.commands.tokens", "TOKEN", "ACCOUNTS", "Tokens: create, list, revoke"),
    Verb("node", __name__, "NODE", "CENTRE", "Nodes: list, drain, resume, history"),
    Verb("k8s", "cli.commands.kubernetes", "K8S", "CENTRE", "Kubernetes: check what a cluster lacks"),
    Verb("agent", "cli.commands.agents", "AGENT", "CENTRE", "Agents of GPU nodes: list, forget"),
    Verb("pool", "cli.commands.centre", "POOL", "CENTRE", "Pools: list, set"),
    Verb("pause", "cli.commands.centre", "pause", "CENTRE", "Start no new jobs, in some pools or in all"),
    Verb("resume", "cli.commands.centre", "resume", "CENTRE", "Start jobs in paused pools again"),
    Verb("reserve", "cli.commands.centre", "RESERVE", "CENTRE", "Reservations: create, list, cancel"),
    Verb("budget", "cli.commands.budgets", "BUDGET", "MONEY", "Budgets: set, list, topup, end"),
    Verb("job", __name__, "JOB", "CENTRE", "Anybody's jobs: cancel, requeue, boost, explain"),
    Verb("defrag", "cli.commands.centre", "defrag", "CENTRE", "Tell which jobs to move so that blocked ones start"),
    Verb("price", "cli.commands.prices", "PRICE", "MONEY", "Price books: import, diff, publish, list, show"),
    Verb("package", "cli.commands.prices", "PACKAGE", "MONEY", "Packages of GPU-hours: sell, list"),
    Verb("ledger", "cli.commands.ledger", "LEDGER", "MONEY", "The ledger: verify, export"),
    Verb("dashboards", "cli.commands.dashboards", "DASHBOARDS", "CENTRE", "Grafana boards, alert rules: export"),
    Verb("backup", "cli.commands.backup", "backup", "CENTRE", "Copy the daemon's database and prove the copy"),
    Verb("restore", "cli.commands.backup", "restore", "CENTRE", "Put a copy in the database's place"),
    Verb("state", "cli.commands.state", "STATE", "CENTRE", "The live state in a file: dump, load"),
    Verb("simulate", "cli.commands.simulate", "simulate", "CENTRE", "Run the scheduler on a trace or a state"),
)
"""The verbs of `admin`."""


def _each_node(session: Session, nodes: list[str], verb: str, body: Json, words: str) -> None:
    done: list[dict[str, object]] = []
    for name in nodes:
        done.append(dict(session.client.post(f"/v1/admin/nodes/{step(name)}/{verb}", body)))
        session.screen.say(words.format(name))
    if session.screen.style.is_machine:
        session.screen.listing(listed("NodeList", done), NODES)


def _node_history_view(answer: Json) -> View:
    now = phrases.answered_at(answer)
    return View(
        columns=(
            Column("GPU", lambda each: number(each, "gpu"), is_right=True),
            Column("FROM", lambda each: phrases.clock(text(each, "from"), now, has_seconds=True)),
            Column("TO", lambda each: phrases.clock(text(each, "to"), now, has_seconds=True)),
            Column("STATE", lambda each: text(each, "state")),
            Column("CAUSE", lambda each: text(each, "cause")),
            Column("JOB", lambda each: text(each, "job_id"), is_right=True),
            Column("TENANT", lambda each: text(each, "tenant")),
            Column("EVENT", lambda each: text(each, "event")),
            Column("DETAIL", lambda each: text(each, "detail")),
            Column("DEVICE", lambda each: text(each, "device"), is_wide=True),
        ),
        name=lambda each: text(each, "device"),
        fields=("gpu", "device", "from", "to", "state", "cause", "gpus", "job_id", "tenant", "event", "detail"),
        empty="nothing is recorded yet",
    )
