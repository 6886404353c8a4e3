"""What admins keep for later or from everybody: pools that pause, nodes put into pools, nodes reserved for a time."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated

import typer

from cli import answers, moments, phrases
from cli.answers import Json, number, text, texts, truth
from cli.client import step
from cli.errors import UsageProblem
from cli.layout import Column, View
from cli.session import Session
from cli.values import count, duration
from cli.verbs import Verb, with_flags

Pools = Annotated[list[str] | None, typer.Argument(metavar="[POOL...]", help="These pools; all when none is named.")]


def pause(
    ctx: typer.Context,
    pool: Pools = None,
    reason: Annotated[
        str | None, typer.Option("-r", "--reason", metavar="TEXT", help="What people will read about it.")
    ] = None,
) -> None:
    """Start no new jobs, in some pools or in the whole centre; what runs goes on.

    Examples:
      turnstile admin pause -r "power works until 14:00"
      turnstile admin pause h100-ib -r "new switch"
    """
    _set_pools(ctx.obj, pool, "pause", {"reason": reason}, "takes no new jobs; what runs there goes on")


def resume(ctx: typer.Context, pool: Pools = None) -> None:
    """Start jobs in paused pools again.

    Examples:
      turnstile admin resume
      turnstile admin resume h100-ib
    """
    _set_pools(ctx.obj, pool, "resume", {}, "takes jobs again")


def pool_list(ctx: typer.Context) -> None:
    """List pools: the nodes and GPUs of each, and which are paused.

    Examples:
      turnstile admin pool list
    """
    session: Session = ctx.obj
    session.screen.listing(session.client.listing("/v1/pools"), _POOLS)


def pool_set(
    ctx: typer.Context,
    pool: Annotated[str | None, typer.Argument(metavar="[POOL]")] = None,
    node: Annotated[
        list[str] | None, typer.Option("--node", metavar="NAME", help="Put this node into it; repeatable.")
    ] = None,
    unassign: Annotated[
        bool, typer.Option("--unassign", help="Let the nodes be in the pool that the executor says.")
    ] = False,
) -> None:
    """Put nodes into a pool, whatever they say themselves. Jobs that run there go on.

    Examples:
      turnstile admin pool set h100-ib --node gpu-001 --node gpu-002
      turnstile admin pool set --unassign --node gpu-001
    """
    session: Session = ctx.obj
    if not node:
        raise UsageProblem("name the nodes", "--node gpu-001")
    if unassign == (pool is not None):
        raise UsageProblem("name a pool, or --unassign, one of them", "turnstile admin pool set h100-ib --node gpu-001")
    if pool is None:
        answer = session.client.post("/v1/admin/pools/unassign", {"nodes": node})
    else:
        answer = session.client.put(f"/v1/admin/pools/{step(pool)}/nodes", {"nodes": node})
    moved = texts(answer, "moved")
    where = "the pool that they say" if pool is None else f"pool {pool}"
    words = f"{phrases.nodes(moved)}: now in {where}" if moved else "no node changed its pool"
    session.screen.document(answer, _MOVED, [words])


@dataclass(frozen=True, slots=True)
class ReserveFlags:
    """What a reservation is made of."""

    length: Annotated[str | None, typer.Option("--for", metavar="DUR", help="How long: 4h, 2d.")] = None
    node: Annotated[list[str] | None, typer.Option("--node", metavar="NAME", help="Keep this node; repeatable.")] = None
    gpus: Annotated[str | None, typer.Option("-g", "--gpus", metavar="CLASS", help="Keep -N nodes of this class.")] = (
        None
    )
    nodes: Annotated[str | None, typer.Option("-N", "--nodes", metavar="N", help="How many nodes to choose.")] = None
    pool: Annotated[str | None, typer.Option("-p", "--pool", help="Choose them from this pool.")] = None
    start: Annotated[str | None, typer.Option("--start", metavar="TIME", help="From then on; now by default.")] = None
    account: Annotated[
        str | None,
        typer.Option("-A", "--account", metavar="PATH", help="Whose jobs may run there; nobody's by default."),
    ] = None
    reason: Annotated[str | None, typer.Option("-r", "--reason", metavar="TEXT", help="What people will read.")] = None


@with_flags(ReserveFlags)
def reserve_create(ctx: typer.Context, name: Annotated[str, typer.Argument(metavar="NAME")]) -> None:
    """Keep nodes free for a time: for maintenance, or for one account's jobs.

    No job is started that would reach into the reservation; what runs already is not stopped for it.

    Examples:
      turnstile admin reserve create switch-works --node gpu-001 --node gpu-002 --start 20:00 --for 4h -r "new switch"
      turnstile admin reserve create acme-demo -g H100 -N 4 --start 2026-12-01T09:00+08:00 --for 8h -A acme
    """
    session: Session = ctx.obj
    flags = session.flags
    assert isinstance(flags, ReserveFlags), "declared for this verb"
    if flags.length is None:
        raise UsageProblem("say how long", "--for 4h")
    if (flags.node is None) == (flags.gpus is None) or (flags.gpus is None) != (flags.nodes is None):
        raise UsageProblem("name the nodes to keep, or a class and how many", "--node gpu-001", "-g H100 -N 4")
    begins = None if flags.start is None else moments.write(moments.ahead(flags.start, "--start", moments.current()))
    body: dict[str, object] = {
        "name": name,
        "start": begins,
        "duration_seconds": duration(flags.length, "--for"),
        "nodes": flags.node,
        "gpu_model": flags.gpus,
        "count": None if flags.nodes is None else count(flags.nodes, "-N"),
        "pool": flags.pool,
        "account": flags.account,
        "reason": flags.reason,
    }
    answer = session.client.post("/v1/admin/reservations", body)
    kept = phrases.nodes(texts(answer, "nodes"))
    lines = [f"reserved {kept} from {_until(answer, 'start')} to {_until(answer, 'end')}"]
    late = answers.at(answer, "overrunning_jobs")
    if isinstance(late, list) and late:
        lines.append(f"these jobs may run into it: {', '.join(str(each) for each in late)}")
    session.screen.document(answer, _RESERVATIONS, lines)


def reserve_list(
    ctx: typer.Context,
    every: Annotated[bool, typer.Option("-a", "--all", help="Those that are over too.")] = False,
) -> None:
    """List reservations, by their start.

    Examples:
      turnstile admin reserve list
      turnstile admin reserve list --all -o json
    """
    session: Session = ctx.obj
    filters = {"ended": "true"} if every else {}
    session.screen.listing(session.client.listing("/v1/reservations", filters), _RESERVATIONS)


def reserve_cancel(ctx: typer.Context, name: Annotated[str, typer.Argument(metavar="NAME")]) -> None:
    """Take a reservation back; its nodes are free for everybody at once.

    Examples:
      turnstile admin reserve cancel switch-works
    """
    session: Session = ctx.obj
    answer = session.client.delete(f"/v1/admin/reservations/{step(name)}")
    kept = phrases.nodes(texts(answer, "nodes"))
    session.screen.document(answer, _RESERVATIONS, [f"reservation {name} is taken back; {kept} are free for all"])


def defrag(ctx: typer.Context) -> None:
    """Tell which running jobs, started again elsewhere, would let blocked jobs start. Proposals: nothing is moved.

    LOST is work that would be done again if a moved job saves no checkpoint; `turnstile requeue` moves a job.

    Examples:
      turnstile admin defrag
      turnstile admin defrag -o json | jq '.items[].moves[].job_id'
    """
    session: Session = ctx.obj
    session.screen.listing(session.client.get("/v1/admin/defrag"), _PROPOSALS)


def _moves(item: Json) -> str:
    return ", ".join(
        f"{number(move, 'job_id')} {text(move, 'from_node')} to {text(move, 'to_node')}"
        for move in answers.items(item, "moves")
    )


def _lost(item: Json) -> str:
    return f"{(answers.whole(item, 'lost_gpu_seconds') or 0) / 3600:.1f} GPU-h"


def _set_pools(session: Session, pools: list[str] | None, verb: str, body: Json, words: str) -> None:
    answer = session.client.post(f"/v1/admin/{verb}", {**body, "pools": pools or None})
    changed = texts(answer, "changed")
    if session.screen.style.is_machine:
        session.screen.listing(answer, _POOLS)
        return
    for name in changed:
        session.screen.say(f"pool {name} {words}")
    if not changed:
        session.screen.say("nothing changed: it was so already")


def _paused(item: Json) -> str:
    return "paused" if truth(item, "is_paused") else "open"


def _until(item: Json, key: str) -> str | None:
    moment = text(item, key)
    return None if moment is None else _local(moments.parse(moment))


def _local(moment: datetime) -> str:
    return moment.astimezone(UTC).astimezone().strftime("%Y-%m-%d %H:%M")


def _state(item: Json) -> str:
    if text(item, "ended_at") is not None:
        return "over"
    return "in force" if truth(item, "is_in_force") else "to come"


POOL = (
    Verb("list", __name__, "pool_list", "POOLS", "List pools with their nodes and GPUs"),
    Verb("set", __name__, "pool_set", "POOLS", "Put nodes into a pool"),
)
RESERVE = (
    Verb("create", __name__, "reserve_create", "RESERVATIONS", "Keep nodes free for a time"),
    Verb("list", __name__, "reserve_list", "RESERVATIONS", "List reservations"),
    Verb("cancel", __name__, "reserve_cancel", "RESERVATIONS", "Take a reservation back"),
)
_POOLS = View(
    columns=(
        Column("POOL", lambda each: text(each, "name")),
        Column("MODEL", lambda each: text(each, "gpu_model")),
        Column("NODES", lambda each: number(each, "nodes"), is_right=True),
        Column("UP", lambda each: number(each, "nodes_up"), is_right=True),
        Column("GPUS", lambda each: number(each, "gpus"), is_right=True),
        Column("FREE", lambda each: number(each, "gpus_free"), is_right=True),
        Column("STATE", _paused),
        Column("REASON", lambda each: text(each, "reason")),
    ),
    name=lambda each: text(each, "name"),
    fields=("name", "gpu_model", "nodes", "nodes_up", "gpus", "gpus_free", "is_paused", "reason"),
    empty="no pools",
)
_MOVED = View(
    columns=(Column("POOL", lambda each: text(each, "name")),),
    name=lambda each: text(each, "name"),
    fields=("name",),
    empty="no pool",
)
_PROPOSALS = View(
    columns=(
        Column("JOB", lambda each: number(each, "job_id"), is_right=True),
        Column("MODEL", lambda each: text(each, "gpu_model")),
        Column("WOULD START ON", lambda each: phrases.nodes(texts(each, "nodes"))),
        Column("IF THESE MOVED", _moves),
        Column("LOST", _lost, is_right=True),
    ),
    name=lambda each: number(each, "job_id"),
    fields=("job_id", "gpu_model", "nodes", "lost_gpu_seconds"),
    empty="no job waits that moving others would let start",
)
_RESERVATIONS = View(
    columns=(
        Column("NAME", lambda each: text(each, "name")),
        Column("STATE", _state),
        Column("START", lambda each: _until(each, "start")),
        Column("END", lambda each: _until(each, "end")),
        Column("FOR", lambda each: text(each, "account") or "nobody"),
        Column("NODES", lambda each: phrases.nodes(texts(each, "nodes"))),
        Column("BY", lambda each: text(each, "created_by"), is_wide=True),
        Column("REASON", lambda each: text(each, "reason")),
    ),
    name=lambda each: text(each, "name"),
    fields=("name", "start", "end", "account", "nodes", "is_in_force", "ended_at", "created_by", "reason"),
    empty="no reservations",
)
