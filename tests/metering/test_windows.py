"""Windows against a naive model: percent and energy of every single millisecond."""

import itertools
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from metering.gpus import GpuSample
from metering.windows import SampleWindow, WindowFold

GAP_MS = 100
IDLE_PERCENT = 5
SUMS = ("samples", "measured_ms", "utilization_percent_ms", "idle_ms", "counter_resets")
Step = tuple[int, int | None, int | None]  # milliseconds since the last sample, utilisation, energy counter


def fold() -> WindowFold:
    return WindowFold("GPU-1", gap_ms=GAP_MS, idle_percent=IDLE_PERCENT)


def samples_of(steps: list[Step], start_ms: int = 1_000) -> list[GpuSample]:
    at_ms, samples = start_ms, []
    for elapsed_ms, percent, counter in steps:
        at_ms += elapsed_ms
        samples.append(GpuSample("GPU-1", at_ms, utilization_percent=percent, energy_millijoules=counter))
    return samples


def windows_of(steps: list[Step]) -> tuple[SampleWindow, ...]:
    one = fold()
    for sample in samples_of(steps):
        one.add(sample)
    return one.close()


def window_of(steps: list[Step]) -> SampleWindow:
    """All of it as one window, whatever lives the driver had meanwhile."""
    parts = windows_of(steps)
    energies = [part.energy_millijoules for part in parts if part.energy_millijoules is not None]
    sums = {name: sum(getattr(part, name) for part in parts) for name in SUMS}
    energy = sum(energies) if energies else None
    return replace(parts[-1], from_ms=parts[0].from_ms, energy_millijoules=energy, **sums)


def only(windows: tuple[SampleWindow, ...]) -> SampleWindow:
    (window,) = windows
    return window


percents = st.one_of(st.none(), st.integers(0, 100))
counters = st.one_of(st.none(), st.integers(0, 10_000))
step_lists = st.lists(st.tuples(st.integers(1, 250), percents, counters), min_size=2, max_size=30)


@given(step_lists, st.data())
def test_the_sums_do_not_depend_on_where_time_is_cut(steps: list[Step], data: st.DataObject) -> None:
    whole = window_of(steps)
    cuts = data.draw(st.sets(st.integers(0, len(steps) - 1)))
    parts: list[SampleWindow] = []
    cut_fold = fold()
    for position, sample in enumerate(samples_of(steps)):
        cut_fold.add(sample)
        if position in cuts:
            parts += cut_fold.close()
    windows = [*parts, *cut_fold.close()]
    assert all(window.counter_resets in {0, 1} for window in windows)
    for name in ("measured_ms", "utilization_percent_ms", "idle_ms", "counter_resets"):
        assert sum(getattr(part, name) for part in windows) == getattr(whole, name), name
    energies = [part.energy_millijoules for part in windows if part.energy_millijoules is not None]
    assert (sum(energies) if energies else None) == whole.energy_millijoules
    assert [windows[0].from_ms, windows[-1].to_ms] == [whole.from_ms, whole.to_ms]
    assert all(one.to_ms == other.from_ms for one, other in itertools.pairwise(windows))


@given(step_lists)
def test_utilisation_and_idle_time_equal_the_sum_over_single_milliseconds(steps: list[Step]) -> None:
    percent_at: dict[int, int] = {}
    samples = samples_of(steps)
    for before, after in itertools.pairwise(samples):
        if after.utilization_percent is not None and after.at_ms - before.at_ms <= GAP_MS:
            percent_at.update(dict.fromkeys(range(before.at_ms, after.at_ms), after.utilization_percent))
    window = window_of(steps)
    assert window.measured_ms == len(percent_at)
    assert window.utilization_percent_ms == sum(percent_at.values())
    assert window.idle_ms == sum(percent <= IDLE_PERCENT for percent in percent_at.values())


@given(st.lists(st.lists(st.integers(0, 500), min_size=1, max_size=8), min_size=1, max_size=6))
def test_energy_over_resets_is_what_was_seen_within_each_driver_epoch(epochs: list[list[int]]) -> None:
    """Each epoch starts a counter at zero and draws the given energies; a reset is seen when the counter falls."""
    counters: list[int] = []
    expected, seen_resets = 0, 0
    for draws in epochs:
        counter = 0
        values = [counter := counter + draw for draw in draws]
        if counters and values[0] < counters[-1]:
            seen_resets += 1
            expected += values[0]  # since the driver was loaded anew, which was after the last sample
        elif counters:
            expected += values[0] - counters[-1]  # a reset that nobody can see looks like a small difference
        expected += values[-1] - values[0]
        counters += values
    if len(counters) < 2:
        counters.append(counters[-1])
    window = window_of([(10, 50, counter) for counter in counters])
    assert (window.energy_millijoules or 0, window.counter_resets) == (expected, seen_resets)
    assert (window.energy_millijoules or 0) <= sum(map(sum, epochs)), "never more than was drawn"


def test_a_counter_that_falls_is_a_new_base_and_tells_so() -> None:
    one = fold()
    assert [one.add(sample) for sample in samples_of([(10, 1, 900), (10, 1, 1000), (10, 1, 40), (10, 1, 70)])] == [
        False,
        False,
        True,
        False,
    ]
    first, second = one.close()
    assert (first.energy_millijoules, first.counter_resets, first.to_ms) == (100, 0, second.from_ms)
    assert (second.energy_millijoules, second.counter_resets) == (40 + 30, 1)


def test_a_counter_that_jumps_back_by_a_little_did_not_begin_anew() -> None:
    """What it shows is more than any GPU can have used since the last sample; nothing is counted, nor taken away."""
    one = fold()
    assert not any(one.add(sample) for sample in samples_of([(10, 1, 10**9), (10, 1, 10**9 - 1), (10, 1, 10**9 + 4)]))
    assert (window := only(one.close())).counter_resets == 0
    assert window.energy_millijoules == 5


def test_energy_spans_a_gap_and_utilisation_does_not() -> None:
    window = window_of([(0, 80, 100), (50, 80, 150), (GAP_MS + 1, 80, 1150), (50, 20, 1200)])
    assert window.energy_millijoules == 1100
    assert window.measured_ms == 100
    assert window.utilization_mean_percent == 50
    assert window.coverage_ratio == 100 / 201


def test_an_interval_of_just_the_gap_limit_is_still_measured() -> None:
    assert window_of([(0, 80, None), (GAP_MS, 80, None)]).measured_ms == GAP_MS
    assert window_of([(0, 80, None), (GAP_MS + 1, 80, None)]).measured_ms == 0


def test_a_window_without_any_value_says_none_and_not_zero() -> None:
    window = window_of([(0, None, None), (50, None, None)])
    assert (window.utilization_mean_percent, window.energy_millijoules) == (None, None)
    assert (window.utilization_max_percent, window.memory_used_max_bytes) == (None, None)
    assert (window.idle_ms, window.idle_since_ms) == (0, None)


def test_an_idle_spell_begins_at_the_sample_before_the_first_idle_one_and_lives_over_windows() -> None:
    one = fold()
    for sample in samples_of([(0, 90, None), (50, 90, None), (50, IDLE_PERCENT, None)], start_ms=0):
        one.add(sample)
    first = only(one.close())
    one.add(GpuSample("GPU-1", 150, utilization_percent=0))
    second = only(one.close())
    one.add(GpuSample("GPU-1", 200, utilization_percent=IDLE_PERCENT + 1))
    third = only(one.close())
    assert [window.idle_since_ms for window in (first, second, third)] == [50, 50, None]
    assert [window.idle_ms for window in (first, second, third)] == [50, 50, 0]


def test_a_sample_that_is_not_later_than_the_last_changes_nothing() -> None:
    one = fold()
    for sample in samples_of([(0, 50, 10), (50, 50, 20)], start_ms=0):
        one.add(sample)
    assert not one.add(GpuSample("GPU-1", 50, utilization_percent=100, energy_millijoules=5))
    assert not one.add(GpuSample("GPU-1", 20, utilization_percent=100, energy_millijoules=99))
    window = only(one.close())
    assert (window.to_ms, window.energy_millijoules, window.utilization_max_percent) == (50, 10, 50)


def test_a_window_in_which_no_time_passed_is_none() -> None:
    one = fold()
    assert one.close() == ()
    one.add(GpuSample("GPU-1", 50))
    assert one.close() == ()
