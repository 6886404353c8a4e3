"""Runs allocations as processes of this machine, each rank under a supervisor that outlives the daemon.

Everything that must survive is on the disk (`rundir`); this class is a cache of it that can be lost at any instant.
A start happens at most once: the order is durable before its supervisor exists, the lock is held from before the
supervisor is spawned until it is gone, and a claimed order is never started again. Several nodes of a simulated
inventory are several ranks here. Reading order: `start`, `observe`, `_look`, `_settle_vanished`, `recover`.
"""

import contextlib
import logging
import os
import select
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from scheduler import cgroups, entering, launch, rundir
from scheduler.clock import Clock
from scheduler.core.model import AllocationId, EndReason
from scheduler.executor import (
    Checkpointed,
    Ended,
    Entered,
    ExecutorError,
    LogChunk,
    NodeInventory,
    Observation,
    Program,
    Shrunk,
    Started,
    StartOrder,
    StartRefused,
)
from scheduler.joblog import read_log
from scheduler.processes import kill_survivors
from scheduler.spawn import LocalSettings, Workspace

MOST_SPAWNS = 3
"""A supervisor that never got as far as its claim is started again this often; then the machine is at fault."""

SETTLE_SECONDS = 0.05
"""How soon to look again at what is about to change without ringing: killed survivors, a supervisor just spawned."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Run:
    """One allocation as last seen on the disk."""

    allocation: AllocationId
    ranks: int
    decided_ms: int
    kept: int = 0
    """Of an elastic gang that was asked to shrink: the ranks that stay. 0 while it was not."""
    shrunk: Shrunk | None = None
    is_shrunk_told: bool = False
    is_start_told: bool = False
    checkpointed_ms: int = 0
    """When the job last said that its work is saved, as reported; 0 for never."""
    is_orphan: bool = False
    devices: frozenset[str] = frozenset()
    port: int | None = None
    ended: Ended | None = None
    spawns: dict[int, int] = field(default_factory=dict)
    last_seen_ms: dict[int, int] = field(default_factory=dict)


@contextlib.contextmanager
def _executor_errors(doing: str) -> Iterator[None]:
    """What the operating system refuses us is the executor being out of order."""
    try:
        yield
    except OSError as error:
        raise ExecutorError(f"cannot {doing} on this machine: {error}") from error


class DeviceHeld(ExecutorError):
    """A device of the order is still held by what is being killed; it is free in a moment."""


class LocalExecutor:
    """Implements `scheduler.executor.Executor`. One thread at a time, except `wake` and `wait_for_news`."""

    def __init__(
        self,
        base: Path,
        clock: Clock,
        inventory: Callable[[], Sequence[NodeInventory]],
        settings: LocalSettings | None = None,
    ) -> None:
        self._clock = clock
        self._inventory = inventory
        self._settings = settings or LocalSettings()
        self._groups = cgroups.detect(self._settings.cgroup_root)
        self._space = Workspace(base, self._settings, self._groups)
        self._runs: dict[AllocationId, _Run] = {}
        self._unsettled: set[AllocationId] = set()
        self._postponed: dict[AllocationId, StartOrder] = {}
        """Taken up by `recover` while an orphan held their devices: started as soon as it is gone."""
        self._rescan_ms = 0
        self._bell = os.open(self._space.doorbell, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._poller = select.poll()
        self._poller.register(self._bell, select.POLLIN)
        _log.info("job limits: %s", self.limits.why)

    @property
    def limits(self) -> cgroups.Capability:
        """Whether memory and CPU limits are enforced here, and why not."""
        return self._groups.capability

    def inventory(self) -> Sequence[NodeInventory]:
        """Returns what the injected source says."""
        return self._inventory()

    @_executor_errors("start")
    def start(self, order: StartOrder) -> None:
        """Starts one supervisor a rank, durably ordered first. Raises StartRefused, ExecutorError."""
        allocation = order.allocation.id
        if allocation in self._runs:
            return
        if self._space.run(allocation).exists():
            self._adopt(order)
            return
        launch.check(order)
        launch.check_secrets(order)
        launch.user_for(order.spec.run_as)
        self._refuse_held_devices(order)
        run = self._run_of(order)
        run.port = launch.rendezvous_port(allocation, {other.port for other in self._runs.values() if other.port})
        self._space.prepare(order, run.port)
        self._runs[allocation] = run
        self._unsettled.add(allocation)
        for rank in range(run.ranks):
            self._spawn(run, rank)

    @_executor_errors("stop")
    def stop(self, allocation: AllocationId, grace_seconds: float, reason: EndReason) -> None:
        """Leaves the request where each rank's supervisor finds it, even one that has not begun."""
        if (order := self._postponed.pop(allocation, None)) is not None:
            never_begun = self._runs[allocation] = self._run_of(order)
            never_begun.ended = Ended(allocation, self._clock.now_ms(), None, reason)
            return
        run = self._runs.get(allocation)
        if run is None or run.ended is not None:
            return
        self._ask_all(run, grace_seconds, reason, is_peer=False)

    @_executor_errors("shrink")
    def shrink(self, allocation: AllocationId, nodes: int, grace_seconds: float, reason: EndReason) -> None:
        """Asks the ranks from `nodes` on to end; the others go on, and how those end says nothing of the gang."""
        run = self._runs.get(allocation)
        if run is None or run.ended is not None:
            return  # one that is postponed holds nothing yet: it is asked again when it has been recorded as started
        run.kept = nodes
        self._unsettled.add(allocation)
        self._ask(run, range(nodes, run.ranks), grace_seconds, reason, is_peer=True)

    def acknowledge_shrunk(self, allocation: AllocationId) -> None:
        """Tells no more that the gang has shrunk. What its lost ranks left on the disk goes with the gang."""
        run = self._runs.get(allocation)
        if run is not None:
            run.is_shrunk_told, run.shrunk = True, None

    @_executor_errors("extend")
    def extend(self, allocation: AllocationId, time_limit_ms: int) -> None:
        """Leaves the limit where each rank's supervisor finds it, even one that has not begun."""
        order = self._postponed.get(allocation)
        if order is not None:
            given = replace(order.allocation, time_limit_ms=time_limit_ms)
            self._postponed[allocation] = replace(order, allocation=given)
        run = self._runs.get(allocation)
        for rank in range(run.ranks if run is not None and run.ended is None else 0):
            directory = self._space.rank(allocation, rank)
            if rundir.time_limit_ms(directory) != time_limit_ms:
                rundir.ask(directory, time_limit_ms=time_limit_ms)

    def observe(self) -> Sequence[Observation]:
        """Looks at whatever rang, and at everything every `rescan_seconds`."""
        self._space.reap()
        now_ms = self._clock.now_ms()
        names = self._rung() | self._unsettled
        if now_ms >= self._rescan_ms:
            self._rescan_ms = now_ms + int(self._settings.rescan_seconds * 1000)
            names |= self._runs.keys()
        self._unsettled = set()
        self._start_postponed()
        started: list[Observation] = []
        for name in sorted(names & self._runs.keys()):
            try:
                started += self._look(self._runs[name])
            except (ExecutorError, OSError) as error:
                # One run that cannot be read must not hide the others; the next scan asks it again.
                _log.error("allocation %s: %s", name, error)
        shrunk = [run.shrunk for run in self._runs.values() if run.shrunk is not None]
        ended = [run.ended for run in self._runs.values() if run.ended is not None]
        return [*started, *shrunk, *ended]

    @_executor_errors("acknowledge")
    def acknowledge(self, allocation: AllocationId) -> None:
        """Removes the run directory; an allocation that still runs is stopped first, because its GPUs count as free."""
        run = self._runs.get(allocation)
        if run is None:
            return
        if run.ended is None:
            self._orphan(run)
        else:
            self._forget(run)

    @_executor_errors("recover")
    def recover(self, live: Sequence[StartOrder]) -> None:
        """Finds supervisors again, starts what was never begun, stops what the store does not hold as live."""
        wanted = {order.allocation.id for order in live}
        self._postponed.clear()
        for name, ranks in self._space.allocations().items():
            if name not in wanted:
                run = self._runs.setdefault(name, _Run(name, ranks, decided_ms=0))
                self._orphan(run)
        # Before any start: what is over already must not keep its devices from those that have them now.
        for run in [run for run in self._runs.values() if run.is_orphan]:
            self._look(run)
        for order in live:
            known = self._runs.get(order.allocation.id)
            if known is None:
                self._take_up(order)
            else:
                # A start that was told in an earlier term, and never stored, is told again.
                known.is_start_told = order.allocation.started_ms is not None
        self._rescan_ms = 0

    def logs(self, allocation: AllocationId, node_rank: int, offset: int, limit_bytes: int) -> LogChunk:
        """Returns a piece of a rank's output, live or ended, for as long as `forget_logs` left it."""
        run_directory = self._space.rank(allocation, node_rank)
        # Asked first: what is written between this question and the reading is then read by the next call.
        is_over = rundir.read_json(f"{run_directory}/{rundir.STATUS}") is not None
        was_gone = self._space.is_gone(allocation)
        try:
            data, next_offset, is_truncated = read_log(str(self._space.log(allocation, node_rank)), offset, limit_bytes)
        except (FileNotFoundError, NotADirectoryError):
            raise KeyError(f"no log of rank {node_rank} of allocation {allocation}") from None
        # Asked again: a gang that was made ready in between has a log, and all of it is still to come.
        is_over = is_over or (was_gone and self._space.is_gone(allocation))
        return LogChunk(data, next_offset, is_over and len(data) < limit_bytes, is_truncated)

    def enter(self, allocation: AllocationId, node_rank: int, program: Program) -> Entered:
        """Runs a program inside a running job. From any thread. Raises EntryRefused."""
        return entering.run_inside(self._space.rank(allocation, node_rank), program)

    def attach(self, allocation: AllocationId, node_rank: int, size: tuple[int, int]) -> Entered:
        """Takes the seat at the job's own terminal. From any thread. Raises EntryRefused."""
        return entering.sit_down(self._space.rank(allocation, node_rank), size)

    def reach(self, allocation: AllocationId, node_rank: int, port: int) -> socket.socket:
        """Returns a connection to a port that the job listens on. From any thread. Raises EntryRefused."""
        return entering.reach(self._space.rank(allocation, node_rank), port)

    def forget_logs(self, before_ms: int) -> int:
        """Removes the logs of ended allocations not written to since; returns how many. Raises OSError."""
        count = 0
        for directory in sorted(self._space.logs.iterdir()):
            if _newest_ms(directory) < before_ms and not self._space.run(AllocationId(directory.name)).exists():
                shutil.rmtree(directory)
                count += 1
        return count

    def checkpointed_ms(self, allocation: AllocationId) -> int | None:
        """Returns when the job last touched its checkpoint file, in UTC milliseconds; None if never."""
        try:
            touched_ns = (self._space.scratch(allocation) / "checkpoint").lstat().st_mtime_ns
        except OSError:
            return None
        return min(touched_ns // 1_000_000, self._clock.now_ms())

    def wait_for_news(self, timeout_seconds: float) -> bool:
        """Sleeps until a supervisor rings, `wake` is called, or the time is over; True when it is worth to observe."""
        if self._unsettled or self._postponed:
            self._poller.poll(int(min(timeout_seconds, SETTLE_SECONDS) * 1000))
            return True
        return bool(self._poller.poll(int(timeout_seconds * 1000)))

    def wake(self) -> None:
        """Ends a `wait_for_news` of another thread."""
        rundir.ring(str(self._space.doorbell), "\n")

    def close(self) -> None:
        """Closes the doorbell. Supervisors and their jobs go on."""
        self._space.reap()
        if self._bell >= 0:
            os.close(self._bell)
            self._bell = -1

    def _look(self, run: _Run) -> list[Observation]:
        """Brings one run up to date; returns its start and its last checkpoint when they are new."""
        seen: list[Observation] = []
        if run.ended is None:
            started = self._read(run)
            seen += [] if started is None else [started]
        if run.is_start_told and not run.is_orphan:
            saved_ms = self.checkpointed_ms(run.allocation)
            if saved_ms is not None and saved_ms > run.checkpointed_ms:
                run.checkpointed_ms = saved_ms
                seen.append(Checkpointed(run.allocation, saved_ms))
        if run.ended is not None and run.is_orphan:
            self._forget(run)
        return seen

    def _read(self, run: _Run) -> Started | None:
        """Reads where each rank is; sets `run.ended` once all of them are over."""
        over: dict[int, rundir.Status] = {}
        started: dict[int, int] = {}
        for rank in range(run.ranks):
            directory = self._space.rank(run.allocation, rank)
            is_alive = rundir.is_alive(directory)  # before the status, which is written while the lock is held
            status: rundir.Status | None = rundir.read_json(f"{directory}/{rundir.STATUS}")
            claim: rundir.Claim | None = rundir.read_json(f"{directory}/{rundir.CLAIM}")
            if status is None and not is_alive:
                status = self._settle_vanished(run, rank, claim)
            if status is not None:
                over[rank] = status
            elif is_alive:
                run.last_seen_ms[rank] = self._clock.now_ms()
            if claim is not None and claim["started_ms"] is not None:
                started[rank] = claim["started_ms"]
        if len(over) == run.ranks:
            run.ended = self._end_of(run, [over[rank] for rank in range(run.kept or run.ranks)], over.values())
            return None
        if (
            run.kept
            and not run.is_shrunk_told
            and run.shrunk is None
            and all(rank in over for rank in range(run.kept, run.ranks))
        ):
            gone_ms = max(over[rank]["ended_ms"] for rank in range(run.kept, run.ranks))
            run.shrunk = Shrunk(run.allocation, self._clamp(gone_ms, run), run.kept)
        mine = [started[rank] for rank in range(run.kept or run.ranks) if rank in started]
        if run.is_start_told or run.is_orphan or len(mine) < (run.kept or run.ranks):
            return None
        run.is_start_told = True
        return Started(run.allocation, self._clamp(max(mine), run))

    def _settle_vanished(self, run: _Run, rank: int, claim: rundir.Claim | None) -> rundir.Status | None:
        """Decides about a rank whose supervisor is not there and left no status; None while that needs another look."""
        directory = self._space.rank(run.allocation, rank)
        if claim is None:
            order: rundir.Order | None = rundir.read_json(f"{directory}/{rundir.ORDER}")
            if order is not None and order["boot_id"] == self._space.boot_id:
                return self._settle_unclaimed(run, rank)
            return self._write_off(run, rank, run.decided_ms, None, "the machine was restarted before the job ran")
        is_same_boot = claim["boot_id"] == self._space.boot_id
        if is_same_boot and not kill_survivors(claim, run.allocation):
            self._unsettled.add(run.allocation)
            return None
        detail = "the job's supervisor was killed" if is_same_boot else "the machine was restarted"
        evidence_ms = max(_modified_ms(f"{directory}/{rundir.CLAIM}"), run.last_seen_ms.get(rank, 0))
        return self._write_off(run, rank, evidence_ms, claim["started_ms"], detail)

    def _settle_unclaimed(self, run: _Run, rank: int) -> rundir.Status | None:
        """Ends what was stopped before it began, and starts what was ordered and never begun."""
        directory = self._space.rank(run.allocation, rank)
        control: rundir.Control | None = rundir.read_json(f"{directory}/{rundir.CONTROL}")
        now_ms = self._clock.now_ms()
        if control is not None and control["stop"] is not None:
            stop = control["stop"]
            return self._conclude(
                run, rank, _never_ran(now_ms, stop["reason"], stop["detail"], is_peer=stop["is_peer"])
            )
        if run.spawns.get(rank, 0) < MOST_SPAWNS:
            self._spawn(run, rank)
            self._unsettled.add(run.allocation)
            return None
        detail = "the supervisor did not start; its last words are in supervisor.err of the run directory"
        _log.error("allocation %s rank %d: %s", run.allocation, rank, self._space.last_words(run.allocation, rank))
        self._ask_all(run, 0.0, EndReason.LAUNCH_FAILED, is_peer=True)
        return self._conclude(run, rank, _never_ran(now_ms, EndReason.LAUNCH_FAILED, detail, is_peer=False))

    def _write_off(self, run: _Run, rank: int, evidence_ms: int, started_ms: int | None, detail: str) -> rundir.Status:
        """Ends a rank at its last evidence, and the gang's other ranks with it."""
        self._ask_all(run, 0.0, EndReason.NODE_LOST, is_peer=True)
        status: rundir.Status = {
            "started_ms": started_ms,
            "ended_ms": max(evidence_ms, started_ms or 0),
            "exit_code": None,
            "reason": EndReason.NODE_LOST,
            "detail": detail,
            "is_peer_stop": False,
        }
        return self._conclude(run, rank, status)

    def _conclude(self, run: _Run, rank: int, status: rundir.Status) -> rundir.Status:
        """Makes our verdict durable, so that a restart repeats it word for word."""
        self._space.conclude(run.allocation, rank, status)
        return status

    def _end_of(self, run: _Run, over: Sequence[rundir.Status], every: Iterable[rundir.Status]) -> Ended:
        """The gang's end: when its last rank was over, for the reason of the first rank that failed by itself.

        `over` are the ranks that it was to keep, `every` all that it ever had.
        """
        failed = [(s["is_peer_stop"], s["ended_ms"], rank) for rank, s in enumerate(over) if s["reason"] is not None]
        cause = over[min(failed)[2]] if failed else over[0]
        started = [s["started_ms"] for s in over if s["started_ms"] is not None]
        has_run = bool(started) and cause["reason"] != EndReason.LAUNCH_FAILED
        started_ms = self._clamp(max(started), run) if has_run else None
        ended_ms = self._clamp(max(s["ended_ms"] for s in every), run)
        return Ended(
            run.allocation,
            max(ended_ms, started_ms or 0),
            cause["exit_code"] if has_run else None,
            None if cause["reason"] is None else EndReason(cause["reason"]),
            started_ms,
            cause["detail"],
        )

    def _clamp(self, at_ms: int, run: _Run) -> int:
        """A supervisor's clock is not the ledger's: nothing happens before its decision or after now."""
        return max(min(at_ms, self._clock.now_ms()), run.decided_ms)

    def _take_up(self, order: StartOrder) -> None:
        allocation = order.allocation
        if self._space.run(allocation.id).exists():
            self._adopt(order)
            return
        run = self._run_of(order)
        if allocation.started_ms is not None:
            at_ms = max(allocation.started_ms, _newest_ms(self._space.logs / run.allocation))
            lost = EndReason.NODE_LOST
            run.ended = Ended(
                run.allocation,
                max(allocation.started_ms, self._clamp(at_ms, run)),
                None,
                lost,
                allocation.started_ms,
                "no trace of it",
            )
        elif allocation.stop_reason is not None:
            run.ended = Ended(run.allocation, self._clock.now_ms(), None, allocation.stop_reason)
        else:
            try:
                self.start(order)
            except DeviceHeld:
                # The daemon died between the commit of an end and its acknowledgement, and the devices were given on.
                self._postponed[allocation.id] = order
                return
            except StartRefused as refusal:
                reason = EndReason.LAUNCH_FAILED
                run.ended = Ended(run.allocation, self._clock.now_ms(), None, reason, detail=str(refusal))
        self._runs.setdefault(run.allocation, run)

    def _start_postponed(self) -> None:
        """Tries again what `recover` could not start; what still cannot waits for the next look."""
        for allocation, order in tuple(self._postponed.items()):
            try:
                self._take_up(order)
            except ExecutorError as error:
                _log.error("allocation %s: %s", allocation, error)
            if allocation in self._runs:
                del self._postponed[allocation]

    def _adopt(self, order: StartOrder) -> None:
        run = self._run_of(order)
        # Nodes that were taken from it before are not the order's any more, but what they left lies here still.
        run.ranks = max(run.ranks, self._space.ranks(run.allocation))
        if run.ranks > len(order.allocation.grants):
            run.kept = len(order.allocation.grants)
        run.is_start_told = order.allocation.started_ms is not None
        run.devices, run.port = self._space.held(run.allocation, run.ranks)
        self._runs[run.allocation] = run
        self._unsettled.add(run.allocation)

    def _orphan(self, run: _Run) -> None:
        """Kills what must not run here, without grace: its GPUs are somebody else's now."""
        run.is_orphan = True
        run.devices, run.port = self._space.held(run.allocation, run.ranks)
        self._unsettled.add(run.allocation)
        self._ask_all(run, 0.0, EndReason.CANCELLED, is_peer=False)

    def _refuse_held_devices(self, order: StartOrder) -> None:
        wanted = {str(device) for grant in order.allocation.grants for device in grant.devices}
        for run in self._runs.values():
            if run.is_orphan and run.devices & wanted:
                device = min(run.devices & wanted)
                raise DeviceHeld(f"device {device} is still held by allocation {run.allocation}, which is being killed")

    def _ask_all(self, run: _Run, grace_seconds: float, reason: EndReason, *, is_peer: bool) -> None:
        self._ask(run, range(run.ranks), grace_seconds, reason, is_peer=is_peer)

    def _ask(self, run: _Run, ranks: range, grace_seconds: float, reason: EndReason, *, is_peer: bool) -> None:
        for rank in ranks:
            stop: rundir.Stop = {
                "reason": reason,
                "grace_seconds": max(0.0, grace_seconds),
                "detail": None,
                "is_peer": is_peer,
            }
            rundir.ask(self._space.rank(run.allocation, rank), stop=stop)

    def _run_of(self, order: StartOrder) -> _Run:
        allocation = order.allocation
        assert allocation.grants, f"allocation {allocation.id} has no grants"
        devices = frozenset(str(device) for grant in allocation.grants for device in grant.devices)
        return _Run(allocation.id, len(allocation.grants), allocation.decided_ms, devices=devices)

    def _spawn(self, run: _Run, rank: int) -> None:
        self._space.spawn(run.allocation, rank)
        run.spawns[rank] = run.spawns.get(rank, 0) + 1  # only what was spawned counts against MOST_SPAWNS

    def _forget(self, run: _Run) -> None:
        self._space.discard(run.allocation, run.ranks)
        del self._runs[run.allocation]

    def _rung(self) -> set[AllocationId]:
        try:
            lines = os.read(self._bell, 1 << 16).decode("ascii", "replace").splitlines()
        except BlockingIOError:
            return set()
        return {AllocationId(line.partition(" ")[0]) for line in lines}


def _never_ran(at_ms: int, reason: str, detail: str | None, *, is_peer: bool) -> rundir.Status:
    return {
        "started_ms": None,
        "ended_ms": at_ms,
        "exit_code": None,
        "reason": reason,
        "detail": detail,
        "is_peer_stop": is_peer,
    }


def _modified_ms(path: str | Path) -> int:
    try:
        return os.stat(path).st_mtime_ns // 1_000_000  # noqa: PTH116
    except OSError:
        return 0


def _newest_ms(directory: Path) -> int:
    """When anything in a directory was last written to; 0 when it is not there."""
    return max(_modified_ms(path) for path in (directory, *directory.rglob("*")))
