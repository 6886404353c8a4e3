"""One incident for all gangs that one fault of a machine hit, and another for the next."""

from dataclasses import replace

import pytest
import sqlalchemy as sa

from scheduler.core.model import Allocation, Booking, DeviceHealth, EndReason, NodeAvailability
from scheduler.core.occupancy import Evidence
from scheduler.core.plan import Stop, Surplus
from scheduler.executor import Ended, Shrunk
from scheduler.store.incidents import STILL_MS, Hit, hits_between
from scheduler.store.inventory import SyncInventory
from scheduler.store.ledger_tables import INCIDENT
from scheduler.store.observations import RecordObservations
from tests.store.harness import Centre, draft, node, start


def hits(centre: Centre) -> list[Hit]:
    with centre.database.read() as connection:
        return list(hits_between(connection, 0, centre.clock.now_ms() + 1))


def down(centre: Centre) -> None:
    centre.do(
        SyncInventory((node("n0", availability=NodeAvailability.DOWN, reason="silent"), node("n1")), Evidence.HEARTBEAT)
    )


def up(centre: Centre) -> None:
    centre.do(SyncInventory((node("n0"), node("n1")), Evidence.HEARTBEAT))


def lost(centre: Centre, *gangs: Allocation, reason: EndReason = EndReason.NODE_LOST) -> None:
    seen = tuple(Ended(gang.id, centre.clock.now_ms() - 1000, None, reason) for gang in gangs)
    centre.do(RecordObservations(seen))


def running(centre: Centre, *devices: str) -> Allocation:
    nodes = len({device.partition("/")[0] for device in devices})
    (job,) = centre.submit(draft(len(devices) // nodes, nodes=nodes))
    gang = centre.apply(start(job, *devices)).started[0].allocation
    centre.clock.advance(seconds=10)
    centre.started(gang)
    centre.clock.advance(seconds=60)
    return gang


def elastic(centre: Centre, own: str, more: str) -> Allocation:
    """A gang that runs on a GPU of its own and on a surplus one."""
    plain = draft(1)
    (job,) = centre.submit(replace(plain, shape=replace(plain.shape, most_nodes=2)))
    surplus = Surplus(Booking.SPOT, start(job, more).grants)
    gang = centre.apply(replace(start(job, own), surplus=surplus)).started[0].allocation
    centre.clock.advance(seconds=10)
    centre.started(gang)
    centre.clock.advance(seconds=60)
    return gang


def test_all_gangs_that_one_lost_node_hit_share_its_incident_however_late_each_is_given_up(centre: Centre) -> None:
    first, wide, elsewhere = running(centre, "n0/0"), running(centre, "n0/1", "n1/0"), running(centre, "n1/1")
    third = running(centre, "n0/2")
    down(centre)
    lost(centre, first)
    centre.clock.advance(seconds=3 * STILL_MS // 1000)
    lost(centre, wide, third)
    lost(centre, wide)  # heard again
    centre.ended(elsewhere)
    found = hits(centre)
    assert {hit.allocation for hit in found} == {first.id, wide.id, third.id}
    assert len({hit.incident for hit in found}) == 1
    assert all(hit.incident.startswith("node_lost/n0/") for hit in found)
    assert {hit.began_ms for hit in found} == {found[0].at_ms}


def test_the_next_loss_of_a_node_is_another_incident(centre: Centre) -> None:
    first, survivor = running(centre, "n0/0"), running(centre, "n0/1")
    down(centre)
    lost(centre, first)
    centre.clock.advance(seconds=60)
    up(centre)
    second = running(centre, "n0/2")  # began after the first loss: not hit by it
    down(centre)
    lost(centre, second)
    centre.clock.advance(seconds=2 * STILL_MS // 1000)
    up(centre)
    centre.clock.advance(seconds=2 * STILL_MS // 1000)
    down(centre)
    lost(centre, survivor)  # ran through both; the node was well since
    assert len({hit.incident for hit in hits(centre)}) == 3


def test_a_failed_gpu_is_an_incident_of_its_machine_and_a_preemption_is_none(centre: Centre) -> None:
    broken, other = running(centre, "n0/0"), running(centre, "n1/0")
    whole = node("n0")
    sick = replace(whole.devices[0], health=DeviceHealth.FAILED, reason="XID 79")
    centre.do(SyncInventory((replace(whole, devices=(sick, *whole.devices[1:])), node("n1")), Evidence.NODE))
    lost(centre, broken, reason=EndReason.GPU_ERROR)
    lost(centre, other, reason=EndReason.PREEMPTED)
    (hit,) = hits(centre)
    assert (hit.allocation, hit.reason, hit.node) == (broken.id, EndReason.GPU_ERROR, "n0")


def test_surplus_that_a_lost_node_took_is_of_its_incident_and_surplus_that_was_preempted_is_of_none(
    centre: Centre,
) -> None:
    wide, taken = elastic(centre, "n1/0", "n0/0"), elastic(centre, "n1/1", "n0/1")
    alone = running(centre, "n0/2")
    down(centre)
    lost(centre, alone)
    (surplus,) = (each.id for each in centre.state.allocations.values() if each.surplus_of == wide.id)
    (preempted,) = (each.id for each in centre.state.allocations.values() if each.surplus_of == taken.id)
    centre.apply(stops=[Stop(preempted, EndReason.PREEMPTED)])
    seen_ms = centre.clock.now_ms() - 1000
    centre.observe(Shrunk(wide.id, seen_ms, 1, EndReason.NODE_LOST))
    centre.observe(Shrunk(taken.id, seen_ms, 1))
    found = hits(centre)
    assert {hit.allocation for hit in found} == {alone.id, surplus}
    assert len({hit.incident for hit in found}) == 1
    centre.check()


def test_which_of_several_nodes_failed_is_not_guessed(centre: Centre) -> None:
    lost(centre, running(centre, "n0/0", "n1/0"))
    assert hits(centre) == []


def test_incidents_are_never_changed(centre: Centre) -> None:
    down_gang = running(centre, "n0/0")
    down(centre)
    lost(centre, down_gang)
    for change in (INCIDENT.update().values(node="x"), INCIDENT.delete()):
        with centre.database.write() as connection, pytest.raises(sa.exc.DBAPIError, match="append-only"):
            connection.execute(change)
    centre.check()
