"""Slices to money: exact cost, line amounts in six decimals, and one rounding per invoice.

The cost of a slice is the exact product of its charged GPU-hours and the price of its book. A line shows it in six
decimals, half to even. An invoice is the sum of a tenant's lines in one currency: `payable` is rounded once, in the
book's mode and unit, and the difference stands on a line of its own, so that lines + tax + rounding = payable, exactly.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from metering.core.quantity import (
    AMOUNT_DECIMALS,
    UNIT_MS_PER_GPU_HOUR,
    GpuMs,
    Money,
    Rounding,
    divide,
)
from metering.core.tariff import PriceBook
from metering.core.usage import Slice
from scheduler.core.model import AccountId, tenant_of

MICROS = 10**AMOUNT_DECIMALS


@dataclass(frozen=True, slots=True)
class Line:
    """A rated slice. `price` is None, and so is `amount_micros`, where the book in force names none."""

    slice: Slice
    book: PriceBook | None
    price: Decimal | None
    amount_micros: int | None
    """In 10**-6 of the book's currency."""

    @property
    def exact_cost(self) -> Money | None:
        """The cost before any rounding; None where there is no price."""
        if self.book is None or self.price is None:
            return None
        return Money(cost(self.slice.charged, self.price), self.book.currency)


def cost(charged: GpuMs, price: Decimal) -> Fraction:
    """Returns charged GPU-hours × price per GPU-hour, exactly."""
    return charged.exact_hours * Fraction(price)


def rate(piece: Slice) -> Line:
    """Returns the line of a slice by the book of its stretch."""
    book = piece.stretch.book
    price = book.price(piece.segment.gpu_class, piece.segment.booking) if book else None
    if book is None or price is None:
        return Line(piece, None, None, None)
    numerator, denominator = price.as_integer_ratio()
    scaled = piece.charged.unit_ms * numerator * MICROS
    return Line(piece, book, price, divide(scaled, UNIT_MS_PER_GPU_HOUR * denominator))


@dataclass(frozen=True, slots=True)
class Invoice:
    """What a tenant owes in one currency. All amounts are in 10**-6 of it: subtotal + tax + rounding = payable."""

    tenant: AccountId
    currency: str
    lines: int
    subtotal_micros: int
    tax_micros: int
    rounding_micros: int
    payable_micros: int
    tax_rates: tuple[Decimal, ...]
    """The rates that its lines were taxed at, ascending."""


class Totals:
    """Folds lines into invoices; memory grows with tenants, currencies and tax rates, not with lines."""

    def __init__(self) -> None:
        self._subtotals: dict[tuple[AccountId, str], dict[Decimal, int]] = defaultdict(lambda: defaultdict(int))
        self._counts: dict[tuple[AccountId, str], int] = defaultdict(int)
        self._terms: dict[tuple[AccountId, str], tuple[int, str, Rounding, Decimal]] = {}

    def add(self, line: Line) -> None:
        """Counts a line; one without a price belongs to no invoice."""
        if line.book is not None and line.amount_micros is not None:
            self.count(tenant_of(line.slice.segment.holder), line.book, line.amount_micros)

    def count(self, tenant: AccountId, book: PriceBook, amount_micros: int) -> None:
        """Counts an amount by the terms of a book."""
        key = (tenant, book.currency)
        self._subtotals[key][book.tax_rate] += amount_micros
        self._counts[key] += 1
        # The latest book of the currency says how the invoice is rounded, whatever order the lines come in.
        terms = (book.effective_ms, book.version, book.rounding, book.rounding_unit)
        self._terms[key] = max(terms, self._terms.get(key, terms))

    def invoices(self) -> list[Invoice]:
        """Returns an invoice per tenant and currency, in that order."""
        return [self._invoice(*key) for key in sorted(self._subtotals)]

    def _invoice(self, tenant: AccountId, currency: str) -> Invoice:
        by_rate = self._subtotals[tenant, currency]
        _, _, mode, unit = self._terms[tenant, currency]
        subtotal = sum(by_rate.values())
        exact_tax = sum((Fraction(micros, MICROS) * Fraction(rate) for rate, micros in by_rate.items()), Fraction(0))
        tax = Money(exact_tax, currency).scaled(AMOUNT_DECIMALS)
        payable = Money(Fraction(subtotal + tax, MICROS), currency).rounded_to(unit, mode).scaled(AMOUNT_DECIMALS)
        rounding = payable - subtotal - tax
        count = self._counts[tenant, currency]
        return Invoice(tenant, currency, count, subtotal, tax, rounding, payable, tuple(sorted(by_rate)))


def invoices_of(lines: Iterable[Line]) -> list[Invoice]:
    """Returns the invoices of lines in any order."""
    totals = Totals()
    for line in lines:
        totals.add(line)
    return totals.invoices()
