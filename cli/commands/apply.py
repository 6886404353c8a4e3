"""`admin apply`: makes the centre what a file declares, after showing what that changes."""

from typing import Annotated

import typer

from cli import answers
from cli.answers import Json, text, truth, whole
from cli.centrefile import CentreFile, CentreFileProblems, by_line, load
from cli.errors import CliError, Problem, UsageProblem
from cli.faults import ApiError
from cli.layout import Column, View
from cli.phrases import plural
from cli.session import Session

_MARKS = {"create": "+", "change": "~", "remove": "-", "keep": "="}


def apply(
    ctx: typer.Context,
    file: Annotated[str, typer.Option("-f", "--file", metavar="FILE.toml", help="What the centre shall be.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the differences and change nothing.")] = False,
    prune: Annotated[
        bool, typer.Option("--prune", help="Remove what the file's sections leave out; never accounts with jobs.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Even where more is guaranteed than there is.")] = False,
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")] = False,
) -> None:
    """Make accounts, users, pools and budgets what a file declares: all or nothing, after the differences were shown.

    What the file leaves out stays as it is. Applied twice, the second time changes nothing.

    Examples:
      turnstile admin apply -f centre.toml --dry-run
      turnstile admin apply -f centre.toml -y
    """
    session: Session = ctx.obj
    declared = load(file)
    if declared.wrong:
        raise _wrong_form(session, declared, is_forced=force)
    body: Json = {"sections": declared.sections, "prune": prune, "force": force}
    shown = _sent(session, declared, body, {"dry_run": "true"})
    declared.require_no_doubts()
    changes = whole(shown, "changes") or 0
    if dry_run or not changes:
        told = f"{plural(changes, 'change')}, none made: this was a dry run" if changes else "no changes"
        _tell(session, shown, told)
        return
    if not yes:
        _ask(session, shown, changes, file)
    done = _sent(session, declared, {**body, "expect": text(shown, "digest")}, {})
    _tell(session, done, f"{plural(changes, 'change')} made", is_shown=not yes)


def _wrong_form(session: Session, declared: CentreFile, *, is_forced: bool) -> CentreFileProblems:
    """Returns all that is wrong with a file whose form is: the server is asked about what of it can be read.

    Nothing is made. Without an answer the form is told alone, and that the rest was not looked at.
    """
    found = [*declared.wrong, *declared.doubtful]
    notes: tuple[str, ...] = ("the rest was not checked: a section cannot be read",)
    if not declared.is_torn:
        notes = ()
        body: Json = {"sections": declared.sections, "prune": False, "force": is_forced}
        try:
            session.client.post("/v1/admin/apply", body, query={"dry_run": "true"})
        except CliError as refused:
            told = {line for line, _ in found}
            located = ((*declared.located(each.field), each) for each in refused.problems)
            found += [
                (line, f"{name}: {each.message}")
                for line, name, each in located
                if line not in told and declared.is_certain(each.field)
            ]
            notes = () if refused.problems else (f"the rest was not checked: {refused.message}",)
    return CentreFileProblems(declared.name, by_line(found), notes=notes)


def _ask(session: Session, shown: Json, changes: int, file: str) -> None:
    if session.screen.style.is_machine or not session.screen.is_terminal_in:
        raise UsageProblem("nobody is here to ask; say -y, or look first", f"turnstile admin apply -f {file} --dry-run")
    for line in _told(shown):
        session.screen.say(line)
    if not session.screen.ask(f"make {plural(changes, 'change')}?"):
        session.screen.say("nothing was changed")
        raise typer.Exit(0)


def _sent(session: Session, declared: CentreFile, body: Json, query: dict[str, str]) -> Json:
    """Returns the server's answer; its problems are told by the lines of the file. Raises ApiError."""
    try:
        return session.client.post("/v1/admin/apply", body, query=dict(query))
    except ApiError as refused:
        if not refused.problems:
            raise
        located = sorted((*declared.located(each.field), each.message) for each in refused.problems)
        problems = tuple(Problem(f"line {line}", f"{name}: {message}") for line, name, message in located)
        raise CentreFileProblems(declared.name, problems, refused.code) from None


def _tell(session: Session, answer: Json, summary: str, *, is_shown: bool = False) -> None:
    lines = [] if is_shown else _told(answer)
    if session.screen.style.format in {"table", "wide"}:
        session.screen.document(answer, _VIEW, [*lines, summary])
    else:
        session.screen.listing(answer, _VIEW)


def _told(answer: Json) -> list[str]:
    lines = []
    for each in answers.items(answer):
        mark = _MARKS.get(text(each, "change") or "", "?")
        note = text(each, "note")
        lines.append(f"{mark} {text(each, 'section')} {text(each, 'id')}" + (f"  kept: {note}" if note else ""))
        lines += [
            f"    {text(field, 'name'):<20}{_value(field, 'before')} → {_value(field, 'after')}"
            for field in answers.items(each, "fields")
        ]
    return lines


def _value(field: Json, key: str) -> str:
    value = field.get(key)
    if value is None:
        return "-"
    return ("yes" if truth(field, key) else "no") if isinstance(value, bool) else str(value)


_VIEW = View(
    columns=(
        Column("CHANGE", lambda each: text(each, "change")),
        Column("SECTION", lambda each: text(each, "section")),
        Column("ID", lambda each: text(each, "id")),
        Column("NOTE", lambda each: text(each, "note")),
    ),
    name=lambda each: text(each, "id"),
    fields=("section", "change", "id", "note"),
    empty="no changes",
)
