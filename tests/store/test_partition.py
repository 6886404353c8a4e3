"""The whole store under random commands: the ledger stays a partition, and memory is what the database holds."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scheduler.core.model import (
    GPU_UNITS,
    AllocationId,
    DeviceHealth,
    DeviceId,
    EndReason,
    HoldKind,
    JobId,
    JobState,
    NodeAvailability,
    NodeName,
    PoolName,
)
from scheduler.core.occupancy import Evidence
from scheduler.core.plan import Stop
from scheduler.executor import Ended, NodeInventory, Observation, Started
from scheduler.refusal import Refused
from scheduler.store.actions import CancelJobs, HoldJobs, ReleaseJobs, RequeueJobs, UpdateJobs
from scheduler.store.allocations import MarkStopping
from scheduler.store.database import Database
from scheduler.store.inventory import SetDrain, SyncInventory
from scheduler.store.pools import AssignNodes, SetPool
from scheduler.store.reservations import (
    MakeReservation,
    NodesWanted,
    RemoveReservation,
    TurnReservations,
    due_reservations,
)
from scheduler.store.write import Command
from tests.store.harness import ACME, H200, Centre, draft, node, start

NODES = ("n0", "n1")
DEVICES = tuple(f"{name}/{number}" for name in NODES for number in range(3))
SHARE = GPU_UNITS // 3
MOST_STEPS = 100


class Walk:
    """A random walk over all commands, sensible ones more often; everything is checked after each step."""

    def __init__(self, database: Database, random: Random) -> None:
        self.random = random
        self.tally: Counter[str] = Counter()
        self.inventory = {name: node(name, gpus=3) for name in NODES}
        self.centre = Centre.open(database, *self.inventory.values())
        self.jobs = [
            JobId(999),
            *self.centre.submit(*[draft(units=SHARE)] * 4, draft(2), draft(1), draft(1, retries=1)),
        ]
        self.ended = [AllocationId("never-made")]
        self.steps: dict[Callable[[], None], int] = {
            self.time_passes: 8,
            self.submit: 4,
            self.plan: 12,
            self.observe: 12,
            self.observe_what_is_over: 2,
            self.act: 4,
            self.stop: 3,
            self.change_inventory: 3,
            self.heal: 6,
            self.drain: 2,
            self.set_pool: 1,
            self.assign_pool: 1,
            self.reserve: 2,
            self.turn_reservations: 2,
            self.crash: 2,
        }

    def step(self) -> None:
        """Takes one step and checks everything."""
        (chosen,) = self.random.choices(list(self.steps), weights=list(self.steps.values()))
        chosen()
        self.centre.check()

    def time_passes(self) -> None:
        self.centre.clock.advance(milliseconds=self.random.choice([0, 1, 7, 1000, 60_000]))

    def submit(self) -> None:
        shares = [draft(units=SHARE)] * self.random.randint(0, 3)
        indexes = tuple(range(self.random.randint(1, 2)))
        gang = draft(self.random.randint(1, 3), retries=1, array_indexes=indexes, is_held=self.random.random() < 0.2)
        self.jobs += self.centre.submit(gang, *shares)

    def plan(self) -> None:
        """Starts waiting jobs on devices that have room, now and then any job on any device."""
        pending = [job.id for job in self.centre.state.jobs.values() if job.state is JobState.PENDING]
        starts = []
        for _ in range(self.random.randint(1, 4)):
            is_sensible = self.random.random() < 0.8
            job = self.random.choice(pending if is_sensible and pending else self.jobs)
            known = self.centre.state.jobs.get(job)
            units = GPU_UNITS if known is None else known.shape.gpu_units
            size = max(1, units // GPU_UNITS)
            room = [device for device in DEVICES if self._held(device) + units // size <= GPU_UNITS]
            among = room if is_sensible and len(room) >= size else DEVICES
            one_node = [device for device in among if device.startswith(self.random.choice(NODES))]
            among = one_node if len(one_node) >= size else among
            starts.append(start(job, *sorted(self.random.sample(among, size)), units=units // size))
        applied = self.centre.apply(*starts)
        assert len(applied.started) + len(applied.rejected) == len(starts)
        self.tally["started"] += len(applied.started)
        self.tally["rejected"] += len(applied.rejected)

    def _held(self, device: str) -> int:
        room = self.centre.state.capacity.rooms.get(NodeName(device.partition("/")[0]))
        return GPU_UNITS if room is None else room.held_units.get(DeviceId(device), 0)

    def observe(self) -> None:
        """Starts and ends of live gangs: late, early, twice, in any order."""
        live = sorted(self.centre.state.allocations)
        if live:
            self._observe([self.random.choice(live) for _ in range(self.random.randint(1, 4))])

    def observe_what_is_over(self) -> None:
        before = self.centre.state.facts()
        self._observe([self.random.choice(self.ended)])
        assert self.centre.state.facts() == before

    def _observe(self, allocations: list[AllocationId]) -> None:
        seen: list[Observation] = []
        for allocation in allocations:
            if self.random.random() < 0.4:
                seen.append(Started(allocation, self._time()))
            else:
                began = self.random.choice([None, self._time()])
                reason = self.random.choice([None, *EndReason])
                seen.append(Ended(allocation, self._time(), 0, reason, began))
        recorded = self.centre.observe(*seen, *seen[:1])
        self.ended += [allocation for allocation, _ in recorded.ended]
        self.tally["ran"] += len(recorded.started)
        self.tally["ended"] += len(recorded.ended)

    def _time(self) -> int:
        return self.centre.clock.now_ms() - self.random.choice([0, 1, 5, 500, 3000, 100_000, -5000])

    def act(self) -> None:
        live = sorted(self.centre.state.jobs)
        ids = tuple(self.random.choices([*live, JobId(999)], k=2))
        commands: list[Command[object]] = [
            HoldJobs(ids, HoldKind.USER, "ana"),
            HoldJobs(ids, HoldKind.ADMIN, "root"),
            ReleaseJobs(ids, HoldKind.USER, "ana"),
            ReleaseJobs(ids, HoldKind.ADMIN, "root"),
            CancelJobs(ids, "ana"),
            RequeueJobs(ids, "ana"),
            UpdateJobs(ids, "ana", time_limit_ms=5000, priority=1, clears_begin=True),
        ]
        assert len(self.centre.commit(self.random.choice(commands)).outcomes) == 1

    def stop(self) -> None:
        live = sorted(self.centre.state.allocations)
        if not live:
            return
        allocation = self.random.choice(live)
        reason = self.random.choice([EndReason.PREEMPTED, EndReason.WALLTIME])
        if self.random.random() < 0.5:
            self.centre.apply(stops=[Stop(allocation, reason)])
        else:
            self.centre.do(MarkStopping((allocation, self.ended[-1]), reason))
        assert self.centre.state.allocations[allocation].stop_reason is not None

    def change_inventory(self) -> None:
        """A node or device fails, drains or vanishes, whoever holds it."""
        name = self.random.choice(sorted(NODES))
        old = self.inventory.pop(name, None)
        changed: NodeInventory | None = None
        if old is not None:
            change = self.random.choice(["node", "device", "devices", "vanish"])
            if change == "node":
                availability = self.random.choice(list(NodeAvailability))
                changed = replace(old, node=replace(old.node, availability=availability, reason="seen"))
            elif change == "device" and old.devices:
                health = self.random.choice(list(DeviceHealth))
                first = replace(old.devices[0], health=health, is_foreign=self.random.random() < 0.5)
                changed = replace(old, devices=(first, *old.devices[1:]))
            elif change == "devices":
                changed = replace(old, devices=old.devices[self.random.randint(0, 3) :])
        if changed is not None:
            self.inventory[name] = changed
        self._sync()

    def heal(self) -> None:
        """All nodes are there and take jobs; jobs that wait for a time wait no longer."""
        self.inventory = {name: node(name, gpus=3) for name in NODES}
        self._sync()
        self.centre.commit(*[SetDrain(NodeName(name), None, "root") for name in NODES])
        self.centre.do(SetPool(PoolName("main"), False, None))
        self.centre.do(UpdateJobs(tuple(self.jobs), "root", clears_begin=True))

    def _sync(self) -> None:
        self.centre.do(SyncInventory(tuple(self.inventory.values()), Evidence.CONTROLLER))

    def drain(self) -> None:
        name = NodeName(self.random.choice(NODES))
        is_known = name in self.centre.state.capacity.rooms
        batch = self.centre.commit(SetDrain(name, self.random.choice([None, None, "bad fan"]), "root"))
        assert isinstance(batch.outcomes[0], Refused) != is_known

    def set_pool(self) -> None:
        self.centre.do(SetPool(PoolName("main"), self.random.random() < 0.3, "maintenance"))

    def assign_pool(self) -> None:
        name = NodeName(self.random.choice(NODES))
        is_known = name in self.centre.state.capacity.rooms
        batch = self.centre.commit(AssignNodes((name,), self.random.choice([None, PoolName("other")])))
        assert isinstance(batch.outcomes[0], Refused) != is_known

    def reserve(self) -> None:
        """Reserves a node for a while, now or later, for nobody or for acme; or takes a reservation back."""
        standing = sorted(self.centre.state.advance)
        if standing and self.random.random() < 0.5:
            self.centre.do(RemoveReservation(self.random.choice(standing), "root"))
            return
        start_ms = self.centre.clock.now_ms() + self.random.choice([-1000, 0, 1000, 60_000])
        nodes = (NodeName(self.random.choice(NODES)),)
        wanted = nodes if self.random.random() < 0.5 else NodesWanted(H200, 1)
        name, end_ms = f"r{self.random.randint(0, 3)}", start_ms + self.random.choice([500, 5000, 100_000])
        account = self.random.choice([None, ACME])
        self.centre.commit(MakeReservation(name, start_ms, end_ms, wanted, account, "works", "root"))

    def turn_reservations(self) -> None:
        self.centre.do(TurnReservations())
        with self.centre.database.read() as connection:
            assert due_reservations(connection, self.centre.clock.now_ms()) == ()

    def crash(self) -> None:
        self.centre.reopen()


@pytest.mark.timeout(400)
def test_any_sequence_of_commands_keeps_the_ledger_a_partition_and_the_database_equal_to_memory(
    make_database: Callable[[], Database], dialect: str
) -> None:
    """Units × time over all intervals is each device's life; the chain holds; rebuilt state equals lived state."""
    tally: Counter[str] = Counter()

    @settings(
        max_examples=25 if dialect == "sqlite" else 6,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(seed=st.integers(0, 1 << 32), steps=st.integers(MOST_STEPS // 2, MOST_STEPS))
    def walk(seed: int, steps: int) -> None:
        path = Walk(make_database(), Random(seed))
        for _ in range(steps):
            path.step()
        tally.update(path.tally)

    walk()
    # Random commands that start and end nothing would prove nothing.
    assert min(tally[kind] for kind in ("started", "ran", "ended", "rejected")) > 20, tally


def test_an_inventory_may_move_a_device_to_another_node(centre: Centre) -> None:
    """The node that loses it is told before the node that gets it, so that no event names it twice."""
    first, second = node("n0"), node("n1")
    moved = first.devices[0]
    centre.clock.advance(seconds=1)
    inventory = (
        NodeInventory(first.node, first.devices[1:]),
        NodeInventory(second.node, (*second.devices, replace(moved, node=second.node.name))),
    )
    assert centre.do(SyncInventory(inventory, Evidence.CONTROLLER)) == ("n0", "n1")
    centre.check()
    found = centre.state.capacity.find(moved.id)
    assert found is not None
    assert found.node == "n1"
