"""The watchdog: a GpuReader whose calls always return in time, because the real reader runs in a process of its own.

A call of NVML can hang in the driver for ever and takes its thread with it; no thread can be ended from outside, a
process can. So the reader lives in a child (`reader_child`), one request at a time, each with a deadline. A child that
misses it is killed and replaced, after a pause that doubles up to a limit. A child that dies, or whose whole machine
cannot be read (the driver is being replaced, and the library keeps the old one), is replaced the same way. While there
is no child, calls return at once with the last problem. The child is a fresh interpreter, not a fork: the daemon has
threads. It ends with this process however that ends, because its input does.

The child's samples are stamped on arrival with this process's clock, for two clocks that never step back need not agree
with each other; the error is at most the call's deadline.
"""

import contextlib
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from metering.gpus import GpuIdentity, GpuProblem, GpuSample, ProblemCode, XidEvent
from metering.reader_wire import LINE_BYTES_LIMIT, decode, encode, identity_of, problem_of, sample_of, xid_of
from scheduler.clock import Clock

NVML_FACTORY = "metering.nvml_reader:open_reader"

_NEEDS_NEW_PROCESS = frozenset(
    {
        ProblemCode.DRIVER_NOT_LOADED,
        ProblemCode.LIBRARY_NOT_FOUND,
        ProblemCode.UNINITIALIZED,
        ProblemCode.VERSION_MISMATCH,
    }
)


@dataclass(frozen=True, slots=True)
class ReaderLimits:
    """The watchdog's patience.

    `call_seconds` 10: eight GPUs answer in well under one; a driver that recovers a GPU takes a few.
    `start_seconds` 90: without persistence mode the first call initialises every GPU.
    Pauses start at 1 s and double up to 60 s, so that a driver that is being replaced is soon found again.
    `stuck_processes` 3: so many killed children may be waiting in the kernel before no more are started.
    """

    call_seconds: float = 10.0
    start_seconds: float = 90.0
    first_pause_seconds: float = 1.0
    longest_pause_seconds: float = 60.0
    stuck_processes: int = 3


class ProcessReader:
    """Runs the reader that `factory` (`module:function`) makes of `arguments` behind a deadline. Thread-safe."""

    def __init__(
        self,
        clock: Clock,
        factory: str = NVML_FACTORY,
        arguments: Mapping[str, object] | None = None,
        *,
        collector: str = "nvml",
        limits: ReaderLimits | None = None,
    ) -> None:
        self.collector = collector
        self._clock = clock
        self._command = [sys.executable, "-P", "-m", "metering.reader_child", factory, json.dumps(arguments or {})]
        self._limits = limits or ReaderLimits()
        self._lock = threading.Lock()
        self._child: _Child | None = None
        self._stuck: list[subprocess.Popen[bytes]] = []
        self._pause_seconds = self._limits.first_pause_seconds
        self._next_start = 0.0  # on the monotonic clock
        self._why_paused: GpuProblem | None = None
        self._is_closed = False
        self._driver_version: str | None = None

    @property
    def driver_version(self) -> str | None:
        """The version in the last answer; None before the first."""
        return self._driver_version

    @property
    def process_id(self) -> int | None:
        """The child's process id, for `doctor` and logs; None while there is none."""
        return self._child.process.pid if self._child else None

    def identities(self) -> tuple[Sequence[GpuIdentity], Sequence[GpuProblem]]:
        """Returns what the reader returns, or nothing and one machine-wide problem."""
        rows, problems = self._call("identities")
        return [identity_of(row) for row in rows], problems

    def sample(self) -> tuple[Sequence[GpuSample], Sequence[GpuProblem]]:
        """Returns what the reader returns, or nothing and one machine-wide problem."""
        rows, problems = self._call("sample")
        at_ms = self._clock.now_ms()
        return [sample_of(row, at_ms) for row in rows], problems

    def xids(self, wait_ms: int) -> Sequence[XidEvent]:
        """Returns what the reader returns, or nothing; the deadline is `wait_ms` later than that of the other calls."""
        rows, _ = self._call("xids", wait_ms)
        at_ms = self._clock.now_ms()
        return [xid_of(row, at_ms) for row in rows]

    def close(self) -> None:
        """Ends the child. Returns within two seconds, whatever the driver does."""
        with self._lock:
            self._is_closed = True
            self._end_child()

    def _call(self, name: str, wait_ms: int = 0) -> tuple[list[dict[str, Any]], list[GpuProblem]]:
        deadline = time.monotonic() + self._limits.call_seconds + wait_ms / 1000
        if not self._lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
            return [], [
                GpuProblem(ProblemCode.READER_HUNG, "another call has been waiting for the driver all this time")
            ]
        try:
            child = self._ready_child(deadline)
            if isinstance(child, GpuProblem):
                return [], [child]
            return self._ask(child, name, wait_ms, deadline)
        finally:
            self._lock.release()

    def _ready_child(self, deadline: float) -> "_Child | GpuProblem":
        """Returns a child that is ready for a request, or why there is none by the deadline."""
        if self._is_closed:
            return GpuProblem(ProblemCode.READER_DIED, "the reader was closed")
        child = self._child or self._start_child()
        if isinstance(child, GpuProblem) or child.is_ready:
            return child
        return self._await_start(child, deadline)

    def _await_start(self, child: "_Child", deadline: float) -> "_Child | GpuProblem":
        start_deadline = child.started + self._limits.start_seconds
        answer = child.read_line(min(deadline, start_deadline))
        if answer is None and not child.is_gone and time.monotonic() < start_deadline:
            waited = time.monotonic() - child.started
            return GpuProblem(ProblemCode.READER_STARTING, f"the driver is still starting, {waited:.0f} s so far")
        if answer is None:
            return self._give_up(child, "start", self._limits.start_seconds)
        if "failed" in answer:
            return self._pause(problem_of(answer["failed"][0]))
        child.is_ready = True
        self._driver_version = answer["driver_version"]
        return child

    def _ask(
        self, child: "_Child", name: str, wait_ms: int, deadline: float
    ) -> tuple[list[dict[str, Any]], list[GpuProblem]]:
        answer = child.read_line(deadline) if child.send({"call": name, "wait_ms": wait_ms}) else None
        if answer is None:
            return [], [self._give_up(child, name, self._limits.call_seconds + wait_ms / 1000)]
        self._driver_version = answer["driver_version"]
        problems = [problem_of(row) for row in answer["problems"]]
        for problem in problems:
            if problem.is_machine_wide and problem.code in _NEEDS_NEW_PROCESS:
                return answer["items"], [self._pause(problem)]
        self._pause_seconds = self._limits.first_pause_seconds
        return answer["items"], problems

    def _start_child(self) -> "_Child | GpuProblem":
        remaining = self._next_start - time.monotonic()
        if remaining > 0 and self._why_paused is not None:
            text = f"{self._why_paused.message} (tried again in {remaining:.0f} s)"
            return replace(self._why_paused, message=text)
        self._stuck = [process for process in self._stuck if process.poll() is None]
        if len(self._stuck) >= self._limits.stuck_processes:
            pids = ", ".join(str(process.pid) for process in self._stuck)
            text = f"processes {pids} hang in the driver and cannot be ended; reboot the node"
            return GpuProblem(ProblemCode.READER_HUNG, text)
        try:
            self._child = _Child(self._command)
        except OSError as error:
            return self._pause(GpuProblem(ProblemCode.READER_DIED, f"the reader's process did not start: {error}"))
        return self._child

    def _give_up(self, child: "_Child", name: str, seconds: float) -> GpuProblem:
        """Ends a child that is late or gone, and says so."""
        if child.is_gone:
            status = child.exit_status()
            return self._pause(
                GpuProblem(ProblemCode.READER_DIED, f"the reader's process ended during `{name}` with status {status}")
            )
        text = (
            f"the driver did not answer `{name}` within {seconds:g} s; the reader's process was replaced. "
            "If it persists, look in `dmesg` for NVRM lines and reboot the node"
        )
        return self._pause(GpuProblem(ProblemCode.READER_HUNG, text))

    def _pause(self, problem: GpuProblem) -> GpuProblem:
        """Ends the child, if any, and lets none start before a pause, which is twice as long the next time."""
        self._end_child()
        self._why_paused = problem
        self._next_start = time.monotonic() + self._pause_seconds
        self._pause_seconds = min(2 * self._pause_seconds, self._limits.longest_pause_seconds)
        return problem

    def _end_child(self) -> None:
        child, self._child = self._child, None
        if child is not None and not child.end():
            self._stuck.append(child.process)


class _Child:
    """The process and its two pipes."""

    def __init__(self, command: Sequence[str]) -> None:
        environment = dict(os.environ)
        # The same code as here, wherever it was imported from; -P keeps the working directory out.
        root = str(Path(__file__).resolve().parent.parent)
        environment["PYTHONPATH"] = os.pathsep.join(part for part in (root, environment.get("PYTHONPATH")) if part)
        self.started = time.monotonic()
        self.is_ready = False
        self.is_gone = False
        self.process: subprocess.Popen[bytes] = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,  # Ctrl-C on the daemon's terminal is the daemon's to act on
        )
        self._requests, self._answers = self._pipes()
        os.set_blocking(self._answers.fileno(), False)
        self._poll = select.poll()
        self._poll.register(self._answers.fileno(), select.POLLIN)
        self._buffer = bytearray()

    def _pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        assert self.process.stdin is not None, "asked for a pipe"
        assert self.process.stdout is not None, "asked for a pipe"
        return self.process.stdin, self.process.stdout

    def send(self, request: Mapping[str, object]) -> bool:
        """Sends a request; False when the child is gone. Never blocks: one small request is in the pipe at a time."""
        try:
            self._requests.write(encode(request))
            self._requests.flush()
        except BrokenPipeError:
            self.is_gone = True
            return False
        return True

    def read_line(self, deadline: float) -> dict[str, Any] | None:
        """Returns the next answer; None when the deadline passed, or the child is gone (`is_gone`)."""
        while b"\n" not in self._buffer:
            remaining = deadline - time.monotonic()
            if remaining <= 0 or not self._poll.poll(remaining * 1000):
                return None
            chunk = os.read(self._answers.fileno(), 1 << 16)
            self._buffer += chunk
            if not chunk or len(self._buffer) > LINE_BYTES_LIMIT:
                self.is_gone = True
                return None
        line, _, rest = bytes(self._buffer).partition(b"\n")
        self._buffer = bytearray(rest)
        try:
            return decode(line)
        except ValueError:
            self.is_gone = True  # something else wrote to the pipe; nothing after it can be trusted
            return None

    def exit_status(self) -> int | None:
        """Returns the exit status of a child that is gone; None when it has not arrived within half a second."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(timeout=0.5)
        return None

    def end(self) -> bool:
        """Kills the child and closes the pipes; False when the kernel does not let it go within a second."""
        self.process.kill()
        with contextlib.suppress(BrokenPipeError):
            self._requests.close()
        self._answers.close()
        try:
            self.process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            return False
        return True
