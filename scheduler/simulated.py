"""Runs allocations in virtual time: for tests, demonstrations and replay. No process, and no sleep unless asked for.

What is due lies in one heap, so a job costs O(log n) whatever its length; a superseded entry stays there until its time
and is then passed over. All times are exact: they follow from the orders, not from when somebody observed.
"""

import heapq
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from scheduler.clock import Clock
from scheduler.core.model import AllocationId, DeviceHealth, DeviceId, EndReason, NodeName
from scheduler.executor import (
    Checkpointed,
    Ended,
    ExecutorError,
    LaunchSpec,
    LogChunk,
    NodeInventory,
    Observation,
    Shrunk,
    Started,
    StartOrder,
    StartRefused,
)

TERMINATED = 128 + 15  # SIGTERM
KILLED = 128 + 9  # SIGKILL
_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,3})?")
REMEMBERED_LOGS = 10_000
"""Acknowledged allocations whose (empty) logs are still known: bounds the memory of a replay of millions."""


@dataclass(frozen=True, slots=True)
class SimulatedSettings:
    """A job goes on for `obeys_stop_after_seconds` after its stop signal; beyond the grace it is killed."""

    startup_latency_seconds: float = 0.0
    obeys_stop_after_seconds: float = 0.0


@dataclass(slots=True)
class _Virtual:
    """One allocation: when it starts and how it will end unless something comes between."""

    order: StartOrder
    starts_ms: int
    ends_ms: int
    exit_code: int | None
    reason: EndReason | None
    detail: str | None = None
    is_start_told: bool = False
    is_stopped: bool = False
    is_over: bool = False


class SimulatedExecutor:
    """Implements `scheduler.executor.Executor` on the clock that it is given."""

    def __init__(
        self,
        clock: Clock,
        inventory: Callable[[], Sequence[NodeInventory]],
        settings: SimulatedSettings | None = None,
    ) -> None:
        self._clock = clock
        self._inventory = inventory
        self._settings = settings or SimulatedSettings()
        self._runs: dict[AllocationId, _Virtual] = {}
        self._due: list[tuple[int, AllocationId]] = []
        self._ended: dict[AllocationId, Ended] = {}
        self._remembered: dict[AllocationId, int] = {}
        self._saved: list[Checkpointed] = []
        self._shrunk: dict[AllocationId, Shrunk] = {}
        """Gangs that were asked to shrink, with when they have."""
        self._lost_nodes: set[NodeName] = set()
        self._failed_devices: set[DeviceId] = set()
        self._is_silent = False
        self._outage: str | None = None
        self._bell = threading.Event()

    def inventory(self) -> Sequence[NodeInventory]:
        """Returns the injected nodes without the lost ones, and with what failed marked as failed."""
        self._check_outage()
        return [
            replace(
                offered,
                devices=tuple(
                    replace(device, health=DeviceHealth.FAILED, reason="failed by the simulation")
                    if device.id in self._failed_devices
                    else device
                    for device in offered.devices
                ),
            )
            for offered in self._inventory()
            if offered.node.name not in self._lost_nodes
        ]

    def start(self, order: StartOrder) -> None:
        """Starts the allocation now. Raises StartRefused for a job without command, as other executors do."""
        self._check_outage()
        if order.allocation.id in self._runs:
            return
        if not order.spec.argv:
            raise StartRefused("the job has no command")
        self._begin(order, self._clock.now_ms() + round(1000 * self._settings.startup_latency_seconds))

    def stop(self, allocation: AllocationId, grace_seconds: float, reason: EndReason) -> None:
        """Ends it after what it takes to obey, at most after the grace; a second stop can only bring that nearer."""
        self._check_outage()
        run = self._runs.get(allocation)
        now_ms = self._clock.now_ms()
        if run is None or run.is_over or run.ends_ms <= now_ms:
            return
        first_reason = run.reason if run.is_stopped else reason
        if run.starts_ms > now_ms:
            self._end(run, now_ms, None, first_reason)
        else:
            obeys_seconds = self._settings.obeys_stop_after_seconds
            is_killed = obeys_seconds > grace_seconds or grace_seconds <= 0
            ends_ms = now_ms + round(1000 * max(0.0, grace_seconds if is_killed else obeys_seconds))
            if ends_ms < run.ends_ms:
                self._end(run, ends_ms, KILLED if is_killed else TERMINATED, first_reason)
            else:
                run.reason = first_reason  # it ends by itself within the grace, and still because it was asked to
        run.is_stopped = True

    def observe(self) -> Sequence[Observation]:
        """Returns what fell due by now, in order of time, and every end not yet acknowledged."""
        self._check_outage()
        if self._is_silent:
            return []
        now_ms = self._clock.now_ms()
        due = list(self._fall_due(now_ms))
        saved, self._saved = self._saved, []
        shrunk = [each for each in self._shrunk.values() if each.at_ms <= now_ms]
        for each in shrunk:
            self._cut(each)
        return [*due, *saved, *shrunk, *self._ended.values()]

    def _cut(self, shrunk: Shrunk) -> None:
        run = self._runs[shrunk.allocation]
        allocation = run.order.allocation
        run.order = replace(run.order, allocation=replace(allocation, grants=allocation.grants[: shrunk.nodes]))

    def shrink(self, allocation: AllocationId, nodes: int, grace_seconds: float, reason: EndReason) -> None:  # noqa: ARG002
        """Lets the ranks from `nodes` on go after what it takes to obey, at most after the grace."""
        self._check_outage()
        run = self._runs.get(allocation)
        if run is None or run.is_over or allocation in self._shrunk:
            return
        seconds = min(self._settings.obeys_stop_after_seconds, max(0.0, grace_seconds))
        self._shrunk[allocation] = Shrunk(allocation, self._clock.now_ms() + round(1000 * seconds), nodes)
        self._bell.set()

    def acknowledge_shrunk(self, allocation: AllocationId) -> None:
        """Tells no more that the gang has shrunk."""
        self._check_outage()
        self._shrunk.pop(allocation, None)

    def acknowledge(self, allocation: AllocationId) -> None:
        """Forgets the allocation, running or not."""
        self._check_outage()
        run = self._runs.pop(allocation, None)
        self._ended.pop(allocation, None)
        self._shrunk.pop(allocation, None)
        if run is not None:
            self._remembered[allocation] = len(run.order.allocation.grants)
            if len(self._remembered) > REMEMBERED_LOGS:
                del self._remembered[next(iter(self._remembered))]

    def recover(self, live: Sequence[StartOrder]) -> None:
        """Goes on from the orders: what had started runs to the end it would have had, the rest starts now."""
        self._check_outage()
        wanted = {order.allocation.id for order in live}
        for allocation in [known for known in self._runs if known not in wanted]:
            self.acknowledge(allocation)
        for order in live:
            if order.allocation.id in self._runs:
                continue
            started_ms = order.allocation.started_ms
            if started_ms is None:
                self._start_or_refuse(order)
            else:
                self._begin(order, started_ms, is_start_told=True)
            if order.allocation.stop_reason is not None:
                self.stop(order.allocation.id, order.spec.grace_seconds, order.allocation.stop_reason)

    def wait_for_news(self, timeout_seconds: float) -> bool:
        """Sleeps in real time until the clock has reached what is due next, `wake` is called, or the time is over."""
        due = [at_ms for at_ms, _ in self._due[:1]]  # possibly superseded: then the caller looks once for nothing
        due += self._coming_shrinks()
        if due and not self._is_silent:
            due_seconds = max(0.0, (min(due) - self._clock.now_ms()) / 1000)
            if due_seconds <= timeout_seconds:
                self._bell.wait(due_seconds)
                self._bell.clear()
                return True
        is_woken = self._bell.wait(timeout_seconds)
        self._bell.clear()
        return is_woken

    def wake(self) -> None:
        """Ends a `wait_for_news` of another thread, or the next one."""
        self._bell.set()

    def logs(self, allocation: AllocationId, node_rank: int, offset: int, limit_bytes: int) -> LogChunk:  # noqa: ARG002
        """Returns nothing, which is what a virtual job says; complete once it has ended. Raises KeyError if unknown."""
        self._check_outage()
        run = self._runs.get(allocation)
        ranks = self._remembered.get(allocation, 0) if run is None else len(run.order.allocation.grants)
        if node_rank >= ranks:
            raise KeyError(f"no log of rank {node_rank} of allocation {allocation}")
        return LogChunk(b"", offset, is_complete=run is None or run.is_over)

    def close(self) -> None:
        """Holds nothing to let go of."""

    def _coming_shrinks(self) -> list[int]:
        now_ms = self._clock.now_ms()
        return [each.at_ms for each in self._shrunk.values() if each.at_ms > now_ms]

    def next_due_ms(self) -> int | None:
        """Returns when `observe` will next have something new, None if never by itself: what replay jumps to."""
        return min(
            (at_ms for at_ms in (self._next_fall_ms(), *self._coming_shrinks()) if at_ms is not None), default=None
        )

    def _next_fall_ms(self) -> int | None:
        while self._due:
            at_ms, allocation = self._due[0]
            run = self._runs.get(allocation)
            if run is not None and at_ms == _next_of(run):
                return at_ms
            heapq.heappop(self._due)
        return None

    def checkpoint(self, allocation: AllocationId) -> None:
        """Has a running allocation's job say that its work is saved up to now."""
        run = self._runs.get(allocation)
        if run is not None and not run.is_over and run.starts_ms <= self._clock.now_ms():
            self._saved.append(Checkpointed(allocation, self._clock.now_ms()))

    def lose_node(self, name: NodeName) -> None:
        """Takes a node away with all that runs on it; an elastic gang that can do without it loses only its surplus."""
        self._lost_nodes.add(name)
        for run in self._touching(lambda order: any(grant.node == name for grant in order.allocation.grants)):
            allocation, least = run.order.allocation, run.order.least_nodes
            if least is None or any(grant.node == name for grant in allocation.grants[:least]):
                self._end(run, self._clock.now_ms(), None, EndReason.NODE_LOST, f"node {name} was lost")
            else:
                self._shrunk[allocation.id] = Shrunk(allocation.id, self._clock.now_ms(), least, EndReason.NODE_LOST)
                self._bell.set()

    def fail_device(self, device: DeviceId) -> None:
        """Breaks a GPU under whatever holds it."""
        self._failed_devices.add(device)
        for run in self._touching(lambda order: any(device in grant.devices for grant in order.allocation.grants)):
            self._end(run, self._clock.now_ms(), None, EndReason.GPU_ERROR, f"device {device} failed")

    def silence(self) -> None:
        """From now on nothing is heard of what happens, until `speak`; it happens nevertheless."""
        self._is_silent = True

    def speak(self) -> None:
        """Ends the silence: all that happened meanwhile is reported with its own times."""
        self._is_silent = False

    def break_down(self, message: str = "the simulated executor is out of order") -> None:
        """Every call raises ExecutorError, until `repair`."""
        self._outage = message

    def repair(self) -> None:
        """Ends `break_down`."""
        self._outage = None

    def extend(self, allocation: AllocationId, time_limit_ms: int) -> None:
        """Gives a run another limit; what would have been ended by the old one goes on for as long as it wants."""
        self._check_outage()
        run = self._runs.get(allocation)
        if run is None or run.is_over or run.is_stopped or run.ends_ms <= self._clock.now_ms():
            return
        if run.order.allocation.time_limit_ms != time_limit_ms:
            run.order = replace(run.order, allocation=replace(run.order.allocation, time_limit_ms=time_limit_ms))
            run.ends_ms, run.exit_code, run.reason = _course(run.order, run.starts_ms)
            heapq.heappush(self._due, (run.ends_ms if run.is_start_told else run.starts_ms, allocation))

    def _begin(self, order: StartOrder, starts_ms: int, *, is_start_told: bool = False) -> _Virtual:
        allocation = order.allocation
        ends_ms, code, reason = _course(order, starts_ms)
        run = _Virtual(order, starts_ms, ends_ms, code, reason, is_start_told=is_start_told)
        self._runs[allocation.id] = run
        heapq.heappush(self._due, (ends_ms if is_start_told else starts_ms, allocation.id))
        for grant in allocation.grants:
            if grant.node in self._lost_nodes:
                self._end(run, self._clock.now_ms(), None, EndReason.NODE_LOST, f"node {grant.node} was lost")
            elif not self._failed_devices.isdisjoint(grant.devices):
                self._end(run, self._clock.now_ms(), None, EndReason.GPU_ERROR, "a device of the allocation failed")
        return run

    def _start_or_refuse(self, order: StartOrder) -> None:
        try:
            self.start(order)
        except StartRefused as refusal:
            run = self._begin(order, self._clock.now_ms(), is_start_told=True)
            self._end(run, self._clock.now_ms(), None, EndReason.LAUNCH_FAILED, str(refusal))

    def _end(
        self, run: _Virtual, at_ms: int, exit_code: int | None, reason: EndReason | None, detail: str | None = None
    ) -> None:
        run.ends_ms, run.exit_code, run.reason, run.detail = at_ms, exit_code, reason, detail
        heapq.heappush(self._due, (at_ms, run.order.allocation.id))

    def _fall_due(self, now_ms: int) -> Iterator[Started]:
        while (due_ms := self._next_fall_ms()) is not None and due_ms <= now_ms:
            _, allocation = heapq.heappop(self._due)
            run = self._runs[allocation]
            if not run.is_start_told and run.starts_ms <= run.ends_ms and not _never_ran(run):
                run.is_start_told = True
                heapq.heappush(self._due, (run.ends_ms, allocation))
                yield Started(allocation, run.starts_ms)
                continue
            run.is_over = True
            started_ms = None if _never_ran(run) else run.starts_ms
            self._ended[allocation] = Ended(allocation, run.ends_ms, run.exit_code, run.reason, started_ms, run.detail)

    def _touching(self, is_hit: Callable[[StartOrder], bool]) -> list[_Virtual]:
        """Returns what would still run now; linear in what runs, as faults are rare."""
        now_ms = self._clock.now_ms()
        return [run for run in self._runs.values() if not run.is_over and run.ends_ms > now_ms and is_hit(run.order)]

    def _check_outage(self) -> None:
        if self._outage is not None:
            raise ExecutorError(self._outage)


def _course(order: StartOrder, starts_ms: int) -> tuple[int, int, EndReason | None]:
    """Returns when and how a run ends if nobody interferes."""
    wanted_ms, limit_ms = _virtual_ms(order.spec), order.allocation.time_limit_ms
    if wanted_ms > limit_ms:
        return starts_ms + limit_ms, TERMINATED, EndReason.WALLTIME
    code = order.spec.simulated_exit_code
    return starts_ms + wanted_ms, code, EndReason.EXIT_NONZERO if code else None


def _virtual_ms(spec: LaunchSpec) -> int:
    """Returns how long a job would run: what its order says, else what `sleep SECONDS` would take, else no time."""
    if spec.simulated_seconds is not None:
        return round(1000 * spec.simulated_seconds)
    match spec.argv:
        case ("sleep", seconds) if _SECONDS.fullmatch(seconds):
            return round(1000 * float(seconds))
    return 0


def _never_ran(run: _Virtual) -> bool:
    """True for what ended before it began, and for what could not begin."""
    return run.exit_code is None and (run.ends_ms <= run.starts_ms or run.reason is EndReason.LAUNCH_FAILED)


def _next_of(run: _Virtual) -> int | None:
    """The time of the run's next event; heap entries of other times are superseded."""
    if run.is_over:
        return None
    return run.ends_ms if run.is_start_told or _never_ran(run) else run.starts_ms
