"""What allocations that are over are charged is the same by the whole days that they share as by their own time."""

from dataclasses import replace
from zoneinfo import ZoneInfo

import pytest

from metering.charges import lines_due
from metering.timelines import DayTimelines, Prices, load_prices
from scheduler.core.model import Booking, DeviceId
from scheduler.store.ledger_allocations import allocations_by_id
from tests.metering.builders import HOUR_MS, NOON_MS, book
from tests.metering.centre import Centre
from tests.metering.test_tariffs import package, rich

A0, A1, B0, B1 = (DeviceId(f"GPU-{place}") for place in ("a-0", "a-1", "b-0", "b-1"))


@pytest.mark.parametrize("name", ["Asia/Shanghai", "America/New_York", "Australia/Lord_Howe"])
def test_lines_by_shared_days_are_the_lines_by_each_ones_own_time(centre: Centre, name: str) -> None:
    untiered = replace(rich(), prices=book().prices)
    centre.publish(untiered)
    centre.publish(book("later", NOON_MS + 30 * HOUR_MS, prices={"burst": "17.333333"}))
    made = [centre.run(A0, hours=3), centre.run(A0, A1, hours=30, booking=Booking.SPOT)]
    made += [centre.run(B0, account="globex/nlp", hours=1), centre.start(B0)]
    centre.clock.advance(minutes=5)
    made.append(centre.start(B1, booking=Booking.GUARANTEED))
    centre.running(made[-1])
    centre.clock.advance(milliseconds=61_001)
    centre.end(made[-1])
    with centre.read() as connection:
        prices, zone = load_prices(connection), ZoneInfo(name)
        days = DayTimelines(prices)
        found = allocations_by_id(connection, made)
        for until_ms in (centre.now_ms, centre.now_ms + HOUR_MS, NOON_MS + 4 * HOUR_MS):
            for allocation in found:
                alone = lines_due(connection, allocation, prices, zone, until_ms)
                assert lines_due(connection, allocation, prices, zone, until_ms, days) == alone
        assert any(lines_due(connection, each, prices, zone, centre.now_ms) for each in found)
        over = [each for each in found if each.ended_ms is not None]
        assert all(days.of((each.decided_ms, each.ended_ms or 0), zone) is not None for each in over)


def test_what_others_use_may_change_a_price_then_nothing_is_shared(centre: Centre) -> None:
    assert DayTimelines(replace(load_prices_of(centre), packages=(package(),))).of((0, 1), ZoneInfo("UTC")) is None
    centre.publish(rich())
    assert DayTimelines(load_prices_of(centre)).of((0, 1), ZoneInfo("UTC")) is None


def load_prices_of(centre: Centre) -> Prices:
    with centre.read() as connection:
        return load_prices(connection)
