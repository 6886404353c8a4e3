"""Price books say all that is wrong at once, and their hash is their identity."""

import json
from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.core.quantity import Rounding
from metering.core.tariff import PriceBook, book_in_force, canonical_json, parse_price_book, price_book_of
from scheduler.clock import parse_utc_ms
from scheduler.core.model import Booking, GpuClass
from scheduler.refusal import RefusalCode, Refused
from tests.metering.builders import book

GOOD = """
version = "2026-11"
currency = "CNY"
effective = 2026-11-01T00:00:00+08:00
tax_rate = "0.06"

[rounding]
mode = "half_up"
unit = "0.01"

[prices.H100-80GB]
guaranteed = "12.50"
burst = 18
spot = 6.123456789

[prices."A100 80GB"]
burst = "9"
"""


def problems_of(text: str) -> dict[str, str]:
    with pytest.raises(Refused) as caught:
        parse_price_book(text)
    assert caught.value.code is RefusalCode.INVALID
    return {problem.field or "": problem.message for problem in caught.value.problems}


def test_a_price_file_is_read_exactly() -> None:
    assert parse_price_book(GOOD) == PriceBook(
        version="2026-11",
        currency="CNY",
        effective_ms=parse_utc_ms("2026-11-01T00:00:00+08:00"),
        prices={
            (GpuClass("H100-80GB"), Booking.GUARANTEED): Decimal("12.50"),
            (GpuClass("H100-80GB"), Booking.BURST): Decimal(18),
            (GpuClass("H100-80GB"), Booking.SPOT): Decimal("6.123456789"),
            (GpuClass("A100 80GB"), Booking.BURST): Decimal(9),
        },
        tax_rate=Decimal("0.06"),
        rounding=Rounding.HALF_UP,
        rounding_unit=Decimal("0.01"),
    )


def test_every_problem_of_a_price_file_is_told_at_once() -> None:
    found = problems_of(
        """
        currency = "yuan"
        effective = 2026-11-01T00:00:00
        tax_rate = "1.5"
        vat = 3
        [rounding]
        mode = "bankers"
        unit = "0"
        kind = 1
        [prices.H100]
        guaranteed = "-1"
        burst = nan
        spot = inf
        lifetime = "3"
        [prices.h100]
        burst = 1e3
        [prices.A100]
        """
    )
    assert set(found) == {
        *("version", "currency", "effective", "tax_rate", "vat", "rounding.mode", "rounding.unit", "rounding.kind"),
        *("prices.H100.guaranteed", "prices.H100.burst", "prices.H100.spot", "prices.H100.lifetime"),
        *("prices.h100", "prices.h100.burst", "prices.A100"),
    }
    assert "overlaps with prices.H100" in found["prices.h100"]
    assert "guaranteed, burst, spot" in found["prices.H100.lifetime"]


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ('"12.50"', "true", "prices.H100-80GB.guaranteed"),
        ('"12.50"', '"1e-3"', "prices.H100-80GB.guaranteed"),
        ('"12.50"', "[]", "prices.H100-80GB.guaranteed"),
        ('unit = "0.01"', 'unit = "0.001"', "rounding.unit"),
        ('"2026-11"', '" "', "version"),
        ('"2026-11"', '"a\\u0007"', "version"),
        ('"2026-11"', "2026", "version"),
        ("2026-11-01T00:00:00+08:00", "2026-11-01", "effective"),
        ("2026-11-01T00:00:00+08:00", '"tomorrow"', "effective"),
        ('tax_rate = "0.06"', 'tax_rate = "0.06"\neffective_ms = 3', "effective_ms"),
    ],
)
def test_one_wrong_thing_is_told_by_its_name(old: str, new: str, field: str) -> None:
    assert set(problems_of(GOOD.replace(old, new))) == {field}


def test_what_is_not_toml_says_where() -> None:
    with pytest.raises(Refused, match=r"not TOML.*line 1"):
        parse_price_book("prices = = 3")


def test_a_file_without_prices_is_refused() -> None:
    assert set(problems_of(GOOD[: GOOD.index("[prices")])) == {"prices"}


PRICES = st.dictionaries(
    st.tuples(st.sampled_from(["H100", "A100", "国产卡"]).map(GpuClass), st.sampled_from(Booking)),
    st.decimals(0, 10**6, places=6),
    min_size=1,
)


@given(PRICES, st.integers(0, 4 * 10**12), st.decimals(0, "0.99", places=4), st.sampled_from(Rounding))
def test_a_book_is_read_back_from_its_canonical_json(
    prices: dict[tuple[GpuClass, Booking], Decimal], effective_ms: int, tax_rate: Decimal, mode: Rounding
) -> None:
    written = PriceBook("v1", "CNY", effective_ms, prices, tax_rate, mode)
    text = canonical_json(written)
    again = price_book_of(json.loads(text))
    assert again == written
    assert canonical_json(again) == text
    assert again.sha256 == written.sha256


def test_the_hash_is_of_the_content_not_of_its_spelling() -> None:
    one = book(prices={"burst": "18.50", "spot": "6"})
    assert one.sha256 == book(prices={"spot": "6.00", "burst": "18.5"}).sha256
    others = [
        replace(one, version="x"),
        replace(one, currency="USD"),
        replace(one, effective_ms=1),
        replace(one, tax_rate=Decimal("0.06")),
        replace(one, rounding=Rounding.UP),
        replace(one, rounding_unit=Decimal("0.1")),
        book(prices={"burst": "18.51", "spot": "6"}),
        book(prices={"burst": "18.5"}),
        book(prices={"burst": "18.5", "spot": "6"}, gpu_class="A100"),
    ]
    assert len({one.sha256, *(other.sha256 for other in others)}) == len(others) + 1


@given(st.lists(st.integers(0, 50), unique=True), st.integers(-1, 60))
def test_the_book_in_force_is_the_latest_that_has_begun(starts: list[int], at_ms: int) -> None:
    books = [book(f"v{start}", start) for start in starts]
    begun = [start for start in starts if start <= at_ms]
    found = book_in_force(books, at_ms)
    assert (found.effective_ms if found else None) == max(begun, default=None)


def test_a_price_that_is_not_there_is_not_zero() -> None:
    assert book(prices={"burst": "0"}).price(GpuClass("H100"), Booking.SPOT) is None
    assert book(prices={"burst": "0"}).price(GpuClass("H100"), Booking.BURST) == 0
