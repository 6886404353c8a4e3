"""Price books from the `prices.toml` that people write (docs/prices.md), and from what is stored of them.

`parse_price_book` and `price_book_of` say everything that is wrong with a book at once, each problem with the path of
its place; what a book is stands in `metering.core.pricebook`. What needs the centre to be checked (whether a tenant or
a class exists) is checked where the centre is known: `metering.price_drafts`.
"""

import tomllib
from collections.abc import Mapping
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from metering.core.pricebook import (
    Contract,
    Key,
    Offer,
    PriceBook,
    ReservedFee,
    Scale,
    body_of,
    book_in_force,
    canonical_json,
    thresholds_of,
)
from metering.core.quantity import CURRENCIES, Rounding, is_currency, minor_unit
from metering.core.readings import MOST_PRICES, MOST_TEXT, Reading, read_bands, read_prices
from metering.core.timetable import Band
from scheduler.core.model import AccountId, GpuClass, tenant_of
from scheduler.refusal import RefusalCode, Refused

__all__ = [
    "MOST_PRICES",
    "MOST_TEXT",
    "Contract",
    "Offer",
    "PriceBook",
    "body_of",
    "book_in_force",
    "canonical_json",
    "parse_price_book",
    "price_book_of",
]

MOST_TERMS = 10_000
"""Contracts, and reserved fees, of one book."""
MOST_SECONDS = 86_400
"""The longest minimum and increment: a day."""
_END_OF_TIME_MS = 1 << 62
_KEYS = frozenset(
    (
        *("version", "currency", "effective", "effective_ms", "tax_rate", "rounding", "prices"),
        *("zone", "bands", "contracts", "reserved", "energy", "minimum_seconds", "increment_seconds"),
    )
)
_ROUNDING_KEYS = frozenset({"mode", "unit"})
_CONTRACT_KEYS = frozenset({"tenant", "from", "to", "from_ms", "to_ms", "discount", "prices"})
_RESERVED_KEYS = frozenset({"account", "class", "gpus", "monthly"})


def parse_price_book(text: str) -> PriceBook:
    """Returns the book that a `prices.toml` describes. Raises Refused (invalid) with every problem in it."""
    try:
        # Numbers keep the digits that were written: they never pass through a float.
        document = tomllib.loads(text, parse_float=str)
    except tomllib.TOMLDecodeError as error:
        raise Refused(RefusalCode.INVALID, f"the price book is not TOML: {error}") from error
    return price_book_of(document)


def price_book_of(document: Mapping[str, Any]) -> PriceBook:
    """Returns the book of a parsed `prices.toml`, or of a stored body. Raises Refused with every problem in it."""
    reading = Reading()
    book = _book(reading, document)
    if reading.problems or book is None:
        count = len(reading.problems)
        first = reading.problems[0]
        message = f"the price book has {count} problem{'s' if count > 1 else ''}: {first.field}: {first.message}"
        raise Refused(RefusalCode.INVALID, message, problems=tuple(reading.problems))
    return book


def _book(reading: Reading, document: Mapping[str, Any]) -> PriceBook | None:
    reading.unknown_keys(document, _KEYS, "")
    version = reading.text(document, "version", 'a name for this book, such as "2026-11"')
    currency = _currency(reading, document)
    effective_ms = reading.instant(document, "effective")
    if effective_ms is None and not document.keys() & {"effective", "effective_ms"}:
        reading.wrong("effective", "is missing: a time with an offset, such as 2026-11-01T00:00:00+08:00")
    tax_rate = _share(reading, document.get("tax_rate", "0"), "tax_rate")
    mode, unit = _rounding(reading, document.get("rounding", {}), currency)
    zone = _zone(reading, document.get("zone"))
    bands = read_bands(reading, document.get("bands"))
    names = sorted({band.name for band in bands})
    prices = read_prices(reading, document.get("prices"), "prices", names)
    contracts = _contracts(reading, document.get("contracts"), names)
    reserved = _reserved(reading, document.get("reserved"))
    energy = _energy(reading, document.get("energy"))
    minimum, increment = (_seconds(reading, document, key) for key in ("minimum_seconds", "increment_seconds"))
    if zone is None and "zone" not in document and _needs_zone(bands, prices, contracts, reserved):
        reading.wrong("zone", "is missing: bands, tiers and monthly fees need a time zone, such as Asia/Shanghai")
    if reading.problems or tax_rate is None or effective_ms is None or unit is None:
        return None
    return PriceBook(
        version,
        currency,
        effective_ms,
        prices,
        tax_rate,
        mode,
        unit,
        zone,
        bands,
        contracts,
        reserved,
        energy,
        minimum * 1000,
        increment * 1000,
    )


def _needs_zone(
    bands: tuple[Band, ...],
    prices: Mapping[Key, Any],
    contracts: tuple[Contract, ...],
    reserved: tuple[ReservedFee, ...],
) -> bool:
    every = [*prices.values(), *(price for contract in contracts for price in contract.prices.values())]
    return bool(bands or reserved or any(isinstance(price, Scale) and thresholds_of(price) for price in every))


def _currency(reading: Reading, document: Mapping[str, Any]) -> str:
    currency = reading.text(document, "currency", 'an ISO 4217 code, such as "CNY"')
    if currency and not is_currency(currency):
        reading.wrong("currency", f"{currency!r} is not three capital letters, such as CNY")
        return ""
    if currency and currency not in CURRENCIES:
        reading.wrong("currency", f"{currency!r} is no currency of ISO 4217, such as CNY")
        return ""
    return currency


def _share(reading: Reading, value: object, field: str) -> Decimal | None:
    number = reading.number(value, field)
    if number is not None and number >= 1:
        reading.wrong(field, f"{number} is 100 % or more; write 6 % as 0.06")
    return number


def _rounding(reading: Reading, table: object, currency: str) -> tuple[Rounding, Decimal | None]:
    if not isinstance(table, Mapping):
        reading.wrong("rounding", "must be a table with `mode` and `unit`")
        return Rounding.HALF_EVEN, None
    reading.unknown_keys(table, _ROUNDING_KEYS, "rounding.")
    mode = table.get("mode", Rounding.HALF_EVEN.value)
    if mode not in list(Rounding):
        reading.wrong("rounding.mode", f"{mode!r} is none of {', '.join(Rounding)}")
        mode = Rounding.HALF_EVEN.value
    unit = reading.number(table["unit"], "rounding.unit") if "unit" in table else minor_unit(currency)
    if unit is not None and unit <= 0:
        reading.wrong("rounding.unit", "must be more than 0, such as 0.01")
    elif unit is not None and currency and unit % minor_unit(currency):
        reading.wrong("rounding.unit", f"must be a multiple of {minor_unit(currency)}, what {currency} can be paid in")
    return Rounding(mode), unit


def _zone(reading: Reading, value: object) -> str | None:
    if value is None:
        return None
    try:
        if isinstance(value, str):
            return ZoneInfo(value).key
    except (ZoneInfoNotFoundError, ValueError, OSError):
        pass
    reading.wrong("zone", "is not in the tz database; write one such as Asia/Shanghai")
    return None


def _seconds(reading: Reading, document: Mapping[str, Any], key: str) -> int:
    seconds = reading.count(document.get(key, 0), key)
    if seconds is not None and seconds > MOST_SECONDS:
        reading.wrong(key, f"{seconds} seconds are more than a day; at most {MOST_SECONDS}")
    return seconds or 0


def _energy(reading: Reading, table: object) -> dict[GpuClass, Decimal]:
    if table is None:
        return {}
    if not isinstance(table, Mapping):
        reading.wrong("energy", "must be a table of a surcharge per GPU-hour by GPU class, such as H100 = 0.40")
        return {}
    seen: dict[str, str] = {}
    found = {}
    for gpu_class in sorted(table):
        reading.class_name(gpu_class, f"energy.{gpu_class}", seen)
        price = reading.number(table[gpu_class], f"energy.{gpu_class}")
        if price is not None:
            found[GpuClass(gpu_class)] = price
    return found


def _contracts(reading: Reading, value: object, bands: list[str]) -> tuple[Contract, ...]:
    if value is None:
        return ()
    found: list[tuple[str, Contract]] = []
    for place, table in enumerate(reading.tables(value, "contracts")[:MOST_TERMS]):
        prefix = f"contracts[{place}]."
        reading.unknown_keys(table, _CONTRACT_KEYS, prefix)
        tenant = reading.text(table, "tenant", "whose contract it is", prefix)
        from_ms, to_ms = (reading.instant(table, key, prefix) for key in ("from", "to"))
        discount = _share(reading, table.get("discount", "0"), f"{prefix}discount")
        prices = read_prices(reading, table["prices"], f"{prefix}prices", bands) if "prices" in table else {}
        if tenant and tenant_of(AccountId(tenant)) != tenant:
            reading.wrong(f"{prefix}tenant", f"{tenant!r} is a project; contracts are of whole tenants")
        if not prices and not discount:
            reading.wrong(f"{prefix}discount", "is missing: a contract has prices, a discount, or both")
        if from_ms is not None and to_ms is not None and from_ms >= to_ms:
            reading.wrong(f"{prefix}to", "must be after `from`")
        found.append((prefix, Contract(AccountId(tenant), from_ms, to_ms, prices, discount or Decimal(0))))
    _refuse_overlaps(reading, found)
    return tuple(sorted((each for _, each in found), key=lambda each: (each.tenant, each.from_ms or 0)))


def _refuse_overlaps(reading: Reading, found: list[tuple[str, Contract]]) -> None:
    by_tenant: dict[str, list[tuple[int, int, str]]] = {}
    for prefix, contract in found:
        end = _END_OF_TIME_MS if contract.to_ms is None else contract.to_ms
        by_tenant.setdefault(contract.tenant, []).append((contract.from_ms or 0, end, prefix))
    for tenant, spans in by_tenant.items():
        spans.sort()
        latest, whose = spans[0][1], spans[0][2]
        for start, end, prefix in spans[1:]:
            if start < latest:
                reading.wrong(
                    f"{prefix}from", f"overlaps with {whose.rstrip('.')}: {tenant} has one contract at a time"
                )
            if end > latest:
                latest, whose = end, prefix


def _reserved(reading: Reading, value: object) -> tuple[ReservedFee, ...]:
    if value is None:
        return ()
    found: dict[tuple[str, str], ReservedFee] = {}
    for place, table in enumerate(reading.tables(value, "reserved")[:MOST_TERMS]):
        prefix = f"reserved[{place}]."
        reading.unknown_keys(table, _RESERVED_KEYS, prefix)
        account = reading.text(table, "account", "whose guarantee it is", prefix)
        gpu_class = reading.text(table, "class", "the GPU class of the guarantee", prefix)
        gpus = reading.count(table.get("gpus"), f"{prefix}gpus", least=1)
        monthly = reading.number(table.get("monthly"), f"{prefix}monthly")
        if (account, gpu_class) in found:
            reading.wrong(f"{prefix}account", f"overlaps: {account} has two fees for {gpu_class}")
        if gpus is not None and monthly is not None:
            fee = ReservedFee(AccountId(account), GpuClass(gpu_class), gpus, monthly)
            found[account, gpu_class] = fee
    return tuple(found[key] for key in sorted(found))
