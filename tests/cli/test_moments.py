"""Points in time, as people type them."""

import contextlib
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli import moments
from cli.errors import UsageProblem

NOW = datetime(2026, 11, 23, 12, 31, 7, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _zone(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setenv("TZ", "UTC")
    time.tzset()


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("now+2h", "2026-11-23T14:31:07Z"),
        ("20:00", "2026-11-23T20:00:00Z"),
        ("08:30", "2026-11-24T08:30:00Z"),
        ("tomorrow", "2026-11-24T00:00:00Z"),
        ("2026-11-24T08:00", "2026-11-24T08:00:00Z"),
        ("2026-11-24T08:00+08:00", "2026-11-24T00:00:00Z"),
        ("2026-12-01", "2026-12-01T00:00:00Z"),
    ],
)
def test_a_time_to_come_is_the_next_one_that_fits(typed: str, expected: str) -> None:
    assert moments.write(moments.ahead(typed, "--begin", NOW)) == expected


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("7d", "2026-11-16T12:31:07Z"),
        ("90m", "2026-11-23T11:01:07Z"),
        ("today", "2026-11-23T00:00:00Z"),
        ("yesterday", "2026-11-22T00:00:00Z"),
        ("2026-11-01", "2026-11-01T00:00:00Z"),
    ],
)
def test_a_time_gone_by_is_an_age_a_day_or_a_date(typed: str, expected: str) -> None:
    assert moments.write(moments.ago(typed, "--since", NOW)) == expected


@given(st.text(max_size=30) | st.text(alphabet="0123456789-:+TZ now", max_size=24))
def test_any_text_is_a_time_or_is_refused(text: str) -> None:
    for reader in (moments.ahead, moments.ago):
        with contextlib.suppress(UsageProblem):
            assert reader(text, "--begin", NOW).utcoffset() == timedelta(0)


@given(st.datetimes(min_value=datetime(1970, 1, 2), max_value=datetime(9000, 1, 1)))  # noqa: DTZ001  (given a zone below)
def test_what_is_written_is_read_back_to_the_second(naive: datetime) -> None:
    moment = naive.replace(tzinfo=UTC, microsecond=0)
    assert moments.parse(moments.write(moment)) == moment
