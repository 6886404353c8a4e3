"""Copies of a SQLite database, and their way back: consistent while the daemon writes, and proved before they count.

A copy is made beside its target, proved (pages, schema, ledger), brought to one file and put in its place in one step,
so that a crash leaves either no copy or a whole one. PostgreSQL has tools of its own, which the refusal names.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from cli.daemon import migrate
from metering.findings import Report
from metering.together import reading_ledger
from metering.verify import verify
from scheduler.store.database import Database, StoreCorrupt

_SIDE_FILES = ("-wal", "-shm", "-journal")
"""What SQLite keeps beside a database of the same name."""


class NotSqlite(Exception):
    """The database is PostgreSQL's, which has tools for copies of its own."""


@dataclass(frozen=True, slots=True)
class Copied:
    """A copy that was made: how large it is, its schema, and what the proof of its ledger found."""

    size_bytes: int
    schema: str
    ledger: Report | None
    """None where the schema is older than this program, which cannot read such a ledger."""


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
    _sync_directory(target.parent)
    return copied


def restore(source: Path, target: Path, put_aside: Path | None) -> Copied:
    """Puts a copy in a database's place and brings its schema up, unless its ledger is unsound: then nothing changes.

    No daemon may run on `target`. What is there goes to `put_aside`; without one it must not be there. Raises
    FileExistsError, StoreError, OSError.
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
        _make_one_file(new)
        if put_aside is not None:
            for suffix in ("", *_SIDE_FILES):
                with suppress(FileNotFoundError):
                    Path(f"{target}{suffix}").rename(f"{put_aside}{suffix}")
        new.replace(target)
    _sync_directory(target.parent)
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


def _make_one_file(path: Path) -> None:
    """Folds what SQLite keeps beside the database into it, and makes it durable."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
    with path.open("rb") as written:
        os.fsync(written.fileno())


def _sync_directory(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
