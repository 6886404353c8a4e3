"""GPU time and money are exact and refuse strangers."""

import itertools
from decimal import ROUND_DOWN, ROUND_HALF_EVEN, ROUND_HALF_UP, ROUND_UP, Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.core.quantity import (
    BadDecimal,
    CurrencyMismatch,
    GpuMs,
    InexactGpuMs,
    Money,
    Rounding,
    decimal_text,
    divide,
    fixed,
    gpu_ms_between,
    minor_unit,
    parse_decimal,
)
from scheduler.core.model import GPU_UNITS

DECIMAL_MODES = {
    Rounding.HALF_EVEN: ROUND_HALF_EVEN,
    Rounding.HALF_UP: ROUND_HALF_UP,
    Rounding.UP: ROUND_UP,
    Rounding.DOWN: ROUND_DOWN,
}
AMOUNTS = st.fractions(min_value=-(10**9), max_value=10**9, max_denominator=10**6)


@given(st.integers(-(10**15), 10**15), st.integers(0, 9), st.sampled_from(Rounding))
def test_division_rounds_as_the_decimal_module_does(scaled: int, digits: int, mode: Rounding) -> None:
    expected = Decimal(scaled).scaleb(-digits).quantize(Decimal(1), rounding=DECIMAL_MODES[mode])
    assert divide(scaled, 10**digits, mode) == int(expected)


@given(st.integers(-(10**18), 10**18), st.integers(0, 9))
def test_fixed_digits_read_back_as_the_same_number(scaled: int, decimals: int) -> None:
    text = fixed(scaled, decimals)
    assert Decimal(text) == Decimal(scaled).scaleb(-decimals)
    assert "E" not in text
    assert len(text.partition(".")[2]) == decimals


NOT_PLAIN = [
    *("", " 1", "1 ", "-1", "+1", "1e3", "1E3", "NaN", "nan", "Infinity", "inf", "1,5", "1.", ".5", "01", "0x1"),
    *("1_000", "1.0000000001", "1234567890123", "１２", "١", "1.5\n", "--1", "1.2.3", "卡"),
]


@pytest.mark.parametrize("text", NOT_PLAIN)
def test_what_is_not_a_plain_decimal_is_refused(text: str) -> None:
    with pytest.raises(BadDecimal):
        parse_decimal(text)


@given(st.decimals(0, 10**12 - 1, places=9))
def test_a_plain_decimal_is_read_exactly(number: Decimal) -> None:
    assert parse_decimal(decimal_text(number)) == number


def test_money_refuses_floats_bools_and_other_currencies() -> None:
    for odd in (1.5, True, "1"):
        with pytest.raises(TypeError):
            Money.of(odd, "CNY")  # type: ignore[arg-type]
    for number in ("NaN", "Infinity", "-Infinity", "sNaN"):
        with pytest.raises(BadDecimal):
            Money.of(Decimal(number), "CNY")
    with pytest.raises(TypeError):
        Money(1, "CNY")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cny"):
        Money.of(1, "cny")
    with pytest.raises(CurrencyMismatch, match="CNY and USD"):
        Money.of(1, "CNY") + Money.of(1, "USD")
    with pytest.raises(CurrencyMismatch):
        assert Money.of(1, "CNY") < Money.of(1, "USD")
    strangers: list[Any] = [1, 1.0, Fraction(1), Decimal(1), GpuMs(1)]
    for stranger in strangers:
        with pytest.raises(TypeError):
            Money.of(1, "CNY") + stranger


def test_gpu_time_refuses_numbers_and_money() -> None:
    strangers: list[Any] = [1, 1.0, True, Fraction(1), Money.of(1, "CNY")]
    for stranger in strangers:
        with pytest.raises(TypeError):
            GpuMs(1) + stranger
        with pytest.raises(TypeError):
            assert GpuMs(1) < stranger
    for odd in (1.0, True, Fraction(1)):
        with pytest.raises(TypeError):
            GpuMs(odd)  # type: ignore[arg-type]


def test_a_gpu_for_an_hour_is_one_gpu_hour() -> None:
    time = GpuMs.held(GPU_UNITS, 0, 3_600_000)
    assert time.whole_ms == 3_600_000
    assert time.exact_hours == 1
    assert time.hours_text == "1.000000000"


def test_a_seventh_of_a_gpu_has_no_whole_milliseconds_and_says_so() -> None:
    with pytest.raises(InexactGpuMs, match="1800/12600"):
        _ = GpuMs.held(GPU_UNITS // 7, 0, 1).whole_ms


@given(st.integers(1, 8 * GPU_UNITS), st.integers(0, 2 * 10**12), st.lists(st.integers(1, 10**9), max_size=20))
def test_splitting_conserves_integer_gpu_milliseconds(units: int, start_ms: int, lengths: list[int]) -> None:
    edges = [start_ms]
    for length in lengths:
        edges.append(edges[-1] + length)
    parts = [gpu_ms_between(units, first, last) for first, last in itertools.pairwise(edges)]
    assert sum(parts) == gpu_ms_between(units, edges[0], edges[-1])
    assert all(
        abs(part - GpuMs.held(units, first, last).exact_ms) < 1
        for part, first, last in zip(parts, edges, edges[1:], strict=False)
    )


@given(st.integers(1, 64), st.integers(0, 2 * 10**12), st.integers(0, 10**10))
def test_whole_gpus_have_exact_integer_milliseconds(gpus: int, start_ms: int, length_ms: int) -> None:
    assert gpu_ms_between(gpus * GPU_UNITS, start_ms, start_ms + length_ms) == gpus * length_ms


@given(AMOUNTS, st.sampled_from(["0.01", "0.05", "1", "0.001"]), st.sampled_from(Rounding))
def test_rounding_to_a_unit_is_a_multiple_of_it_and_nearer_than_one_unit(
    amount: Fraction, unit: str, mode: Rounding
) -> None:
    rounded = Money(amount, "CNY").rounded_to(Decimal(unit), mode)
    assert (rounded.amount / Fraction(unit)).denominator == 1
    assert abs(rounded.amount - amount) < Fraction(unit)
    if mode in {Rounding.HALF_EVEN, Rounding.HALF_UP}:
        assert abs(rounded.amount - amount) * 2 <= Fraction(unit)


@given(AMOUNTS, AMOUNTS)
def test_sums_of_money_are_exact(one: Fraction, other: Fraction) -> None:
    total = Money(one, "CNY") + Money(other, "CNY")
    assert total - Money(other, "CNY") == Money(one, "CNY")
    assert (-total).amount == -(one + other)


def test_minor_units_are_the_currencys_own() -> None:
    assert (minor_unit("CNY"), minor_unit("JPY"), minor_unit("KWD")) == (Decimal("0.01"), Decimal(1), Decimal("0.001"))
