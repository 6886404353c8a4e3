"""Agents in the database: what they said last, the evidence that they deliver.

Evidence may come late, twice and out of order; what is stored is the same. Nothing in it is believed beyond the node
that its token speaks for: GPUs that the node's agent does not list, allocations that hold nothing there, and times that
the ledger has not reached are left out and counted.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from metering.agent_wire import XidSeen
from metering.agents import AgentDevice, AgentState
from metering.ledger import MOST_WINDOW_MS, write_windows
from metering.samples import gpu_window
from metering.tables import AGENT, AGENT_BATCH, GPU_WINDOW
from metering.windows import SampleWindow
from metering.witness import Holding, write_witnesses
from metering.xids import XID_TABLE
from scheduler.core.model import AllocationId, DeviceHealth, GpuClass, NodeName
from scheduler.refusal import RefusalCode, Refused
from scheduler.store.codec import grants_of
from scheduler.store.database import chunks
from scheduler.store.node_events import NodeEvent, write_node_events
from scheduler.store.tables import ALLOCATION, DEVICE
from scheduler.store.transaction import Transaction

MOST_LATE_MS = 7 * 86_400_000
"""Evidence that is older is not taken in, and keys of batches are remembered no longer: a week, more than a period
stays open for late facts (72 h) and than an agent keeps while it cannot deliver."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of a batch. `refused` counts facts that were left out; `reasons` says why, each once."""

    windows: tuple[SampleWindow, ...] = ()
    """Those that were new."""
    xids: int = 0
    holdings: int = 0
    refused: int = 0
    reasons: tuple[str, ...] = ()
    is_repeat: bool = False


@dataclass(frozen=True, slots=True)
class SaveAgents:
    """Keeps what agents said last, and adds to their nodes' histories."""

    states: tuple[AgentState, ...]
    events: tuple[NodeEvent, ...] = ()

    def execute(self, tx: Transaction) -> None:
        """Never refuses."""
        for state in self.states:
            values = _row_of(state)
            done = tx.connection.execute(sa.update(AGENT).where(AGENT.c.node == state.node).values(values))
            if done.rowcount == 0:
                tx.connection.execute(sa.insert(AGENT).values(values))
        write_node_events(tx.connection, self.events)


@dataclass(frozen=True, slots=True)
class ForgetAgent:
    """Expects no agent on a node any more. What it delivered stays."""

    node: NodeName
    actor: str

    def execute(self, tx: Transaction) -> None:
        """Refuses a node without an agent."""
        done = tx.connection.execute(sa.delete(AGENT).where(AGENT.c.node == self.node))
        if done.rowcount == 0:
            raise Refused(RefusalCode.NOT_FOUND, f"no agent was ever heard on a node {self.node}")
        write_node_events(
            tx.connection, [NodeEvent(self.node, tx.now_ms, "agent_forgotten", f"forgotten by {self.actor}")]
        )


@dataclass(frozen=True, slots=True)
class TakeEvidence:
    """Takes in a batch of a node's agent; the same key again changes nothing."""

    node: NodeName
    key: str
    sha256: str
    windows: tuple[SampleWindow, ...] = ()
    xids: tuple[XidSeen, ...] = ()
    holdings: tuple[Holding, ...] = ()

    def execute(self, tx: Transaction) -> Taken:
        """Refuses a key that stood for other content, and a node whose agent was never heard."""
        known = tx.connection.execute(
            sa.select(AGENT_BATCH.c.sha256).where(AGENT_BATCH.c.node == self.node, AGENT_BATCH.c.key == self.key)
        ).scalar()
        if known is not None:
            if known != self.sha256:
                raise Refused(RefusalCode.CONFLICT, f"the key {self.key} was used for another batch of {self.node}")
            return Taken(is_repeat=True)
        sieve = _Sieve(tx, self.node)
        windows = sieve.windows(self.windows)
        holdings = sieve.holdings(self.holdings)
        xids = sieve.xids(self.xids)
        write_windows(tx.connection, [gpu_window(window) for window in windows])
        write_witnesses(tx.connection, self.node, holdings)
        write_node_events(tx.connection, [_xid_event(self.node, xid) for xid in xids])
        tx.connection.execute(sa.delete(AGENT_BATCH).where(AGENT_BATCH.c.taken_ms < tx.now_ms - MOST_LATE_MS))
        tx.connection.execute(
            sa.insert(AGENT_BATCH).values(node=self.node, key=self.key, sha256=self.sha256, taken_ms=tx.now_ms)
        )
        return Taken(tuple(windows), len(xids), len(holdings), sieve.refused, tuple(sieve.reasons))


class _Sieve:
    """Lets through what a node's agent may say."""

    def __init__(self, tx: Transaction, node: NodeName) -> None:
        self._tx = tx
        self._node = node
        self.refused = 0
        self.reasons: dict[str, None] = {}
        state = agent_of(tx.connection, node)
        if state is None:
            raise Refused(
                RefusalCode.WRONG_STATE, f"no heartbeat of node {node} came yet", tries=("send a heartbeat first",)
            )
        self._devices = {device.uuid for device in state.devices} - self._elsewhere(state)

    def _elsewhere(self, state: AgentState) -> set[str]:
        """Returns those of the agent's GPUs that the inventory has on another machine."""
        found: set[str] = set()
        for part in chunks([device.uuid for device in state.devices]):
            rows = self._tx.connection.execute(
                sa.select(DEVICE.c.id, DEVICE.c.node, DEVICE.c.gpu_class).where(
                    DEVICE.c.id.in_(part), DEVICE.c.removed_ms.is_(None)
                )
            )
            found.update(row.id for row in rows if row.node not in self._names(row.gpu_class))
        return found

    def _names(self, gpu_class: str) -> tuple[str, str]:
        return self._node, f"{self._node}.{gpu_class.lower()}"

    def _refuse(self, why: str) -> None:
        self.refused += 1
        self.reasons[why] = None

    def _is_timely(self, from_ms: int, what: str) -> bool:
        if from_ms >= self._tx.now_ms:
            self._refuse(f"{what} of the future: the node's clock is ahead of the daemon's")
        elif from_ms < self._tx.now_ms - MOST_LATE_MS:
            self._refuse(f"{what} older than {MOST_LATE_MS // 86_400_000} days")
        else:
            return True
        return False

    def windows(self, windows: Sequence[SampleWindow]) -> list[SampleWindow]:
        kept = []
        for window in windows:
            if window.uuid not in self._devices:
                self._refuse("windows of a GPU that is not this node's")
            elif self._is_timely(window.from_ms, "windows"):
                kept.append(_clamped(window, self._tx.now_ms))
        return self._without_overlaps(kept)

    def _without_overlaps(self, windows: list[SampleWindow]) -> list[SampleWindow]:
        """Leaves out what is stored already and what overlaps with it: a GPU's time is measured once."""
        if not windows:
            return []
        first_ms, last_ms = min(window.from_ms for window in windows), max(window.to_ms for window in windows)
        taken: dict[str, list[tuple[int, int]]] = {}
        for part in chunks(sorted({window.uuid for window in windows})):
            rows = self._tx.connection.execute(
                sa.select(GPU_WINDOW.c.device, GPU_WINDOW.c.from_ms, GPU_WINDOW.c.to_ms).where(
                    GPU_WINDOW.c.device.in_(part),
                    GPU_WINDOW.c.from_ms > first_ms - MOST_WINDOW_MS,
                    GPU_WINDOW.c.from_ms < last_ms,
                )
            )
            for device, from_ms, to_ms in rows:
                taken.setdefault(device, []).append((from_ms, to_ms))
        new = []
        for window in sorted(windows, key=lambda each: (each.uuid, each.from_ms)):
            spans = taken.setdefault(window.uuid, [])
            span = (window.from_ms, window.to_ms)
            if span in spans:
                continue  # delivered before, by a batch whose answer was lost
            if any(span[0] < to_ms and from_ms < span[1] for from_ms, to_ms in spans):
                self._refuse("windows that overlap with others of the same GPU: two readers measure it")
                continue
            spans.append(span)
            new.append(window)
        return new

    def holdings(self, holdings: Sequence[Holding]) -> list[Holding]:
        granted = _granted_nodes(self._tx.connection, {holding.allocation for holding in holdings})
        kept = []
        for holding in holdings:
            if holding.device not in self._devices:
                self._refuse("holdings of a GPU that is not this node's")
            elif not any(_is_of(self._node, node) for node in granted.get(holding.allocation, ())):
                self._refuse("holdings of an allocation that has nothing on this node")
            elif self._is_timely(holding.from_ms, "holdings"):
                kept.append(replace(holding, to_ms=min(holding.to_ms, self._tx.now_ms)))
        return kept

    def xids(self, xids: Sequence[XidSeen]) -> list[XidSeen]:
        kept = []
        for xid in xids:
            if xid.uuid is not None and xid.uuid not in self._devices:
                self._refuse("XIDs of a GPU that is not this node's")
            else:
                kept.append(replace(xid, at_ms=min(xid.at_ms, self._tx.now_ms)))
        return kept


def _clamped(window: SampleWindow, now_ms: int) -> SampleWindow:
    """Returns a window that ends by `now_ms`: what a fast clock says of the future is not known to anybody."""
    if window.to_ms <= now_ms:
        return window
    length_ms = now_ms - window.from_ms
    measured_ms = min(window.measured_ms, length_ms)
    return replace(
        window,
        to_ms=now_ms,
        measured_ms=measured_ms,
        idle_ms=min(window.idle_ms, measured_ms),
        utilization_percent_ms=window.utilization_percent_ms * measured_ms // max(window.measured_ms, 1),
        memory_utilization_percent_ms=window.memory_utilization_percent_ms * measured_ms // max(window.measured_ms, 1),
    )


def _is_of(machine: NodeName, node: NodeName) -> bool:
    return node == machine or node.startswith(f"{machine}.")


def _granted_nodes(connection: Connection, allocations: Iterable[AllocationId]) -> dict[AllocationId, set[NodeName]]:
    found: dict[AllocationId, set[NodeName]] = {}
    for part in chunks(sorted(allocations)):
        # On the nodes a gang is one allocation, whatever it holds as surplus.
        of = sa.func.coalesce(ALLOCATION.c.surplus_of, ALLOCATION.c.id)
        is_asked = sa.or_(ALLOCATION.c.id.in_(part), ALLOCATION.c.surplus_of.in_(part))
        for id_, grants in connection.execute(sa.select(of, ALLOCATION.c.grants).where(is_asked)):
            found.setdefault(AllocationId(id_), set()).update(grant.node for grant in grants_of(grants))
    return found


def _xid_event(node: NodeName, seen: XidSeen) -> NodeEvent:
    row = XID_TABLE.get(seen.xid)
    words = f"XID {seen.xid}" + (f" ({seen.count} times)" if seen.count > 1 else "")
    if row is not None:
        words += f", {row.xid_class.value}: {row.meaning}; {row.action}"
    return NodeEvent(node, seen.at_ms, "xid", words, seen.uuid)


# ---- agents ---------------------------------------------------------------------------------------------------------


def agents(connection: Connection) -> list[AgentState]:
    """Returns all agents by node, as last stored."""
    return [_state_of(dict(row)) for row in connection.execute(sa.select(AGENT).order_by(AGENT.c.node)).mappings()]


def agent_of(connection: Connection, node: NodeName) -> AgentState | None:
    """Returns a node's agent as last stored; None when none was ever heard."""
    row = connection.execute(sa.select(AGENT).where(AGENT.c.node == node)).mappings().first()
    return None if row is None else _state_of(dict(row))


def _row_of(state: AgentState) -> dict[str, Any]:
    devices = [{**asdict(device), "health": device.health.value} for device in state.devices]
    fields = {name: getattr(state, name) for name in AgentState.__dataclass_fields__}
    return {**fields, "problems": list(state.problems), "devices": devices}


def _state_of(row: Mapping[str, Any]) -> AgentState:
    devices = tuple(
        AgentDevice(
            **{**each, "gpu_class": GpuClass(each["gpu_class"]), "health": DeviceHealth(each["health"])},
        )
        for each in row["devices"]
    )
    return AgentState(**{**row, "node": NodeName(row["node"]), "problems": tuple(row["problems"]), "devices": devices})
