"""What FOCUS 1.2 demands of one row, as a table: cell rules by kind of column, and rules between a row's columns.

A rule's id is the column that it is about and a word: `ListCost.product`. Rules are written from the specification's
column definitions and attribute pages, those included that the official validator does not check; where a rule is
ours beside the specification, its text says so. Rules that need more than one row stand in `metering.focus_check`.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Context, Decimal

from metering.core.quantity import CURRENCIES
from metering.focus_columns import SUBCATEGORIES, FocusColumn, Kind

Cells = Mapping[str, str]
VARYING = frozenset(
    (
        *("BilledCost", "ChargeDescription", "CommitmentDiscountQuantity", "ConsumedQuantity", "ContractedCost"),
        *("EffectiveCost", "ListCost", "PricingCurrencyEffectiveCost", "PricingQuantity", "ResourceId", "ResourceName"),
        "Tags",
    )
)
"""Columns that differ from row to row. All others repeat, so what holds between them is proved once a combination."""

_DECIMAL = re.compile(r"-?(0|[1-9][0-9]*)\.[0-9]+(E[+-]?[0-9]{1,3})?")
_DATETIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
_NOUN = r"[A-Z][A-Za-z0-9]*( [A-Z][A-Za-z0-9]*)*"
_TIME_UNITS = "Years|Months|Days|Hours|Minutes|Seconds"
_UNIT = re.compile(rf"({_NOUN}-)?({_TIME_UNITS})|(?!.* ({_TIME_UNITS})$){_NOUN}s|[KMGTPE]i?[Bb](-({_TIME_UNITS}))?")
"""`<singular>-<plural time>`, a plural noun, or an amount of data (FOCUS 1.2, attribute UnitFormat)."""
_PLACEHOLDERS = frozenset(("null", "none", "n/a", "na", "nan", "not applicable", "unknown", "undefined"))
_WORDS_OF_PEOPLE = frozenset(
    ("BillingAccountId", "BillingAccountName", "SubAccountId", "SubAccountName", "ResourceName", "ChargeDescription")
)
"""Columns whose text people choose: a job may be called `none`."""
_FORMULA = tuple("=+-@\t\r")
_DETAILS = frozenset(
    (
        *("CoreCount", "DiskMaxIops", "DiskSpace", "DiskType", "GpuCount", "InstanceSeries", "InstanceType"),
        *("MemorySize", "NetworkMaxIops", "NetworkMaxThroughput", "OperatingSystem", "Redundancy", "StorageClass"),
    )
)
"""Keys of SkuPriceDetails that the specification defines; others begin with `x_`."""
_EXACT = Context(prec=120)


@dataclass(frozen=True, slots=True)
class Rule:
    """One demand: `says` is its sentence, `holds` tells whether a row keeps it."""

    id: str
    says: str
    holds: Callable[[Cells], bool]


def cell_breaks(column: FocusColumn, cell: str) -> list[str]:
    """Returns the ids of the rules that a cell breaks by itself: its kind, its null, its allowed values."""
    name = column.name
    if not cell:
        return [] if column.is_nullable else [f"{name}.null"]
    if column.allowed and cell not in column.allowed:
        return [f"{name}.allowed"]
    if not _OF_KIND[column.kind](cell):
        return [f"{name}.{column.kind}"]
    if column.kind is Kind.TEXT:
        if cell.startswith(_FORMULA):
            return [f"{name}.formula"]
        if not cell.strip() or (name not in _WORDS_OF_PEOPLE and cell.lower() in _PLACEHOLDERS):
            return [f"{name}.placeholder"]
    return []


def cell_rule_says(rule_id: str) -> str:
    """Returns the sentence of a cell rule."""
    return _CELL_SAYS[rule_id.rpartition(".")[2]]


_CELL_SAYS = {
    "null": "is never null",
    "allowed": "is one of the specification's values, in their case",
    "text": "is text",
    "decimal": "is a plain decimal with a point: no separators, sign of plus or currency",
    "datetime": "is UTC in whole seconds as 2026-11-01T00:00:00Z",
    "json": "is a flat JSON object of numbers, texts, booleans and nulls",
    "currency": "is an ISO 4217 code",
    "unit": "is a unit as GPU-Hours",
    "formula": "does not begin as a formula of a spreadsheet (ours)",
    "placeholder": "is empty when it is null, not a word for it",
}


def _is_time(text: str) -> bool:
    if not _DATETIME.fullmatch(text):
        return False
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


def _flat(text: str) -> dict[str, object] | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or any(isinstance(value, dict | list) for value in found.values()):
        return None
    return found


_OF_KIND: dict[Kind, Callable[[str], bool]] = {
    Kind.TEXT: lambda _: True,
    Kind.DECIMAL: lambda text: _DECIMAL.fullmatch(text) is not None,
    Kind.DATETIME: _is_time,
    Kind.JSON: lambda text: _flat(text) is not None,
    Kind.CURRENCY: lambda text: text in CURRENCIES,
    Kind.UNIT: lambda text: _UNIT.fullmatch(text) is not None,
}


def _both_or_neither(one: str, other: str) -> Callable[[Cells], bool]:
    return lambda row: bool(row[one]) == bool(row[other])


def _needs(one: str, other: str) -> Callable[[Cells], bool]:
    return lambda row: not row[one] or bool(row[other])


def _is_plain(row: Cells, *categories: str) -> bool:
    return row["ChargeCategory"] in categories and row["ChargeClass"] != "Correction"


def _number(text: str) -> Decimal:
    return Decimal(text) if text and _DECIMAL.fullmatch(text) else Decimal("NaN")


def _is_product(row: Cells, cost: str, price: str) -> bool:
    """A cost is price × quantity, exactly; what is no number is another rule's."""
    if not row[price] or not row["PricingQuantity"] or row["ChargeClass"]:
        return True
    found, one, other = _number(row[cost]), _number(row[price]), _number(row["PricingQuantity"])
    if found.is_nan() or one.is_nan() or other.is_nan():
        return True
    return found == _EXACT.multiply(one, other)


def _is_not_negative(column: str) -> Callable[[Cells], bool]:
    return lambda row: not row[column].startswith("-")


def _in_same_currency(row: Cells, pairs: tuple[tuple[str, str], ...]) -> bool:
    if row["PricingCurrency"] != row["BillingCurrency"]:
        return True
    return all(not row[ours] or row[ours] == row[other] for ours, other in pairs)


def _keys_known(row: Cells) -> bool:
    details = _flat(row["SkuPriceDetails"]) if row["SkuPriceDetails"] else {}
    return details is None or all(key in _DETAILS or key.startswith("x_") for key in details)


def _hours_agree(row: Cells) -> bool:
    if (row["ConsumedUnit"], row["PricingUnit"]) != ("GPU-Seconds", "GPU-Hours"):
        return True
    seconds, hours = _number(row["ConsumedQuantity"]), _number(row["PricingQuantity"])
    if seconds.is_nan() or hours.is_nan():
        return True
    # Each is rounded: seconds to a millisecond by the rule that conserves sums, hours to nine decimals.
    return abs(_EXACT.subtract(seconds, _EXACT.multiply(hours, Decimal(3600)))) <= Decimal("0.002")


def _inside_month(row: Cells) -> bool:
    if row["ChargeClass"]:
        return True
    starts = row["BillingPeriodStart"] <= row["ChargePeriodStart"]
    return starts and row["ChargePeriodEnd"] <= row["BillingPeriodEnd"]


_IN_ONE_CURRENCY = (
    ("PricingCurrencyContractedUnitPrice", "ContractedUnitPrice"),
    ("PricingCurrencyListUnitPrice", "ListUnitPrice"),
)

# Between columns that repeat.
REPEATING_RULES = (
    Rule(
        "BillingPeriodEnd.order",
        "a billing period ends after its start",
        lambda row: row["BillingPeriodStart"] < row["BillingPeriodEnd"],
    ),
    Rule(
        "ChargePeriodEnd.order",
        "a charge period ends after its start",
        lambda row: row["ChargePeriodStart"] < row["ChargePeriodEnd"],
    ),
    Rule("ChargePeriodStart.billing_period", "a charge lies in its billing period unless it corrects", _inside_month),
    Rule(
        "BillingAccountType.account",
        "a billing account has a type",
        lambda row: bool(row["BillingAccountType"]),
    ),
    Rule("SubAccountName.account", "a sub-account's name needs its id", _needs("SubAccountName", "SubAccountId")),
    Rule(
        "SubAccountType.account",
        "a sub-account has an id and a type, or neither",
        _both_or_neither("SubAccountType", "SubAccountId"),
    ),
    Rule(
        "CapacityReservationStatus.reservation",
        "a status needs its reservation",
        _needs("CapacityReservationStatus", "CapacityReservationId"),
    ),
    Rule(
        "CapacityReservationStatus.usage",
        "usage of a reservation has a status",
        lambda row: (
            row["ChargeCategory"] != "Usage"
            or bool(row["CapacityReservationStatus"]) == bool(row["CapacityReservationId"])
        ),
    ),
    Rule(
        "CommitmentDiscountCategory.discount",
        "a commitment has an id and a category, or neither",
        _both_or_neither("CommitmentDiscountCategory", "CommitmentDiscountId"),
    ),
    Rule(
        "CommitmentDiscountType.discount",
        "a commitment has an id and a type, or neither",
        _both_or_neither("CommitmentDiscountType", "CommitmentDiscountId"),
    ),
    Rule(
        "CommitmentDiscountName.discount",
        "a commitment's name needs its id",
        _needs("CommitmentDiscountName", "CommitmentDiscountId"),
    ),
    Rule(
        "CommitmentDiscountStatus.discount",
        "usage under a commitment has a status; nothing else has",
        lambda row: (
            bool(row["CommitmentDiscountStatus"])
            == (row["ChargeCategory"] == "Usage" and bool(row["CommitmentDiscountId"]))
        ),
    ),
    Rule(
        "ChargeFrequency.purchase",
        "a purchase is not Usage-Based",
        lambda row: row["ChargeCategory"] != "Purchase" or row["ChargeFrequency"] != "Usage-Based",
    ),
    Rule(
        "PricingCategory.charge",
        "usage and purchases have a pricing category, tax has none",
        lambda row: (
            not (_is_plain(row, "Usage", "Purchase") and not row["PricingCategory"])
            and not (row["ChargeCategory"] == "Tax" and row["PricingCategory"])
        ),
    ),
    Rule(
        "SkuId.charge",
        "usage and purchases have a SKU, tax has none",
        lambda row: (
            not (_is_plain(row, "Usage", "Purchase") and not row["SkuId"])
            and not (row["ChargeCategory"] == "Tax" and row["SkuId"])
        ),
    ),
    Rule(
        "SkuPriceId.charge",
        "usage and purchases have a SKU price, tax has none",
        lambda row: (
            not (_is_plain(row, "Usage", "Purchase") and not row["SkuPriceId"])
            and not (row["ChargeCategory"] == "Tax" and row["SkuPriceId"])
        ),
    ),
    Rule("SkuPriceId.sku", "a SKU price needs its SKU", _needs("SkuPriceId", "SkuId")),
    Rule("SkuMeter.sku", "a meter needs its SKU", _needs("SkuMeter", "SkuId")),
    Rule("SkuPriceDetails.price", "details need their SKU price", _needs("SkuPriceDetails", "SkuPriceId")),
    Rule("SkuPriceDetails.keys", "keys are the specification's, or begin with x_", _keys_known),
    Rule(
        "ServiceSubcategory.parent",
        "a subcategory belongs to its one category",
        lambda row: (
            not row["ServiceSubcategory"] or row["ServiceSubcategory"] in SUBCATEGORIES.get(row["ServiceCategory"], ())
        ),
    ),
    Rule("RegionName.region", "a region has an id and a name, or neither", _both_or_neither("RegionName", "RegionId")),
    Rule("ListUnitPrice.negative", "a price is not negative", _is_not_negative("ListUnitPrice")),
    Rule("ContractedUnitPrice.negative", "a price is not negative", _is_not_negative("ContractedUnitPrice")),
    Rule(
        "ListUnitPrice.charge",
        "usage and purchases have a list price, tax has none",
        lambda row: (
            not (_is_plain(row, "Usage", "Purchase") and not row["ListUnitPrice"])
            and not (row["ChargeCategory"] == "Tax" and row["ListUnitPrice"])
        ),
    ),
    Rule(
        "ContractedUnitPrice.charge",
        "usage and purchases have a contracted price, tax has none",
        lambda row: (
            not (_is_plain(row, "Usage", "Purchase") and not row["ContractedUnitPrice"])
            and not (row["ChargeCategory"] == "Tax" and row["ContractedUnitPrice"])
        ),
    ),
    Rule(
        "PricingCurrency.prices",
        "prices in the billing currency are the same in both columns",
        lambda row: _in_same_currency(row, _IN_ONE_CURRENCY),
    ),
)

# Between columns of which one at least varies: looked at in every row.
VARYING_RULES = (
    Rule(
        "ConsumedQuantity.charge",
        "only usage consumes, and usage that is not an unused commitment does",
        lambda row: (
            not row["ConsumedQuantity"]
            if row["ChargeCategory"] != "Usage"
            else bool(row["ConsumedQuantity"])
            or bool(row["ChargeClass"])
            or row["CommitmentDiscountStatus"] == "Unused"
        ),
    ),
    Rule("ConsumedUnit.quantity", "a quantity has a unit", _both_or_neither("ConsumedUnit", "ConsumedQuantity")),
    Rule(
        "ConsumedQuantity.negative",
        "what is consumed is not negative unless it corrects",
        lambda row: not row["ConsumedQuantity"].startswith("-") or bool(row["ChargeClass"]),
    ),
    Rule(
        "PricingQuantity.charge",
        "usage and purchases have a priced quantity; tax, credits and adjustments none",
        lambda row: (
            not (_is_plain(row, "Usage", "Purchase") and not row["PricingQuantity"])
            and not (row["ChargeCategory"] in {"Tax", "Credit", "Adjustment"} and row["PricingQuantity"])
        ),
    ),
    Rule("PricingUnit.quantity", "a quantity has a unit", _both_or_neither("PricingUnit", "PricingQuantity")),
    Rule("ConsumedQuantity.hours", "seconds consumed are the hours priced (ours)", _hours_agree),
    Rule(
        "ListCost.product",
        "ListCost is ListUnitPrice × PricingQuantity",
        lambda row: _is_product(row, "ListCost", "ListUnitPrice"),
    ),
    Rule(
        "ContractedCost.product",
        "ContractedCost is ContractedUnitPrice × PricingQuantity",
        lambda row: _is_product(row, "ContractedCost", "ContractedUnitPrice"),
    ),
    Rule(
        "EffectiveCost.purchase",
        "what a commitment cost is told by its usage, not by its purchase",
        lambda row: (
            row["ChargeCategory"] != "Purchase"
            or not row["CommitmentDiscountId"]
            or not row["EffectiveCost"].strip("-0.")
        ),
    ),
    Rule(
        "BilledCost.issuer",
        "who bills for another provider bills nothing",
        lambda row: row["InvoiceIssuerName"] == row["ProviderName"] or not row["BilledCost"].strip("-0."),
    ),
    Rule(
        "PricingCurrencyEffectiveCost.currency",
        "costs in the billing currency are the same in both columns",
        lambda row: _in_same_currency(row, (("PricingCurrencyEffectiveCost", "EffectiveCost"),)),
    ),
    Rule(
        "CommitmentDiscountQuantity.discount",
        "a commitment's quantity needs its id and unit",
        lambda row: (
            bool(row["CommitmentDiscountQuantity"]) == bool(row["CommitmentDiscountUnit"])
            and (not row["CommitmentDiscountQuantity"] or bool(row["CommitmentDiscountId"]))
        ),
    ),
    Rule("ResourceName.resource", "a resource's name needs its id", _needs("ResourceName", "ResourceId")),
    Rule(
        "ResourceType.resource",
        "a resource has an id and a type, or neither",
        _both_or_neither("ResourceType", "ResourceId"),
    ),
)
