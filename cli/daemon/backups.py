"""Copies of a SQLite database, and their way back: consistent while the daemon writes, and proved before they count.

A copy is made beside its target, proved (pages, schema, ledger), brought to one file and put in its place in one step,
so that a crash leaves either no copy or a whole one. PostgreSQL has tools of its own, which the refusal names.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

from cli.daemon import migrate
from metering.findings import Report
from metering.together import reading_ledger
from metering.verify import verify
from scheduler.rundir import sync_directory
from scheduler.store.database import Database, StoreCorrupt

JOBS_SINCE = 1_000_000
"""Numbers left out after a restore that nobody can tell how many jobs came since the copy: more than a centre of 10,000
GPUs takes in a day, and nothing beside the numbers that there are."""
_SIDE_FILES = ("-wal", "-shm", "-journal")
"""What SQLite keeps beside a database of the same name."""


class NotSqlite(Exception):
    """The database is PostgreSQL's, which has tools for copies of its own."""


class NumberTaken(Exception):
    """The next job is to have a number that was given out; `least` is the first that was not, as far as is known."""

    def __init__(self, least: int) -> None:
        super().__init__(f"numbers up to {least - 1} were given out; the next job's must be at least {least}")
        self.least = least


@dataclass(frozen=True, slots=True)
class Copied:
    """A copy that was made: how large it is, its schema, and what the proof of its ledger found."""

    size_bytes: int
    schema: str
    ledger: Report | None
    """None where the schema is older than this program, which cannot read such a ledger."""
    next_job: int | None = None
    """The number of the first job that comes after a restore."""


def sqlite_file(url: str) -> Path:
    """Returns the file of a database's URL. Raises NotSqlite."""
    if not url.startswith("sqlite:///"):
        raise NotSqlite
    return Path(url.removeprefix("sqlite:///"))


def back_up(source: Path, target: Path) -> Copied:
    """Copies a database, in use or not, to a file that is not there yet. Keeps a copy whose ledger is unsound: it is
    evidence. Raises FileExistsError, StoreError, OSError."""
    with _made_beside(target) as new:
        _copy(source, new)
        copied = _proved(new)
        _make_one_file(new)
        os.link(new, target)  # unlike a rename, never over a file that came meanwhile
    sync_directory(target.parent)
    return copied


def restore(source: Path, target: Path, put_aside: Path | None, next_job: int | None = None) -> Copied:
    """Puts a copy in a database's place and brings its schema up, unless its ledger is unsound: then nothing changes.

    No daemon may run on `target`. What is there goes to `put_aside`; without one it must not be there. No number of a
    job is given twice: numbering goes on after the database that was there, where that can be read, or else
    `JOBS_SINCE` after the copy's last; `next_job` says otherwise. Raises FileExistsError, NumberTaken, StoreError,
    OSError.
    """
    if put_aside is None and target.exists():
        raise FileExistsError(str(target))
    with _made_beside(target) as new:
        _copy(source, new)
        _schema_of(new)
        migrate.upgrade(f"sqlite:///{new}")
        copied = _proved(new)
        if copied.ledger is None or not copied.ledger.is_proved:
            return copied
        copied = replace(copied, next_job=_number_on(new, target, next_job))
        _make_one_file(new)
        if put_aside is not None:
            if put_aside.exists():
                raise FileExistsError(str(put_aside))
            for suffix in ("", *_SIDE_FILES):
                with suppress(FileNotFoundError):
                    Path(f"{target}{suffix}").rename(f"{put_aside}{suffix}")
        new.replace(target)
    sync_directory(target.parent)
    return copied


@contextmanager
def _made_beside(target: Path) -> Iterator[Path]:
    """A private file's name in the target's directory; what is left of it is removed."""
    new = target.with_name(f".{target.name}.{os.getpid()}.new")
    os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    try:
        yield new
    finally:
        for suffix in ("", *_SIDE_FILES):
            Path(f"{new}{suffix}").unlink(missing_ok=True)


def _copy(source: Path, target: Path) -> None:
    # All pages in one step are one snapshot, whatever is written meanwhile.
    try:
        with (
            closing(sqlite3.connect(f"file:{quote(str(source))}?mode=ro", uri=True)) as old,
            closing(sqlite3.connect(target)) as new,
        ):
            old.backup(new)
            found = [row[0] for row in new.execute("PRAGMA quick_check(1)")]
    except sqlite3.Error as problem:
        raise StoreCorrupt(f"{source} cannot be copied: {problem}") from None
    if found != ["ok"]:
        raise StoreCorrupt(f"{source} is damaged: {found[0]}")


def _proved(path: Path) -> Copied:
    url = f"sqlite:///{path}"
    schema = _schema_of(path)
    report = None
    try:
        migrate.check(url)
    except migrate.SchemaBehind:
        pass
    else:
        database = Database.open(url)
        try:
            with reading_ledger(database) as readers:
                report = verify(readers.source, readers=readers)
        finally:
            database.dispose()
    return Copied(path.stat().st_size, schema, report)


def _schema_of(path: Path) -> str:
    schema = migrate.current(f"sqlite:///{path}")
    if schema is None:
        raise StoreCorrupt("it is no database of Turnstile's: it has no schema of one")
    return schema


def _number_on(new: Path, old: Path, asked: int | None) -> int:
    """Has the restored database number its jobs from `asked` on, or from what is surely free; returns that."""
    copied, lost = _last_job(new), _last_job(old) if old.exists() else None
    assert copied is not None, "it was proved"
    least = 1 + max(copied, lost or 0)
    if asked is not None and asked < least:
        raise NumberTaken(least)
    first = asked or (least if lost is not None else least + JOBS_SINCE)
    with closing(sqlite3.connect(new)) as connection, connection:
        connection.execute("DELETE FROM sqlite_sequence WHERE name = 'job'")
        connection.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('job', ?)", (first - 1,))
    return first


def _last_job(path: Path) -> int | None:
    """Returns the highest number that a database ever gave to a job; None where it cannot be read."""
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as connection:
            row = connection.execute("SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'job'").fetchone()
    except sqlite3.Error:
        return None
    return int(row[0])


def _make_one_file(path: Path) -> None:
    """Folds what SQLite keeps beside the database into it, and makes it durable."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
    with path.open("rb") as written:
        os.fsync(written.fileno())
