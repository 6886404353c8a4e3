"""Charges that are not of one job: packages as they are bought, monthly fees, and what of both was left unused.

A fee of a month is due in proportion to the time of the month for which the book that names it is in force, where that
time begins. What is unused is no further cost: it says which part of a price that was paid before nobody used, so that
what packages and fees cost is told whole by their use and its unused rest.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise

from metering.core.civil import month_edges
from metering.core.pricebook import PriceBook, ReservedFee, book_in_force
from metering.core.quantity import AMOUNT_DECIMALS, MS_PER_HOUR, UNIT_MS_PER_GPU_HOUR, Money, divide
from metering.core.rating import MICROS, LineType
from metering.core.stretches import Stretch
from metering.core.volume import Package
from scheduler.core.model import GPU_UNITS, AccountId, GpuClass

QUANTITY_DECIMALS = 9


@dataclass(frozen=True, slots=True)
class Fee:
    """A charge beside usage. Amounts are in 10**-6 of the book's currency."""

    type: LineType
    line_id: str
    account: AccountId
    gpu_class: GpuClass
    commitment: str
    """The id of the package or fee that it is of."""
    from_ms: int
    to_ms: int
    book: PriceBook
    quantity_nano: int
    """How many (packages, months, unused GPU-hours), in 10**-9."""
    unit_price: Decimal
    list_micros: int
    """The price of the quantity; what is unused was paid before."""
    amount_micros: int
    effective_micros: int
    """The part of a commitment's price that this row tells: 0 for its purchase."""
    bought_nano: int = 0
    """GPU-hours that a purchase is of, in 10**-9."""


def fee_price(fee: ReservedFee, month_ms: int) -> Fraction:
    """Returns what a unit-millisecond of a reserved guarantee costs in a month of this length."""
    return Fraction(fee.monthly) / (fee.gpus * GPU_UNITS * month_ms)


def package_price(package: Package) -> Fraction:
    """Returns what a unit-millisecond of a package costs."""
    return Fraction(package.price) / package.unit_ms


def micros(amount: Fraction, currency: str) -> int:
    """Returns an exact amount in 10**-6, half to even."""
    return Money(amount, currency).scaled(AMOUNT_DECIMALS)


def purchases(packages: Sequence[Package], books: Sequence[PriceBook], from_ms: int, to_ms: int) -> Iterator[Fee]:
    """Yields the purchase of each package that begins in `[from_ms, to_ms)`."""
    for package in packages:
        book = book_in_force(books, package.from_ms)
        if book is None or not from_ms <= package.from_ms < to_ms:
            continue
        price = micros(Fraction(package.price), package.currency)
        yield Fee(
            LineType.PACKAGE,
            package.id,
            package.tenant,
            package.gpu_class,
            package.id,
            package.from_ms,
            package.to_ms,
            book,
            10**QUANTITY_DECIMALS,
            package.price,
            price,
            price,
            0,
            package.gpu_hours * 10**QUANTITY_DECIMALS,
        )


def expired(
    packages: Sequence[Package], left_unit_ms: Mapping[str, int], books: Sequence[PriceBook], span: tuple[int, int]
) -> Iterator[Fee]:
    """Yields what is left of each package that expires in `(from_ms, to_ms]`."""
    for package in packages:
        left = left_unit_ms.get(package.id, package.unit_ms)
        book = book_in_force(books, package.to_ms - 1)
        if book is None or not left or not span[0] < package.to_ms <= span[1]:
            continue
        price = _price_of_hour(package_price(package) * UNIT_MS_PER_GPU_HOUR)
        paid = micros(package_price(package) * left, package.currency)
        yield Fee(
            LineType.PACKAGE_UNUSED,
            f"{package.id}/unused",
            package.tenant,
            package.gpu_class,
            package.id,
            package.to_ms - 1,
            package.to_ms,
            book,
            _nano(Fraction(left, UNIT_MS_PER_GPU_HOUR)),
            price,
            paid,
            0,
            paid,
        )


def monthly_fees(books: Sequence[PriceBook], from_ms: int, to_ms: int) -> Iterator[Fee]:
    """Yields the reserved fees that fall due in `[from_ms, to_ms)`, by time and account."""
    for book, start_ms, end_ms in _in_force(books, to_ms):
        zone = book.tzinfo
        if not book.reserved or zone is None or end_ms <= from_ms:
            continue
        for first_ms, next_ms in pairwise(month_edges(max(start_ms, from_ms), min(end_ms, to_ms), zone)):
            due_ms, until_ms = max(first_ms, start_ms), min(next_ms, end_ms)
            if from_ms <= due_ms < to_ms and due_ms < until_ms:
                share = Fraction(until_ms - due_ms, next_ms - first_ms)
                yield from (_monthly(fee, book, (due_ms, until_ms), share) for fee in book.reserved)


def _in_force(books: Sequence[PriceBook], to_ms: int) -> Iterator[tuple[PriceBook, int, int]]:
    """Yields each book with the time for which it is in force; the last one's has no end."""
    ordered = sorted(books, key=lambda book: (book.effective_ms, book.version))
    for place, book in enumerate(ordered):
        following = ordered[place + 1].effective_ms if place + 1 < len(ordered) else to_ms + _CENTURY_MS
        if book.effective_ms < following:
            yield book, book.effective_ms, following


_CENTURY_MS = 100 * 366 * 86_400_000


def _monthly(fee: ReservedFee, book: PriceBook, span: tuple[int, int], share: Fraction) -> Fee:
    amount = micros(Fraction(fee.monthly) * share, book.currency)
    return Fee(
        LineType.RESERVED,
        f"{fee.id}/{span[0]}/{book.version}",
        fee.account,
        fee.gpu_class,
        fee.id,
        *span,
        book,
        _nano(share),
        fee.monthly,
        amount,
        amount,
        0,
        _nano(Fraction(fee.gpus * (span[1] - span[0]), MS_PER_HOUR)),
    )


UsedKey = tuple[str, date, str]
"""What used guarantees are added up by: the fee's id, the civil day, the version of the book."""


def unused_reserved(stretches: Sequence[Stretch], used_unit_ms: Mapping[UsedKey, int]) -> Iterator[Fee]:
    """Yields what of each guarantee nobody used, per stretch: one a day and book, without bands.

    Where a guarantee was used beyond what its fee names, nothing is unused.
    """
    for stretch in stretches:
        book = stretch.book
        zone = None if book is None else book.tzinfo
        if book is None or zone is None:
            continue
        for fee in book.reserved:
            start_ms, end_ms = month_edges(stretch.from_ms, stretch.to_ms, zone)[:2]
            held = fee.gpus * GPU_UNITS * (stretch.to_ms - stretch.from_ms)
            left = held - used_unit_ms.get((fee.id, stretch.day, book.version), 0)
            if left <= 0:
                continue
            price = fee_price(fee, end_ms - start_ms)
            paid = micros(price * left, book.currency)
            yield Fee(
                LineType.RESERVED_UNUSED,
                f"{fee.id}/{stretch.day.isoformat()}/{book.version}/unused",
                fee.account,
                fee.gpu_class,
                fee.id,
                stretch.from_ms,
                stretch.to_ms,
                book,
                _nano(Fraction(left, UNIT_MS_PER_GPU_HOUR)),
                _price_of_hour(price * UNIT_MS_PER_GPU_HOUR),
                paid,
                0,
                paid,
            )


def _nano(quantity: Fraction) -> int:
    return divide(quantity.numerator * 10**QUANTITY_DECIMALS, quantity.denominator)


def _price_of_hour(price: Fraction) -> Decimal:
    """Returns a price per GPU-hour in six decimals: for people, amounts are computed from the exact one."""
    return Decimal(divide(price.numerator * MICROS, price.denominator)).scaleb(-AMOUNT_DECIMALS)
