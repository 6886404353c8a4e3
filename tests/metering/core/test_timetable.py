"""Bands partition the week, and every instant has the band that its zone's clocks show, also when they are changed."""

from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.core.civil import local_time
from metering.core.timetable import Band, band_spans, faults_of, week_of
from scheduler.clock import parse_utc_ms

NIGHT = Band("night", tuple(range(7)), 22 * 60, 8 * 60)
DAY = Band("day", tuple(range(7)), 8 * 60, 22 * 60)
ODD = (Band("early", tuple(range(7)), 0, 90), Band("late", tuple(range(7)), 90, 1440))
HOUR_MS = 3_600_000
CHANGES = {
    "Asia/Shanghai": ("1986-05-03T17:00:00Z", "1986-09-13T14:00:00Z"),
    "America/New_York": ("2026-03-08T05:00:00Z", "2026-11-01T04:00:00Z"),
    "Australia/Lord_Howe": ("2026-04-04T13:00:00Z", "2026-10-03T14:00:00Z"),
}


@pytest.mark.parametrize(
    ("bands", "faults"),
    [
        ((DAY, NIGHT), []),
        ((Band("all", tuple(range(7)), 0, 1440),), []),
        ((DAY,), 8),
        (
            (DAY, NIGHT, Band("rush", (4,), 17 * 60, 18 * 60)),
            ["Fri 17:00 to Fri 18:00 is in day and rush (an overlap)"],
        ),
        ((Band("week", (0, 1, 2, 3, 4), 0, 1440), Band("sunday", (6,), 0, 1440)), ["Sat 00:00 to Sun 00:00"]),
    ],
)
def test_gaps_and_overlaps_of_bands_are_told_by_day_and_hour(bands: tuple[Band, ...], faults: list[str] | int) -> None:
    found = faults_of(bands)
    if isinstance(faults, int):
        assert len(found) == faults
        assert found[0] == "Mon 00:00 to Mon 08:00 is in no band (a gap)"
    else:
        assert len(found) == len(faults)
        assert all(each.startswith(fault) for each, fault in zip(found, faults, strict=True))


@pytest.mark.parametrize("zone", list(CHANGES))
@pytest.mark.parametrize("bands", [(DAY, NIGHT), ODD])
def test_an_instants_band_is_what_the_clocks_show_minute_by_minute(zone: str, bands: tuple[Band, ...]) -> None:
    tz, week = ZoneInfo(zone), week_of(bands)
    for change in CHANGES[zone]:
        from_ms = parse_utc_ms(change) - 12 * HOUR_MS + 12_345
        to_ms = from_ms + 24 * HOUR_MS
        spans = band_spans(week, from_ms, to_ms, tz)
        assert (spans[0].from_ms, spans[-1].to_ms) == (from_ms, to_ms)
        assert all(one.to_ms == other.from_ms for one, other in pairwise(spans))
        for at_ms in range(from_ms, to_ms, 60_000):
            local = local_time(at_ms, tz)
            expected = week[local.weekday() * 1440 + local.hour * 60 + local.minute]
            (found,) = [span.name for span in spans if span.from_ms <= at_ms < span.to_ms]
            assert found == expected, local


@given(st.integers(0, 4 * 10**12), st.integers(1, 10 * 24 * HOUR_MS), st.data())
def test_cutting_a_range_anywhere_gives_the_same_bands(from_ms: int, length_ms: int, data: st.DataObject) -> None:
    tz, week = ZoneInfo("Australia/Lord_Howe"), week_of((DAY, NIGHT))
    cut_ms = data.draw(st.integers(from_ms, from_ms + length_ms))
    whole = band_spans(week, from_ms, from_ms + length_ms, tz)
    parts = band_spans(week, from_ms, cut_ms, tz) + band_spans(week, cut_ms, from_ms + length_ms, tz)
    by_band = [
        {name: sum(span.to_ms - span.from_ms for span in spans if span.name == name) for name in ("day", "night")}
        for spans in (whole, parts)
    ]
    assert by_band[0] == by_band[1]
