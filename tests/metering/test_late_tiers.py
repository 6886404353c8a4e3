"""Late evidence about one job where prices depend on volume: what other jobs cost moves with it, and is charged."""

from decimal import Decimal
from pathlib import Path

import pytest

from metering.core.tariff import parse_price_book
from metering.keeping import KeepBudgets
from metering.settling import correct_period
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
