"""Budgets and forecasts beside usage, and usage as bars in a terminal. Pure: answers in, items and lines out."""

from collections.abc import Sequence
from datetime import timedelta
from decimal import Decimal

from cli import phrases
from cli.answers import Json, items, sub, text
from cli.layout import visible, width

LEAST_BAR = 10
"""Cells of the longest bar where the window is too narrow for it."""
_LONGEST_NAME = 32
_MARK = "#"
"""Plain, so that it is the same in every font, log and mail."""


def with_budgets(answer: Json, budgets: Json | None, forecasts: Json | None) -> Json:
    """Returns a usage answer whose items and totals have `budget` and `forecast`, null where there is none.

    A budget stands beside an account if it is a monthly one in the currency of its cost, as the use is this month's.
    """
    limits = {text(each, "account"): each for each in items(budgets or {}) if text(each, "period") == "month"}
    ahead = {(text(each, "account"), _currency(sub(each, "so_far"))): each for each in items(forecasts or {})}
    whole = {_currency(sub(each, "so_far")): each for each in items(forecasts or {}, "totals")}
    account = text(answer, "account") or ""

    def beside(item: Json, owner: str | None, forecast: Json | None) -> Json:
        limit = sub(limits[owner], "paid") if owner in limits else None
        fits = limit is not None and _currency(limit) == _currency(sub(item, "cost"))
        return {**item, "budget": limit if fits else None, "forecast": _range(forecast)}

    found = [
        beside(each, text(each, "key"), ahead.get((text(each, "key"), _currency(sub(each, "cost")))))
        for each in items(answer)
    ]
    totals = [beside(each, account, whole.get(_currency(sub(each, "cost")))) for each in items(answer, "totals")]
    return {**answer, "items": found, "totals": totals}


def _range(forecast: Json | None) -> Json | None:
    low = None if forecast is None else sub(forecast, "low")
    high = None if forecast is None else sub(forecast, "high")
    if forecast is None or low is None or high is None:
        return None
    return {"low": low, "high": high, "until": text(forecast, "until"), "days": forecast.get("days")}


def budget_cell(item: Json) -> str | None:
    """Returns a month's budget in hundredths: `8,841.00`."""
    amount = text(sub(item, "budget") or {}, "amount")
    return None if amount is None else f"{Decimal(amount):,.2f}"


def forecast_cell(item: Json) -> str | None:
    """Returns `8,120 … 8,900  (near)`: near where the dearer end is beyond the budget, over where both are."""
    forecast = sub(item, "forecast") or {}
    low, high = (text(sub(forecast, key) or {}, "amount") for key in ("low", "high"))
    if low is None or high is None:
        return None
    told = f"{Decimal(low):,.0f} … {Decimal(high):,.0f}"
    limit = text(sub(item, "budget") or {}, "amount")
    if limit is None or Decimal(high) <= Decimal(limit):
        return told
    return f"{told}  ({'over' if Decimal(low) > Decimal(limit) else 'near'})"


def until_title(answer: Json) -> str:
    """Returns the forecast's heading with the month's last day: `FORECAST 30 NOV`."""
    for each in [*items(answer, "totals"), *items(answer)]:
        until = text(sub(each, "forecast") or {}, "until")
        if until is not None:
            # It ends where the next month begins; a second before is still this one's last day.
            day = phrases.local(until, text(answer, "zone")) - timedelta(seconds=1)
            return f"FORECAST {day.day} {day:%b}".upper()
    return "FORECAST"


def total_told(total: Json) -> Sequence[str]:
    """Returns what is said of a total's budget and forecast, in words."""
    budget, forecast = budget_cell(total), forecast_cell(total)
    return [
        *([f"budget {budget}"] if budget is not None else []),
        *([f"forecast {forecast}"] if forecast is not None else []),
    ]


def plotted(answer: Json, columns: int) -> list[str]:
    """Returns usage as bars that fit into so many columns: cost where all of it has one currency, else GPU-hours.

    One line a group, in the order of the answer; nothing is cut but long names.
    """
    found = items(answer)
    if not found:
        return []
    currencies = {_currency(sub(each, "cost")) for each in found}
    currency = next(iter(currencies)) if len(currencies) == 1 else None
    told_values = (text(sub(each, "cost") or {}, "amount") if currency else text(each, "gpu_hours") for each in found)
    values = [Decimal(each or 0) for each in told_values]
    names = [_shortened(visible(text(each, "key") or "?")) for each in found]
    told = [phrases.quantity(value, 2 if currency else 1) for value in values]
    left, right = max(map(width, names)), max(map(len, told))
    room = max(columns - left - right - 4, LEAST_BAR)
    most = max(values)
    lines = [f"cost in {currency}" if currency else "GPU-hours"]
    for name, value, number in zip(names, values, told, strict=True):
        cells = max(int(value * room / most), 1) if value > 0 else 0
        lines.append(f"{name}{' ' * (left - width(name))}  {number:>{right}}  {_MARK * cells}".rstrip())
    return lines


def _shortened(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


def _currency(money: Json | None) -> str | None:
    return None if money is None else text(money, "currency")
