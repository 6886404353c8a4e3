"""Periods close once and in order, and their files never change; what becomes known later is a correction."""

import csv
import json
import zlib
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from decimal import Decimal
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import pytest
import sqlalchemy as sa
from prometheus_client import CollectorRegistry
from sqlalchemy.engine import Connection

from metering.closing import PeriodTerms, close_period
from metering.core.period import PeriodStatus
from metering.core.tariff import body_of
from metering.corrections import CorrectLine, differences, sealed_line
from metering.findings import Check, Report
from metering.focus import FocusTerms
from metering.keeping import KeepBudgets
from metering.ledger import publish
from metering.manifest import MANIFEST
from metering.period_watch import PeriodCollector
from metering.periods import AdvancePeriods, KnownPeriod, known_period, periods
from metering.sealed import export_known
from metering.settling import PeriodKeeper, correct_period
from metering.statements import write_statements
from metering.tables import BALANCE, CORRECTION, PERIOD_EVENT, PERIOD_FILE, PRICE_BOOK
from scheduler.clock import ManualClock
from scheduler.core.ending import COMPLETED, EvidenceKind
from scheduler.core.model import AccountId, AllocationId, DeviceId
from scheduler.core.occupancy import Evidence
from scheduler.refusal import RefusalCode, Refused
from scheduler.store.database import Database, StoreCorrupt, StoreError
from scheduler.store.evidence import Said
from scheduler.store.write import Command
from tests.metering.builders import DAY_MS, HOUR_MS, book
from tests.metering.centre import SHANGHAI, Centre
from tests.metering.in_parts import verify, verify_export
from tests.metering.tampering import assert_every_change_is_found, tampered

T = TypeVar("T")
A0, A1, B0 = DeviceId("GPU-a-0"), DeviceId("GPU-a-1"), DeviceId("GPU-b-0")
TERMS = PeriodTerms("Asia/Shanghai", 72 * HOUR_MS, FocusTerms(issuer="Park GPU Centre"))


class Desk:
    """What closing needs of the controller, in the caller's thread; it can be made to die before a command."""

    def __init__(self, centre: Centre) -> None:
        self.centre = centre
        self.database: Database = centre.database
        self.clock: ManualClock = centre.clock
        self.dies_at: int | None = None
        self.before: Callable[[], object] | None = None
        self.commands = 0

    def carry_out(self, command: Command[T]) -> Future[T]:
        self.commands += 1
        if self.commands == self.dies_at:
            raise StoreError("killed")
        if self.before is not None and type(command).__name__ == "SealPeriod":
            self.before()
        done: Future[T] = Future()
        try:
            done.set_result(self.centre.carry_out(command))
        except Refused as refused:
            done.set_exception(refused)
        return done


def close(centre: Centre, name: str = "2026-10", **named: bool) -> KnownPeriod:
    return close_period(Desk(centre), TERMS, name, "ops", **named)


def status(centre: Centre, name: str = "2026-10") -> PeriodStatus:
    with centre.read() as connection:
        return known_period(connection, name, TERMS.zone, centre.now_ms).status


def known(centre: Centre, name: str = "2026-10") -> KnownPeriod:
    with centre.read() as connection:
        return known_period(connection, name, TERMS.zone, centre.now_ms)


def export(centre: Centre, folder: Path, name: str = "2026-10", tenant: str | None = None) -> dict[str, bytes]:
    """The export of a month, by file."""
    period = known(centre, name).period
    with centre.read() as connection:
        whose = None if tenant is None else AccountId(tenant)
        export_known(connection, folder, (period.from_ms, period.to_ms), SHANGHAI, whose, known_until_ms=centre.now_ms)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def rows(files: dict[str, bytes], prefix: str = "usage_lines_") -> list[dict[str, str]]:
    (text,) = (data.decode("utf-8-sig") for name, data in files.items() if name.startswith(prefix))
    return list(csv.DictReader(text.splitlines()))


def proof(centre: Centre, period: str | None = None) -> Report:
    with centre.read() as connection:
        return verify(connection, centre.now_ms, period=period)


def balances(centre: Centre, account: str = "acme/vision") -> dict[str, int]:
    """What the journal comes to for an account, by ledger, as far as it was ever written to."""
    with centre.read() as connection:
        query = sa.select(BALANCE.c.ledger, BALANCE.c.micros).where(BALANCE.c.account == account)
        return {row.ledger: row.micros for row in connection.execute(query)}


def end_word(allocation: AllocationId, at_ms: int) -> Said:
    return Said(f"end/{at_ms}", allocation, EvidenceKind.ENDED, at_ms, Evidence.NODE, COMPLETED)


@pytest.fixture
def october(centre: Centre) -> tuple[Centre, AllocationId, int]:
    """Use on the last day of October, half of it of a node that went silent; its allocation and last evidence."""
    centre.publish(book(effective_ms=0, tax="0.06"))
    centre.run(B0, hours=1, account="globex/nlp")
    allocation = centre.start(A0, A1)
    centre.running(allocation)
    centre.clock.advance(hours=1)
    last_ms = centre.now_ms
    centre.clock.advance(hours=2)
    centre.lost(allocation, ago_ms=2 * HOUR_MS)
    return centre, allocation, last_ms


@pytest.fixture
def closed(october: tuple[Centre, AllocationId, int]) -> tuple[Centre, AllocationId, int]:
    """October closed, with an hour that the provider bears."""
    centre, allocation, last_ms = october
    centre.clock.advance(hours=24 * 4)
    close(centre)
    return centre, allocation, last_ms


# ---- open, closing, closed -------------------------------------------------------------------------------------------


def test_a_period_is_open_then_closing_then_closed(october: tuple[Centre, AllocationId, int]) -> None:
    centre, _, _ = october
    keeper = PeriodKeeper(Desk(centre), TERMS.zone)
    keeper.look()
    assert status(centre) is PeriodStatus.OPEN
    centre.clock.advance(hours=24)
    keeper.look()
    assert status(centre) is PeriodStatus.CLOSING
    centre.clock.advance(hours=72)
    assert close(centre).status is PeriodStatus.CLOSED
    keeper.look()
    assert status(centre) is PeriodStatus.CLOSED
    assert proof(centre).is_proved, proof(centre).findings


def test_periods_of_a_ledger_follow_each_other_without_a_gap(october: tuple[Centre, AllocationId, int]) -> None:
    centre, _, _ = october
    centre.clock.advance(hours=24 * 100)
    centre.carry_out(AdvancePeriods(TERMS.zone))
    with centre.read() as connection:
        found = periods(connection, "America/New_York", centre.now_ms)  # another zone in the settings changes nothing
    assert [each.period.name for each in found] == ["2026-10", "2026-11", "2026-12", "2027-01", "2027-02"]
    assert all(one.period.to_ms == two.period.from_ms for one, two in pairwise(found))
    assert {each.zone for each in found} == {"Asia/Shanghai"}


def test_closing_too_soon_is_refused_with_the_reason_and_what_to_do(
    october: tuple[Centre, AllocationId, int],
) -> None:
    centre, allocation, last_ms = october
    with pytest.raises(Refused, match="is not over: it ends at 2026-10-31T16:00:00"):
        close(centre)
    centre.clock.advance(hours=24)
    with pytest.raises(Refused, match="waits for late facts until 2026-11-03T16:00:00") as refused:
        close(centre)
    assert refused.value.tries == ("turnstile admin ledger close --period 2026-10 --early",)
    with pytest.raises(Refused, match="nobody can account for yet: GPU-a-0"):
        close(centre, is_early=True)
    centre.learn(end_word(allocation, last_ms + HOUR_MS))
    assert close(centre, is_early=True).status is PeriodStatus.CLOSED
    with pytest.raises(Refused, match="closed since"):
        close(centre)
    with pytest.raises(Refused, match="there is no period 2031-01"):
        close(centre, "2031-01")


def test_periods_close_in_order(october: tuple[Centre, AllocationId, int]) -> None:
    centre, _, _ = october
    centre.clock.advance(hours=24 * 40)
    with pytest.raises(Refused, match="2026-10 is not closed yet") as refused:
        close(centre, "2026-11")
    assert refused.value.code is RefusalCode.WRONG_STATE
    close(centre)
    close(centre, "2026-11")
    assert proof(centre).is_proved


def test_a_ledger_that_cannot_be_proved_is_not_closed(october: tuple[Centre, AllocationId, int]) -> None:
    centre, _, _ = october
    centre.clock.advance(hours=24 * 4)
    with centre.database.write() as connection:
        connection.exec_driver_sql("DROP TRIGGER occupancy_no_update")
        connection.exec_driver_sql("UPDATE occupancy SET holder = 'globex/nlp' WHERE holder = 'acme/vision'")
    with pytest.raises(Refused, match="cannot be proved"):
        close(centre)
    assert status(centre) is PeriodStatus.CLOSING


def test_what_is_unknown_still_at_the_close_is_the_providers(closed: tuple[Centre, AllocationId, int]) -> None:
    centre, _, _ = closed
    seal = known(centre).seal
    assert seal is not None
    assert seal.unresolved_unit_ms == 2 * 2 * HOUR_MS * 12_600


def test_metrics_tell_what_waits_to_be_closed_and_what_is_not_as_it_was_sealed(
    closed: tuple[Centre, AllocationId, int],
) -> None:
    centre, allocation, last_ms = closed
    desk = Desk(centre)
    keeper = PeriodKeeper(desk, TERMS.zone, TERMS.window_ms)
    registry = CollectorRegistry()
    registry.register(PeriodCollector(keeper))

    def told() -> list[float | None]:
        words = ("closing", "overdue", "uncorrected", "broken")
        return [registry.get_sample_value(f"turnstile_periods_{word}") for word in words]

    assert told() == [None] * 4
    keeper.look()
    assert told() == [0, 0, 0, 0]
    centre.learn(end_word(allocation, last_ms + HOUR_MS))
    desk.dies_at = desk.commands + 1
    with pytest.raises(StoreError):
        keeper.look()
    assert told() == [0, 0, 1, 0]
    keeper.look()
    assert told() == [0, 0, 0, 0]
    centre.clock.advance(hours=24 * 30)
    keeper.look()
    assert told() == [1, 1, 0, 0]
    with centre.database.write() as connection:
        connection.exec_driver_sql("DROP TRIGGER occupancy_no_update")
        connection.exec_driver_sql("UPDATE occupancy SET hash = 'x' || hash")
    keeper.look()
    assert told() == [1, 1, 0, 1]
    keeper.forget()
    assert told() == [None] * 4


# ---- files -----------------------------------------------------------------------------------------------------------


def test_a_closed_period_exports_the_same_bytes_for_ever(
    closed: tuple[Centre, AllocationId, int], tmp_path: Path
) -> None:
    centre, allocation, last_ms = closed
    first = export(centre, tmp_path / "first")
    assert json.loads(first[MANIFEST])["period_status"] == "closed"
    assert {row["period_status"] for row in rows(first)} == {"closed"}
    assert {row["InvoiceId"] for row in rows(first, "focus_")} == {"2026-10/acme/CNY", "2026-10/globex/CNY"}
    whose = export(centre, tmp_path / "acme", tenant="acme")
    assert {row["tenant_id"] for row in rows(whose)} == {"acme"}
    # A late fact, a new price book, a new name, and time: none of them moves a byte.
    centre.learn(end_word(allocation, last_ms + HOUR_MS))
    correct_period(Desk(centre), TERMS.zone, "2026-10")
    centre.publish(book("2026-12", centre.now_ms + DAY_MS, prices={"burst": "99"}))
    centre.tenant("acme/vision", "renamed")
    centre.clock.advance(hours=24 * 400)
    assert export(centre, tmp_path / "later") == first
    assert export(centre, tmp_path / "acme-later", tenant="acme") == whose
    for name in ("first", "acme"):
        write_statements(tmp_path / name)  # made of the sealed files, and beside them as of any export
        assert verify_export(tmp_path / name).is_proved
        with centre.read() as connection:
            assert verify_export(tmp_path / name, connection).is_proved


def test_a_closed_period_is_not_exported_otherwise_than_it_was_sealed(
    closed: tuple[Centre, AllocationId, int], tmp_path: Path
) -> None:
    centre, _, _ = closed
    period = known(centre).period
    with centre.read() as connection, pytest.raises(Refused, match="its files never change"):
        export_known(connection, tmp_path / "x", (period.from_ms, period.to_ms), SHANGHAI, focus=FocusTerms("1.3"))
    with centre.read() as connection, pytest.raises(Refused, match="has no charge of 'nobody'"):
        export_known(connection, tmp_path / "y", (period.from_ms, period.to_ms), SHANGHAI, AccountId("nobody"))


@pytest.mark.parametrize("dies_at", [1, 2, 3])
def test_a_crash_while_closing_leaves_it_closing_and_a_repeat_gives_the_same_bytes(
    october: tuple[Centre, AllocationId, int], tmp_path: Path, dies_at: int
) -> None:
    centre, _, _ = october
    centre.clock.advance(hours=24 * 4)
    centre.carry_out(AdvancePeriods(TERMS.zone))
    desk = Desk(centre)
    desk.dies_at = dies_at
    with pytest.raises(StoreError, match="killed"):
        close_period(desk, TERMS, "2026-10", "ops")
    assert status(centre) is PeriodStatus.CLOSING
    assert proof(centre).is_proved
    centre.clock.advance(hours=1)
    first = close(centre)
    assert first.seal is not None
    assert proof(centre).is_proved
    with centre.read() as connection:
        attempts = set(connection.execute(sa.select(PERIOD_FILE.c.attempt)).scalars())
    assert attempts == {first.seal.attempt}


def test_a_fact_that_comes_while_the_files_are_made_stops_the_seal(
    october: tuple[Centre, AllocationId, int],
) -> None:
    centre, allocation, last_ms = october
    centre.clock.advance(hours=24 * 4)
    desk = Desk(centre)
    desk.before = lambda: centre.learn(end_word(allocation, last_ms + HOUR_MS))
    with pytest.raises(Refused, match="became known while its files were made"):
        close_period(desk, TERMS, "2026-10", "ops")
    assert status(centre) is PeriodStatus.CLOSING
    assert close(centre).status is PeriodStatus.CLOSED


# ---- corrections -----------------------------------------------------------------------------------------------------


def test_late_evidence_about_a_closed_period_is_charged_in_the_open_one(
    closed: tuple[Centre, AllocationId, int], tmp_path: Path
) -> None:
    centre, allocation, last_ms = closed
    sealed = rows(export(centre, tmp_path / "october"))
    centre.learn(end_word(allocation, last_ms + HOUR_MS))
    assert {finding.check for finding in proof(centre).findings} == {Check.SEAL}  # until it is corrected
    keeper = PeriodKeeper(Desk(centre), TERMS.zone)
    assert keeper.look() == 2  # the time, and the credit for the loss that was none
    assert keeper.look() == 0
    assert proof(centre).is_proved, proof(centre).findings
    centre.clock.advance(hours=1)
    found = export(centre, tmp_path / "november", "2026-11")
    corrections = [each for each in rows(found) if each["line_type"] == "correction"]
    (row,) = (each for each in corrections if not each["corrects_line_id"].startswith("credit/"))
    (line,) = (each for each in sealed if each["line_id"].startswith(allocation) and each["line_type"] == "usage")
    assert row["corrects_line_id"] == line["line_id"]
    assert row["period"] == "2026-10"
    assert (row["gpu_ms"], row["amount"], row["currency"]) == (str(2 * HOUR_MS), "36.000000", "CNY")
    charges = [each for each in rows(found, "focus_") if each["ChargeClass"] == "Correction"]
    assert sorted(each["ChargeCategory"] for each in charges) == ["Credit", "Usage"]
    (charge,) = (each for each in charges if each["ChargeCategory"] == "Usage")
    assert charge["BilledCost"] == "36.000000"
    assert charge["ChargePeriodStart"] == "2026-10-30T16:00:00Z"
    assert charge["BillingPeriodStart"] == "2026-10-31T16:00:00Z"
    assert charge["x_CorrectsEntryId"] == line["line_id"]
    assert verify_export(tmp_path / "november").is_proved, verify_export(tmp_path / "november").findings
    totals = {row["tenant_id"]: row for row in rows(found, "invoice_totals")}
    assert (totals["acme"]["subtotal"], totals["acme"]["payable"]) == ("72.000000", "76.320000")


@pytest.mark.parametrize("is_charged_first", [True, False])
def test_a_correction_that_proves_wrong_is_corrected_again_and_all_of_it_is_in_the_journal_once(
    closed: tuple[Centre, AllocationId, int], *, is_charged_first: bool
) -> None:
    centre, allocation, last_ms = closed
    desk = Desk(centre)
    keep = KeepBudgets(centre.admission)
    centre.carry_out(keep)
    assert balances(centre) == {"receivable": 0, "revenue": -36_000_000, "sla_expense": 36_000_000}
    centre.learn(end_word(allocation, last_ms + HOUR_MS))
    if is_charged_first:
        centre.carry_out(keep)
    assert correct_period(desk, TERMS.zone, "2026-10") == 2
    centre.carry_out(keep)
    assert balances(centre) == {"receivable": 72_000_000, "revenue": -72_000_000, "sla_expense": 0}
    centre.learn(end_word(allocation, last_ms + HOUR_MS // 2))  # the node's earlier word
    assert correct_period(desk, TERMS.zone, "2026-10") == 1
    assert correct_period(desk, TERMS.zone, "2026-10") == 0
    with centre.read() as connection:
        found = connection.execute(sa.select(CORRECTION).order_by(CORRECTION.c.sequence)).all()
    assert [row.amount_micros for row in found] == [36_000_000, 36_000_000, -18_000_000]
    centre.carry_out(keep)
    assert balances(centre) == {"receivable": 54_000_000, "revenue": -54_000_000, "sla_expense": 0}
    assert proof(centre).is_proved, proof(centre).findings


def test_prices_that_reach_back_into_a_closed_period_become_corrections(
    closed: tuple[Centre, AllocationId, int],
) -> None:
    centre, _, _ = closed
    early = book("2026-10b", known(centre).period.from_ms, prices={"burst": "20"})
    with centre.database.write() as connection:
        values = {"effective_ms": early.effective_ms, "currency": "CNY", "sha256": early.sha256, "published_ms": 1}
        connection.execute(PRICE_BOOK.insert().values(version=early.version, body=body_of(early), **values))
    assert PeriodKeeper(Desk(centre), TERMS.zone).look() == 6  # each line leaves the old book and enters the new
    assert proof(centre).is_proved, proof(centre).findings
    with centre.read() as connection:
        found = connection.execute(sa.select(CORRECTION)).all()
    # An hour of one GPU and an hour of two, each 2 CNY more, of which the two are given back.
    assert sum(row.amount_micros for row in found) == (3 - 2) * 2_000_000
    assert all(row.corrects_line_id.endswith("/2026-10") for row in found)


def test_an_operator_corrects_one_line_for_a_reason_and_rating_again_keeps_it(
    closed: tuple[Centre, AllocationId, int], tmp_path: Path
) -> None:
    centre, allocation, last_ms = closed
    (line,) = (row for row in rows(export(centre, tmp_path / "x")) if row["line_id"].startswith(allocation))
    with centre.read() as connection:
        sealed = sealed_line(connection, known(centre), line["line_id"])
        with pytest.raises(Refused, match="has no priced line nothing"):
            sealed_line(connection, known(centre), "nothing")
    command = CorrectLine("2026-10", line["line_id"], Decimal("-1.5"), "goodwill", "ops", TERMS.zone, sealed)
    first = centre.carry_out(command)
    assert first.startswith("correction/2026-10/")
    assert centre.carry_out(command) == first, "asked again, it charges once"
    assert centre.carry_out(replace(command, reason="more of it")) != first
    for wrong in (Decimal(0), Decimal("NaN"), Decimal("0.0000001")):
        with pytest.raises(Refused, match="at most 6 decimals"):
            centre.carry_out(replace(command, amount=wrong))
    with pytest.raises(Refused, match="reason"):
        centre.carry_out(replace(command, reason=" "))
    centre.learn(end_word(allocation, last_ms + HOUR_MS))
    assert correct_period(Desk(centre), TERMS.zone, "2026-10") == 2
    assert proof(centre).is_proved


def test_what_is_open_is_not_corrected_but_put_right(october: tuple[Centre, AllocationId, int]) -> None:
    centre, _, _ = october
    with centre.read() as connection, pytest.raises(Refused, match="2026-10 is open") as refused:
        differences(connection, known(centre))
    assert any("reclassify" in each for each in refused.value.tries)
    centre.clock.advance(hours=24)
    centre.carry_out(AdvancePeriods(TERMS.zone))
    with centre.read() as connection, pytest.raises(Refused, match="2026-10 is closing"):
        differences(connection, known(centre))


# ---- tampering -------------------------------------------------------------------------------------------------------


@pytest.fixture
def corrected(closed: tuple[Centre, AllocationId, int]) -> Centre:
    centre, allocation, last_ms = closed
    centre.learn(end_word(allocation, last_ms + HOUR_MS))
    correct_period(Desk(centre), TERMS.zone, "2026-10")
    assert proof(centre).is_proved
    return centre


@pytest.mark.parametrize("table", [PERIOD_EVENT, CORRECTION], ids=lambda table: str(table.name))
def test_tampering_with_periods_and_corrections_is_found_and_named(corrected: Centre, table: sa.Table) -> None:
    assert_every_change_is_found(corrected, table)


def test_tampering_with_any_sealed_file_is_found_and_named(corrected: Centre) -> None:
    with corrected.read() as connection:
        found = connection.execute(sa.select(PERIOD_FILE)).all()
    assert len({row.path for row in found}) == 5 + 2 * 4
    for row in found:
        place = sa.and_(PERIOD_FILE.c.path == row.path, PERIOD_FILE.c.part == row.part)
        data = bytearray(zlib.decompress(row.data))
        data[len(data) // 2] ^= 1
        for values in ({"data": zlib.compress(bytes(data))}, {"data": b"no zlib"}, {"path": f"{row.path}x"}):
            change = PERIOD_FILE.update().where(place).values(values)
            report = tampered(corrected, partial(Connection.execute, statement=change), is_proved_in_parts=False)
            assert any(finding.check is Check.SEAL and row.path in finding.where for finding in report.findings)
        gone = PERIOD_FILE.delete().where(place)
        report = tampered(corrected, partial(Connection.execute, statement=gone))
        assert any(finding.check is Check.SEAL and row.path in finding.where for finding in report.findings)


def test_a_price_that_is_changed_under_a_seal_is_found(corrected: Centre) -> None:
    change = PRICE_BOOK.update().values(sha256="f" * 64)
    report = tampered(corrected, lambda connection: connection.execute(change))
    assert any(finding.check is Check.SEAL and "price book" in finding.where for finding in report.findings)


def test_a_file_of_a_closed_periods_export_that_is_changed_is_found(corrected: Centre, tmp_path: Path) -> None:
    for name in export(corrected, tmp_path / "export"):
        path = tmp_path / "export" / name
        sound = path.read_bytes()
        was, becomes = (b'"revision": 0', b'"revision": 1') if name == MANIFEST else (b"2026", b"2027")
        path.write_bytes(sound.replace(was, becomes, 1))
        with corrected.read() as connection:
            report = verify_export(tmp_path / "export", connection)
        assert any(name in finding.where for finding in report.findings), name
        path.write_bytes(sound)


def test_the_database_refuses_to_change_what_is_closed(corrected: Centre) -> None:
    for statement in (
        PERIOD_EVENT.update().values(actor="x"),
        PERIOD_EVENT.delete(),
        CORRECTION.update().values(actor="x"),
        CORRECTION.delete(),
        PERIOD_FILE.update().values(part=7),
        PERIOD_FILE.delete(),
    ):
        with pytest.raises(StoreError, match=r"append-only|sealed"), corrected.database.write() as connection:
            connection.execute(statement)
    with corrected.read() as connection:
        row = dict(connection.execute(sa.select(PERIOD_EVENT)).mappings().first() or {})
    for change in ({"period": "2026-11", "status": "closed"}, {"status": "closing"}):
        with pytest.raises(StoreCorrupt), corrected.database.write() as connection:
            connection.execute(PERIOD_EVENT.insert().values({**row, "sequence": 99, **change}))


@pytest.mark.postgres
def test_both_databases_close_and_correct_alike(postgres: str, tmp_path: Path) -> None:
    database = Database.open(postgres)
    try:
        centre = Centre(database)
        centre.tenant("acme/vision")
        centre.node("a")
        with database.write() as connection:
            publish(connection, book(effective_ms=0), centre.now_ms)
        allocation = centre.start(A0, A1)
        centre.running(allocation)
        centre.clock.advance(hours=2)
        centre.lost(allocation, ago_ms=HOUR_MS)
        last_ms = centre.now_ms - HOUR_MS
        centre.clock.advance(hours=24 * 5)
        close(centre)
        first = export(centre, tmp_path / "first")
        centre.learn(end_word(allocation, last_ms + 60_000))
        assert correct_period(Desk(centre), TERMS.zone, "2026-10") == 2
        assert export(centre, tmp_path / "later") == first
        assert proof(centre).is_proved, proof(centre).findings
        for statement in (
            PERIOD_FILE.delete(),
            PERIOD_FILE.update().values(part=3),
            PERIOD_EVENT.delete(),
            CORRECTION.delete(),
            sa.text("TRUNCATE period_file"),
            sa.text("TRUNCATE correction"),
        ):
            with pytest.raises(StoreError, match=r"append-only|sealed"), database.write() as connection:
                connection.execute(statement)
    finally:
        database.dispose()
