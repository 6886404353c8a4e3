"""Evidence on the real store: the same whatever its order and however often it comes, and only of the agent's node."""

import itertools
from dataclasses import replace
from typing import Any

import pytest

from metering.agent_store import ForgetAgent, SaveAgents, TakeEvidence, Taken, agents
from metering.agent_wire import XidSeen
from metering.agents import AgentDevice, AgentState
from metering.inbox import WindowInbox
from metering.ledger import windows_of
from metering.usage_report import GroupBy, Span, usage_by
from metering.windows import SampleWindow
from metering.witness import Holding, ledger_devices, seen_devices
from scheduler.core.model import DeviceId, GpuClass, NodeName
from scheduler.refusal import Refused
from scheduler.store.database import Database
from scheduler.store.node_events import node_events
from tests.metering.builders import DAY_MS, HOUR_MS, NOON_MS
from tests.metering.centre import SHANGHAI, Centre

MINUTE_MS = 60_000
A = NodeName("a")


def window(uuid: str, from_ms: int, length_ms: int = MINUTE_MS, percent: int = 50) -> SampleWindow:
    idle_ms = 0 if percent > 5 else length_ms
    return SampleWindow(
        uuid, from_ms, from_ms + length_ms, 4, length_ms, percent * length_ms, 0, percent, 1, 1000, 0, idle_ms, None
    )


def agent(node: str = "a", *uuids: str) -> AgentState:
    devices = tuple(AgentDevice(uuid, GpuClass("H100"), str(n), 80) for n, uuid in enumerate(uuids))
    return AgentState(NodeName(node), "one", "1", "nvml", None, NOON_MS, NOON_MS, devices=devices)


def take(centre: Centre, key: str = "k", *, node: NodeName = A, sha256: str = "", **facts: Any) -> Taken:
    return centre.run_command(TakeEvidence(node, key, sha256 or key, **facts))


@pytest.fixture
def slots(database: Database) -> Centre:
    """A centre whose node `a` has two slots, not GPUs, as on Kubernetes; its agent reads GPU-x and GPU-y."""
    made = Centre(database)
    made.tenant("acme/vision")
    made.slots("a", 2)
    made.run_command(SaveAgents((agent("a", "GPU-x", "GPU-y"),)))
    return made


def test_a_batch_that_comes_twice_is_taken_once_and_its_key_stands_for_nothing_else(slots: Centre) -> None:
    slots.clock.advance(hours=1)
    facts = (window("GPU-x", NOON_MS),)
    assert take(slots, windows=facts).windows == facts
    assert take(slots, windows=facts) == Taken(is_repeat=True)
    with pytest.raises(Refused, match="another batch"):
        take(slots, sha256="other", windows=())


def test_in_whatever_order_and_however_often_evidence_comes_the_store_is_the_same(slots: Centre) -> None:
    slots.clock.advance(hours=1)
    allocation = slots.start(DeviceId("a/gpu/0"))
    slots.running(allocation)
    batches: list[dict[str, Any]] = [
        {"windows": (window("GPU-x", NOON_MS + n * MINUTE_MS),),
         "holdings": (Holding("GPU-x", allocation, NOON_MS + n * MINUTE_MS, NOON_MS + (n + 1) * MINUTE_MS, "p"),)}
        for n in range(3)
    ]  # fmt: skip
    for turn, order in enumerate(itertools.permutations(range(3))):
        for n in (*order, order[0]):
            take(slots, f"{turn}-{n}", **batches[n])
        with slots.read() as connection:
            found = windows_of(connection, DeviceId("GPU-x"), 0, 2 * NOON_MS)
            assert [each.from_ms for each in found] == [NOON_MS + n * MINUTE_MS for n in range(3)]
            assert seen_devices(connection, allocation, NOON_MS, NOON_MS) == ("GPU-x",)


def test_an_agent_is_not_believed_about_another_nodes_gpus_or_allocations(centre: Centre) -> None:
    centre.run_command(SaveAgents((agent("a", "GPU-a-0", "GPU-b-0"),)))
    theirs = centre.start(DeviceId("GPU-b-0"))
    centre.clock.advance(hours=1)
    taken = take(
        centre,
        windows=(window("GPU-a-0", NOON_MS), window("GPU-b-0", NOON_MS), window("GPU-none", NOON_MS)),
        holdings=(Holding("GPU-a-0", theirs, NOON_MS, NOON_MS, "p"),),
        xids=(XidSeen("GPU-b-0", 79, 1, NOON_MS),),
    )
    assert [each.uuid for each in taken.windows] == ["GPU-a-0"]
    assert (taken.refused, taken.holdings, taken.xids, len(taken.reasons)) == (4, 0, 0, 3)


def test_times_are_clamped_to_what_the_ledger_knows(slots: Centre) -> None:
    slots.clock.advance(milliseconds=30_000)
    taken = take(slots, windows=(window("GPU-x", NOON_MS, percent=0), window("GPU-y", NOON_MS + 30_000)))
    (kept,) = taken.windows
    assert (kept.to_ms, kept.measured_ms, kept.idle_ms) == (NOON_MS + 30_000, 30_000, 30_000)
    assert "future" in taken.reasons[0]
    slots.clock.advance(hours=8 * 24)
    assert "older" in take(slots, "late", windows=(window("GPU-y", NOON_MS),)).reasons[0]


def test_a_gpus_time_is_measured_once(slots: Centre) -> None:
    slots.clock.advance(hours=1)
    take(slots, "1", windows=(window("GPU-x", NOON_MS),))
    taken = take(slots, "2", windows=(window("GPU-x", NOON_MS + 1), window("GPU-x", NOON_MS + MINUTE_MS)))
    assert [each.from_ms for each in taken.windows] == [NOON_MS + MINUTE_MS]
    assert "two readers" in taken.reasons[0]


def test_a_node_whose_agent_was_never_heard_delivers_nothing(slots: Centre) -> None:
    with pytest.raises(Refused, match="no heartbeat"):
        take(slots, node=NodeName("z"))


def test_xids_are_told_in_the_nodes_history_with_what_they_mean(slots: Centre) -> None:
    slots.clock.advance(hours=1)
    take(slots, xids=(XidSeen("GPU-x", 79, 2, NOON_MS), XidSeen(None, 31, 1, NOON_MS + 9 * HOUR_MS)))
    with slots.read() as connection:
        events = node_events(connection, A, 10)
    assert [(each.kind, each.device, each.at_ms - NOON_MS) for each in events] == [
        ("xid", None, HOUR_MS),
        ("xid", "GPU-x", 0),
    ]
    assert events[1].detail.startswith("XID 79 (2 times), fatal: the GPU has fallen off the bus")


def test_use_of_slots_is_measured_by_the_gpus_that_were_seen_in_the_jobs_hands(slots: Centre) -> None:
    allocation = slots.start(DeviceId("a/gpu/0"), DeviceId("a/gpu/1"))
    slots.running(allocation)
    slots.clock.advance(hours=1)
    facts = [window("GPU-x", NOON_MS, HOUR_MS, percent=0), window("GPU-y", NOON_MS, HOUR_MS, percent=80)]
    seen = [Holding(uuid, allocation, NOON_MS, NOON_MS + HOUR_MS, "podresources") for uuid in ("GPU-x", "GPU-y")]
    take(slots, windows=tuple(facts), holdings=tuple(seen))
    with slots.read() as connection:
        (group,) = usage_by(connection, Span(NOON_MS, slots.now_ms, SHANGHAI), GroupBy.JOB)
        assert (group.idle_gpu_ms, group.measured_gpu_ms) == (HOUR_MS, 2 * HOUR_MS)
        gpus = [(A, "GPU-x"), (A, "GPU-y"), (A, "GPU-none")]
        assert ledger_devices(connection, gpus, slots.now_ms) == {"GPU-x": "a/gpu/0", "GPU-y": "a/gpu/1"}
        assert ledger_devices(connection, gpus, slots.now_ms + DAY_MS) == {}


def test_the_inbox_adds_up_adjacent_windows_under_the_ledgers_names() -> None:
    inbox = WindowInbox()
    inbox.put(A, [window("GPU-x", 0, percent=0), window("GPU-x", MINUTE_MS), window("GPU-z", 0)])
    (one,) = inbox.drain(lambda gpus: {uuid: f"slot-of-{uuid}" for _, uuid in gpus if uuid != "GPU-z"})
    assert (one.uuid, one.from_ms, one.to_ms, one.idle_ms) == ("slot-of-GPU-x", 0, 2 * MINUTE_MS, MINUTE_MS)
    assert inbox.drain(lambda _: {}) == []


def test_what_an_agent_said_comes_back_as_it_was_until_it_is_forgotten(slots: Centre) -> None:
    state = replace(agent("a", "GPU-x"), problems=("a", "b"), skew_ms=-3, silent_ms=NOON_MS)
    slots.run_command(SaveAgents((state,)))
    with slots.read() as connection:
        assert agents(connection) == [state]
    slots.run_command(ForgetAgent(A, "olga"))
    with slots.read() as connection:
        assert agents(connection) == []
    with pytest.raises(Refused, match="no agent"):
        slots.run_command(ForgetAgent(A, "olga"))
