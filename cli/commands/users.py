"""Who belongs to an account: `admin user …`, for operators and, within their own account, tenants' admins."""

from typing import Annotated

import typer

from cli import answers
from cli.answers import Json, text, truth, whole
from cli.commands.accounts import AccountProblem
from cli.commands.tokens import issue
from cli.errors import UsageProblem
from cli.layout import Column, View
from cli.phrases import plural
from cli.session import Session
from cli.values import choice, duration
from cli.verbs import Verb

ROLES = ("user", "tenant_admin", "billing")
Name = Annotated[str, typer.Argument(metavar="USER", help="The user's name.")]
Account = Annotated[str, typer.Option("-A", "--account", metavar="PATH", help="The tenant or project.")]
Role = Annotated[str | None, typer.Option("--role", help=f"One of {', '.join(ROLES)}.")]
High = Annotated[
    bool | None, typer.Option("--high/--no-high", help="May ask for priority high, whatever the account's limit on it.")
]


def create(
    ctx: typer.Context,
    user: Name,
    account: Account,
    role: Role = None,
    high: High = None,
    expires: Annotated[
        str | None, typer.Option("--expires", metavar="DUR", help="How long its token is valid: 90d.")
    ] = None,
    out: Annotated[
        str | None, typer.Option("--out", metavar="FILE", help="Write the token here (mode 0600), print nothing.")
    ] = None,
) -> None:
    """Make a user of an account, with a token that is told this once.

    Examples:
      turnstile admin user create mei -A acme --role tenant_admin --out mei.token
      turnstile admin user create jon -A acme/vision --expires 90d
    """
    session: Session = ctx.obj
    if _find(session, user, account) is not None:
        raise AccountProblem(
            f"{user} belongs to {account} already", "conflict", 3, f"turnstile admin user set {user} -A {account}"
        )
    wanted = choice(role or "user", "--role", ROLES)
    lifetime = None if expires is None else duration(expires, "--expires")
    session.client.put("/v1/admin/users", _body(user, account, wanted, may_use_high=bool(high)))
    issue(session, {"role": wanted, "account": account, "user": user, "expires_in_seconds": lifetime}, out)


def change(ctx: typer.Context, user: Name, account: Account, role: Role = None, high: High = None) -> None:
    """Change what a user of an account may; its tokens there change with it.

    Examples:
      turnstile admin user set jon -A acme/vision --high
      turnstile admin user set mei -A acme --role user
    """
    session: Session = ctx.obj
    if role is None and high is None:
        raise UsageProblem("there is nothing to change", f"turnstile admin user set {user} -A {account} --high")
    before = _find(session, user, account)
    if before is None:
        tries = f"turnstile admin user create {user} -A {account}"
        raise AccountProblem(f"no user {user} in {account}", "not_found", 4, tries)
    wanted = choice(role, "--role", ROLES) if role is not None else text(before, "role") or "user"
    may_use_high = truth(before, "may_use_high") if high is None else high
    answer = session.client.put("/v1/admin/users", _body(user, account, wanted, may_use_high=may_use_high))
    may = ", may use priority high" if may_use_high else ""
    session.screen.document(answer, _VIEW, [f"{user} is {wanted} of {account}{may}"])


def listing(
    ctx: typer.Context,
    account: Annotated[
        str | None, typer.Option("-A", "--account", metavar="PATH", help="This account and those below it.")
    ] = None,
) -> None:
    """List who belongs to which account, and as what.

    Examples:
      turnstile admin user list -A acme
    """
    session: Session = ctx.obj
    session.screen.listing(session.client.listing("/v1/admin/users", {"account": account}), _VIEW)


def remove(ctx: typer.Context, user: Name, account: Account) -> None:
    """Remove a user from an account and revoke its tokens there. Its jobs stay.

    Examples:
      turnstile admin user remove jon -A acme/vision
    """
    session: Session = ctx.obj
    answer = session.client.delete("/v1/admin/users", {"account": account, "user": user})
    revoked = plural(whole(answer, "tokens_revoked") or 0, "token")
    session.screen.document(answer, _VIEW, [f"removed {user} from {account}; {revoked} revoked"])


USER = (
    Verb("create", __name__, "create", "USERS", "Make a user of an account, with a token"),
    Verb("list", __name__, "listing", "USERS", "List who belongs to which account"),
    Verb("set", __name__, "change", "USERS", "Change what a user may"),
    Verb("remove", __name__, "remove", "USERS", "Remove a user, and revoke its tokens"),
)


def _find(session: Session, user: str, account: str) -> Json | None:
    found = answers.items(session.client.listing("/v1/admin/users", {"account": account}))
    return next((each for each in found if (text(each, "user"), text(each, "account")) == (user, account)), None)


def _body(user: str, account: str, role: str, *, may_use_high: bool) -> dict[str, object]:
    return {"account": account, "user": user, "role": role, "may_use_high": may_use_high}


_VIEW = View(
    columns=(
        Column("USER", lambda each: text(each, "user")),
        Column("ACCOUNT", lambda each: text(each, "account")),
        Column("ROLE", lambda each: text(each, "role")),
        Column("HIGH", lambda each: "yes" if truth(each, "may_use_high") else None),
    ),
    name=lambda each: text(each, "user"),
    fields=("user", "account", "role", "may_use_high"),
    empty="no users",
)
