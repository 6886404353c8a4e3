"""Plans meet what the database holds now: each gang is taken whole or not at all, and charged for what it blocks."""

from dataclasses import replace

import pytest

from scheduler.core.cycle import plan
from scheduler.core.model import (
    GPU_UNITS,
    Account,
    AccountId,
    DeviceHealth,
    EndReason,
    GpuClass,
    JobState,
    NodeAvailability,
    NodeName,
    Phase,
    PoolName,
)
from scheduler.core.occupancy import Evidence, OccupancyState
from scheduler.core.plan import Stop
from scheduler.core.policy import Policy
from scheduler.store import read
from scheduler.store.accounts import SaveAccount
from scheduler.store.actions import CancelJobs, UpdateJobs
from scheduler.store.allocations import MarkStopping
from scheduler.store.inventory import SetDrain, SyncInventory
from scheduler.store.moving import Move
from scheduler.store.pools import SetPool
from tests.store.harness import ACME, H200, PROJECT, Centre, draft, node, start

HALF = GPU_UNITS // 2


def test_a_gang_one_of_whose_devices_was_taken_is_rejected_whole(centre: Centre) -> None:
    centre.run("n1/0")
    (job,) = centre.submit(draft(2, nodes=2))
    before = centre.cursors()
    applied = centre.apply(start(job, "n0/0", "n0/1", "n1/0", "n1/1"))
    assert applied.rejected == ((job, "device n1/0 is taken"),)
    assert applied.started == ()
    assert centre.job_state(job) is JobState.PENDING
    assert centre.job_column(job, "attempt") == 0
    assert centre.cursors() == before
    assert centre.kinds(job) == ["submitted"]
    centre.check()


def test_of_two_gangs_of_one_plan_that_want_one_device_the_first_gets_it(centre: Centre) -> None:
    first, second = centre.submit(draft(2), draft(2))
    applied = centre.apply(start(first, "n0/0", "n0/1"), start(second, "n0/1", "n0/2"))
    assert [order.allocation.job for order in applied.started] == [first]
    assert applied.rejected == ((second, "device n0/1 is taken"),)
    centre.check()


def test_a_job_starts_once_however_often_a_plan_names_it(centre: Centre) -> None:
    (job,) = centre.submit()
    applied = centre.apply(start(job, "n0/0"), start(job, "n0/1"))
    assert len(applied.started) == 1
    assert applied.rejected == ((job, "the job starts already"),)
    assert centre.apply(start(job, "n0/2")).rejected == ((job, "the job is starting"),)
    centre.check()


def test_an_order_carries_all_that_the_executor_needs(centre: Centre) -> None:
    (_, job) = centre.submit(draft(2, array_indexes=(4, 7)))
    (order,) = centre.apply(start(job, "n0/0", "n0/1")).started
    assert (order.array_index, order.spec.argv, order.allocation.attempt) == (7, ("true",), 1)
    assert order.allocation.decided_ms == centre.clock.now_ms()
    assert order.allocation.phase is Phase.STARTING
    with centre.database.read() as connection:
        assert read.live_orders(connection) == [order]


def _cancel(centre: Centre) -> None:
    centre.do(CancelJobs(tuple(centre.state.jobs), "ana"))


def _suspend(centre: Centre) -> None:
    centre.do(SaveAccount(Account(ACME, is_suspended=True), "Acme"))


def _drain(centre: Centre) -> None:
    centre.do(SetDrain(NodeName("n0"), "bad fan", "root"))


def _close(centre: Centre) -> None:
    centre.do(SetPool(PoolName("main"), True, "maintenance"))


def _fail_device(centre: Centre) -> None:
    broken = node("n0")
    first = replace(broken.devices[0], health=DeviceHealth.FAILED, reason="XID 79")
    inventory = (replace(broken, devices=(first, *broken.devices[1:])), node("n1"))
    centre.do(SyncInventory(inventory, Evidence.CONTROLLER))


def _lose_node(centre: Centre) -> None:
    centre.do(SyncInventory((node("n1"),), Evidence.CONTROLLER))


def _lose_device(centre: Centre) -> None:
    centre.do(SyncInventory((replace(node("n0"), devices=node("n0").devices[1:]), node("n1")), Evidence.CONTROLLER))


def _take_away(centre: Centre) -> None:
    foreign = node("n0")
    first = replace(foreign.devices[0], is_foreign=True)
    inventory = (replace(foreign, devices=(first, *foreign.devices[1:])), node("n1"))
    centre.do(SyncInventory(inventory, Evidence.CONTROLLER))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (_cancel, "the job is cancelled"),
        (_suspend, "acme is suspended"),
        (_drain, "node n0 is draining"),
        (_close, "pool main is closed"),
        (_fail_device, "device n0/0 is not to be had"),
        (_lose_node, "node n0 is gone"),
        (_lose_device, "device n0/0 is not on node n0"),
        (_take_away, "device n0/0 is not to be had"),
    ],
)
def test_a_start_that_no_longer_holds_is_rejected_with_the_reason(centre: Centre, change: object, why: str) -> None:
    (job,) = centre.submit()
    assert callable(change)
    change(centre)
    assert centre.apply(start(job, "n0/0")).rejected == ((job, why),)
    centre.check()


def test_a_start_of_another_shape_or_class_than_the_jobs_is_rejected(centre: Centre) -> None:
    (job,) = centre.submit(draft(2))
    wrong_class = replace(start(job, "n0/0", "n0/1"), gpu_class=GpuClass("A100"))
    for wrong in (start(job, "n0/0"), start(job, "n0/0", "n1/0"), wrong_class):
        assert centre.apply(wrong).rejected == ((job, "the job has another shape"),)
    assert centre.apply(start(job, "n0/0", "n0/0")).rejected == ((job, "device n0/0 is named twice"),)


def test_a_job_whose_begin_time_was_moved_into_the_future_does_not_start(centre: Centre) -> None:
    (job,) = centre.submit(draft(begin_ms=centre.clock.now_ms() + 1))
    assert centre.apply(start(job, "n0/0")).rejected == ((job, "the job's begin time is not come"),)
    centre.clock.advance(milliseconds=1)
    assert centre.apply(start(job, "n0/0")).rejected == ()
    centre.state.check()


def test_a_start_holds_for_the_project_and_the_time_it_was_weighed_for(centre: Centre) -> None:
    nlp = AccountId("acme/nlp")
    centre.do(SaveAccount(Account(nlp, limit={H200: 1}), "NLP"))
    centre.run("n1/0", account=nlp)  # all that it may have
    moved, longer, shorter = centre.submit(*[draft()] * 3)
    planned = (start(moved, "n0/0"), start(longer, "n0/1"), start(shorter, "n0/2"))
    # The plan knows the terms of the new project too: another of its starts is there.
    centre.do(UpdateJobs((moved,), "ana", move=Move(account=nlp)))
    centre.do(UpdateJobs((longer,), "ana", time_limit_ms=3_600_001))
    centre.do(UpdateJobs((shorter,), "ana", time_limit_ms=1000))
    applied = centre.apply(*planned)
    assert applied.rejected == (
        (moved, "the job is for acme/nlp by now"),
        (longer, "the job may run longer than when the plan was made"),
    )
    assert [order.allocation.job for order in applied.started] == [shorter]
    centre.check()
    replanned = plan(centre.state, Policy(), centre.clock.now_ms(), 2)
    assert [(each.job, each.account, each.time_limit_ms) for each in replanned.starts] == [(longer, PROJECT, 3_600_001)]


def test_shares_fill_a_device_to_its_last_unit_and_no_further(centre: Centre) -> None:
    jobs = centre.submit(*[draft(units=GPU_UNITS // 7)] * 8)
    applied = centre.apply(*[start(job, "n0/0", units=GPU_UNITS // 7) for job in jobs])
    assert [job for job, _ in applied.rejected] == [jobs[7]]
    lanes = centre.cursors("n0/0")
    assert [(cursor.lane, cursor.occupant.units) for cursor in lanes] == [
        (0, 0),
        *((lane, GPU_UNITS // 7) for lane in range(1, 8)),
    ]
    centre.clock.advance(seconds=1)
    centre.ended(applied.started[2].allocation)
    assert [cursor.lane for cursor in centre.cursors("n0/0")] == [0, 1, 2, 4, 5, 6, 7]
    assert centre.apply(start(jobs[7], "n0/0", units=GPU_UNITS // 7)).rejected == ()
    assert [cursor.lane for cursor in centre.cursors("n0/0")] == list(range(8))
    centre.check()


def test_a_whole_device_is_not_given_away_beside_a_share_of_it(centre: Centre) -> None:
    centre.run("n0/0", units=HALF)
    (job,) = centre.submit()
    assert centre.apply(start(job, "n0/0")).rejected == ((job, "device n0/0 is taken"),)


def test_a_gang_is_charged_for_the_gpus_whose_memory_it_takes(centre: Centre) -> None:
    """Half of the node's memory with one of its four GPUs is charged as two, and the odd unit goes to the first."""
    (job,) = centre.submit(draft(1))
    centre.apply(start(job, "n0/0", memory=1 << 39))
    (cursor,) = centre.cursors("n0/0")
    assert (cursor.occupant.units, cursor.occupant.gpu_eq_units) == (GPU_UNITS, 2 * GPU_UNITS)
    (pair,) = centre.submit(draft(2))
    centre.apply(start(pair, "n1/0", "n1/1", memory=(1 << 39) + 1))
    charged = [centre.cursors(device)[0].occupant.gpu_eq_units for device in ("n1/0", "n1/1")]
    assert charged == [GPU_UNITS + 1, GPU_UNITS]


def test_a_gang_within_its_share_of_the_node_is_charged_for_what_it_holds(centre: Centre) -> None:
    centre.run("n0/0", "n0/1")
    assert {each.occupant.gpu_eq_units for each in centre.cursors() if each.occupant.job} == {GPU_UNITS}


def test_a_plans_stops_are_carried_out_once(centre: Centre) -> None:
    allocation = centre.run("n0/0")
    stop = Stop(allocation.id, EndReason.PREEMPTED)
    (stopped,) = centre.apply(stops=[stop]).stopped
    assert (stopped.id, stopped.phase, stopped.stop_reason) == (allocation.id, Phase.STOPPING, EndReason.PREEMPTED)
    assert centre.apply(stops=[stop]).stopped == ()
    assert centre.do(MarkStopping((allocation.id,), EndReason.WALLTIME)) == ()
    centre.check()


def test_a_start_takes_the_device_from_the_instant_of_the_decision(centre: Centre) -> None:
    centre.clock.advance(seconds=3)
    allocation = centre.run("n0/0")
    (idle,) = centre.intervals("n0/0")
    assert (idle.occupant.state, idle.to_ms) == (OccupancyState.IDLE, allocation.decided_ms)
    assert centre.cursors("n0/0")[0].since_ms == allocation.decided_ms


def test_a_node_that_only_its_executor_drains_takes_no_start(centre: Centre) -> None:
    draining = replace(node("n0"), node=replace(node("n0").node, availability=NodeAvailability.DRAINING))
    centre.do(SyncInventory((draining, node("n1")), Evidence.CONTROLLER))
    (job,) = centre.submit()
    assert centre.apply(start(job, "n0/0")).rejected == ((job, "node n0 is draining"),)
