"""What a shell offers for the next word: the caller's jobs, by number, and projects, as the server has them now.

A completion is asked for at each Tab: it has a second, and whatever goes wrong offers nothing rather than words.
"""

from typing import TYPE_CHECKING, Any

from cli import answers
from cli.errors import CliError
from cli.session import MOST_LISTED, Session, number_of

if TYPE_CHECKING:
    from typer._click import Context

MOST_OFFERED = 200
"""More are no help to anybody, and bash asks before it shows a hundred."""
_STATES = {
    "exec": ("running",),
    "port-forward": ("running",),
    "checkpoint": ("running",),
    "hold": ("pending",),
    "why": ("pending", "held"),
    "release": ("held",),
    "requeue": ("running",),
    "report": ("all",),
    "show": ("all",),
    "logs": ("all",),
    "history": ("all",),
}
"""The jobs that a verb is about; of the others, those that live."""


def offer_live(param: Any, verb: str) -> None:
    """Gives a parameter the words that the server knows, where it takes any: jobs, projects."""
    metavar = str(param.metavar or "")
    if param.param_type_name == "argument" and metavar.startswith("JOB"):
        param._custom_shell_complete = _jobs_of(verb)  # noqa: SLF001 -- where Typer's copy of click keeps it
    elif {"-A", "--project"} & set(param.opts):
        param._custom_shell_complete = _projects  # noqa: SLF001


def _jobs_of(verb: str) -> Any:
    def offer(ctx: "Context", _param: object, incomplete: str) -> list[Any]:
        query = {"state": _STATES.get(verb, ("live",)), "limit": MOST_LISTED}
        found = _asked(ctx, "/v1/jobs", {"user": "me", **query})
        numbers = [(number_of(each), f"{answers.text(each, 'name')} {answers.text(each, 'state')}") for each in found]
        return _items(numbers, incomplete)

    return offer


def _projects(ctx: "Context", _param: object, incomplete: str) -> list[Any]:
    found = _asked(ctx, "/v1/quota", {})
    names = {answers.text(each, "account") or "" for each in found}
    tenants = {name.partition("/")[0] for name in names}
    words = sorted({name.partition("/")[2] if len(tenants) == 1 else name for name in names} - {""})
    return _items([(word, "") for word in words], incomplete)


def _asked(ctx: "Context", path: str, query: dict[str, Any]) -> list[answers.Json]:
    session = ctx.obj
    if not isinstance(session, Session):
        return []
    try:
        if query.get("user") == "me":
            query = {**query, "user": answers.text(session.me, "user")}
        return list(answers.items(session.client.get(path, query)))
    except CliError:
        return []


def _items(found: list[tuple[str, str]], incomplete: str) -> list[Any]:
    from typer._click.shell_completion import CompletionItem

    fitting = [(word, about) for word, about in found if word.startswith(incomplete)]
    return [CompletionItem(word, help=about or None) for word, about in fitting[-MOST_OFFERED:]]
