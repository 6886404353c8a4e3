"""Times and zones as requests name them."""

from datetime import date, datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from scheduler.refusal import Problem
from scheduler.wire.requests import parse_time
from scheduler.wire.spec import invalid
from scheduler.wire.text import shown


def zone_of(name: str) -> ZoneInfo:
    """Returns an IANA zone by its name. Raises Refused (`invalid`)."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise invalid((Problem(f"no time zone {shown(name)!r}; write one such as Asia/Shanghai", "zone"),)) from None


def instant_of(text: str, zone: ZoneInfo, field: str) -> int:
    """Returns UTC milliseconds of a day's beginning in the zone, or of an RFC 3339 time. Raises Refused."""
    try:
        day = date.fromisoformat(text)
    except ValueError:
        return parse_time(text, field)
    try:
        return int(datetime(day.year, day.month, day.day, tzinfo=zone).timestamp()) * 1000
    except (OverflowError, ValueError):
        raise invalid((Problem("is too far away", field),)) from None
