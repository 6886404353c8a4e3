"""`admin state dump|load`: a live state in a file, and what a file holds."""

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from cli import moments
from cli.answers import Json, number, text
from cli.errors import NotFound, Refusal
from cli.layout import Column, View
from cli.render import envelope
from cli.session import Session
from cli.verbs import Verb


def dump(ctx: typer.Context, file: Annotated[str, typer.Argument(metavar="FILE.json")]) -> None:
    """Write what the scheduler decides from at this instant: accounts, nodes, live jobs and what they hold.

    No command, environment, secret or label of a job is in it. `admin simulate --state FILE` goes on from there, under
    any policy.

    Examples:
      turnstile admin state dump now.json
      turnstile admin simulate --state now.json --policy other.toml
    """
    session: Session = ctx.obj
    path = Path(file).expanduser()
    if path.exists() and not path.is_file():
        raise Refusal(f"{file} is there and no plain file", "turnstile admin state dump now.json")
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        # Who waits for what is tenants' business: the file is its writer's alone. An older state of that name stays
        # until the new one is whole.
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as opened:
                session.client.save("/v1/admin/state", None, opened)
            new.replace(path)
        finally:
            new.unlink(missing_ok=True)
    except OSError as problem:
        raise Refusal(f"{file} cannot be written: {problem.strerror}") from None
    _tell(session, path, f"wrote {file}")


def load(ctx: typer.Context, file: Annotated[str, typer.Argument(metavar="FILE.json")]) -> None:
    """Prove a dumped state and tell what is in it. Needs no server.

    Examples:
      turnstile admin state load now.json
    """
    session: Session = ctx.obj
    path = Path(file).expanduser()
    if not path.is_file():
        raise NotFound(f"there is no file {file}")
    _tell(session, path, f"{file} is sound")


def _tell(session: Session, path: Path, words: str) -> None:
    from scheduler.refusal import Refused
    from scheduler.whatif import read_state

    try:
        found = read_state(path)
    except Refused as refused:
        raise Refusal(refused.message, *refused.tries) from None
    parts = found.parts
    document: dict[str, object] = {
        "at": moments.write(datetime.fromtimestamp(found.at_ms / 1000, UTC)),
        "nodes": len(parts.nodes),
        "gpus": sum(len(devices) for _, devices in parts.nodes),
        "accounts": len(parts.accounts),
        "jobs": len(parts.jobs),
        "allocations": len(parts.allocations),
        "reservations": len(parts.reservations),
    }
    lines = [f"{words}: the state of {document['at']}", *_counts(document)]
    session.screen.document(envelope("StateFile", document), _STATE, lines)


def _counts(document: dict[str, object]) -> list[str]:
    return [f"  {value} {name}" for name, value in document.items() if name != "at"]


def _count(name: str) -> Column:
    return Column(name.upper(), lambda each: number(each, name), is_right=True)


def _at(item: Json) -> str | None:
    return text(item, "at")


_STATE = View(
    columns=(Column("AT", _at), *(_count(name) for name in ("nodes", "gpus", "accounts", "jobs", "allocations"))),
    name=_at,
    fields=("at", "nodes", "gpus", "accounts", "jobs", "allocations", "reservations"),
    empty="no state",
)
STATE = (
    Verb("dump", __name__, "dump", "STATE", "Write the live state to a file"),
    Verb("load", __name__, "load", "STATE", "Prove a dumped state and tell what is in it"),
)
"""The verbs of `admin state`."""
