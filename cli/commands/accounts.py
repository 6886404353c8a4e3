"""The account tree, as operators keep it: `admin tenant …` and `admin project …`."""

from typing import Annotated

import typer

from cli import answers
from cli.answers import Json, counts, text, truth, whole
from cli.client import Client, segment
from cli.errors import CliError, UsageProblem
from cli.layout import Column, View
from cli.render import listed
from cli.session import Session
from cli.values import count, gpu_counts
from cli.verbs import Verb

Path = Annotated[str, typer.Argument(metavar="NAME", help="A tenant (acme), or a project of one (acme/vision).")]
Title = Annotated[str | None, typer.Option("--title", metavar="TEXT", help="The name that people read.")]
Weight = Annotated[str | None, typer.Option("--weight", metavar="N", help="Its share of what is left over.")]
Guarantee = Annotated[
    list[str] | None, typer.Option("--guarantee", metavar="CLASS=N", help="GPUs that it has bought; repeatable.")
]
Limit = Annotated[
    list[str] | None, typer.Option("--limit", metavar="CLASS=N", help="The most GPUs that it may hold; repeatable.")
]
Force = Annotated[bool, typer.Option("--force", help="Even where more is guaranteed than there is.")]


class AccountProblem(CliError):
    """An account that has to be there is not, or is there already."""

    def __init__(self, message: str, code: str, exit_code: int, *tries: str) -> None:
        super().__init__(message, code=code, tries=tries)
        self.exit_code = exit_code


def create(
    ctx: typer.Context,
    name: Path,
    title: Title = None,
    weight: Weight = None,
    guarantee: Guarantee = None,
    limit: Limit = None,
    force: Force = False,
) -> None:
    """Make an account.

    Examples:
      turnstile admin tenant create acme --title "Acme Robotics" --weight 2 --guarantee H100=32 --limit H100=128
      turnstile admin project create acme/vision --limit H100=16
    """
    session: Session = ctx.obj
    _check_kind(ctx, name)
    if _find(session.client, name) is not None:
        raise AccountProblem(f"account {name} is there already", "conflict", 3, _sibling(ctx, "set", name))
    body = _changed({"id": name}, title, weight, guarantee, limit)
    _put(session, name, body, force=force)


def change(
    ctx: typer.Context,
    name: Path,
    title: Title = None,
    weight: Weight = None,
    guarantee: Guarantee = None,
    limit: Limit = None,
    force: Force = False,
) -> None:
    """Change an account's terms; what is not named stays. CLASS=0 takes a guarantee away.

    Examples:
      turnstile admin tenant set acme --limit H100=64
      turnstile admin tenant set acme --weight 3 --guarantee H100=0
    """
    session: Session = ctx.obj
    if all(each is None for each in (title, weight, guarantee, limit)):
        raise UsageProblem("there is nothing to change", f"{_sibling(ctx, 'set', name)} --weight 2")
    body = _changed(_found(session, ctx, name), title, weight, guarantee, limit)
    _put(session, name, body, force=force)


def suspend(
    ctx: typer.Context,
    name: Path,
    resume: Annotated[bool, typer.Option("--resume", help="Let it start jobs again.")] = False,
) -> None:
    """Let an account start nothing new; what runs goes on.

    Examples:
      turnstile admin tenant suspend acme
      turnstile admin tenant suspend acme --resume
    """
    session: Session = ctx.obj
    body = _changed(_found(session, ctx, name), None, None, None, None) | {"is_suspended": not resume}
    _put(session, name, body, force=True)


def listing(ctx: typer.Context) -> None:
    """List accounts with their terms.

    Examples:
      turnstile admin tenant list
      turnstile admin project list
    """
    session: Session = ctx.obj
    answer = session.client.listing("/v1/admin/accounts")
    wanted = [each for each in answers.items(answer) if ("/" in (text(each, "id") or "")) == _is_project(ctx)]
    session.screen.listing({**answer, "items": wanted}, _VIEW)


def show(ctx: typer.Context, name: Path) -> None:
    """Tell an account's terms.

    Examples:
      turnstile admin tenant show acme
    """
    session: Session = ctx.obj
    found = _found(session, ctx, name)
    session.screen.listing(listed("AccountList", [dict(found)]), _VIEW)


TENANT = (
    Verb("create", __name__, "create", "TENANTS", "Make a tenant"),
    Verb("list", __name__, "listing", "TENANTS", "List tenants with their terms"),
    Verb("show", __name__, "show", "TENANTS", "Tell a tenant's terms"),
    Verb("set", __name__, "change", "TENANTS", "Change a tenant's terms"),
    Verb("suspend", __name__, "suspend", "TENANTS", "Let a tenant start nothing new"),
)
PROJECT = (
    Verb("create", __name__, "create", "PROJECTS", "Make a project of a tenant"),
    Verb("list", __name__, "listing", "PROJECTS", "List projects with their terms"),
    Verb("set", __name__, "change", "PROJECTS", "Change a project's terms"),
)


def _is_project(ctx: typer.Context) -> bool:
    """True when the verb was reached as `admin project …`: the same functions serve both nouns."""
    return ctx.parent is not None and ctx.parent.info_name == "project"


def _sibling(ctx: typer.Context, verb: str, name: str) -> str:
    return f"turnstile admin {'project' if _is_project(ctx) else 'tenant'} {verb} {name}"


def _check_kind(ctx: typer.Context, name: str) -> None:
    if _is_project(ctx) != ("/" in name):
        noun, right = ("project", "acme/vision") if _is_project(ctx) else ("tenant", name.partition("/")[0])
        raise UsageProblem(f"{name!r} is not the name of a {noun}", _sibling(ctx, "create", right))


def _find(client: Client, name: str) -> Json | None:
    found = answers.items(client.listing("/v1/admin/accounts"))
    return next((each for each in found if text(each, "id") == name), None)


def _found(session: Session, ctx: typer.Context, name: str) -> Json:
    found = _find(session.client, name)
    if found is None:
        raise AccountProblem(f"no account {name}", "not_found", 4, _sibling(ctx, "create", name))
    return found


def _changed(
    before: Json, title: str | None, weight: str | None, guarantee: list[str] | None, limit: list[str] | None
) -> dict[str, object]:
    """The whole account as it shall be: the server takes terms as a whole."""
    return {
        "display_name": title or text(before, "display_name") or text(before, "id"),
        "weight": count(weight, "--weight") if weight is not None else whole(before, "weight") or 1,
        "guarantee": counts(before, "guarantee") | gpu_counts(guarantee or (), "--guarantee"),
        "limit": counts(before, "limit") | gpu_counts(limit or (), "--limit"),
        "is_suspended": truth(before, "is_suspended"),
    }


def _put(session: Session, name: str, body: dict[str, object], *, force: bool) -> None:
    query = {"force": "true"} if force else None
    answer = session.client.put(f"/v1/admin/accounts/{segment(name)}", body, query)
    told = [f"{name}: {'suspended' if truth(answer, 'is_suspended') else 'as asked'}", *_terms_told(answer)]
    session.screen.document(answer, _VIEW, told)


def _terms_told(account: Json) -> list[str]:
    facts = {
        "weight": text(account, "weight"),
        "guarantee": _terms(account, "guarantee"),
        "limit": _terms(account, "limit"),
    }
    return [f"  {name:<10}{value}" for name, value in facts.items() if value]


def _terms(account: Json, key: str) -> str | None:
    return ", ".join(f"{amount} {name}" for name, amount in counts(account, key).items()) or None


_VIEW = View(
    columns=(
        Column("ACCOUNT", lambda each: text(each, "id")),
        Column("NAME", lambda each: text(each, "display_name")),
        Column("WEIGHT", lambda each: text(each, "weight"), is_right=True),
        Column("GUARANTEE", lambda each: _terms(each, "guarantee")),
        Column("LIMIT", lambda each: _terms(each, "limit")),
        Column("STATE", lambda each: "suspended" if truth(each, "is_suspended") else "active"),
    ),
    name=lambda each: text(each, "id"),
    fields=("id", "display_name", "weight", "guarantee", "limit", "is_suspended"),
    empty="no accounts",
)
