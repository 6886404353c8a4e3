"""How start estimates are measured, and what past errors make of the next one."""

import random

from scheduler.core.calibration import KEPT, LEAST, SHORTEST_MS, Measured, PastEstimates, calibrated
from scheduler.core.estimate import StartEstimate, estimate_starts
from scheduler.core.model import PoolName
from scheduler.forecasts import MOST_REMEMBERED, Forecasts
from scheduler.observer import Unobserved
from tests.builders import HOUR_MS, START_MS, job, node
from tests.harness import Centre

POOL = PoolName("main")
MINUTE_MS = 60_000


class Errors(Unobserved):
    """An observer that keeps what it is told of estimates."""

    def __init__(self) -> None:
        self.told: list[tuple[PoolName, float]] = []

    def start_estimated(self, pool: PoolName, error_seconds: float) -> None:
        self.told.append((pool, error_seconds))


def estimate(likely_ms: int, late_ms: int, *, is_promised: bool = False) -> StartEstimate:
    return StartEstimate(likely_ms, late_ms, 500, is_promised, POOL)


def test_nine_of_ten_starts_come_by_the_late_estimate_whatever_made_the_estimates_wrong() -> None:
    chance = random.Random(7)
    past, in_time, asked = PastEstimates(), 0, 0
    for number in range(3000):
        foretold = chance.randrange(5, 300) * MINUTE_MS
        came = round(foretold * chance.lognormvariate(0.5, 1.0))
        if number >= KEPT:
            found = calibrated(estimate(foretold, 9 * HOUR_MS), past.record(POOL), 0)
            asked += 1
            in_time += came <= found.late_ms
        past.add(Measured(POOL, foretold, came))
    assert 0.87 <= in_time / asked <= 0.94


def test_the_record_is_of_the_last_estimates_only_and_tells_their_median_error() -> None:
    past = PastEstimates()
    for _ in range(5000):
        past.add(Measured(POOL, 0, 100 * HOUR_MS))
    for number in range(KEPT):
        past.add(Measured(POOL, HOUR_MS, HOUR_MS + number * MINUTE_MS))
    record = past.record(POOL)
    assert record is not None
    assert (record.count, record.median_error_ms) == (KEPT, KEPT // 2 * MINUTE_MS)
    assert past.record(PoolName("other")) is None


def test_few_past_estimates_change_nothing_and_a_promise_is_never_put_off() -> None:
    past = PastEstimates()
    plain = estimate(10 * MINUTE_MS, 20 * MINUTE_MS)
    for _ in range(LEAST - 1):
        past.add(Measured(POOL, MINUTE_MS, HOUR_MS))
    assert calibrated(plain, past.record(POOL), 0) == plain
    past.add(Measured(POOL, MINUTE_MS, HOUR_MS))
    assert calibrated(plain, past.record(POOL), 0).late_ms == 600 * MINUTE_MS
    promised = estimate(10 * MINUTE_MS, 20 * MINUTE_MS, is_promised=True)
    assert calibrated(promised, past.record(POOL), 0).late_ms == 20 * MINUTE_MS
    assert calibrated(estimate(5, 5), past.record(POOL), 5).late_ms == 5
    assert SHORTEST_MS == MINUTE_MS


def test_a_survey_estimates_each_waiting_job_once_and_its_start_is_measured() -> None:
    centre, heard = Centre(node(gpus=1)), Errors()
    forecasts = Forecasts(heard)
    runs = centre.submit(job(limit_ms=HOUR_MS))
    centre.submit(job(limit_ms=HOUR_MS))
    centre.tick()
    waits = centre.submit(job(limit_ms=HOUR_MS))
    centre.tick()
    assert forecasts.survey(centre.state, centre.policy, centre.now_ms) == 2
    centre.advance(minutes=10)
    assert forecasts.survey(centre.state, centre.policy, centre.now_ms) == 0
    centre.end(runs)
    found = estimate_starts(centre.state, centre.policy, centre.now_ms, 10)
    assert found[waits].pool == POOL
    forecasts.started(waits, POOL, START_MS + 90 * MINUTE_MS)
    forecasts.started(waits, POOL, START_MS + 95 * MINUTE_MS)  # it was measured already
    assert heard.told == [(POOL, 1800.0)]
    record = forecasts.record(POOL)
    assert record is not None
    assert record.median_error_ms == 30 * MINUTE_MS


def test_a_job_that_was_changed_or_ended_is_not_measured_and_what_is_remembered_is_bounded() -> None:
    centre, heard = Centre(node(gpus=1)), Errors()
    forecasts = Forecasts(heard)
    centre.submit(job())
    waits = centre.submit(job())
    centre.tick()
    assert forecasts.survey(centre.state, centre.policy, centre.now_ms) == 1
    forecasts.forget(waits)
    forecasts.started(waits, POOL, START_MS)
    assert heard.told == []
    assert MOST_REMEMBERED <= 20_000
