"""Civil days of a time zone as stretches of UTC milliseconds, and instants as people of that zone write them.

Days are half-open and share their edges, so a day has 23, 25 or 24.5 hours where the zone says so and nothing is lost
or counted twice. The zone is a `tzinfo` that is passed in; where its rules come from is the caller's business.
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from functools import lru_cache

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)
_QUARTER = timedelta(minutes=15)
_QUARTER_MS = 900_000
_MINUTE_MS = 60_000


@dataclass(frozen=True, slots=True)
class Day:
    """A civil day, or the part of it that was asked for: `[from_ms, to_ms)`."""

    date: date
    from_ms: int
    to_ms: int


def local_time(at_ms: int, zone: tzinfo) -> datetime:
    """Returns the instant in the zone, exact to the millisecond."""
    return (_EPOCH + timedelta(milliseconds=at_ms)).astimezone(zone)


def local_text(at_ms: int, zone: tzinfo) -> str:
    """Returns the instant as `2026-11-02T09:00:00.000+08:00`."""
    quarter, rest_ms = divmod(at_ms, _QUARTER_MS)
    before, minutes, after = _quarter_text(quarter, zone)
    if not before:  # an offset that is no whole quarter, as zones had them long ago
        return local_time(at_ms, zone).isoformat(timespec="milliseconds")
    minute, rest_ms = divmod(rest_ms, _MINUTE_MS)
    seconds, rest_ms = divmod(rest_ms, 1000)
    return f"{before}{minutes + minute:02d}:{seconds:02d}.{rest_ms:03d}{after}"


@lru_cache(maxsize=65_536)  # those of a month are 3,000: lines of an export come by allocation, not by time
def _quarter_text(quarter: int, zone: tzinfo) -> tuple[str, int, str]:
    """Returns a quarter of an hour's text before its minutes, its first minute, and the text after its seconds.

    Nothing where the quarter of the zone's clocks is not one of UTC's.
    """
    local = local_time(quarter * _QUARTER_MS, zone)
    text = local.isoformat(timespec="seconds")
    offset = local.utcoffset()
    following = local_time((quarter + 1) * _QUARTER_MS - 1, zone).utcoffset()
    if offset is None or offset % _QUARTER or offset != following:
        return "", 0, ""
    return text[:14], local.minute, text[19:]


def utc_text(at_ms: int) -> str:
    """Returns the instant as `2026-11-02T01:00:00.000Z`."""
    quarter, rest_ms = divmod(at_ms, _QUARTER_MS)
    before, minutes, _ = _quarter_text(quarter, UTC)
    minute, rest_ms = divmod(rest_ms, _MINUTE_MS)
    seconds, rest_ms = divmod(rest_ms, 1000)
    return f"{before}{minutes + minute:02d}:{seconds:02d}.{rest_ms:03d}Z"


@lru_cache(maxsize=4_096)  # the days of a year in some zones: verification asks for the same month again and again
def day_start_ms(day: date, zone: tzinfo) -> int:
    """Returns the first instant whose local date is `day` or later, in UTC milliseconds.

    Where midnight occurs twice that is the first one; where the clock jumps over it, the instant of the jump.
    """
    # PEP 495: for a time that never was, fold 0 reads it by the offset before the jump (late), fold 1 by that after.
    late_ms = _utc_ms(day, zone, fold=0)
    early_ms = _utc_ms(day, zone, fold=1)
    if early_ms >= late_ms:  # midnight exists, once or twice
        return late_ms
    while early_ms < late_ms:
        middle_ms = (early_ms + late_ms) // 2
        if local_time(middle_ms, zone).date() >= day:
            late_ms = middle_ms
        else:
            early_ms = middle_ms + 1
    return late_ms


def civil_days(from_ms: int, to_ms: int, zone: tzinfo) -> tuple[Day, ...]:
    """Returns the days of `[from_ms, to_ms)` in order, the first and last cut to it; empty for an empty range."""
    days: list[Day] = []
    # A day that is begun again for an hour (a clock set back over midnight) may make the local date one too early.
    day = local_time(from_ms, zone).date() - timedelta(days=1)
    start_ms = day_start_ms(day, zone)
    while start_ms < to_ms:
        following = day + timedelta(days=1)
        end_ms = day_start_ms(following, zone)
        first_ms, last_ms = max(start_ms, from_ms), min(end_ms, to_ms)
        if first_ms < last_ms:
            days.append(Day(day, first_ms, last_ms))
        day, start_ms = following, end_ms
    return tuple(days)


def month_edges(from_ms: int, to_ms: int, zone: tzinfo) -> list[int]:
    """Returns the first instants of the civil months that `[from_ms, to_ms)` touches, and of the one after them."""
    day = local_time(from_ms, zone).date().replace(day=1)
    edges = [day_start_ms(day, zone)]
    while edges[-1] < to_ms or len(edges) < 2:
        day = (day + timedelta(days=31)).replace(day=1)
        edges.append(day_start_ms(day, zone))
    return edges


def _utc_ms(day: date, zone: tzinfo, fold: int) -> int:
    midnight = datetime.combine(day, time(fold=fold), tzinfo=zone)
    return (midnight.astimezone(UTC) - _EPOCH) // _MS
