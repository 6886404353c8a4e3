"""Bands, tiers, contracts, packages, fees, least charges, surcharges: from the store to files that prove themselves."""

import csv
from collections import defaultdict
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest

from metering.core.pricebook import PriceBook
from metering.core.quantity import UNIT_MS_PER_GPU_HOUR
from metering.core.tariff import parse_price_book
from metering.core.timetable import band_at, week_of
from metering.core.volume import Package
from metering.focus_check import check_focus
from metering.ledger import publish
from metering.packages import sell
from metering.tables import PACKAGE
from metering.verify import Check, verify, verify_export
from scheduler.clock import parse_utc_ms
from scheduler.core.model import AccountId, Booking, DeviceId, GpuClass
from scheduler.refusal import RefusalCode, Refused
from tests.metering.builders import DAY_MS, HOUR_MS, NOON_MS, book
from tests.metering.centre import SHANGHAI, Centre

A0, A1, B0, B1 = (DeviceId(f"GPU-{place}") for place in ("a-0", "a-1", "b-0", "b-1"))
RICH = """
version = "rich"
currency = "CNY"
effective = 2026-10-01T00:00:00+08:00
tax_rate = "0.06"
zone = "Asia/Shanghai"
minimum_seconds = 600
increment_seconds = 60

[[bands]]
name = "day"
from = "08:00"
to = "22:00"

[[bands]]
name = "night"
from = "22:00"
to = "08:00"

[prices.H100]
guaranteed = "10.00"
spot = "6.00"

[prices.H100.burst]
night = "9.00"
day = [
  { from_hours = 0, price = "18.00" },
  { from_hours = 5, price = "15.50" },
]

[energy]
H100 = "0.40"

[[contracts]]
tenant = "globex"
discount = "0.10"
from = 2026-10-31T13:00:00+08:00

[[contracts]]
tenant = "acme"
[contracts.prices.H100]
spot = "5.00"

[[reserved]]
account = "acme/vision"
class = "H100"
gpus = 1
monthly = "7440.00"
"""


def rich(**changes: object) -> PriceBook:
    return replace(parse_price_book(RICH), **changes)  # type: ignore[arg-type]


def package(hours: int = 3, name: str = "package/q4", **changes: object) -> Package:
    plain = Package(
        name, AccountId("globex"), GpuClass("H100"), hours, Decimal("30.00"), "CNY", NOON_MS, NOON_MS + DAY_MS
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


@pytest.fixture
def busy(centre: Centre) -> Centre:
    """A day and a half of every kind of use, under a book that has everything."""
    centre.publish(rich())
    with centre.database.write() as connection:
        sell(connection, package(), centre.now_ms)
    centre.run(A0, hours=3)
    centre.run(A0, A1, hours=2, booking=Booking.SPOT)
    centre.run(B0, hours=1, account="globex/nlp")
    long = centre.start(B1, account="globex/nlp")
    paid = centre.start(A0, booking=Booking.GUARANTEED)
    centre.running(long)
    centre.running(paid)
    centre.clock.advance(hours=5)
    short = centre.start(B0)
    centre.running(short)
    centre.clock.advance(seconds=61)
    centre.end(short)
    centre.clock.advance(hours=16)
    centre.end(paid)
    centre.end(long)
    return centre


def rows_of(folder: Path, what: str = "usage_lines") -> list[dict[str, str]]:
    (path,) = folder.glob(f"{what}_*.csv")
    with path.open(encoding="utf-8-sig", newline="") as stream:
        return list(csv.DictReader(stream))


def test_an_export_under_a_book_that_has_everything_proves_itself(busy: Centre, tmp_path: Path) -> None:
    busy.export(tmp_path / "out")
    rows = rows_of(tmp_path / "out")
    assert {row["line_type"] for row in rows} == {
        *("usage", "minimum", "energy", "package", "reserved", "reserved_unused", "tax"),
        *({"rounding"} & {row["line_type"] for row in rows}),
    }
    assert len({row["line_id"] for row in rows}) == len(rows)
    with busy.read() as connection:
        assert verify(connection).is_proved
        report = verify_export(tmp_path / "out", connection)
    assert report.is_proved, report.findings[:5]
    (focus,) = (tmp_path / "out").glob("focus_*.csv")
    assert check_focus(focus).is_sound


def test_each_line_is_what_a_count_second_by_second_says(busy: Centre, tmp_path: Path) -> None:
    """Every second of every billed interval has its band, tier and payer, and a price from a plain table."""
    busy.export(tmp_path / "out")
    usage = [row for row in rows_of(tmp_path / "out") if row["line_type"] == "usage"]
    week = week_of(rich().bands)
    seconds = []
    for row in usage:
        assert int(row["duration_ms"]) % 1000 == 0, "the centre's clock goes by whole seconds"
        first = parse_utc_ms(row["start_utc"])
        seconds += [
            (first + 1000 * step, row["tenant_id"], row["priority_class"], int(row["gpu_count"]), row["line_id"])
            for step in range(int(row["duration_ms"]) // 1000)
        ]
    volume: dict[str, int] = defaultdict(int)
    left = package().gpu_hours * 3600
    month: dict[str, str] = {}
    expected: dict[str, Fraction] = defaultdict(Fraction)
    by_second = defaultdict(list)
    for each in seconds:
        by_second[each[0]].append(each)
    for at_ms in sorted(by_second):
        running = by_second[at_ms]
        for tenant in sorted({each[1] for each in running}):
            ours = [each for each in running if each[1] == tenant]
            name = "2026-10" if at_ms < NOON_MS + 12 * HOUR_MS else "2026-11"
            if month.get(tenant) != name:
                month[tenant], volume[tenant] = name, 0
            volume[tenant] += sum(each[3] for each in ours)
            is_beyond = volume[tenant] > 5 * 3600
            drawn = sum(each[3] for each in ours if each[2] != "spot") if tenant == "globex" else 0
            is_paid = tenant == "globex" and 0 < drawn <= left
            left -= drawn if is_paid else 0
            for _, _, booking, gpus, line in ours:
                band = band_at(week, at_ms, SHANGHAI)
                day_price = "15.50" if is_beyond else "18.00"
                listed = {"spot": "6.00", "guaranteed": "10.00"}.get(booking, "9.00" if band == "night" else day_price)
                price = Fraction(listed)
                if tenant == "globex" and at_ms >= NOON_MS + HOUR_MS:
                    price *= Fraction(9, 10)
                if tenant == "acme" and booking == "spot":
                    price = Fraction(5)
                paid = (is_paid and booking != "spot") or booking == "guaranteed"
                expected[line] += 0 if paid else price * gpus / 3600
    for row in usage:
        assert Fraction(row["amount"]) == expected[row["line_id"]].limit_denominator(10**9), row["line_id"]
    bands = {(row["price_band"], row["unit_price"]) for row in usage if row["tenant_id"] == "acme"}
    assert {("day", "18.00"), ("day", "5.00"), ("night", "10.00")} <= bands
    assert any("/5h" in row["line_id"] for row in usage), "no tier was passed"
    assert any("/package/q4" in row["line_id"] and row["amount"] == "0.000000" for row in usage)


def test_what_a_package_and_a_fee_cost_is_told_whole_by_use_and_unused(busy: Centre, tmp_path: Path) -> None:
    busy.clock.advance(hours=24)
    busy.export(tmp_path / "out")
    focus = rows_of(tmp_path / "out", "focus")
    of_package = [row for row in focus if row["CommitmentDiscountId"] == "package/q4"]
    (purchase,) = [row for row in of_package if row["ChargeCategory"] == "Purchase"]
    assert (purchase["BilledCost"], purchase["EffectiveCost"]) == ("30.000000", "0.000000")
    assert sum(Decimal(row["EffectiveCost"]) for row in of_package) == Decimal("30.000000")
    drawn = sum(Decimal(row["CommitmentDiscountQuantity"]) for row in of_package if row is not purchase)
    assert drawn == 3
    assert {row["PricingCategory"] for row in of_package} == {"Committed"}
    fees = [row for row in focus if row["CommitmentDiscountId"].startswith("reserved/")]
    first_day = [row for row in fees if row["x_SegmentStart"] < "2026-10-31T16" and row["ChargeCategory"] == "Usage"]
    # 7,440 a month of 31 days is 10 an hour; the export begins at noon, so twelve hours of October are in it.
    assert sum(Decimal(row["EffectiveCost"]) for row in first_day) == Decimal(120)
    assert {row["CommitmentDiscountStatus"] for row in first_day} == {"Used", "Unused"}


def test_two_exports_have_the_usage_of_one_however_time_is_cut(busy: Centre, tmp_path: Path) -> None:
    busy.export(tmp_path / "whole")
    cut_ms = NOON_MS + 9 * HOUR_MS + 1234
    busy.export(tmp_path / "one", to_ms=cut_ms)
    busy.export(tmp_path / "two", from_ms=cut_ms)

    def sums(*folders: str) -> dict[str, tuple[int, int]]:
        found: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
        for folder in folders:
            for row in rows_of(tmp_path / folder):
                if row["line_type"] in {"usage", "minimum", "energy"}:
                    gpu_ms, duration = found[row["line_id"]]
                    found[row["line_id"]] = (gpu_ms + int(row["gpu_ms"]), duration + int(row["duration_ms"]))
        return found

    assert sums("whole") == sums("one", "two")


def test_a_short_job_pays_for_the_minimum_on_a_line_of_its_own(busy: Centre, tmp_path: Path) -> None:
    busy.export(tmp_path / "out")
    topped = [row for row in rows_of(tmp_path / "out") if row["line_type"] == "minimum"]
    (line,) = [row for row in topped if row["gpu_hours"] == "0.149722222"]  # 600 s less 61 s
    assert (line["gpu_ms"], line["duration_ms"], line["start_utc"]) == ("0", "0", line["start_utc"])
    assert Fraction(line["amount"]) == (Fraction(line["unit_price"]) * 539 / 3600).limit_denominator(10**6)


def test_a_tenants_export_has_its_own_fees_only(busy: Centre, tmp_path: Path) -> None:
    busy.export(tmp_path / "acme", tenant="acme")
    busy.export(tmp_path / "globex", tenant="globex")
    busy.export(tmp_path / "all")
    parts = [row for folder in ("acme", "globex") for row in rows_of(tmp_path / folder)]
    assert sorted(row["line_id"] for row in parts) == sorted(row["line_id"] for row in rows_of(tmp_path / "all"))
    assert all("acme" not in "".join(row.values()) for row in rows_of(tmp_path / "globex"))


def test_a_retroactive_book_needs_a_reason_and_keeps_it(centre: Centre) -> None:
    centre.publish(book("v1"))
    centre.run(A0)
    late = book("v2", NOON_MS, prices={"burst": "17"})
    with pytest.raises(Refused) as refused:
        centre.publish(late)
    assert (refused.value.code, "--retroactive --reason TEXT" in refused.value.tries) == (RefusalCode.POLICY, True)
    with centre.database.write() as connection:
        assert publish(connection, late, centre.now_ms, "contract 4411").retroactive_reason == "contract 4411"


def test_a_package_is_sold_once_and_not_for_what_is_over(centre: Centre) -> None:
    centre.publish()
    with centre.database.write() as connection:
        assert sell(connection, package(), centre.now_ms) == sell(connection, package(), centre.now_ms)
        for wrong in (package(4), package(name="package/late", from_ms=NOON_MS - 1), package(name="x", currency="USD")):
            with pytest.raises(Refused):
                sell(connection, wrong, centre.now_ms)


@pytest.mark.parametrize("column", [column.name for column in PACKAGE.columns if column.name != "sold_ms"])
def test_a_changed_package_is_found(busy: Centre, column: str) -> None:
    with busy.database.write() as connection:
        for name in ("package_no_update",):
            connection.exec_driver_sql(f"DROP TRIGGER {name}")
        value = connection.execute(PACKAGE.select()).mappings().one()[column]
        changed = value + 1 if isinstance(value, int) else f"{value}0"
        connection.execute(PACKAGE.update().values({column: changed}))
    with busy.read() as connection:
        findings = verify(connection).findings
    assert {finding.check for finding in findings} == {Check.PACKAGE}


def test_units_of_a_package_are_gpu_hours() -> None:
    assert package(2).unit_ms == 2 * UNIT_MS_PER_GPU_HOUR
