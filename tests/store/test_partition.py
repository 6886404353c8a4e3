"""The whole store under random commands: the ledger stays a partition, and memory is what the database holds."""

from collections.abc import Callable
from dataclasses import replace

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from scheduler.core.model import (
    GPU_UNITS,
    AllocationId,
    DeviceHealth,
    EndReason,
    HoldKind,
    JobId,
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
from scheduler.store.inventory import SetDrain, SetPool, SyncInventory
from tests.store.harness import Centre, draft, node, start

NODES = ("n0", "n1")
DEVICES = tuple(f"{name}/{number}" for name in NODES for number in range(3))
SHARE = GPU_UNITS // 3
REASONS = (None, *EndReason)


class Commands(RuleBasedStateMachine):
    """Any command at any time, sensible or not."""

    make_database: Callable[[], Database]

    @initialize()
    def open(self) -> None:
        """A centre of two nodes with three GPUs each."""
        self.inventory = {name: node(name, gpus=3) for name in NODES}
        self.centre = Centre.open(type(self).make_database(), *self.inventory.values())
        self.jobs: list[JobId] = [JobId(999)]
        self.allocations: list[AllocationId] = [AllocationId("never-made")]

    @rule(milliseconds=st.sampled_from([0, 1, 7, 1000, 60_000]))
    def time_passes(self, milliseconds: int) -> None:
        self.centre.clock.advance(milliseconds=milliseconds)

    @rule(gpus=st.integers(1, 3), is_held=st.booleans(), retries=st.integers(0, 2), count=st.integers(1, 2))
    def submit(self, gpus: int, is_held: bool, retries: int, count: int) -> None:
        wanted = draft(gpus, is_held=is_held, retries=retries, array_indexes=tuple(range(count)))
        self.jobs += self.centre.submit(wanted)

    @rule(count=st.integers(1, 4))
    def submit_shares(self, count: int) -> None:
        self.jobs += self.centre.submit(*[draft(units=SHARE)] * count)

    @rule(data=st.data(), count=st.integers(1, 4))
    def plan(self, data: st.DataObject, count: int) -> None:
        """Starts on devices that may be taken, drained or gone; what is rejected leaves no trace."""
        jobs = [data.draw(st.sampled_from(self.jobs)) for _ in range(count)]
        starts = []
        for job in jobs:
            units = self.centre.state.jobs[job].shape.gpu_units if job in self.centre.state.jobs else GPU_UNITS
            size = max(1, units // GPU_UNITS)
            devices = data.draw(st.permutations(DEVICES))[:size]
            starts.append(start(job, *sorted(devices), units=min(units, GPU_UNITS)))
        applied = self.centre.apply(*starts)
        assert len(applied.started) + len(applied.rejected) == count
        self.allocations += [order.allocation.id for order in applied.started]

    @rule(data=st.data(), count=st.integers(1, 5))
    def observe(self, data: st.DataObject, count: int) -> None:
        """Starts and ends, late, early, twice, of what never was."""
        now_ms = self.centre.clock.now_ms()
        times = st.integers(now_ms - 100_000, now_ms + 5000)
        seen: list[Observation] = []
        for _ in range(count):
            allocation = data.draw(st.sampled_from(self.allocations))
            if data.draw(st.booleans()):
                seen.append(Started(allocation, data.draw(times)))
            else:
                began = data.draw(st.none() | times)
                seen.append(Ended(allocation, data.draw(times), 0, data.draw(st.sampled_from(REASONS)), began))
        self.centre.observe(*seen, *seen[:1])

    @rule(data=st.data(), action=st.sampled_from(["hold", "hold_admin", "release", "cancel", "requeue", "update"]))
    def act(self, data: st.DataObject, action: str) -> None:
        ids = tuple(data.draw(st.lists(st.sampled_from(self.jobs), min_size=1, max_size=4)))
        command = {
            "hold": HoldJobs(ids, HoldKind.USER, "ana"),
            "hold_admin": HoldJobs(ids, HoldKind.ADMIN, "root"),
            "release": ReleaseJobs(ids, data.draw(st.sampled_from(HoldKind)), "ana"),
            "cancel": CancelJobs(ids, "ana"),
            "requeue": RequeueJobs(ids, "ana"),
            "update": UpdateJobs(ids, "ana", time_limit_ms=5000, priority=1, clears_begin=True),
        }[action]
        batch = self.centre.commit(command)
        assert len(batch.outcomes) == 1

    @rule(data=st.data(), reason=st.sampled_from([EndReason.PREEMPTED, EndReason.WALLTIME]))
    def stop(self, data: st.DataObject, reason: EndReason) -> None:
        allocation = data.draw(st.sampled_from(self.allocations))
        if data.draw(st.booleans()):
            self.centre.do(MarkStopping((allocation,), reason))
        else:
            self.centre.apply(stops=[Stop(allocation, reason)])

    @rule(name=st.sampled_from(NODES), availability=st.sampled_from(NodeAvailability))
    def change_node(self, name: str, availability: NodeAvailability) -> None:
        if name in self.inventory:
            old = self.inventory[name]
            self.inventory[name] = replace(old, node=replace(old.node, availability=availability, reason="seen"))
        self._sync()

    @rule(
        name=st.sampled_from(NODES),
        place=st.integers(0, 2),
        health=st.sampled_from(DeviceHealth),
        foreign=st.booleans(),
    )
    def change_device(self, name: str, place: int, health: DeviceHealth, foreign: bool) -> None:
        if name in self.inventory and place < len(self.inventory[name].devices):
            devices = list(self.inventory[name].devices)
            devices[place] = replace(devices[place], health=health, is_foreign=foreign)
            self.inventory[name] = replace(self.inventory[name], devices=tuple(devices))
        self._sync()

    @rule(name=st.sampled_from(NODES), kept=st.integers(0, 3))
    def lose_or_find_devices(self, name: str, kept: int) -> None:
        if name in self.inventory:
            self.inventory[name] = replace(self.inventory[name], devices=node(name, gpus=3).devices[:kept])
        self._sync()

    @rule(name=st.sampled_from(NODES))
    def lose_or_find_node(self, name: str) -> None:
        if name in self.inventory:
            del self.inventory[name]
        else:
            self.inventory[name] = node(name, gpus=3)
        self._sync()

    @rule(name=st.sampled_from(NODES), reason=st.sampled_from([None, "bad fan"]))
    def drain(self, name: str, reason: str | None) -> None:
        batch = self.centre.commit(SetDrain(NodeName(name), reason, "root"))
        assert name in self.centre.state.capacity.rooms or isinstance(batch.outcomes[0], Refused)

    @rule(is_closed=st.booleans())
    def set_pool(self, is_closed: bool) -> None:
        self.centre.do(SetPool(PoolName("main"), is_closed, "maintenance"))

    @rule()
    def crash(self) -> None:
        self.centre.reopen()

    def _sync(self) -> None:
        self.centre.do(SyncInventory(tuple(self.inventory.values()), Evidence.CONTROLLER))

    @invariant()
    def everything_agrees(self) -> None:
        if hasattr(self, "centre"):
            self.centre.check()


def test_any_sequence_of_commands_keeps_the_ledger_a_partition_and_the_database_equal_to_memory(
    make_database: Callable[[], Database], dialect: str
) -> None:
    """Units × time over all intervals is each device's life; the chain holds; rebuilt state equals lived state."""
    machine = type("CommandsOnStore", (Commands,), {"make_database": staticmethod(make_database)})
    examples = 30 if dialect == "sqlite" else 6
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            database=None,
        ),
    )


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
