"""The agent of a GPU node, without its threads and sockets: samples, closes windows, and tells the daemon.

    sampler ─► windows, XIDs ─┐
    watch ─► holdings ────────┴─► spool (disk) ─► uplink ─► daemon
                                   heartbeat ────────┘

`measure` and `close` are called by the agent's measuring thread, `report` by its delivering thread: a network that
hangs holds up no sample, a driver that hangs no heartbeat. Everything between the two is behind one lock. What is
measured reaches the disk before it is sent, and leaves it when the daemon has taken it in.
"""

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Protocol

from metering.agent import GpuSnapshot, Sampler
from metering.agent_wire import MOST_DEVICES, MOST_PROBLEMS, MOST_ROWS, XidSeen, evidence_document, rows_in
from metering.holders import HolderWatch
from metering.spool import Spool
from metering.windows import SampleWindow
from metering.witness import Holding
from scheduler.clock import Clock
from scheduler.core.model import AllocationId, NodeName
from scheduler.wire.text import LONGEST_NAME, shown

logger = logging.getLogger(__name__)

MOST_BATCHES = 200
"""Sent in one report, so that a heartbeat is never far off while hours of evidence are caught up."""
_LONGEST_WORDS = 512


class LinkTrouble(StrEnum):
    """Why something could not be delivered."""

    AWAY = "away"  # nobody answers, or not now: later
    NOT_ALLOWED = "not_allowed"  # the token is wrong: later, when somebody has seen to it
    REFUSED = "refused"  # this content will never be taken


class LinkProblem(Exception):
    """A delivery failed; the message is for people and says what to do."""

    def __init__(self, trouble: LinkTrouble, message: str) -> None:
        super().__init__(message)
        self.trouble = trouble


class Uplink(Protocol):
    """The way to the daemon."""

    def post(self, path: str, body: Mapping[str, Any], key: str | None = None) -> Mapping[str, Any]:
        """Returns the answer. Raises LinkProblem."""
        ...


@dataclass(frozen=True, slots=True)
class AgentName:
    """Who reports: the node, a word for this start of the agent, and the version."""

    node: NodeName
    instance: str
    version: str


@dataclass(frozen=True, slots=True)
class LinkState:
    """How the deliveries stand."""

    last_delivery_ms: int | None = None
    """When the daemon last took something in, by this node's clock."""
    skew_ms: int | None = None
    """How far this node's clock is ahead of the daemon's; None before the first answer."""
    pool: str | None = None
    """The node's pool, as the daemon knows it."""
    delivered: int = 0
    refused: int = 0
    """Facts that the daemon left out, and batches that it will never take."""
    trouble: str | None = None
    """What is wrong, in words; None while deliveries work."""


class Reporter:
    """One node's agent. Two threads at most; see the module."""

    def __init__(
        self, name: AgentName, sampler: Sampler, spool: Spool, clock: Clock, watch: HolderWatch | None = None
    ) -> None:
        self._name = name
        self._sampler = sampler
        self._spool = spool
        self._clock = clock
        self._watch = watch
        self._lock = threading.Lock()
        self._holdings: dict[tuple[str, AllocationId], Holding] = {}
        self._xids: dict[tuple[str | None, int], int] = {}
        self._watch_problems: Sequence[str] = ()
        self._disk_problem: str | None = None
        self._link = LinkState()

    @property
    def link(self) -> LinkState:
        """How the deliveries stand; a value."""
        return self._link

    @property
    def snapshot(self) -> GpuSnapshot:
        """What the sampler read last."""
        return self._sampler.snapshot

    @property
    def spooled(self) -> tuple[int, int, int]:
        """Batches that wait, their bytes, and batches lost since the start."""
        with self._lock:
            return self._spool.batches, self._spool.size_bytes, self._spool.dropped

    # ---- measuring --------------------------------------------------------------------------------------------------

    def measure(self) -> GpuSnapshot:
        """Reads the GPUs, and who holds them. Takes as long as the reader and the witnesses do."""
        snapshot = self._sampler.poll()
        if self._watch is not None:
            self._look_at_holders(self._watch, snapshot)
        return snapshot

    def _look_at_holders(self, watch: HolderWatch, snapshot: GpuSnapshot) -> None:
        held, problems = watch.look(snapshot)
        for problem in problems:
            if problem not in self._watch_problems:
                logger.warning("%s", problem)
        self._watch_problems = problems
        now_ms = self._clock.now_ms()
        with self._lock:
            for each in held:
                known = self._holdings.get((each.device, each.allocation))
                from_ms = now_ms if known is None else known.from_ms
                holding = Holding(each.device, each.allocation, from_ms, now_ms, each.witness)
                self._holdings[each.device, each.allocation] = holding

    def close(self) -> None:
        """Puts what was measured since the last call into the spool."""
        windows = self._sampler.close_windows()
        with self._lock:
            holdings = list(self._holdings.values())
            # Each goes on from where it was last seen; one that is over is not seen again, and is told this once.
            self._holdings = {
                key: replace(each, from_ms=each.to_ms)
                for key, each in self._holdings.items()
                if each.to_ms > each.from_ms
            }
        xids = self._new_xids()
        for document in _batches(list(windows), xids, holdings):
            self._keep(document)

    def _new_xids(self) -> list[XidSeen]:
        found = []
        for count in self._sampler.snapshot.xids:
            new = count.count - self._xids.get((count.uuid, count.xid), 0)
            if new > 0:
                found.append(XidSeen(count.uuid, count.xid, new, count.last_ms))
                self._xids[count.uuid, count.xid] = count.count
        return found

    def _keep(self, document: Mapping[str, Any]) -> None:
        try:
            with self._lock:
                self._spool.add(document)
            self._disk_problem = None
        except OSError as problem:
            self._disk_problem = f"the spool cannot be written ({problem.strerror}): {rows_in(document)} facts are lost"
            logger.error("%s", self._disk_problem)  # noqa: TRY400  # the trace says nothing that the words do not

    # ---- delivering -------------------------------------------------------------------------------------------------

    def report(self, uplink: Uplink) -> None:
        """Sends a heartbeat and what waits, oldest first, up to MOST_BATCHES. Raises LinkProblem when it stops early.

        A batch that the daemon will never take is dropped and counted.
        """
        try:
            self._beat(uplink)
            for _ in range(MOST_BATCHES):
                with self._lock:
                    batch = self._spool.oldest()
                if batch is None:
                    break
                refused = self._send(uplink, batch.key, batch.document)
                with self._lock:
                    self._spool.done(batch.key)
                self._link = replace(
                    self._link,
                    last_delivery_ms=self._clock.now_ms(),
                    delivered=self._link.delivered + 1,
                    refused=self._link.refused + refused,
                )
        except LinkProblem as problem:
            self._link = replace(self._link, trouble=str(problem))
            raise
        self._link = replace(self._link, trouble=None)

    def _beat(self, uplink: Uplink) -> None:
        before_ms = self._clock.now_ms()
        answer = uplink.post(f"/v1/agents/{self._name.node}/heartbeat", self._heartbeat(before_ms))
        after_ms = self._clock.now_ms()
        there_ms, pool = answer.get("daemon_ms"), answer.get("pool")
        # The daemon's clock was read somewhere between the two: its middle errs by half of the way at most.
        skew_ms = (before_ms + after_ms) // 2 - there_ms if isinstance(there_ms, int) else None
        self._link = replace(
            self._link, last_delivery_ms=after_ms, skew_ms=skew_ms, pool=pool if isinstance(pool, str) else None
        )

    def _send(self, uplink: Uplink, key: str, document: Mapping[str, Any]) -> int:
        """Returns how many facts of a batch were left out."""
        try:
            answer = uplink.post(f"/v1/agents/{self._name.node}/evidence", document, key)
        except LinkProblem as problem:
            if problem.trouble is not LinkTrouble.REFUSED:
                raise
            logger.error("the daemon will never take batch %s, which is dropped: %s", key, problem)  # noqa: TRY400
            return rows_in(document)
        refused = answer.get("refused")
        if refused:
            logger.warning("the daemon left out %s facts of batch %s: %s", refused, key, answer.get("reasons"))
        return refused if isinstance(refused, int) else 0

    def _heartbeat(self, now_ms: int) -> dict[str, Any]:
        snapshot = self._sampler.snapshot
        own = [self._disk_problem, *self._watch_problems]
        machine = [problem.message for problem in snapshot.problems if problem.is_machine_wide]
        problems = [shown(each, _LONGEST_WORDS) for each in (*machine, *own) if each]
        return {
            "instance": self._name.instance,
            "version": self._name.version,
            "collector": snapshot.collector,
            "driver_version": snapshot.driver_version,
            "now_ms": now_ms,
            "problems": problems[:MOST_PROBLEMS],
            "devices": [
                {
                    "uuid": each.identity.uuid,
                    "gpu_class": shown(each.identity.gpu_class, LONGEST_NAME),
                    "position": each.position,
                    "memory_bytes": each.identity.memory_bytes,
                    "health": each.health.health.value,
                    "code": each.health.code,
                    "reason": None if each.health.reason is None else shown(each.health.reason, _LONGEST_WORDS),
                }
                for each in snapshot.devices[:MOST_DEVICES]
            ],
        }


def _batches(windows: list[SampleWindow], xids: list[XidSeen], holdings: list[Holding]) -> Iterator[dict[str, Any]]:
    """Yields documents of at most MOST_ROWS of each kind; none when there is nothing to tell."""
    longest = max(len(windows), len(xids), len(holdings))
    for start in range(0, longest, MOST_ROWS):
        part = slice(start, start + MOST_ROWS)
        yield evidence_document(windows[part], xids[part], holdings[part])
