"""Schemas of what people write: `schema job`."""

import typer

from cli.session import Session
from cli.verbs import Verb


def job(ctx: typer.Context) -> None:
    """Print the JSON Schema (draft 2020-12) of job files, with which editors complete and check them.

    Examples:
      turnstile schema job > ~/.config/turnstile/job.schema.json
      # yaml-language-server: $schema=/home/mei/.config/turnstile/job.schema.json   (first line of train.yaml)
    """
    import json

    from cli.jobkeys import schema

    session: Session = ctx.obj
    session.screen.plain(json.dumps(schema(), ensure_ascii=False, indent=2))


SCHEMA = (Verb("job", "cli.commands.schema", "job", "", "Of job files"),)
