"""Tiers and packages are facts of time: counting each millisecond says the same, in whatever order uses come."""

from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from metering.core.quantity import UNIT_MS_PER_GPU_HOUR
from metering.core.volume import Package, Use, meter_of
from scheduler.core.model import AccountId, GpuClass

END_MS = 60
HUGE = UNIT_MS_PER_GPU_HOUR // 20
"""Units so many that a millisecond of them is a twentieth of a GPU-hour: hours pass within a test's sixty ticks."""


def package(name: str, from_ms: int, to_ms: int, hours: int) -> Package:
    return Package(name, AccountId("acme"), GpuClass("H100"), hours, Decimal(100), "CNY", from_ms, to_ms)


USES = st.lists(
    st.builds(
        lambda first, length, units, draws: Use(first, min(END_MS, first + length), units * HUGE, draws),
        st.integers(0, END_MS - 1),
        st.integers(1, END_MS),
        st.integers(1, 7),
        st.booleans(),
    ),
    max_size=8,
)
PACKAGES = st.lists(st.tuples(st.integers(0, END_MS - 1), st.integers(1, END_MS), st.integers(1, 6)), max_size=4).map(
    lambda rows: [
        package(f"package/{place}", first, first + length, hours) for place, (first, length, hours) in enumerate(rows)
    ]
)
THRESHOLDS = st.sets(st.integers(1, 20), max_size=4)
MONTHS = st.sets(st.integers(1, END_MS), max_size=2).map(lambda starts: [0, *sorted(starts)])


def brute(
    uses: list[Use], thresholds: set[int], packages: list[Package], months: list[int]
) -> tuple[list[tuple[int, str | None]], dict[str, int]]:
    """Counts millisecond by millisecond what tier and package each belongs to."""
    left = {each.id: each.unit_ms for each in packages}
    done: set[str] = set()
    volume, found = 0, []
    for at_ms in range(END_MS):
        if at_ms in months:
            volume = 0
        running = [use for use in uses if use.from_ms <= at_ms < use.to_ms]
        after = volume + sum(use.units for use in running)
        # The millisecond is in the first tier that it still fits in.
        tier = max((hours for hours in thresholds if after > hours * UNIT_MS_PER_GPU_HOUR), default=0)
        if after == volume:
            tier = max((hours for hours in thresholds if volume > hours * UNIT_MS_PER_GPU_HOUR), default=0)
        volume = after
        drawn = sum(use.units for use in running if use.draws)
        payer = None
        for each in sorted(packages, key=lambda one: (one.to_ms, one.from_ms, one.id)):
            if not each.from_ms <= at_ms < each.to_ms or each.id in done:
                continue
            if drawn > left[each.id]:
                done.add(each.id)
                continue
            left[each.id] -= drawn
            payer = each.id
            break
        found.append((tier, payer))
    return found, left


@given(USES, THRESHOLDS, PACKAGES, MONTHS, st.randoms())
def test_a_meter_is_what_counting_each_millisecond_says_in_any_order(
    uses: list[Use], thresholds: set[int], packages: list[Package], months: list[int], chance: object
) -> None:
    expected, left = brute(uses, thresholds, packages, months)
    mixed = list(uses)
    chance.shuffle(mixed)  # type: ignore[attr-defined]
    meter = meter_of(mixed, thresholds, packages, months)
    assert meter == meter_of(uses, thresholds, packages, months)
    for at_ms, (tier, payer) in enumerate(expected):
        edge = meter.at(at_ms)
        running = [use for use in uses if use.from_ms <= at_ms < use.to_ms]
        if running:  # where nothing runs, nothing is priced
            assert edge.volume_hours == tier, at_ms
        if any(use.draws for use in running):
            assert (edge.package.id if edge.package else None) == payer, at_ms
    assert dict(meter.left_unit_ms) == left
    assert all(unit_ms >= 0 for unit_ms in left.values())


@given(USES, THRESHOLDS, PACKAGES, MONTHS, st.integers(1, END_MS - 1))
def test_a_meter_does_not_depend_on_how_uses_are_cut(
    uses: list[Use], thresholds: set[int], packages: list[Package], months: list[int], cut_ms: int
) -> None:
    cut = []
    for use in uses:
        if use.from_ms < cut_ms < use.to_ms:
            cut += [Use(use.from_ms, cut_ms, use.units, use.draws), Use(cut_ms, use.to_ms, use.units, use.draws)]
        else:
            cut.append(use)
    assert meter_of(cut, thresholds, packages, months) == meter_of(uses, thresholds, packages, months)
