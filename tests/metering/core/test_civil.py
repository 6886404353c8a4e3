"""Civil days of a zone share their edges and cover time once, whatever the zone's clock does."""

import itertools
from datetime import UTC, date, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.core.civil import civil_days, day_start_ms, local_text, local_time, utc_text
from scheduler.clock import iso_utc, parse_utc_ms
from tests.metering.builders import DAY_MS, HOUR_MS

ZONES = [
    "Asia/Shanghai",  # daylight saving 1986 to 1991
    "America/New_York",
    "Australia/Lord_Howe",  # shifts by half an hour
    "America/St_Johns",  # until 2011 its clock was set back over midnight, at 00:01
    "Africa/Cairo",  # its clock jumps over midnight
    "Pacific/Apia",  # had no 2011-12-30
    "Asia/Kathmandu",
    "UTC",
]
ZONE = st.sampled_from(ZONES).map(ZoneInfo)
INSTANT_MS = st.integers(parse_utc_ms("1985-01-01T00:00Z"), parse_utc_ms("2035-01-01T00:00Z"))


@given(INSTANT_MS, st.integers(1, 12 * DAY_MS), ZONE)
def test_days_cover_a_range_once_and_in_order(from_ms: int, length_ms: int, zone: ZoneInfo) -> None:
    days = civil_days(from_ms, from_ms + length_ms, zone)
    assert days[0].from_ms == from_ms
    assert days[-1].to_ms == from_ms + length_ms
    assert all(day.from_ms < day.to_ms for day in days)
    assert all(one.to_ms == two.from_ms and one.date < two.date for one, two in itertools.pairwise(days))


@given(INSTANT_MS, st.integers(1, 3 * DAY_MS), ZONE)
def test_an_instant_lies_in_the_day_of_its_local_date(from_ms: int, length_ms: int, zone: ZoneInfo) -> None:
    for day in civil_days(from_ms, from_ms + length_ms, zone):
        for instant_ms in (day.from_ms, (day.from_ms + day.to_ms) // 2, day.to_ms - 1):
            local = local_time(instant_ms, zone)
            # Only a clock set back over midnight shows the old date again inside the new day, for the hour it repeats.
            repeats_ms = 2 * HOUR_MS if zone.key == "America/St_Johns" else 0
            later = local_time(instant_ms - repeats_ms, zone).date()
            assert day.date in {local.date(), later} or (repeats_ms and local.date() == day.date - timedelta(days=1))


@pytest.mark.parametrize(
    ("zone", "day", "hours"),
    [
        ("Asia/Shanghai", date(1986, 5, 4), 23),
        ("Asia/Shanghai", date(1986, 9, 14), 25),
        ("Asia/Shanghai", date(2026, 11, 1), 24),
        ("America/New_York", date(2026, 3, 8), 23),
        ("America/New_York", date(2026, 11, 1), 25),
        ("Australia/Lord_Howe", date(2026, 10, 4), 23.5),
        ("Australia/Lord_Howe", date(2026, 4, 5), 24.5),
        ("Africa/Cairo", date(2024, 4, 26), 23),
        ("Pacific/Apia", date(2011, 12, 30), 0),
    ],
)
def test_a_day_is_as_long_as_its_zone_says(zone: str, day: date, hours: float) -> None:
    start_ms = day_start_ms(day, ZoneInfo(zone))
    assert day_start_ms(day + timedelta(days=1), ZoneInfo(zone)) - start_ms == int(hours * HOUR_MS)


def test_a_day_begins_at_the_jump_when_the_clock_jumps_over_midnight() -> None:
    # Cairo went from 23:59:59 on 25 April 2024 to 01:00 on the 26th.
    start_ms = day_start_ms(date(2024, 4, 26), ZoneInfo("Africa/Cairo"))
    assert local_text(start_ms, ZoneInfo("Africa/Cairo")) == "2024-04-26T01:00:00.000+03:00"
    assert local_text(start_ms - 1, ZoneInfo("Africa/Cairo")) == "2024-04-25T23:59:59.999+02:00"


class _JumpsOverMidnight(tzinfo):
    """A zone whose clock goes from 23:30 on 31 May 2030 to 00:30: midnight lies inside the hour that never was."""

    def utcoffset(self, moment: datetime | None) -> timedelta:
        assert moment is not None, "asked about a moment"
        wall = moment.replace(tzinfo=None)
        before, after = datetime(2030, 5, 31, 23, 30), datetime(2030, 6, 1, 0, 30)  # noqa: DTZ001 - wall times
        if before <= wall < after:  # PEP 495: what never was is read by the offset before, or after for fold 1
            return timedelta(hours=moment.fold)
        return timedelta(hours=1 if wall >= after else 0)

    def dst(self, moment: datetime | None) -> timedelta:
        return self.utcoffset(moment)

    def tzname(self, moment: datetime | None) -> str:
        return "jumps"

    def fromutc(self, moment: datetime) -> datetime:
        jump = datetime(2030, 5, 31, 23, 30)  # noqa: DTZ001 - UTC as tzinfo.fromutc has it
        return moment + timedelta(hours=1 if moment.replace(tzinfo=None) >= jump else 0)


def test_a_day_begins_at_the_jump_when_midnight_lies_inside_it() -> None:
    assert utc_text(day_start_ms(date(2030, 6, 1), _JumpsOverMidnight())) == "2030-05-31T23:30:00.000Z"


def test_times_read_back_as_the_instant_they_name() -> None:
    shanghai = ZoneInfo("Asia/Shanghai")
    at_ms = parse_utc_ms("2026-11-02T01:00:00.007Z")
    assert local_text(at_ms, shanghai) == "2026-11-02T09:00:00.007+08:00"
    assert utc_text(at_ms) == "2026-11-02T01:00:00.007Z"
    assert parse_utc_ms(local_text(at_ms, shanghai)) == at_ms


@given(INSTANT_MS, ZONE)
def test_local_and_utc_texts_name_the_same_instant(at_ms: int, zone: ZoneInfo) -> None:
    assert parse_utc_ms(local_text(at_ms, zone)) == parse_utc_ms(utc_text(at_ms)) == at_ms
    assert utc_text(at_ms) == iso_utc(at_ms)


def test_an_empty_range_has_no_days() -> None:
    assert civil_days(0, 0, UTC) == ()
