"""What lines would cost by other prices: the differences that corrections are made of, line by line.

A line that was billed keeps its name, its interval and its amount. `differences` rates that very interval again, by the
stretches as they are known now, and tells what it would cost: nothing is said of lines that cost the same. Because a
price depends on time alone, a line may be rated piece by piece, and the pieces' exact costs add up before they are
rounded, once, as the line was.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from metering.core.quantity import AMOUNT_DECIMALS, Money
from metering.core.rating import Line, LineType, cost, terms_of
from metering.core.stretches import Stretch
from metering.core.usage import Slice, slices_of
from scheduler.core.model import AccountId, GpuClass, tenant_of

StretchesOf = Callable[[AccountId, GpuClass], Sequence[Stretch]]
"""The stretches of a tenant and class as they are known now, over all that the lines are of."""


@dataclass(frozen=True, slots=True)
class Difference:
    """What a line was billed for and what it would cost now, in 10**-6 of the currency; None is no price."""

    line: Line
    billed_micros: int | None
    micros: int | None
    currency: str
    books: tuple[str, ...]
    """The versions of the books that it is rated by now."""

    @property
    def delta_micros(self) -> int:
        """What is to be paid more, or less where it is negative."""
        return (self.micros or 0) - (self.billed_micros or 0)


def differences(lines: Iterable[Line], stretches_of: StretchesOf) -> Iterator[Difference]:
    """Yields the lines of usage and least charges that cost something else now, in their order.

    Raises CurrencyMismatch where a book of another currency would rate what was billed.
    """
    for line in lines:
        if line.type not in {LineType.USAGE, LineType.MINIMUM}:
            continue
        piece = line.slice
        stretches = stretches_of(tenant_of(piece.segment.holder), piece.segment.gpu_class)
        found = _rated_again(piece, stretches)
        billed = line.amount_micros
        if found is None:
            if billed:
                assert line.book is not None, "what was billed was billed by a book"
                yield Difference(line, billed, None, line.book.currency, ())
            continue
        money, books = found
        if line.book is not None:
            money = Money(Fraction(0), line.book.currency) + money
        micros = money.scaled(AMOUNT_DECIMALS)
        if micros != billed:
            yield Difference(line, billed, micros, money.currency, books)


def _rated_again(piece: Slice, stretches: Sequence[Stretch]) -> tuple[Money, tuple[str, ...]] | None:
    """Returns the exact cost of a slice's interval now, and by which books; None where a part of it has no price."""
    total: Money | None = None
    books: list[str] = []
    for part in _parts(piece, stretches):
        segment = part.segment
        terms = terms_of(part.stretch, segment.gpu_class, segment.booking, segment.holder)
        if terms.book is None or terms.price is None:
            return None
        is_paid = terms.reserved is not None or (terms.package is not None and not part.topped_ms)
        money = Money(Fraction(0) if is_paid else cost(part.charged, terms.price), terms.book.currency)
        total = money if total is None else total + money
        if terms.book.version not in books:
            books.append(terms.book.version)
    return None if total is None else (total, tuple(books))


def _parts(piece: Slice, stretches: Sequence[Stretch]) -> list[Slice]:
    """Returns a slice cut by other stretches; what it is topped by belongs to the stretch of its end."""
    if piece.topped_ms:
        at = [each for each in stretches if each.from_ms < piece.to_ms <= each.to_ms]
        return [Slice(piece.segment, each, piece.from_ms, piece.to_ms, piece.topped_ms) for each in at]
    inside = [each.part(piece.from_ms, piece.to_ms) for each in stretches if _meets(each, piece)]
    return slices_of(piece.segment, inside)


def _meets(stretch: Stretch, piece: Slice) -> bool:
    return stretch.from_ms < piece.to_ms and piece.from_ms < stretch.to_ms
