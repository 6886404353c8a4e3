"""Looking at money: `usage`."""

import os
import shutil
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Annotated
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import typer

from cli import answers, moments, phrases, spending, values
from cli.answers import Json, number, sub, text
from cli.errors import UsageProblem
from cli.faults import ApiError
from cli.layout import Column, View
from cli.session import Session

GROUPS = ("project", "user", "job", "gpu-model", "day")
TIMES = ("today", "yesterday", "this week", "last week", "this month", "last month")
DEFAULT_ZONE = "UTC"
"""Where neither --zone nor TZ names a zone. The zone stands under every table."""


def usage(
    ctx: typer.Context,
    time: Annotated[str | None, typer.Option("--for", metavar="TIME", help=f"{', '.join(TIMES)}.")] = None,
    start: Annotated[str | None, typer.Option("--from", metavar="TIME", help="2026-11-01, or with a time.")] = None,
    end: Annotated[str | None, typer.Option("--to", metavar="TIME", help="Where it ends, exclusive.")] = None,
    by: Annotated[str, typer.Option("--by", metavar="WHAT", help=f"{', '.join(GROUPS)}.")] = "project",
    account: Annotated[str | None, typer.Option("-A", "--account", metavar="NAME", help="Only this account's.")] = None,
    zone: Annotated[str | None, typer.Option("--zone", metavar="NAME", help="Days are of this zone (TZ).")] = None,
    plot: Annotated[bool, typer.Option("--plot", help="Draw bars below the table.")] = False,
) -> None:
    """Tell what was used, how much of it was idle, and what it costs before tax.

    This month's projects have their monthly budget beside them, and a forecast: the cost so far, and for the days that
    are left the second cheapest to the second dearest of the last seven. `near` may pass the budget, `over` will.

    Examples:
      turnstile usage
      turnstile usage --for "last month" --by user
      turnstile usage --by day --plot
      turnstile usage --from 2026-11-01 --to 2026-11-08 --by day -o csv
    """
    session: Session = ctx.obj
    grouped = values.choice(by, "--by", GROUPS)
    known_zone = _zone(zone)
    since, until = _span(time, start, end, known_zone)
    query = {
        "from": moments.write(since),
        "to": moments.write(until),
        "zone": known_zone.key,
        "by": grouped,
        "account": account,
    }
    answer = session.client.get("/v1/usage", query)
    has_forecast = start is None and end is None and time in {None, "this month"} and grouped == "project"
    if has_forecast:
        answer = spending.with_budgets(answer, *_beside(session, account, known_zone))
    session.screen.listing(answer, _view(grouped, spending.until_title(answer) if has_forecast else None))
    if plot and not session.screen.style.is_machine:
        for line in ["", *spending.plotted(answer, shutil.get_terminal_size().columns)]:
            session.screen.plain(line)


def _beside(session: Session, account: str | None, zone: ZoneInfo) -> tuple[Json | None, Json | None]:
    """Returns budgets and forecasts; None for each that this server does not have."""
    found: list[Json | None] = []
    for path, query in (
        ("/v1/budgets", {"account": account}),
        ("/v1/usage/forecast", {"account": account, "zone": zone.key}),
    ):
        try:
            found.append(session.client.get(path, query))
        except ApiError as problem:
            if problem.code != "not_found":
                raise
            found.append(None)
    return found[0], found[1]


def _zone(name: str | None) -> ZoneInfo:
    wanted = name or os.environ.get("TZ", "").removeprefix(":") or DEFAULT_ZONE
    try:
        return ZoneInfo(wanted)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        if name is None:  # a TZ that is no zone's name, as POSIX allows
            return ZoneInfo(DEFAULT_ZONE)
        raise UsageProblem(f"--zone {name!r} is not a time zone", "--zone Asia/Shanghai", "--zone UTC") from None


def _span(time: str | None, start: str | None, end: str | None, zone: ZoneInfo) -> tuple[datetime, datetime]:
    if start is None and end is None:
        return named_span(values.choice(time or "this month", "--for", TIMES), moments.current(), zone)
    if time is not None or start is None:
        raise UsageProblem("say which time", '--for "this month"', "--from 2026-11-01 --to 2026-12-01")
    since = _moment(start, "--from", zone)
    until = moments.current() if end is None else _moment(end, "--to", zone)
    if since >= until:
        raise UsageProblem(f"--from {start} is not before --to {end or 'now'}", "--from 2026-11-01 --to 2026-12-01")
    return since, until


def named_span(name: str, now: datetime, zone: ZoneInfo) -> tuple[datetime, datetime]:
    """Returns the span that one of TIMES names, in UTC; what is not over yet ends at `now`. Weeks begin on Monday."""
    day = now.astimezone(zone).date()
    if name.endswith("day"):
        first = day - timedelta(days=name == "yesterday")
        following = first + timedelta(days=1)
    elif name.endswith("week"):
        first = day - timedelta(days=day.weekday() + (7 if name.startswith("last") else 0))
        following = first + timedelta(days=7)
    else:
        first = day.replace(day=1)
        if name.startswith("last"):
            first = (first - timedelta(days=1)).replace(day=1)
        following = (first + timedelta(days=31)).replace(day=1)
    since, until = (datetime(each.year, each.month, each.day, tzinfo=zone) for each in (first, following))
    return since.astimezone(UTC), min(until.astimezone(UTC), now)


def _moment(typed: str, flag: str, zone: ZoneInfo) -> datetime:
    try:
        found = datetime.fromisoformat(typed)
        return (found.replace(tzinfo=zone) if found.tzinfo is None else found).astimezone(UTC)
    except (ValueError, OverflowError):
        raise UsageProblem(f"{flag} {typed!r} is not a time", f"{flag} 2026-11-01") from None


def _hours(item: Json, key: str) -> str | None:
    """Returns `1,812.4` of a decimal text; None where it is not known."""
    found = text(item, key)
    try:
        return None if found is None else phrases.quantity(Decimal(found), 1)
    except InvalidOperation:
        raise answers.BrokenAnswer(f"{key} is {found!r}, which is no number") from None


def _idle(item: Json) -> str | None:
    hours = _hours(item, "idle_gpu_hours")
    return None if hours is None else f"{hours} {number(item, 'idle_percent') or '?':>3} %"


def _cost(item: Json) -> str | None:
    """Returns the amount in hundredths for people, or what little it is; `-o json` and `-o csv` have every digit."""
    cost = sub(item, "cost")
    amount = None if cost is None else text(cost, "amount")
    if cost is None or amount is None:
        return None
    told = phrases.quantity(Decimal(amount), 2)
    return f"{told} {text(cost, 'currency') or ''}".rstrip()


def _footer(answer: Json) -> str | None:
    told = []
    for total in answers.items(answer, "totals"):
        idle = _hours(total, "idle_gpu_hours")
        known = "idle part not measured" if idle is None else f"{idle} of what was measured idle"
        parts = [f"total {_hours(total, 'gpu_hours')} GPU-hours", known, _cost(total) or "without a price"]
        told.append(", ".join([*parts, *spending.total_told(total)]))
    span = f"{text(answer, 'from')} to {text(answer, 'to')}, days of {text(answer, 'zone')}"
    return "\n".join([*told, f"{span}; an end is exclusive", "before tax; idle is billed, shown so that you can act"])


def _view(grouped: str, forecast: str | None) -> View:
    """Returns how usage is shown; with the heading of a forecast, budgets and forecasts too."""
    beside = (
        Column("BUDGET", spending.budget_cell, is_right=True),
        Column(forecast or "", spending.forecast_cell, is_right=True),
    )
    return View(
        columns=(
            Column(grouped.upper().replace("-", " "), lambda each: text(each, "key")),
            Column("NAME", lambda each: text(each, "name"), is_wide=grouped != "job"),
            Column("GPU-HOURS", lambda each: _hours(each, "gpu_hours"), is_right=True),
            Column("OF WHICH IDLE", _idle, is_right=True),
            Column("PREEMPTED", lambda each: _hours(each, "preempted_gpu_hours"), is_right=True),
            Column("MEASURED", lambda each: _hours(each, "measured_gpu_hours"), is_right=True, is_wide=True),
            Column("COST", _cost, is_right=True),
            *(beside if forecast is not None else ()),
        ),
        name=lambda each: text(each, "key"),
        fields=(
            "key", "name", "lines", "gpu_hours", "idle_gpu_hours", "idle_percent", "measured_gpu_hours",
            "preempted_gpu_hours", "cost.amount", "cost.currency", "budget.amount", "forecast.low.amount",
            "forecast.high.amount",
        ),
        empty="nothing was used in this time",
        footer=_footer,
    )  # fmt: skip
