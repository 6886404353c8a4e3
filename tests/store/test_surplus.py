"""Surplus nodes of an elastic gang: held beside it, taken before it, gone with it; on both databases."""

from dataclasses import replace

from scheduler.core.model import GPU_UNITS, Allocation, Booking, EndReason, JobId, JobState, NodeName, Phase
from scheduler.core.occupancy import OccupancyState
from scheduler.core.plan import Start, Stop, Surplus
from scheduler.executor import Checkpointed, Shrunk, StartOrder
from scheduler.store import queries, read
from scheduler.store.actions import CancelJobs, Did, UpdateJobs
from scheduler.store.ledger_allocations import allocations_by_id
from tests.store.harness import Centre, draft, start


def _elastic(centre: Centre, **changes: object) -> JobId:
    plain = draft(2)
    shape = replace(plain.shape, most_nodes=3)
    (job,) = centre.submit(replace(plain, shape=shape, **changes))  # type: ignore[arg-type] # fields by name
    return job


def _start(job: JobId, *surplus: str) -> Start:
    """A start on n0, with two GPUs of each of these nodes besides."""
    grants = tuple(grant for name in surplus for grant in start(job, f"{name}/0", f"{name}/1").grants)
    return replace(start(job, "n0/0", "n0/1"), surplus=Surplus(Booking.SPOT, grants) if grants else None)


def _begun(centre: Centre) -> tuple[StartOrder, Allocation]:
    job = _elastic(centre)
    (order,) = centre.apply(_start(job, "n1")).started
    (surplus,) = (each for each in centre.state.allocations.values() if each.surplus_of is not None)
    return order, surplus


def test_a_gang_and_its_surplus_begin_and_end_as_one_and_the_ledger_tells_them_apart(centre: Centre) -> None:
    order, surplus = _begun(centre)
    gang = order.allocation
    assert (order.least_nodes, [grant.node for grant in gang.grants]) == (1, ["n0", "n1"])
    assert (surplus.surplus_of, surplus.booking, surplus.phase) == (gang.id, Booking.SPOT, Phase.STARTING)
    centre.check()
    with centre.database.read() as connection:
        assert read.live_orders(connection) == [replace(order, allocation=replace(gang, charged_units=2 * GPU_UNITS))]
        record = queries.job(connection, gang.job)
    assert record is not None
    assert [grant.node for grant in record.grants] == ["n0", "n1"]
    centre.clock.advance(seconds=1)
    began_ms = centre.clock.now_ms()
    centre.started(gang)
    centre.observe(Checkpointed(gang.id, began_ms))
    assert centre.state.allocations[surplus.id].checkpointed_ms == began_ms
    centre.clock.advance(seconds=10)
    recorded = centre.ended(gang)
    assert [id_ for id_, _ in recorded.ended] == [gang.id]
    assert centre.job_state(gang.job) is JobState.COMPLETED
    assert not centre.state.allocations
    held = [each for each in centre.intervals() if each.occupant.phase is Phase.RUNNING]
    assert {(each.device, each.occupant.allocation, each.occupant.booking) for each in held} == {
        *((device, gang.id, Booking.BURST) for device in ("n0/0", "n0/1")),
        *((device, surplus.id, Booking.SPOT) for device in ("n1/0", "n1/1")),
    }
    assert {(each.from_ms, each.to_ms) for each in held} == {(began_ms, began_ms + 10_000)}
    assert centre.kinds(gang.job) == ["submitted", "allocated", "started", "ended"]
    centre.check()


def test_surplus_that_is_taken_leaves_its_gang_running_and_frees_only_its_own_nodes(centre: Centre) -> None:
    order, surplus = _begun(centre)
    gang = order.allocation
    centre.started(gang)
    centre.clock.advance(seconds=5)
    centre.apply(stops=[Stop(surplus.id, EndReason.PREEMPTED)])
    assert centre.job_state(gang.job) is JobState.RUNNING
    assert centre.state.allocations[surplus.id].phase is Phase.STOPPING
    with centre.database.read() as connection:
        (again,) = read.live_orders(connection)
    assert (again.is_shrinking, len(again.allocation.grants)) == (True, 2), "a daemon that starts now asks again"
    centre.check()
    centre.reopen()
    centre.clock.advance(seconds=2)
    gone_ms = centre.clock.now_ms()
    for _ in range(2):
        centre.observe(Shrunk(gang.id, gone_ms, 1))
    assert set(centre.state.allocations) == {gang.id}
    assert {each.occupant.state for each in centre.cursors("n1/0")} == {OccupancyState.IDLE}
    assert centre.kinds(gang.job)[-2:] == ["shrinking", "shrunk"]
    with centre.database.read() as connection:
        (smaller,) = read.live_orders(connection)
        record = queries.job(connection, gang.job)
    assert record is not None
    assert (smaller.is_shrinking, len(smaller.allocation.grants), len(record.grants)) == (False, 1, 1)
    centre.clock.advance(seconds=3)
    centre.ended(gang)
    assert centre.job_state(gang.job) is JobState.COMPLETED
    centre.check()


def test_surplus_whose_node_fell_silent_ends_at_its_last_sign_unasked_and_its_gang_runs_on(centre: Centre) -> None:
    order, surplus = _begun(centre)
    gang = order.allocation
    centre.started(gang)
    centre.clock.advance(seconds=5)
    last_ms = centre.clock.now_ms()
    centre.clock.advance(seconds=30)
    centre.observe(Shrunk(gang.id, last_ms, 1, EndReason.NODE_LOST))
    assert set(centre.state.allocations) == {gang.id}
    assert centre.job_state(gang.job) is JobState.RUNNING
    with centre.database.read() as connection:
        ended = next(each for each in allocations_by_id(connection, [surplus.id]) if each.id == surplus.id)
    assert (ended.ended_ms, ended.end_reason) == (last_ms, EndReason.NODE_LOST)
    held = [each for each in centre.intervals() if each.occupant.allocation == surplus.id]
    assert max(each.to_ms for each in held) == last_ms, "nothing is billed beyond its evidence"
    blind = [each for each in centre.intervals() if each.device == "n1/0" and each.from_ms == last_ms]
    assert [each.occupant.state for each in blind] == [OccupancyState.UNKNOWN]
    centre.clock.advance(seconds=1)
    centre.ended(gang, EndReason.EXIT_NONZERO)
    assert centre.job_state(gang.job) is JobState.PENDING, "it fails for the lost node, which spends no retry"
    centre.check()


def test_a_gang_that_fails_when_it_lost_nodes_waits_again_with_its_retries_untouched(centre: Centre) -> None:
    order, surplus = _begun(centre)
    gang = order.allocation
    centre.started(gang)
    centre.apply(stops=[Stop(surplus.id, EndReason.PREEMPTED)])
    centre.clock.advance(seconds=1)
    centre.ended(gang, EndReason.EXIT_NONZERO)
    assert centre.job_state(gang.job) is JobState.PENDING
    assert not centre.state.allocations
    centre.check()
    (second,) = centre.apply(_start(gang.job)).started
    centre.started(second.allocation)
    centre.ended(second.allocation, EndReason.EXIT_NONZERO)
    assert centre.job_state(gang.job) is JobState.FAILED, "without surplus it fails of itself"
    centre.check()


def test_to_stop_a_gang_is_to_stop_its_surplus(centre: Centre) -> None:
    order, surplus = _begun(centre)
    centre.started(order.allocation)
    (action,) = centre.do(CancelJobs((order.allocation.job,), "ana"))
    assert action.state is JobState.STOPPING
    phases = {each.id: (each.phase, each.stop_reason) for each in centre.state.allocations.values()}
    assert phases == dict.fromkeys((order.allocation.id, surplus.id), (Phase.STOPPING, EndReason.CANCELLED))
    centre.check()
    centre.observe(Shrunk(order.allocation.id, centre.clock.now_ms(), 1))
    centre.ended(order.allocation, EndReason.CANCELLED)
    assert centre.job_state(order.allocation.job) is JobState.CANCELLED
    centre.check()


def test_surplus_that_holds_no_more_is_left_out_and_the_gang_starts(centre: Centre) -> None:
    centre.run("n1/0")
    job = _elastic(centre)
    applied = centre.apply(_start(job, "n1"))
    assert applied.rejected == ()
    assert [grant.node for grant in applied.started[0].allocation.grants] == ["n0"]
    too_many = _elastic(centre)
    shape = start(too_many, "n0/2", "n0/3")
    many = tuple(replace(shape.grants[0], node=NodeName(f"m{number}")) for number in range(3))
    (order,) = centre.apply(replace(shape, surplus=Surplus(Booking.BURST, many))).started
    assert len(order.allocation.grants) == 1, "more nodes than it may have"
    centre.check()


def test_late_word_of_an_end_holds_for_the_surplus_too(centre: Centre) -> None:
    order, surplus = _begun(centre)
    gang = order.allocation
    centre.started(gang)
    began_ms = centre.clock.now_ms()
    centre.clock.advance(seconds=60)
    centre.ended(gang, EndReason.NODE_LOST)
    centre.clock.advance(seconds=5)
    centre.ended(gang, EndReason.NODE_LOST, at_ms=began_ms + 20_000)
    with centre.database.read() as connection:
        (of_gang, of_surplus) = allocations_by_id(connection, sorted([gang.id, surplus.id]))
    for each in (of_gang, of_surplus):
        running = [row for row in each.rows if row[9] == Phase.RUNNING.value]
        assert running, each.id
        assert {(row[4], row[5]) for row in running} == {(began_ms, began_ms + 20_000)}
    centre.check()


def test_more_time_for_a_gang_is_more_time_for_its_surplus(centre: Centre) -> None:
    order, surplus = _begun(centre)
    centre.started(order.allocation)
    (action,) = centre.do(UpdateJobs((order.allocation.job,), "olga", time_limit_ms=7_200_000, may_lengthen=True))
    assert action.did is Did.CHANGED
    limits = {each.id: each.time_limit_ms for each in centre.state.allocations.values()}
    assert limits == dict.fromkeys((order.allocation.id, surplus.id), 7_200_000)
    centre.check()
