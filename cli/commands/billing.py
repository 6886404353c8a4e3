"""A tenant's own bills: `billing list`, `billing download`."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from cli import phrases
from cli.answers import text, truth
from cli.client import segment
from cli.errors import Refusal
from cli.exports import as_parquet, require_parquet, unpacked
from cli.layout import Column, View
from cli.render import envelope
from cli.session import Session
from cli.verbs import Verb

Tenant = Annotated[
    str | None, typer.Option("--tenant", metavar="NAME", help="Whose; a tenant's people have their own.")
]


def listing(ctx: typer.Context, tenant: Tenant = None) -> None:
    """List months, and whether the bill of each is final. A draft's figures may still change.

    Examples:
      turnstile billing list
      turnstile billing list --tenant acme -o json
    """
    session: Session = ctx.obj
    session.screen.listing(session.client.get("/v1/billing", {"tenant": tenant}), _VIEW)


def download(
    ctx: typer.Context,
    period: Annotated[str, typer.Argument(metavar="MONTH", help="2026-11")],
    out_dir: Annotated[str, typer.Argument(metavar="DIR", help="A directory that is new or empty.")],
    tenant: Tenant = None,
    parquet: Annotated[bool, typer.Option("--parquet", help="Each file as Parquet too (extra `parquet`).")] = False,
) -> None:
    """Fetch a month's statement and files: of a closed month those that were sealed, else a draft of what is known.

    Open statement_….html in a browser; it prints well. The CSV files are the same lines, in full.

    Examples:
      turnstile billing download 2026-11 november/
      turnstile billing download 2026-11 november/ --tenant acme
    """
    session: Session = ctx.obj
    folder = Path(out_dir).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise Refusal(f"{out_dir} is there and not empty", "a directory that is new", code="conflict")
    if parquet:
        require_parquet()
    with tempfile.TemporaryFile() as kept:
        session.client.save(f"/v1/billing/{segment(period)}", {"tenant": tenant}, kept)
        names = unpacked(kept, folder)
    if parquet:
        names = sorted([*names, *as_parquet(folder)])
    answer = envelope("Bill", {"directory": str(folder), "period": period, "files": names})
    session.screen.document(answer, _FILES, phrases.files(folder, names))


BILLING = (
    Verb("list", __name__, "listing", "BILLING", "List months and their bills"),
    Verb("download", __name__, "download", "BILLING", "Fetch a month's statement and files"),
)
_VIEW = View(
    columns=(
        Column("MONTH", lambda each: text(each, "period")),
        Column("STATUS", lambda each: text(each, "status")),
        Column("BILL", lambda each: "draft" if truth(each, "is_draft") else _final(truth(each, "has_charges"))),
        Column("FROM", lambda each: text(each, "from"), is_wide=True),
        Column("TO", lambda each: text(each, "to"), is_wide=True),
        Column("ZONE", lambda each: text(each, "zone"), is_wide=True),
        Column("CLOSED", lambda each: text(each, "closed_at")),
    ),
    name=lambda each: text(each, "period"),
    fields=("period", "status", "is_draft", "has_charges", "from", "to", "zone", "closed_at", "manifest_sha256"),
    empty="no month has begun: the centre knows no GPU yet",
)
_FILES = View((), lambda each: text(each, "directory"), ("directory", "period", "files"))


def _final(has_charges: bool) -> str:
    return "final" if has_charges else "final: no charge"
