"""A forecast is what the month cost so far and what the last week says about the days that are left."""

from datetime import datetime

import pytest

from metering.forecast import Forecast, forecasts
from metering.usage_report import GroupBy, Span, totals_of, usage_by
from scheduler.core.model import AccountId, DeviceId
from tests.metering.builders import book
from tests.metering.centre import SHANGHAI, Centre

A0, B0 = DeviceId("GPU-a-0"), DeviceId("GPU-b-0")


def moment(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=SHANGHAI).timestamp()) * 1000


def asked(centre: Centre, account: str = "") -> list[Forecast]:
    with centre.read() as connection:
        return forecasts(connection, AccountId(account), SHANGHAI, centre.now_ms)


@pytest.fixture
def month(centre: Centre) -> Centre:
    """At 10 a GPU-hour, 9 hours on 1 November, then 5, 1, 2, 3, 4, 3 and 2 a day; it is noon of the 9th."""
    centre.publish(book("v1", 0, prices={"burst": "10"}))
    centre.clock.advance(hours=12)
    for hours in (9, 5, 1, 2, 3, 4, 3, 2):
        centre.run(A0, hours=hours)
        centre.clock.advance(hours=24 - hours)
    centre.clock.advance(hours=12)
    assert centre.now_ms == moment("2026-11-09T12:00:00")
    return centre


def test_a_forecast_goes_from_the_second_cheapest_to_the_second_dearest_of_seven_days(month: Centre) -> None:
    project, whole = asked(month)
    so_far = (9 + 5 + 1 + 2 + 3 + 4 + 3 + 2) * 10
    # 21 and a half days are left, at 2 to 4 hours each: of 1 2 2 3 3 4 5 the second of each end.
    assert (project.account, project.currency, project.days) == ("acme/vision", "CNY", 7)
    assert project.so_far_micros == so_far * 10**6
    assert project.low_micros == (so_far + 430) * 10**6
    assert project.high_micros == (so_far + 860) * 10**6
    assert project.until_ms == moment("2026-12-01T00:00:00")
    assert (whole.account, whole.low_micros, whole.high_micros) == ("", project.low_micros, project.high_micros)


def test_what_it_was_so_far_is_what_usage_says(month: Centre) -> None:
    month.run(B0, hours=1, account="globex/nlp")
    with month.read() as connection:
        (total,) = totals_of(
            usage_by(connection, Span(moment("2026-11-01T00:00:00"), month.now_ms, SHANGHAI), GroupBy.DAY)
        )
    assert asked(month)[-1].so_far_micros == total.amount_micros


def test_too_few_days_say_nothing_about_a_month(month: Centre) -> None:
    month.run(B0, hours=1, account="globex/nlp")
    (mine,) = [each for each in asked(month) if each.account == "globex/nlp"]
    assert (mine.low_micros, mine.high_micros, mine.days) == (None, None, 0)
    assert mine.so_far_micros == 10 * 10**6


def test_a_quiet_week_after_use_is_a_forecast_of_no_more(month: Centre) -> None:
    month.clock.advance(hours=24 * 8)
    project, _ = asked(month)
    assert project.low_micros == project.high_micros == project.so_far_micros


def test_an_account_has_its_own_forecast_only(month: Centre) -> None:
    month.run(B0, hours=1, account="globex/nlp")
    assert {each.account for each in asked(month, "acme")} == {"acme/vision", ""}
    assert asked(month, "nobody") == []
