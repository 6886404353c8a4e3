"""Slices to money: exact cost, line amounts in six decimals, and one rounding per invoice.

The cost of a slice is the exact product of its charged GPU-hours and the price that its stretch has for the tenant, or
nothing where a package or a reserved fee has paid before. A line shows it in six decimals, half to even. An invoice is
the sum of a tenant's lines in one currency: `payable` is rounded once, in the book's mode and unit, and the difference
stands on a line of its own, so that lines + tax + rounding = payable, exactly.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction

from metering.core.pricebook import Offer, PriceBook, ReservedFee
from metering.core.quantity import (
    AMOUNT_DECIMALS,
    UNIT_MS_PER_GPU_HOUR,
    GpuMs,
    Money,
    Rounding,
    divide,
)
from metering.core.stretches import Stretch
from metering.core.usage import Slice
from metering.core.volume import Package
from scheduler.core.model import AccountId, Booking, GpuClass, tenant_of

MICROS = 10**AMOUNT_DECIMALS


class LineType(StrEnum):
    """What a line is about: the word of the export's `line_type`."""

    USAGE = "usage"
    MINIMUM = "minimum"
    ENERGY = "energy"
    PACKAGE = "package"
    PACKAGE_UNUSED = "package_unused"
    RESERVED = "reserved"
    RESERVED_UNUSED = "reserved_unused"
    CREDIT = "credit"
    CORRECTION = "correction"
    TAX = "tax"
    ROUNDING = "rounding"


@dataclass(frozen=True, slots=True)
class Terms:
    """What a GPU-hour costs during one stretch, to one tenant and booking; `None` prices where no book names one."""

    book: PriceBook | None
    list_price: Decimal | None
    price: Decimal | None
    """What the tenant is asked; what is paid already costs nothing more, but keeps its price."""
    package: Package | None = None
    reserved: ReservedFee | None = None
    surcharge: "Terms | None" = None
    """What the power of a GPU-hour costs beside it."""

    @property
    def commitment(self) -> str:
        """The id of what has paid for the use before; empty for none."""
        if self.package is not None:
            return self.package.id
        return self.reserved.id if self.reserved is not None else ""


@dataclass(frozen=True, slots=True)
class Line:
    """A rated slice. `price` is None, and so is `amount_micros`, where the book in force names none."""

    slice: Slice
    book: PriceBook | None
    price: Decimal | None
    amount_micros: int | None
    """In 10**-6 of the book's currency; 0 where a package or a reserved fee pays."""
    terms: Terms
    list_micros: int | None = None
    """The cost at the list price."""
    type: LineType = LineType.USAGE

    @property
    def line_id(self) -> str:
        """The line's name, the same in every export."""
        return f"{self.slice.line_id}/energy" if self.type is LineType.ENERGY else self.slice.line_id

    @property
    def exact_cost(self) -> Money | None:
        """The cost before any rounding; None where there is no price."""
        if self.book is None or self.price is None:
            return None
        paid = Fraction(0) if self.terms.commitment else cost(self.slice.charged, self.price)
        return Money(paid, self.book.currency)


def cost(charged: GpuMs, price: Decimal) -> Fraction:
    """Returns charged GPU-hours × price per GPU-hour, exactly."""
    return charged.exact_hours * Fraction(price)


def cost_micros(unit_ms: int, price: Decimal) -> int:
    """Returns the cost of charged unit-milliseconds in 10**-6, half to even: integers all the way."""
    numerator, denominator = price.as_integer_ratio()
    return divide(unit_ms * numerator * MICROS, UNIT_MS_PER_GPU_HOUR * denominator)


def terms_of(stretch: Stretch, gpu_class: GpuClass, booking: Booking, holder: AccountId) -> Terms:
    """Returns what a GPU-hour costs a holder during a stretch of its tenant's."""
    book = stretch.book
    if book is None:
        return Terms(None, None, None)
    offer = book.offer((gpu_class, booking), stretch.contract, stretch.band, stretch.volume_hours)
    reserved = book.reserved_for(holder, gpu_class) if booking is Booking.GUARANTEED else None
    package = None if reserved is not None or not draws_packages(booking) else stretch.package
    if package is not None and package.currency != book.currency:
        package = None
    energy = book.energy.get(gpu_class)
    if offer is None:
        if reserved is None and package is None:
            return Terms(book, None, None)
        offer = Offer(Decimal(0), Decimal(0))  # what is paid already needs no price of its own
    surcharge = None if energy is None else Terms(book, energy, energy)
    return Terms(book, offer.list_price, offer.price, package, reserved, surcharge)


def draws_packages(booking: Booking) -> bool:
    """Says whether packages pay for a booking: spot is sold at its own low price, which a package would waste."""
    return booking is not Booking.SPOT


def rate(piece: Slice, terms: Terms | None = None) -> Line:
    """Returns the line of a slice by the terms of its stretch, which a caller may have at hand."""
    if terms is None:
        terms = terms_of(piece.stretch, piece.segment.gpu_class, piece.segment.booking, piece.segment.holder)
    kind = LineType.MINIMUM if piece.topped_ms else LineType.USAGE
    if piece.topped_ms and terms.package is not None:
        terms = replace(terms, package=None)  # a package is drawn by what is held
    if terms.price is None or terms.list_price is None:
        return Line(piece, None, None, None, terms, None, kind)
    unit_ms = piece.charged_unit_ms
    listed = cost_micros(unit_ms, terms.list_price)
    if terms.commitment:
        amount = 0
    elif terms.price is terms.list_price:
        amount = listed
    else:
        amount = cost_micros(unit_ms, terms.price)
    return Line(piece, terms.book, terms.price, amount, terms, listed, kind)


def energy_line(line: Line) -> Line | None:
    """Returns the surcharge for the power of a line's time; None where its book sells none."""
    terms = line.terms.surcharge
    if terms is None or terms.price is None or line.book is None:
        return None
    amount = cost_micros(line.slice.charged_unit_ms, terms.price)
    return Line(line.slice, line.book, terms.price, amount, terms, amount, LineType.ENERGY)


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


def _by_rate() -> dict[Decimal, int]:  # a function of the module: totals travel between processes
    return defaultdict(int)


class Totals:
    """Folds lines into invoices; memory grows with tenants, currencies and tax rates, not with lines."""

    def __init__(self) -> None:
        # By tenant and currency, and by tax rate.
        self.subtotals: dict[tuple[AccountId, str], dict[Decimal, int]] = defaultdict(_by_rate)
        self.counts: dict[tuple[AccountId, str], int] = defaultdict(int)
        self.terms: dict[tuple[AccountId, str], tuple[int, str, Rounding, Decimal]] = {}

    def add(self, line: Line) -> None:
        """Counts a line; one without a price belongs to no invoice."""
        if line.book is not None and line.amount_micros is not None:
            self.count(tenant_of(line.slice.segment.holder), line.book, line.amount_micros)

    def count(self, tenant: AccountId, book: PriceBook, amount_micros: int) -> None:
        """Counts an amount by the terms of a book."""
        key = (tenant, book.currency)
        self.subtotals[key][book.tax_rate] += amount_micros
        self.counts[key] += 1
        # The latest book of the currency says how the invoice is rounded, whatever order the lines come in.
        terms = (book.effective_ms, book.version, book.rounding, book.rounding_unit)
        self.terms[key] = max(terms, self.terms.get(key, terms))

    def fold(self, other: "Totals") -> None:
        """Takes what another one counted."""
        for key, by_rate in other.subtotals.items():
            mine = self.subtotals[key]
            for rate, micros in by_rate.items():
                mine[rate] += micros
            self.counts[key] += other.counts[key]
            self.terms[key] = max(other.terms[key], self.terms.get(key, other.terms[key]))

    def invoices(self) -> list[Invoice]:
        """Returns an invoice per tenant and currency, in that order."""
        return [self._invoice(*key) for key in sorted(self.subtotals)]

    def _invoice(self, tenant: AccountId, currency: str) -> Invoice:
        by_rate = self.subtotals[tenant, currency]
        _, _, mode, unit = self.terms[tenant, currency]
        subtotal = sum(by_rate.values())
        exact_tax = sum((Fraction(micros, MICROS) * Fraction(rate) for rate, micros in by_rate.items()), Fraction(0))
        tax = Money(exact_tax, currency).scaled(AMOUNT_DECIMALS)
        payable = Money(Fraction(subtotal + tax, MICROS), currency).rounded_to(unit, mode).scaled(AMOUNT_DECIMALS)
        rounding = payable - subtotal - tax
        count = self.counts[tenant, currency]
        return Invoice(tenant, currency, count, subtotal, tax, rounding, payable, tuple(sorted(by_rate)))


def invoices_of(lines: Iterable[Line]) -> list[Invoice]:
    """Returns the invoices of lines in any order."""
    totals = Totals()
    for line in lines:
        totals.add(line)
    return totals.invoices()
