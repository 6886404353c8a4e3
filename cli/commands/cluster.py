"""Looking at the cluster: `gpus` and `nodes`."""

from typing import Annotated

import typer

from cli import answers, phrases
from cli.answers import Json, number, sub, text, truth, whole
from cli.layout import Column, View
from cli.session import Session


def gpus(ctx: typer.Context) -> None:
    """List what GPUs there are, what is free, and what they cost.

    Examples:
      turnstile gpus
      turnstile gpus -o json | jq '.items[] | {gpu_model, free}'
    """
    session: Session = ctx.obj
    session.screen.listing(session.client.listing("/v1/gpus"), _GPUS)


def nodes(
    ctx: typer.Context,
    pool: Annotated[str | None, typer.Option("-p", "--pool", help="Nodes of this pool.")] = None,
    availability: Annotated[str | None, typer.Option("-s", "--state", help="up, draining or down.")] = None,
) -> None:
    """List nodes, and what is free on each.

    Examples:
      turnstile nodes
      turnstile nodes -s draining
    """
    session: Session = ctx.obj
    answer = session.client.listing("/v1/nodes")
    wanted = [
        each
        for each in answers.items(answer)
        if pool in (None, text(each, "pool")) and availability in (None, text(each, "availability"))
    ]
    session.screen.listing({**answer, "items": wanted}, NODES)


def _memory(item: Json) -> str | None:
    amount = whole(item, "memory_bytes")
    return None if amount is None else phrases.size(amount)


def _gpu_memory(item: Json) -> str | None:
    """As GPUs are sold: an "80 GB" H100 has 81,559 MiB."""
    amount = whole(item, "memory_bytes")
    return None if amount is None else f"{round(amount / 2**30)} GB"


def _whole_nodes(item: Json) -> str | None:
    free, every = number(item, "whole_nodes_free"), number(item, "whole_nodes")
    return None if free is None else f"{free} of {every}" if every is not None else free


def _is_reserved(item: Json) -> bool:
    return "is_reserved" in item and truth(item, "is_reserved")


def _availability_colour(item: Json) -> str | None:
    return {"up": "green", "draining": "yellow", "down": "red"}.get(text(item, "availability") or "")


_GPUS = View(
    columns=(
        Column("MODEL", lambda each: text(each, "gpu_model")),
        Column("MEM", _gpu_memory, is_right=True),
        Column("FREE", lambda each: number(each, "free"), is_right=True),
        Column("TOTAL", lambda each: number(each, "total"), is_right=True),
        Column("PER NODE", lambda each: number(each, "gpus_per_node"), is_right=True),
        Column("WHOLE NODES FREE", _whole_nodes, is_right=True),
        Column("QUEUED", lambda each: number(each, "pending_jobs"), is_right=True),
        Column("PRICE/H", lambda each: phrases.money(sub(each, "price")), is_right=True),
        Column("YOURS", lambda each: number(each, "held_by_tenant"), is_right=True),
    ),
    name=lambda each: text(each, "gpu_model"),
    fields=(
        "gpu_model", "memory_bytes", "free", "total", "gpus_per_node", "whole_nodes_free", "whole_nodes",
        "pending_jobs", "price.amount", "price.currency", "held_by_tenant",
    ),
    empty="no GPU is known yet: no node has reported",
)  # fmt: skip

NODES = View(
    columns=(
        Column("NODE", lambda each: text(each, "name")),
        Column("POOL", lambda each: text(each, "pool")),
        Column("MODEL", lambda each: text(each, "gpu_model")),
        Column("GPUS", lambda each: number(each, "gpus"), is_right=True),
        Column("FREE", lambda each: number(each, "gpus_free"), is_right=True),
        Column("CPUS", lambda each: number(each, "cpus"), is_right=True),
        Column("MEM", _memory, is_right=True),
        Column("STATE", lambda each: text(each, "availability"), paint=_availability_colour),
        Column("DRAINED BY", lambda each: text(each, "drained_by"), is_wide=True),
        Column("REASON", lambda each: text(each, "reason") or ("reserved" if _is_reserved(each) else None)),
    ),
    name=lambda each: text(each, "name"),
    fields=(
        "name", "pool", "gpu_model", "gpus", "gpus_free", "cpus", "memory_bytes", "availability", "reason",
        "drained_by", "is_reserved",
    ),
    empty="no nodes",
)  # fmt: skip
"""How nodes are listed, for tenants and for `admin node list`."""
