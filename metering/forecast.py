"""What the month may come to: a range from what the last seven whole days cost, project by project.

Low is the second cheapest of the seven days for every day that is left, high the second dearest, on top of what the
month cost so far; so one quiet Sunday or one large job moves neither. Days without use cost nothing and count. It says
nothing where there are fewer than LEAST_DAYS whole days since the first use, and it never is a promise.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from zoneinfo import ZoneInfo

from sqlalchemy.engine import Connection

from metering.core.civil import civil_days, day_start_ms, local_time, month_edges
from metering.core.quantity import divide
from metering.timelines import load_prices, timelines
from metering.usage_lines import rated_lines
from metering.usage_report import UsageGroup, count_line
from scheduler.core.model import AccountId

DAYS = 7
"""A week: weekdays and the weekend, each once."""
LEAST_DAYS = 3
DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Forecast:
    """What an account's use may cost by the end of the month, in 10**-6 of the currency; `account` "" is all of them.

    `low_micros` and `high_micros` are None where too little is known to say.
    """

    account: AccountId
    currency: str
    so_far_micros: int
    low_micros: int | None
    high_micros: int | None
    until_ms: int
    days: int
    """Whole days that it is made of."""


def forecasts(connection: Connection, account: AccountId, zone: ZoneInfo, now_ms: int) -> list[Forecast]:
    """Returns the forecast of each project below an account that used anything, then that of all, by currency.

    Reads the lines of this month and of the seven days before today.
    """
    today_ms = day_start_ms(local_time(now_ms, zone).date(), zone)
    week_ms = day_start_ms(local_time(now_ms, zone).date() - timedelta(days=DAYS), zone)
    first_ms, until_ms = month_edges(now_ms, now_ms + 1, zone)[:2]
    costs = _costs(connection, account, (min(week_ms, first_ms), now_ms), zone)
    days = [day.date.isoformat() for day in civil_days(week_ms, today_ms, zone)]
    month = local_time(now_ms, zone).strftime("%Y-%m")
    made = []
    for (project, currency), by_day in sorted(costs.items(), key=lambda each: (not each[0][0], each[0])):
        begun = min(by_day)
        known = [by_day.get(day, 0) for day in days if day >= begun]
        so_far = sum(micros for day, micros in by_day.items() if day[:7] == month)
        low, high = _range(known, so_far, until_ms - now_ms)
        made.append(Forecast(AccountId(project), currency, so_far, low, high, until_ms, len(known)))
    return made


def _costs(
    connection: Connection, account: AccountId, span: tuple[int, int], zone: ZoneInfo
) -> Mapping[tuple[str, str], Mapping[str, int]]:
    """Returns what each project, and "" for all, cost by day, in the currency of the lines."""
    groups: dict[tuple[str, str], dict[str, UsageGroup]] = defaultdict(dict)
    lines_of = timelines(connection, span, zone, load_prices(connection), account or None)
    for rated in rated_lines(connection, lines_of, account or None):
        book = rated.line.book
        if book is None or rated.line.amount_micros is None:
            continue
        day = rated.line.slice.stretch.day.isoformat()
        for project in (rated.line.slice.segment.holder, ""):
            by_day = groups[project, book.currency]
            if day not in by_day:
                by_day[day] = UsageGroup(day, None, book.currency)
            count_line(by_day[day], rated)
    return {key: {day: group.amount_micros for day, group in by_day.items()} for key, by_day in groups.items()}


def _range(costs: Sequence[int], so_far: int, left_ms: int) -> tuple[int | None, int | None]:
    if len(costs) < LEAST_DAYS:
        return None, None
    ranked = sorted(costs)
    cut = 1 if len(ranked) > LEAST_DAYS else 0
    low, high = ranked[cut], ranked[len(ranked) - 1 - cut]
    return so_far + divide(low * left_ms, DAY_MS), so_far + divide(high * left_ms, DAY_MS)
