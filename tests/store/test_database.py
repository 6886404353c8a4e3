"""The door to SQL: what it opens, what it refuses, and how it says that something is wrong."""

from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from scheduler.store import database as door
from scheduler.store.database import Database, StoreCorrupt, StoreError, StoreUnavailable
from scheduler.store.tables import ACCOUNT, POOL


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "mysql://host/name", "nonsense", ""])
def test_a_url_that_cannot_keep_a_ledger_is_refused_with_the_right_forms(url: str) -> None:
    with pytest.raises(ValueError, match="sqlite:///path"):
        Database.open(url)


def test_a_password_is_not_in_what_is_shown() -> None:
    database = Database.open("postgresql://turnstile:sesame@db.example/turnstile")
    assert "sesame" not in database.redacted_url
    assert "db.example" in database.redacted_url


def test_a_file_is_made_for_its_owner_only(tmp_path: Path) -> None:
    database = Database.open(f"sqlite:///{tmp_path}/new.db")
    with database.read():
        pass
    database.dispose()
    assert (tmp_path / "new.db").stat().st_mode & 0o777 == 0o600


def test_a_missing_folder_is_unavailable_and_not_made(tmp_path: Path) -> None:
    database = Database.open(f"sqlite:///{tmp_path}/missing/new.db")
    with pytest.raises(StoreUnavailable, match="unable to open"), database.read():
        pass
    assert not (tmp_path / "missing").exists()


def test_a_server_that_does_not_answer_is_unavailable() -> None:
    database = Database.open("postgresql://turnstile@127.0.0.1:1/turnstile")
    with pytest.raises(StoreUnavailable, match="not available"), database.write():
        pass
    database.dispose()


def test_a_file_that_is_no_database_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("not a database, but long enough to be looked at. " * 40)
    database = Database.open(f"sqlite:///{tmp_path}/text.db")
    with pytest.raises(StoreCorrupt, match="damaged"), database.write():
        pass
    database.dispose()


def test_a_writer_that_waits_too_long_for_another_gives_up_as_unavailable(
    new_url: Callable[[bool], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "BUSY_TIMEOUT_MS", 50)
    url = new_url(True)
    first, second = Database.open(url), Database.open(url)
    lock = sa.update(sa.table("leader_lease", sa.column("epoch"))).values(epoch=1)
    with first.write() as connection:
        connection.execute(lock)
        with pytest.raises(StoreUnavailable), second.write() as other:
            other.execute(lock)
    first.dispose()
    second.dispose()


def test_a_read_transaction_cannot_write(database: Database) -> None:
    with pytest.raises(StoreError), database.read() as connection:
        connection.execute(sa.insert(POOL).values(name="p", is_closed=False))


def test_a_read_transaction_sees_one_snapshot_and_blocks_no_writer(database: Database) -> None:
    with database.read() as reader:
        assert reader.execute(sa.select(POOL)).all() == []
        with database.write() as writer:
            writer.execute(sa.insert(POOL).values(name="p", is_closed=False))
        assert reader.execute(sa.select(POOL)).all() == []
    with database.read() as reader:
        assert len(reader.execute(sa.select(POOL)).all()) == 1


def test_a_body_that_raises_leaves_nothing(database: Database) -> None:
    def write_and_fail() -> None:
        with database.write() as connection:
            connection.execute(sa.insert(POOL).values(name="p", is_closed=False))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_and_fail()
    with database.read() as connection:
        assert connection.execute(sa.select(POOL)).all() == []


def test_an_error_shows_no_value_of_a_statement(database: Database) -> None:
    """Launch specs carry secrets; a constraint that fails must not print them."""
    with pytest.raises(StoreCorrupt) as raised, database.write() as connection:
        connection.execute(sa.insert(ACCOUNT).values(id="sesame", display_name="sesame", weight=None))
    assert "sesame" not in str(raised.value)


def test_a_durable_sqlite_file_is_written_with_full_synchronisation(tmp_path: Path) -> None:
    database = Database.open(f"sqlite:///{tmp_path}/durable.db")
    with database.write() as connection:
        modes = {
            pragma: connection.exec_driver_sql(f"PRAGMA {pragma}").scalar_one()
            for pragma in ("journal_mode", "synchronous", "foreign_keys")
        }
    database.dispose()
    # 2 is FULL (SQLite's documentation of the pragma).
    assert modes == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
