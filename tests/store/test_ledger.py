"""The occupancy table itself: nothing rewrites it, nothing leaves a gap, whoever tries."""

from dataclasses import replace

import pytest
import sqlalchemy as sa

from scheduler.core.model import GPU_UNITS, DeviceId, EndReason
from scheduler.core.occupancy import Evidence, OccupancyState
from scheduler.executor import CutGpu, NodeInventory
from scheduler.store.allocations import MarkStopping
from scheduler.store.database import StoreCorrupt
from scheduler.store.inventory import SyncInventory
from scheduler.store.ledger_tables import DEVICE_END, OCCUPANCY
from tests.store.harness import Centre, node

HALF = GPU_UNITS // 2


@pytest.fixture
def used(centre: Centre) -> Centre:
    """A centre whose device n0/0 was idle, held by a job for a second, and is idle again."""
    centre.clock.advance(seconds=1)
    allocation = centre.run("n0/0")
    centre.clock.advance(seconds=1)
    centre.ended(allocation)
    return centre


def write(centre: Centre, statement: str) -> None:
    with centre.database.write() as connection:
        connection.exec_driver_sql(statement)


@pytest.mark.parametrize("statement", ["UPDATE occupancy SET to_ms = to_ms + 1", "DELETE FROM occupancy"])
def test_a_row_of_the_ledger_is_never_changed_or_deleted(used: Centre, statement: str) -> None:
    before = used.intervals()
    with pytest.raises(StoreCorrupt, match="append-only"):
        write(used, statement)
    assert used.intervals() == before != []


def test_the_ledger_is_never_truncated(used: Centre, dialect: str) -> None:
    """SQLite has no TRUNCATE; its DELETE without a condition fires the trigger row by row."""
    with pytest.raises(StoreCorrupt, match="append-only"):
        write(used, "TRUNCATE occupancy" if dialect == "postgresql" else "DELETE FROM occupancy WHERE true")


def append(centre: Centre, lane: int, from_ms: int, to_ms: int) -> None:
    row = {
        "sequence": 1000,
        "device": "n0/0",
        "lane": lane,
        "gpu_class": "H200",
        "from_ms": from_ms,
        "to_ms": to_ms,
        "state": OccupancyState.IDLE.value,
        "units": 1,
        "gpu_eq_units": 0,
        "evidence": "operator",
        "recorded_ms": to_ms,
        "idempotency_key": "forged",
        "previous_hash": "",
        "hash": "",
    }
    with centre.database.write() as connection:
        connection.execute(sa.insert(OCCUPANCY), row)


@pytest.mark.parametrize("shift_ms", [-1, 1], ids=["overlap", "gap"])
def test_an_interval_must_begin_where_its_lane_ended(used: Centre, shift_ms: int) -> None:
    end_ms = used.intervals("n0/0")[-1].to_ms
    with pytest.raises(StoreCorrupt, match="gap or overlap"):
        append(used, 0, end_ms + shift_ms, end_ms + 100)
    append(used, 0, end_ms, end_ms + 100)


@pytest.mark.parametrize("length_ms", [0, -1])
def test_an_interval_has_a_length(used: Centre, length_ms: int) -> None:
    end_ms = used.intervals("n0/0")[-1].to_ms
    with pytest.raises(StoreCorrupt):
        append(used, 0, end_ms, end_ms + length_ms)


def test_a_share_may_come_back_only_where_lane_0_was_cut(centre: Centre) -> None:
    """Between two shares in one lane its units are lane 0's; a row that takes them back out of nowhere is refused."""
    first = centre.run("n0/0", units=HALF)
    centre.clock.advance(seconds=1)
    centre.ended(first)
    centre.clock.advance(seconds=1)
    second = centre.run("n0/0", units=HALF)
    centre.clock.advance(seconds=1)
    centre.ended(second)
    centre.check()
    end_ms = centre.intervals("n0/0")[-1].to_ms
    with pytest.raises(StoreCorrupt, match="gap or overlap"):
        append(centre, 1, end_ms + 5, end_ms + 10)


def test_a_lanes_intervals_keep_their_own_names_when_the_lane_opens_again(centre: Centre) -> None:
    """A share that starts, runs and stops moves its lane more often than lane 0; the next share must not collide."""
    for _ in range(3):
        allocation = centre.run("n0/0", units=HALF)
        centre.clock.advance(seconds=1)
        centre.started(allocation)
        centre.clock.advance(seconds=1)
        centre.do(MarkStopping((allocation.id,), EndReason.CANCELLED))
        centre.clock.advance(seconds=1)
        centre.ended(allocation, EndReason.CANCELLED)
    centre.check()
    keys = [each.idempotency_key for each in centre.intervals("n0/0") if each.lane == 1]
    assert len(keys) == len(set(keys)) == 9


def test_a_device_that_leaves_and_comes_back_has_no_gap_in_its_life(centre: Centre) -> None:
    centre.clock.advance(seconds=1)
    centre.do(SyncInventory((node("n0"),), Evidence.CONTROLLER))
    centre.clock.advance(seconds=1)
    centre.do(SyncInventory((node("n0"), node("n1")), Evidence.CONTROLLER))
    centre.check()
    states = [(each.occupant.state, each.occupant.cause) for each in centre.intervals("n1/0")]
    assert states == [(OccupancyState.IDLE, None), (OccupancyState.UNAVAILABLE, "removed")]


def test_an_error_of_the_database_names_the_rule_and_no_value(used: Centre) -> None:
    end_ms = used.intervals("n0/0")[-1].to_ms
    with pytest.raises(StoreCorrupt) as raised:
        append(used, 0, end_ms + 1, end_ms + 2)
    assert "forged" not in str(raised.value)
    assert "forged" not in str(raised.value.__cause__)


def cut(node_name: str, *sizes: int) -> NodeInventory:
    """The node of one GPU, cut into instances of these sizes."""
    whole = node(node_name, gpus=1)
    (gpu,) = whole.devices
    parts = tuple(replace(gpu, id=DeviceId(f"MIG-{n}"), units=units) for n, units in enumerate(sizes))
    return NodeInventory(whole.node, parts, (CutGpu(gpu.id, gpu.gpu_class, GPU_UNITS - sum(sizes)),))


def test_a_gpu_that_is_cut_and_made_whole_is_one_gpu_at_every_instant(centre: Centre) -> None:
    """Whatever the instances are: parent, instances and remainder end and begin in one transaction, and come back."""
    others = (node("n0"), node("n1"))
    shapes = [node("m", gpus=1), cut("m", 5400, 1800), cut("m", 5400), cut("m", 5400, 1800), node("m", gpus=1)]
    since_ms = 0
    for number, shape in enumerate(shapes):
        centre.clock.advance(seconds=1)
        since_ms = since_ms or centre.clock.now_ms()
        for _ in range(2):  # again changes nothing
            centre.do(SyncInventory((*others, shape), Evidence.CONTROLLER))
        lanes = [each for each in centre.cursors() if not each.device.startswith("n")]
        assert sum(each.occupant.units for each in lanes) == GPU_UNITS, number
        assert {each.since_ms for each in lanes} <= {since_ms, *range(since_ms, centre.clock.now_ms() + 1)}
        left = [each.occupant for each in lanes if "/mig-remainder/" in each.device]
        assert all((each.state, each.cause) == (OccupancyState.UNAVAILABLE, "mig_remainder") for each in left)
        centre.check()
    centre.clock.advance(seconds=1)
    held = sum(each.unit_ms for each in centre.intervals() if not each.device.startswith("n"))
    (lane,) = (each for each in centre.cursors() if not each.device.startswith("n"))
    assert held + GPU_UNITS * (centre.clock.now_ms() - lane.since_ms) == GPU_UNITS * (centre.clock.now_ms() - since_ms)
    keys = [each.idempotency_key for each in centre.intervals()]
    assert len(keys) == len(set(keys))


def test_a_share_may_begin_the_instant_its_gpu_is_back(centre: Centre) -> None:
    others = (node("n0"), node("n1"))
    for shape in (node("m", gpus=1), cut("m", 1800), node("m", gpus=1)):
        centre.clock.advance(seconds=1)
        centre.do(SyncInventory((*others, shape), Evidence.CONTROLLER))
        if shape.devices[0].units < GPU_UNITS:
            continue
        allocation = centre.run("m/0", units=HALF)
        centre.clock.advance(seconds=1)
        centre.ended(allocation)
        centre.clock.advance(seconds=1)
        centre.check()


def test_a_gpu_that_is_lost_and_not_cut_stays_unavailable(centre: Centre) -> None:
    centre.clock.advance(seconds=1)
    whole = node("n0")
    centre.do(SyncInventory((replace(whole, devices=whole.devices[:-1]), node("n1")), Evidence.CONTROLLER))
    (lane,) = centre.cursors(whole.devices[-1].id)
    assert (lane.occupant.state, lane.occupant.cause) == (OccupancyState.UNAVAILABLE, "removed")
    centre.check()


def test_the_database_keeps_where_lives_end(centre: Centre) -> None:
    others = (node("n0"), node("n1"))
    for shape in (cut("m", 1800), node("m", gpus=1)):
        centre.clock.advance(seconds=1)
        centre.do(SyncInventory((*others, shape), Evidence.CONTROLLER))
    for change in (DEVICE_END.update().values(at_ms=0), DEVICE_END.delete()):
        with centre.database.write() as connection, pytest.raises(sa.exc.DBAPIError, match="append-only"):
            connection.execute(change)
