"""The checker of FOCUS: what the specification allows passes, and each known way to break it is found."""

import csv
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from metering.csv_files import BOM
from metering.export import export_usage
from metering.focus import FocusTerms
from metering.focus_check import ONE_PARENT, FocusChecker, check_focus
from metering.focus_columns import FOCUS_1_2, VERSIONS, Kind, columns_of
from metering.focus_rules import REPEATING_RULES, VARYING, VARYING_RULES, cell_breaks
from scheduler.core.model import DeviceId
from tests.databases import opened_sqlite
from tests.metering.builders import NOON_MS, book
from tests.metering.centre import SHANGHAI, Centre

Rows = list[dict[str, str]]
A0, A1 = DeviceId("GPU-a-0"), DeviceId("GPU-a-1")
_NO_QUANTITY = {
    **dict.fromkeys(("ConsumedQuantity", "ConsumedUnit", "PricingQuantity", "PricingUnit"), ""),
    **dict.fromkeys(("ListUnitPrice", "ContractedUnitPrice", "PricingCategory"), ""),
    **dict.fromkeys(("PricingCurrencyContractedUnitPrice", "PricingCurrencyListUnitPrice"), ""),
    **dict.fromkeys(("SkuId", "SkuMeter", "SkuPriceId", "SkuPriceDetails"), ""),
}
_DISCOUNT = {
    "CommitmentDiscountId": "package-1",
    "CommitmentDiscountName": "一千小时",
    "CommitmentDiscountType": "Prepaid GPU-Hours",
    "CommitmentDiscountCategory": "Usage",
    "CommitmentDiscountUnit": "GPU-Hours",
    "CommitmentDiscountQuantity": "1.000000000",
}


@pytest.fixture
def rows(sound: Rows) -> Rows:
    """Rows of the test's own."""
    return [dict(row) for row in sound]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """Usage, tax and rounding as exported; a package bought and drawn from, a reservation, a credit, a correction."""
    folder = tmp_path_factory.mktemp("focus")
    with opened_sqlite(folder / "turnstile.db") as database:
        return _made(Centre(database), folder)


def _made(centre: Centre, tmp_path: Path) -> Rows:
    centre.tenant("acme/vision", "视觉组")
    centre.tenant("globex/nlp")
    centre.node("a")
    centre.publish(book(prices={"burst": "17.333333"}, tax="0.06"))
    centre.run(A0, account="acme/vision", name="夜间")
    centre.run(A1, account="globex/nlp")
    with centre.read() as connection:
        export_usage(connection, tmp_path / "out", NOON_MS, centre.now_ms, SHANGHAI, focus=FocusTerms(issuer="园区"))
    (path,) = (tmp_path / "out").glob("focus_*")
    with path.open(encoding="utf-8", newline="") as stream:
        made = list(csv.DictReader(stream))
    usage = next(row for row in made if row["ChargeCategory"] == "Usage")
    tax = next(row for row in made if row["ChargeCategory"] == "Tax")
    purchase = _DISCOUNT | {
        "ChargeCategory": "Purchase",
        "ChargeFrequency": "One-Time",
        "ConsumedQuantity": "",
        "ConsumedUnit": "",
        "EffectiveCost": "0.000000",
        "PricingCurrencyEffectiveCost": "0.000000",
        "x_LedgerEntryId": "purchase",
    }
    drawn = _DISCOUNT | {"CommitmentDiscountStatus": "Used", "BilledCost": "0.000000", "x_LedgerEntryId": "drawn"}
    reserved = {
        "CapacityReservationId": "reservation-1",
        "CapacityReservationStatus": "Unused",
        "x_LedgerEntryId": "reserved",
        "ResourceId": "",
        "ResourceName": "",
        "ResourceType": "",
    }
    credit = _NO_QUANTITY | {"ChargeCategory": "Credit", "BilledCost": "-1.000000", "x_LedgerEntryId": "credit"}
    correction = {
        "ChargeClass": "Correction",
        "BilledCost": "-0.500000",
        "ConsumedQuantity": "-100.000",
        "PricingQuantity": "-0.027777778",
        "x_LedgerEntryId": "correction",
        "x_CorrectsEntryId": "A",
        "ChargePeriodStart": "2026-08-30T16:00:00Z",
        "ChargePeriodEnd": "2026-08-31T16:00:00Z",
    }
    made += [usage | purchase, usage | drawn, usage | reserved, tax | credit, usage | correction]
    return made


def text_of(rows: Rows, columns: tuple[str, ...] | None = None) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, columns or list(rows[0]), lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def broken_by(content: bytes, folder: Path) -> set[str]:
    path = folder / "mutant.csv"
    path.write_bytes(content)
    report = check_focus(path)
    assert report.failures >= len(report.breaks)
    return {each.rule for each in report.breaks}


def first(category: str, **changes: str) -> Callable[[Rows], None]:
    """Returns a mutation of the first row of a category."""

    def mutate(rows: Rows) -> None:
        next(row for row in rows if row["ChargeCategory"] == category).update(changes)

    return mutate


def off_by_a_cent(rows: Rows) -> None:
    rows[0]["ListCost"] = "17.343333"


def with_separator(rows: Rows) -> None:
    rows[0]["BilledCost"] = "1,017.333333"


def twice(rows: Rows) -> None:
    rows.insert(3, dict(rows[0]))


def second_currency(rows: Rows) -> None:
    rows[1].update(BillingCurrency="USD", PricingCurrency="USD")


# The rows of the mutation table: 34 ways to break a file that the specification forbids, and which rule finds each.
CELLS: list[tuple[str, Callable[[Rows], None], str]] = [
    ("a decimal without a point", first("Usage", PricingQuantity="1"), "PricingQuantity.decimal"),
    ("a unit in lower case", first("Usage", PricingUnit="gpu-hours"), "PricingUnit.unit"),
    ("a unit of a singular time", first("Usage", PricingUnit="GPU-hour"), "PricingUnit.unit"),
    ("a unit in another script", first("Usage", PricingUnit="卡时"), "PricingUnit.unit"),
    ("a unit without its hyphen", first("Usage", PricingUnit="GPU Hours"), "PricingUnit.unit"),
    ("a value in the wrong case", first("Usage", ChargeCategory="usage"), "ChargeCategory.allowed"),
    ("a correction in the wrong case", first("Usage", ChargeClass="correction"), "ChargeClass.allowed"),
    ("a currency that is none", first("Usage", BillingCurrency="RMB"), "BillingCurrency.currency"),
    (
        "a consumed quantity on a purchase",
        first("Purchase", ConsumedQuantity="3600.000", ConsumedUnit="GPU-Seconds"),
        "ConsumedQuantity.charge",
    ),
    (
        "a priced quantity on tax",
        first("Tax", PricingQuantity="1.000000000", PricingUnit="GPU-Hours"),
        "PricingQuantity.charge",
    ),
    ("a sub-account's name without its id", first("Tax", SubAccountName="视觉组"), "SubAccountName.account"),
    ("one SKU price of two SKUs", lambda rows: rows[1].update(SkuId="gpu.h200.whole"), "SkuPriceId.parent"),
    (
        "one service in two categories",
        lambda rows: rows[1].update(ServiceCategory="Storage", ServiceSubcategory=""),
        "ServiceName.category",
    ),
    ("a purchase by usage", first("Purchase", ChargeFrequency="Usage-Based"), "ChargeFrequency.purchase"),
    ("a negative unit price", first("Usage", ListUnitPrice="-17.333333"), "ListUnitPrice.negative"),
    ("a separator of thousands", with_separator, "BilledCost.decimal"),
    ("a sign of currency", first("Usage", BilledCost="¥17.333333"), "BilledCost.decimal"),
    ("an issuer that is not the provider", first("Usage", InvoiceIssuerName="别人"), "BilledCost.issuer"),
    (
        "a time with an offset",
        first("Usage", ChargePeriodStart="2026-10-31T00:00:00+08:00"),
        "ChargePeriodStart.datetime",
    ),
    (
        "a time with milliseconds",
        first("Usage", ChargePeriodEnd="2026-10-31T16:00:00.123Z"),
        "ChargePeriodEnd.datetime",
    ),
    ("a time without Z", first("Usage", BillingPeriodStart="2026-09-30T16:00:00"), "BillingPeriodStart.datetime"),
    ("a time with a blank", first("Usage", BillingPeriodEnd="2026-11-02 01:00:00"), "BillingPeriodEnd.datetime"),
    ("tags that nest", first("Usage", Tags='{"team": {"name": "vision"}}'), "Tags.json"),
    ("a list cost off by a cent", off_by_a_cent, "ListCost.product"),
    (
        "a subcategory of another category",
        first("Usage", ServiceSubcategory="Block Storage"),
        "ServiceSubcategory.parent",
    ),
    ("a charge twice", twice, "x_LedgerEntryId.unique"),
    (
        "a charge outside of its billing period",
        first("Usage", ChargePeriodEnd="2026-11-01T16:00:00Z"),
        "ChargePeriodStart.billing_period",
    ),
    ("one price in two currencies", second_currency, "BillingCurrency.price"),
    # The rest of our rules: none is there that nothing can break.
    (
        "a billing period that ends first",
        first("Usage", BillingPeriodEnd="2020-01-01T00:00:00Z"),
        "BillingPeriodEnd.order",
    ),
    ("a charge that ends first", first("Usage", ChargePeriodEnd="2020-01-01T00:00:00Z"), "ChargePeriodEnd.order"),
    ("an account without a type", first("Usage", BillingAccountType=""), "BillingAccountType.account"),
    ("a sub-account without a type", first("Usage", SubAccountType=""), "SubAccountType.account"),
    (
        "a sub-account of two accounts",
        lambda rows: rows[1].update(SubAccountId=rows[0]["SubAccountId"]),
        "SubAccountId.parent",
    ),
    (
        "a status of no reservation",
        first("Usage", CapacityReservationStatus="Used"),
        "CapacityReservationStatus.reservation",
    ),
    ("a reservation without a status", first("Usage", CapacityReservationId="r"), "CapacityReservationStatus.usage"),
    (
        "a commitment without a category",
        first("Purchase", CommitmentDiscountCategory=""),
        "CommitmentDiscountCategory.discount",
    ),
    ("a commitment without a type", first("Purchase", CommitmentDiscountType=""), "CommitmentDiscountType.discount"),
    ("a name of no commitment", first("Usage", CommitmentDiscountName="p"), "CommitmentDiscountName.discount"),
    (
        "a purchase that is used",
        first("Purchase", CommitmentDiscountStatus="Used"),
        "CommitmentDiscountStatus.discount",
    ),
    (
        "a commitment's quantity without a unit",
        first("Purchase", CommitmentDiscountUnit=""),
        "CommitmentDiscountQuantity.discount",
    ),
    ("what a purchase cost told twice", first("Purchase", EffectiveCost="1.000000"), "EffectiveCost.purchase"),
    ("usage without a pricing category", first("Usage", PricingCategory=""), "PricingCategory.charge"),
    ("usage without a SKU", first("Usage", SkuId=""), "SkuId.charge"),
    ("usage without a SKU price", first("Usage", SkuPriceId=""), "SkuPriceId.charge"),
    ("a SKU price of no SKU", first("Credit", SkuPriceId="p"), "SkuPriceId.sku"),
    ("a meter of no SKU", first("Credit", SkuMeter="m"), "SkuMeter.sku"),
    ("details of no SKU price", first("Credit", SkuPriceDetails="{}"), "SkuPriceDetails.price"),
    ("a key of nobody's", first("Usage", SkuPriceDetails='{"Colour": "red"}'), "SkuPriceDetails.keys"),
    ("one SKU price with two details", lambda rows: rows[1].update(SkuPriceDetails="{}"), "SkuPriceDetails.same"),
    ("a region's name without its id", first("Usage", RegionName="Park"), "RegionName.region"),
    ("a negative contracted price", first("Usage", ContractedUnitPrice="-1.0"), "ContractedUnitPrice.negative"),
    ("usage without a list price", first("Usage", ListUnitPrice=""), "ListUnitPrice.charge"),
    ("usage without a contracted price", first("Usage", ContractedUnitPrice=""), "ContractedUnitPrice.charge"),
    (
        "another price in the same currency",
        first("Usage", PricingCurrencyListUnitPrice="1.0"),
        "PricingCurrency.prices",
    ),
    (
        "another cost in the same currency",
        first("Usage", PricingCurrencyEffectiveCost="1.0"),
        "PricingCurrencyEffectiveCost.currency",
    ),
    ("a consumed quantity without a unit", first("Usage", ConsumedUnit=""), "ConsumedUnit.quantity"),
    ("a negative consumption", first("Usage", ConsumedQuantity="-3600.000"), "ConsumedQuantity.negative"),
    ("seconds that are not the hours", first("Usage", ConsumedQuantity="3601.000"), "ConsumedQuantity.hours"),
    ("a priced quantity without a unit", first("Usage", PricingUnit=""), "PricingUnit.quantity"),
    ("a contracted cost off by a cent", first("Usage", ContractedCost="17.343333"), "ContractedCost.product"),
    ("a resource's name without its id", first("Tax", ResourceName="x"), "ResourceName.resource"),
    ("a resource without a type", first("Usage", ResourceType=""), "ResourceType.resource"),
]
HEADERS: list[tuple[str, Callable[[Rows], bytes], str]] = [
    (
        "a missing column",
        lambda rows: text_of(rows, tuple(name for name in rows[0] if name != "BilledCost")).encode(),
        "header.missing",
    ),
    (
        "a column of ours without x_",
        lambda rows: text_of(rows).replace("x_JobId", "JobId", 1).encode(),
        "header.custom",
    ),
    (
        "columns of ours first",
        lambda rows: text_of(rows, tuple(sorted(rows[0], key=lambda name: not name.startswith("x_")))).encode(),
        "header.custom_last",
    ),
    ("a byte order mark", lambda rows: BOM + text_of(rows).encode(), "file.bom"),
    ("a file in GBK", lambda rows: text_of(rows).encode("gbk"), "file.csv"),
]


def test_everything_that_we_write_or_will_write_is_sound(rows: Rows, tmp_path: Path) -> None:
    categories = {row["ChargeCategory"] for row in rows}
    assert categories == {"Usage", "Tax", "Adjustment", "Purchase", "Credit"}
    assert broken_by(text_of(rows).encode(), tmp_path) == set()


@pytest.mark.parametrize(("mutate", "rule"), [case[1:] for case in CELLS], ids=[case[0] for case in CELLS])
def test_a_row_that_breaks_the_specification_is_found(
    rows: Rows, tmp_path: Path, mutate: Callable[[Rows], None], rule: str
) -> None:
    mutate(rows)
    assert rule in broken_by(text_of(rows).encode(), tmp_path)


@pytest.mark.parametrize(("content", "rule"), [case[1:] for case in HEADERS], ids=[case[0] for case in HEADERS])
def test_a_file_that_breaks_the_specification_is_found(
    rows: Rows, tmp_path: Path, content: Callable[[Rows], bytes], rule: str
) -> None:
    assert rule in broken_by(content(rows), tmp_path)


def test_an_invoice_that_is_not_the_sum_of_its_charges_is_told_by_the_sums(rows: Rows, tmp_path: Path) -> None:
    path = tmp_path / "sums.csv"
    path.write_text(text_of(rows), encoding="utf-8")
    before = dict(check_focus(path).billed_micros)
    rows[0]["BilledCost"] = "17.343333"  # a cent more than its line; nothing in the row itself is wrong
    path.write_text(text_of(rows), encoding="utf-8")
    report = check_focus(path)
    assert report.is_sound
    key = (rows[0]["BillingAccountId"], "CNY")
    assert report.billed_micros[key] - before[key] == 10_000


def test_what_the_specification_allows_passes_though_others_refuse_it(rows: Rows, tmp_path: Path) -> None:
    rows[0].update(BillingAccountName="甲公司", ResourceName="none", ListCost="1733333.3E-5")
    assert broken_by(text_of(rows).encode(), tmp_path) == set()


@pytest.mark.parametrize("column", [column.name for column in FOCUS_1_2 if not column.is_nullable])
def test_a_null_where_none_is_allowed_is_found(rows: Rows, tmp_path: Path, column: str) -> None:
    rows[0][column] = ""
    assert f"{column}.null" in broken_by(text_of(rows).encode(), tmp_path)


def test_a_word_for_null_or_a_formula_is_found() -> None:
    region = next(column for column in FOCUS_1_2 if column.name == "RegionId")
    assert cell_breaks(region, "Not Applicable") == ["RegionId.placeholder"]
    assert cell_breaks(region, "=1+1") == ["RegionId.formula"]
    assert cell_breaks(region, "cn-park-1") == []


def test_columns_out_of_order_twice_or_cut_short_are_found(rows: Rows, tmp_path: Path) -> None:
    swapped = list(rows[0])
    swapped[0], swapped[1] = swapped[1], swapped[0]
    assert "header.order" in broken_by(text_of(rows, tuple(swapped)).encode(), tmp_path)
    assert "header.unique" in broken_by(text_of(rows).replace("x_JobId", "x_UserId", 1).encode(), tmp_path)
    assert "file.cells" in broken_by(text_of(rows).encode() + b"1,2\n", tmp_path)
    assert "header.missing" in broken_by(b"", tmp_path)


class Watched(dict[str, str]):
    """A row that notes which of its columns were read."""

    def __init__(self, cells: dict[str, str]) -> None:
        super().__init__(cells)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> str:
        self.read.add(name)
        return super().__getitem__(name)

    def __iter__(self) -> Iterator[str]:
        return super().__iter__()


def test_rules_that_are_proved_once_a_combination_read_no_column_that_varies(rows: Rows) -> None:
    for cells in rows:
        watched = Watched(cells)
        assert all(rule.holds(watched) for rule in REPEATING_RULES)
        assert not watched.read & VARYING


def test_each_rule_between_columns_and_rows_has_a_case_that_breaks_it() -> None:
    ours = {rule.id for rule in (*REPEATING_RULES, *VARYING_RULES)} | {rule for _, _, rule, _ in ONE_PARENT}
    assert ours - {rule for *_, rule in CELLS} == set()


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_each_column_refuses_what_its_kind_does_not_allow(version: str) -> None:
    """A cell of the wrong kind in every column, by itself: no column is left unlooked at."""
    wrong = {
        Kind.TEXT: ("   ", "placeholder"),
        Kind.DECIMAL: ("1 000.0", "decimal"),
        Kind.DATETIME: ("2026-11-31T00:00:00Z", "datetime"),
        Kind.JSON: ("[1]", "json"),
        Kind.CURRENCY: ("cny", "currency"),
        Kind.UNIT: ("hours-GPU", "unit"),
    }
    for column in VERSIONS[version]:
        cell, word = wrong[column.kind] if not column.allowed else ("Nonsense", "allowed")
        assert cell_breaks(column, cell) == [f"{column.name}.{word}"]
        assert (cell_breaks(column, "") == []) == column.is_nullable


def test_ids_of_rules_are_unique_and_there_are_enough_of_them() -> None:
    ids = [rule.id for rule in (*REPEATING_RULES, *VARYING_RULES)]
    assert len(ids) == len(set(ids))
    kinds = {f"{column.name}.{column.kind}" for column in FOCUS_1_2}
    nulls = {f"{column.name}.null" for column in FOCUS_1_2 if not column.is_nullable}
    assert len(ids) + len(kinds) + len(nulls) > 60


def test_a_break_is_found_again_after_sound_rows_like_it(rows: Rows) -> None:
    checker = FocusChecker(columns_of("1.2"))
    good = [rows[0][name] for name in columns_of("1.2")]
    bad = [rows[0][name] if name != "ServiceCategory" else "Storage" for name in columns_of("1.2")]
    for cells in (good, good, bad, good, bad):
        checker.row(cells)
    found = [each.where for each in checker.report.breaks if each.rule == "ServiceSubcategory.parent"]
    assert found == ["row 3", "row 5"]
