"""The account tree: `admin tenant …`, `admin project …` and `admin quota …`, for operators and tenants' admins."""

import re
from dataclasses import dataclass, fields
from typing import Annotated

import typer

from cli import answers, phrases
from cli.answers import Json, counts, text, truth, whole
from cli.client import Client, segment
from cli.errors import CliError, UsageProblem
from cli.layout import Column, View
from cli.phrases import plural
from cli.render import listed
from cli.session import Session
from cli.values import choice, count, gpu_counts
from cli.verbs import Verb, with_flags

NONE = "none"
MOST_ATTEMPTS = 5
"""To change an account that others change at the same time."""
ORDERS = {"shortest": "limit_weight", "least-service": "service_weight", "least-slowdown": "slowdown_weight"}
"""A project's own orders that go by size, and the weight that each of them is."""
USUAL_WEIGHT = 24
"""Of such an order without `--order-weight`: an hour of limit, or a GPU hour, counts as a day of waiting, so that the
longest jobs still have their turn in weeks."""
_STEP = re.compile(r"[^\W_][\w.\-]{0,62}")
"""A step of an account's name, as the server has it."""
"""What is typed in the place of a number to take a limit away."""
Path = Annotated[str, typer.Argument(metavar="NAME", help="A tenant (acme), or an account below one (acme/vision).")]


@dataclass(frozen=True, slots=True)
class TermFlags:
    """What an account may be given."""

    title: Annotated[str | None, typer.Option("--title", metavar="TEXT", help="The name that people read.")] = None
    weight: Annotated[
        str | None, typer.Option("--weight", metavar="N", help="Its share of what is left over; at least 1.")
    ] = None
    guarantee: Annotated[
        list[str] | None, typer.Option("--guarantee", metavar="CLASS=N", help="GPUs that it has bought; repeatable.")
    ] = None
    limit: Annotated[
        list[str] | None, typer.Option("--limit", metavar="CLASS=N", help="The most GPUs that it may hold; repeatable.")
    ] = None
    user_limit: Annotated[
        list[str] | None,
        typer.Option("--user-limit", metavar="CLASS=N", help="The most GPUs that each user may hold; repeatable."),
    ] = None
    running: Annotated[
        str | None, typer.Option("--running", metavar="N", help="The most jobs that may run at once.")
    ] = None
    pending: Annotated[str | None, typer.Option("--pending", metavar="N", help="The most jobs that may wait.")] = None
    high: Annotated[str | None, typer.Option("--high", metavar="N", help="The most jobs of priority high at once.")] = (
        None
    )
    limit_weight: Annotated[
        str | None,
        typer.Option(
            "--limit-weight", metavar="N", help="Its own order: an hour of limit counts as N of waiting; 0: by time."
        ),
    ] = None
    order: Annotated[
        str | None,
        typer.Option(
            "--order",
            metavar="HOW",
            help="Of its own jobs: submit-time, shortest, least-service, least-slowdown or fair-user.",
        ),
    ] = None
    order_weight: Annotated[
        str | None,
        typer.Option("--order-weight", metavar="N", help="How many hours of waiting an hour of size counts as; 24."),
    ] = None
    guaranteed_yields: Annotated[
        bool | None,
        typer.Option(
            "--guaranteed-yields/--guaranteed-stays",
            help="May higher priority take the place of guaranteed jobs of its own project?",
        ),
    ] = None
    force: Annotated[bool, typer.Option("--force", help="Even where more is guaranteed than there is.")] = False

    @property
    def says_nothing(self) -> bool:
        """True when no term was typed."""
        return all(getattr(self, each.name) is None for each in fields(self) if each.name != "force")


class AccountProblem(CliError):
    """An account that has to be there is not, or is there already."""

    def __init__(self, message: str, code: str, exit_code: int, *tries: str) -> None:
        super().__init__(message, code=code, tries=tries)
        self.exit_code = exit_code


@with_flags(TermFlags)
def create(ctx: typer.Context, name: Path) -> None:
    """Make an account.

    Examples:
      turnstile admin tenant create acme --title "Acme Robotics" --weight 2 --guarantee H100=32 --limit H100=128
      turnstile admin project create acme/vision --limit H100=16 --user-limit H100=4 --pending 500
    """
    session: Session = ctx.obj
    _check_kind(ctx, name)
    if _find(session.client, name) is not None:
        raise AccountProblem(f"account {name} is there already", "conflict", 3, _sibling(ctx, "set", name))
    _put(session, name, _changed({"id": name}, _flags(session)), "none")


@with_flags(TermFlags)
def change(ctx: typer.Context, name: Path) -> None:
    """Change an account's terms; what is not named stays. CLASS=0 takes a guarantee away, CLASS=none or none a limit.

    Examples:
      turnstile admin tenant set acme --limit H100=64 --running 200
      turnstile admin tenant set acme --weight 3 --guarantee H100=0 --pending none
      turnstile admin quota set acme/vision --user-limit H100=8 --order least-slowdown
      turnstile admin project set acme/vision --guaranteed-yields
    """
    session: Session = ctx.obj
    if _flags(session).says_nothing:
        raise UsageProblem("there is nothing to change", f"{_sibling(ctx, 'set', name)} --weight 2")
    for left in reversed(range(MOST_ATTEMPTS)):
        found = _found(session, ctx, name)
        try:
            _put(session, name, _changed(found, _flags(session)), text(found, "version"))
        except CliError as error:
            # Somebody else changed it in between: what was typed is said of the account as it is by now.
            if error.code != "conflict" or not left:
                raise
        else:
            return


def suspend(
    ctx: typer.Context,
    name: Path,
    drain: Annotated[
        bool, typer.Option("--drain", help="Stop what runs, too: it waits again, in its old place.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Let it start jobs again.")] = False,
) -> None:
    """Let an account, and all below it, start nothing new; what runs goes on, unless --drain.

    Its people may look, and end or hold jobs, and do nothing else until it is resumed.

    Examples:
      turnstile admin tenant suspend acme
      turnstile admin tenant suspend acme --drain
      turnstile admin tenant suspend acme --resume
    """
    session: Session = ctx.obj
    if drain and resume:
        raise UsageProblem("--drain and --resume contradict each other", _sibling(ctx, "suspend", f"{name} --drain"))
    place = f"/v1/admin/accounts/{segment(name)}"
    if resume:
        answer = session.client.post(f"{place}/resume", {})
    else:
        answer = session.client.post(f"{place}/suspend", {"drain": drain})
    stopped = whole(answer, "jobs_stopped") or 0
    told = [f"{name}: {'suspended' if truth(answer, 'is_suspended') else 'starts jobs again'}"]
    told += [f"  {plural(stopped, 'job')} asked to stop; they wait in their old places"] if stopped else []
    session.screen.document(answer, _VIEW, told)


def remove(ctx: typer.Context, name: Path) -> None:
    """Remove an account that has nothing below it and no job that is not over. Its tokens are revoked.

    Examples:
      turnstile admin project remove acme/old
    """
    session: Session = ctx.obj
    answer = session.client.delete(f"/v1/admin/accounts/{segment(name)}")
    session.screen.document(answer, _VIEW, [f"removed {name}; its past stays in the ledger"])


def listing(ctx: typer.Context) -> None:
    """List accounts with their terms.

    Examples:
      turnstile admin tenant list
      turnstile admin project list
      turnstile admin quota list -o wide
    """
    session: Session = ctx.obj
    answer = session.client.listing("/v1/admin/accounts")
    wanted = [each for each in answers.items(answer) if _is_listed(ctx, text(each, "id") or "")]
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
    Verb("remove", __name__, "remove", "TENANTS", "Remove a tenant without projects and jobs"),
)
PROJECT = (
    Verb("create", __name__, "create", "PROJECTS", "Make a project of a tenant, or one below a project"),
    Verb("list", __name__, "listing", "PROJECTS", "List projects with their terms"),
    Verb("show", __name__, "show", "PROJECTS", "Tell a project's terms"),
    Verb("set", __name__, "change", "PROJECTS", "Change a project's terms"),
    Verb("suspend", __name__, "suspend", "PROJECTS", "Let a project start nothing new"),
    Verb("remove", __name__, "remove", "PROJECTS", "Remove a project without jobs"),
)
QUOTA = (
    Verb("set", __name__, "change", "QUOTAS", "Change guarantees and limits of an account"),
    Verb("list", __name__, "listing", "QUOTAS", "List guarantees and limits of all accounts"),
)


def _flags(session: Session) -> TermFlags:
    flags = session.flags
    assert isinstance(flags, TermFlags)  # the verbs that read them declare them
    return flags


def _is_listed(ctx: typer.Context, name: str) -> bool:
    return _noun(ctx) == "quota" or ("/" in name) == _is_project(ctx)


def _noun(ctx: typer.Context) -> str:
    """Which noun the verb was reached by: the same functions serve all of them."""
    return (ctx.parent.info_name if ctx.parent is not None else None) or "tenant"


def _is_project(ctx: typer.Context) -> bool:
    return _noun(ctx) == "project"


def _sibling(ctx: typer.Context, verb: str, name: str) -> str:
    noun = "project" if "/" in name else "tenant"
    return f"turnstile admin {noun if verb == 'create' else _noun(ctx)} {verb} {name}"


def _check_kind(ctx: typer.Context, name: str) -> None:
    for part in name.split("/"):
        if not _STEP.fullmatch(part):
            said = f": {part!r} is none of its steps" if "/" in name else ""
            raise UsageProblem(
                f"{name!r} cannot be an account's name{said}; a step begins with a letter or digit and goes on with "
                "letters, digits, '-', '.' and '_'",
                _sibling(ctx, "create", "acme/vision" if _is_project(ctx) else "acme"),
            )
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


def _changed(before: Json, flags: TermFlags) -> dict[str, object]:
    """The whole account as it shall be: the server takes terms as a whole."""
    return {
        "display_name": flags.title or text(before, "display_name") or text(before, "id"),
        "weight": count(flags.weight, "--weight") if flags.weight is not None else whole(before, "weight") or 1,
        "guarantee": _by_class(before, "guarantee", flags.guarantee),
        "limit": _by_class(before, "limit", flags.limit),
        "user_limit": _by_class(before, "user_limit", flags.user_limit, "--user-limit"),
        "running_limit": _jobs(before, "running_limit", flags.running, "--running"),
        "pending_limit": _jobs(before, "pending_limit", flags.pending, "--pending"),
        "high_limit": _jobs(before, "high_limit", flags.high, "--high"),
        **_order(before, flags),
        "guaranteed_yields": _yields(before, flags),
        "is_suspended": truth(before, "is_suspended"),
    }


def _by_class(before: Json, key: str, typed: list[str] | None, flag: str | None = None) -> dict[str, int]:
    words = [part for each in typed or () for part in each.split(",")]
    gone = {part.partition("=")[0].strip() for part in words if part.partition("=")[2].strip() == NONE}
    given = gpu_counts([part for part in words if part.partition("=")[2].strip() != NONE], flag or f"--{key}")
    return {name: amount for name, amount in (counts(before, key) | given).items() if name not in gone}


def _jobs(before: Json, key: str, typed: str | None, flag: str) -> int | None:
    if typed is None:
        return whole(before, key)
    return None if typed.strip().lower() == NONE else count(typed, flag, least=0)


def _order(before: Json, flags: TermFlags) -> dict[str, object]:
    """Returns how the account's own jobs follow one another."""
    how = None if flags.order is None else choice(flags.order, "--order", ("submit-time", *ORDERS, "fair-user"))
    weights = {key: whole(before, key) or 0 for key in ORDERS.values()}
    if flags.limit_weight is not None:
        weights["limit_weight"] = _jobs(before, "limit_weight", flags.limit_weight, "--limit-weight") or 0
    if flags.order_weight is not None and how not in ORDERS:
        raise UsageProblem("--order-weight says how much a size counts", "--order least-service --order-weight 24")
    if how == "submit-time":
        weights = dict.fromkeys(weights, 0)
    elif how in ORDERS:
        key = ORDERS[how]
        usual = weights[key] or USUAL_WEIGHT
        chosen = usual if flags.order_weight is None else count(flags.order_weight, "--order-weight", least=1)
        weights = dict.fromkeys(weights, 0) | {key: chosen}
    return {**weights, "takes_turns": truth(before, "takes_turns") if how is None else how == "fair-user"}


def _yields(before: Json, flags: TermFlags) -> bool:
    return truth(before, "guaranteed_yields") if flags.guaranteed_yields is None else flags.guaranteed_yields


def _put(session: Session, name: str, body: dict[str, object], version: str | None) -> None:
    query = {"force": "true"} if _flags(session).force else {}
    query |= {} if version is None else {"version": version}
    answer = session.client.put(f"/v1/admin/accounts/{segment(name)}", body, query)
    told = [f"{name}: {'suspended' if truth(answer, 'is_suspended') else 'as asked'}", *_terms_told(answer)]
    session.screen.document(answer, _VIEW, told)


def _terms_told(account: Json) -> list[str]:
    facts = {
        "weight": text(account, "weight"),
        "guarantee": _terms(account, "guarantee"),
        "limit": _terms(account, "limit"),
        "per user": _terms(account, "user_limit"),
        "jobs": _job_terms(account),
        "order": phrases.project_order(account),
        "priority": "takes guaranteed jobs' place, too" if truth(account, "guaranteed_yields") else None,
    }
    return [f"  {name:<10}{value}" for name, value in facts.items() if value]


def _terms(account: Json, key: str) -> str | None:
    return ", ".join(f"{amount} {name}" for name, amount in counts(account, key).items()) or None


def _job_terms(account: Json) -> str | None:
    limits = {word: whole(account, f"{word}_limit") for word in ("running", "pending", "high")}
    return ", ".join(f"{amount} {word}" for word, amount in limits.items() if amount is not None) or None


_VIEW = View(
    columns=(
        Column("ACCOUNT", lambda each: text(each, "id")),
        Column("NAME", lambda each: text(each, "display_name")),
        Column("WEIGHT", lambda each: text(each, "weight"), is_right=True),
        Column("GUARANTEE", lambda each: _terms(each, "guarantee")),
        Column("LIMIT", lambda each: _terms(each, "limit")),
        Column("PER USER", lambda each: _terms(each, "user_limit"), is_wide=True),
        Column("JOBS", _job_terms, is_wide=True),
        Column("STATE", lambda each: "suspended" if truth(each, "is_suspended") else "active"),
    ),
    name=lambda each: text(each, "id"),
    fields=(
        *("id", "display_name", "weight", "guarantee", "limit", "user_limit", "running_limit", "pending_limit"),
        *("high_limit", "limit_weight", "service_weight", "slowdown_weight", "takes_turns", "guaranteed_yields"),
        "is_suspended",
    ),
    empty="no accounts",
)
