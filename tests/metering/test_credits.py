"""The centre's faults are given back, by the who-pays table, on lines of their own that name the incident."""

import csv
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from metering.core.credits import Fault, credit_micros, credited_span
from metering.core.journal import Ledger
from metering.core.who_pays import WHO_PAYS, WHO_PAYS_VERSIONS
from metering.journal import balance_below
from metering.keeping import KeepBudgets
from metering.statements import write_statements
from metering.tables import BALANCE
from metering.usage_report import GroupBy, Span, usage_by
from metering.verify import verify, verify_export
from scheduler.core.model import AccountId, AllocationId, DeviceId, EndReason
from scheduler.executor import Checkpointed
from scheduler.store.incidents import hits_between
from scheduler.store.observations import RecordObservations
from tests.metering.builders import HOUR_MS, NOON_MS, book
from tests.metering.centre import SHANGHAI, Centre
from tests.metering.test_periods import close, export

A0, A1 = DeviceId("GPU-a-0"), DeviceId("GPU-a-1")
ID = AllocationId("A")
MINUTE_MS = 60_000
DAY_MS = 24 * HOUR_MS


def fault(reason: EndReason | None, ran_ms: int, checkpointed_ms: int | None = None) -> Fault:
    return Fault(ID, reason, 0, ran_ms, checkpointed_ms)


@pytest.mark.parametrize(
    ("what", "span"),
    [
        (fault(EndReason.NODE_LOST, HOUR_MS), (0, HOUR_MS)),
        (fault(EndReason.GPU_ERROR, HOUR_MS, 50 * MINUTE_MS), (50 * MINUTE_MS, HOUR_MS)),
        (fault(EndReason.NODE_LOST, 3 * DAY_MS), (2 * DAY_MS, 3 * DAY_MS)),
        (fault(EndReason.NODE_LOST, HOUR_MS, HOUR_MS), None),
        (fault(EndReason.PREEMPTED, 9 * MINUTE_MS), (0, 9 * MINUTE_MS)),
        (fault(EndReason.PREEMPTED, 9 * MINUTE_MS, 5 * MINUTE_MS), (0, 9 * MINUTE_MS)),
        (fault(EndReason.PREEMPTED, 10 * MINUTE_MS), None),
        *((fault(reason, 5 * MINUTE_MS), None) for reason in (None, *EndReason) if reason not in WHO_PAYS.credits),
    ],
)
def test_what_is_given_back_follows_from_the_table(what: Fault, span: tuple[int, int] | None) -> None:
    assert credited_span(what, WHO_PAYS) == span


def test_the_first_version_of_the_table_gives_nothing_back_and_is_still_known() -> None:
    assert all(credited_span(fault(reason, 5), WHO_PAYS_VERSIONS["1"]) is None for reason in EndReason)


@given(
    st.integers(0, 10**12),
    st.lists(st.integers(0, 10**9), min_size=4, max_size=4, unique=True).map(sorted),
    st.booleans(),
)
def test_no_more_is_given_back_of_a_line_than_it_costs(amount: int, edges: list[int], is_inside: bool) -> None:
    line, span = ((edges[0], edges[3]), (edges[1], edges[2]))[:: 1 if is_inside else -1]
    back = credit_micros(amount, line, span)
    assert 0 <= back <= amount
    assert back == amount or is_inside
    assert credit_micros(amount, line, (line[1], line[1] + 5)) == 0


def lines_of_month(centre: Centre, folder: Path) -> list[dict[str, str]]:
    """The totals of October as they were sealed."""
    (data,) = (data for name, data in export(centre, folder / "month").items() if name == "invoice_totals.csv")
    return list(csv.DictReader(data.decode("utf-8-sig").splitlines()))


def lines_of(folder: Path, prefix: str = "usage_lines_") -> list[dict[str, str]]:
    (path,) = folder.glob(f"{prefix}*.csv")
    with path.open(encoding="utf-8-sig", newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture
def faulty(centre: Centre) -> tuple[Centre, AllocationId]:
    """A gang of a node that is lost after two hours, and one that is preempted after five minutes."""
    centre.publish(book(effective_ms=0, tax="0.06"))
    lost = centre.run(A0, A1, hours=2, reason=EndReason.NODE_LOST)
    hasty = centre.start(A0, account="globex/nlp")
    centre.running(hasty)
    centre.clock.advance(minutes=5)
    centre.end(hasty, EndReason.PREEMPTED)
    return centre, lost


def test_a_credit_is_a_line_that_names_the_incident_and_lowers_the_invoice(
    faulty: tuple[Centre, AllocationId], tmp_path: Path
) -> None:
    centre, lost = faulty
    manifest = centre.export(tmp_path / "out")
    credits_ = [row for row in lines_of(tmp_path / "out") if row["line_type"] == "credit"]
    assert [(row["tenant_id"], row["amount"], row["gpu_ms"]) for row in credits_] == [
        ("acme", "-72.000000", "0"),
        ("globex", "-1.500000", "0"),
    ]
    assert credits_[0]["incident_id"] == "node_lost/a/2026-10-31T06:00:00.000Z"
    assert credits_[1]["incident_id"].startswith("preempted/")
    assert credits_[0]["line_id"] == f"credit/{lost}/1/2026-10-31/2026-10"
    charges = [row for row in lines_of(tmp_path / "out", "focus_") if row["ChargeCategory"] == "Credit"]
    assert next((row["BilledCost"], row["PricingQuantity"], row["x_IncidentId"]) for row in charges) == (
        *("-72.000000", ""),
        "node_lost/a/2026-10-31T06:00:00.000Z",
    )
    assert manifest.sums["payable"] == {"CNY": "0.000000"}
    with centre.read() as connection:
        assert verify_export(tmp_path / "out", connection).is_proved


def test_a_least_charge_for_an_end_that_was_not_the_tenants_is_given_back_whole(centre: Centre, tmp_path: Path) -> None:
    centre.publish(replace(book(effective_ms=0), minimum_ms=10 * MINUTE_MS))
    for reason in (EndReason.PREEMPTED, EndReason.CANCELLED):
        hasty = centre.start(A0)
        centre.running(hasty)
        centre.clock.advance(minutes=4)
        centre.end(hasty, reason)
    centre.export(tmp_path / "out")
    found = [(row["line_type"], row["amount"]) for row in lines_of(tmp_path / "out")]
    both = [("usage", "1.200000"), ("minimum", "1.800000")]
    assert sorted(found) == sorted([*both, *both, ("credit", "-1.200000"), ("credit", "-1.800000")])
    assert verify_export(tmp_path / "out").is_proved


def test_usage_tells_what_the_files_tell(faulty: tuple[Centre, AllocationId], tmp_path: Path) -> None:
    centre, _ = faulty
    centre.export(tmp_path / "out")
    with centre.read() as connection:
        groups = usage_by(connection, Span(NOON_MS, centre.now_ms, SHANGHAI), GroupBy.PROJECT)
    assert {group.key: group.amount_micros for group in groups} == {"acme/vision": 0, "globex/nlp": 0}


def test_the_work_since_the_last_checkpoint_is_given_back(centre: Centre, tmp_path: Path) -> None:
    centre.publish(book(effective_ms=0))
    lost = centre.start(A0)
    centre.running(lost)
    centre.clock.advance(hours=3)
    centre.carry_out(RecordObservations((Checkpointed(lost, centre.now_ms),)))
    centre.clock.advance(hours=1)
    centre.end(lost, EndReason.NODE_LOST)
    centre.export(tmp_path / "out")
    (credit,) = (row for row in lines_of(tmp_path / "out") if row["line_type"] == "credit")
    assert (credit["amount"], credit["duration_ms"]) == ("-18.000000", str(HOUR_MS))


def test_what_a_tenant_owes_once_its_period_is_closed_is_what_its_invoice_asks(centre: Centre, tmp_path: Path) -> None:
    centre.publish(book(effective_ms=0, tax="0.0637"))
    centre.run(A0, A1, hours=1)
    centre.run(A0, reason=EndReason.NODE_LOST)
    centre.clock.advance(seconds=1)
    centre.run(A1, account="globex/nlp")
    centre.carry_out(KeepBudgets(centre.admission))
    centre.clock.advance(hours=24 * 5)
    close(centre)
    totals = {row["tenant_id"]: row for row in lines_of_month(centre, tmp_path)}
    with centre.read() as connection:
        for tenant, row in totals.items():
            owed = balance_below(connection, Ledger.RECEIVABLE, AccountId(tenant), "CNY")
            assert owed == int(Decimal(row["payable"]) * 10**6) > 0
        assert verify(connection, centre.now_ms).is_proved


def test_credits_are_posted_once_when_their_period_is_closed(faulty: tuple[Centre, AllocationId]) -> None:
    centre, _ = faulty
    centre.clock.advance(hours=24 * 5)
    close(centre)
    with centre.read() as connection:
        balances = {(row.ledger, row.account): row.micros for row in connection.execute(sa.select(BALANCE))}
        assert verify(connection, centre.now_ms).is_proved
    assert balances == {
        ("sla_expense", "acme/vision"): 72_000_000,
        ("receivable", "acme/vision"): -72_000_000,
        ("sla_expense", "globex/nlp"): 1_500_000,
        ("receivable", "globex/nlp"): -1_500_000,
    }


def test_one_loss_of_a_node_is_one_incident_on_the_bills_of_all_whom_it_hit(centre: Centre, tmp_path: Path) -> None:
    centre.publish(book(effective_ms=0))
    gangs = [centre.start(A0), centre.start(A1, account="globex/nlp")]
    for gang in gangs:
        centre.running(gang)
    centre.clock.advance(hours=1)
    for gang in gangs:
        centre.lost(gang, ago_ms=MINUTE_MS)
        centre.clock.advance(seconds=5)
    centre.export(tmp_path / "out")
    ids = {row["tenant_id"]: row["incident_id"] for row in lines_of(tmp_path / "out") if row["line_type"] == "credit"}
    assert ids.keys() == {"acme", "globex"}
    assert len(set(ids.values())) == 1
    names = write_statements(tmp_path / "out")
    assert all(ids["acme"] in (tmp_path / "out" / name).read_text(encoding="utf-8") for name in names)
    with centre.read() as connection:
        (hit, other) = hits_between(connection, 0, centre.now_ms)
        assert {hit.incident, other.incident} == set(ids.values())
        assert verify(connection, centre.now_ms).is_proved
