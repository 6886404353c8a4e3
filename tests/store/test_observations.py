"""What the executor saw: late, twice, out of order, and the ledger comes out the same."""

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scheduler.core.model import GPU_UNITS, AllocationId, EndReason, JobState, NodeName, Phase
from scheduler.core.occupancy import Evidence, OccupancyState
from scheduler.executor import Ended, Observation, Started
from scheduler.store.actions import CancelJobs
from scheduler.store.allocations import MarkStopping
from scheduler.store.database import Database
from scheduler.store.inventory import SetDrain, SyncInventory
from tests.store.harness import Centre, node, start

THIRD = GPU_UNITS // 3
Piece = tuple[str, int, int, int, str, str | None, int | None]


def pieces(centre: Centre, device: str | None = None) -> list[tuple[int, int, str | None]]:
    """The closed intervals as (from, to, phase), times counted from the start of the test's clock."""
    return [
        (each.from_ms % 1_000_000, each.to_ms % 1_000_000, each.occupant.phase) for each in centre.intervals(device)
    ]


def test_a_gang_is_billed_from_its_observed_start_to_its_observed_end_on_all_its_devices(centre: Centre) -> None:
    allocation = centre.run("n0/0", "n0/1")
    decided_ms = centre.clock.now_ms()
    centre.clock.advance(seconds=10)
    centre.started(allocation, decided_ms + 2000)
    centre.clock.advance(seconds=10)
    recorded = centre.ended(allocation, at_ms=decided_ms + 15_000)
    assert [(id_, job.state) for id_, job in recorded.ended] == [(allocation.id, JobState.COMPLETED)]
    for device in ("n0/0", "n0/1"):
        assert pieces(centre, device) == [(0, 2000, Phase.STARTING), (2000, 15_000, Phase.RUNNING)]
        assert centre.cursors(device)[0].since_ms == decided_ms + 15_000
    assert {each.evidence for each in centre.intervals()} == {Evidence.NODE}
    assert centre.kinds(allocation.job) == ["submitted", "allocated", "started", "ended"]
    centre.check()


def test_an_end_without_an_observed_start_bills_the_run_that_it_tells_of(centre: Centre) -> None:
    allocation = centre.run("n0/0")
    decided_ms = centre.clock.now_ms()
    centre.clock.advance(seconds=10)
    centre.ended(allocation, at_ms=decided_ms + 9000, started_ms=decided_ms + 1000)
    assert pieces(centre, "n0/0") == [(0, 1000, Phase.STARTING), (1000, 9000, Phase.RUNNING)]
    assert centre.job_column(allocation.job, "started_ms") == decided_ms + 1000
    centre.check()


def test_a_gang_that_never_ran_has_no_running_interval(centre: Centre) -> None:
    allocation = centre.run("n0/0")
    centre.clock.advance(seconds=10)
    centre.ended(allocation, EndReason.LAUNCH_FAILED)
    assert pieces(centre, "n0/0") == [(0, 10_000, Phase.STARTING)]
    assert centre.job_column(allocation.job, "started_ms") is None
    centre.check()


@pytest.mark.parametrize("shift_ms", [-1_000_000, 1_000_000])
def test_times_that_cannot_be_are_clamped_to_what_the_ledger_knows(centre: Centre, shift_ms: int) -> None:
    allocation = centre.run("n0/0")
    centre.clock.advance(seconds=10)
    centre.started(allocation, centre.clock.now_ms() + shift_ms)
    centre.clock.advance(seconds=10)
    centre.ended(allocation, at_ms=centre.clock.now_ms() + shift_ms)
    centre.check()
    assert all(each.to_ms <= centre.clock.now_ms() for each in centre.intervals())


def test_what_comes_again_changes_nothing(centre: Centre) -> None:
    allocation = centre.run("n0/0")
    centre.clock.advance(seconds=1)
    assert centre.started(allocation).started == (allocation.id,)
    centre.clock.advance(seconds=1)
    assert centre.started(allocation).started == ()
    centre.ended(allocation)
    before = centre.intervals(), centre.cursors(), centre.state.facts()
    centre.clock.advance(seconds=1)
    for _ in range(2):
        recorded = centre.ended(allocation, EndReason.OOM)
        assert (recorded.ended, recorded.repeated) == ((), (allocation.id,))
        assert centre.started(allocation).started == ()
    assert (centre.intervals(), centre.cursors(), centre.state.facts()) == before
    assert centre.kinds(allocation.job) == ["submitted", "allocated", "started", "ended"]


def test_an_allocation_that_never_was_is_reported_and_is_no_error(centre: Centre) -> None:
    recorded = centre.observe(Started(AllocationId("never"), 0))
    assert recorded.unknown == ("never",)
    centre.check()


def test_a_start_that_is_seen_after_the_stop_was_asked_keeps_the_gang_stopping(centre: Centre) -> None:
    allocation = centre.run("n0/0")
    centre.clock.advance(seconds=1)
    centre.do(CancelJobs((allocation.job,), "ana"))
    assert centre.started(allocation).started == (allocation.id,)
    assert centre.job_state(allocation.job) is JobState.STOPPING
    assert centre.state.allocations[allocation.id].phase is Phase.STOPPING
    centre.check()
    centre.clock.advance(seconds=1)
    centre.ended(allocation, EndReason.CANCELLED)
    assert pieces(centre, "n0/0") == [(0, 1000, Phase.STARTING), (1000, 2000, Phase.STOPPING)]
    centre.check()


def test_a_gang_that_fails_while_it_is_stopped_was_stopped(centre: Centre) -> None:
    """The signal of a stop makes most programs exit with a failure; that is not the job's own failure."""
    allocation = centre.run("n0/0", retries=3)
    centre.started(allocation)
    centre.do(MarkStopping((allocation.id,), EndReason.BUDGET_STOP))
    centre.ended(allocation, EndReason.EXIT_NONZERO)
    assert centre.job_column(allocation.job, "reason") == "budget_stop"
    assert centre.job_state(allocation.job) is JobState.FAILED


def test_a_retried_job_waits_again_with_its_back_off_and_fails_when_its_retries_are_used_up(centre: Centre) -> None:
    allocation = centre.run("n0/0", retries=1)
    centre.clock.advance(seconds=1)
    centre.ended(allocation, EndReason.EXIT_NONZERO)
    job = centre.state.jobs[allocation.job]
    assert (job.state, job.retries_left, job.is_backing_off) == (JobState.PENDING, 0, True)
    centre.check()
    centre.clock.advance(minutes=1)
    (order,) = centre.apply(start(job.id, "n0/1")).started
    assert order.allocation.attempt == 2
    centre.ended(order.allocation, EndReason.EXIT_NONZERO)
    assert centre.job_state(job.id) is JobState.FAILED
    assert centre.job_column(job.id, "exit_code") == 1
    centre.check()


def test_a_device_that_was_drained_or_lost_meanwhile_rests_as_that_when_it_is_free(centre: Centre) -> None:
    drained = centre.run("n0/0")
    lost = centre.run("n1/0")
    centre.clock.advance(seconds=1)
    centre.do(SetDrain(NodeName("n0"), "bad fan", "root"))
    centre.do(SyncInventory((node("n0"),), Evidence.CONTROLLER))
    centre.check()
    assert centre.state.allocations.keys() == {drained.id, lost.id}
    centre.clock.advance(seconds=1)
    centre.ended(drained)
    centre.ended(lost, EndReason.NODE_LOST)
    (first,), (second,) = centre.cursors("n0/0"), centre.cursors("n1/0")
    assert (first.occupant.state, first.occupant.cause) == (OccupancyState.DRAINING, "admin_drain")
    assert (second.occupant.state, second.occupant.cause) == (OccupancyState.UNAVAILABLE, "removed")
    assert "n1" in centre.state.capacity.rooms
    centre.do(SyncInventory((node("n0"),), Evidence.CONTROLLER))
    assert "n1" not in centre.state.capacity.rooms
    centre.check()


def test_a_share_that_ended_before_its_device_was_cut_again_is_billed_to_its_own_end(centre: Centre) -> None:
    """Its units are idle in their own lane from its end to the cut; nobody pays for what was noticed late."""
    first = centre.run("n0/0", units=THIRD)
    centre.clock.advance(seconds=5)
    centre.run("n0/0", units=THIRD)
    centre.clock.advance(seconds=5)
    centre.ended(first, at_ms=first.decided_ms + 2000)
    mine = [each for each in centre.intervals("n0/0") if each.lane == 1]
    assert [(each.from_ms % 1_000_000, each.to_ms % 1_000_000, each.occupant.state) for each in mine] == [
        (0, 2000, OccupancyState.ALLOCATED),
        (2000, 5000, OccupancyState.IDLE),
    ]
    centre.check()


def physical(centre: Centre) -> tuple[list[Piece], list[Piece]]:
    """What the ledger says, without the order in which it came to say so."""
    names = {allocation: number for number, allocation in enumerate(sorted(_allocations(centre)))}
    closed = [
        (
            each.device,
            each.lane,
            each.from_ms,
            each.to_ms,
            each.occupant.state.value,
            each.occupant.phase,
            None if each.occupant.allocation is None else names[each.occupant.allocation],
        )
        for each in centre.intervals()
    ]
    still = [
        (each.device, each.lane, each.since_ms, each.occupant.units, each.occupant.state.value, None, None)
        for each in centre.cursors()
    ]
    return sorted(closed, key=str), sorted(still, key=str)


def _allocations(centre: Centre) -> set[str]:
    return {each.occupant.allocation for each in centre.intervals() if each.occupant.allocation is not None}


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(data=st.data())
def test_any_order_of_the_same_evidence_with_duplicates_gives_the_same_ledger(
    make_database: Callable[[], Database], data: st.DataObject
) -> None:
    ledgers = []
    order = data.draw(st.permutations(range(8)))
    again = data.draw(st.lists(st.integers(0, 7), max_size=4))
    ends = data.draw(st.lists(st.integers(2000, 9000), min_size=4, max_size=4))
    for indexes in (range(8), (*order, *again)):
        centre = Centre.open(make_database())
        gangs = [centre.run("n0/0", "n0/1"), centre.run("n0/2"), *[centre.run("n1/0", units=THIRD) for _ in "ab"]]
        decided_ms = centre.clock.now_ms()
        centre.clock.advance(seconds=10)
        seen: list[Observation] = []
        for gang, end_ms in zip(gangs, ends, strict=True):
            seen.append(Started(gang.id, decided_ms + 1000))
            seen.append(Ended(gang.id, decided_ms + end_ms, 0, None, decided_ms + 1000))
        centre.observe(*[seen[index] for index in indexes])
        centre.check()
        ledgers.append(physical(centre))
    assert ledgers[0] == ledgers[1]
    assert len(ledgers[0][0]) >= 10


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(order=st.permutations(range(4)))
def test_evidence_that_comes_one_by_one_in_any_order_gives_the_same_ledger(
    make_database: Callable[[], Database], order: list[int]
) -> None:
    """For whole GPUs, each report in a transaction of its own."""
    ledgers = []
    for indexes in (range(4), order):
        centre = Centre.open(make_database())
        gangs = [centre.run("n0/0", "n0/1"), centre.run("n0/2")]
        decided_ms = centre.clock.now_ms()
        centre.clock.advance(seconds=10)
        seen: list[Observation] = []
        for gang in gangs:
            seen.append(Started(gang.id, decided_ms + 1000))
            seen.append(Ended(gang.id, decided_ms + 5000, 0, None, decided_ms + 1000))
        for index in indexes:
            centre.observe(seen[index])
            centre.check()
        ledgers.append(physical(centre))
    assert ledgers[0] == ledgers[1]
