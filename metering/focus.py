"""Usage lines as FOCUS rows (FinOps Open Cost and Usage Specification 1.2, or 1.3 with its added columns).

Every row comes from a line of the native file, so the two cannot tell different stories: a usage row for each priced
line, a `Tax` row for each tax line and an `Adjustment` row for each rounding line. Σ BilledCost of a tenant is what it
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

from metering.core.civil import day_start_ms, local_time
from metering.core.period import Period
from metering.core.quantity import AMOUNT_DECIMALS, divide, fixed, gpu_ms_between
from metering.core.rating import Invoice
from metering.csv_files import harmless
from metering.focus_columns import CUSTOM_COLUMNS, VERSIONS, columns_of
from metering.usage_lines import USAGE_COLUMNS, RatedLine
from scheduler.clock import parse_utc_ms
from scheduler.core.model import Booking

SERVICE = ("Compute", "GPU Compute", "Other (Compute)")
"""Category, name and subcategory of raw GPU jobs, comparable with clouds' GPU machines."""
TAG_PREFIX = "turnstile:"
"""What tells the provider's tags from those of users (FOCUS 1.2, Tags: provider-defined keys carry a prefix)."""
_AT = {name: place for place, name in enumerate(USAGE_COLUMNS)}


@dataclass(frozen=True, slots=True)
class FocusTerms:
    """Which version is written, and who issues the invoices."""

    version: str = "1.2"
    issuer: str = "GPU centre"
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
        self._tags: tuple[str, str] = ("", "")  # allocation and its cell: lines come by allocation
        self._places = {name: place for place, name in enumerate(self.columns)}

    def usage(self, rated: RatedLine, native: Sequence[str]) -> list[str] | None:
        """Returns the row of a usage line whose native cells are given; None for a line without a price."""
        amount = native[_AT["amount"]]
        if not amount:
            return None
        piece, allocation = rated.line.slice, rated.allocation
        segment = piece.segment
        price, hours, currency = native[_AT["unit_price"]], native[_AT["gpu_hours"]], native[_AT["currency"]]
        list_cost = product_text(price, hours)
        charged_ms = gpu_ms_between(segment.charged_units, piece.from_ms, piece.to_ms)
        count, booking = native[_AT["gpu_count"]], segment.booking
        sku, book = native[_AT["sku"]], native[_AT["price_book"]]
        cells = self._fixed(currency, segment.gpu_class, booking, sku, book).copy()
        put = self._places
        for name, text in (
            *zip(_PERIOD, self._periods(piece.stretch.day), strict=True),
            ("BilledCost", amount),
            ("BillingAccountId", native[_AT["tenant_id"]]),
            ("BillingAccountName", native[_AT["tenant_name"]]),
            ("ChargeDescription", _description(native, count, booking)),
            ("ConsumedQuantity", fixed(charged_ms, 3)),
            ("ContractedCost", list_cost),
            ("ContractedUnitPrice", price),
            ("EffectiveCost", amount),
            ("ListCost", list_cost),
            ("ListUnitPrice", price),
            ("PricingCurrencyContractedUnitPrice", price),
            ("PricingCurrencyEffectiveCost", amount),
            ("PricingCurrencyListUnitPrice", price),
            ("PricingQuantity", hours),
            ("ResourceId", f"job/{segment.job}"),
            ("ResourceName", native[_AT["job_name"]]),
            ("SubAccountId", native[_AT["project_id"]]),
            ("SubAccountName", native[_AT["project_name"]]),
            ("Tags", self._tags_of(rated)),
        ):
            cells[put[name]] = text
        cells[len(self._standard) :] = (
            str(segment.job),
            str(segment.number),
            native[_AT["start_utc"]],
            _exact(piece.to_ms),
            rated.end_word,
            native[_AT["user_id"]],
            native[_AT["gpu_model"]],
            count,
            str(len(allocation.grants)),
            harmless(" ".join(rated.gpus)),
            book,
            native[_AT["line_id"]],
            native[_AT["corrects_line_id"]],
            native[_AT["gpu_util_avg_pct"]],
            native[_AT["energy_kwh"]],
            native[_AT["evidence"]],
            "",
        )
        return cells

    def of_credit(self, native: Sequence[str]) -> list[str]:
        """Returns the row of a credit: of its usage's day and job, without a quantity, with the incident's id."""
        amount, currency = native[_AT["amount"]], native[_AT["currency"]]
        day = local_time(parse_utc_ms(native[_AT["start_utc"]]), self._zone).date()
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
        if not native[_AT["incident_id"]]:
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
                "SkuMeter": "GPU Allocation",
                "SkuPriceId": f"{sku}/{book}/{native[_AT['priority_class']]}",
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
            "x_SegmentEnd": _exact(parse_utc_ms(native[_AT["end_local"]])),
            "x_EndReason": native[_AT["end_reason"]],
            "x_UserId": native[_AT["user_id"]],
            "x_GpuModel": native[_AT["gpu_model"]],
            "x_GpuCount": native[_AT["gpu_count"]],
            "x_PriceBookVersion": native[_AT["price_book"]],
            "x_LedgerEntryId": native[_AT["line_id"]],
            "x_EvidenceClass": native[_AT["evidence"]],
        }

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
            "x_SegmentEnd": _exact(range_ms[1]),
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

    def _fixed_cells(self, currency: str, gpu_class: str, booking: Booking, sku: str, book: str) -> list[str]:
        """Returns what all lines of one price have in common."""
        details: dict[str, str | int] = {
            "GpuCount": 1,
            "InstanceSeries": gpu_class,
            "x_Booking": booking.value,
            "x_PriceBookVersion": book,
        }
        values = self._everywhere(currency) | {
            "ChargeCategory": "Usage",
            "ChargeFrequency": "Usage-Based",
            "ConsumedUnit": "GPU-Seconds",
            "PricingCategory": "Dynamic" if booking is Booking.SPOT else "Standard",
            "PricingUnit": "GPU-Hours",
            "ResourceType": "GPU Job",
            "SkuId": sku,
            "SkuMeter": "GPU Allocation",
            "SkuPriceDetails": json_text(details),
            "SkuPriceId": f"{sku}/{book}/{booking.value}",
            "SubAccountType": "Project",
        }
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
        key = f"{allocation.id}/{booking.value}"
        if self._tags[0] != key:
            ours = {f"{TAG_PREFIX}booking": booking.value, f"{TAG_PREFIX}user": allocation.user}
            self._tags = (key, json_text({**allocation.labels, **ours}))
        return self._tags[1]


_PERIOD = ("ChargePeriodStart", "ChargePeriodEnd", "BillingPeriodStart", "BillingPeriodEnd")


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


def _description(native: Sequence[str], count: str, booking: Booking) -> str:
    share = native[_AT["gpu_share"]]
    what = f"{count} x {native[_AT['gpu_model']]}" + ("" if share == "1" else f" ({share} of each)")
    return f"{what}, {booking.value}, job {native[_AT['job_id']]} segment {native[_AT['segment_no']]}"


def _whole_seconds(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _exact(at_ms: int) -> str:
    return f"{_whole_seconds(at_ms)[:-1]}.{at_ms % 1000:03d}Z"
