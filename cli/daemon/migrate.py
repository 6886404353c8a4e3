"""Moves a database's schema forward, and refuses one that this version does not know.

    SchemaUnknown    a newer version of the program made this schema; run that version, or restore a backup
    SchemaBehind     the schema is older than the program; the daemon's start brings it up

An upgrade is one transaction on both databases, under a lock that makes a second daemon wait for the first.
"""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.engine import Connection

from scheduler.store.database import Database, StoreError

_SCRIPTS = Path(__file__).parent / "migrations"
_ADVISORY_LOCK = 7_478_826_311
"""PostgreSQL's advisory lock for migrations: any number that no other program of the installation takes."""


class SchemaUnknown(StoreError):
    """The database's schema was made by a newer version of the program."""


class SchemaBehind(StoreError):
    """The database's schema is older than the program, or there is none yet."""


def head() -> str:
    """Returns the revision that this version of the program works with."""
    revision = ScriptDirectory.from_config(_config(None)).get_current_head()
    assert revision is not None, "the program ships with at least one migration"
    return revision


def upgrade(url: str) -> str:
    """Brings the schema up to `head()` and returns it. Raises SchemaUnknown, StoreError; ValueError for a bad URL."""
    database = Database.open(url)
    try:
        with database.write() as connection:
            if database.dialect == "postgresql":
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})")
            _refuse_unknown(_revision(connection))
            command.upgrade(_config(connection), "head")
    finally:
        database.dispose()
    return head()


def current(url: str) -> str | None:
    """Returns the database's revision; None when it has no schema of ours. Raises StoreError."""
    database = Database.open(url)
    try:
        with database.read() as connection:
            return _revision(connection)
    finally:
        database.dispose()


def check(url: str) -> None:
    """Raises SchemaUnknown or SchemaBehind unless the database's schema is this version's."""
    revision = current(url)
    _refuse_unknown(revision)
    if revision != head():
        found = "no schema" if revision is None else f"schema {revision}"
        raise SchemaBehind(
            f"the database has {found}, this version needs {head()}; "
            "back it up, then start this version's daemon, which brings it up"
        )


def _config(connection: Connection | None) -> Config:
    config = Config()
    # A per cent sign would be read as interpolation.
    config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _refuse_unknown(revision: str | None) -> None:
    if revision is None:
        return
    known = {script.revision for script in ScriptDirectory.from_config(_config(None)).walk_revisions()}
    if revision not in known:
        raise SchemaUnknown(
            f"the database has schema {revision}, which this version (up to {head()}) does not know; "
            "run the newer version of Turnstile that made it, or restore a backup from before"
        )
