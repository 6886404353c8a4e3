"""A retroactive price changes lines by the exact difference, each under its own name, and no other line."""

from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.core.differences import Difference, differences
from metering.core.pricebook import Contract, PriceBook
from metering.core.quantity import CurrencyMismatch
from metering.core.rating import MICROS, Line, rate
from metering.core.usage import Stretch, segments_of, slices_of, stretches_of
from scheduler.core.model import AccountId
from tests.metering.builders import DAY_MS, HOUR_MS, NOON_MS, book, holding

SHANGHAI = ZoneInfo("Asia/Shanghai")
SPAN = (NOON_MS, NOON_MS + 2 * DAY_MS)


def stretches(*books: PriceBook) -> tuple[Stretch, ...]:
    return stretches_of(*SPAN, SHANGHAI, books, AccountId("acme"))


def lines(*books: PriceBook, length_ms: int = 20 * HOUR_MS) -> list[Line]:
    segments = segments_of([holding(from_ms=NOON_MS, to_ms=NOON_MS + length_ms)])
    return [rate(piece) for segment in segments for piece in slices_of(segment, stretches(*books))]


def told(found: Sequence[Line], *books: PriceBook) -> list[Difference]:
    now = stretches(*books)
    return list(differences(found, lambda tenant, gpu_class: now))


def test_the_same_books_make_no_difference() -> None:
    assert told(lines(book()), book()) == []


def test_a_book_of_the_past_changes_the_part_of_a_line_that_it_is_in_force_for() -> None:
    late = book("late", NOON_MS + 6 * HOUR_MS, prices={"burst": "10"})
    first, second = lines(book())
    one, other = told([first, second], book(), late)
    # Twelve hours to midnight at 18, of which six are at 10 now; then eight hours.
    assert (one.line.line_id, one.delta_micros, one.books) == (first.line_id, -48 * MICROS, ("2026-10", "late"))
    assert (other.line.line_id, other.delta_micros, other.books) == (second.line_id, -64 * MICROS, ("late",))


def test_a_contract_signed_late_corrects_its_tenants_lines() -> None:
    signed = replace(book("signed", 1), contracts=(Contract(AccountId("acme"), None, None, {}, Decimal("0.5")),))
    assert sum(each.delta_micros for each in told(lines(book()), book(), signed)) == -180 * MICROS


def test_what_had_no_price_is_charged_whole_and_what_loses_it_is_given_back() -> None:
    free = lines(book(prices={"spot": "1"}))
    assert sum(each.delta_micros for each in told(free, book())) == 360 * MICROS
    gone = told(lines(book()), book(prices={"spot": "1"}))
    assert [each.micros for each in gone] == [None, None]
    assert sum(each.delta_micros for each in gone) == -360 * MICROS


def test_another_currency_is_no_correction() -> None:
    with pytest.raises(CurrencyMismatch):
        told(lines(book()), book(currency="USD"))


@given(
    st.integers(1, 47 * HOUR_MS),
    st.lists(
        st.tuples(st.integers(0, 2 * DAY_MS), st.decimals(0, 50, places=6)), max_size=4, unique_by=lambda each: each[0]
    ),
)
def test_billed_and_differences_are_what_the_new_books_cost(length_ms: int, later: list[tuple[int, Decimal]]) -> None:
    books = [book(), *(book(f"v{at}", NOON_MS + at, prices={"burst": format(price, "f")}) for at, price in later)]
    before = lines(book(), length_ms=length_ms)
    found = {each.line.line_id: each.delta_micros for each in told(before, *books)}
    corrected = sum((line.amount_micros or 0) + found.get(line.line_id, 0) for line in before)
    exact = Fraction(0)
    for line in lines(*books, length_ms=length_ms):
        assert line.exact_cost is not None
        exact += line.exact_cost.amount
    # Each line rounds once, to half of a millionth.
    assert abs(Fraction(corrected, MICROS) - exact) <= Fraction(len(before), 2 * MICROS)
