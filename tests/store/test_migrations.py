"""The schema: made by migrations, the same as the models say, and never touched by a version that does not know it."""

import importlib
from collections.abc import Callable

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlmodel import SQLModel

from cli.daemon import migrate
from scheduler.store.database import Database
from scheduler.store.ledger_tables import LEDGER_HEAD
from scheduler.store.tables import LEADER_LEASE

for module in ("history_tables", "ledger_tables", "tables"):
    importlib.import_module(f"scheduler.store.{module}")  # metadata is filled by import
importlib.import_module("metering.tables")


def test_an_empty_database_is_brought_to_the_head_and_a_second_upgrade_changes_nothing(
    new_url: Callable[[bool], str],
) -> None:
    url = new_url(False)
    assert migrate.current(url) is None
    with pytest.raises(migrate.SchemaBehind, match="no schema"):
        migrate.check(url)
    assert migrate.upgrade(url) == migrate.head()
    assert migrate.current(url) == migrate.head()
    migrate.check(url)
    assert migrate.upgrade(url) == migrate.head()


def test_the_migrated_schema_is_what_the_models_say(database: Database) -> None:
    with database.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, SQLModel.metadata) == []


def test_a_migrated_database_has_its_two_single_rows(database: Database) -> None:
    with database.read() as connection:
        assert connection.execute(sa.select(LEADER_LEASE)).all() == [(1, "", "", 0, 0)]
        assert connection.execute(sa.select(LEDGER_HEAD)).all() == [(1, 0, "0" * 64)]


def test_a_schema_of_a_newer_version_is_refused_and_left_as_it_is(new_url: Callable[[bool], str]) -> None:
    url = new_url(True)
    database = Database.open(url)
    with database.write() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    database.dispose()
    with pytest.raises(migrate.SchemaUnknown, match="9999"):
        migrate.check(url)
    with pytest.raises(migrate.SchemaUnknown, match="newer version"):
        migrate.upgrade(url)
    assert migrate.current(url) == "9999"


def test_an_upgrade_that_fails_leaves_nothing_behind(new_url: Callable[[bool], str]) -> None:
    """Schema changes are one transaction on both databases."""
    url = new_url(False)
    database = Database.open(url)
    with database.write() as connection:
        # In the way of the migration's last table.
        connection.exec_driver_sql("CREATE TABLE occupancy (id integer)")
    with pytest.raises(Exception, match="occupancy"):
        migrate.upgrade(url)
    with database.read() as connection:
        assert sa.inspect(connection).get_table_names() == ["occupancy"]
    database.dispose()
    assert migrate.current(url) is None
