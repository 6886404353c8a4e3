"""The flight recorder: writes down what each tick decided and what it was given, on a thread of its own.

The planner hands over values that do not change any more and goes on; what they mean is worked out here, and stored in
batches through the desk, some seconds later. Two records come of it:

- the *decision log*, a line for each start, stop, claim, lapse and promotion, and one whenever the reasons change for
  which a group or a shape of jobs waits: never one a tick;
- the *tape*, a state now and then, and every event and tick after it, so that a tick can be planned once more.

A recorder that falls behind, or that the store refuses, loses lines and says so; it never holds up a tick.
"""

import hashlib
import json
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from scheduler.admission import Admission
from scheduler.clock import Clock
from scheduler.core.calibration import Measured
from scheduler.core.decided import Decision, Kind, waits
from scheduler.core.events import AllocationMade, Event
from scheduler.core.model import AllocationId, JobId, tenant_of
from scheduler.core.plan import Plan
from scheduler.core.policy import Policy
from scheduler.core.reasons import Reason
from scheduler.core.stretch import Reservation
from scheduler.desk import Desk
from scheduler.recording import Entry, Ticked, digest_of, pack_entries, pack_state, subject_of
from scheduler.refusal import Refused
from scheduler.snapshot import Snapshot
from scheduler.store.columns import JsonObject
from scheduler.store.database import Database, StoreError
from scheduler.store.decisions import ENTRIES, STATE, Logged, SaveDecisions, TapePiece, estimate_subject
from scheduler.store.read import StateParts, load_state_parts
from scheduler.store.tables import LEADER_LEASE

logger = logging.getLogger(__name__)

FLUSH_SECONDS = 3.0
"""How late a decision is in the log at most, on a machine with time."""
MOST_BEHIND = 20_000
"""Ticks and batches of events that wait for this thread; beyond them they are left out: some hundred megabytes."""
MOST_LINES = 5000
"""Lines in one transaction."""
STATE_SECONDS = 3600.0
"""Between two states of the tape: what a replay starts from. 100,000 jobs are some 4 MB, written in the background."""
_POLICY_CHARACTERS = 12


@dataclass(frozen=True, slots=True)
class _State:
    """The state after `version` events of the term: parts that were read, or a snapshot that is still to be read."""

    version: int
    at_ms: int
    read: Callable[[], tuple[StateParts, tuple[Event, ...]]]


@dataclass(frozen=True, slots=True)
class _Tick:
    plan: Plan
    decisions: tuple[Decision, ...]


class Recorder:
    """Records one term of leadership. `took_in` and `ticked` are the planner's, `delivered` the desk's; none waits."""

    def __init__(self, database: Database, admission: Admission, policy: Policy, clock: Clock, epoch: int) -> None:
        self._database = database
        self._admission = admission
        self._policy = policy
        self._clock = clock
        self._epoch = epoch
        self._policy_name = policy_name(policy)
        self._inbox: queue.SimpleQueue[Sequence[Event] | _Tick | _State | Measured | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._desk: Desk | None = None
        self._delivered = 0
        self._state_due = time.monotonic() + STATE_SECONDS
        # What follows belongs to the recorder's own thread.
        self._version = 0
        self._states: list[_State] = []
        self._waits: dict[str, tuple[str, ...]] = {}
        self._promises: tuple[Reservation, ...] | None = None
        self._starting: dict[JobId, Logged] = {}
        self._lines: list[Logged] = []
        self._entries: list[Entry] = []
        self._pieces: list[TapePiece] = []
        self._last = (0, clock.now_ms())
        self._is_broken = False

    def begin(self, desk: Desk, parts: StateParts, told: tuple[Event, ...]) -> None:
        """Begins to record a term that starts from these parts, told these events besides."""
        self._desk = desk
        self._inbox.put(_State(0, self._clock.now_ms(), lambda: (parts, told)))
        self._thread.start()

    def stop(self) -> None:
        """Stores what was recorded so far, while the desk still takes it, and ends."""
        self._inbox.put(None)
        self._thread.join()

    # ---- what others call: cheap, never waits, never raises ----------------------------------------------------------

    def delivered(self, happened: Sequence[Event]) -> None:
        """Runs on the desk's thread between two commits: the database is now what the planner will know after these."""
        self._delivered += len(happened)
        if time.monotonic() < self._state_due:
            return
        self._state_due = time.monotonic() + STATE_SECONDS
        stack = ExitStack()
        try:
            connection = stack.enter_context(self._database.read())
            connection.execute(sa.select(LEADER_LEASE.c.epoch)).all()  # the first query fixes the snapshot
        except StoreError as problem:
            logger.warning("the tape gets no new state: %s", problem)
            return
        self._inbox.put(_State(self._delivered, self._clock.now_ms(), lambda: self._read(stack, connection)))

    def took_in(self, happened: Sequence[Event]) -> None:
        """The planner's state has these events now."""
        if happened and not self._is_full():
            self._inbox.put(happened)

    def ticked(self, plan: Plan, decided: tuple[Decision, ...]) -> None:
        """A tick was planned, from all that was taken in before."""
        if not self._is_full():
            self._inbox.put(_Tick(plan, decided))

    def measured(self, estimate: Measured) -> None:
        """An estimate came to a start; a later term wants to know what estimates are worth."""
        if not self._is_full():
            self._inbox.put(estimate)

    def _is_full(self) -> bool:
        if self._inbox.qsize() < MOST_BEHIND:
            return False
        if not self._is_broken:
            logger.warning("the decision log fell behind by %d ticks: it has a hole, until the next state", MOST_BEHIND)
        self._is_broken = True
        return True

    # ---- the recorder's own thread -----------------------------------------------------------------------------------

    def _run(self) -> None:
        self._line(Kind.TERM, 0, self._clock.now_ms())
        until = time.monotonic() + FLUSH_SECONDS
        is_over = False
        while not is_over:
            try:
                item = self._inbox.get(timeout=max(0.0, until - time.monotonic()))
                is_over = item is None
                if item is not None:
                    self._take(item)
            except queue.Empty:
                pass
            except Exception:
                # The loop's edge: a log that breaks must not take a scheduler with it.
                logger.exception("the decision log left something out")
                self._is_broken = True
            if is_over or time.monotonic() >= until or len(self._lines) >= MOST_LINES:
                self._flush()
                until = time.monotonic() + FLUSH_SECONDS

    def _take(self, item: "Sequence[Event] | _Tick | _State | Measured") -> None:
        if isinstance(item, _State):
            self._states.append(item)
        elif isinstance(item, Measured):
            line = self._made(Kind.ESTIMATE, *self._last)
            waits: JsonObject = {"foretold_ms": item.foretold_ms, "came_ms": item.came_ms}
            self._lines.append(replace(line, subject=estimate_subject(item.pool), reasons=(waits,)))
        elif isinstance(item, _Tick):
            self._tick(item.plan, item.decisions)
        else:
            self._version += len(item)
            for event in item:
                if isinstance(event, AllocationMade):
                    self._started(event.allocation.job, event.allocation.id)
            self._entries.append(tuple(item))
        if self._states and self._states[0].version <= self._version:
            self._put_state(self._states.pop(0))

    def _put_state(self, state: _State) -> None:
        parts, told = state.read()
        if state.version < self._version:
            return  # events were left out on the way, so nobody knows where this state belongs
        self._close_entries()
        body = pack_state(Snapshot(state.at_ms, self._policy, parts), told)
        self._pieces.append(TapePiece(self._epoch, state.at_ms, STATE, self._last[0], body))
        self._is_broken = False
        self._promises = None
        self._waits.clear()  # said anew from here on: lines from before are forgotten some day

    def _read(self, stack: ExitStack, connection: Connection) -> tuple[StateParts, tuple[Event, ...]]:
        with stack:
            parts = load_state_parts(connection, self._policy.debt_half_life_ms)
            return parts, tuple(self._admission.headroom(connection, self._clock.now_ms()))

    def _tick(self, plan: Plan, decided: tuple[Decision, ...]) -> None:
        for line in self._starting.values():
            self._lines.append(replace(line, words=f"{line.words}: overtaken by events"))
        self._starting.clear()
        self._last = (plan.decision, plan.now_ms)
        for each in decided:
            self._decide(plan, each)
        self._wait(plan)
        promises = None if plan.reservations == self._promises else plan.reservations
        self._promises = plan.reservations
        weighed = tuple(map(str, plan.weighed))
        tick = Ticked(plan.decision, plan.now_ms, digest_of(plan), promises, not plan.is_partial, weighed)
        self._entries.append(tick)

    def _decide(self, plan: Plan, each: Decision) -> None:
        line = self._made(each.kind, plan.decision, plan.now_ms)
        tenant = tenant_of(each.account)
        made = replace(line, job=each.job, allocation=each.allocation, tenant=tenant, words=each.words)
        if each.kind is Kind.START:
            self._starting[each.job] = made
        else:
            self._lines.append(made)

    def _started(self, job: JobId, allocation: AllocationId) -> None:
        line = self._starting.pop(job, None)
        if line is not None:
            self._lines.append(replace(line, allocation=allocation))

    def _wait(self, plan: Plan) -> None:
        """Writes down which reasons are others than before; numbers that move are no other reason."""
        now: dict[str, tuple[str, ...]] = {}
        for waiting, reasons in waits(plan).items():
            subject = subject_of(waiting)
            now[subject] = codes = tuple(reason.code.value for reason in reasons)
            if self._waits.get(subject) != codes:
                self._line(Kind.WAIT, plan.decision, plan.now_ms, subject, reasons)
        for subject in sorted(self._waits.keys() - now.keys()):
            self._line(Kind.WAIT, plan.decision, plan.now_ms, subject)
        self._waits = now

    def _line(
        self, kind: Kind, decision: int, at_ms: int, subject: str | None = None, reasons: Sequence[Reason] = ()
    ) -> None:
        line = self._made(kind, decision, at_ms)
        self._lines.append(replace(line, subject=subject, reasons=tuple(map(reason_json, reasons))))

    def _made(self, kind: Kind, decision: int, at_ms: int) -> Logged:
        return Logged(self._epoch, decision, at_ms, self._version, self._policy_name, kind)

    def _close_entries(self) -> None:
        if self._entries and not self._is_broken:
            decision, at_ms = self._last
            self._pieces.append(TapePiece(self._epoch, at_ms, ENTRIES, decision, pack_entries(self._entries)))
        self._entries = []

    def _flush(self) -> None:
        self._close_entries()
        if not (self._lines or self._pieces):
            return
        lines, pieces = tuple(self._lines), tuple(self._pieces)
        if logger.isEnabledFor(logging.DEBUG):
            for line in lines:
                _log(line)
        self._lines, self._pieces = [], []
        assert self._desk is not None, "recording began"
        try:
            self._desk.carry_out(SaveDecisions(lines, pieces), is_internal=True).result()
        except (Refused, StoreError) as problem:
            self._is_broken = True
            logger.warning("%d lines of the decision log were lost: %s", len(lines), problem)


def _log(line: Logged) -> None:
    if line.job is None:
        return
    ids = {"decision": line.decision, "epoch": line.epoch, "job": line.job, "allocation": line.allocation}
    logger.debug("%s: %s", line.kind.value, line.words, extra={**ids, "tenant": line.tenant})


def policy_name(policy: Policy) -> str:
    """Returns a short name of a policy: equal policies have equal ones."""
    text = json.dumps(asdict(policy), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:_POLICY_CHARACTERS]


def reason_json(reason: Reason) -> JsonObject:
    """Returns a reason with the numbers that it has."""
    values = asdict(reason) | {"code": reason.code.value}
    return {name: value for name, value in values.items() if value is not None}
