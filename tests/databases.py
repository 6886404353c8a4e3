"""Databases with the newest schema and nothing in it: migrated once a process, and copied for each test."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from cli.daemon import migrate
from scheduler.store.database import Database


@cache
def _schema() -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "schema.db"
        migrate.upgrade(f"sqlite:///{path}")
        return path.read_bytes()


def new_sqlite(path: Path) -> str:
    """Makes a SQLite database; returns its URL."""
    path.write_bytes(_schema())
    return f"sqlite:///{path}"


@contextmanager
def opened_sqlite(path: Path) -> Iterator[Database]:
    """Makes a SQLite database and has it open meanwhile."""
    database = Database.open(new_sqlite(path))
    yield database
    database.dispose()
