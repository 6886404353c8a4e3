"""The thread that speaks with the executor: carries out starts and stops, and brings what it observes to the desk.

An end is acknowledged to the executor only after it is committed, so that a crash between the two reports it again. An
executor that is out of order is asked again later; nothing about an allocation follows from its silence.
"""

import heapq
import logging
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import count

from scheduler.clock import Clock
from scheduler.core.model import AllocationId, DeviceId, EndReason, NodeName
from scheduler.core.occupancy import Evidence
from scheduler.desk import Desk
from scheduler.executor import (
    Ended,
    Executor,
    ExecutorError,
    NodeInventory,
    Observation,
    Shrunk,
    StartOrder,
    StartRefused,
    start_all,
)
from scheduler.refusal import Refused
from scheduler.store.database import StoreError
from scheduler.store.inventory import SyncInventory
from scheduler.store.observations import RecordObservations

logger = logging.getLogger(__name__)

LONGEST_SLEEP_SECONDS = 1.0
"""Between two looks at the executor when nothing rings: bounds how late a lost doorbell is made good."""
AT_ONCE = 64
"""Orders carried out before the executor is observed again."""
RETRY_FIRST_SECONDS = 0.5
RETRY_MOST_SECONDS = 30.0
"""Back-off of an order that the executor could not take."""


@dataclass(frozen=True, slots=True)
class _Launch:
    order: StartOrder


@dataclass(frozen=True, slots=True)
class _Stop:
    allocation: AllocationId
    reason: EndReason


@dataclass(frozen=True, slots=True)
class _Shrink:
    """Ends the surplus nodes of a gang, which goes on without them."""

    allocation: AllocationId
    reason: EndReason


@dataclass(frozen=True, slots=True)
class _Extend:
    allocation: AllocationId
    time_limit_ms: int


@dataclass(frozen=True, slots=True)
class _Refresh:
    """Read the inventory now."""


@dataclass(frozen=True, slots=True)
class _Over:
    """The allocation's end is recorded. Queued behind every stop of it that was committed before."""

    allocation: AllocationId


_Action = _Launch | _Stop | _Shrink | _Extend | _Refresh | _Over


@dataclass(order=True, slots=True)
class _Again:
    due: float
    number: int
    action: _Action = field(compare=False)
    delay_seconds: float = field(compare=False)


class Runner:
    """Owns the executor from start to stop."""

    def __init__(self, executor: Executor, clock: Clock, desk: Desk, live: Sequence[StartOrder]) -> None:
        self._executor = executor
        self._clock = clock
        self._desk = desk
        self._actions: queue.SimpleQueue[_Action] = queue.SimpleQueue()
        self._again: list[_Again] = []
        self._numbers = count()
        self._live = {order.allocation.id: order for order in live}
        self._stop_at_start: dict[AllocationId, EndReason] = {}
        self._shrink_at_start: dict[AllocationId, EndReason] = {}
        self._limit_at_start: dict[AllocationId, int] = {}
        self._unrecorded: list[Observation] = []
        self._inventory: tuple[NodeInventory, ...] | None = None
        """As last stored."""
        self._offered: frozenset[tuple[NodeName, DeviceId]] = frozenset()
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="runner", daemon=True)
        self.problem: str | None = None
        """What is wrong with the executor, in words; None while it answers."""
        self.last_heard_ms = clock.now_ms()

    def recover(self) -> None:
        """Takes up what ran before, then reads the inventory; called once, before `start`. Raises ExecutorError."""
        orders = tuple(self._live.values())
        self._executor.recover(orders)
        for order in orders:
            # It may have been given another limit just before the daemon died, when nobody had told the executor yet.
            self._carry_out(_Extend(order.allocation.id, order.allocation.time_limit_ms))
            if order.allocation.stop_reason is not None:
                self._carry_out(_Stop(order.allocation.id, order.allocation.stop_reason))
            elif order.is_shrinking:
                self._carry_out(_Shrink(order.allocation.id, EndReason.PREEMPTED))
        self._actions.put(_Refresh())

    def start(self) -> None:
        """Begins to carry out and to observe."""
        self._thread.start()

    def stop(self) -> None:
        """Ends after the action in progress. Jobs keep running."""
        self._is_stopping = True
        self._executor.wake()
        self._thread.join()

    def launch(self, orders: Sequence[StartOrder]) -> None:
        """Queues committed allocations to be started."""
        for order in orders:
            self._actions.put(_Launch(order))
        if orders:
            self._executor.wake()

    def end(self, allocation: AllocationId, reason: EndReason, gang: AllocationId | None = None) -> None:
        """Queues a committed stop; of surplus nodes where it is their `gang` that goes on without them."""
        self._actions.put(_Stop(allocation, reason) if gang is None else _Shrink(gang, reason))
        self._executor.wake()

    def extend(self, allocation: AllocationId, time_limit_ms: int) -> None:
        """Queues another time limit, which is committed."""
        self._actions.put(_Extend(allocation, time_limit_ms))
        self._executor.wake()

    def refresh_inventory(self) -> None:
        """Queues a look at the executor's nodes."""
        self._actions.put(_Refresh())
        self._executor.wake()

    def _run(self) -> None:
        while not self._is_stopping:
            try:
                self._step()
            except Exception:
                # The loop's edge: one bad order or report must not leave every other job unobserved.
                logger.exception("a step of the runner failed")
                time.sleep(LONGEST_SLEEP_SECONDS)

    def _step(self) -> None:
        self._take_actions()
        try:
            self._unrecorded += self._executor.observe()
        except ExecutorError as problem:
            self._say(problem)
        else:
            self._say(None)
        if self._unrecorded:
            self._record()
        if self._actions.empty() and not self._is_stopping:
            self._executor.wait_for_news(self._sleep_seconds())

    def _take_actions(self) -> None:
        """Carries out what is due and queued; looks up from it now and then, so that ends are not left waiting.

        An executor that could not take one order is observed before it is asked for the next: where each takes it
        seconds to fail, hundreds of them would hide what happens meanwhile.
        """
        if self._take_due() and not self._is_stopping:
            self._take_queued()

    def _take_due(self) -> bool:
        """Tries again what failed; False when something failed again."""
        now, launches, is_in_order = time.monotonic(), list[tuple[StartOrder, float]](), True
        while is_in_order and self._again and self._again[0].due <= now and len(launches) < AT_ONCE:
            again = heapq.heappop(self._again)
            if isinstance(again.action, _Launch):
                launches.append((again.action.order, again.delay_seconds))
            elif isinstance(again.action, _Stop | _Shrink | _Extend) and again.action.allocation not in self._live:
                continue  # what could not be stopped or extended had begun; it has ended by itself since
            else:
                is_in_order = self._carry_out(again.action, again.delay_seconds)
        return self._start_all(launches) and is_in_order

    def _take_queued(self) -> None:
        launches: dict[AllocationId, tuple[StartOrder, float]] = {}
        for _ in range(AT_ONCE):
            try:
                action = self._actions.get_nowait()
            except queue.Empty:
                break
            if isinstance(action, _Launch):
                launches[action.order.allocation.id] = (action.order, 0.0)
                continue
            if isinstance(action, _Refresh) or action.allocation in launches:
                # What is to be stopped must have been started, and what is starting holds its devices.
                self._start_all(tuple(launches.values()))
                launches.clear()
            if not self._carry_out(action):
                break
        self._start_all(tuple(launches.values()))

    def _carry_out(self, action: _Stop | _Shrink | _Extend | _Refresh | _Over, delay_seconds: float = 0.0) -> bool:
        """Returns False when the executor could not take it: it is then tried again later."""
        try:
            if isinstance(action, _Stop):
                self._stop(action)
            elif isinstance(action, _Shrink):
                self._shrink(action)
            elif isinstance(action, _Extend):
                self._extend(action)
            elif isinstance(action, _Over):
                self._stop_at_start.pop(action.allocation, None)
                self._limit_at_start.pop(action.allocation, None)
                self._shrink_at_start.pop(action.allocation, None)
            else:
                self._sync_inventory()
        except ExecutorError as problem:
            self._put_off(action, delay_seconds, problem)
            return False
        return True

    def _put_off(self, action: _Action, delay_seconds: float, problem: ExecutorError) -> None:
        self._say(problem)
        later = min(RETRY_MOST_SECONDS, max(RETRY_FIRST_SECONDS, delay_seconds * 2))
        heapq.heappush(self._again, _Again(time.monotonic() + later, next(self._numbers), action, later))

    def _start_all(self, launches: Sequence[tuple[StartOrder, float]]) -> bool:
        """Starts allocations, each of which was last put off for so many seconds; False when one must be again."""
        failed = start_all(self._executor, [order for order, _ in launches]) if launches else {}
        is_in_order = True
        for order, delay_seconds in launches:
            allocation, problem = order.allocation.id, failed.get(order.allocation.id)
            if problem is None:
                self._has_started(order)
            elif isinstance(problem, StartRefused):
                self._stop_at_start.pop(allocation, None)
                self._shrink_at_start.pop(allocation, None)
                self._limit_at_start.pop(allocation, None)
                self._unrecorded.append(
                    Ended(allocation, self._clock.now_ms(), None, EndReason.LAUNCH_FAILED, detail=str(problem))
                )
            else:
                self._put_off(_Launch(order), delay_seconds, problem)
                is_in_order = False
        return is_in_order

    def _has_started(self, order: StartOrder) -> None:
        self._live[order.allocation.id] = order
        limit_ms = self._limit_at_start.pop(order.allocation.id, None)
        if limit_ms is not None:
            self._carry_out(_Extend(order.allocation.id, limit_ms))
        reason = self._stop_at_start.pop(order.allocation.id, None)
        if reason is not None:
            # As an action of its own, so that it is tried again when the executor cannot take it now.
            self._carry_out(_Stop(order.allocation.id, reason))
        reason = self._shrink_at_start.pop(order.allocation.id, None)
        if reason is not None:
            self._carry_out(_Shrink(order.allocation.id, reason))

    def _shrink(self, action: _Shrink) -> None:
        order = self._live.get(action.allocation)
        if order is None:
            self._shrink_at_start[action.allocation] = action.reason
        else:
            assert order.least_nodes is not None, "only elastic gangs have surplus nodes"
            grace_seconds = order.spec.grace_seconds
            self._executor.shrink(action.allocation, order.least_nodes, grace_seconds, action.reason)

    def _stop(self, action: _Stop) -> None:
        order = self._live.get(action.allocation)
        if order is None:
            # Its start is on its way here through the planner's thread, or waits for the executor to be in order.
            self._stop_at_start[action.allocation] = action.reason
        else:
            self._executor.stop(action.allocation, order.spec.grace_seconds, action.reason)

    def _extend(self, action: _Extend) -> None:
        if action.allocation in self._live:
            self._executor.extend(action.allocation, action.time_limit_ms)
        else:
            # As with a stop: its start is on its way here.
            self._limit_at_start[action.allocation] = action.time_limit_ms

    def _sync_inventory(self) -> None:
        found = tuple(self._executor.inventory())
        if found == self._inventory:
            # At 10,000 GPUs the store takes 0.3 s to find that nothing changed, and nothing else is written meanwhile.
            return
        try:
            self._desk.carry_out(SyncInventory(found, Evidence.CONTROLLER), is_internal=True).result()
        except (StoreError, Refused) as problem:
            logger.warning("the inventory was not stored: %s", problem)
            return
        self._inventory = found
        self._offered = frozenset((each.node.name, device.id) for each in found for device in each.devices)

    def _record(self) -> None:
        """Commits what was observed; what cannot be committed now is kept for the next step."""
        observed = tuple(dict.fromkeys(self._unrecorded))
        try:
            self._desk.carry_out(RecordObservations(observed), is_internal=True).result()
        except (StoreError, Refused) as problem:
            logger.warning("%d observations were not stored: %s", len(observed), problem)
            time.sleep(RETRY_FIRST_SECONDS)
            return
        self._unrecorded.clear()
        for observation in observed:
            if isinstance(observation, Shrunk):
                self._has_shrunk(observation)
            if not isinstance(observation, Ended):
                continue
            self._look_for_gone(self._live.pop(observation.allocation, None))
            self._actions.put(_Over(observation.allocation))
            self._executor.acknowledge(observation.allocation)

    def _has_shrunk(self, shrunk: Shrunk) -> None:
        order = self._live.get(shrunk.allocation)
        if order is not None:
            self._look_for_gone(order)
            left = replace(order.allocation, grants=order.allocation.grants[: shrunk.nodes])
            self._live[shrunk.allocation] = replace(order, allocation=left, surplus=None, is_shrinking=False)
        self._executor.acknowledge_shrunk(shrunk.allocation)

    def _look_for_gone(self, over: StartOrder | None) -> None:
        """Has the inventory stored again when a job held a device that is gone: the store kept it for the job only."""
        grants = () if over is None else over.allocation.grants
        if any((grant.node, device) not in self._offered for grant in grants for device in grant.devices):
            self._inventory = None
            self._actions.put(_Refresh())

    def _sleep_seconds(self) -> float:
        if not self._again:
            return LONGEST_SLEEP_SECONDS
        return min(LONGEST_SLEEP_SECONDS, max(0.0, self._again[0].due - time.monotonic()))

    def _say(self, problem: ExecutorError | None) -> None:
        if problem is not None:
            if self.problem is None:
                logger.warning("the executor is out of order: %s", problem)
            self.problem = f"the executor is out of order: {problem}"
        else:
            self.problem = None
            self.last_heard_ms = self._clock.now_ms()
