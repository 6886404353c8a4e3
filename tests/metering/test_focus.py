"""The FOCUS file tells what the native lines tell, in the specification's columns, and its sum is what is payable."""

import csv
import json
from collections import defaultdict
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.export import export_usage, focus_file_name
from metering.findings import Check
from metering.focus import FocusTerms, json_text, product_text
from metering.focus_check import check_focus
from metering.focus_columns import CUSTOM_COLUMNS, FOCUS_1_2, FOCUS_1_3, columns_of
from metering.manifest import Manifest
from scheduler.clock import parse_utc_ms
from scheduler.core.model import GPU_UNITS, Booking, DeviceId
from scheduler.refusal import RefusalCode, Refused
from tests.metering.builders import HOUR_MS, NOON_MS, book
from tests.metering.centre import SHANGHAI, Centre
from tests.metering.in_parts import verify_export

A0, A1, B0 = (DeviceId(f"GPU-{place}") for place in ("a-0", "a-1", "b-0"))
MIDNIGHT_MS = parse_utc_ms("2026-10-31T16:00Z")


def focus_path(folder: Path) -> Path:
    (path,) = folder.glob("focus_*.csv")
    return path


def charges_of(folder: Path) -> list[dict[str, str]]:
    with focus_path(folder).open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def native_of(folder: Path, name: str) -> list[dict[str, str]]:
    (path,) = folder.glob(name)
    with path.open(encoding="utf-8-sig", newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture
def billed(centre: Centre) -> Centre:
    """Two days over the end of a month: gangs, shares, spot, a change of prices, use without a price."""
    centre.publish(book("v1", 0, tax="0.06"))
    centre.publish(book("v2", MIDNIGHT_MS + 2 * HOUR_MS, prices={"burst": "17.333333"}, tax="0.06"))
    centre.run(A0, B0, hours=1, labels={"team": "视觉", "run": "7"})
    centre.run(A0, hours=2, account="globex/nlp", name="=SUM(A1:A9)", booking=Booking.SPOT)
    centre.running(centre.start(A0, B0))
    share = centre.start(A1, units=GPU_UNITS // 7, account="globex/nlp")
    centre.running(share)
    centre.running(centre.start(A1, units=GPU_UNITS // 2, booking=Booking.SPOT))
    centre.clock.advance(hours=20, seconds=1)
    centre.end(share)
    return centre


def exported(centre: Centre, folder: Path, terms: FocusTerms) -> Manifest:
    with centre.read() as connection:
        return export_usage(connection, folder, NOON_MS, centre.now_ms, SHANGHAI, focus=terms)


def test_the_columns_are_the_specifications_in_its_order_and_ours_come_last() -> None:
    assert (len(FOCUS_1_2), len(FOCUS_1_3)) == (57, 65)
    names = [column.name for column in FOCUS_1_2]
    assert names == sorted(names)
    assert columns_of("1.2") == (*names, *CUSTOM_COLUMNS)
    added = {column.name for column in FOCUS_1_3} - set(names)
    assert added == {
        *("AllocatedMethodId", "AllocatedMethodDetails", "AllocatedResourceId", "AllocatedResourceName"),
        *("AllocatedTags", "ContractApplied", "HostProviderName", "ServiceProviderName"),
    }


def test_a_charge_says_what_was_used_what_it_costs_and_whose_it_is(centre: Centre, tmp_path: Path) -> None:
    centre.publish(book(tax="0.06"))
    allocation = centre.start(A0, B0, memory=512 << 30, labels={"team": "视觉"})
    centre.running(allocation)
    centre.clock.advance(minutes=30)
    centre.end(allocation)
    exported(centre, tmp_path / "out", FocusTerms(issuer="Park GPU Centre"))
    charge, tax = charges_of(tmp_path / "out")
    told = {name: text for name, text in charge.items() if text}
    assert told == {
        "BilledCost": "36.000000",
        "BillingAccountId": "acme",
        "BillingAccountName": "Acme",
        "BillingAccountType": "Tenant",
        "BillingCurrency": "CNY",
        "BillingPeriodEnd": "2026-10-31T16:00:00Z",
        "BillingPeriodStart": "2026-09-30T16:00:00Z",
        "ChargeCategory": "Usage",
        "ChargeDescription": "2 x H100, burst, job 1 segment 1",
        "ChargeFrequency": "Usage-Based",
        "ChargePeriodEnd": "2026-10-31T16:00:00Z",
        "ChargePeriodStart": "2026-10-30T16:00:00Z",
        # The whole memory of two nodes is their four GPUs: half an hour of four, though two are held.
        "ConsumedQuantity": "7200.000",
        "ConsumedUnit": "GPU-Seconds",
        "ContractedCost": "36.000000",
        "ContractedUnitPrice": "18.00",
        "EffectiveCost": "36.000000",
        "InvoiceIssuerName": "Park GPU Centre",
        "ListCost": "36.000000",
        "ListUnitPrice": "18.00",
        "PricingCategory": "Standard",
        "PricingCurrency": "CNY",
        "PricingCurrencyContractedUnitPrice": "18.00",
        "PricingCurrencyEffectiveCost": "36.000000",
        "PricingCurrencyListUnitPrice": "18.00",
        "PricingQuantity": "2.000000000",
        "PricingUnit": "GPU-Hours",
        "ProviderName": "Park GPU Centre",
        "PublisherName": "Park GPU Centre",
        "ResourceId": "job/1",
        "ResourceName": "train",
        "ResourceType": "GPU Job",
        "ServiceCategory": "Compute",
        "ServiceName": "GPU Compute",
        "ServiceSubcategory": "Other (Compute)",
        "SkuId": "gpu.h100.whole",
        "SkuMeter": "GPU Allocation",
        "SkuPriceDetails": (
            '{"GpuCount": 1, "InstanceSeries": "H100", "x_Booking": "burst", "x_PriceBookVersion": "2026-10"}'
        ),
        "SkuPriceId": "gpu.h100.whole/2026-10/burst",
        "SubAccountId": "acme/vision",
        "SubAccountName": "视觉组",
        "SubAccountType": "Project",
        "Tags": '{"team": "视觉", "turnstile:booking": "burst", "turnstile:user": "mei"}',
        "x_JobId": "1",
        "x_SegmentNo": "1",
        "x_SegmentStart": "2026-10-31T04:00:00.000Z",
        "x_SegmentEnd": "2026-10-31T04:30:00.000Z",
        "x_EndReason": "completed",
        "x_UserId": "mei",
        "x_GpuModel": "H100",
        "x_GpuCount": "2",
        "x_NodeCount": "2",
        "x_GpuUuids": "GPU-a-0 GPU-b-0",
        "x_PriceBookVersion": "2026-10",
        "x_LedgerEntryId": f"{allocation}/1/2026-10-31/2026-10",
        "x_EvidenceClass": "node",
    }
    assert (tax["ChargeCategory"], tax["BilledCost"], tax["PricingQuantity"]) == ("Tax", "2.160000", "")
    assert (tax["SkuId"], tax["SubAccountId"], tax["ListUnitPrice"]) == ("", "", "")


def test_what_each_tenant_is_billed_is_what_it_pays(billed: Centre, tmp_path: Path) -> None:
    billed.export(tmp_path / "out")
    sums: dict[str, Decimal] = defaultdict(Decimal)
    for charge in charges_of(tmp_path / "out"):
        sums[charge["BillingAccountId"]] += Decimal(charge["BilledCost"])
    totals = native_of(tmp_path / "out", "invoice_totals.csv")
    assert len(totals) == 2
    assert sums == {row["tenant_id"]: Decimal(row["payable"]) for row in totals}


def test_rounding_is_an_adjustment_and_no_other_charge_is(billed: Centre, tmp_path: Path) -> None:
    billed.export(tmp_path / "out")
    native = native_of(tmp_path / "out", "usage_lines_*")
    charges = {charge["x_LedgerEntryId"]: charge for charge in charges_of(tmp_path / "out")}
    category = {"usage": "Usage", "tax": "Tax", "rounding": "Adjustment"}
    priced = [row for row in native if row["amount"]]
    assert {row["line_type"] for row in priced} == set(category)
    assert len(charges) == len(priced) < len(native)
    for row in priced:
        charge = charges[row["line_id"]]
        assert (charge["ChargeCategory"], charge["BilledCost"]) == (category[row["line_type"]], row["amount"])


def test_list_cost_is_list_price_times_priced_quantity_to_the_last_digit(billed: Centre, tmp_path: Path) -> None:
    billed.export(tmp_path / "out")
    usage = [charge for charge in charges_of(tmp_path / "out") if charge["ChargeCategory"] == "Usage"]
    for charge in usage:
        exact = Fraction(charge["ListUnitPrice"]) * Fraction(charge["PricingQuantity"])
        assert Fraction(charge["ListCost"]) == exact
        assert len(charge["ListCost"].partition(".")[2]) >= 6
    assert any(len(charge["ListCost"].partition(".")[2]) > 6 for charge in usage)


def test_spot_is_dynamic_and_text_that_a_spreadsheet_would_run_is_harmless(billed: Centre, tmp_path: Path) -> None:
    billed.export(tmp_path / "out")
    spot = [charge for charge in charges_of(tmp_path / "out") if charge["SkuPriceId"].endswith("/spot")]
    assert {charge["PricingCategory"] for charge in spot} == {"Dynamic"}
    assert {charge["ResourceName"] for charge in spot} == {"'=SUM(A1:A9)", "train"}


def test_each_charge_lies_in_the_month_of_its_day(billed: Centre, tmp_path: Path) -> None:
    billed.export(tmp_path / "out")
    starts = {charge["BillingPeriodStart"] for charge in charges_of(tmp_path / "out")}
    assert starts == {"2026-09-30T16:00:00Z", "2026-10-31T16:00:00Z"}


def test_1_3_adds_its_columns_and_nothing_else_changes(billed: Centre, tmp_path: Path) -> None:
    exported(billed, tmp_path / "old", FocusTerms())
    manifest = exported(billed, tmp_path / "new", FocusTerms("1.3", "园区"))
    assert check_focus(focus_path(tmp_path / "new")).is_sound
    assert manifest.focus_version == "1.3"
    for old, new in zip(charges_of(tmp_path / "old"), charges_of(tmp_path / "new"), strict=True):
        assert (new["ServiceProviderName"], new["HostProviderName"], new["AllocatedMethodId"]) == ("园区", "园区", "")
        names = {"InvoiceIssuerName", "ProviderName", "PublisherName"}
        assert {old[name] for name in names} == {"GPU centre"}
        assert {name: old[name] for name in old if name not in names} == {
            name: new[name] for name in old if name not in names
        }
    with billed.read() as connection:
        report = verify_export(tmp_path / "new", connection)
    assert report.is_proved, report.findings


def test_a_version_that_is_not_written_or_a_nameless_issuer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"choose one of 1\.2, 1\.3"):
        FocusTerms("1.9")
    with pytest.raises(ValueError, match="needs a name"):
        FocusTerms(issuer=" ")


def test_an_export_that_would_break_a_rule_is_refused_with_its_id_and_leaves_nothing(
    centre: Centre, tmp_path: Path
) -> None:
    centre.publish()
    centre.run(A0)
    span, nobody = (NOON_MS, centre.now_ms, SHANGHAI), FocusTerms(issuer="n/a")
    with centre.read() as connection, pytest.raises(Refused, match=r"InvoiceIssuerName\.placeholder: row 1") as refused:
        export_usage(connection, tmp_path / "out", *span, known_until_ms=centre.now_ms, focus=nobody)
    assert refused.value.code is RefusalCode.INVALID
    assert list(tmp_path.glob("*out*")) == []


def test_a_forged_charge_is_found_without_the_ledger(billed: Centre, tmp_path: Path) -> None:
    billed.export(tmp_path / "out")
    path = focus_path(tmp_path / "out")
    header, first, *rest = path.read_text("utf-8").split("\n")
    assert ",36.000000," in first
    forged = first.replace("36.000000", "35.000000", 1)  # BilledCost: no rule of a row knows better
    path.write_text("\n".join([header, forged, *rest]), encoding="utf-8", newline="")
    wheres = {(finding.check, finding.where) for finding in verify_export(tmp_path / "out").findings}
    assert (Check.FILE, f"{path.name} sha256") in wheres
    assert (Check.ARITHMETIC, f"{path.name} billed to acme in CNY") in wheres


def test_without_prices_there_are_no_charges(centre: Centre, tmp_path: Path) -> None:
    centre.run(A0)
    manifest = centre.export(tmp_path / "out")
    assert charges_of(tmp_path / "out") == []
    assert manifest.unpriced_lines == 1
    assert verify_export(tmp_path / "out").is_proved
    assert focus_path(tmp_path / "out").name == focus_file_name(manifest.period, None, 0)


@given(st.decimals(0, 10**6, places=7), st.decimals(0, 10**6, places=9))
def test_products_are_exact_and_have_six_decimals_or_more(price: Decimal, quantity: Decimal) -> None:
    text = product_text(format(price, "f"), format(quantity, "f"))
    assert Fraction(text) == Fraction(price) * Fraction(quantity)
    part = text.partition(".")[2]
    assert len(part) == 6 or (len(part) > 6 and not part.endswith("0"))


@given(st.dictionaries(st.text(max_size=5), st.text(max_size=8), max_size=3))
def test_tags_are_read_back_as_they_were_typed(labels: dict[str, str]) -> None:
    assert json.loads(json_text(labels)) == labels
