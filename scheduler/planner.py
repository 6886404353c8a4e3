"""The thread that owns the state: takes in events, answers questions, plans, and brings its plans to the desk.

It shares no lock with queries or submissions. Between two ticks it answers questions about the state (`ask`); it plans
when something changed or a begin time came, and never again before its last plan is committed and taken in.
"""

import contextlib
import gc
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from scheduler.clock import Clock
from scheduler.core.cycle import plan
from scheduler.core.decided import decisions
from scheduler.core.events import (
    AllocationCheckpointed,
    AllocationEnded,
    AllocationMade,
    AllocationStarted,
    AllocationStopping,
    ClaimMade,
    Event,
    HeadroomChanged,
    HoldPriced,
    JobChanged,
    JobEnded,
    JobHeld,
    NodeChanged,
    NodeRemoved,
    PreemptionWeighed,
    ReservationsPlanned,
)
from scheduler.core.fragmentation import pressure
from scheduler.core.lifecycle import ENDS
from scheduler.core.model import GPU_UNITS, Allocation, Booking, Device, GpuClass, NodeName, PoolName, tenant_of
from scheduler.core.plan import Plan
from scheduler.core.policy import Policy
from scheduler.core.state import ClusterState
from scheduler.core.stretch import Claim
from scheduler.desk import Desk
from scheduler.executor import StartOrder
from scheduler.forecasts import SHARE, SURVEY_SECONDS, Forecasts
from scheduler.observer import Observer, PreemptionReason
from scheduler.recorder import Recorder
from scheduler.refusal import RefusalCode, Refused
from scheduler.store.allocations import ApplyPlan
from scheduler.store.database import StoreError

T = TypeVar("T")
logger = logging.getLogger(__name__)

_TELLS_NOTHING_NEW = (
    AllocationMade | AllocationStarted | AllocationStopping | AllocationCheckpointed | ClaimMade | HoldPriced
)
"""Events that can let nothing start that the last plan left waiting."""
LEAST_IDLE_SECONDS = 0.5
"""Before a survey that is due, so that a clock that stands still makes no idle planner spin."""
REFUSED_SECONDS = 1.0
"""Between plans of which the store took nothing, from MOST_REFUSED in a row on: a state that contradicts the store must
not keep both at work without rest."""
MOST_REFUSED = 3
IDLE_SECONDS = 5.0
"""A tick at least this often, so that a stalled planner shows in its metrics."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A size of node that exists, drained and failed ones included, and how many there are."""

    gpu_class: GpuClass
    pool: PoolName
    gpus: int
    cpu_millicores: int
    memory_bytes: int
    nodes: int
    labels: "FrozenLabels"
    names: frozenset[NodeName] = frozenset()
    device_units: int = GPU_UNITS
    """Capacity units of each device: fewer than a GPU's for MIG instances and slices. 0: its devices differ."""
    pressure: int = 0
    """How much recent jobs ask for the class: millionths of a unit asked a unit that there is."""


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """Keeps the cyclic garbage collector from running inside a plan.

    A plan makes some ten thousand values and few cycles; a collection that falls into it looks at all of them, which
    doubled the slowest ticks (10,000 GPUs, 100,000 pending).
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class FrozenLabels(dict[str, str]):
    """Labels as a key: equal by content and hashable; nobody changes them after they are made."""

    def __hash__(self) -> int:  # type: ignore[override] # dict sets it to None
        return hash(frozenset(self.items()))


@dataclass(frozen=True, slots=True)
class _Question:
    put: Callable[[ClusterState, Plan], Any]
    future: Future[Any]


class Planner:
    """Owns a ClusterState from start to stop."""

    def __init__(
        self,
        state: ClusterState,
        policy: Policy,
        clock: Clock,
        desk: Desk,
        launch: Callable[[Sequence[StartOrder]], None],
        observer: Observer,
    ) -> None:
        self._state = state
        self.recorder: Recorder | None = None
        """Who writes down what is planned; set before the start."""
        self._policy = policy
        self._clock = clock
        self._desk = desk
        self._launch = launch
        self._observer = observer
        self._inbox: queue.Queue[Sequence[Event] | _Question | None] = queue.Queue()
        self._plan = Plan(0, clock.now_ms())
        self._thread = threading.Thread(target=self._run, name="planner", daemon=True)
        self._is_broken: Exception | None = None
        self._refused = 0
        """Plans in a row of which the store took nothing."""
        self.offers: tuple[Offer, ...] = offers_of(state)
        self._mix_version = state.mix.version
        self.forecasts = Forecasts(observer)
        self._survey_after_ms = clock.now_ms() + round(1000 * SURVEY_SECONDS)
        self.last_tick_ms = clock.now_ms()

    def start(self) -> None:
        """Begins to plan."""
        self._thread.start()

    def stop(self) -> None:
        """Ends after the tick in progress."""
        self._inbox.put(None)
        self._thread.join()

    @property
    def problem(self) -> str | None:
        """What broke the planner, in words; None while it works."""
        return None if self._is_broken is None else f"the planner stopped: {self._is_broken!r}; restart the daemon"

    def take_in(self, happened: Sequence[Event]) -> None:
        """Queues durable events, in commit order."""
        self._inbox.put(happened)

    def ask(self, question: Callable[[ClusterState, Plan], T]) -> Future[T]:
        """Runs a read-only question between two ticks, after everything committed so far."""
        future: Future[T] = Future()
        if self._is_broken is not None:
            future.set_exception(Refused(RefusalCode.UNAVAILABLE, self.problem or ""))
        else:
            self._inbox.put(_Question(question, future))
        return future

    def _run(self) -> None:
        try:
            self._tick()
            while self._receive():
                self._tick()
                self._survey()
        except Exception as problem:
            # An event that cannot have happened, or a planner that contradicts itself: going on would decide on a
            # wrong state. The store is right by construction; a restart rebuilds the state from it.
            logger.exception("the planner stopped")
            self._is_broken = problem
            self._turn_questions_away()

    def _receive(self) -> bool:
        """Takes in all that has queued, waiting for the first if there is nothing; False when told to stop."""
        # Fixed now: questions that come every second must not put an idle tick off for ever.
        until = time.monotonic() + self._idle_seconds()
        try:
            item = self._inbox.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            return True
        needs_tick = False
        while True:
            if item is None:
                return False
            if isinstance(item, _Question):
                self._answer(item)
            else:
                needs_tick |= self._absorb(item)
            try:
                item = self._inbox.get_nowait()
            except queue.Empty:
                if needs_tick:
                    return True
                try:
                    item = self._inbox.get(timeout=max(0.0, until - time.monotonic()))
                except queue.Empty:
                    return True

    def _idle_seconds(self) -> float:
        if self._refused >= MOST_REFUSED:
            return REFUSED_SECONDS
        now_ms, wake_at_ms, idle_seconds = self._clock.now_ms(), self._plan.wake_at_ms, IDLE_SECONDS
        if self._state.waiting.of_shape:
            # A survey looks at what waits even where nothing happens, or short waits were never foretold.
            idle_seconds = min(idle_seconds, max(LEAST_IDLE_SECONDS, (self._survey_after_ms - now_ms) / 1000))
        if wake_at_ms is None:
            return idle_seconds
        return min(idle_seconds, max(0, wake_at_ms - now_ms) / 1000)

    def _absorb(self, happened: Sequence[Event]) -> bool:
        """Takes events into the state; True when they can change what a plan would say. No events mean: plan again."""
        nodes_changed = False
        needs_tick = not happened
        if self.recorder is not None:
            self.recorder.took_in(happened)
        for event in happened:
            if isinstance(event, JobEnded):
                self._observer.job_finished(tenant_of(self._state.jobs[event.job].account), event.state)
            needs_tick |= self._may_start_more(event)
            self._state.apply(event)
            if isinstance(event, JobChanged | JobHeld | JobEnded):
                self.forecasts.forget(event.job.id if isinstance(event, JobChanged) else event.job)
            if isinstance(event, AllocationMade) and event.allocation.surplus_of is None:
                self._report_start(event.allocation)
            elif isinstance(event, AllocationEnded) and event.job.state in ENDS:
                self._observer.job_finished(tenant_of(event.job.account), event.job.state)
            nodes_changed |= isinstance(event, NodeChanged | NodeRemoved)
            if isinstance(event, ClaimMade):
                self._report_claim(event.claim)
        if nodes_changed or self._state.mix.version != self._mix_version:
            self._mix_version = self._state.mix.version
            self.offers = offers_of(self._state)
        return needs_tick

    def _may_start_more(self, event: Event) -> bool:
        """Tells whether an event, not yet taken in, can let something start that the last plan left waiting."""
        if isinstance(event, HeadroomChanged) and event.left_micros is not None:
            before = self._state.headroom.left.get(event.account)
            return before is None or event.left_micros > before
        return not isinstance(event, _TELLS_NOTHING_NEW)

    def _report_start(self, allocation: Allocation) -> None:
        job = self._state.jobs[allocation.job]
        pool = self._state.node(allocation.grants[0].node).pool
        gpus = -(-allocation.total_units // GPU_UNITS)
        measured = self.forecasts.started(job.id, pool, allocation.decided_ms)
        if measured is not None and self.recorder is not None:
            self.recorder.measured(measured)
        waited_seconds = (allocation.decided_ms - job.submitted_ms) / 1000
        self._observer.job_started(pool, tenant_of(allocation.account), gpus, waited_seconds)

    def _report_claim(self, claim: Claim) -> None:
        for victim in claim.victims:
            gang = self._state.allocations.get(victim)
            if gang is not None:
                reason = preemption_word(claim, gang)
                self._observer.jobs_preempted(tenant_of(gang.account), tenant_of(claim.account), reason)

    def _answer(self, question: _Question) -> None:
        try:
            question.future.set_result(question.put(self._state, self._plan))
        except Exception as problem:  # noqa: BLE001 -- the asker gets it; the planner goes on
            question.future.set_exception(problem)

    def _tick(self) -> None:
        """Plans and commits until nothing more can start now."""
        while True:
            began = time.perf_counter()
            with collector_paused():
                made = plan(self._state, self._policy, self._clock.now_ms(), self._plan.decision + 1)
            self._observer.cycle(time.perf_counter() - began, made)
            if self.recorder is not None:
                self.recorder.ticked(made, () if made.is_idle else decisions(self._state, made))
            self._plan = made
            self._state.apply(ReservationsPlanned(made.now_ms, made.reservations, not made.is_partial))
            self.last_tick_ms = made.now_ms
            self._state.apply(PreemptionWeighed(made.now_ms, made.weighed))
            if made.is_idle:
                self._refused = 0
                return
            if not self._bring(made):
                return
            if not made.is_partial or self._refused >= MOST_REFUSED:
                return

    def _survey(self) -> None:
        """Estimates the starts of some jobs that wait, where there is time for it."""
        if self._clock.now_ms() < self._survey_after_ms or not self._inbox.empty():
            return
        began = time.thread_time()  # its own work: a busy machine makes no survey rarer
        self.forecasts.survey(self._state, self._policy, self._plan.now_ms)
        pause_seconds = max(SURVEY_SECONDS, SHARE * (time.thread_time() - began))
        self._survey_after_ms = self._clock.now_ms() + round(1000 * pause_seconds)

    def _bring(self, made: Plan) -> bool:
        try:
            applied = self._desk.carry_out(ApplyPlan(made), is_internal=True).result()
        except (StoreError, Refused) as problem:
            # The desk closes, or ends this term of leadership because the store failed; the next term plans anew.
            logger.warning("plan %d was not committed: %s", made.decision, problem, extra={"decision": made.decision})
            return False
        self._launch(applied.started)
        has_effect = bool(applied.started or applied.stopped or applied.promoted or made.lapses)
        self._refused = 0 if has_effect or not applied.rejected else self._refused + 1
        if self._refused >= MOST_REFUSED:
            job, why = applied.rejected[0]
            ids = {"decision": made.decision, "job": job}
            logger.warning("a plan was refused, as the last %d: %s", self._refused, why, extra=ids)
        elif applied.rejected:
            ids = {"decision": made.decision}
            logger.info("%d starts were overtaken by events", len(applied.rejected), extra=ids)
            self._inbox.put(())
        self._drain_events()
        return True

    def _drain_events(self) -> None:
        """Takes in what the commit of the plan has put into the inbox; questions wait for the end of the tick."""
        later: list[_Question | None] = []
        needs_tick = False
        while True:
            try:
                item = self._inbox.get_nowait()
            except queue.Empty:
                break
            if item is None or isinstance(item, _Question):
                later.append(item)
            else:
                needs_tick |= self._absorb(item)
        if needs_tick:
            self._inbox.put(())
        for item in later:
            self._inbox.put(item)

    def _turn_questions_away(self) -> None:
        while True:
            try:
                item = self._inbox.get_nowait()
            except queue.Empty:
                return
            if isinstance(item, _Question):
                item.future.set_exception(Refused(RefusalCode.UNAVAILABLE, self.problem or ""))


def offers_of(state: ClusterState) -> tuple[Offer, ...]:
    """Returns the distinct sizes of the nodes there are, in a fixed order."""
    names: dict[Offer, list[NodeName]] = {}
    for name, room in state.capacity.rooms.items():
        node = room.node
        key = Offer(
            node.gpu_class,
            node.pool,
            len(room.devices),
            node.cpu_millicores,
            node.memory_bytes,
            1,
            FrozenLabels(node.labels),
            device_units=_units_of(room.devices),
        )
        names.setdefault(key, []).append(name)
    asked = pressure(state.capacity, state.mix)
    found = [
        replace(key, nodes=len(same), names=frozenset(same), pressure=asked[key.gpu_class])
        for key, same in names.items()
    ]
    return tuple(
        sorted(found, key=lambda offer: (offer.gpu_class, offer.pool, offer.gpus, sorted(offer.labels.items())))
    )


def _units_of(devices: Sequence[Device]) -> int:
    sizes = {device.units for device in devices}
    return sizes.pop() if len(sizes) == 1 else 0


def preemption_word(claim: Claim, victim: Allocation) -> PreemptionReason:
    """Returns why a gang was stopped for a claim, as a metric label."""
    if claim.booking is Booking.GUARANTEED and victim.booking is not Booking.GUARANTEED:
        return "guarantee"
    if victim.booking is Booking.SPOT:
        return "spot"
    return "priority" if victim.account == claim.account else "fair_share"
