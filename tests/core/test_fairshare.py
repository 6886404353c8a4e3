"""Water-filling against its definition, and effective weights."""

from fractions import Fraction
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.core.fairshare import WEIGHT_STEPS, effective_weights, pro_rata, water_fill

names = st.sampled_from("abcdef")
demands = st.dictionaries(names, st.tuples(st.integers(1, 9), st.integers(0, 50)), min_size=1)


def _divide(total: int, wanted: dict[str, tuple[int, int]]) -> tuple[dict[str, Fraction], dict[str, int]]:
    caps = {name: cap for name, (_, cap) in wanted.items()}
    return water_fill(total, {name: weight for name, (weight, _) in wanted.items()}, caps).exact(), caps


def _by_raising_the_level(total: int, wanted: dict[str, tuple[int, int]]) -> dict[str, Fraction]:
    """The definition, by hand: raise one level for all, stop each at its cap, until everything is given out."""
    parts = dict.fromkeys(wanted, Fraction(0))
    left = Fraction(total)
    while left and (rising := [name for name in wanted if parts[name] < wanted[name][1]]):
        speed = sum(wanted[name][0] for name in rising)
        step = min(left / speed, *((wanted[name][1] - parts[name]) / wanted[name][0] for name in rising))
        for name in rising:
            parts[name] += step * wanted[name][0]
        left -= step * speed
    return parts


@given(st.integers(0, 100), demands)
def test_the_division_is_what_raising_a_level_by_hand_gives(total: int, wanted: dict[str, tuple[int, int]]) -> None:
    parts, _ = _divide(total, wanted)
    assert parts == _by_raising_the_level(total, wanted)


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
def test_rounding_keeps_the_sum_and_the_caps_and_stays_within_a_unit(
    total: int, wanted: dict[str, tuple[int, int]], unit: int
) -> None:
    caps = {name: cap for name, (_, cap) in wanted.items()}
    division = water_fill(total, {name: weight for name, (weight, _) in wanted.items()}, caps)
    parts, whole = division.exact(), division.whole(unit)
    assert sum(whole.values()) == sum(parts.values())
    assert all(abs(whole[name] - parts[name]) <= unit and whole[name] <= caps[name] for name in parts)


@given(st.integers(0, 100), demands)
def test_whole_parts_are_whole_where_everything_is(total: int, wanted: dict[str, tuple[int, int]]) -> None:
    caps = {name: cap * 4 for name, (_, cap) in wanted.items()}
    whole = water_fill(total * 4, {name: weight for name, (weight, _) in wanted.items()}, caps).whole(4)
    assert all(part % 4 == 0 for part in whole.values())


@given(st.integers(0, 100), demands, names)
def test_more_weight_never_means_less(total: int, wanted: dict[str, tuple[int, int]], favoured: str) -> None:
    weight, cap = wanted.get(favoured, (1, 10))
    before, _ = _divide(total, {**wanted, favoured: (weight, cap)})
    after, _ = _divide(total, {**wanted, favoured: (weight + 1, cap)})
    assert after[favoured] >= before[favoured]


@given(st.integers(0, 400), st.dictionaries(names, st.integers(0, 40), min_size=1))
def test_guarantees_that_exceed_what_is_left_shrink_in_proportion(total: int, bought: dict[str, int]) -> None:
    cut = pro_rata(total, bought, 1)
    whole = sum(bought.values())
    assert sum(cut.values()) == min(total, whole)
    for name, part in bought.items():
        assert cut[name] == part if whole <= total else abs(cut[name] - Fraction(total * part, whole)) <= 1


owing = st.dictionaries(names, st.tuples(st.integers(1, 9), st.integers(0, 10**12)), min_size=1)


def _weights(accounts: dict[str, tuple[int, int]]) -> dict[str, int]:
    return effective_weights(
        {name: weight for name, (weight, _) in accounts.items()}, {name: owed for name, (_, owed) in accounts.items()}
    )


@given(owing)
def test_an_effective_weight_lies_between_a_sixteenth_and_the_whole_and_follows_the_formula(
    accounts: dict[str, tuple[int, int]],
) -> None:
    weights = _weights(accounts)
    owed, total = sum(debt for _, debt in accounts.values()), sum(weight for weight, _ in accounts.values())
    for name, (weight, debt) in accounts.items():
        expected = 1.0 if not owed else max(1 / 16, 2 ** -(debt / weight / (owed / total)))
        assert weights[name] % weight == 0
        assert abs(weights[name] / weight / WEIGHT_STEPS - expected) <= 2**-20


@settings(max_examples=100)
@given(owing, names, st.integers(1, 10**12))
def test_more_debt_never_means_more_effective_weight(
    accounts: dict[str, tuple[int, int]], name: str, more: int
) -> None:
    weight, owed = accounts.get(name, (1, 0))
    before = _weights({**accounts, name: (weight, owed)})[name]
    assert _weights({**accounts, name: (weight, owed + more)})[name] <= before
    assert _weights({**accounts, name: (weight + 1, owed)})[name] >= before


def test_an_account_at_the_mean_has_half_its_weight_and_one_without_debt_all_of_it() -> None:
    weights = _weights({"a": (2, 20), "b": (2, 20), "c": (1, 10), "d": (1, 0), "e": (1, 20)})
    assert weights["d"] == WEIGHT_STEPS
    assert weights["a"] == weights["b"] == 2 * weights["c"] == WEIGHT_STEPS
    assert weights["e"] == WEIGHT_STEPS // 4
    ladder = [_weights({"a": (1, debt), "b": (1, 100)})["a"] for debt in range(0, 1000, 10)]
    assert all(high >= low for high, low in pairwise(ladder))
