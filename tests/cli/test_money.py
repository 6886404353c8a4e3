"""`turnstile usage`: which time is asked for, and how the answer is shown."""

import csv
import io
import json
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from cli.commands.money import named_span
from cli.spending import forecast_cell, plotted
from tests.cli.conftest import Home
from tests.cli.peer import Json, Peer, page

SHANGHAI = ZoneInfo("Asia/Shanghai")
BERLIN = ZoneInfo("Europe/Berlin")


def group(key: str, hours: str, idle: str | None, amount: str | None, **said: object) -> Json:
    return {
        "key": key,
        "name": None,
        "lines": 3,
        "gpu_hours": hours,
        "preempted_gpu_hours": "0.000000000",
        "measured_gpu_hours": hours if idle else "0.000000000",
        "idle_gpu_hours": idle,
        "idle_percent": 5 if idle else None,
        "cost": {"amount": amount, "currency": "USD"} if amount else None,
    } | said


@pytest.fixture
def told(peer: Peer) -> Peer:
    """A peer that tells the use of two projects."""
    items = [
        group("nlp", "1812.412345678", "96.200000000", "4531.030864", preempted_gpu_hours="12.000000000"),
        group("vision", "463.700000000", None, None, name="视觉组"),
    ]
    answer = page(
        "UsageList",
        items,
        totals=[group("total", "2276.112345678", "96.200000000", "4531.030864")],
        **{"from": "2026-11-01T00:00:00Z", "to": "2026-11-23T12:31:07Z", "zone": "UTC", "by": "project"},
    )
    peer.answers("GET", "/v1/usage", answer)
    return peer


def test_usage_is_a_table_with_its_sum_its_span_and_what_is_not_known(home: Home, told: Peer) -> None:
    done = home.turnstile("usage", "--from", "2026-11-01", "--to", "2026-11-23")
    assert done.code == 0, done.err
    assert done.out.splitlines() == [
        "PROJECT  GPU-HOURS  OF WHICH IDLE  PREEMPTED          COST",
        "nlp        1,812.4     96.2   5 %       12.0  4,531.03 USD",
        "vision       463.7              -        0.0             -",
    ]
    assert "total 2,276.1 GPU-hours" in done.err
    assert "2026-11-01T00:00:00Z to 2026-11-23T12:31:07Z, days of UTC" in done.err
    assert "idle is billed, shown so that you can act" in done.err


def amount(digits: str) -> Json:
    return {"amount": digits, "currency": "USD"}


@pytest.fixture
def planned(told: Peer) -> Peer:
    """The peer tells budgets and forecasts too."""
    budgets = [
        {"account": "nlp", "period": "month", "paid": amount("8841.00")},
        {"account": "", "period": "month", "paid": amount("13841.00")},
        {"account": "vision", "period": "prepaid", "paid": amount("5.00")},
    ]
    forecast = {
        "account": "nlp",
        "so_far": amount("4531.030864"),
        "low": amount("8120.200000"),
        "high": amount("8900.400000"),
        "until": "2026-12-01T00:00:00Z",
        "days": 7,
    }
    told.answers("GET", "/v1/budgets", page("BudgetList", budgets))
    told.answers("GET", "/v1/usage/forecast", page("ForecastList", [forecast], totals=[{**forecast, "account": None}]))
    return told


def test_this_months_projects_have_their_budget_and_forecast_beside_them(home: Home, planned: Peer) -> None:
    done = home.turnstile("usage")
    assert done.code == 0, done.err
    assert done.out.splitlines() == [
        "PROJECT  GPU-HOURS  OF WHICH IDLE  PREEMPTED          COST    BUDGET        FORECAST 30 NOV",
        "nlp        1,812.4     96.2   5 %       12.0  4,531.03 USD  8,841.00  8,120 … 8,900  (near)",
        "vision       463.7              -        0.0             -         -                      -",
    ]
    assert "budget 13,841.00, forecast 8,120 … 8,900" in done.err
    document = json.loads(home.turnstile("usage", "-o", "json").out)
    assert document["items"][0]["forecast"]["high"] == amount("8900.400000")
    assert (document["items"][1]["budget"], document["items"][1]["forecast"]) == (None, None)


@pytest.mark.parametrize(("limit", "mark"), [("8000", "  (over)"), ("8500", "  (near)"), ("8900.4", ""), ("90000", "")])
def test_a_forecast_is_held_against_its_budget(limit: str, mark: str) -> None:
    item = {"budget": amount(limit), "forecast": {"low": amount("8120.2"), "high": amount("8900.4")}}
    assert forecast_cell(item) == f"8,120 … 8,900{mark}"
    assert forecast_cell({**item, "budget": None}) == "8,120 … 8,900"
    assert forecast_cell({"forecast": None}) is None


def test_other_times_and_keys_ask_for_no_forecast(home: Home, planned: Peer) -> None:
    for flags in (("--for", "last month"), ("--by", "user"), ("--from", "2026-11-01")):
        assert "FORECAST" not in home.turnstile("usage", *flags).out
    assert planned.requests("GET", "/v1/usage/forecast") == []


def test_usage_is_drawn_as_bars_that_fit_the_window(home: Home, told: Peer) -> None:
    lines = home.turnstile("usage", "--plot").out.splitlines()
    start = lines.index("GPU-hours")  # one project has no price
    assert lines[start + 1].startswith("nlp     1,812.4  ####")
    assert max(map(len, lines[start:])) <= 80


@pytest.mark.parametrize("columns", [20, 40, 80, 200])
def test_bars_are_in_proportion_and_never_wider_than_the_window(columns: int) -> None:
    costs = ("4531.03", "0.01", "0.00", "2265.515")
    answer = {"items": [group(f"2026-11-0{i}", "1.0", None, cost) for i, cost in enumerate(costs, start=1)]}
    unit, *bars = plotted(answer, columns)
    lengths = [bar.count("#") for bar in bars]
    assert unit == "cost in USD"
    assert lengths[1:3] == [1, 0]
    assert abs(lengths[0] - 2 * lengths[3]) <= 1
    assert all(len(bar) <= max(columns, 10 + 2 + 8 + 2 + 10) for bar in bars)


def test_hostile_and_wide_names_keep_their_bars_in_line() -> None:
    answer = {"items": [group("视觉组", "2.0", None, None), group("\x1b[31mred", "1.0", None, None)]}
    _, first, second = plotted(answer, 80)
    assert "\x1b" not in second
    assert plotted({"items": []}, 80) == []
    assert first.startswith("视觉组")


def test_csv_and_json_have_every_digit(home: Home, told: Peer) -> None:
    done = home.turnstile("usage", "-o", "csv", "--by", "user")
    rows = list(csv.DictReader(io.StringIO(done.out)))
    assert (rows[0]["gpu_hours"], rows[0]["cost_amount"], rows[0]["cost_currency"]) == (
        "1812.412345678",
        "4531.030864",
        "USD",
    )
    assert (rows[1]["idle_gpu_hours"], rows[1]["cost_amount"]) == ("", "")
    document = json.loads(home.turnstile("usage", "-o", "json").out)
    assert (document["kind"], document["items"][1]["idle_gpu_hours"]) == ("UsageList", None)


def test_what_is_asked_for_is_what_was_typed(home: Home, told: Peer) -> None:
    flags = ("--from", "2026-11-01", "--to", "2026-11-08T12:00+08:00", "--zone", "Asia/Shanghai", "--by", "gpu-model")
    assert home.turnstile("usage", *flags, "-A", "acme").code == 0
    (asked,) = told.requests("GET", "/v1/usage")
    assert asked.query == {
        "from": ["2026-10-31T16:00:00Z"],
        "to": ["2026-11-08T04:00:00Z"],
        "zone": ["Asia/Shanghai"],
        "by": ["gpu-model"],
        "account": ["acme"],
    }


@pytest.mark.parametrize(
    "flags",
    [
        ("--by", "mood"),
        ("--for", "next month"),
        ("--for", "today", "--from", "2026-11-01"),
        ("--to", "2026-11-01"),
        ("--from", "2026-11-08", "--to", "2026-11-01"),
        ("--from", "yesterdayish"),
        ("--zone", "Mars/Base"),
    ],
)
def test_a_time_or_key_that_is_none_is_refused_before_anybody_is_asked(
    home: Home, told: Peer, flags: tuple[str, ...]
) -> None:
    done = home.turnstile("usage", *flags)
    assert done.code == 2
    assert told.requests("GET", "/v1/usage") == []


@pytest.mark.parametrize(
    ("name", "since", "until"),
    [
        ("today", "2026-11-01T00:00", "2026-11-01T09:30"),
        ("yesterday", "2026-10-31T00:00", "2026-11-01T00:00"),
        ("this week", "2026-10-26T00:00", "2026-11-01T09:30"),
        ("last week", "2026-10-19T00:00", "2026-10-26T00:00"),
        ("this month", "2026-11-01T00:00", "2026-11-01T09:30"),
        ("last month", "2026-10-01T00:00", "2026-11-01T00:00"),
    ],
)
@pytest.mark.parametrize("zone", [SHANGHAI, BERLIN], ids=str)
def test_a_named_time_is_the_zones_and_ends_now_at_the_latest(
    name: str, since: str, until: str, zone: ZoneInfo
) -> None:
    now = datetime(2026, 11, 1, 9, 30, tzinfo=zone).astimezone(UTC)  # a Sunday, the first of a month
    expected = tuple(datetime.fromisoformat(each).replace(tzinfo=zone).astimezone(UTC) for each in (since, until))
    assert named_span(name, now, zone) == expected
