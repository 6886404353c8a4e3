"""Advance reservations and pools: who may start on kept nodes, what the ledger calls them, and what is refused."""

import pytest

from scheduler.core.model import AccountId, GpuClass, NodeName, PoolName
from scheduler.core.occupancy import OccupancyState
from scheduler.refusal import RefusalCode, Refused
from scheduler.store.pools import AssignNodes, PausePools
from scheduler.store.reservations import (
    MakeReservation,
    NodesWanted,
    RemoveReservation,
    Reserved,
    TurnReservations,
    reservations,
)
from tests.store.harness import ACME, H200, Centre, draft, refused, start

HOUR_MS = 3_600_000
N0, N1 = NodeName("n0"), NodeName("n1")


def reserve(
    centre: Centre, *, after_ms: int = 0, name: str = "works", account: AccountId | None = None, long_ms: int = HOUR_MS
) -> Reserved:
    start_ms = centre.clock.now_ms() + after_ms
    return centre.do(MakeReservation(name, start_ms, start_ms + long_ms, (N0,), account, "new switch", "root"))


def states(centre: Centre, node: str) -> set[OccupancyState]:
    return {cursor.occupant.state for cursor in centre.cursors() if cursor.device.startswith(f"{node}/")}


def test_free_gpus_rest_reserved_from_the_start_of_a_reservation_until_its_end(centre: Centre) -> None:
    reserve(centre, after_ms=1000, long_ms=5000)
    assert states(centre, "n0") == {OccupancyState.IDLE}
    centre.clock.advance(milliseconds=1000)
    assert centre.do(TurnReservations()) == ("works",)
    assert states(centre, "n0") == {OccupancyState.RESERVED_UNUSED}
    assert states(centre, "n1") == {OccupancyState.IDLE}
    centre.check()
    centre.clock.advance(milliseconds=5000)
    assert centre.do(TurnReservations()) == ("works",)
    assert centre.do(TurnReservations()) == ()
    assert states(centre, "n0") == {OccupancyState.IDLE}
    assert centre.state.advance == {}
    centre.check()


def test_a_start_that_would_reach_into_a_reservation_is_rejected_and_its_hosts_start_is_not(centre: Centre) -> None:
    (stranger, host) = centre.submit(draft(), draft(account=AccountId("acme/vision")))
    reserve(centre, after_ms=1000)
    applied = centre.apply(start(stranger, "n0/0"))
    assert applied.rejected == ((stranger, "node n0 is kept by reservation works"),)
    centre.do(RemoveReservation("works", "root"))
    reserve(centre, account=ACME)
    assert not centre.apply(start(host, "n0/0")).rejected
    assert states(centre, "n0") == {OccupancyState.ALLOCATED, OccupancyState.RESERVED_UNUSED}
    centre.check()


def test_a_gang_that_ends_inside_a_reservation_leaves_its_gpus_reserved(centre: Centre) -> None:
    gang = centre.run("n0/0", "n0/1")
    centre.started(gang)
    made = reserve(centre)
    assert made.overrunning == (gang.job,)
    centre.clock.advance(milliseconds=500)
    centre.ended(gang)
    assert states(centre, "n0") == {OccupancyState.RESERVED_UNUSED}
    centre.check()


def test_nodes_are_chosen_that_are_free_the_soonest(centre: Centre) -> None:
    centre.started(centre.run("n0/0"))
    now_ms = centre.clock.now_ms()
    made = centre.do(
        MakeReservation("two", now_ms, now_ms + HOUR_MS, NodesWanted(H200, 1), None, None, "root")
    ).reservation
    assert made.nodes == (N1,)
    with pytest.raises(Refused, match="only 1 H200 nodes are up and not reserved in that time, not 2") as caught:
        centre.do(MakeReservation("more", now_ms, now_ms + HOUR_MS, NodesWanted(H200, 2), None, None, "root"))
    assert caught.value.code is RefusalCode.NEVER_FITS


@pytest.mark.parametrize(
    ("start_ms", "end_ms", "nodes", "account", "words"),
    [
        (0, 0, (N0,), None, "must end after it starts"),
        (-2 * HOUR_MS, -HOUR_MS, (N0,), None, "over already"),
        (0, HOUR_MS, (NodeName("n9"),), None, "no node n9"),
        (0, HOUR_MS, (), None, "at least one node"),
        (0, HOUR_MS, (N0,), AccountId("nobody"), "no account nobody"),
    ],
)
def test_a_reservation_that_makes_no_sense_is_refused(
    centre: Centre,
    start_ms: int,
    end_ms: int,
    nodes: tuple[NodeName, ...],
    account: AccountId | None,
    words: str,
) -> None:
    now_ms = centre.clock.now_ms()
    before = centre.state.facts()
    with pytest.raises(Refused, match=words):
        centre.do(MakeReservation("r", now_ms + start_ms, now_ms + end_ms, nodes, account, None, "root"))
    assert centre.state.facts() == before


def test_reservations_never_overlap_and_a_name_is_free_again_when_its_reservation_is_over(centre: Centre) -> None:
    reserve(centre)
    with pytest.raises(Refused, match="is kept by reservation works in that time"):
        reserve(centre, name="other", after_ms=HOUR_MS - 1)
    with pytest.raises(Refused, match="a reservation works already"):
        reserve(centre, after_ms=2 * HOUR_MS)
    reserve(centre, name="after", after_ms=HOUR_MS)
    centre.do(RemoveReservation("works", "root"))
    reserve(centre)
    with pytest.raises(Refused, match="no reservation elsewhere"):
        centre.do(RemoveReservation("elsewhere", "root"))
    with centre.database.read() as connection:
        every = [(each.reservation.id, each.ended_ms is None) for each in reservations(connection, with_ended=True)]
    assert sorted(every) == [("after", True), ("works", False), ("works", True)]
    centre.check()


def test_pools_pause_together_or_one_by_one_and_an_unknown_one_changes_none(centre: Centre) -> None:
    assert centre.do(PausePools(None, True, "power")) == ("main",)
    assert centre.do(PausePools(None, True, "power")) == ()
    (job,) = centre.submit(draft())
    assert centre.apply(start(job, "n0/0")).rejected == ((job, "pool main is closed"),)
    unknown = centre.commit(PausePools((PoolName("main"), PoolName("lab")), False, None))
    assert refused(unknown, 0).message == "there is no pool lab; there are main"
    assert centre.do(PausePools((PoolName("main"),), False, None)) == ("main",)
    assert not centre.apply(start(job, "n0/0")).rejected


def test_a_node_moves_to_another_pool_while_its_jobs_run_on(centre: Centre) -> None:
    gang = centre.run("n0/0")
    assert centre.do(AssignNodes((N0,), PoolName("fast"))) == (N0,)
    assert centre.state.node(N0).pool == "fast"
    assert (GpuClass("H200"), PoolName("fast")) in centre.state.capacity.pools
    centre.check()
    centre.started(gang)
    centre.clock.advance(milliseconds=10)
    centre.ended(gang)
    assert centre.do(AssignNodes((N0,), None)) == (N0,)
    assert centre.state.node(N0).pool == "main"
    centre.check()
