"""Weekly timetables: which band of prices an instant belongs to, by the wall clock of a civil zone.

A `Band` is a name with hours of the week at which it holds. The bands of a timetable partition the week: each of its
10,080 minutes belongs to exactly one, and `faults_of` says where that is not so. An instant belongs to the band of what
its zone's clocks show, so a band lasts an hour less or more where clocks are changed inside it, and `band_edges` cuts
time wherever the band changes, which the change of a clock may do by itself.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import pairwise

from metering.core.civil import local_time

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
MINUTES_A_DAY = 24 * 60
MINUTES_A_WEEK = 7 * MINUTES_A_DAY
MOST_BANDS = 64
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MINUTE_MS = 60_000
_LOOK_MS = 15 * _MINUTE_MS
"""How far apart a zone's offset is looked at: no zone ever changed its clocks twice in a quarter of an hour."""


@dataclass(frozen=True, slots=True)
class Band:
    """Hours of the week with prices of their own: on each of `days` (0 is Monday) from one minute of it to another.

    A band whose end is not after its start goes on into the next day; 1440 is the midnight that ends a day.
    """

    name: str
    days: tuple[int, ...]
    from_minute: int
    to_minute: int

    def minutes(self) -> Iterator[int]:
        """Yields the minutes of the week that it covers, from Monday's midnight."""
        length = self.to_minute - self.from_minute
        length += MINUTES_A_DAY if length <= 0 else 0
        for day in self.days:
            start = day * MINUTES_A_DAY + self.from_minute
            yield from (minute % MINUTES_A_WEEK for minute in range(start, start + length))


@dataclass(frozen=True, slots=True)
class BandSpan:
    """A stretch of time in one band; the edges are those of the range that was asked for, or of the band."""

    name: str
    from_ms: int
    to_ms: int


def faults_of(bands: Sequence[Band]) -> list[str]:
    """Returns where bands do not partition the week, in words: gaps and overlaps; empty when they do."""
    covered: list[list[str]] = [[] for _ in range(MINUTES_A_WEEK)]
    for band in bands:
        for minute in band.minutes():
            covered[minute].append(band.name)
    faults = []
    start = 0
    for minute in range(1, MINUTES_A_WEEK + 1):
        if minute < MINUTES_A_WEEK and covered[minute] == covered[start]:
            continue
        names = covered[start]
        if len(names) != 1:
            span = f"{_week_text(start)} to {_week_text(minute)}"
            what = "is in no band (a gap)" if not names else f"is in {' and '.join(names)} (an overlap)"
            faults.append(f"{span} {what}")
        start = minute
    return faults


def week_of(bands: Sequence[Band]) -> tuple[str, ...]:
    """Returns the band of each minute of the week. The bands partition it."""
    week = [""] * MINUTES_A_WEEK
    for band in bands:
        for minute in band.minutes():
            week[minute] = band.name
    assert all(week), "a book with a gap in its bands is refused where it comes in"
    return tuple(week)


def band_at(week: Sequence[str], at_ms: int, zone: tzinfo) -> str:
    """Returns the band of an instant by the zone's clocks."""
    local = local_time(at_ms, zone)
    return week[local.weekday() * MINUTES_A_DAY + local.hour * 60 + local.minute]


def band_spans(week: Sequence[str], from_ms: int, to_ms: int, zone: tzinfo) -> list[BandSpan]:
    """Returns `[from_ms, to_ms)` cut where the band changes, in order; neighbours are of different bands."""
    spans: list[BandSpan] = []
    for first_ms, last_ms in pairwise(_candidates(week, from_ms, to_ms, zone)):
        name = band_at(week, first_ms, zone)
        if spans and spans[-1].name == name:
            spans[-1] = BandSpan(name, spans[-1].from_ms, last_ms)
        else:
            spans.append(BandSpan(name, first_ms, last_ms))
    return spans


def _candidates(week: Sequence[str], from_ms: int, to_ms: int, zone: tzinfo) -> list[int]:
    """Returns the instants at which the band may change: changes of the clock, and the week's edges between them."""
    edges = {from_ms, to_ms}
    changes = [from_ms, *_clock_changes(from_ms, to_ms, zone), to_ms]
    week_edges = [minute for minute in range(MINUTES_A_WEEK) if week[minute] != week[minute - 1]]
    for first_ms, last_ms in pairwise(changes):
        edges.add(first_ms)
        local = local_time(first_ms, zone)
        midnight = datetime(local.year, local.month, local.day, tzinfo=UTC) - timedelta(days=local.weekday())
        offset = local.utcoffset()
        assert offset is not None, "a zone knows its offset"
        # Between two changes of the clock, wall time and UTC run in step.
        monday_ms = (midnight - _EPOCH - offset) // timedelta(milliseconds=1)
        while monday_ms < last_ms:
            edges |= {monday_ms + minute * _MINUTE_MS for minute in week_edges}
            monday_ms += MINUTES_A_WEEK * _MINUTE_MS
    return sorted(edge for edge in edges if from_ms <= edge <= to_ms)


def _clock_changes(from_ms: int, to_ms: int, zone: tzinfo) -> Iterator[int]:
    """Yields the instants inside the range from which on the zone has another offset."""
    day_ms = MINUTES_A_DAY * _MINUTE_MS
    for start_ms in range(from_ms, to_ms, day_ms):
        end_ms = min(start_ms + day_ms, to_ms)
        looks = [*range(start_ms, end_ms, _LOOK_MS), end_ms] if _may_change(start_ms, end_ms, zone) else ()
        for first_ms, last_ms in pairwise(looks):
            if _offset(first_ms, zone) != _offset(last_ms, zone):
                yield _bisected(first_ms, last_ms, zone)


def _may_change(from_ms: int, to_ms: int, zone: tzinfo) -> bool:
    # Two changes of a day that undo each other would hide from its ends; none of the database comes closer than weeks.
    return _offset(from_ms, zone) != _offset(to_ms, zone)


def _bisected(from_ms: int, to_ms: int, zone: tzinfo) -> int:
    before = _offset(from_ms, zone)
    while to_ms - from_ms > 1:
        middle_ms = (from_ms + to_ms) // 2
        if _offset(middle_ms, zone) == before:
            from_ms = middle_ms
        else:
            to_ms = middle_ms
    return to_ms


def _offset(at_ms: int, zone: tzinfo) -> timedelta | None:
    return local_time(at_ms, zone).utcoffset()


def minute_text(minute: int) -> str:
    """Returns a minute of the day as `08:00`; 1440 is `24:00`."""
    return f"{minute // 60:02d}:{minute % 60:02d}"


def _week_text(minute: int) -> str:
    """Returns a minute of the week as `Mon 08:00`; the week's end is `Sun 24:00`."""
    if minute == MINUTES_A_WEEK:
        return f"{DAYS[-1].title()} 24:00"
    return f"{DAYS[minute // MINUTES_A_DAY].title()} {minute_text(minute % MINUTES_A_DAY)}"
