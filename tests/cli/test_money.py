"""`turnstile usage`: which time is asked for, and how the answer is shown."""

import csv
import io
import json
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from cli.commands.money import named_span
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
