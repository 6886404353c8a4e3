"""How long GPUs have done nothing: only what was measured, never what is unknown."""

from hypothesis import given, settings
from hypothesis import strategies as st

from metering.idle import IdleSpells
from metering.windows import SampleWindow

MINUTE = 60_000
GAP = 150_000


def window(minute: int, percent: int | None = 0, *, uuid: str = "G", measured: int = MINUTE) -> SampleWindow:
    return SampleWindow(
        uuid=uuid,
        from_ms=minute * MINUTE,
        to_ms=(minute + 1) * MINUTE,
        samples=4,
        measured_ms=0 if percent is None else measured,
        utilization_percent_ms=0,
        memory_utilization_percent_ms=0,
        utilization_max_percent=percent,
        memory_used_max_bytes=0,
        energy_millijoules=0,
        counter_resets=0,
        idle_ms=0,
        idle_since_ms=None,
    )


def spells(*windows: SampleWindow) -> IdleSpells:
    found = IdleSpells(idle_percent=5, gap_ms=GAP)
    found.take_in(windows)
    return found


def test_a_spell_begins_with_the_first_idle_window_and_not_before_the_job() -> None:
    found = spells(window(0, 90), window(1), window(2, 5), window(3, 3))
    assert found.idle_since_ms(["G"], 0, 4 * MINUTE) == MINUTE
    assert found.idle_since_ms(["G"], 2 * MINUTE + 1, 4 * MINUTE) == 2 * MINUTE + 1


def test_a_job_is_idle_only_when_all_its_gpus_are() -> None:
    found = spells(window(0), window(1), window(0, 70, uuid="H"), window(1, uuid="H"))
    assert found.idle_since_ms(["G", "H"], 0, 2 * MINUTE) == MINUTE
    assert found.idle_since_ms(["G", "unmeasured"], 0, 2 * MINUTE) is None
    assert found.idle_since_ms([], 0, 2 * MINUTE) is None


def test_what_is_unknown_is_never_idle() -> None:
    assert spells(window(0), window(1, None)).idle_since_ms(["G"], 0, 2 * MINUTE) is None
    assert spells(window(0), window(1, measured=MINUTE // 2)).idle_since_ms(["G"], 0, 2 * MINUTE) is None
    late = spells(window(0))
    assert late.idle_since_ms(["G"], 0, MINUTE + GAP) == 0
    assert late.idle_since_ms(["G"], 0, MINUTE + GAP + 1) is None
    assert spells(window(0), window(9)).idle_since_ms(["G"], 0, 10 * MINUTE) == 9 * MINUTE


def test_a_window_told_twice_changes_nothing() -> None:
    assert spells(window(0), window(1), window(0), window(1)).idle_since_ms(["G"], 0, 2 * MINUTE) == 0


@settings(max_examples=100)
@given(st.lists(st.sampled_from([None, 0, 5, 6, 100]), min_size=1, max_size=12))
def test_a_spell_is_the_longest_run_of_idle_windows_at_the_end(percents: list[int | None]) -> None:
    found = spells(*(window(minute, percent) for minute, percent in enumerate(percents)))
    run = 0
    while run < len(percents) and (last := percents[-1 - run]) is not None and last <= 5:
        run += 1
    expected = (len(percents) - run) * MINUTE if run else None
    assert found.idle_since_ms(["G"], 0, len(percents) * MINUTE) == expected


@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(1, 4), st.sampled_from([None, 0, 5, 6])), min_size=1, max_size=12))
def test_looking_back_finds_the_spells_that_watching_finds(steps: list[tuple[int, int | None]]) -> None:
    minutes = [sum(length for length, _ in steps[: place + 1]) for place in range(len(steps))]
    windows = [window(minute, percent) for minute, (_, percent) in zip(minutes, steps, strict=True)]
    watched, recalled = spells(*windows), spells()
    for each in reversed(windows):
        if not recalled.look_back(each):
            break
    now_ms = (minutes[-1] + 1) * MINUTE
    assert recalled.idle_since_ms(["G"], 0, now_ms) == watched.idle_since_ms(["G"], 0, now_ms)
    recalled.take_in(windows[-1:])  # told again by the look that follows
    assert recalled.idle_since_ms(["G"], 0, now_ms) == watched.idle_since_ms(["G"], 0, now_ms)
