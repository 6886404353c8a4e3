"""Two daemons on one database: one leads, and one that lost its lead writes nothing."""

import threading
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import sqlalchemy as sa

from scheduler.clock import ManualClock
from scheduler.core.model import Account, AccountId
from scheduler.core.policy import Policy
from scheduler.store.accounts import SaveAccount
from scheduler.store.database import Database, Fenced, StoreError, StoreUnavailable
from scheduler.store.lease import Leader, LeaderLease
from scheduler.store.tables import ACCOUNT
from scheduler.store.transaction import Transaction
from scheduler.store.write import Writer

NOW_MS = 1_790_000_000_000
TTL_MS = 15_000


def leases(database: Database) -> tuple[LeaderLease, LeaderLease]:
    return (
        LeaderLease(database, "a", "http://a", TTL_MS),
        LeaderLease(database, "b", "http://b", TTL_MS),
    )


def test_nobody_leads_before_the_first_lease(database: Database) -> None:
    assert leases(database)[0].leader() is None


def test_one_leads_and_the_other_waits_until_the_lease_expires(database: Database) -> None:
    a, b = leases(database)
    assert a.acquire(NOW_MS) == 1
    assert b.acquire(NOW_MS + TTL_MS - 1) is None
    assert b.leader() == Leader("a", "http://a", 1, NOW_MS + TTL_MS)
    assert b.acquire(NOW_MS + TTL_MS) == 2
    with pytest.raises(Fenced, match="b leads"):
        a.renew(NOW_MS + TTL_MS)


def test_a_renewed_lease_lasts_from_then_on(database: Database) -> None:
    a, b = leases(database)
    a.acquire(NOW_MS)
    a.renew(NOW_MS + 10_000)
    assert b.acquire(NOW_MS + TTL_MS) is None


def test_a_released_lease_is_free_at_once_and_only_its_holder_releases_it(database: Database) -> None:
    a, b = leases(database)
    a.acquire(NOW_MS)
    b.release()
    assert b.acquire(NOW_MS) is None
    a.release()
    assert a.leader() is None
    assert b.acquire(NOW_MS) == 2


def test_a_daemon_that_starts_again_takes_its_own_lease_over_and_fences_its_former_self(database: Database) -> None:
    former, _ = leases(database)
    again, _ = leases(database)
    former.acquire(NOW_MS)
    assert again.acquire(NOW_MS + 1) == 2
    with pytest.raises(Fenced):
        former.renew(NOW_MS + 2)


def test_a_writer_with_an_old_epoch_writes_nothing(database: Database) -> None:
    a, b = leases(database)
    clock = ManualClock(NOW_MS)
    old = Writer(database, clock, Policy(), a.acquire(NOW_MS))
    old.run(SaveAccount(Account(AccountId("acme")), "Acme"))
    new = Writer(database, clock, Policy(), b.acquire(NOW_MS + TTL_MS))
    with pytest.raises(Fenced, match="b leads"):
        old.run(SaveAccount(Account(AccountId("evil")), "Evil"))
    new.run(SaveAccount(Account(AccountId("blue")), "Blue"))
    with database.read() as connection:
        assert set(connection.execute(sa.select(ACCOUNT.c.id)).scalars()) == {"acme", "blue"}


@dataclass(frozen=True, slots=True)
class Lasting:
    """A command that takes its time."""

    clock: ManualClock
    seconds: int

    def execute(self, tx: Transaction) -> None:
        self.clock.advance(seconds=self.seconds)


def test_a_write_that_takes_long_leaves_the_lease_extended(database: Database) -> None:
    """Nobody could renew it meanwhile, and a daemon that waits would find it expired right after."""
    a, b = leases(database)
    clock = ManualClock(NOW_MS)
    writer = Writer(database, clock, Policy(), a.acquire(NOW_MS), lease=a)
    writer.run(Lasting(clock, TTL_MS // 1000 + 1))
    assert b.acquire(clock.now_ms()) is None
    found = a.leader()
    assert found is not None
    assert (found.holder, found.epoch, found.expires_ms) == ("a", 1, clock.now_ms() + TTL_MS)
    writer.run(Lasting(clock, 1))
    assert a.leader() == found, "a short one writes nothing more"


def test_a_writer_whose_lease_was_released_writes_nothing(database: Database) -> None:
    a, _ = leases(database)
    writer = Writer(database, ManualClock(NOW_MS), Policy(), a.acquire(NOW_MS))
    a.release()
    with pytest.raises(Fenced):
        writer.run(SaveAccount(Account(AccountId("acme")), "Acme"))


def test_of_daemons_that_reach_for_a_free_lease_together_one_gets_it(
    database: Database, new_url: Callable[[bool], str]
) -> None:
    got: list[int | None] = []
    ready = threading.Barrier(4)

    def reach(name: str) -> None:
        lease = LeaderLease(database, name, "", TTL_MS)
        ready.wait(timeout=10)
        got.append(lease.acquire(NOW_MS))

    threads = [threading.Thread(target=reach, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert sorted(got, key=str) == [1, None, None, None]


def test_a_takeover_waits_for_the_transaction_that_the_leader_is_in(database: Database) -> None:
    """What began under an epoch is committed under it: no write of the old leader comes after the takeover."""
    a, b = leases(database)
    epoch = a.acquire(NOW_MS)
    assert epoch is not None
    order: list[str] = []
    began = threading.Event()

    def take_over() -> None:
        began.set()
        b.acquire(NOW_MS + TTL_MS)
        order.append("taken over")

    other = Database.open(_url(database))
    b = LeaderLease(other, "b", "http://b", TTL_MS)
    thread = threading.Thread(target=take_over)
    with database.write() as connection:
        LeaderLease.check(connection, epoch)
        thread.start()
        assert began.wait(timeout=10)
        thread.join(timeout=0.3)
        assert thread.is_alive()
        order.append("committed")
    thread.join(timeout=30)
    other.dispose()
    assert order == ["committed", "taken over"]


def _url(database: Database) -> str:
    return database._writer.url.render_as_string(hide_password=False)


def test_a_lease_table_without_its_row_is_called_damaged(database: Database) -> None:
    with database.write() as connection:
        connection.exec_driver_sql("DELETE FROM leader_lease")
    with pytest.raises(StoreError, match="leader_lease"):
        leases(database)[0].acquire(NOW_MS)


@pytest.mark.postgres
def test_a_frozen_leaders_open_transaction_does_not_keep_another_from_leading(
    new_postgres: Callable[[bool], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scheduler.store.database.IDLE_TIMEOUT_MS", 200)
    database = Database.open(new_postgres(True))
    try:
        a, b = leases(database)
        a.acquire(NOW_MS)
        frozen = database.write()
        LeaderLease.check(frozen.__enter__(), 1)
        assert b.acquire(NOW_MS + TTL_MS) == 2, "waits for the row until the server ends what is idle"
        with pytest.raises(StoreUnavailable):
            frozen.__exit__(None, None, None)
    finally:
        database.dispose()
