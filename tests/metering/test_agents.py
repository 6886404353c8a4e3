"""What the daemon makes of agents: silence, problems and ill GPUs become nodes that are drained, and events."""

from dataclasses import replace
from typing import Any

import pytest

from metering.agents import AgentDevice, AgentState, AgentWatch, attended
from scheduler.core.model import DeviceHealth, DeviceId, GpuClass, NodeAvailability, NodeName
from scheduler.executor import NodeInventory
from tests.builders import node

START_MS = 1_790_000_000_000
H1 = NodeName("h1")


def device(place: int = 0, health: DeviceHealth = DeviceHealth.OK, *, host: str = "h1") -> AgentDevice:
    reason = None if health is DeviceHealth.OK else "XID 79"
    return AgentDevice(f"GPU-{host}-{place}", GpuClass("H100"), str(place), 80, health, None, reason)


def said(host: str = "h1", at_ms: int = START_MS, **changes: Any) -> AgentState:
    state = AgentState(
        NodeName(host), "one", "1.0", "nvml", "570", at_ms, at_ms, devices=(device(0, host=host), device(1, host=host))
    )
    return replace(state, **changes)


def kinds(watch: AgentWatch, state: AgentState) -> list[str]:
    return [event.kind for event in watch.hear(state).events]


def test_an_agent_that_is_heard_no_more_is_silent_once_and_back_once() -> None:
    watch = AgentWatch()
    assert kinds(watch, said()) == ["agent_first"]
    assert watch.look(START_MS + 59_999) == ()
    (fallen,) = watch.look(START_MS + 60_000)
    assert [event.kind for event in fallen.events] == ["agent_silent"]
    assert fallen.state.silent_ms == START_MS
    assert watch.look(START_MS + 120_000) == ()
    assert kinds(watch, said(at_ms=START_MS + 130_000)) == ["agent_back"]
    assert watch.look(START_MS + 140_000) == ()


def test_a_heartbeat_that_says_nothing_new_is_stored_once_a_minute() -> None:
    watch = AgentWatch()
    stored = [watch.hear(said(at_ms=START_MS + n * 15_000)).must_store for n in range(9)]
    assert stored == [True, False, False, False, True, False, False, False, True]


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"instance": "two"}, "agent_restarted"),
        ({"skew_ms": -5_001}, "clock_skew"),
        ({"problems": ("driver mismatch",)}, "agent_problem"),
        ({"devices": (device(0), device(1, DeviceHealth.FAILED))}, "gpu_health"),
    ],
)
def test_what_changes_is_an_event_once(changes: dict[str, Any], kind: str) -> None:
    watch = AgentWatch()
    watch.hear(said())
    assert kinds(watch, said(at_ms=START_MS + 1, **changes)) == [kind]
    assert kinds(watch, said(at_ms=START_MS + 2, **changes)) == []


def test_a_successor_gives_agents_the_whole_time_again_and_keeps_the_silent_ones_silent() -> None:
    watch = AgentWatch()
    watch.load((said("a"), said("b", silent_ms=START_MS)), START_MS + 500_000)
    assert watch.look(START_MS + 559_999) == ()
    assert [each.state.node for each in watch.look(START_MS + 560_000)] == ["a"]


def test_two_agents_that_read_the_same_gpus_are_not_both_believed() -> None:
    watch = AgentWatch()
    watch.hear(said("h1"))
    heard = watch.hear(replace(said("h1"), node=NodeName("h2")))
    assert heard.state.devices == ()
    assert "h1" in heard.state.problems[0]
    assert watch.measured() == {"GPU-h1-0", "GPU-h1-1"}


def inventory(*, up: bool = True) -> NodeInventory:
    return node("h1", gpus=2, up=up)


def test_a_silent_agent_drains_its_node_and_says_since_when() -> None:
    (laid,) = attended([inventory()], [said(silent_ms=START_MS)])
    assert laid.node.availability is NodeAvailability.DRAINING
    assert laid.node.reason == "no word from its agent since 2026-09-21T14:13:20.000Z"
    assert attended([inventory()], [said()]) == (inventory(),)
    assert attended([inventory()], []) == (inventory(),)


def test_an_agent_never_makes_a_node_or_gpu_healthier() -> None:
    down = inventory(up=False)
    assert attended([down], [said(silent_ms=START_MS)]) == (down,)
    failed = node("h1", gpus=2, failed=(1,))
    assert attended([failed], [said()]) == (failed,)


def test_an_ill_gpu_is_ill_by_its_uuid_and_drains_a_node_of_slots() -> None:
    ill = said(devices=(device(0), device(1, DeviceHealth.FAILED)))
    (by_uuid,) = attended([inventory()], [ill])
    assert [each.health.value for each in by_uuid.devices] == ["ok", "failed"]
    assert by_uuid.node.availability is NodeAvailability.UP
    slots = tuple(replace(each, id=DeviceId(f"h1/nvidia.com/gpu/{n}")) for n, each in enumerate(inventory().devices))
    (of_slots,) = attended([NodeInventory(inventory().node, slots)], [ill])
    assert of_slots.node.availability is NodeAvailability.DRAINING
    assert of_slots.node.reason == "GPU 1 (GPU-h1-1): XID 79"


def test_a_machine_of_two_classes_is_one_agents() -> None:
    part = node("h1.h100", gpus=2)
    (laid,) = attended([part], [said(silent_ms=START_MS)])
    assert laid.node.availability is NodeAvailability.DRAINING
