"""When a waiting job is likely to start."""

from scheduler.core.estimate import estimate_start
from scheduler.core.policy import Policy
from tests.builders import HOUR_MS, START_MS, account, job, node
from tests.harness import Centre

ONE_PROMISE = Policy(promised_jobs=1)


def test_the_estimate_of_a_promised_job_is_its_promise() -> None:
    centre = Centre(node(gpus=1), policy=ONE_PROMISE)
    centre.submit(job(limit_ms=HOUR_MS))
    waits = centre.submit(job())
    centre.tick()
    found = estimate_start(centre.state, centre.policy, centre.now_ms, waits)
    assert found is not None
    assert (found.late_ms, found.is_promised) == (START_MS + HOUR_MS, True)


def test_a_job_behind_others_waits_for_them_too_and_the_state_is_as_before() -> None:
    centre = Centre(node(gpus=1), policy=ONE_PROMISE)
    jobs = [centre.submit(job(limit_ms=HOUR_MS)) for _ in range(5)]
    centre.tick()
    before = centre.state.reservations.copy()
    found = [estimate_start(centre.state, centre.policy, centre.now_ms, each) for each in jobs]
    assert [None if each is None else (each.late_ms - START_MS) // HOUR_MS for each in found] == [None, 1, 2, 3, 4]
    centre.state.check()
    assert centre.state.reservations == before
    centre.tick()  # the harness asserts that two plans of one state are equal


def test_the_likely_start_goes_by_what_jobs_used_of_their_limits_lately() -> None:
    centre = Centre(node(gpus=1), policy=ONE_PROMISE)
    for _ in range(200):
        early = centre.submit(job(limit_ms=HOUR_MS))
        centre.tick()
        centre.advance(minutes=6)
        centre.end(early)
    centre.submit(job(limit_ms=HOUR_MS))
    waits = centre.submit(job())
    centre.tick()
    found = estimate_start(centre.state, centre.policy, centre.now_ms, waits)
    assert found is not None
    assert found.late_ms == centre.now_ms + HOUR_MS
    assert 95 <= found.used_permille <= 135
    assert found.likely_ms == centre.now_ms + HOUR_MS * found.used_permille // 1000


def test_a_job_that_a_limit_stops_has_no_estimate() -> None:
    centre = Centre(node(gpus=4), accounts=(account("acme", limit=1),))
    centre.submit(job())
    stopped = centre.submit(job())
    centre.tick()
    assert estimate_start(centre.state, centre.policy, centre.now_ms, stopped) is None
