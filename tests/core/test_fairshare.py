"""Water-filling against its definition."""

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.fairshare import water_fill, whole_parts

names = st.sampled_from("abcdef")
demands = st.dictionaries(names, st.tuples(st.integers(1, 9), st.integers(0, 50)), min_size=1)


def _divide(total: int, wanted: dict[str, tuple[int, int]]) -> tuple[dict[str, Fraction], dict[str, int]]:
    caps = {name: cap for name, (_, cap) in wanted.items()}
    return water_fill(total, {name: Fraction(weight) for name, (weight, _) in wanted.items()}, caps), caps


@given(st.integers(0, 100), demands)
def test_everything_that_is_wanted_and_there_is_given_out(total: int, wanted: dict[str, tuple[int, int]]) -> None:
    parts, caps = _divide(total, wanted)
    assert sum(parts.values()) == min(total, sum(caps.values()))
    assert all(0 <= parts[name] <= caps[name] for name in caps)


@given(st.integers(0, 100), demands)
def test_whoever_gets_less_than_it_wants_gets_no_less_per_weight_than_anybody(
    total: int, wanted: dict[str, tuple[int, int]]
) -> None:
    parts, caps = _divide(total, wanted)
    levels = {name: parts[name] / wanted[name][0] for name in wanted}
    short = [name for name in wanted if parts[name] < caps[name]]
    assert all(levels[name] >= levels[other] for name in short for other in wanted)


@given(st.integers(0, 100), demands, st.integers(1, 7))
def test_rounding_keeps_the_sum_and_stays_within_a_unit(
    total: int, wanted: dict[str, tuple[int, int]], unit: int
) -> None:
    parts, _ = _divide(total, wanted)
    whole = whole_parts(parts, unit)
    assert sum(whole.values()) == sum(parts.values())
    assert all(abs(whole[name] - parts[name]) <= unit for name in parts)


@given(st.integers(0, 100), demands, names)
def test_more_weight_never_means_less(total: int, wanted: dict[str, tuple[int, int]], favoured: str) -> None:
    weight, cap = wanted.get(favoured, (1, 10))
    before, _ = _divide(total, {**wanted, favoured: (weight, cap)})
    after, _ = _divide(total, {**wanted, favoured: (weight + 1, cap)})
    assert after[favoured] >= before[favoured]
