"""Processes as Linux has them: starting a job's, finding all that descend from it, and making sure that none is left.

Shared with the supervisor, which must start fast: imports stay few.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import signal
import termios
from collections.abc import Iterator, Mapping
from typing import NamedTuple, NoReturn

from scheduler.rundir import Claim, Order

PR_SET_PDEATHSIG = 1  # linux/prctl.h
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
ALLOCATION_VARIABLE = "TURNSTILE_ALLOCATION_ID"
"""In every job's environment, and by it a survivor is known that left its session."""


class LaunchError(Exception):
    """The job's command could not even be tried; the message is for its owner."""


class CommandError(Exception):
    """The job's command was tried and is none: its owner's mistake. `number` is the errno."""

    def __init__(self, number: int) -> None:
        super().__init__(os.strerror(number))
        self.number = number


class Streams(NamedTuple):
    """The descriptors that become a process's 0, 1 and 2; none of them is 0, 1 or 2 itself."""

    input: int
    output: int
    error: int
    is_terminal: bool = False
    """All three are a terminal, which becomes the process's own: Ctrl-C there is its signal."""


_libc = ctypes.CDLL(None, use_errno=True)


def prctl(option: int, value: int) -> None:
    """Sets a process attribute. Raises OSError."""
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@contextlib.contextmanager
def rights_of(order: Order) -> Iterator[None]:
    """For a moment this process has the file rights of the job's user, so that no path opens more than they may."""
    if order["user"] is None:
        yield
        return
    groups = os.getgroups()
    try:
        os.initgroups(order["user"], order["gid"])
        os.setegid(order["gid"])
        os.seteuid(order["uid"])
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def launch(order: Order, environment: Mapping[str, str], streams: Streams) -> int:
    """Starts the order's command as its user and in its group; returns its process id. Raises LaunchError or
    CommandError."""
    report, fail = os.pipe2(os.O_CLOEXEC)
    supervisor = os.getpid()
    pid = os.fork()
    if pid == 0:
        _become_job(order, environment, (streams, fail), supervisor)
    os.close(fail)
    message = b""
    while chunk := os.read(report, 256):
        message += chunk
    os.close(report)
    if not message:
        return pid
    os.waitpid(pid, 0)
    stage, _, number = message.decode().partition(":")
    text = os.strerror(int(number))
    if stage == "workdir":
        raise LaunchError(f"working directory {order['workdir']}: {text}")
    if stage == "exec":
        raise CommandError(int(number))
    raise LaunchError(f"cannot set the {stage} of the job's process: {text}")


def _become_job(order: Order, environment: Mapping[str, str], fds: tuple[Streams, int], supervisor: int) -> NoReturn:
    streams, fail = fds
    stage = "session"
    try:
        os.setsid()
        os.umask(0o022)
        for target, source in enumerate(streams[:3]):
            os.dup2(source, target)
        if streams.is_terminal:
            stage = "terminal"
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        signal.set_wakeup_fd(-1)
        for number in (*range(1, 32), *range(signal.SIGRTMIN, signal.SIGRTMAX + 1)):
            if number not in (signal.SIGKILL, signal.SIGSTOP):
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        with contextlib.suppress(OSError):  # a hardened /proc: the job is then as likely a victim as its supervisor
            write_text("/proc/self/oom_score_adj", "300")
        if order["cgroup"] is not None:
            stage = "cgroup"
            write_text(f"{order['cgroup']}/cgroup.procs", "0")
        if order["user"] is not None:
            stage = "user"
            os.initgroups(order["user"], order["gid"])
            os.setgid(order["gid"])
            os.setuid(order["uid"])
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # after setuid, which clears it
        if os.getppid() != supervisor:
            os._exit(125)
        stage = "workdir"
        os.chdir(order["workdir"])
        stage = "exec"
        os.execvpe(order["argv"][0], order["argv"], dict(environment))  # noqa: S606 -- no shell on purpose
    except OSError as error:
        os.write(fail, f"{stage}:{error.errno or 0}".encode())
    except ValueError:  # text that is no byte string of this system
        os.write(fail, f"{stage}:{errno.EINVAL}".encode())
    finally:
        os._exit(125)


def write_text(path: str, text: str) -> None:
    """Writes to a file of /proc or a cgroup, in one piece. Raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def stat_fields(pid: int | str) -> list[str]:
    """Returns /proc/PID/stat from the state on: [0] state, [1] parent, [2] group, [3] session, [19] start in ticks."""
    with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123
        return file.read().rpartition(b")")[2].decode().split()


def descendants(root: int) -> list[int]:
    """Returns the processes below `root`; with the subreaper attribute nobody leaves that tree."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):  # noqa: PTH208
        if name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                children.setdefault(int(stat_fields(name)[1]), []).append(int(name))
    found: list[int] = []
    unseen = [root]
    while unseen:
        below = children.get(unseen.pop(), [])
        found += below
        unseen += below
    return found


def boot_id() -> str:
    """Returns what changes when the machine is started: processes of another boot are gone."""
    with open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as file:  # noqa: PTH123
        return file.read().strip()


def survivors(claim: Claim, allocation: str) -> list[int]:
    """Returns the processes of a run whose supervisor vanished.

    Members of the job's session or group, unless its leader's pid now belongs to a process that started at another
    time (Linux reuses the number only after session and group are empty); and whoever carries the allocation's mark in
    its environment, for those that made a session of their own.
    """
    job = claim["job_pid"]
    if job is not None and _start_ticks(job) not in (None, claim["job_start_ticks"]):
        job = None
    mark = f"{ALLOCATION_VARIABLE}={allocation}".encode()
    found = []
    for name in os.listdir("/proc"):  # noqa: PTH208
        if not name.isdigit():
            continue
        with contextlib.suppress(OSError, IndexError):
            fields = stat_fields(name)
            if fields[0] in "ZX":
                continue
            if (job is not None and job in (int(fields[2]), int(fields[3]))) or mark in _environment(name):
                found.append(int(name))
    return found


def kill_survivors(claim: Claim, allocation: str) -> bool:
    """Kills what is left of a run without supervisor; True when nothing was left. Call it again until it is."""
    if claim["cgroup"] is not None:
        with contextlib.suppress(OSError):  # no cgroup.kill before Linux 5.14, or the group is already removed
            write_text(f"{claim['cgroup']}/cgroup.kill", "1")
    found = survivors(claim, allocation)
    for pid in found:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    return not found


def _start_ticks(pid: int) -> int | None:
    try:
        return int(stat_fields(pid)[19])
    except (OSError, IndexError):
        return None


def _environment(name: str) -> list[bytes]:
    with open(f"/proc/{name}/environ", "rb") as file:  # noqa: PTH123
        return file.read().split(b"\0")
