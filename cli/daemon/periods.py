"""Billing periods in the daemon: in which zone months begin, and the look at them now and then."""

import os
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cli.daemon.settings import Settings
from metering.closing import PeriodTerms
from metering.focus import FocusTerms

HOUR_MS = 3_600_000
PERIODS_SECONDS = 60
"""Between two looks at billing periods: how late one begins to close, or is corrected."""
_LOCAL = Path("/etc/localtime")


def period_terms(settings: Settings) -> PeriodTerms:
    """Returns how the centre's periods are."""
    metering = settings.metering
    window_ms = round(metering.closing_hours * HOUR_MS)
    return PeriodTerms(metering.zone or system_zone(), window_ms, FocusTerms(issuer=metering.issuer))


def system_zone() -> str:
    """Returns the machine's time zone by name: TZ, or where /etc/localtime points; UTC where neither names one."""
    named = os.environ.get("TZ", "").removeprefix(":")
    linked = str(_LOCAL.resolve()).partition("/zoneinfo/")[2] if _LOCAL.is_symlink() else ""
    return next((name for name in (named, linked) if _is_zone(name)), "UTC")


def _is_zone(name: str) -> bool:
    try:
        return bool(name) and ZoneInfo(name) is not None
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return False  # a TZ that is no zone's name, as POSIX allows
