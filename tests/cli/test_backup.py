"""`admin backup` and `admin restore` on real databases: whole, proved, and never over something."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from cli.daemon.app import claim_data_dir
from cli.daemon.backups import JOBS_SINCE
from scheduler.core.policy import Policy
from scheduler.store.database import Database
from scheduler.store.transaction import Transaction
from tests.cli.conftest import Home
from tests.databases import new_sqlite
from tests.metering.centre import Centre


class Daemons:
    """A data directory whose ledger knows of jobs; its database stays open, as a daemon's does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "turnstile.db"
        folder.mkdir()
        self.database = Database.open(new_sqlite(self.path))
        self.centre = Centre(self.database)
        self.centre.tenant("acme/vision")
        self.devices = self.centre.node("a")
        self.centre.publish()
        self.run()

    def run(self) -> None:
        self.centre.run(*self.devices)


@pytest.fixture
def daemons(tmp_path: Path) -> Daemons:
    return Daemons(tmp_path / "data")


def rows(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        (found,) = connection.execute("SELECT count(*) FROM occupancy").fetchone()
    return int(found)


def tamper(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f'DROP TRIGGER "{name}"')
        connection.execute("UPDATE occupancy SET units = units - 1 WHERE sequence = 1")


def test_a_copy_of_a_database_in_use_is_one_private_file_with_all_of_the_ledger(home: Home, daemons: Daemons) -> None:
    before = rows(daemons.path)
    copy = daemons.folder.parent / "copy.db"
    done = home.turnstile("admin", "backup", str(copy), "--data-dir", str(daemons.folder), "-o", "json")
    assert done.code == 0, done.out
    answer = json.loads(done.out)
    assert (answer["kind"], answer["is_sound"], answer["size_bytes"]) == ("Backup", True, copy.stat().st_size)
    assert copy.stat().st_mode & 0o777 == 0o600
    assert rows(copy) == before > 0
    assert sorted(each.name for each in copy.parent.glob("*copy.db*")) == ["copy.db"]
    daemons.run()
    assert rows(copy) == before < rows(daemons.path)


def test_a_restored_database_is_as_it_was_and_what_was_there_is_kept(home: Home, daemons: Daemons) -> None:
    copy = daemons.folder.parent / "copy.db"
    assert home.turnstile("admin", "backup", str(copy), "--data-dir", str(daemons.folder)).code == 0
    before = rows(copy)
    daemons.run()
    later = rows(daemons.path)
    daemons.database.dispose()
    refused = home.turnstile("admin", "restore", str(copy), "--data-dir", str(daemons.folder))
    assert (refused.code, rows(daemons.path)) == (3, later)
    assert "--force" in refused.err
    done = home.turnstile("admin", "restore", str(copy), "--data-dir", str(daemons.folder), "--force")
    assert done.code == 0, done.err
    assert rows(daemons.path) == before < later
    (aside,) = [each for each in daemons.folder.glob("turnstile.db.before-*") if not each.name.endswith(("wal", "shm"))]
    assert rows(aside) == later


def last_and_next(home: Home, daemons: Daemons, copy: Path, *flags: str) -> tuple[int, int]:
    """The copy's last job, and the first one that comes after it was restored."""
    with closing(sqlite3.connect(copy)) as connection:
        (last,) = connection.execute("SELECT max(id) FROM job").fetchone()
    done = home.turnstile("admin", "restore", str(copy), "--data-dir", str(daemons.folder), "-o", "json", *flags)
    assert done.code == 0, done.err
    told = json.loads(done.out)["next_job_id"]
    assert f"the next job is {told}" in done.err
    database = Database.open(f"sqlite:///{daemons.path}")
    centre = Centre(database)
    with database.write() as connection:
        assert Transaction(connection, centre.now_ms, Policy()).reserve_job_ids(1) == told
    database.dispose()
    return last, told


def test_no_job_gets_a_number_that_one_had_since_the_copy_was_made(home: Home, daemons: Daemons) -> None:
    copy = daemons.folder.parent / "copy.db"
    assert home.turnstile("admin", "backup", str(copy), "--data-dir", str(daemons.folder)).code == 0
    daemons.run()
    daemons.database.dispose()
    last, following = last_and_next(home, daemons, copy, "--force")
    assert following == last + 2, "the database put aside told of the one job since"
    again = home.turnstile(
        "admin", "restore", str(copy), "--data-dir", str(daemons.folder), "--force", "--next-job", str(last + 1)
    )
    assert (again.code, f"--next-job {last + 2}" in again.err) == (3, True), again.err
    assert last_and_next(home, daemons, copy, "--force", "--next-job", "5000") == (last, 5000)
    daemons.path.write_bytes(b"damaged")
    assert last_and_next(home, daemons, copy, "--force") == (last, last + 1 + JOBS_SINCE)
    daemons.path.unlink()
    assert last_and_next(home, daemons, copy) == (last, last + 1 + JOBS_SINCE)


def test_nothing_is_restored_under_a_running_daemon(home: Home, daemons: Daemons) -> None:
    copy = daemons.folder.parent / "copy.db"
    assert home.turnstile("admin", "backup", str(copy), "--data-dir", str(daemons.folder)).code == 0
    with claim_data_dir(daemons.folder):
        done = home.turnstile("admin", "restore", str(copy), "--data-dir", str(daemons.folder), "--force")
    assert done.code == 3
    assert "stop it" in done.err


def test_a_copy_whose_ledger_does_not_hold_is_kept_as_evidence_and_not_restored(home: Home, daemons: Daemons) -> None:
    daemons.database.dispose()
    tamper(daemons.path)
    copy = daemons.folder.parent / "copy.db"
    made = home.turnstile("admin", "backup", str(copy), "--data-dir", str(daemons.folder))
    assert made.code == 1
    assert "NOT SOUND" in made.out
    assert rows(copy) > 0
    target = daemons.folder.parent / "new"
    refused = home.turnstile("admin", "restore", str(copy), "--data-dir", str(target), "-o", "json")
    assert refused.code == 1
    assert json.loads(refused.out)["failures"][0].startswith("chain: sequence 1")
    assert [each.name for each in target.iterdir()] == ["daemon.lock"]


@pytest.mark.parametrize("what", ["text", "cut", "other"])
def test_what_is_no_database_of_ours_is_neither_restored_nor_left_behind(
    home: Home, daemons: Daemons, what: str
) -> None:
    file, target = daemons.folder.parent / "copy.db", daemons.folder.parent / "new"
    if what == "text":
        file.write_text("not a database, but longer than its header would be\n" * 100)
    elif what == "cut":
        assert home.turnstile("admin", "backup", str(file), "--data-dir", str(daemons.folder)).code == 0
        file.write_bytes(file.read_bytes()[:50_000])
    else:
        with closing(sqlite3.connect(file)) as connection, connection:
            connection.execute("CREATE TABLE recipes (name TEXT)")
    done = home.turnstile("admin", "restore", str(file), "--data-dir", str(target))
    assert done.code == 3, done.err
    assert [each.name for each in target.iterdir()] == ["daemon.lock"]


def test_a_copy_is_never_written_over_a_file(home: Home, daemons: Daemons) -> None:
    copy = daemons.folder.parent / "copy.db"
    copy.write_text("mine")
    done = home.turnstile("admin", "backup", str(copy), "--data-dir", str(daemons.folder))
    assert (done.code, copy.read_text()) == (3, "mine")


def test_postgresql_is_referred_to_its_own_tool_and_its_password_not_told(home: Home, tmp_path: Path) -> None:
    for verb, tool in (("backup", "pg_dump"), ("restore", "pg_restore")):
        done = home.turnstile("admin", verb, str(tmp_path / "x"), "--database", "postgresql://ledger:geheim@db/x")
        assert done.code == 3
        assert tool in done.err
        assert "geheim" not in done.err
