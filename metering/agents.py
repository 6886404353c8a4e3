"""The agents of GPU nodes as the daemon knows them: who was heard when, who fell silent, what that means for a node.

`AgentWatch` is held in memory by the daemon that leads; the table `agent` is how a successor learns of the agents, and
lags at most a minute behind. A node whose agent fell silent is drained, not failed: its jobs may well run, and that
they do not is the executor's to see. What an agent says of its GPUs is laid over the executor's inventory and never
makes it look healthier.

Read in order: AgentState, AgentWatch, attended.
"""

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from metering.telemetry import CollectorSuccess
from scheduler.clock import iso_utc
from scheduler.core.model import Device, DeviceHealth, GpuClass, NodeAvailability, NodeName
from scheduler.executor import NodeInventory
from scheduler.store.node_events import NodeEvent

SILENT_MS = 60_000
"""An agent that was not heard for so long is silent: four of its heartbeats."""
STORE_MS = 60_000
"""Between two writes of an agent that says nothing new: 1,250 nodes then cost 21 rows a second."""
SKEW_MS = 5_000
"""A node's clock that is further from the daemon's is reported: NTP keeps machines within tens of milliseconds."""
AGENT_COLLECTOR = "agent"
"""The word for agents in `turnstile_collector_last_success_timestamp_seconds`."""

_RANK = {DeviceHealth.OK: 0, DeviceHealth.DRAINING: 1, DeviceHealth.FAILED: 2}


@dataclass(frozen=True, slots=True)
class AgentDevice:
    """A GPU or MIG instance as its agent judges it. `position` is the label `gpu`; `code` and `reason` None when ok."""

    uuid: str
    gpu_class: GpuClass
    position: str
    memory_bytes: int
    health: DeviceHealth = DeviceHealth.OK
    code: str | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class AgentState:
    """What an agent last said. Times are the daemon's; `skew_ms` is how far its own clock is ahead of them."""

    node: NodeName
    instance: str
    """A new word at each start of the agent."""
    version: str
    collector: str
    driver_version: str | None
    first_ms: int
    heard_ms: int
    skew_ms: int = 0
    silent_ms: int | None = None
    """When it was last heard before it fell silent; None while it is heard."""
    problems: tuple[str, ...] = ()
    devices: tuple[AgentDevice, ...] = ()

    @property
    def is_skewed(self) -> bool:
        """True when its clock is so far off that somebody should look."""
        return abs(self.skew_ms) > SKEW_MS


@dataclass(frozen=True, slots=True)
class Heard:
    """What follows from a heartbeat: the state to answer by, and what is to be stored, if anything."""

    state: AgentState
    must_store: bool
    events: tuple[NodeEvent, ...] = field(default=())


class AgentWatch:
    """Keeps what agents say. Thread-safe; costs a look at one node for each heartbeat."""

    def __init__(self, silent_ms: int = SILENT_MS) -> None:
        self.silent_ms = silent_ms
        self._lock = threading.Lock()
        self._states: dict[NodeName, AgentState] = {}
        self._stored_ms: dict[NodeName, int] = {}
        self._is_loaded = False
        self._has_changed = False

    @property
    def is_loaded(self) -> bool:
        """True once `load` was called, until `unload`."""
        return self._is_loaded

    def unload(self) -> None:
        """Forgets everything: this daemon does not lead, and another hears the agents."""
        with self._lock:
            self._states.clear()
            self._stored_ms.clear()
            self._is_loaded = False

    def load(self, states: Iterable[AgentState], now_ms: int) -> None:
        """Takes over what a predecessor stored. Those it had heard get the whole time once more to be heard again.

        Does nothing when it was called before: what was heard since then is newer.
        """
        with self._lock:
            if self._is_loaded:
                return
            self._is_loaded = True
            self._states = {
                state.node: state if state.silent_ms is not None else replace(state, heard_ms=now_ms)
                for state in states
            }
            self._stored_ms = dict.fromkeys(self._states, now_ms)

    def states(self) -> tuple[AgentState, ...]:
        """Returns all agents by node."""
        with self._lock:
            return tuple(self._states[node] for node in sorted(self._states))

    def state_of(self, node: NodeName) -> AgentState | None:
        """Returns the agent of a node; None when none was ever heard."""
        with self._lock:
            return self._states.get(node)

    def hear(self, said: AgentState) -> Heard:
        """Takes in a heartbeat. `said.first_ms` and `said.silent_ms` are of no account: this object knows them."""
        with self._lock:
            before = self._states.get(said.node)
            first_ms = said.heard_ms if before is None else before.first_ms
            state = replace(self._without_others_devices(said), first_ms=first_ms, silent_ms=None)
            self._states[said.node] = state
            events = tuple(_events(before, state))
            is_due = state.heard_ms - self._stored_ms.get(said.node, 0) >= STORE_MS
            must_store = is_due or bool(events) or before is None or _content(before) != _content(state)
            if must_store:
                self._stored_ms[said.node] = state.heard_ms
            self._has_changed |= before is None or _verdicts(before) != _verdicts(state)
        return Heard(state, must_store, events)

    def look(self, now_ms: int) -> tuple[Heard, ...]:
        """Returns the agents that have fallen silent since the last look, to be stored."""
        found = []
        with self._lock:
            for node, state in sorted(self._states.items()):
                if state.silent_ms is None and now_ms - state.heard_ms >= self.silent_ms:
                    state = self._states[node] = replace(state, silent_ms=state.heard_ms)  # noqa: PLW2901
                    words = f"no word from the node's agent since {iso_utc(state.heard_ms)}"
                    event = NodeEvent(node, now_ms, "agent_silent", words)
                    self._has_changed = True
                    found.append(Heard(state, must_store=True, events=(event,)))
        return tuple(found)

    def take_change(self) -> bool:
        """Returns whether agents' words changed the inventory since the last call."""
        with self._lock:
            changed, self._has_changed = self._has_changed, False
        return changed

    def forget(self, node: NodeName) -> bool:
        """Expects no agent on a node any more; returns whether one was."""
        with self._lock:
            self._stored_ms.pop(node, None)
            self._has_changed = True
            return self._states.pop(node, None) is not None

    def measured(self) -> frozenset[str]:
        """Returns the UUIDs of the GPUs that agents read now: what others measured of them is not wanted."""
        with self._lock:
            live = [state for state in self._states.values() if state.silent_ms is None]
        return frozenset(device.uuid for state in live for device in state.devices)

    def successes(self) -> tuple[CollectorSuccess, ...]:
        """Returns when each agent was last heard, for the daemon's metrics."""
        return tuple(CollectorSuccess(state.node, AGENT_COLLECTOR, state.heard_ms) for state in self.states())

    def _without_others_devices(self, said: AgentState) -> AgentState:
        """Takes out GPUs that another agent reads: two agents with one node's GPUs must not both be believed."""
        owner = {
            device.uuid: node
            for node, state in self._states.items()
            if node != said.node and state.silent_ms is None
            for device in state.devices
        }
        taken = sorted({owner[device.uuid] for device in said.devices if device.uuid in owner})
        if not taken:
            return said
        words = f"its GPUs are those of {', '.join(taken)}, whose agent is heard too; one of the two has a wrong name"
        kept = tuple(device for device in said.devices if device.uuid not in owner)
        return replace(said, devices=kept, problems=(*said.problems, words))


def _content(state: AgentState) -> AgentState:
    """Returns a state without what changes with every heartbeat."""
    return replace(state, heard_ms=0, skew_ms=0)


def _verdicts(state: AgentState) -> tuple[object, ...]:
    health = tuple((device.uuid, device.health, device.reason) for device in state.devices)
    return state.silent_ms, bool(state.problems), health


def _events(before: AgentState | None, now: AgentState) -> Iterable[NodeEvent]:
    def event(kind: str, detail: str) -> NodeEvent:
        return NodeEvent(now.node, now.heard_ms, kind, detail[:512])

    if before is None:
        yield event("agent_first", f"agent {now.version} reads {len(now.devices)} GPUs by {now.collector}")
    elif before.silent_ms is not None:
        seconds = (now.heard_ms - before.silent_ms) // 1000
        yield event("agent_back", f"the agent is heard again after {seconds} s")
    elif before.instance != now.instance:
        yield event("agent_restarted", f"agent {now.version} began anew")
    if now.is_skewed and not (before is not None and before.is_skewed):
        ahead = "ahead of" if now.skew_ms > 0 else "behind"
        yield event("clock_skew", f"the node's clock is {abs(now.skew_ms) / 1000:g} s {ahead} the daemon's; check NTP")
    known = before.problems if before is not None else ()
    for problem in now.problems:
        if problem not in known:
            yield event("agent_problem", problem)
    was = {device.uuid: device.health for device in before.devices} if before is not None else {}
    for device in now.devices:
        if device.health is not was.get(device.uuid, DeviceHealth.OK):
            words = f"{device.health.value}: {device.reason}" if device.reason else device.health.value
            yield NodeEvent(now.node, now.heard_ms, "gpu_health", words[:512], device.uuid)


def attended(nodes: Sequence[NodeInventory], states: Sequence[AgentState]) -> tuple[NodeInventory, ...]:
    """Returns an inventory with what agents know laid over it: never healthier than the executor says.

    GPUs that the inventory lists by UUID get the agent's verdict each. Where it lists slots (the platform chooses the
    GPU), a GPU that is not well drains its node, for nobody knows beforehand which slot it would be.
    """
    by_node = {state.node: state for state in states}
    found = []
    for each in nodes:
        # A machine with GPUs of several classes is several nodes, `name.class`; its agent has the machine's name.
        machine = NodeName(each.node.name.removesuffix(f".{each.node.gpu_class.lower()}"))
        state = by_node.get(each.node.name) or by_node.get(machine)
        found.append(each if state is None else _laid_over(each, state))
    return tuple(found)


def _laid_over(inventory: NodeInventory, state: AgentState) -> NodeInventory:
    verdicts = {device.uuid: device for device in state.devices}
    devices = tuple(_worse(device, verdicts.get(device.id)) for device in inventory.devices)
    reason = _drain_reason(state, verdicts, {device.id for device in devices})
    node = inventory.node
    if reason is not None and node.availability is NodeAvailability.UP:
        node = replace(node, availability=NodeAvailability.DRAINING, reason=reason)
    return NodeInventory(node, devices)


def _worse(device: Device, verdict: AgentDevice | None) -> Device:
    if verdict is None or _RANK[verdict.health] <= _RANK[device.health]:
        return device
    return replace(device, health=verdict.health, reason=verdict.reason)


def _drain_reason(state: AgentState, verdicts: Mapping[str, AgentDevice], listed: set[str]) -> str | None:
    if state.silent_ms is not None:
        return f"no word from its agent since {iso_utc(state.silent_ms)}"
    if verdicts and not verdicts.keys() & listed:
        for device in state.devices:
            if device.health is not DeviceHealth.OK:
                return f"GPU {device.position} ({device.uuid}): {device.reason or device.health.value}"
    return None
