"""What a tick decides, in scenarios."""

from dataclasses import replace

import pytest

from scheduler.core.lifecycle import IllegalTransition
from scheduler.core.model import Booking, BookingWanted, EndReason, HoldKind, JobState
from scheduler.core.policy import Policy
from scheduler.core.reasons import ReasonCode
from tests.builders import account, job, node, shape
from tests.harness import Centre


def test_jobs_start_in_order_of_submission() -> None:
    centre = Centre(node(gpus=1))
    first, second = centre.submit(job()), centre.submit(job())
    centre.tick()
    assert centre.running() == {first}
    assert centre.why(second) is ReasonCode.CAPACITY


def test_a_gang_starts_whole_or_not_at_all() -> None:
    centre = Centre(node("n1"), node("n2"))
    small = centre.submit(job(gpus=1))
    centre.tick()
    gang = centre.submit(job(gpus=8, nodes=2))
    centre.tick()
    assert centre.running() == {small}
    centre.end(small)
    centre.tick()
    assert centre.running() == {gang}
    assert centre.nodes_of(gang) == ["n1", "n2"]


def test_best_fit_keeps_the_large_hole() -> None:
    centre = Centre(node("big", gpus=8), node("small", gpus=2))
    little = centre.submit(job(gpus=2))
    centre.tick()
    assert centre.nodes_of(little) == ["small"]
    large = centre.submit(job(gpus=8))
    centre.tick()
    assert centre.nodes_of(large) == ["big"]


def test_a_gang_stays_in_one_pool_when_one_pool_holds_it() -> None:
    centre = Centre(node("a1", pool="a", gpus=4), node("a2", pool="a"), node("b1", pool="b"), node("b2", pool="b"))
    gang = centre.submit(job(gpus=4, nodes=2))
    centre.tick()
    assert centre.nodes_of(gang) == ["a1", "a2"]
    whole = centre.submit(job(gpus=8, nodes=2))
    centre.tick()
    assert centre.nodes_of(whole) == ["b1", "b2"]


def test_a_gang_may_span_pools_when_none_holds_it_alone() -> None:
    centre = Centre(node("a1", pool="a"), node("b1", pool="b"))
    gang = centre.submit(job(gpus=8, nodes=2))
    centre.tick()
    assert centre.nodes_of(gang) == ["a1", "b1"]


def test_enough_gpus_in_the_wrong_shape_is_called_fragmentation() -> None:
    centre = Centre(node("n1"), node("n2"))
    for _ in range(2):
        centre.submit(job(gpus=5))
    centre.tick()
    waits = centre.submit(job(gpus=6))
    centre.tick()
    assert centre.why(waits) is ReasonCode.FRAGMENTATION


def test_a_failed_gpu_is_not_placed_on() -> None:
    centre = Centre(node(gpus=2, failed=(0,)))
    first, second = centre.submit(job()), centre.submit(job())
    centre.tick()
    assert centre.running() == {first}
    assert centre.state.allocations
    assert centre.why(second) is ReasonCode.CAPACITY


def test_a_lost_node_sends_its_job_back_in_its_old_place_with_a_backoff() -> None:
    lost = node("n1", gpus=1)
    centre = Centre(lost)
    first = centre.submit(job())
    centre.tick()
    centre.down(lost)
    later = centre.submit(job())
    centre.tick()
    assert centre.why(first) is ReasonCode.BACKOFF
    assert centre.why(later) is ReasonCode.NODES_DOWN
    centre.advance(minutes=1)
    centre.node(lost)
    centre.tick()
    assert centre.running() == {first}


def test_a_job_that_kills_every_node_is_failed_in_the_end() -> None:
    centre = Centre(node(), policy=Policy(most_attempts=3))
    fatal = centre.submit(job())
    for _ in range(3):
        centre.advance(minutes=20)
        centre.tick()
        centre.end(fatal, EndReason.NODE_LOST)
    assert centre.ended[fatal] is JobState.FAILED


@pytest.mark.parametrize(
    ("reason", "state"),
    [
        (None, JobState.COMPLETED),
        (EndReason.EXIT_NONZERO, JobState.FAILED),
        (EndReason.OOM, JobState.FAILED),
        (EndReason.WALLTIME, JobState.TIMEOUT),
        (EndReason.CANCELLED, JobState.CANCELLED),
        (EndReason.NODE_LOST, JobState.PENDING),
        (EndReason.PREEMPTED, JobState.PENDING),
    ],
)
def test_what_becomes_of_a_job_follows_from_why_it_ended(reason: EndReason | None, state: JobState) -> None:
    centre = Centre(node())
    only = centre.submit(job())
    centre.tick()
    assert centre.end(only, reason) is state


def test_retries_are_used_up_one_by_one() -> None:
    centre = Centre(node())
    flaky = centre.submit(job(retries=1))
    centre.tick()
    assert centre.end(flaky, EndReason.EXIT_NONZERO) is JobState.PENDING
    centre.advance(minutes=1)
    centre.tick()
    assert centre.end(flaky, EndReason.EXIT_NONZERO) is JobState.FAILED


def test_held_jobs_wait_and_released_ones_start() -> None:
    centre = Centre(node())
    held = centre.submit(job())
    centre.hold(held, HoldKind.ADMIN)
    centre.tick()
    assert centre.why(held) is ReasonCode.HELD_ADMIN
    centre.release(held)
    centre.tick()
    assert centre.running() == {held}


def test_a_running_job_cannot_be_held() -> None:
    centre = Centre(node())
    runs = centre.submit(job())
    centre.tick()
    with pytest.raises(IllegalTransition, match=f"job {runs} is running and cannot become held"):
        centre.hold(runs)


def test_a_begin_time_is_waited_for() -> None:
    centre = Centre(node())
    later = centre.submit(job(begin_ms=centre.now_ms + 60_000))
    assert centre.tick().wake_at_ms == centre.now_ms + 60_000
    assert centre.why(later) is ReasonCode.BEGIN_TIME
    centre.advance(minutes=1)
    centre.tick()
    assert centre.running() == {later}


def test_a_closed_pool_takes_no_new_jobs_and_keeps_the_running() -> None:
    centre = Centre(node(gpus=2))
    runs = centre.submit(job())
    centre.tick()
    centre.pool("main", closed=True)
    waits = centre.submit(job())
    centre.tick()
    assert centre.running() == {runs}
    assert centre.why(waits) is ReasonCode.POOL_CLOSED
    centre.pool("main", closed=False)
    centre.tick()
    assert centre.running() == {runs, waits}


def test_a_limit_holds_at_every_level_and_says_which() -> None:
    centre = Centre(node(), accounts=(account("acme", limit=4), account("acme/nlp", limit=2)))
    first = centre.submit(job(gpus=2))
    second = centre.submit(job(gpus=1))
    third = centre.submit(job(gpus=3, project="acme/vision"))
    centre.tick()
    assert centre.running() == {first}
    assert centre.why(second) is ReasonCode.QUOTA_PROJECT
    assert centre.why(third) is ReasonCode.QUOTA_TENANT


def test_a_suspended_tenant_starts_nothing() -> None:
    centre = Centre(node(), accounts=(replace(account("acme"), is_suspended=True),))
    waits = centre.submit(job())
    centre.tick()
    assert centre.why(waits) is ReasonCode.SUSPENDED


def test_a_gang_is_booked_guaranteed_while_it_fits_the_guarantee_and_burst_beyond() -> None:
    centre = Centre(node(), accounts=(account("acme", guarantee=4),))
    jobs = [centre.submit(job(gpus=3)) for _ in range(2)]
    spot = centre.submit(job(gpus=1, wanted=BookingWanted.SPOT))
    centre.tick()
    asked = centre.submit(job(gpus=2, wanted=BookingWanted.GUARANTEED))
    centre.tick()
    bookings = {allocation.job: allocation.booking for allocation in centre.state.allocations.values()}
    assert bookings == {jobs[0]: Booking.GUARANTEED, jobs[1]: Booking.BURST, spot: Booking.SPOT}
    assert centre.why(asked) is ReasonCode.GUARANTEE


def test_inside_a_project_priority_goes_before_submit_time() -> None:
    centre = Centre(node(gpus=1))
    low = centre.submit(job(priority=-1))
    normal = centre.submit(job())
    high = centre.submit(job(priority=1))
    started = []
    for _ in range(3):
        centre.tick()
        (runs,) = centre.running()
        started.append(runs)
        centre.end(runs)
    assert started == [high, normal, low]


def test_shares_fill_one_gpu_before_they_open_another() -> None:
    centre = Centre(node(gpus=2))
    shares = [centre.submit(job(like=shape(share=50))) for _ in range(3)]
    centre.tick()
    whole = centre.submit(job(gpus=1))
    centre.tick()
    assert centre.running() == set(shares)
    devices = [allocation.grants[0].devices[0] for allocation in centre.state.allocations.values()]
    assert devices[0] == devices[1] != devices[2]
    centre.end(shares[2])
    centre.tick()
    assert whole in centre.running()


def test_cpu_and_memory_are_placed_together_with_gpus() -> None:
    centre = Centre(node(gpus=2))
    greedy = centre.submit(job(like=shape(gpus=1, cpus=24)))
    starved = centre.submit(job(gpus=1))
    centre.tick()
    assert centre.running() == {greedy}
    assert centre.why(starved) is ReasonCode.FRAGMENTATION


def test_a_plan_with_too_many_starts_is_cut_and_says_so() -> None:
    centre = Centre(node(), policy=Policy(most_starts_per_tick=2))
    jobs = [centre.submit(job()) for _ in range(3)]
    assert centre.tick().is_partial
    assert centre.why(jobs[2]) is ReasonCode.ORDER
    assert not centre.tick().is_partial
    assert centre.running() == set(jobs)
