"""Usage reports are the CSV's lines added up: by any key, for any part of the account tree."""

import csv
from collections import defaultdict
from decimal import Decimal
from pathlib import Path

import pytest

from metering import usage_report
from metering.ledger import GpuWindow, write_windows
from metering.usage_report import GroupBy, Span, UsageGroup, totals_of, usage_by
from scheduler.core.model import GPU_UNITS, AccountId, Booking, DeviceId, EndReason
from scheduler.refusal import RefusalCode, Refused
from tests.metering.builders import HOUR_MS, NOON_MS, book
from tests.metering.centre import SHANGHAI, Centre

A0, A1, B0, B1 = (DeviceId(f"GPU-{place}") for place in ("a-0", "a-1", "b-0", "b-1"))
COLUMN = {
    GroupBy.PROJECT: "project_id",
    GroupBy.USER: "user_id",
    GroupBy.JOB: "job_id",
    GroupBy.GPU_MODEL: "gpu_model",
}


@pytest.fixture
def billed(centre: Centre) -> Centre:
    """Two days of three projects and two users, a share, a preemption, use without a price, a job that goes on."""
    centre.tenant("acme/nlp", "语言组")
    centre.publish(book("v1", 0, prices={"burst": "17.333333", "spot": "5.999999"}, tax="0.06"))
    centre.run(A0, B0, hours=1)
    centre.run(A0, hours=2, reason=EndReason.PREEMPTED, account="acme/nlp", user="jon", booking=Booking.SPOT)
    centre.run(B0, hours=1, account="globex/nlp", booking=Booking.GUARANTEED)
    centre.running(centre.start(A1, units=GPU_UNITS // 7, account="globex/nlp"))
    centre.running(centre.start(B1, user="jon"))
    centre.clock.advance(hours=20, seconds=7)
    return centre


def used(centre: Centre, by: GroupBy, account: str = "") -> list[UsageGroup]:
    with centre.read() as connection:
        return usage_by(connection, Span(NOON_MS, centre.now_ms, SHANGHAI), by, AccountId(account))


def lines_of(centre: Centre, folder: Path) -> list[dict[str, str]]:
    centre.export(folder)
    (path,) = folder.glob("usage_lines_*.csv")
    with path.open(encoding="utf-8-sig", newline="") as stream:
        return [row for row in csv.DictReader(stream) if row["line_type"] == "usage"]


@pytest.mark.parametrize("by", list(GroupBy))
def test_a_report_is_the_sum_of_the_lines_to_the_last_digit(billed: Centre, tmp_path: Path, by: GroupBy) -> None:
    expected: dict[tuple[str, str], list[Decimal]] = defaultdict(lambda: [Decimal(0)] * 2)
    for row in lines_of(billed, tmp_path / "out"):
        key = row["start_local"][:10] if by is GroupBy.DAY else row[COLUMN[by]]
        numbers = Decimal(row["gpu_hours"]), Decimal(row["amount"] or 0)
        expected[key, row["currency"]] = [a + b for a, b in zip(expected[key, row["currency"]], numbers, strict=True)]
    found = {
        (group.key, group.currency or ""): [
            Decimal(group.gpu_hours_nano).scaleb(-9),
            Decimal(group.amount_micros).scaleb(-6),
        ]
        for group in used(billed, by)
    }
    assert found == expected
    assert len(found) > 1 or by is GroupBy.GPU_MODEL


@pytest.mark.parametrize("by", list(GroupBy))
def test_however_lines_are_grouped_the_total_is_the_same(billed: Centre, by: GroupBy) -> None:
    assert totals_of(used(billed, by)) == totals_of(used(billed, GroupBy.PROJECT))
    assert sum(total.lines for total in totals_of(used(billed, by))) > 5


def test_an_account_has_its_subtree_and_nobody_elses(billed: Centre) -> None:
    billed.tenant("acme-labs/x")
    billed.run(A0, account="acme-labs/x")
    assert [group.key for group in used(billed, GroupBy.PROJECT, "acme")] == ["acme/nlp", "acme/vision"]
    assert [group.key for group in used(billed, GroupBy.PROJECT, "acme/nlp")] == ["acme/nlp"]
    assert used(billed, GroupBy.USER, "nobody") == []
    whole = totals_of(used(billed, GroupBy.PROJECT))
    parts = [used(billed, GroupBy.PROJECT, tenant) for tenant in ("acme", "acme-labs", "globex")]
    assert totals_of([group for part in parts for group in part]) == whole


def test_what_was_preempted_is_told(billed: Centre) -> None:
    nlp, vision = used(billed, GroupBy.PROJECT, "acme")
    assert (nlp.name, nlp.gpu_hours_nano, nlp.preempted_hours_nano) == ("语言组", 2 * 10**9, 2 * 10**9)
    assert vision.preempted_hours_nano == 0


def test_idle_time_is_told_where_it_was_measured_and_unknown_elsewhere(billed: Centre) -> None:
    windows = [
        GpuWindow(A0, NOON_MS, NOON_MS + HOUR_MS // 2, HOUR_MS // 2, utilization_mean_ppm=49_999),
        GpuWindow(A0, NOON_MS + HOUR_MS // 2, NOON_MS + HOUR_MS, HOUR_MS // 2, utilization_mean_ppm=50_000),
        GpuWindow(B0, NOON_MS - HOUR_MS // 2, NOON_MS + HOUR_MS // 2, HOUR_MS, utilization_mean_ppm=0),
        GpuWindow(A1, NOON_MS + 4 * HOUR_MS, NOON_MS + 5 * HOUR_MS, HOUR_MS, utilization_mean_ppm=0),  # a share's
        GpuWindow(B1, NOON_MS + 5 * HOUR_MS, NOON_MS + 6 * HOUR_MS, HOUR_MS),  # of unknown use
    ]
    with billed.database.write() as connection:
        write_windows(connection, windows)
    by_key = {(group.key, group.currency): group for group in used(billed, GroupBy.PROJECT)}
    vision = by_key["acme/vision", "CNY"]
    # An hour of A0 and the half of B0's window that is inside the job; the first half hour of each is idle.
    assert (vision.idle_gpu_ms, vision.measured_gpu_ms) == (HOUR_MS, HOUR_MS + HOUR_MS // 2)
    assert all(group.measured_gpu_ms == 0 for key, group in by_key.items() if key[0] != "acme/vision")


def test_use_without_a_price_is_a_group_of_its_own(billed: Centre) -> None:
    unpriced, priced = used(billed, GroupBy.PROJECT, "globex")
    assert (unpriced.currency, unpriced.amount_micros, unpriced.gpu_hours_nano) == (None, 0, 10**9)
    assert (priced.currency, priced.amount_micros > 0) == ("CNY", True)


def test_jobs_come_by_number_and_days_by_date(billed: Centre) -> None:
    jobs = [int(group.key) for group in used(billed, GroupBy.JOB)]
    assert jobs == sorted(jobs)
    assert [group.key for group in used(billed, GroupBy.DAY, "acme")] == ["2026-10-31", "2026-11-01"]


def test_a_report_of_too_many_rows_is_refused(billed: Centre, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage_report, "MOST_GROUPS", 2)
    assert len(used(billed, GroupBy.PROJECT, "acme")) == 2
    with pytest.raises(Refused, match="more than 2 rows by job") as refused:
        used(billed, GroupBy.JOB)
    assert refused.value.code is RefusalCode.TOO_LARGE
