"""What tenants owe by the journal is what their invoices ask, whatever was bought, given back and corrected."""

import csv
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from metering.core.journal import Ledger
from metering.corrections import CorrectLine, sealed_line
from metering.findings import Report
from metering.journal import balance_below, rebuild
from metering.journal_chain import entry_hash
from metering.keeping import KeepBudgets
from metering.ledger import publish
from metering.packages import sell
from metering.periods import known_period
from metering.settling import correct_period
from metering.tables import BALANCE, BUDGET_USE, POSTING, POSTING_ENTRY
from metering.verify import verify
from metering.verify_invoices import verify_invoices
from metering.verify_journal import verify_entries, verify_journal
from scheduler.core.model import AccountId, Booking, DeviceId, EndReason
from scheduler.core.occupancy import GENESIS_HASH
from scheduler.store.chained import move_head
from tests.databases import opened_sqlite
from tests.metering.builders import HOUR_MS
from tests.metering.centre import Centre
from tests.metering.purse import PurseCentre
from tests.metering.test_periods import TERMS, Desk, close, end_word, export
from tests.metering.test_tariffs import package, rich

A0, A1, B0, B1 = (DeviceId(f"GPU-{place}") for place in ("a-0", "a-1", "b-0", "b-1"))
TENANTS = ("acme", "globex")


@pytest.fixture(scope="module")
def centre(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Centre]:
    """Use under a book that has everything, a package, credits; October closed. Tampering leaves nothing behind."""
    with opened_sqlite(tmp_path_factory.mktemp("invoicing") / "turnstile.db") as database:
        yield lived(PurseCentre(database))


def lived(centre: PurseCentre) -> Centre:
    for account in ("acme/vision", "globex/nlp"):
        centre.tenant(account)
    centre.node("a")
    centre.node("b")
    centre.publish(rich())
    centre.budget("globex", 5_000)
    with centre.database.write() as connection:
        sell(connection, package(40), centre.now_ms)
    centre.run(A0, hours=3)
    centre.run(A0, A1, hours=2, booking=Booking.SPOT)
    centre.run(B0, hours=1, account="globex/nlp")
    lost = centre.start(B0, account="globex/nlp")
    long = centre.start(B1, account="globex/nlp")
    centre.running(lost)
    centre.running(long)
    centre.clock.advance(hours=4)
    centre.lost(lost, ago_ms=HOUR_MS)
    preempted = centre.start(A1)
    centre.running(preempted)
    centre.clock.advance(seconds=61)
    centre.end(preempted, EndReason.PREEMPTED)
    centre.clock.advance(hours=3)
    paid = centre.start(A0, booking=Booking.GUARANTEED)
    centre.running(paid)
    centre.clock.advance(hours=24 * 4)
    centre.end(paid)
    centre.end(long)
    keep(centre)
    close(centre)
    return centre


def keep(centre: Centre) -> None:
    """Charges all that is due."""
    while centre.carry_out(KeepBudgets(centre.admission)).settled:
        pass


def owed(centre: Centre) -> dict[str, int]:
    with centre.read() as connection:
        return {name: balance_below(connection, Ledger.RECEIVABLE, AccountId(name), "CNY") for name in TENANTS}


def payable(centre: Centre, folder: Path, *months: str) -> dict[str, int]:
    found: Counter[str] = Counter()
    for month in months:
        text = export(centre, folder / month, month)["invoice_totals.csv"].decode("utf-8-sig")
        for row in csv.DictReader(text.splitlines()):
            found[row["tenant_id"]] += int(Decimal(row["payable"]) * 10**6)
    return dict(found)


def proof(centre: Centre) -> Report:
    with centre.read() as connection:
        return verify(connection, centre.now_ms)


def test_what_each_tenant_owes_is_the_sum_of_its_invoices_to_the_cent(centre: Centre, tmp_path: Path) -> None:
    assert proof(centre).is_proved, proof(centre).findings
    # What becomes known later, a price that reaches back over use and fees, and a word of an operator.
    with centre.read() as connection:
        october = known_period(connection, "2026-10", TERMS.zone, centre.now_ms)
        (lost,) = connection.execute(
            sa.text("SELECT id, ended_ms FROM allocation WHERE end_reason = 'node_lost'")
        ).all()
        named = connection.execute(
            sa.select(POSTING_ENTRY.c.key).where(POSTING_ENTRY.c.key.startswith("purchase/reserved/"))
        ).scalar_one()
        sealed = sealed_line(connection, october, named.removeprefix("purchase/"))
    centre.learn(end_word(lost.id, lost.ended_ms + HOUR_MS // 2))
    amount = Decimal("-12.345678")
    centre.carry_out(CorrectLine("2026-10", sealed["line_id"], amount, "goodwill", "ops", TERMS.zone, sealed))
    dearer = tuple(replace(fee, monthly=Decimal("9000.00")) for fee in rich().reserved)
    with centre.database.write() as connection:
        publish(
            connection,
            rich(version="richer", effective_ms=october.period.to_ms - 6 * HOUR_MS, reserved=dearer),
            centre.now_ms,
            "contract 4711",
        )
    assert correct_period(Desk(centre), TERMS.zone, "2026-10") > 0
    assert proof(centre).is_proved, proof(centre).findings  # also while it is to be charged still
    keep(centre)
    assert proof(centre).is_proved, proof(centre).findings
    centre.clock.advance(hours=24 * 33)
    close(centre, "2026-11")
    assert owed(centre) == payable(centre, tmp_path, "2026-10", "2026-11")
    report = proof(centre)
    assert report.is_proved, report.findings
    assert report.counted["invoiced_tenants"] == 2
    with centre.read() as connection:
        kinds = set(connection.execute(sa.select(POSTING_ENTRY.c.kind)).scalars())
        of_package = connection.execute(
            sa.select(POSTING_ENTRY.c.kind, POSTING.c.ledger, sa.func.sum(POSTING.c.micros))
            .join(POSTING, POSTING.c.entry_id == POSTING_ENTRY.c.id)
            .where(POSTING.c.line_id == "package/q4")
            .group_by(POSTING_ENTRY.c.kind, POSTING.c.ledger)
        ).all()
    assert kinds >= {"charge", "credit", "correction", "purchase", "draw", "expiry", "tax", "rounding"}
    by_ledger: Counter[str] = Counter()
    for _, ledger, micros in of_package:
        by_ledger[ledger] += int(micros)
    assert by_ledger == {"receivable": 30_000_000, "deferred": 0, "fees": -30_000_000}


@contextmanager
def tampering(centre: Centre) -> Iterator[Connection]:
    """A transaction in which no trigger guards anything, and of which nothing stays."""
    with centre.database.write() as connection:
        connection.exec_driver_sql("SAVEPOINT sound")
        names = connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'trigger'").scalars().all()
        for name in names:
            connection.exec_driver_sql(f'DROP TRIGGER "{name}"')
        yield connection
        connection.exec_driver_sql("ROLLBACK TO sound")


def journal_findings(connection: Connection) -> list[str]:
    report = Report()
    verify_journal(connection, report)
    verify_invoices(connection, report)
    return [finding.where for finding in report.findings]


def test_tampering_with_any_column_of_the_journal_is_found_and_named(centre: Centre) -> None:
    with tampering(centre) as connection:
        assert journal_findings(connection) == []
        entries = connection.execute(sa.select(POSTING_ENTRY)).mappings().all()
        firsts = {row["kind"]: row["id"] for row in reversed(entries)}
        for number in sorted(firsts.values()):
            for column in POSTING_ENTRY.c:
                found = _after(connection, column, POSTING_ENTRY.c.id == number)
                assert any(where.startswith(f"entry {number} ") for where in found), (number, column.name, found)
            for column in POSTING.c:
                leg = sa.and_(POSTING.c.entry_id == number, POSTING.c.place == 1)
                found = _after(connection, column, leg)
                assert any(where.startswith(f"entry {number} ") for where in found), (number, column.name, found)
        for column in (*BALANCE.c, *BUDGET_USE.c):
            assert any(column.table.name.split("_")[0] in where for where in _after(connection, column, sa.true()))


def _after(connection: Connection, column: sa.Column[Any], where: sa.ColumnElement[bool]) -> list[str]:
    """Where verification finds something when one row's column says something else."""
    table = column.table
    named = sa.and_(where, table.c.micros != 0) if "micros" in table.c else where
    row = connection.execute(sa.select(table).where(named)).mappings().first()
    assert row is not None
    value = row[column.name]
    other = value + 10_000 if isinstance(value, int) else f"{value or ''}x"
    connection.exec_driver_sql("SAVEPOINT one")
    key = sa.and_(*(each == row[each.name] for each in table.primary_key))
    connection.execute(sa.update(table).where(key).values({column.name: other}))
    report = Report()
    verify_entries(connection, report)
    connection.exec_driver_sql("ROLLBACK TO one")
    return [finding.where for finding in report.findings]


def test_an_entry_that_is_gone_or_forged_with_all_its_hashes_is_found(centre: Centre) -> None:
    """The chain made anew over it, balances too: then the invoices say what is missing, or what nobody closed."""
    with tampering(centre) as connection:
        entries = connection.execute(sa.select(POSTING_ENTRY).order_by(POSTING_ENTRY.c.id)).mappings().all()
        for kind in ("credit", "purchase", "tax", "draw", "charge"):
            row = next(each for each in reversed(entries) if each["kind"] == kind)
            connection.exec_driver_sql("SAVEPOINT one")
            connection.execute(POSTING.delete().where(POSTING.c.entry_id == row["id"]))
            connection.execute(POSTING_ENTRY.delete().where(POSTING_ENTRY.c.id == row["id"]))
            _chain_anew(connection)
            found = journal_findings(connection)
            assert found, kind
            assert not any(where.startswith("balance") for where in found)
            wanted = row["allocation_id"] if kind == "charge" else row["key"]
            assert any(wanted in where for where in found), (kind, found)
            connection.exec_driver_sql("ROLLBACK TO one")
            connection.exec_driver_sql("SAVEPOINT one")
            connection.execute(
                POSTING.update().where(POSTING.c.entry_id == row["id"]).values(micros=POSTING.c.micros * 2)
            )
            _chain_anew(connection)
            assert any(wanted in where for where in journal_findings(connection)), kind
            connection.exec_driver_sql("ROLLBACK TO one")
        forged = next(each for each in entries if each["kind"] == "credit")
        key = f"{forged['key']}/more"
        legs = connection.execute(sa.select(POSTING).where(POSTING.c.entry_id == forged["id"])).mappings().all()
        connection.execute(POSTING.insert(), [{**leg, "entry_id": len(entries) + 1} for leg in legs])
        connection.execute(POSTING_ENTRY.insert(), {**forged, "id": len(entries) + 1, "key": key, "at_ms": 7})
        _chain_anew(connection)
        found = journal_findings(connection)
        assert f"entry {key}" in found
        assert any(where.startswith("what ") for where in found), found


def _chain_anew(connection: Connection) -> None:
    """Writes the journal's chain over what it says now, as somebody with the whole database could."""
    last, previous = 0, GENESIS_HASH
    entries = connection.execute(sa.select(POSTING_ENTRY).order_by(POSTING_ENTRY.c.id)).mappings().all()
    for row in entries:
        legs = connection.execute(
            sa.select(POSTING).where(POSTING.c.entry_id == row["id"]).order_by(POSTING.c.place)
        ).mappings()
        last += 1
        values = {"id": last, "previous_hash": previous}
        previous = entry_hash({**row, **values}, [dict(leg) for leg in legs])
        connection.execute(POSTING.update().where(POSTING.c.entry_id == row["id"]).values(entry_id=last))
        connection.execute(
            POSTING_ENTRY.update().where(POSTING_ENTRY.c.id == row["id"]).values(**values, hash=previous)
        )
    move_head(connection, POSTING_ENTRY, last, previous)
    rebuild(connection)
