"""Billing periods: civil months of the centre's zone, which are open, then closing, then closed, and never go back."""

from dataclasses import dataclass
from datetime import date, timedelta, tzinfo
from enum import StrEnum

from metering.core.civil import day_start_ms, local_time


class PeriodStatus(StrEnum):
    """How far a period is."""

    OPEN = "open"  # it is not over
    CLOSING = "closing"  # it is over, and late facts are waited for
    CLOSED = "closed"  # its files are sealed; what becomes known later is a correction in the open period


@dataclass(frozen=True, slots=True)
class Period:
    """A period `[from_ms, to_ms)`, named by its month, `2026-11`."""

    name: str
    from_ms: int
    to_ms: int


def period_at(at_ms: int, zone: tzinfo) -> Period:
    """Returns the period of an instant."""
    first = local_time(at_ms, zone).date().replace(day=1)
    # Where the clock is set back over midnight of the first, the month's last hour may be told twice.
    if at_ms < day_start_ms(first, zone):
        first = (first - timedelta(days=1)).replace(day=1)
    return period_of_month(first, zone)


def period_of_month(first: date, zone: tzinfo) -> Period:
    """Returns the period that begins on the first of a month."""
    following = (first + timedelta(days=31)).replace(day=1)
    return Period(f"{first:%Y-%m}", day_start_ms(first, zone), day_start_ms(following, zone))
