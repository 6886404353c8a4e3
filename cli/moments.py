"""Reads and writes points in time: what people type into `--begin` and `--since`, and what the API says.

`now` is an argument; the zone of what has no offset is the caller's (TZ).
"""

import re
from datetime import UTC, datetime, timedelta

from cli import values
from cli.errors import UsageProblem


def parse(text: str) -> datetime:
    """Returns the aware UTC time of an RFC 3339 text. Raises ValueError on anything else."""
    found = datetime.fromisoformat(text)
    if found.tzinfo is None:
        raise ValueError(f"{text} has no offset")
    return found.astimezone(UTC)


def write(moment: datetime) -> str:
    """Returns RFC 3339 in UTC, to the second."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def current() -> datetime:
    """Returns the caller's clock, for what is typed relative to now; answers carry the server's own time."""
    import time

    return datetime.fromtimestamp(time.time(), UTC)


def ahead(text: str, flag: str, now: datetime) -> datetime:
    """Reads a time to come: `now+2h`, `20:00` (the next one), `tomorrow`, or a date with a time."""
    typed = text.strip()
    if typed.lower().startswith("now+"):
        return _shift(now, values.duration(typed[4:], flag), flag)
    if clock := re.fullmatch(r"([01]?[0-9]|2[0-3]):([0-5][0-9])(?::([0-5][0-9]))?", typed, re.ASCII):
        hour, minute, second = (int(part or 0) for part in clock.groups())
        local = now.astimezone()
        at = local.replace(hour=hour, minute=minute, second=second, microsecond=0)
        return (at if at > local else at + timedelta(days=1)).astimezone(UTC)
    if typed.lower() == "tomorrow":
        return _midnight(now, days=1)
    return _absolute(typed, flag, "now+2h")


def ago(text: str, flag: str, now: datetime) -> datetime:
    """Reads a time gone by: `7d` and `90m` (ago), `today`, `yesterday`, `2026-11-01`, `2026-11-01T08:00+08:00`."""
    typed = text.strip()
    if typed.lower() in {"today", "yesterday"}:
        return _midnight(now, days=0 if typed.lower() == "today" else -1)
    if re.match(r"[0-9]{4}-[0-9]{2}", typed, re.ASCII):
        return _absolute(typed, flag, "7d")
    return _shift(now, -values.duration(typed, flag), flag)


def _shift(now: datetime, seconds: int, flag: str) -> datetime:
    try:
        return now + timedelta(seconds=seconds)
    except OverflowError:
        raise UsageProblem(f"{flag}: that is beyond the calendar", f"{flag} 7d") from None


def _midnight(now: datetime, *, days: int) -> datetime:
    day = now.astimezone().replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None) + timedelta(days=days)
    return day.astimezone(UTC)


def _absolute(typed: str, flag: str, example: str) -> datetime:
    try:
        found = datetime.fromisoformat(typed)
        # A time without offset is the caller's local time, which is what astimezone takes it for.
        return found.astimezone(UTC)
    except (ValueError, OverflowError):
        raise UsageProblem(f"{flag} {typed!r} is not a time", f"{flag} {example}", f"{flag} 2026-11-24T08:00") from None
