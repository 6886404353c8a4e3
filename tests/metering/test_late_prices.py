"""What becomes known late where prices are not a number an hour: other jobs and monthly fees move with it."""

from decimal import Decimal
from pathlib import Path

import pytest

from metering.core.tariff import parse_price_book
from metering.keeping import KeepBudgets
from metering.ledger import publish
from metering.settling import correct_period
from metering.verify import verify_export
from scheduler.core.ending import COMPLETED, EvidenceKind
from scheduler.core.model import AllocationId
from scheduler.core.occupancy import Evidence
from scheduler.store.evidence import Said
from tests.metering.builders import HOUR_MS
from tests.metering.centre import Centre
from tests.metering.test_periods import A0, A1, B0, Desk, balances, close, export, proof, rows

TIERS = """
version = "tiers"
currency = "CNY"
effective = 2026-10-01T00:00:00+08:00
zone = "Asia/Shanghai"
[prices.H100]
burst = [ { from_hours = 0, price = "18.00" }, { from_hours = 5, price = "15.00" } ]
"""


@pytest.fixture
def silent(centre: Centre) -> tuple[Centre, AllocationId, int]:
    """Two GPUs used for an hour until their node went silent, then one for six hours; all of it charged."""
    centre.publish(parse_price_book(TIERS))
    lost = centre.start(A0, A1)
    centre.running(lost)
    centre.clock.advance(hours=1)
    last_ms = centre.now_ms
    centre.clock.advance(hours=2)
    centre.lost(lost, ago_ms=2 * HOUR_MS)
    centre.run(B0, hours=6)
    centre.carry_out(KeepBudgets(centre.admission))
    return centre, lost, last_ms


def late(lost: AllocationId, last_ms: int) -> Said:
    return Said("end", lost, EvidenceKind.ENDED, last_ms + 2 * HOUR_MS, Evidence.NODE, COMPLETED)


def test_a_late_end_moves_other_jobs_to_another_tier_and_the_journal_follows(
    silent: tuple[Centre, AllocationId, int],
) -> None:
    centre, lost, last_ms = silent
    assert balances(centre)["revenue"] == -(5 * 18 + 3 * 15) * 10**6
    assert proof(centre).is_proved, proof(centre).findings
    centre.learn(late(lost, last_ms))
    centre.carry_out(KeepBudgets(centre.admission))
    assert balances(centre)["revenue"] == -(5 * 18 + 7 * 15) * 10**6
    assert proof(centre).is_proved, proof(centre).findings


def test_a_late_end_in_a_closed_period_is_corrected_for_the_jobs_that_it_moves_too(
    silent: tuple[Centre, AllocationId, int], tmp_path: Path
) -> None:
    centre, lost, last_ms = silent
    centre.clock.advance(hours=24 * 5)
    close(centre)
    centre.learn(late(lost, last_ms))
    assert correct_period(Desk(centre), "Asia/Shanghai", "2026-10") > 2
    centre.carry_out(KeepBudgets(centre.admission))
    assert proof(centre).is_proved, proof(centre).findings
    centre.clock.advance(hours=1)
    found = rows(export(centre, tmp_path / "november", "2026-11"))
    assert (
        sum(Decimal(row["amount"]) for row in found) == (5 * 18 + 7 * 15) - (5 * 18 + 3 * 15) + 2 * 18
    )  # and the credit
    assert balances(centre) == {
        "receivable": (5 * 18 + 7 * 15) * 10**6,
        "revenue": -(5 * 18 + 7 * 15) * 10**6,
        "sla_expense": 0,
    }


FEES = """
version = "{0}"
currency = "CNY"
effective = {1}T00:00:00+08:00
zone = "Asia/Shanghai"
[prices.H100]
guaranteed = "10.00"
burst = "18.00"
[[reserved]]
account = "acme/vision"
class = "H100"
gpus = 2
monthly = "{2}"
"""


def test_a_book_that_reaches_back_corrects_the_monthly_fee_of_a_closed_period(centre: Centre, tmp_path: Path) -> None:
    centre.publish(parse_price_book(FEES.format("dear", "2026-10-01", "7440")))
    centre.run(A0)
    centre.clock.advance(hours=24 * 5)
    close(centre)
    with centre.database.write() as connection:
        publish(connection, parse_price_book(FEES.format("cheap", "2026-10-17", "3720")), centre.now_ms, "agreed anew")
    assert not proof(centre).is_proved
    desk = Desk(centre)
    assert correct_period(desk, "Asia/Shanghai", "2026-10") == 4  # the hour of use leaves one book for the other
    assert correct_period(desk, "Asia/Shanghai", "2026-10") == 0
    centre.carry_out(KeepBudgets(centre.admission))
    assert proof(centre).is_proved, proof(centre).findings
    centre.clock.advance(hours=1)
    found = export(centre, tmp_path / "november", "2026-11")
    fees = [
        row for row in rows(found) if row["line_type"] == "correction" and row["package_id"].startswith("reserved/")
    ]
    # 16 of 31 days at 7440 and 15 at 3720, where 7440 were asked.
    assert sorted(Decimal(row["amount"]) for row in fees) == [Decimal(-3600), Decimal(1800)]
    charges = [row for row in rows(found, "focus_") if row["ChargeClass"] == "Correction" and not row["x_JobId"]]
    assert {(row["ChargeCategory"], row["CommitmentDiscountId"]) for row in charges} == {
        ("Purchase", fees[0]["package_id"])
    }
    assert verify_export(tmp_path / "november").is_proved
    balance = balances(centre)
    assert balance["revenue"] == -18 * 10**6  # fees are on invoices, not in the journal


def test_a_tenant_with_nothing_but_a_monthly_fee_has_a_sealed_bill_of_its_own(centre: Centre, tmp_path: Path) -> None:
    centre.tenant("initech/lab", "Initech")
    centre.publish(parse_price_book(FEES.format("fees", "2026-10-01", "7440").replace("acme/vision", "initech/lab")))
    centre.run(A0)
    centre.clock.advance(hours=24 * 5)
    close(centre)
    found = rows(export(centre, tmp_path / "bill", "2026-10", "initech"))
    assert {row["line_type"] for row in found} == {"reserved", "reserved_unused"}
    assert sum(Decimal(row["amount"]) for row in found) == Decimal(7440)
    assert "initech" not in {row["tenant_id"] for row in rows(export(centre, tmp_path / "acme", "2026-10", "acme"))}
    assert proof(centre).is_proved, proof(centre).findings
