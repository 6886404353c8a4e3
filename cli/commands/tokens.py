"""Tokens: those of others, as operators keep them (`admin token …`), and one's own (`token …`)."""

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from cli import contextfile, contexts, moments, phrases
from cli.answers import BrokenAnswer, Json, text
from cli.client import step
from cli.layout import Column, View
from cli.render import listed
from cli.session import Session
from cli.values import choice, duration
from cli.verbs import Verb

ROLES = ("user", "tenant_admin", "billing", "operator", "agent")


def create(
    ctx: typer.Context,
    user: Annotated[str, typer.Option("-u", "--user", metavar="NAME", help="Who it is for.")],
    account: Annotated[
        str, typer.Option("-A", "--account", metavar="PATH", help="Tenant or project; the centre if left out.")
    ] = "",
    role: Annotated[str, typer.Option("--role", help=f"One of {', '.join(ROLES)}.")] = "user",
    expires: Annotated[str | None, typer.Option("--expires", metavar="DUR", help="How long it is valid: 90d.")] = None,
    out: Annotated[
        str | None, typer.Option("--out", metavar="FILE", help="Write it here (mode 0600), print nothing.")
    ] = None,
) -> None:
    """Make a token. It is told this once and never again; whoever has it may do what its role may.

    Examples:
      turnstile admin token create -u mei -A acme --role tenant_admin --expires 90d --out mei.token
      turnstile admin token create -u node-17 --role agent | ssh gpu-017 'umask 077; cat > /etc/turnstile/token'
    """
    body = {
        "role": choice(role, "--role", ROLES),
        "account": account,
        "user": user,
        "expires_in_seconds": None if expires is None else duration(expires, "--expires"),
    }
    issue(ctx.obj, body, out)


def issue(session: Session, body: Json, out: str | None, path: str = "/v1/admin/tokens") -> None:
    """Has a token made and tells it, or writes it to a file."""
    answer = session.client.post(path, body)
    user, account, role = (text(body, key) or text(answer, key) for key in ("user", "account", "role"))
    secret = text(answer, "secret")
    if secret is None:
        raise BrokenAnswer("it holds no token")
    now = phrases.answered_at(answer)
    until = phrases.clock(text(answer, "expires_at"), now)
    told = f"token {text(answer, 'id')} for {user}, {role} of {account or 'the centre'}"
    session.screen.say(f"{told}, {f'valid until {until}' if until else 'valid until it is revoked'}")
    if out is not None:
        file = contextfile.write_private(Path(out).expanduser().absolute(), secret + "\n")
        session.screen.say(f"  written to {contexts.short(file)}")
        kept = {key: value for key, value in answer.items() if key != "secret"}
        session.screen.document({**kept, "token_file": str(file)}, _view(answer), [])
        return
    session.screen.document(answer, _view(answer), [secret])


def listing(ctx: typer.Context) -> None:
    """List tokens: whose, for what, until when. Not the tokens themselves, which nobody keeps.

    Examples:
      turnstile admin token list
    """
    session: Session = ctx.obj
    answer = session.client.listing("/v1/admin/tokens")
    session.screen.listing(answer, _view(answer))


def revoke(
    ctx: typer.Context, token: Annotated[list[str], typer.Argument(metavar="ID...", help="As in token list.")]
) -> None:
    """Make tokens invalid at once.

    Examples:
      turnstile admin token revoke 01JD8W3Z6Q5K9XN0V4T2R7M1AB
    """
    _revoke(ctx.obj, "/v1/admin/tokens", token)


def create_own(
    ctx: typer.Context,
    expires: Annotated[str | None, typer.Option("--expires", metavar="DUR", help="How long it is valid: 90d.")] = None,
    out: Annotated[
        str | None, typer.Option("--out", metavar="FILE", help="Write it here (mode 0600), print nothing.")
    ] = None,
) -> None:
    """Make a token for yourself: for another machine, or for a script. It can do what the one in use can, and lives no
    longer.

    Examples:
      turnstile token create --expires 30d --out ci.token
    """
    body = {} if expires is None else {"expires_in_seconds": duration(expires, "--expires")}
    issue(ctx.obj, body, out, "/v1/tokens")


def listing_own(ctx: typer.Context) -> None:
    """List your tokens: for what, until when. Not the tokens themselves, which nobody keeps.

    Examples:
      turnstile token list
    """
    session: Session = ctx.obj
    answer = session.client.listing("/v1/tokens")
    session.screen.listing(answer, _view(answer))


def revoke_own(
    ctx: typer.Context, token: Annotated[list[str], typer.Argument(metavar="ID...", help="As in token list.")]
) -> None:
    """Make tokens of yours invalid at once.

    Examples:
      turnstile token revoke 01JD8W3Z6Q5K9XN0V4T2R7M1AB
    """
    _revoke(ctx.obj, "/v1/tokens", token)


def _revoke(session: Session, path: str, tokens: list[str]) -> None:
    done: list[dict[str, object]] = []
    for each in tokens:
        answer = session.client.delete(f"{path}/{step(each)}")
        done.append(dict(answer))
        session.screen.say(f"revoked {each}")
    if session.screen.style.is_machine:
        told = listed("TokenList", done)
        session.screen.listing(told, _view(told))


TOKEN = (
    Verb("create", __name__, "create", "TOKENS", "Make a token, told once"),
    Verb("list", __name__, "listing", "TOKENS", "List tokens: whose, for what, until when"),
    Verb("revoke", __name__, "revoke", "TOKENS", "Make tokens invalid at once"),
)
OWN = (
    Verb("create", __name__, "create_own", "TOKENS", "Make a token for yourself, told once"),
    Verb("list", __name__, "listing_own", "TOKENS", "List your tokens: for what, until when"),
    Verb("revoke", __name__, "revoke_own", "TOKENS", "Make tokens of yours invalid at once"),
)


def _state(token: Json, now: datetime) -> str:
    if text(token, "revoked_at") is not None:
        return "revoked"
    expires = text(token, "expires_at")
    return "expired" if expires is not None and moments.parse(expires) <= now else "valid"


def _view(answer: Json) -> View:
    now = phrases.answered_at(answer)
    return View(
        columns=(
            Column("ID", lambda each: text(each, "id")),
            Column("USER", lambda each: text(each, "user")),
            Column("ROLE", lambda each: text(each, "role")),
            Column("ACCOUNT", lambda each: text(each, "account") or "(centre)"),
            Column("CREATED", lambda each: text(each, "created_at")),
            Column("EXPIRES", lambda each: text(each, "expires_at")),
            Column("STATE", lambda each: _state(each, now)),
        ),
        name=lambda each: text(each, "id"),
        fields=("id", "user", "role", "account", "created_at", "expires_at", "revoked_at"),
        empty="no tokens",
    )
