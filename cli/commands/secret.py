"""`secret set|list|rm`: values that jobs get by name."""

import getpass
import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from cli import phrases
from cli.answers import text
from cli.client import step
from cli.errors import UsageProblem, unreadable
from cli.layout import Column, View
from cli.session import Session
from cli.verbs import Verb

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", re.ASCII)
Name = Annotated[str, typer.Argument(metavar="NAME", help="The variable that a job finds it in: HF_TOKEN.")]
Project = Annotated[str | None, typer.Option("-A", "--project", help="Of this project; by default the token's.")]


def change(
    ctx: typer.Context,
    name: Name,
    from_file: Annotated[
        str | None, typer.Option("--from-file", metavar="FILE", help="Read the value here, a last line break aside.")
    ] = None,
    project: Project = None,
) -> None:
    """Keep a secret. Its value is read from standard input or a file: others can see a command line.

    A job that is submitted with --secret NAME finds it in a variable of that name. Nobody can read it back.

    Examples:
      turnstile secret set HF_TOKEN < token.txt
      turnstile secret set HF_TOKEN --from-file token.txt
      turnstile submit -g 1 -t 1h --secret HF_TOKEN -- python train.py
    """
    session: Session = ctx.obj
    bare, equals, _ = name.partition("=")
    if equals:
        # The value was typed where others can see it, and is not repeated here.
        raise UsageProblem(
            "a secret's value is not typed on the command line, where others can see it",
            f"turnstile secret set {bare or 'NAME'} < FILE",
            f'printf %s "$VALUE" | turnstile secret set {bare or "NAME"}',
        )
    if not _NAME.fullmatch(name):
        raise UsageProblem(
            f"a secret's name has letters, digits, '_', '-' and '.', and {name!r} has others",
            "turnstile secret set HF_TOKEN < FILE",
        )
    value = _value(name, from_file)
    session.screen.conceal(value)
    answer = session.client.put(f"/v1/secrets/{step(name)}", {"value": value}, _query(project))
    verb = "kept" if answer.get("is_new") is True else "changed"
    session.screen.document(answer, _SECRETS, [f"{verb} {name} for {text(answer, 'account')}"])


def listing(ctx: typer.Context, project: Project = None) -> None:
    """List the secrets that your jobs may use, by name.

    Examples:
      turnstile secret list
    """
    session: Session = ctx.obj
    answer = session.client.listing("/v1/secrets", _query(project))
    now = phrases.answered_at(answer)
    view = View(
        columns=(
            Column("NAME", lambda each: text(each, "name")),
            Column("OF", lambda each: text(each, "account")),
            Column("SET", lambda each: phrases.clock(text(each, "updated_at"), now)),
            Column("BY", lambda each: text(each, "updated_by")),
        ),
        name=lambda each: text(each, "name"),
        fields=("name", "account", "updated_at", "updated_by"),
        empty="no secrets",
    )
    session.screen.listing(answer, view)


def remove(ctx: typer.Context, name: Name, project: Project = None) -> None:
    """Forget a secret. Jobs that run keep what they were given.

    Examples:
      turnstile secret rm HF_TOKEN
    """
    session: Session = ctx.obj
    answer = session.client.delete(f"/v1/secrets/{step(name)}", _query(project))
    session.screen.document(answer, _SECRETS, [f"forgot {name} of {text(answer, 'account')}"])


def _query(project: str | None) -> dict[str, str]:
    return {} if project is None else {"project": project}


def _value(name: str, from_file: str | None) -> str:
    if from_file is not None:
        try:
            value = Path(from_file).expanduser().read_text(encoding="utf-8")
        except OSError as problem:
            raise unreadable(from_file, problem) from None
        except UnicodeDecodeError:
            raise UsageProblem(f"--from-file {from_file} is not text in UTF-8") from None
    elif sys.stdin.isatty():
        value = getpass.getpass(f"{name}: ")
    else:
        value = sys.stdin.read()
    value = value.removesuffix("\n").removesuffix("\r")
    if not value:
        raise UsageProblem("the secret is empty", f"turnstile secret set {name} < FILE")
    return value


_SECRETS = View(
    columns=(Column("NAME", lambda each: text(each, "name")),),
    name=lambda each: text(each, "name"),
    fields=("name", "account"),
    empty="no secrets",
)
SECRET = (
    Verb("set", __name__, "change", "SECRETS", "Keep a secret"),
    Verb("list", __name__, "listing", "SECRETS", "List secrets by name"),
    Verb("rm", __name__, "remove", "SECRETS", "Forget a secret"),
)
"""The verbs of `secret`."""
