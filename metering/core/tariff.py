"""Price books: what a GPU-hour costs from when on. Immutable, hashed values; a change of price is a new book.

A book names a price per GPU class and booking, before tax, per GPU-hour of *charged* time. `parse_price_book` reads
the `prices.toml` that people write (docs/prices.md) and says everything that is wrong with it at once; `canonical_json`
is the one spelling of a book whose SHA-256 is its identity; `book_in_force` picks the book of an instant.
"""

import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from metering.core.quantity import BadDecimal, Rounding, decimal_text, is_currency, minor_unit, parse_decimal
from scheduler.core.model import Booking, GpuClass
from scheduler.refusal import Problem, RefusalCode, Refused

MOST_PRICES = 10_000
"""Class × booking prices in one book; far above any centre's, so that a book stays a small value."""
MOST_TEXT = 64
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_KEYS = frozenset({"version", "currency", "effective", "tax_rate", "rounding", "prices"})
_ROUNDING_KEYS = frozenset({"mode", "unit"})


@dataclass(frozen=True, slots=True)
class PriceBook:
    """One version of all prices. In force from `effective_ms` until the next book's."""

    version: str
    currency: str
    effective_ms: int
    prices: Mapping[tuple[GpuClass, Booking], Decimal]
    """Per GPU-hour, before tax."""
    tax_rate: Decimal = Decimal(0)
    rounding: Rounding = Rounding.HALF_EVEN
    rounding_unit: Decimal = Decimal("0.01")
    """What an invoice's payable is a multiple of."""

    def price(self, gpu_class: GpuClass, booking: Booking) -> Decimal | None:
        """Returns the price of a GPU-hour; None where the book names none, which is not the same as free."""
        return self.prices.get((gpu_class, booking))

    @property
    def sha256(self) -> str:
        """The book's identity: SHA-256 (hex) of its canonical JSON in UTF-8."""
        return hashlib.sha256(canonical_json(self).encode()).hexdigest()


def book_in_force(books: Sequence[PriceBook], at_ms: int) -> PriceBook | None:
    """Returns the book with the latest effective time at or before `at_ms`; None before the first."""
    begun = [book for book in books if book.effective_ms <= at_ms]
    return max(begun, key=lambda book: (book.effective_ms, book.version), default=None)


def body_of(book: PriceBook) -> dict[str, Any]:
    """Returns the book as JSON values, numbers as decimal strings without trailing zeros."""
    prices: dict[str, dict[str, str]] = {}
    for (gpu_class, booking), price in book.prices.items():
        prices.setdefault(str(gpu_class), {})[booking.value] = decimal_text(price)
    return {
        "version": book.version,
        "currency": book.currency,
        "effective_ms": book.effective_ms,
        "tax_rate": decimal_text(book.tax_rate),
        "rounding": {"mode": book.rounding.value, "unit": decimal_text(book.rounding_unit)},
        "prices": prices,
    }


def canonical_json(book: PriceBook) -> str:
    """Returns the one spelling of a book: sorted keys, no blanks, unescaped Unicode."""
    return json.dumps(body_of(book), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


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
    reader = _Reader()
    book = reader.book(document)
    if reader.problems or book is None:
        count = len(reader.problems)
        first = reader.problems[0]
        message = f"the price book has {count} problem{'s' if count > 1 else ''}: {first.field}: {first.message}"
        raise Refused(RefusalCode.INVALID, message, problems=tuple(reader.problems))
    return book


class _Reader:
    """Reads one document and gathers what is wrong with it."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def wrong(self, field: str, message: str) -> None:
        self.problems.append(Problem(message, field))

    def book(self, document: Mapping[str, Any]) -> PriceBook | None:
        self.unknown_keys(document, _KEYS | {"effective_ms"}, "")
        version = self.text(document, "version", 'a name for this book, such as "2026-11"')
        currency = self.text(document, "currency", 'an ISO 4217 code, such as "CNY"')
        if currency and not is_currency(currency):
            self.wrong("currency", f"{currency!r} is not three capital letters, such as CNY")
            currency = ""
        effective_ms = self.effective(document)
        tax_rate = self.number(document.get("tax_rate", "0"), "tax_rate")
        if tax_rate is not None and tax_rate >= 1:
            self.wrong("tax_rate", f"{tax_rate} is 100 % or more; write 6 % as 0.06")
        mode, unit = self.rounding(document.get("rounding", {}), currency)
        prices = self.prices(document.get("prices"))
        if self.problems or tax_rate is None or effective_ms is None or unit is None:
            return None
        return PriceBook(version, currency, effective_ms, prices, tax_rate, mode, unit)

    def unknown_keys(self, table: Mapping[str, Any], known: frozenset[str], prefix: str) -> None:
        for key in sorted(table.keys() - known):
            self.wrong(prefix + key, f"unknown key; known are {', '.join(sorted(known - {'effective_ms'}))}")

    def text(self, table: Mapping[str, Any], key: str, wanted: str) -> str:
        value = table.get(key)
        if value is None:
            self.wrong(key, f"is missing: {wanted}")
        elif not isinstance(value, str) or not value.strip() or len(value) > MOST_TEXT or not value.isprintable():
            self.wrong(key, f"must be a printable text of at most {MOST_TEXT} characters: {wanted}")
        else:
            return value
        return ""

    def number(self, value: object, field: str) -> Decimal | None:
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str):
            self.wrong(field, "must be a decimal number, such as 12.50")
            return None
        try:
            return parse_decimal(value)
        except BadDecimal as error:
            self.wrong(field, str(error))
            return None

    def effective(self, document: Mapping[str, Any]) -> int | None:
        if "effective_ms" in document:  # the stored form
            value = document["effective_ms"]
            if isinstance(value, int) and not isinstance(value, bool) and "effective" not in document:
                return value
            self.wrong("effective_ms", "must be an integer, and stands instead of `effective`")
            return None
        value = document.get("effective")
        if isinstance(value, str):
            try:
                value = datetime.fromisoformat(value)
            except ValueError:
                value = None
        if not isinstance(value, datetime) or value.tzinfo is None:
            self.wrong("effective", "must be a time with an offset, such as 2026-11-01T00:00:00+08:00")
            return None
        return (value - _EPOCH) // timedelta(milliseconds=1)

    def rounding(self, table: object, currency: str) -> tuple[Rounding, Decimal | None]:
        if not isinstance(table, Mapping):
            self.wrong("rounding", "must be a table with `mode` and `unit`")
            return Rounding.HALF_EVEN, None
        self.unknown_keys(table, _ROUNDING_KEYS, "rounding.")
        mode = table.get("mode", Rounding.HALF_EVEN.value)
        if mode not in list(Rounding):
            self.wrong("rounding.mode", f"{mode!r} is none of {', '.join(Rounding)}")
            mode = Rounding.HALF_EVEN.value
        unit = self.number(table["unit"], "rounding.unit") if "unit" in table else minor_unit(currency)
        if unit is not None and unit <= 0:
            self.wrong("rounding.unit", "must be more than 0, such as 0.01")
        elif unit is not None and currency and unit % minor_unit(currency):
            self.wrong("rounding.unit", f"must be a multiple of {minor_unit(currency)}, what {currency} can be paid in")
        return Rounding(mode), unit

    def prices(self, table: object) -> dict[tuple[GpuClass, Booking], Decimal]:
        prices: dict[tuple[GpuClass, Booking], Decimal] = {}
        if not isinstance(table, Mapping) or not table:
            self.wrong("prices", "is missing: a table per GPU class, such as [prices.H100] guaranteed = 12.50")
            return prices
        seen: dict[str, str] = {}
        for gpu_class in sorted(table):
            field = f"prices.{gpu_class}"
            self.class_name(gpu_class, field, seen)
            by_booking = table[gpu_class]
            if not isinstance(by_booking, Mapping) or not by_booking:
                self.wrong(field, f"must be a table with one or more of {', '.join(Booking)}")
                continue
            for booking in sorted(by_booking):
                if booking not in list(Booking):
                    self.wrong(f"{field}.{booking}", f"unknown booking; known are {', '.join(Booking)}")
                    continue
                price = self.number(by_booking[booking], f"{field}.{booking}")
                if price is not None:
                    prices[GpuClass(gpu_class), Booking(booking)] = price
        if len(prices) > MOST_PRICES:
            self.wrong("prices", f"has {len(prices)} prices; at most {MOST_PRICES}")
        return prices

    def class_name(self, gpu_class: str, field: str, seen: dict[str, str]) -> None:
        if not gpu_class.strip() or not gpu_class.isprintable() or len(gpu_class) > MOST_TEXT:
            self.wrong(field, f"a GPU class is a printable name of at most {MOST_TEXT} characters")
        # SKUs are written in lower case, so two classes that differ in case only would share one.
        other = seen.setdefault(gpu_class.lower(), gpu_class)
        if other != gpu_class:
            self.wrong(field, f"overlaps with prices.{other}: GPU classes that differ in case only share their SKU")
