"""Usage lines as FOCUS rows (FinOps Open Cost and Usage Specification 1.2, or 1.3 with its added columns).

Every row comes from a line of the native file, so the two cannot tell different stories: a `Usage` row for each priced
line, a `Purchase` row for each package and monthly fee and a `Usage` row for what of them was unused, a `Tax` row for
each tax line and an `Adjustment` row for each rounding line. Σ BilledCost of a tenant is what it
pays, to the last digit. Lines without a price are no charges and have no row here; the manifest counts them.

The tenant is the billing account and the project the sub-account. Quantities are of *charged* time: ConsumedQuantity in
GPU-Seconds, PricingQuantity in GPU-Hours. Charge periods are the civil day of the line in whole seconds; the exact
times stand in `x_SegmentStart` and `x_SegmentEnd`. An unknown value is an empty cell, never a word or a zero.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, tzinfo
from decimal import Decimal
from functools import lru_cache
from typing import NamedTuple

from metering.core.civil import day_start_ms, local_time, utc_text
from metering.core.fees import QUANTITY_DECIMALS, Fee
from metering.core.period import Period
from metering.core.quantity import AMOUNT_DECIMALS, divide, fixed, gpu_ms_between
from metering.core.rating import Invoice, LineType
from metering.core.usage import Slice
from metering.csv_files import harmless, harmless_name
from metering.focus_columns import CUSTOM_COLUMNS, VERSIONS, columns_of
from metering.usage_columns import USAGE_COLUMNS
from metering.usage_lines import RatedLine
from scheduler.clock import parse_utc_ms
from scheduler.core.model import Booking

SERVICE = ("Compute", "GPU Compute", "Other (Compute)")
"""Category, name and subcategory of raw GPU jobs, comparable with clouds' GPU machines."""
TAG_PREFIX = "turnstile:"
"""What tells the provider's tags from those of users (FOCUS 1.2, Tags: provider-defined keys carry a prefix)."""
_AT = {name: place for place, name in enumerate(USAGE_COLUMNS)}
_LINE_ID, _TENANT, _TENANT_NAME, _PROJECT, _PROJECT_NAME = (
    _AT[name] for name in ("line_id", "tenant_id", "tenant_name", "project_id", "project_name")
)
_USER, _JOB_NAME, _SEGMENT, _MODEL, _COUNT, _START = (
    _AT[name] for name in ("user_id", "job_name", "segment_no", "gpu_model", "gpu_count", "start_utc")
)
_BOOKING = _AT["priority_class"]
_HOURS, _SKU, _BOOK, _PRICE, _LIST_PRICE, _AMOUNT, _EFFECTIVE, _CURRENCY = (
    _AT[name]
    for name in (
        *("gpu_hours", "sku", "price_book", "unit_price", "list_price", "amount", "effective_amount", "currency"),
    )
)
_COMMITMENT, _CORRECTS, _USE, _ENERGY, _EVIDENCE = (
    _AT[name] for name in ("package_id", "corrects_line_id", "gpu_util_avg_pct", "energy_kwh", "evidence")
)


_NOTHING = fixed(0, AMOUNT_DECIMALS)
UNNAMED_ISSUER = "GPU centre"
"""Who issues invoices where nothing else is configured."""


@dataclass(frozen=True, slots=True)
class FocusTerms:
    """Which version is written, and who issues the invoices."""

    version: str = "1.2"
    issuer: str = UNNAMED_ISSUER
    """InvoiceIssuerName, ProviderName and PublisherName: the centre by its name, which is the exporter's to know."""

    def __post_init__(self) -> None:
        if self.version not in VERSIONS:
            raise ValueError(f"FOCUS {self.version!r} is not written; choose one of {', '.join(VERSIONS)}")
        if not self.issuer.strip() or not self.issuer.isprintable():
            raise ValueError("the issuer of invoices needs a name that can be read")


class FocusRows:
    """Turns lines into rows of text in the order of `columns`. Memory does not grow with their number."""

    def __init__(self, terms: FocusTerms, zone: tzinfo) -> None:
        self.columns = columns_of(terms.version)
        self._standard = tuple(column.name for column in VERSIONS[terms.version])
        self._zone = zone
        self._issuer = harmless(terms.issuer)
        self._periods = lru_cache(maxsize=4096)(self._period_cells)
        self._fixed = lru_cache(maxsize=1024)(self._fixed_cells)
        self._tags = lru_cache(maxsize=4096)(_tags_cell)
        self._varying = tuple(self.columns.index(name) for name in _VARYING)

    def usage(self, rated: RatedLine, native: Sequence[str]) -> list[str] | None:
        """Returns the row of a usage line whose native cells are given; None for a line without a price."""
        amount = native[_AMOUNT]
        if not amount:
            return None
        piece, allocation = rated.line.slice, rated.allocation
        segment, start_utc = piece.segment, native[_START]
        price, list_price, hours = native[_PRICE], native[_LIST_PRICE], native[_HOURS]
        list_cost = product_text(list_price, hours)
        contracted_cost = list_cost if price == list_price else product_text(price, hours)
        effective = native[_EFFECTIVE]
        cells = self._fixed(_kind_of(rated, native)).copy()
        for place, text in zip(
            self._varying,
            (
                *self._periods(piece.stretch.day),
                amount,
                native[_TENANT],
                native[_TENANT_NAME],
                _description(native, rated.line.type),
                native[_COMMITMENT] and hours,
                fixed(_charged_ms(piece), 3),
                contracted_cost,
                price,
                effective,
                list_cost,
                list_price,
                price,
                effective,
                list_price,
                hours,
                f"job/{segment.job}",
                native[_JOB_NAME],
                native[_PROJECT],
                native[_PROJECT_NAME],
                self._tags_of(rated),
            ),
            strict=True,
        ):
            cells[place] = text
        cells[len(self._standard) :] = (
            str(segment.job),
            native[_SEGMENT],
            start_utc,
            start_utc if piece.to_ms == piece.from_ms else utc_text(piece.to_ms),
            rated.end_word,
            native[_USER],
            native[_MODEL],
            native[_COUNT],
            str(len(allocation.grants)),
            harmless(" ".join(rated.gpus)),
            native[_BOOK],
            native[_LINE_ID],
            native[_CORRECTS],
            native[_USE],
            native[_ENERGY],
            native[_EVIDENCE],
            "",
        )
        return cells

    def of_credit(self, native: Sequence[str], day: date) -> list[str]:
        """Returns the row of a credit: of its usage's day and job, without a quantity, with the incident's id."""
        amount, currency = native[_AT["amount"]], native[_AT["currency"]]
        values = dict(zip(_PERIOD, self._periods(day), strict=True)) | self._everywhere(currency)
        values |= dict.fromkeys(("BilledCost", "ContractedCost", "EffectiveCost", "ListCost"), amount)
        values |= self._of_job(native) | {
            "PricingCurrencyEffectiveCost": amount,
            "ChargeCategory": "Credit",
            "ChargeDescription": f"Service credit: {native[_AT['incident_id']]}",
            "ChargeFrequency": "One-Time",
            "x_IncidentId": native[_AT["incident_id"]],
        }
        return [values.get(name, "") for name in self.columns]

    def of_correction(self, native: Sequence[str], charged_in: Period) -> list[str] | None:
        """Returns the row of a correction: of its line's day, billed in the period that it is charged in.

        None for a correction of time without a price.
        """
        amount, currency, hours = (native[_AT[name]] for name in ("amount", "currency", "gpu_hours"))
        if not amount:
            return None
        start_ms = parse_utc_ms(native[_AT["start_utc"]])
        charge_start, charge_end, *_ = self._periods(local_time(start_ms, self._zone).date())
        bill = _whole_seconds(charged_in.from_ms), _whole_seconds(charged_in.to_ms)
        values = dict(zip(_PERIOD, (charge_start, charge_end, *bill), strict=True)) | self._everywhere(currency)
        values |= dict.fromkeys(("BilledCost", "ContractedCost", "EffectiveCost", "ListCost"), amount)
        values |= self._of_job(native) | {
            "PricingCurrencyEffectiveCost": amount,
            "ChargeCategory": "Credit",
            "ChargeClass": "Correction",
            "ChargeDescription": f"Correction of {native[_AT['corrects_line_id']]}",
            "ChargeFrequency": "One-Time",
            "x_CorrectsEntryId": native[_AT["corrects_line_id"]],
            "x_IncidentId": native[_AT["incident_id"]],
        }
        commitment = native[_COMMITMENT]
        if not native[_AT["job_id"]]:
            kind = "Prepaid Package" if commitment.startswith("package/") else "GPU Reservation"
            values |= commitment_cells(commitment) | {
                "ChargeCategory": "Purchase",
                "EffectiveCost": _NOTHING,
                "PricingCategory": "Committed",
                "PricingCurrencyEffectiveCost": _NOTHING,
                "ResourceId": commitment,
                "ResourceType": "Commitment",
                "SkuId": native[_SKU],
                "SkuMeter": kind,
                "SkuPriceId": f"{native[_SKU]}/{commitment}/{native[_BOOK]}",
            }
        elif not native[_AT["incident_id"]]:
            sku, book = native[_AT["sku"]], native[_AT["price_book"]]
            values |= {
                "ChargeCategory": "Usage",
                "ChargeFrequency": "Usage-Based",
                "ConsumedQuantity": fixed(divide(round(Decimal(hours) * 10**9) * 3_600_000, 10**9), 3),
                "ConsumedUnit": "GPU-Seconds",
                "PricingCategory": "Standard",
                "PricingQuantity": hours,
                "PricingUnit": "GPU-Hours",
                "SkuId": sku,
                "SkuMeter": "GPU Energy" if sku.startswith("energy.") else "GPU Allocation",
                # A price has the same details wherever it is named, beside the use of this period too.
                "SkuPriceDetails": json_text(_details(native[_MODEL], native[_BOOKING], book)),
                "SkuPriceId": f"{sku}/{book}/{native[_BOOKING]}",
            }
        return [values.get(name, "") for name in self.columns]

    def _of_job(self, native: Sequence[str]) -> dict[str, str]:
        """Returns what any charge of a job says about whose it is and what it was."""
        return {
            "BillingAccountId": native[_AT["tenant_id"]],
            "BillingAccountName": native[_AT["tenant_name"]],
            "ResourceId": f"job/{native[_AT['job_id']].partition('_')[0]}",
            "ResourceName": native[_AT["job_name"]],
            "ResourceType": "GPU Job",
            "SubAccountId": native[_AT["project_id"]],
            "SubAccountName": native[_AT["project_name"]],
            "SubAccountType": "Project",
            "x_JobId": native[_AT["job_id"]],
            "x_SegmentNo": native[_AT["segment_no"]],
            "x_SegmentStart": native[_AT["start_utc"]],
            "x_SegmentEnd": utc_text(parse_utc_ms(native[_AT["end_local"]])),
            "x_EndReason": native[_AT["end_reason"]],
            "x_UserId": native[_AT["user_id"]],
            "x_GpuModel": native[_AT["gpu_model"]],
            "x_GpuCount": native[_AT["gpu_count"]],
            "x_PriceBookVersion": native[_AT["price_book"]],
            "x_LedgerEntryId": native[_AT["line_id"]],
            "x_EvidenceClass": native[_AT["evidence"]],
        }

    def of_fee(self, fee: Fee, native: Sequence[str]) -> list[str]:
        """Returns the row of a package, a monthly fee, or what of them was unused."""
        day = local_time(fee.from_ms, self._zone).date()
        is_purchase = fee.type in {LineType.PACKAGE, LineType.RESERVED}
        quantity, price = fixed(fee.quantity_nano, QUANTITY_DECIMALS), native[_PRICE]
        values = dict(zip(_PERIOD, self._periods(day), strict=True)) | self._everywhere(native[_CURRENCY])
        values |= commitment_cells(native[_COMMITMENT])
        values |= dict.fromkeys(("ListCost", "ContractedCost"), product_text(price, quantity))
        values |= dict.fromkeys(_UNIT_PRICES, price)
        unit = "GPU-Hours"
        if is_purchase:
            unit = "Packages" if fee.type is LineType.PACKAGE else "Months"
        else:
            values |= {"CommitmentDiscountStatus": "Unused"}
        hours = _hours_of(fee) if is_purchase else quantity
        values |= {
            "BilledCost": native[_AMOUNT],
            "BillingAccountId": native[_TENANT],
            "BillingAccountName": native[_TENANT_NAME],
            "ChargeCategory": "Purchase" if is_purchase else "Usage",
            "ChargeDescription": f"{_SAYS[fee.type]}: {native[_MODEL]}, {native[_COMMITMENT]}",
            "ChargeFrequency": _FREQUENCY.get(fee.type, "Usage-Based"),
            "CommitmentDiscountQuantity": hours,
            "CommitmentDiscountUnit": "GPU-Hours",
            "EffectiveCost": native[_EFFECTIVE],
            "PricingCategory": "Committed",
            "PricingCurrencyEffectiveCost": native[_EFFECTIVE],
            "PricingQuantity": quantity,
            "PricingUnit": unit,
            "ResourceId": native[_COMMITMENT],
            "ResourceType": "Commitment",
            "SkuId": native[_SKU],
            "SkuMeter": "Prepaid Package" if fee.commitment.startswith("package/") else "GPU Reservation",
            "SkuPriceId": f"{native[_SKU]}/{native[_COMMITMENT]}/{native[_BOOK]}/{fee.type.value}",
            "SubAccountId": native[_PROJECT],
            "SubAccountName": native[_PROJECT_NAME],
            "SubAccountType": "Project",
            "x_SegmentStart": native[_START],
            "x_SegmentEnd": utc_text(fee.to_ms),
            "x_GpuModel": native[_MODEL],
            "x_PriceBookVersion": native[_BOOK],
            "x_LedgerEntryId": native[_LINE_ID],
            "x_EvidenceClass": native[_EVIDENCE],
        }
        return [values.get(name, "") for name in self.columns]

    def of_invoice(self, invoice: Invoice, native: Sequence[str], range_ms: tuple[int, int]) -> list[str]:
        """Returns the row of an invoice's tax or rounding line, in the civil month in which the range ends."""
        is_tax = native[_AT["line_type"]] == "tax"
        last_day = local_time(range_ms[1] - 1, self._zone).date()
        amount, currency = native[_AT["amount"]], invoice.currency
        bill_start, bill_end = self._month(last_day)
        first_day = max(local_time(range_ms[0], self._zone).date(), last_day.replace(day=1))
        charge_start = _whole_seconds(day_start_ms(first_day, self._zone))
        charge_end = _whole_seconds(day_start_ms(last_day + timedelta(days=1), self._zone))
        values = dict(zip(_PERIOD, (charge_start, charge_end, bill_start, bill_end), strict=True))
        values |= self._everywhere(currency)
        values |= dict.fromkeys(("BilledCost", "ContractedCost", "EffectiveCost", "ListCost"), amount)
        values |= {
            "PricingCurrencyEffectiveCost": amount,
            "BillingAccountId": native[_AT["tenant_id"]],
            "BillingAccountName": native[_AT["tenant_name"]],
            "ChargeCategory": "Tax" if is_tax else "Adjustment",
            "ChargeDescription": "Tax" if is_tax else "Rounding of the invoice",
            "ChargeFrequency": "One-Time",
            "x_SegmentStart": native[_AT["start_utc"]],
            "x_SegmentEnd": utc_text(range_ms[1]),
            "x_LedgerEntryId": native[_AT["line_id"]],
            "x_EvidenceClass": native[_AT["evidence"]],
        }
        return [values.get(name, "") for name in self.columns]

    def _everywhere(self, currency: str) -> dict[str, str]:
        values = dict(zip(("ServiceCategory", "ServiceName", "ServiceSubcategory"), SERVICE, strict=True))
        values |= dict.fromkeys(("InvoiceIssuerName", "ProviderName", "PublisherName"), self._issuer)
        values |= {"BillingAccountType": "Tenant", "BillingCurrency": currency, "PricingCurrency": currency}
        if "ServiceProviderName" in self._standard:
            values |= {"ServiceProviderName": self._issuer, "HostProviderName": self._issuer}
        return values

    def _fixed_cells(self, kind: "_Kind") -> list[str]:
        """Returns what all lines of one price have in common."""
        details = _details(kind.gpu_class, kind.booking, kind.book)
        values = self._everywhere(kind.currency) | {
            "ChargeCategory": "Usage",
            "ChargeFrequency": "Usage-Based",
            "ConsumedUnit": "GPU-Seconds",
            "PricingCategory": _pricing_category(kind),
            "PricingUnit": "GPU-Hours",
            "ResourceType": "GPU Job",
            "SkuId": kind.sku,
            "SkuMeter": "GPU Energy" if kind.type is LineType.ENERGY else "GPU Allocation",
            "SkuPriceDetails": json_text(details),
            "SkuPriceId": f"{kind.sku}/{kind.book}/{kind.price_id}",
            "SubAccountType": "Project",
        }
        if kind.commitment:
            values |= commitment_cells(kind.commitment) | {
                "CommitmentDiscountStatus": "Used",
                "CommitmentDiscountUnit": "GPU-Hours",
            }
        if kind.commitment and "ContractApplied" in self._standard:
            values["ContractApplied"] = json_text({"Id": kind.commitment})
        return [values.get(name, "") for name in self._standard] + [""] * len(CUSTOM_COLUMNS)

    def _period_cells(self, day: date) -> tuple[str, str, str, str]:
        following = day + timedelta(days=1)
        start, end = (_whole_seconds(day_start_ms(each, self._zone)) for each in (day, following))
        return start, end, *self._month(day)

    def _month(self, day: date) -> tuple[str, str]:
        first = day.replace(day=1)
        following = (first + timedelta(days=31)).replace(day=1)
        return _whole_seconds(day_start_ms(first, self._zone)), _whole_seconds(day_start_ms(following, self._zone))

    def _tags_of(self, rated: RatedLine) -> str:
        allocation, booking = rated.allocation, rated.line.slice.segment.booking
        return self._tags(tuple(allocation.labels.items()), booking.value, allocation.user)


def _tags_cell(labels: tuple[tuple[str, str], ...], booking: str, user: str) -> str:
    return json_text({**dict(labels), f"{TAG_PREFIX}booking": booking, f"{TAG_PREFIX}user": user})


_PERIOD = ("ChargePeriodStart", "ChargePeriodEnd", "BillingPeriodStart", "BillingPeriodEnd")
_VARYING = (
    *_PERIOD,
    *("BilledCost", "BillingAccountId", "BillingAccountName", "ChargeDescription", "CommitmentDiscountQuantity"),
    *("ConsumedQuantity", "ContractedCost", "ContractedUnitPrice", "EffectiveCost", "ListCost", "ListUnitPrice"),
    *("PricingCurrencyContractedUnitPrice", "PricingCurrencyEffectiveCost", "PricingCurrencyListUnitPrice"),
    *("PricingQuantity", "ResourceId", "ResourceName", "SubAccountId", "SubAccountName", "Tags"),
)


class _Kind(NamedTuple):
    """What the cells that repeat follow from; hashed for each line, so it is of texts."""

    type: LineType
    currency: str
    gpu_class: str
    booking: str
    sku: str
    book: str
    price_id: str
    commitment: str


def _kind_of(rated: RatedLine, native: Sequence[str]) -> _Kind:
    line = rated.line
    stretch, book = line.slice.stretch, line.book
    booking = line.slice.segment.booking.value
    is_plain = book is None or not (book.bands or book.contracts or stretch.volume_hours)
    if is_plain or line.type is LineType.ENERGY:
        price_id = booking
    else:
        # A SKU price is one price: what it costs by contract, in a band, beyond a volume are others.
        steps = [booking, stretch.band, f"{stretch.volume_hours}h" if stretch.volume_hours else ""]
        contract = stretch.contract
        steps.append("" if contract is None else f"{contract.tenant}@{contract.from_ms or 0}")
        price_id = "/".join(step for step in steps if step)
    return _Kind(
        line.type,
        native[_CURRENCY],
        line.slice.segment.gpu_class,
        booking,
        native[_SKU],
        native[_BOOK],
        harmless_name(price_id),
        native[_COMMITMENT],
    )


def _pricing_category(kind: _Kind) -> str:
    if kind.commitment:
        return "Committed"
    return "Dynamic" if kind.booking == Booking.SPOT.value and kind.type is not LineType.ENERGY else "Standard"


_UNIT_PRICES = (
    *("ListUnitPrice", "ContractedUnitPrice"),
    *("PricingCurrencyListUnitPrice", "PricingCurrencyContractedUnitPrice"),
)
_FREQUENCY = {LineType.PACKAGE: "One-Time", LineType.RESERVED: "Recurring"}


def _hours_of(fee: Fee) -> str:
    """Returns the GPU-hours that a purchase buys."""
    return fixed(fee.bought_nano, QUANTITY_DECIMALS)


def commitment_cells(commitment: str) -> dict[str, str]:
    """Returns the columns that name a package or a reserved guarantee."""
    kind = "Reserved GPUs" if commitment.startswith("reserved/") else "Prepaid GPU-Hours"
    return {
        "CommitmentDiscountCategory": "Usage",
        "CommitmentDiscountId": commitment,
        "CommitmentDiscountName": commitment,
        "CommitmentDiscountType": kind,
    }


def _details(gpu_class: str, booking: str, book: str) -> dict[str, str | int]:
    """Returns what a price of use is a price of."""
    return {"GpuCount": 1, "InstanceSeries": gpu_class, "x_Booking": booking, "x_PriceBookVersion": book}


def _charged_ms(piece: Slice) -> int:
    units = piece.segment.charged_units
    if piece.topped_ms:
        return gpu_ms_between(units, 0, piece.topped_ms)
    return gpu_ms_between(units, piece.from_ms, piece.to_ms)


def product_text(price: str, quantity: str) -> str:
    """Returns the exact product of two plain decimals with a point, in at least six decimals: ListCost to the rule."""
    price_whole, _, price_part = price.partition(".")
    whole, _, part = quantity.partition(".")
    decimals = len(price_part) + len(part)
    scaled = int(price_whole + price_part) * int(whole + part)
    if decimals < AMOUNT_DECIMALS:
        scaled, decimals = scaled * 10 ** (AMOUNT_DECIMALS - decimals), AMOUNT_DECIMALS
    digits = fixed(scaled, decimals)
    point = len(digits) - decimals
    return digits[: point + AMOUNT_DECIMALS] + digits[point + AMOUNT_DECIMALS :].rstrip("0")


def json_text(values: Mapping[str, str | int]) -> str:
    """Returns a flat JSON object with sorted keys; letters stay readable unless one of them hides or reorders text."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=False)
    return text if harmless(text) == text else json.dumps(values, sort_keys=True)


def _description(native: Sequence[str], kind: LineType) -> str:
    share, count = native[_AT["gpu_share"]], native[_COUNT]
    what = f"{count} x {native[_MODEL]}" + ("" if share == "1" else f" ({share} of each)")
    said = f"{what}, {native[_AT['priority_class']]}, job {native[_AT['job_id']]} segment {native[_SEGMENT]}"
    return said if kind is LineType.USAGE else f"{_SAYS[kind]}: {said}"


_SAYS = {
    LineType.MINIMUM: "Least charge and increment",
    LineType.ENERGY: "Power",
    LineType.PACKAGE: "Package of GPU-hours",
    LineType.PACKAGE_UNUSED: "Package of GPU-hours, left unused",
    LineType.RESERVED: "Monthly fee of a guarantee",
    LineType.RESERVED_UNUSED: "Guarantee, unused",
}


def _whole_seconds(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
