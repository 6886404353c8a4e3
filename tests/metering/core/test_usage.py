"""Holdings become segments, segments become slices, and nothing is lost or counted twice on the way."""

import random
from dataclasses import replace
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.core.quantity import GpuMs, gpu_ms_between
from metering.core.rating import rate
from metering.core.usage import (
    Holding,
    Segment,
    UnevenSegment,
    holding_of,
    open_holding_of,
    segments_of,
    slices_of,
    stretches_of,
)
from metering.core.who_pays import END_WORDS
from scheduler.clock import parse_utc_ms
from scheduler.core.model import GPU_UNITS, Booking, DeviceId, EndReason, GpuClass, Phase
from scheduler.core.occupancy import Cursor, Evidence, Interval, OccupancyState, Occupant
from tests.metering.builders import DAY_MS, HOUR_MS, NOON_MS, book, holding

SHANGHAI = ZoneInfo("Asia/Shanghai")
ZONES = ["Asia/Shanghai", "America/New_York", "Australia/Lord_Howe", "America/St_Johns", "Africa/Cairo", "UTC"]


def life(device: str, *edges: int, **named: object) -> list[Holding]:
    """A device's starting, running and stopping at the given edges."""
    phases = (Phase.STARTING, Phase.RUNNING, Phase.STOPPING)
    return [
        replace(holding(device, first, last, phase=phase), **named)  # type: ignore[arg-type]
        for phase, (first, last) in zip(phases, pairwise(edges), strict=False)
    ]


def only(segments: list[Segment]) -> Segment:
    assert len(segments) == 1
    return segments[0]


def test_rating_starts_at_running_and_ends_at_the_exit() -> None:
    segment = only(segments_of(life("GPU-1", 0, 10, 100, 130)))
    assert (segment.from_ms, segment.to_ms, segment.units) == (10, 130, GPU_UNITS)


def test_what_never_ran_is_never_charged_not_even_its_stopping() -> None:
    never_ran = [
        holding(from_ms=0, to_ms=10, phase=Phase.STARTING),
        holding(from_ms=10, to_ms=40, phase=Phase.STOPPING),
    ]
    assert segments_of(never_ran) == []


def test_stopping_in_a_later_segment_is_charged_because_it_ran_in_an_earlier_one() -> None:
    rows = [holding(from_ms=0, to_ms=10), holding(from_ms=10, to_ms=40, phase=Phase.STOPPING, segment=2)]
    assert [(segment.number, segment.from_ms, segment.to_ms) for segment in segments_of(rows)] == [
        (1, 0, 10),
        (2, 10, 40),
    ]


def test_a_gang_is_one_segment_over_all_its_devices() -> None:
    segment = only(segments_of([*life("GPU-2", 0, 10, 100, 130), *life("GPU-1", 0, 10, 100, 130)]))
    assert segment.devices == ("GPU-1", "GPU-2")
    assert segment.units == 2 * GPU_UNITS
    assert segment.held == GpuMs(2 * GPU_UNITS * 120)


def test_a_booking_change_is_two_segments_with_two_bookings() -> None:
    rows = [holding(from_ms=0, to_ms=50), holding(from_ms=50, to_ms=90, segment=2, booking=Booking.GUARANTEED)]
    assert [segment.booking for segment in segments_of(rows)] == [Booking.BURST, Booking.GUARANTEED]


@pytest.mark.parametrize(
    "broken",
    [
        [holding("GPU-1", 0, 100), holding("GPU-2", 0, 101)],
        [holding("GPU-1", 0, 100), holding("GPU-2", 1, 100)],
        [holding("GPU-1", 0, 100), holding("GPU-2", 0, 100, phase=Phase.STARTING)],
        [holding("GPU-1", 0, 100), holding("GPU-1", 101, 200)],
        [holding("GPU-1", 0, 100), holding("GPU-1", 99, 200)],
        [holding("GPU-1", 0, 100), holding("GPU-1", 100, 200, units=GPU_UNITS // 2)],
        [holding("GPU-1", 0, 100), holding("GPU-1", 100, 200, booking=Booking.SPOT)],
        [holding("GPU-1", 0, 100), holding("GPU-1", 100, 200, holder="globex")],
    ],
)
def test_holdings_that_contradict_each_other_are_refused(broken: list[Holding]) -> None:
    with pytest.raises(UnevenSegment, match="allocation A1 segment 1"):
        segments_of(broken)


GANGS = st.builds(
    lambda devices, starts, lengths, units: [
        row
        for device in range(devices)
        for row in life(
            f"GPU-{device}",
            starts,
            starts + lengths[0],
            starts + sum(lengths[:2]),
            starts + sum(lengths),
            units=units,
            gpu_eq_units=units + 7,
            lane=0 if units == GPU_UNITS else 1,
        )
    ],
    st.integers(1, 4),
    st.integers(parse_utc_ms("1986-05-01T00:00Z"), parse_utc_ms("1991-12-01T00:00Z"))
    | st.integers(parse_utc_ms("2024-01-01T00:00Z"), parse_utc_ms("2027-01-01T00:00Z")),
    st.lists(st.integers(1, 3 * DAY_MS), min_size=3, max_size=3),
    st.sampled_from([GPU_UNITS, GPU_UNITS // 2, GPU_UNITS // 7, 1]),
)


@given(GANGS, st.sampled_from(ZONES), st.lists(st.integers(-DAY_MS, 10 * DAY_MS), max_size=3, unique=True))
def test_splitting_at_days_and_price_books_conserves_gpu_time_in_any_zone(
    rows: list[Holding], zone: str, changes: list[int]
) -> None:
    segment = only(segments_of(rows))
    books = [book(f"v{number}", rows[0].from_ms + change) for number, change in enumerate(changes)]
    stretches = stretches_of(segment.from_ms - DAY_MS, segment.to_ms + DAY_MS, ZoneInfo(zone), books)
    slices = slices_of(segment, stretches)
    assert sum((piece.held for piece in slices), GpuMs(0)) == segment.held
    assert sum(piece.gpu_ms for piece in slices) == gpu_ms_between(segment.units, segment.from_ms, segment.to_ms)
    assert (slices[0].from_ms, slices[-1].to_ms) == (segment.from_ms, segment.to_ms)
    assert all(one.to_ms == two.from_ms for one, two in pairwise(slices))
    assert len({piece.line_id for piece in slices}) == len(slices)
    for piece in slices:
        begun = [other for other in books if other.effective_ms <= piece.from_ms]
        assert piece.stretch.book == max(begun, key=lambda other: other.effective_ms, default=None)
        assert not any(piece.from_ms < other.effective_ms < piece.to_ms for other in books)


@given(GANGS, st.data(), st.sampled_from(ZONES))
def test_lines_of_two_ranges_are_the_lines_of_both_together(
    rows: list[Holding], data: st.DataObject, zone: str
) -> None:
    segment = only(segments_of(rows))
    first_ms, last_ms = segment.from_ms - DAY_MS, segment.to_ms + DAY_MS
    days = stretches_of(first_ms, last_ms, ZoneInfo(zone), [book()])
    edge_ms = data.draw(st.sampled_from([day.from_ms for day in days[1:]]))
    halves = [
        piece
        for part in ((first_ms, edge_ms), (edge_ms, last_ms))
        for piece in slices_of(segment, stretches_of(*part, ZoneInfo(zone), [book()]))
    ]
    whole = slices_of(segment, days)
    assert [rate(piece).amount_micros for piece in halves] == [rate(piece).amount_micros for piece in whole]
    assert [piece.line_id for piece in halves] == [piece.line_id for piece in whole]
    assert [piece.end_word(None, None) for piece in halves] == [piece.end_word(None, None) for piece in whole]


@given(GANGS, GANGS, st.randoms(use_true_random=False))
def test_the_order_of_holdings_does_not_matter(one: list[Holding], two: list[Holding], shuffler: random.Random) -> None:
    rows = [*one, *(replace(row, allocation="A2") for row in two)]  # type: ignore[arg-type]
    shuffled = list(rows)
    shuffler.shuffle(shuffled)
    assert segments_of(shuffled) == segments_of(rows)


def test_a_slice_says_why_it_ends() -> None:
    midnight = parse_utc_ms("2026-10-31T16:00Z")
    segment = only(segments_of([holding(from_ms=NOON_MS, to_ms=midnight + HOUR_MS)]))
    first, last = slices_of(segment, stretches_of(NOON_MS, midnight + DAY_MS, SHANGHAI, []))
    assert first.end_word(midnight + HOUR_MS, None) == "period_split"
    assert last.end_word(midnight + HOUR_MS, None) == "completed"
    assert last.end_word(midnight + HOUR_MS, EndReason.PREEMPTED) == "preempted"
    assert last.end_word(midnight + 2 * HOUR_MS, None) == "segment_split"
    assert first.evidence("period_split") is Evidence.CONTROLLER
    assert last.evidence("completed") is Evidence.NODE
    assert set(END_WORDS) == {None, *EndReason}


def test_a_line_keeps_its_name_its_end_and_its_evidence_when_the_job_goes_on() -> None:
    midnight = parse_utc_ms("2026-10-31T16:00Z")
    stretches = stretches_of(NOON_MS, midnight, SHANGHAI, [book()])
    still_open = slices_of(only(segments_of([holding(from_ms=NOON_MS, to_ms=midnight, evidence=None)])), stretches)
    ended = slices_of(only(segments_of([holding(from_ms=NOON_MS, to_ms=midnight + HOUR_MS)])), stretches)
    for early, late in zip(still_open, ended, strict=True):
        assert (early.line_id, early.gpu_ms, early.to_ms) == (late.line_id, late.gpu_ms, late.to_ms)
        words = early.end_word(None, None), late.end_word(midnight + HOUR_MS, None)
        assert words == ("period_split", "period_split")
        assert early.evidence(words[0]) is late.evidence(words[1])


def test_intervals_and_open_intervals_become_holdings() -> None:
    row = holding(from_ms=5, to_ms=9)
    what = Occupant(
        OccupancyState.ALLOCATED,
        row.units,
        phase=row.phase,
        holder=row.holder,
        job=row.job,
        allocation=row.allocation,
        segment=row.segment,
        booking=row.booking,
        gpu_eq_units=row.gpu_eq_units,
    )
    closed = Interval(1, row.device, 0, row.gpu_class, 5, 9, what, Evidence.NODE, 9, "k", "", "")
    assert holding_of(closed) == row
    cursor = Cursor(row.device, 0, row.gpu_class, 5, 1, what)
    assert open_holding_of(cursor, 9) == replace(row, evidence=None)
    assert open_holding_of(cursor, 5) is None
    idle = replace(closed, occupant=Occupant(OccupancyState.IDLE, GPU_UNITS))
    assert holding_of(idle) is None
    assert open_holding_of(Cursor(DeviceId("d"), 0, GpuClass("H100"), 0, 1, idle.occupant), 9) is None
