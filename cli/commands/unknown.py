"""What nodes did to jobs, and what became known later: `admin ledger incidents`, `unknown` and `reclassify`."""

from typing import Annotated

import typer

from cli import moments, phrases
from cli.answers import Json, items, text, truth
from cli.errors import UsageProblem
from cli.layout import Column, View
from cli.session import Session
from cli.values import choice

STATES = ("idle", "draining", "unavailable", "foreign")
_EXAMPLES = (
    "reclassify --device GPU-1 --from 2026-11-02T09:00Z --to 2026-11-02T10:00Z --as unavailable -r fan",
    "reclassify --allocation 01J… --ended-at 2026-11-02T09:30Z -r 'the node’s journal'",
)


def unknown(
    ctx: typer.Context,
    start: Annotated[str | None, typer.Option("--from", metavar="TIME", help="2026-11-01, or with a time.")] = None,
    end: Annotated[str | None, typer.Option("--to", metavar="TIME", help="Where it ends, exclusive.")] = None,
    zone: Annotated[str, typer.Option("--zone", metavar="NAME", help="Days are of this zone.")] = "UTC",
) -> None:
    """List the time of GPUs that nobody can account for yet: nodes that went silent. The provider bears it.

    Examples:
      turnstile admin ledger unknown
      turnstile admin ledger unknown --from 2026-11-01 --to 2026-12-01 --zone Asia/Shanghai
    """
    session: Session = ctx.obj
    answer = session.client.get("/v1/admin/ledger/unknown", {"from": start, "to": end, "zone": zone})
    session.screen.listing(answer, _view(answer))


def incidents(
    ctx: typer.Context,
    start: Annotated[str | None, typer.Option("--from", metavar="TIME", help="2026-11-01, or with a time.")] = None,
    end: Annotated[str | None, typer.Option("--to", metavar="TIME", help="Where it ends, exclusive.")] = None,
    zone: Annotated[str, typer.Option("--zone", metavar="NAME", help="Days are of this zone.")] = "UTC",
) -> None:
    """List what the centre was at fault for: lost nodes and GPUs, with all the gangs that each ended.

    Credits name the incident (`incident_id` of a usage line); jobs and allocations are in `-o json`.

    Examples:
      turnstile admin ledger incidents
      turnstile admin ledger incidents --from 2026-11-01 --to 2026-12-01 --zone Asia/Shanghai
    """
    session: Session = ctx.obj
    answer = session.client.get("/v1/admin/ledger/incidents", {"from": start, "to": end, "zone": zone})
    session.screen.listing(answer, _INCIDENTS)


def _tenants(incident: Json) -> str:
    found = incident.get("tenants")
    return ", ".join(str(each) for each in found) if isinstance(found, list) else ""


_INCIDENTS = View(
    columns=(
        Column("INCIDENT", lambda each: text(each, "id")),
        Column("REASON", lambda each: text(each, "reason"), is_wide=True),
        Column("NODE", lambda each: text(each, "node"), is_wide=True),
        Column("BEGAN", lambda each: text(each, "began_at")),
        Column("GANGS", lambda each: str(len(items(each, "allocations"))), is_right=True),
        Column("TENANTS", _tenants),
    ),
    name=lambda each: text(each, "id"),
    fields=("id", "reason", "node", "began_at"),
    empty="no machine failed under a job in this time",
)


def reclassify(
    ctx: typer.Context,
    reason: Annotated[str, typer.Option("-r", "--reason", metavar="TEXT", help="How you know; auditors read it.")],
    device: Annotated[str | None, typer.Option("--device", metavar="UUID", help="What this device was.")] = None,
    start: Annotated[str | None, typer.Option("--from", metavar="TIME", help="Of the unknown stretch.")] = None,
    end: Annotated[str | None, typer.Option("--to", metavar="TIME", help="Exclusive.")] = None,
    state: Annotated[str | None, typer.Option("--as", metavar="STATE", help=f"{', '.join(STATES)}.")] = None,
    cause: Annotated[str | None, typer.Option("--cause", metavar="WORD", help="A short code, as in power_cut.")] = None,
    allocation: Annotated[
        str | None, typer.Option("--allocation", metavar="ID", help="Say when this allocation ended.")
    ] = None,
    ended_at: Annotated[str | None, typer.Option("--ended-at", metavar="TIME", help="With --allocation.")] = None,
    end_reason: Annotated[
        str | None, typer.Option("--end-reason", metavar="WORD", help="completed, node_lost, exit_nonzero…")
    ] = None,
) -> None:
    """Say what an unknown stretch of a device was, or when an allocation of a silent node really ended.

    Nothing is overwritten: the ledger gets a further row that lies over the old one. In a closed period the charges
    stay, and the difference becomes correction lines in the open one.

    Examples:
      turnstile admin ledger reclassify --device GPU-1 --from 2026-11-02T09:00Z --to 2026-11-02T10:00Z \
--as unavailable --cause power_cut -r "PDU 7 log"
      turnstile admin ledger reclassify --allocation 01JD… --ended-at 2026-11-02T09:30:00Z -r "journal of gpu-017"
    """
    session: Session = ctx.obj
    body: dict[str, object] = {"reason": reason}
    if allocation is not None and ended_at is not None and device is None:
        body |= {"allocation": allocation, "ended_at": _moment(ended_at, "--ended-at")}
        body |= {} if end_reason is None else {"end_reason": end_reason}
    elif device is not None and start is not None and end is not None and state is not None and allocation is None:
        body |= {"device": device, "from": _moment(start, "--from"), "to": _moment(end, "--to")}
        body |= {"state": choice(state, "--as", STATES)} | ({} if cause is None else {"cause": cause})
    else:
        raise UsageProblem("say of which device and time, or of which allocation", *_EXAMPLES)
    answer = session.client.post("/v1/admin/ledger/reclassify", body)
    told = "reclassified" if truth(answer, "did_change") else "the ledger says so already"
    session.screen.document(answer, _DONE, [told])


_DONE = View((), lambda each: "changed" if truth(each, "did_change") else "same", ("did_change",))


def _view(answer: Json) -> View:
    now = phrases.answered_at(answer)
    return View(
        columns=(
            Column("DEVICE", lambda each: text(each, "device")),
            Column("LANE", lambda each: text(each, "lane"), is_right=True, is_wide=True),
            Column("MODEL", lambda each: text(each, "gpu_model")),
            Column("FROM", lambda each: phrases.clock(text(each, "from"), now, has_seconds=True)),
            Column("TO", lambda each: phrases.clock(text(each, "to"), now, has_seconds=True)),
            Column("GPU-HOURS", lambda each: text(each, "gpu_hours"), is_right=True),
            Column("CAUSE", lambda each: text(each, "cause")),
        ),
        name=lambda each: text(each, "device"),
        fields=("device", "lane", "gpu_model", "from", "to", "gpu_hours", "cause", "sequence"),
        empty="everything is accounted for",
    )


def _moment(typed: str, flag: str) -> str:
    try:
        return moments.parse(typed).isoformat(timespec="milliseconds")
    except (ValueError, OverflowError):
        raise UsageProblem(f"{flag} {typed!r} is not a time with its offset", f"{flag} 2026-11-02T09:00:00Z") from None
