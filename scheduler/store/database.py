"""The door to SQL: opens SQLite or PostgreSQL, hides their differences, and turns their errors into ours.

    StoreError             the store cannot do what it was asked
      StoreUnavailable     locked, full, or out of reach for now: nothing was committed as far as is known, try again
        StoreBusy          another transaction did not end in time: nothing was begun
      StoreCorrupt         what the database holds or was asked to hold breaks an invariant; a person must look
      Fenced               another daemon leads; this one must stop writing and reload

Write transactions are serial: SQLite by BEGIN IMMEDIATE, PostgreSQL by the leader's lease row (see `lease`). Read
transactions see one snapshot and cannot write. No error text carries statement parameters, which may be secrets.
"""

import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeVar

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import ConnectionPoolEntry

Dialect = Literal["sqlite", "postgresql"]
T = TypeVar("T")

BUSY_TIMEOUT_MS = 10_000
"""How long a transaction waits for a lock: longer than any transaction of ours, shorter than a lease's takeover."""
IDLE_TIMEOUT_MS = 8000
"""How long a write transaction may keep its locks while its daemon says nothing, which a frozen one does: after that
PostgreSQL ends it, so that another daemon can take the lease within its promised time. Less than a lease lasts, so no
takeover waits for it; far more than a live daemon needs to make 50,000 rows between two statements."""
CONNECT_TIMEOUT_SECONDS = 5
IN_LIST_MOST = 1000
"""Values in one IN list: well under SQLite's 32,766 parameters and PostgreSQL's 65,535."""
SQLITE_CACHE_KIB = 65_536
"""Page cache a connection: the hot indexes of 100,000 jobs stay in memory."""
_CORRUPT_WORDS = ("malformed", "not a database", "database corruption")


class StoreError(Exception):
    """The store cannot do what it was asked. The message is fit for people."""


class StoreUnavailable(StoreError):
    """The database is locked, full, or out of reach; nothing is known to have been committed."""


class StoreBusy(StoreUnavailable):
    """Another transaction holds what this one needs, for longer than waiting is good for; this one did not begin."""


class StoreCorrupt(StoreError):
    """An invariant of the database is broken, or a write that would break one was refused."""


class Fenced(StoreError):
    """Another daemon leads: the lease's epoch has moved on. Nothing of this transaction was written."""


class Database:
    """An open database. Safe to share between threads; each transaction has a connection of its own."""

    def __init__(self, writer: Engine, reader: Engine, dialect: Dialect, redacted_url: str) -> None:
        self._writer = writer
        self._reader = reader
        self.dialect: Dialect = dialect
        self.redacted_url = redacted_url

    @classmethod
    def open(cls, url: str) -> "Database":
        """Opens `sqlite:///path` or `postgresql://user@host/name`; connects at the first transaction.

        Raises ValueError for any other URL. A SQLite file is made when missing, readable by its owner only.
        """
        parsed = _parse(url)
        redacted = parsed.render_as_string(hide_password=True)
        if parsed.get_backend_name() == "sqlite":
            return cls(_sqlite(parsed, is_writer=True), _sqlite(parsed, is_writer=False), "sqlite", redacted)
        return cls(_postgres(parsed, is_writer=True), _postgres(parsed, is_writer=False), "postgresql", redacted)

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Opens a write transaction; commits at the end, or rolls back when the body raises. Raises StoreError."""
        with _our_errors(), self._writer.begin() as connection:
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Opens a read-only transaction over one consistent snapshot, taken at its first query. Raises StoreError."""
        with _our_errors(), self._reader.begin() as connection:
            yield connection

    @property
    def url(self) -> str:
        """The whole URL, its password included: for a process that opens the same database, never for people."""
        return self._reader.url.render_as_string(hide_password=False)

    @contextmanager
    def versions(self) -> Iterator[Callable[[], int]]:
        """Gives a function whose value is another once somebody committed since it was last asked; SQLite only."""
        with _our_errors(), self._reader.connect() as connection:
            probe = connection.connection.driver_connection
            assert isinstance(probe, sqlite3.Connection), "only SQLite tells"
            yield lambda: int(probe.execute("PRAGMA data_version").fetchone()[0])

    def dispose(self) -> None:
        """Closes every connection."""
        self._writer.dispose()
        self._reader.dispose()


def chunks(values: Sequence[T], size: int = IN_LIST_MOST) -> Iterator[Sequence[T]]:
    """Yields `values` in order, at most `size` at a time."""
    for start in range(0, len(values), size):
        yield values[start : start + size]


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise ValueError("the database URL is malformed; write sqlite:///path or postgresql://user@host/name") from None
    if parsed.drivername == "sqlite" and parsed.database and parsed.database != ":memory:":
        return parsed
    if parsed.drivername in {"postgresql", "postgres", "postgresql+psycopg"}:
        return parsed.set(drivername="postgresql+psycopg")
    raise ValueError(
        f"{parsed.drivername!r} without a file or server of its own cannot keep a ledger; "
        "write sqlite:///path or postgresql://user@host/name"
    )


def _sqlite(url: URL, *, is_writer: bool) -> Engine:
    engine = sa.create_engine(
        url,
        hide_parameters=True,
        connect_args={"timeout": BUSY_TIMEOUT_MS / 1000, "check_same_thread": False},
        pool_size=1 if is_writer else 8,
        max_overflow=0 if is_writer else 8,
        pool_timeout=BUSY_TIMEOUT_MS / 1000,
    )
    path = Path(str(url.database))

    def prepare_file(*_: object) -> None:
        # The file holds launch environments: it is made private before SQLite would make it with the umask's mode.
        if not path.exists() and path.parent.is_dir():
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))

    def prepare_connection(connection: sa.engine.interfaces.DBAPIConnection, _: ConnectionPoolEntry) -> None:
        # The driver would begin transactions by its own rules; ours begin in `begin` below.
        connection.isolation_level = None
        cursor = connection.cursor()
        pragmas = ["journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", f"busy_timeout={BUSY_TIMEOUT_MS}"]
        pragmas += [f"cache_size=-{SQLITE_CACHE_KIB}", "temp_store=MEMORY"]
        pragmas += [] if is_writer else ["query_only=ON"]
        for pragma in pragmas:
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if is_writer else "BEGIN")

    event.listen(engine, "do_connect", prepare_file)
    event.listen(engine, "connect", prepare_connection)
    event.listen(engine, "begin", begin)
    return engine


def _postgres(url: URL, *, is_writer: bool) -> Engine:
    options = f"-c lock_timeout={BUSY_TIMEOUT_MS} -c timezone=UTC"
    if is_writer:
        options += f" -c idle_in_transaction_session_timeout={IDLE_TIMEOUT_MS}"
    engine = sa.create_engine(
        url,
        hide_parameters=True,
        pool_pre_ping=True,
        pool_size=2 if is_writer else 8,
        connect_args={
            "connect_timeout": CONNECT_TIMEOUT_SECONDS,
            "options": options,
        },
    )
    if is_writer:
        return engine
    return engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)


@contextmanager
def _our_errors() -> Iterator[None]:
    try:
        yield
    except IntegrityError as error:
        raise StoreCorrupt(f"the database refused a write that breaks an invariant: {_first_line(error)}") from error
    except DBAPIError as error:
        text = _first_line(error)
        if any(word in text for word in _CORRUPT_WORDS):
            raise StoreCorrupt(f"the database is damaged: {text}; restore a backup") from error
        if _is_waiting(error):
            raise StoreBusy(f"the database is not available: {text}") from error
        if _is_passing(error):
            raise StoreUnavailable(f"the database is not available: {text}") from error
        raise StoreError(f"the database answered: {text}") from error
    except PoolTimeout as error:
        raise StoreBusy("the database is not available: all connections are busy") from error


def _is_waiting(error: DBAPIError) -> bool:
    """True when a row's lock was waited for in vain (PostgreSQL's class 55P03, lock_not_available)."""
    return getattr(error.orig, "sqlstate", None) == "55P03"


def _is_passing(error: DBAPIError) -> bool:
    """True for what goes away by itself or by an operator's hand: locks, lost connections, full disks."""
    if error.connection_invalidated:
        return True
    return isinstance(error, sa.exc.OperationalError) and "no such table" not in str(error.orig)


def _first_line(error: DBAPIError) -> str:
    # Later lines of PostgreSQL's messages quote values; the first names the rule only.
    lines = str(error.orig).strip().splitlines()
    return lines[0] if lines else type(error.orig).__name__
