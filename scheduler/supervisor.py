"""The process that stands over one rank of one allocation; `scheduler.local` starts it, and it outlives the daemon.

It is its own session, trusts only its run directory (see `rundir`), and holds the directory's lock, handed over open as
descriptor LOCK_FD, for as long as it lives. It never loads what it does not need: `COMMAND` is how it is started.
Reading order: `main`, `Supervisor.run`, `Supervisor.finish`.
"""

import contextlib
import errno
import fcntl
import json
import os
import select
import signal
import sys
import time

from scheduler import rundir
from scheduler.entrance import Entrance
from scheduler.joblog import LogWriter, OutputCopy
from scheduler.processes import (
    PR_SET_CHILD_SUBREAPER,
    CommandError,
    LaunchError,
    Streams,
    descendants,
    launch,
    prctl,
    stat_fields,
    write_text,
)

LOCK_FD = 3
HEARTBEAT_SECONDS = 2.0
PIPE_BYTES = 1 << 20  # the most that an unprivileged process may ask for: /proc/sys/fs/pipe-max-size
STATUS_RESERVE_BYTES = 4096
DESERTED = "nobody sat at its terminal for a minute"

COMMAND = "import sys; sys.path.append(sys.argv.pop(1)); from scheduler.supervisor import main; main()"
"""For `python -I -S -c COMMAND ROOT RUN_DIRECTORY`: no site, no environment, ROOT after the standard library."""


class Supervisor:
    """One job process with all that it leaves behind, from its order to its status."""

    def __init__(self, directory: str, order: rundir.Order) -> None:
        self._directory = directory
        self._order = order
        self._wall_anchor_ns = time.time_ns() - time.monotonic_ns()
        self._status_fd = self._reserve_status()
        self._claim: rundir.Claim = {
            "boot_id": order["boot_id"],
            "pid": os.getpid(),
            "start_ticks": int(stat_fields("self")[19]),
            "cgroup": order["cgroup"],
            "devices": order["devices"],
            "master_port": order["master_port"],
            "job_pid": None,
            "job_start_ticks": None,
            "started_ms": None,
        }
        self._write_claim()
        self._pid = 0
        self._wait_status: int | None = None
        self._stop: rundir.Stop | None = None
        self._kill_at: float | None = None
        self._limit_at = float("inf")
        self._started_at = 0.0
        self._last_control: rundir.Control | None = None
        self._is_terminated = False
        self._log = LogWriter(order["log_directory"], order["log_limit_bytes"])
        self._copy: OutputCopy | None = None
        self._out, self._out_write = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._out, False)
        with contextlib.suppress(OSError):  # a smaller pipe only means more wake-ups
            fcntl.fcntl(self._out, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._wake, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._terminate)
        self._control = os.open(f"{directory}/{rundir.CONTROL_BELL}", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._entrance = Entrance(directory, order)

    def run(self) -> None:
        """Runs the job to its end."""
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        self._read_control()
        if self._stop is not None:
            self.finish(None, self._stop["reason"], self._stop["detail"])
            return
        try:
            self._copy = OutputCopy(self._order)
            self._start()
        except LaunchError as error:
            self._say(str(error))
            self.finish(None, "launch_failed", str(error))
            return
        except CommandError as error:
            self._refuse(error.number)
            return
        self._supervise()
        self._sweep()
        code = os.waitstatus_to_exitcode(self._wait_status or 0)
        self.finish(code if code >= 0 else 128 - code, *self._judge(code))

    def abort(self, error: Exception) -> None:
        """Ends the job because of a fault of ours, which nobody shall pay for."""
        if self._pid:
            self._sweep()
        detail = f"the supervisor failed: {type(error).__name__}: {error}"
        self.finish(None, "node_lost" if self._pid else "launch_failed", detail)

    def _say(self, text: str) -> None:
        """Puts a line of ours into the job's log."""
        line = f"turnstile: {text}\n".encode("utf-8", "backslashreplace")
        self._log.write(line)
        if self._copy is not None:
            self._copy.write(line)

    def _now_ms(self) -> int:
        """Returns UTC milliseconds: the wall clock at our start plus monotonic time since."""
        return (self._wall_anchor_ns + time.monotonic_ns()) // 1_000_000

    def finish(self, exit_code: int | None, reason: str | None, detail: str | None) -> None:
        """Tells the gang's other ranks of a failure, then everybody by the status file. The last thing that is done."""
        self._entrance.close()
        self._drain()
        self._log.close()
        if self._copy is not None:
            self._copy.close()
        if reason is not None and self._stop is None:
            self._stop_peers(reason)
        started_ms = self._claim["started_ms"]
        status: rundir.Status = {
            "started_ms": started_ms,
            "ended_ms": max(self._now_ms(), started_ms or 0),
            "exit_code": exit_code,
            "reason": reason,
            "detail": detail[:500] if detail else None,
            "is_peer_stop": self._stop is not None and self._stop["is_peer"],
        }
        text = json.dumps(status).encode()
        while True:
            try:
                self._write_status(text)
                break
            except FileNotFoundError:
                return  # the run directory was taken away: nobody wants to know
            except OSError as error:
                sys.stderr.write(f"status.json: {os.strerror(error.errno or 0)}\n")
                time.sleep(1.0)  # a full disk: the end stays untold, never told wrong
        self._ring_doorbell()

    def _start(self) -> None:
        order = self._order
        started_ms = self._now_ms()
        order["environment"]["TURNSTILE_DEADLINE"] = str((started_ms + order["time_limit_ms"]) // 1000)
        self._started_at = time.monotonic()
        try:
            self._pid = self._launch()
        finally:
            os.close(self._out_write)
            order["environment"] = {}  # nothing needs it any more, and it may hold secrets
        self._limit_at = self._started_at + order["time_limit_ms"] / 1000
        self._claim["started_ms"] = started_ms
        self._claim["job_pid"] = self._pid
        self._claim["job_start_ticks"] = int(stat_fields(self._pid)[19])  # not reaped yet, so it is there
        self._write_claim()
        self._ring_doorbell()

    def _launch(self) -> int:
        order = self._order
        if order.get("is_terminal"):
            self._say("it runs at a terminal, of which nothing is kept")
            return self._entrance.launch_at_terminal()
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        try:
            pid = launch(order, order["environment"], Streams(null, self._out_write, self._out_write))
        finally:
            os.close(null)
        self._entrance.open_to(pid)
        return pid

    def _refuse(self, number: int) -> None:
        """Ends as a shell would when the command cannot be run: 127 for none of that name, 126 for any other cause."""
        code = 127 if number in (errno.ENOENT, errno.ENOTDIR) else 126
        cause = "command not found" if code == 127 else os.strerror(number)
        if number == errno.ENOEXEC:
            cause = "neither a program nor a script that begins with #!"
        text = f"cannot run {self._order['argv'][0]!r}: {cause}"
        self._say(text)
        self._claim["started_ms"] = self._now_ms()
        self.finish(code, "exit_nonzero", text)

    def _supervise(self) -> None:
        poller = select.poll()
        for fd in (self._out, self._control, self._wake, self._entrance.fileno()):
            poller.register(fd, select.POLLIN)
        heartbeat_at = 0.0  # the first round looks at everything: what came before is not announced again
        while True:
            self._reap()
            if self._wait_status is not None:
                return  # before any request is read: it ended by itself
            now = time.monotonic()
            if now >= heartbeat_at:
                self._beat()
                self._read_control()
                heartbeat_at = now + HEARTBEAT_SECONDS
            self._enforce(now)
            due = min(heartbeat_at, self._limit_at if self._kill_at is None else self._kill_at, self._entrance.due())
            ready = [fd for fd, _ in poller.poll(max(0, int((due - time.monotonic()) * 1000) + 1))]
            if self._out in ready and not self._copy_output():
                poller.unregister(self._out)
            if self._wake in ready:
                _empty(self._wake)
            if self._control in ready:
                _empty(self._control)
                heartbeat_at = 0.0
            if self._entrance.fileno() in ready:
                self._entrance.look()

    def _enforce(self, now: float) -> None:
        grace_seconds = self._order["grace_seconds"]
        if self._is_terminated and self._stop is None:
            detail = "the machine is going down"
            self._begin_stop(
                {"reason": "node_lost", "grace_seconds": grace_seconds, "detail": detail, "is_peer": False}
            )
        self._entrance.enforce(now)
        if self._entrance.is_deserted(now) and self._stop is None:
            self._begin_stop(
                {"reason": "cancelled", "grace_seconds": grace_seconds, "detail": DESERTED, "is_peer": False}
            )
        if now >= self._limit_at:
            detail = f"time limit of {self._order['time_limit_ms'] / 1000:g} s reached"
            self._begin_stop({"reason": "walltime", "grace_seconds": grace_seconds, "detail": detail, "is_peer": False})
        if self._kill_at is not None and now >= self._kill_at:
            self._signal_tree(signal.SIGKILL)
            self._kill_at = now + 0.1  # again, should it have forked in between

    def _begin_stop(self, stop: rundir.Stop) -> None:
        """Sends the stop signal and sets the time of the kill; a later request can only bring that nearer."""
        kill_at = time.monotonic() + stop["grace_seconds"]
        if self._stop is not None:
            self._kill_at = kill_at if self._kill_at is None else min(self._kill_at, kill_at)
            return
        self._stop = stop
        self._kill_at = kill_at
        self._limit_at = float("inf")
        if self._pid and stop["grace_seconds"] > 0:
            self._signal_tree(self._order["stop_signal"])
            if self._order.get("is_terminal"):
                self._signal_tree(signal.SIGHUP)  # shells that people sit at do not hear SIGTERM
            self._signal_tree(signal.SIGCONT)  # a stopped process hears nothing

    def _read_control(self) -> None:
        try:
            control: rundir.Control | None = rundir.read_json(f"{self._directory}/{rundir.CONTROL}")
        except OSError:
            return  # what cannot be read now is read at the next heartbeat; no job shall die of it
        if control is None or control == self._last_control:
            return
        self._last_control = control
        if control["time_limit_ms"] is not None:
            self._order["time_limit_ms"] = control["time_limit_ms"]
            if self._stop is None and self._pid:
                self._limit_at = self._started_at + control["time_limit_ms"] / 1000
        if control["stop"] is not None:
            self._begin_stop(control["stop"])

    def _judge(self, code: int) -> tuple[str | None, str | None]:
        if self._stop is not None:
            return self._stop["reason"], self._stop["detail"]
        if code != 0 and self._oom_kills() > 0:
            return "oom", "killed for using more memory than the job asked for"
        if code < 0:
            with contextlib.suppress(ValueError):
                return "exit_nonzero", f"killed by {signal.Signals(-code).name}"
            return "exit_nonzero", f"killed by signal {-code}"
        return ("exit_nonzero", None) if code else (None, None)

    def _oom_kills(self) -> int:
        if self._order["cgroup"] is None:
            return 0
        with contextlib.suppress(OSError), open(f"{self._order['cgroup']}/memory.events", encoding="utf-8") as file:  # noqa: PTH123
            for line in file:
                key, _, count = line.partition(" ")
                if key == "oom_kill":
                    return int(count)
        return 0

    def _signal_tree(self, number: int) -> None:
        if number == signal.SIGKILL and self._order["cgroup"] is not None:
            with contextlib.suppress(OSError):  # before Linux 5.14 there is no cgroup.kill; the tree below is
                write_text(f"{self._order['cgroup']}/cgroup.kill", "1")
        has_group = self._wait_status is None  # once the leader is reaped its number may be a stranger's
        if has_group:
            with contextlib.suppress(OSError):
                os.killpg(self._pid, number)
        for pid in descendants(os.getpid()):
            with contextlib.suppress(OSError):
                if not has_group or os.getpgid(pid) != self._pid:  # once each: a handler may count them
                    os.kill(pid, number)

    def _reap(self) -> bool:
        """Collects what has ended below us; False when nothing is left."""
        try:
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return True
                if pid == self._pid:
                    self._wait_status = status
                else:
                    self._entrance.ended(pid, status)
        except ChildProcessError:
            return False

    def _sweep(self) -> None:
        """Kills what the job left behind, and waits until the last of it is gone: only then are its devices free."""
        delay_ms = 1
        poller = select.poll()
        poller.register(self._wake, select.POLLIN)
        while self._reap():
            self._signal_tree(signal.SIGKILL)
            if poller.poll(delay_ms):
                _empty(self._wake)
            delay_ms = min(2 * delay_ms, 1000)
            self._beat()

    def _copy_output(self) -> bool:
        """Moves one pipeful from the job to its log; False when no writer is left."""
        try:
            data = os.read(self._out, PIPE_BYTES)
        except BlockingIOError:
            return True
        self._log.write(data)
        if self._copy is not None:
            self._copy.write(data)
        return bool(data)

    def _drain(self) -> None:
        left_bytes = 2 * PIPE_BYTES  # all that the pipe can hold; a stranger that kept its end open adds nothing
        while left_bytes > 0:
            try:
                data = os.read(self._out, min(left_bytes, PIPE_BYTES))
            except BlockingIOError:
                return
            if not data:
                return
            left_bytes -= len(data)
            self._log.write(data)
            if self._copy is not None:
                self._copy.write(data)

    def _stop_peers(self, reason: str) -> None:
        parent, _, _ = self._directory.rpartition("/")
        detail = f"rank {self._order['rank']} ended with {reason}"
        grace_seconds = self._order["grace_seconds"]
        for rank in range(self._order["ranks"]):
            if rank != self._order["rank"]:
                stop: rundir.Stop = {
                    "reason": reason,
                    "grace_seconds": grace_seconds,
                    "detail": detail,
                    "is_peer": True,
                }
                rundir.ask(f"{parent}/{rank}", stop=stop)

    def _terminate(self, *_: object) -> None:
        self._is_terminated = True

    def _beat(self) -> None:
        now_ns = self._now_ms() * 1_000_000
        with contextlib.suppress(OSError):
            os.utime(f"{self._directory}/claim.json", ns=(now_ns, now_ns))

    def _write_claim(self) -> None:
        rundir.write_atomically(f"{self._directory}/{rundir.CLAIM}", self._claim)
        self._beat()

    def _ring_doorbell(self) -> None:
        rundir.ring(self._order["doorbell"], f"{self._order['allocation']} {self._order['rank']}\n")

    def _reserve_status(self) -> int:
        """Takes the disk space of the status now, so that a job that fills the disk cannot hide its own end."""
        fd = os.open(f"{self._directory}/status.new", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with contextlib.suppress(OSError):  # not every file system can; then `finish` waits for space
            os.posix_fallocate(fd, 0, STATUS_RESERVE_BYTES)
        return fd

    def _write_status(self, text: bytes) -> None:
        os.pwrite(self._status_fd, text, 0)
        os.ftruncate(self._status_fd, len(text))
        os.fsync(self._status_fd)
        os.rename(f"{self._directory}/status.new", f"{self._directory}/{rundir.STATUS}")  # noqa: PTH104
        rundir.sync_directory(self._directory)


def _empty(fd: int) -> None:
    with contextlib.suppress(BlockingIOError):
        os.read(fd, 4096)


def main() -> None:
    """Supervises the order in the directory named by the first argument."""
    os.umask(0o077)
    os.chdir("/")
    os.set_inheritable(LOCK_FD, False)  # the job must not hold the sign of our life
    os.closerange(LOCK_FD + 1, 1 << 20)  # whatever a library of the daemon left open
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    directory = sys.argv[1]
    path = f"{directory}/{rundir.ORDER}"
    order: rundir.Order | None = rundir.read_json(path)
    if order is None:
        sys.exit(f"{path} is absent or unreadable")
    supervisor = Supervisor(directory, order)
    os.unlink(path)  # noqa: PTH108 -- claimed: from here on no second supervisor may run it
    try:
        supervisor.run()
    except Exception as error:  # noqa: BLE001 -- the edge: whatever happens, no job stays behind untold
        import traceback  # only here: it would cost a tenth of the start-up time

        traceback.print_exc()
        supervisor.abort(error)
