"""The journal: entries add up to zero and never change, on both databases; balances are folds of it."""

from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from metering.core.journal import EntryKind, JournalEntry, Ledger, Leg, Unbalanced, transfer
from metering.journal import balance, balance_below, folded_balances, kept_balances, post, rebuild, unbalanced_entries
from metering.tables import BALANCE, POSTING, POSTING_ENTRY
from scheduler.core.model import AccountId
from scheduler.refusal import RefusalCode, Refused
from scheduler.store.database import Database, StoreError
from tests.metering.builders import NOON_MS

ACME, VISION, ACME2 = AccountId("acme"), AccountId("acme/vision"), AccountId("acme2")


def entry(key: str = "e1", *legs: Leg, currency: str = "CNY") -> JournalEntry:
    paid = legs or transfer((Ledger.RECEIVABLE, ACME), (Ledger.PREPAID, ACME), 1_000)
    return JournalEntry(key, EntryKind.TOPUP, currency, NOON_MS, tuple(paid))


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def any_database(request: pytest.FixtureRequest) -> Iterator[Database]:
    """Each test runs on both databases."""
    if request.param == "sqlite":
        yield request.getfixturevalue("database")
        return
    opened = Database.open(request.getfixturevalue("postgres"))
    yield opened
    opened.dispose()


def test_an_entry_that_does_not_add_up_cannot_be_made() -> None:
    with pytest.raises(Unbalanced, match="1 micro"):
        entry("e", Leg(Ledger.HOLD, ACME, 2), Leg(Ledger.PREPAID, ACME, -1))
    with pytest.raises(Unbalanced, match="0 legs"):
        JournalEntry("e", EntryKind.HOLD, "CNY", 0, ())
    with pytest.raises(TypeError, match="float"):
        Leg(Ledger.HOLD, ACME, 1.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="0 micro-units"):
        Leg(Ledger.HOLD, ACME, 0)
    with pytest.raises(ValueError, match="cny"):
        entry("e", currency="cny")


def test_an_entry_is_posted_once_and_its_key_is_its_own(any_database: Database) -> None:
    with any_database.write() as connection:
        assert post(connection, entry())
        assert not post(connection, entry())
        assert balance(connection, Ledger.PREPAID, ACME, "CNY") == -1_000
        other = entry("e1", *transfer((Ledger.RECEIVABLE, ACME), (Ledger.PREPAID, ACME), 7))
        with pytest.raises(Refused) as refused:
            post(connection, other)
        assert refused.value.code is RefusalCode.CONFLICT


def test_the_database_refuses_what_does_not_add_up_and_any_change(any_database: Database) -> None:
    row = {"ledger": "hold", "account": "acme", "for_ms": 0, "line_id": None}
    head = {"key": "x", "kind": "hold", "currency": "CNY", "at_ms": 0}
    with any_database.write() as connection:
        post(connection, entry())
    with pytest.raises(StoreError, match="add up to zero"):
        _write(
            any_database,
            POSTING.insert().values(entry_id=9, place=0, micros=5, **row),
            POSTING_ENTRY.insert().values(id=9, **head),
        )
    with pytest.raises(StoreError, match="add up to zero"), any_database.write() as connection:
        connection.execute(POSTING_ENTRY.insert().values(id=9, **head))
    with pytest.raises(StoreError, match="closed"), any_database.write() as connection:
        connection.execute(POSTING.insert(), [{"entry_id": 1, "place": 7, "micros": 5, **row}])
    with pytest.raises(StoreError, match=r"(?i)foreign key"), any_database.write() as connection:
        connection.execute(POSTING.insert(), [{"entry_id": 9, "place": 0, "micros": 5, **row}])
    for statement in (
        POSTING.update().values(micros=1),
        POSTING.delete(),
        POSTING_ENTRY.update().values(at_ms=1),
        POSTING_ENTRY.delete(),
    ):
        with pytest.raises(StoreError, match="append-only"), any_database.write() as connection:
            connection.execute(statement)
    with any_database.read() as connection:
        assert list(unbalanced_entries(connection)) == []
        assert connection.execute(sa.select(sa.func.count()).select_from(POSTING)).scalar() == 2


def test_balances_of_a_subtree_leave_out_accounts_whose_names_begin_alike(any_database: Database) -> None:
    with any_database.write() as connection:
        for number, account in enumerate((ACME, VISION, ACME2)):
            legs = transfer((Ledger.RECEIVABLE, account), (Ledger.REVENUE, account), 10**number)
            post(connection, entry(f"k{number}", *legs))
        assert balance_below(connection, Ledger.RECEIVABLE, ACME, "CNY") == 11
        assert balance_below(connection, Ledger.RECEIVABLE, AccountId(""), "CNY") == 111
        assert balance_below(connection, Ledger.RECEIVABLE, ACME, "USD") == 0


def test_balances_that_went_wrong_are_made_anew_from_the_journal(any_database: Database) -> None:
    with any_database.write() as connection:
        for number in range(5):
            post(connection, entry(f"k{number}"))
        assert kept_balances(connection) == folded_balances(connection)
        connection.execute(BALANCE.update().values(micros=3))
        assert kept_balances(connection) != folded_balances(connection)
        rebuild(connection)
        assert kept_balances(connection) == folded_balances(connection)


def _write(database: Database, *statements: sa.Insert) -> None:
    with database.write() as connection:
        for statement in statements:
            connection.execute(statement)
