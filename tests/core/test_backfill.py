"""Promised starts and who may pass: scenarios first, then the promise as a property with a naive model beside it."""

from dataclasses import replace

from scheduler.core import events
from scheduler.core.model import BookingWanted, GpuClass, JobId, NodeName
from scheduler.core.policy import Backfill, Policy, Preemption, QueueOrder
from scheduler.core.reasons import ReasonCode
from scheduler.core.stretch import AdvanceReservation, ReservationId
from tests.builders import HOUR_MS, START_MS, account, job, node, shape
from tests.harness import Centre

MINUTE_MS = 60_000


def _promised(centre: Centre, job_id: JobId) -> int | None:
    """Minutes from the beginning until the promised start."""
    found = centre.state.reservations.get(job_id)
    return None if found is None else (found.start_ms - START_MS) // MINUTE_MS


def test_a_blocked_gang_is_promised_the_end_of_what_it_waits_for() -> None:
    centre = Centre(node("n1"), node("n2"))
    centre.submit(job(gpus=8, limit_ms=HOUR_MS))
    centre.tick()
    gang = centre.submit(job(gpus=8, nodes=2))
    centre.tick()
    assert _promised(centre, gang) == 60
    assert [name for name, _ in centre.state.reservations[gang].parts] == ["n1", "n2"]


def test_a_short_job_passes_and_a_long_one_waits_for_the_promise() -> None:
    centre = Centre(node("n1"), node("n2"))
    centre.submit(job(gpus=8, limit_ms=HOUR_MS))
    centre.tick()
    gang = centre.submit(job(gpus=8, nodes=2))
    long = centre.submit(job(gpus=1, limit_ms=HOUR_MS + 1))
    short = centre.submit(job(gpus=1, limit_ms=HOUR_MS))
    centre.tick()
    assert short in centre.running()
    assert long not in centre.running()
    assert centre.why(long) is ReasonCode.RESERVATION
    assert centre.why(gang) is ReasonCode.CAPACITY


def test_a_long_job_passes_on_gpus_that_the_promise_does_not_need() -> None:
    centre = Centre(node("n1"), node("n2"))
    centre.submit(job(gpus=8, limit_ms=HOUR_MS))
    centre.tick()
    gang = centre.submit(job(gpus=6, nodes=2))
    spare = centre.submit(job(gpus=2, limit_ms=100 * HOUR_MS))
    more = centre.submit(job(gpus=1, limit_ms=100 * HOUR_MS))
    centre.tick()
    assert spare in centre.running()
    assert more not in centre.running()
    assert _promised(centre, gang) == 60


def test_an_early_end_brings_the_promise_forward() -> None:
    centre = Centre(node("n1"))
    first = centre.submit(job(gpus=4, limit_ms=2 * HOUR_MS))
    second = centre.submit(job(gpus=4, limit_ms=HOUR_MS))
    centre.tick()
    waits = centre.submit(job(gpus=8))
    centre.tick()
    assert _promised(centre, waits) == 120
    centre.advance(minutes=10)
    centre.end(first)
    centre.tick()
    assert _promised(centre, waits) == 60
    centre.end(second)
    centre.tick()
    assert centre.running() == {waits}


def test_a_gang_past_its_limit_is_taken_to_end_after_its_grace() -> None:
    centre = Centre(node("n1"), policy=Policy(default_grace_ms=5 * MINUTE_MS))
    centre.submit(job(gpus=8, limit_ms=HOUR_MS))
    centre.tick()
    waits = centre.submit(job(gpus=8))
    centre.advance(minutes=61)
    centre.tick()
    assert _promised(centre, waits) == 65
    centre.advance(minutes=5)
    centre.tick()
    assert _promised(centre, waits) == 70


def test_without_backfill_nothing_passes_the_first_that_does_not_fit() -> None:
    centre = Centre(node("n1"), policy=Policy(backfill=Backfill.NONE, order=QueueOrder.FIFO))
    centre.submit(job(gpus=4))
    centre.tick()
    centre.submit(job(gpus=8))
    small = centre.submit(job(gpus=1, limit_ms=1))
    centre.tick()
    assert small not in centre.running()
    assert centre.why(small) is ReasonCode.ORDER


def test_easy_promises_the_first_of_the_order_only_and_conservative_all() -> None:
    for backfill, promised in ((Backfill.EASY, 1), (Backfill.CONSERVATIVE, 3)):
        centre = Centre(node("n1"), policy=Policy(backfill=backfill, promised_jobs=1))
        centre.submit(job(gpus=8))
        centre.tick()
        waiting = [centre.submit(job(gpus=8)) for _ in range(3)]
        centre.tick()
        assert [_promised(centre, each) for each in waiting][:promised] == [60, 120, 180][:promised]
        assert len(centre.state.reservations) == promised


def test_a_job_that_waited_too_long_is_promised_a_start_whatever_the_order() -> None:
    centre = Centre(node("n1"), policy=Policy(order=QueueOrder.SJF, promised_jobs=0, promise_after_ms=2 * HOUR_MS))
    running = centre.submit(job(gpus=8, limit_ms=9 * HOUR_MS))
    centre.tick()
    gang = centre.submit(job(gpus=8, limit_ms=9 * HOUR_MS))
    centre.tick()
    assert _promised(centre, gang) is None
    centre.advance(minutes=121)
    centre.tick()
    assert _promised(centre, gang) == 540
    shorter = centre.submit(job(gpus=8, limit_ms=HOUR_MS))
    centre.end(running)
    centre.node(node("n2"))
    centre.node(node("n3"))
    centre.tick()
    assert centre.running() == {gang, shorter}


def test_a_later_job_that_the_order_puts_first_does_not_take_a_promise_away() -> None:
    centre = Centre(node("n1"), policy=Policy(order=QueueOrder.SJF, promised_jobs=1))
    centre.submit(job(gpus=8, limit_ms=HOUR_MS))
    centre.tick()
    promised = centre.submit(job(gpus=8, limit_ms=5 * HOUR_MS))
    centre.tick()
    centre.submit(job(gpus=8, limit_ms=HOUR_MS))
    centre.tick()
    assert _promised(centre, promised) == 60


def test_a_start_within_a_guarantee_moves_the_promise_of_a_burst_job() -> None:
    centre = Centre(node("n1"), node("n2"), accounts=(account("vip", guarantee=8), account("acme")))
    centre.submit(job(gpus=8, limit_ms=HOUR_MS))
    centre.tick()
    gang = centre.submit(job(gpus=8, nodes=2))
    centre.tick()
    assert _promised(centre, gang) == 60
    bought = centre.submit(job(gpus=8, project="vip/p", limit_ms=3 * HOUR_MS))
    centre.tick()
    assert bought in centre.running()
    assert _promised(centre, gang) == 180


def test_a_promise_within_a_guarantee_binds_other_guaranteed_starts() -> None:
    centre = Centre(
        node("n1"), node("n2"), accounts=(account("vip", guarantee=16),), policy=Policy(preemption=Preemption.OFF)
    )
    centre.submit(job(gpus=8, limit_ms=HOUR_MS))
    centre.tick()
    gang = centre.submit(job(gpus=8, nodes=2, project="vip/p", wanted=BookingWanted.GUARANTEED))
    small = centre.submit(job(gpus=1, project="vip/p", limit_ms=3 * HOUR_MS))
    centre.tick()
    assert _promised(centre, gang) == 60
    assert small not in centre.running()


def test_a_lost_node_moves_the_promise_to_the_nodes_that_are_left() -> None:
    first, second = node("n1"), node("n2")
    centre = Centre(first, second)
    centre.submit(job(gpus=8, limit_ms=HOUR_MS))
    centre.submit(job(gpus=8, limit_ms=2 * HOUR_MS))
    centre.tick()
    waits = centre.submit(job(gpus=8))
    centre.tick()
    assert _promised(centre, waits) == 60
    centre.down(first)
    centre.tick()
    assert _promised(centre, waits) == 120


def test_a_promise_ends_with_its_job() -> None:
    centre = Centre(node("n1"))
    centre.submit(job(gpus=8))
    centre.tick()
    waits = centre.submit(job(gpus=8))
    centre.tick()
    assert waits in centre.state.reservations
    centre.cancel(waits)
    assert not centre.state.reservations
    assert not centre.state.future.booked


def test_nothing_starts_on_nodes_kept_for_maintenance_that_would_not_be_gone_by_then() -> None:
    centre = Centre(node("n1"))
    begin_ms = START_MS + HOUR_MS
    kept = AdvanceReservation(ReservationId("fans"), begin_ms, begin_ms + HOUR_MS, (NodeName("n1"),), reason="fans")
    centre.apply(events.ReservationMade(centre.now_ms, kept))
    long, short = centre.submit(job(limit_ms=HOUR_MS + 1)), centre.submit(job(limit_ms=HOUR_MS))
    made = centre.tick()
    assert centre.running() == {short}
    assert centre.why(long) is ReasonCode.RESERVATION
    assert _promised(centre, long) == 120
    assert made.wake_at_ms == begin_ms
    centre.advance(minutes=120)
    centre.end(short)
    centre.tick()
    assert long in centre.running()


def test_the_account_that_nodes_are_kept_for_may_use_them() -> None:
    centre = Centre(node("n1"))
    kept = AdvanceReservation(
        ReservationId("demo"), START_MS, START_MS + 9 * HOUR_MS, (NodeName("n1"),), account=account("vip").id
    )
    centre.apply(events.ReservationMade(centre.now_ms, kept))
    stranger, owner = centre.submit(job(project="acme/p")), centre.submit(job(project="vip/p"))
    centre.tick()
    assert centre.running() == {owner}
    centre.apply(events.ReservationRemoved(centre.now_ms, kept.id))
    centre.tick()
    assert centre.running() == {owner, stranger}


def test_a_share_beside_others_does_not_keep_a_promised_gpu_longer() -> None:
    centre = Centre(node("n1", gpus=1))
    first = centre.submit(job(like=shape(share=50), limit_ms=HOUR_MS))
    centre.tick()
    whole = centre.submit(job(gpus=1))
    long = centre.submit(job(like=shape(share=50), limit_ms=2 * HOUR_MS))
    short = centre.submit(job(like=shape(share=50), limit_ms=HOUR_MS))
    centre.tick()
    assert centre.running() == {first, short}
    assert _promised(centre, whole) == 60
    assert centre.why(long) is not None


def test_a_job_that_names_two_classes_is_promised_the_sooner_one() -> None:
    centre = Centre(node("n1", gpus=1), node("m1", gpus=1, gpu_class="A100"))
    either = replace(shape(), gpu_classes=(GpuClass("H100"), GpuClass("A100")))
    centre.submit(job(limit_ms=2 * HOUR_MS))
    centre.submit(job(like=shape(gpu_class="A100"), limit_ms=HOUR_MS))
    centre.tick()
    waits = centre.submit(job(like=either))
    centre.tick()
    assert _promised(centre, waits) == 60
    assert centre.state.reservations[waits].gpu_class == "A100"


def test_the_simulators_easy_promises_one_start_however_long_others_wait() -> None:
    policy = Policy(backfill=Backfill.EASY_BEFORE, order=QueueOrder.FIFO, promise_after_ms=HOUR_MS)
    centre = Centre(node("n1"), node("n2"), policy=policy)
    centre.submit(job(gpus=8, limit_ms=9 * HOUR_MS))
    centre.tick()
    waiting = [centre.submit(job(gpus=8, nodes=2)) for _ in range(3)]
    centre.tick()
    centre.advance(minutes=121)
    longer, shorter = (centre.submit(job(gpus=1, limit_ms=hours * HOUR_MS)) for hours in (8, 6))
    centre.tick()
    assert list(centre.state.reservations) == waiting[:1]
    assert shorter in centre.running()
    assert longer not in centre.running()
