"""`admin backup FILE` and `admin restore FILE`: the daemon's database on this machine, without the server."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli import answers, moments, values
from cli.answers import text
from cli.errors import ExitCode, NotFound, Problem, Refusal
from cli.layout import View
from cli.render import envelope
from cli.session import Session

if TYPE_CHECKING:
    from cli.daemon.backups import Copied

File = Annotated[str, typer.Argument(metavar="FILE")]
Config = Annotated[str | None, typer.Option("--config", metavar="FILE", help="The daemon's settings.")]
DataDir = Annotated[str | None, typer.Option("--data-dir", metavar="DIR", help="The daemon's data directory.")]
DatabaseUrl = Annotated[str | None, typer.Option("--database", metavar="URL", help="Instead of the one in DIR.")]


def backup(
    ctx: typer.Context, file: File, config: Config = None, data_dir: DataDir = None, database: DatabaseUrl = None
) -> int:
    """Copy the daemon's database, while it runs, and prove the copy's ledger. Exit 1 if that does not hold.

    The file is new, one, and its writer's alone: it holds secrets of jobs. Logs of jobs are not in it. Takes the flags
    that `serve` was started with. A PostgreSQL database is copied with pg_dump.

    Examples:
      turnstile admin backup /backup/turnstile-2026-11-23.db --config /etc/turnstile/turnstile.toml
      turnstile admin backup copy.db --data-dir ~/.local/share/turnstile/dev
    """
    from cli.daemon import backups

    session: Session = ctx.obj
    _, url = _place(session, config, data_dir, database)
    target = Path(file).expanduser().absolute()
    source = _sqlite(url, f"pg_dump --format=custom --file {file} DATABASE_URL")
    if not source.is_file():
        raise NotFound(f"there is no database {source}", "--data-dir DIR", "--config FILE")
    with _told(file):
        copied = backups.back_up(source, target)
    return _tell(session, "Backup", copied, target, f"wrote {file}")


def restore(
    ctx: typer.Context,
    file: File,
    config: Config = None,
    data_dir: DataDir = None,
    database: DatabaseUrl = None,
    force: Annotated[
        bool, typer.Option("--force", help="Put the database that is there aside, under a name with the time.")
    ] = False,
    next_job: Annotated[
        str | None, typer.Option("--next-job", metavar="N", help="The number of the first job that comes now.")
    ] = None,
) -> int:
    """Put a copy in the place of the daemon's database, if its ledger holds. The daemon must not run.

    What was accepted and metered after the copy was made is not in it. The schema is brought up to this version. No job
    gets a number that another had: numbers go on after those of the database that is put aside or, where there is none
    that can be read, a million after the copy's last.

    Examples:
      turnstile admin restore /backup/turnstile-2026-11-23.db --config /etc/turnstile/turnstile.toml
      turnstile admin restore copy.db --data-dir ~/.local/share/turnstile/dev --force
    """
    from cli.daemon import backups
    from cli.daemon.app import StartProblem, claim_data_dir

    session: Session = ctx.obj
    first = None if next_job is None else values.count(next_job, "--next-job")
    folder, url = _place(session, config, data_dir, database)
    target = _sqlite(url, f"pg_restore --clean --if-exists --dbname DATABASE_URL {file}")
    source = Path(file).expanduser().absolute()
    if not source.is_file():
        raise NotFound(f"there is no file {file}")
    # To the microsecond: two restores in one second must not put one database aside over the other.
    aside = target.with_name(f"{target.name}.before-{moments.current():%Y%m%dT%H%M%S.%fZ}") if force else None
    try:
        claimed = claim_data_dir(folder)
    except StartProblem as problem:
        raise Refusal(str(problem), "turnstile admin restore once it is stopped", code="conflict") from None
    with claimed, _told(str(target), "--force puts it aside"):
        was_there = target.exists()
        try:
            copied = backups.restore(source, target, aside, first)
        except backups.NumberTaken as problem:
            raise Refusal(str(problem), f"--next-job {problem.least}") from None
    is_sound = copied.ledger is not None and copied.ledger.is_proved
    told = f"restored {target} from {file}" if is_sound else f"{file} was NOT restored, and nothing was changed"
    if is_sound and aside is not None and was_there:
        session.screen.say(f"what was there is in {aside}")
    if copied.next_job is not None:
        session.screen.say(f"the next job is {copied.next_job}: numbers that were given out are never given again")
    return _tell(session, "Restore", copied, target, told)


def _place(session: Session, config: str | None, data_dir: str | None, database: str | None) -> tuple[Path, str]:
    """Returns the data directory and the database's URL that `serve` finds with these flags."""
    from cli.daemon.app import StartProblem, database_url, default_data_dir
    from cli.daemon.settings import SettingsProblem, load

    given = {"data_dir": data_dir, "database.url": database}
    try:
        settings = load(
            Path(config) if config else None, session.environment, {k: v for k, v in given.items() if v is not None}
        )
        folder = Path(settings.data_dir).expanduser().absolute() if settings.data_dir else default_data_dir()
        return folder, database_url(settings, folder)
    except SettingsProblem as problem:
        found = tuple(Problem("", each) for each in problem.problems)
        refusal = Refusal("the daemon's settings cannot be used")
        refusal.problems = found
        raise refusal from None
    except StartProblem as problem:
        raise Refusal(str(problem)) from None


def _sqlite(url: str, otherwise: str) -> Path:
    from cli.daemon.backups import NotSqlite, sqlite_file

    try:
        return sqlite_file(url)
    except NotSqlite:
        raise Refusal("the database is PostgreSQL's, which has a tool for it", otherwise, code="unsupported") from None


@contextmanager
def _told(file: str, *tries: str) -> Iterator[None]:
    from cli.faults import ApiError
    from scheduler.store.database import StoreError, StoreUnavailable

    try:
        yield
    except FileExistsError:
        raise Refusal(f"{file} is there already", *(tries or ("a name that is new",)), code="conflict") from None
    except StoreUnavailable as problem:
        raise ApiError("unavailable", str(problem)) from None
    except StoreError as problem:
        raise Refusal(str(problem)) from None
    except OSError as problem:
        raise Refusal(f"{file} cannot be written: {problem.strerror}") from None


def _tell(session: Session, kind: str, copied: "Copied", file: Path, words: str) -> int:
    report = copied.ledger
    found: dict[str, object] = {
        "file": str(file),
        "size_bytes": copied.size_bytes,
        "schema": copied.schema,
        "is_sound": None if report is None else report.is_proved,
        "next_job_id": copied.next_job,
        "failures": [] if report is None else [str(each) for each in report.findings],
    }
    told = [f"{words}: {copied.size_bytes} bytes, schema {copied.schema}, {_verdict(found)}"]
    told += [f"  {each}" for each in answers.texts(found, "failures")]
    session.screen.document(envelope(kind, found), _COPY, told)
    return ExitCode.BUG if found["is_sound"] is False else ExitCode.DONE


def _verdict(found: dict[str, object]) -> str:
    if found["is_sound"] is None:
        return "ledger not looked at (an older schema; `admin restore` proves it)"
    return "ledger sound" if found["is_sound"] else "ledger NOT SOUND"


_COPY = View((), lambda each: text(each, "file"), ("file", "size_bytes", "schema", "is_sound"))
