"""What the scheduler needs of something that runs jobs. Implemented by `local`, `simulated`, and `k8s.jobs`.

The protocol is level-triggered and idempotent, because either side may die at any instant: `start` of an allocation
that already runs does nothing; an end is reported by every `observe` until it is `acknowledge`d, which the controller
does after the end is committed. Implementations are called from one thread at a time, but for `wake`, `logs` and
`wait_for_news`, and never call back.

    ExecutorError            the executor itself is out of order; the caller keeps state as it is and tries again
      StartRefused           this allocation can never start here (the message says why); it ends as launch_failed
      EntryRefused           nobody can enter this allocation, or reach that port of it (the message says why)
        CannotRun            what was to run there is no program
"""

import contextlib
import fcntl
import os
import socket
import struct
import termios
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from scheduler.core.model import (
    AccountId,
    Allocation,
    AllocationId,
    Device,
    DeviceId,
    EndReason,
    GpuClass,
    JobId,
    Node,
    NodeName,
)


class ExecutorError(Exception):
    """The executor is out of order for now. Nothing about any allocation follows from it."""


class EntryRefused(ExecutorError):
    """Nobody can enter this allocation, or reach that port; the message is for who asked."""


class CannotRun(EntryRefused):
    """The program is none: 126 or 127 as a shell would say."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class StartRefused(ExecutorError):
    """This allocation can never start here; the message is shown to the job's owner."""


@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """What to run, as submitted. Never exported, never in a metric, never in another tenant's sight."""

    argv: tuple[str, ...]
    name: str
    environment: Mapping[str, str] = field(default_factory=dict)
    workdir: str | None = None
    image: str | None = None
    output: str | None = None
    """A file for the job's output besides the kept log; None for the kept log alone."""
    grace_seconds: float = 30.0
    """Between the stop signal and SIGKILL."""
    stop_signal: str = "SIGTERM"
    """What asks the job to end, by name: a job's checkpoint signal if it has one."""
    log_limit_bytes: int = 64 * 1024 * 1024
    run_as: str | None = None
    """The system user that the job's processes run as; None for the daemon's own (single-user installations)."""
    secrets: tuple[str, ...] = ()
    """Names of the tenant's secrets whose keys become variables: by reference, never their values."""
    volumes: tuple[str, ...] = ()
    """Names of volumes that the centre offers."""
    shm_bytes: int | None = None
    """Size of /dev/shm in a container; None for the executor's own default."""
    adopts: tuple[str, ...] = ()
    """What its user made himself, one reference a rank in the executor's own words: it is let go, not launched, and is
    nobody's to make again. Empty: the executor launches it."""
    is_terminal: bool = False
    """It gets a terminal, at which somebody is to sit (see `Enterable.attach`); nothing of it is kept as output."""
    idle_stop_seconds: int | None = None
    """It is to be ended when all its GPUs were idle for so long; None: never for that."""
    has_slurm_names: bool = False
    """Its environment says besides, in SLURM_* variables, what TURNSTILE_* ones do."""
    simulated_seconds: float | None = None
    """How long the simulated executor lets it run; other executors ignore it."""
    simulated_exit_code: int = 0


@dataclass(frozen=True, slots=True)
class StartOrder:
    """An allocation to start, with all that its processes are to know. `allocation.grants` are in rank order."""

    allocation: Allocation
    spec: LaunchSpec
    array_index: int | None = None
    array: JobId | None = None
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    """The values of those of `spec.secrets` that the scheduler itself keeps, looked up for this start."""
    least_nodes: int | None = None
    """Of an elastic gang: the nodes that it keeps; those of higher rank may be taken from it. None: it is not one."""
    surplus: AllocationId | None = None
    """The allocation by which the nodes beyond the least are held; None where there are none."""
    is_shrinking: bool = False
    """Its surplus nodes were asked to go before this order was made (again), and have not yet."""

    @property
    def reference(self) -> str:
        """The job's number as people type it: `4711`, and `4711_3` for an element of an array."""
        if self.array is None or self.array_index is None:
            return str(self.allocation.job)
        return f"{self.array}_{self.array_index}"

    @property
    def account(self) -> AccountId:
        """The project that the job runs for."""
        return self.allocation.account


@dataclass(frozen=True, slots=True)
class Started:
    """The gang's processes exist since `at_ms`."""

    allocation: AllocationId
    at_ms: int


@dataclass(frozen=True, slots=True)
class Ended:
    """The gang is gone since `at_ms` and holds its devices no more.

    `exit_code` is the job's own (0 to 255; 128 + n for signal n), None when it never ran. `reason` is None for success.
    `started_ms` is known even when `Started` was never observed, so that a run between two observations is billed.
    """

    allocation: AllocationId
    at_ms: int
    exit_code: int | None
    reason: EndReason | None
    started_ms: int | None = None
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class Checkpointed:
    """The job says that its work until `at_ms` is saved; told again whenever it says so anew."""

    allocation: AllocationId
    at_ms: int


@dataclass(frozen=True, slots=True)
class Shrunk:
    """The gang runs on `nodes` nodes, the first by rank, since `at_ms`, and holds the devices of the others no more.

    Told again by every `observe` until `acknowledge_shrunk`, or the gang's end.
    """

    allocation: AllocationId
    at_ms: int
    nodes: int
    reason: EndReason | None = None
    """Why they went where nobody asked them to: their node was lost, or somebody took it away."""


Observation = Started | Checkpointed | Shrunk | Ended


@dataclass(frozen=True, slots=True)
class CutGpu:
    """A GPU that is cut into instances: nobody holds it whole. `left_units` are those that no instance has."""

    id: DeviceId
    gpu_class: GpuClass
    left_units: int


@dataclass(frozen=True, slots=True)
class NodeInventory:
    """A node that the executor offers, with its devices. Absent from the next inventory means gone."""

    node: Node
    devices: tuple[Device, ...]
    cut_gpus: tuple[CutGpu, ...] = ()
    """GPUs of its machine whose instances are devices; of a machine that is several nodes, one of them names all."""


@dataclass(frozen=True, slots=True)
class LogChunk:
    """Bytes of one rank's log from `offset`; `next_offset` continues it. `is_complete` when no more will ever come."""

    data: bytes
    next_offset: int
    is_complete: bool
    is_truncated: bool = False
    """The log outgrew its cap and its middle was dropped."""


class Executor(Protocol):
    """Runs allocations. Every method but `observe` is idempotent; all raise ExecutorError when out of order."""

    def inventory(self) -> Sequence[NodeInventory]:
        """Returns the nodes that jobs may be placed on now, with health as this executor sees it."""
        ...

    def recover(self, live: Sequence[StartOrder]) -> None:
        """Takes up the allocations that the store holds as live, after a restart: finds them, or reports their end.

        An allocation that was decided but never started is started now; one whose traces are gone ends as `node_lost`.
        """
        ...

    def start(self, order: StartOrder) -> None:
        """Starts the allocation's gang, or does nothing if it already runs. Raises StartRefused."""
        ...

    def stop(self, allocation: AllocationId, grace_seconds: float, reason: EndReason) -> None:
        """Asks the gang to end: stop signal, grace, kill. Returns at once; the end is observed later."""
        ...

    def shrink(self, allocation: AllocationId, nodes: int, grace_seconds: float, reason: EndReason) -> None:
        """Asks the ranks from `nodes` on to end: stop signal, grace, kill. The others go on; `Shrunk` says when."""
        ...

    def acknowledge_shrunk(self, allocation: AllocationId) -> None:
        """Says that `Shrunk` is committed: the executor may forget the nodes that went, but keeps their logs."""
        ...

    def extend(self, allocation: AllocationId, time_limit_ms: int) -> None:
        """Gives a gang another time limit, counted from its start. Does nothing where it has that, or is over."""
        ...

    def observe(self) -> Sequence[Observation]:
        """Returns what happened since the last call, and every end not yet acknowledged. Never blocks."""
        ...

    def acknowledge(self, allocation: AllocationId) -> None:
        """Says that the end is committed: the executor may forget the allocation, but keeps its logs."""
        ...

    def wait_for_news(self, timeout_seconds: float) -> bool:
        """Sleeps until `observe` is worth a call, `wake` was called, or the time is over; False for the last."""
        ...

    def wake(self) -> None:
        """Ends a `wait_for_news`, from whatever thread."""
        ...

    def logs(self, allocation: AllocationId, node_rank: int, offset: int, limit_bytes: int) -> LogChunk:
        """Returns up to `limit_bytes` of a rank's output as it came. Raises KeyError if unknown."""
        ...

    def close(self) -> None:
        """Lets go of this process's resources. Jobs keep running."""
        ...


@dataclass(frozen=True, slots=True)
class Program:
    """What somebody runs inside a running job, besides it. `terminal` is (rows, columns), None for plain pipes."""

    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    terminal: tuple[int, int] | None = None


def set_size(terminal: int, size: tuple[int, int]) -> None:
    """Tells a terminal its rows and columns, and by it the programs there."""
    with contextlib.suppress(OSError):  # it is gone: so is whoever would want to know
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))


@dataclass(slots=True)
class Entered:
    """Open ends of what runs inside a job; whoever gets them closes them. All are non-blocking.

    `input_fd` and `output_fd` are one terminal where `error_fd` is None. `control` is a socket of JSON packets:
    `{"do": "signal", "number": n}` may be sent, `{"exit_code": n}` comes at its end; closing it before ends
    the program.
    """

    input_fd: int
    output_fd: int
    error_fd: int | None
    control: socket.socket
    _open: set[int] = field(init=False)

    def __post_init__(self) -> None:
        self._open = {fd for fd in (self.input_fd, self.output_fd, self.error_fd) if fd is not None}

    def resize(self, size: tuple[int, int]) -> None:
        """Tells a terminal its rows and columns, and by it the programs there."""
        set_size(self.output_fd, size)

    def close_input(self) -> None:
        """Says that nothing more is typed. Of no meaning at a terminal."""
        self._close(self.input_fd)

    def close(self) -> None:
        """Lets go of all of it; a program that still runs ends."""
        self.control.close()
        for fd in tuple(self._open):
            self._close(fd)

    def _close(self, fd: int) -> None:
        if fd in self._open:
            self._open.discard(fd)
            os.close(fd)


@runtime_checkable
class Enterable(Protocol):
    """An executor into whose running jobs their owners may go. From any thread. All raise EntryRefused."""

    def enter(self, allocation: AllocationId, node_rank: int, program: Program) -> Entered:
        """Starts a program among the job's processes: its user, environment, directory, limits and devices."""
        ...

    def attach(self, allocation: AllocationId, node_rank: int, size: tuple[int, int]) -> Entered:
        """Takes the seat at the terminal that the job was started with, of (rows, columns) now."""
        ...

    def reach(self, allocation: AllocationId, node_rank: int, port: int) -> socket.socket:
        """Returns a connection to a TCP port on which a process of this very job listens."""
        ...


@runtime_checkable
class ManyStarter(Protocol):
    """An executor for which a start is a wait: it starts several allocations side by side."""

    def start_many(self, orders: Sequence[StartOrder]) -> Mapping[AllocationId, ExecutorError]:
        """Starts them as `start` does each, and returns what went wrong, where something did."""
        ...


def start_all(executor: Executor, orders: Sequence[StartOrder]) -> Mapping[AllocationId, ExecutorError]:
    """Starts allocations in the quickest way that the executor knows; returns the problems, by allocation."""
    if isinstance(executor, ManyStarter):
        return executor.start_many(orders)
    failed: dict[AllocationId, ExecutorError] = {}
    for order in orders:
        try:
            executor.start(order)
        except ExecutorError as problem:
            failed[order.allocation.id] = problem
    return failed


class DeviceWitness(Protocol):
    """Tells which allocation holds which devices, where the platform and not the scheduler chooses (Kubernetes)."""

    def holders(self) -> Mapping[str, AllocationId]:
        """Returns device UUID to allocation, as seen on the nodes."""
        ...

    def last_seen_ms(self, node: NodeName) -> int | None:
        """Returns when the node last gave a sign of life, in UTC milliseconds; None if never."""
        ...
