"""The supervisor's side of coming into a running job: a socket in its run directory, and those who came in by it.

Whoever may open the run directory (the daemon's user) connects, and sends one packet of JSON with descriptors:

    {"do": "run", "argv": […], "environment": {…}, "is_terminal": …}   with the descriptors for 0, 1 and 2
    {"do": "attach"}                                                   the terminal's own end comes back
    {"do": "signal", "number": 2}                                      for what the connection runs

The answer to `run` is `{"pid": n}`, at its end `{"exit_code": n}`; what cannot be is `{"error": "…"}`. A program lives
no longer than its connection, and is a process of the job like any other: in its tree, its group, its reckoning. What a
job shows on its terminal waits there for who sits down: the supervisor never reads it.

Shared with the supervisor, which must start fast: imports stay few.
"""

import contextlib
import errno
import json
import os
import select
import signal
import socket
import time

from scheduler import rundir
from scheduler.processes import CommandError, LaunchError, Streams, launch

MOST_GUESTS = 64
PACKET_BYTES = 160 * 1024
"""Of one request: a command of 128 KiB, the most that is taken, and what is around it."""
HANGUP_SECONDS = 5.0
"""Between the hang-up and the kill of a program whose caller has gone."""
PATIENCE_SECONDS = 60.0
"""How long a job with a terminal waits for somebody to sit there, at its start and after a broken connection: enough
for a restart of the daemon, short enough that a closed laptop does not keep GPUs for the night."""


class _Guest:
    """One connection, and the program that it runs once it has asked for one."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.pid = 0
        self.sits = False
        self.kill_at = float("inf")


class Entrance:
    """The socket of one rank. Nothing that comes over it can end the supervisor."""

    def __init__(self, directory: str, order: rundir.Order) -> None:
        self._order = order
        self._terminal: int | None = None
        self._job_pid = 0
        self._guests: dict[int, _Guest] = {}
        self._dying: list[_Guest] = []
        self._alone_since = time.monotonic()
        self._epoll = select.epoll()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.setblocking(False)
        # By the directory's descriptor: a socket's path may have 107 bytes (unix(7)), and a data directory more.
        at = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._listener.bind(f"/proc/self/fd/{at}/{rundir.ENTRANCE}")
            self._listener.listen(MOST_GUESTS)
            self._epoll.register(self._listener, select.EPOLLIN)
        except OSError as error:
            os.write(2, f"no entrance: {error}\n".encode())  # the job runs without
        finally:
            os.close(at)

    def fileno(self) -> int:
        """Returns what becomes readable when there is something to `look` at."""
        return self._epoll.fileno()

    def launch_at_terminal(self) -> int:
        """Starts the order's command at a terminal of its own; returns its process id. Raises LaunchError,
        CommandError."""
        try:
            self._terminal, inner = os.openpty()
        except OSError as error:
            raise LaunchError(f"no terminal: {os.strerror(error.errno or 0)}") from error
        try:
            self._give_away(inner)
            pid = launch(self._order, self._order["environment"], Streams(inner, inner, inner, is_terminal=True))
        finally:
            os.close(inner)
        self.open_to(pid)
        return pid

    def open_to(self, job_pid: int) -> None:
        """Lets people in: `job_pid` is the process whose environment theirs will be."""
        self._job_pid = job_pid
        self._alone_since = time.monotonic()

    def look(self) -> None:
        """Takes in whoever has come and whatever was asked."""
        for fd, _ in self._epoll.poll(0):
            if fd == self._listener.fileno():
                self._welcome()
            elif fd in self._guests:
                self._hear(self._guests[fd])

    def due(self) -> float:
        """Returns when `enforce` or `is_deserted` is next worth a call, on the monotonic clock."""
        waits = self._terminal is not None and not self._is_attended()
        deserted = self._alone_since + PATIENCE_SECONDS if waits else float("inf")
        return min([deserted, *(guest.kill_at for guest in self._dying)])

    def enforce(self, now: float) -> None:
        """Kills the programs that did not mind the hang-up."""
        for guest in self._dying:
            if now >= guest.kill_at:
                _signal(guest.pid, signal.SIGKILL)
                guest.kill_at = now + 1.0

    def is_deserted(self, now: float) -> bool:
        """True when nobody has sat at the job's terminal for too long; once."""
        if self._terminal is None or self._is_attended() or now < self._alone_since + PATIENCE_SECONDS:
            return False
        self._alone_since = float("inf")
        return True

    def ended(self, pid: int, status: int) -> None:
        """Tells whoever ran it that a program has ended, if it was one of theirs."""
        self._dying = [guest for guest in self._dying if guest.pid != pid]
        for guest in tuple(self._guests.values()):
            if guest.pid == pid:
                code = os.waitstatus_to_exitcode(status)
                self._tell(guest, {"exit_code": code if code >= 0 else 128 - code})
                guest.pid = 0
                self._part_from(guest)

    def close(self) -> None:
        """Closes the door: the job is over, and what came in with it."""
        for guest in tuple(self._guests.values()):
            self._part_from(guest)
        self._listener.close()

    def _welcome(self) -> None:
        with contextlib.suppress(OSError):
            connection, _ = self._listener.accept()
            connection.setblocking(False)
            guest = _Guest(connection)
            if len(self._guests) >= MOST_GUESTS:
                self._tell(guest, {"error": f"{MOST_GUESTS} people are in this job already"})
                connection.close()
                return
            self._guests[connection.fileno()] = guest
            self._epoll.register(connection, select.EPOLLIN)

    def _hear(self, guest: _Guest) -> None:
        fds: list[int] = []
        try:
            data, fds, _, _ = socket.recv_fds(guest.connection, PACKET_BYTES, 3, socket.MSG_CMSG_CLOEXEC)
            if not data:
                self._part_from(guest)
                return
            self._do(guest, json.loads(data), fds)
        except BlockingIOError:
            return
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._tell(guest, {"error": f"not understood: {type(error).__name__}"})
            self._part_from(guest)
        finally:
            for fd in fds:
                os.close(fd)

    def _do(self, guest: _Guest, asked: dict[str, object], fds: list[int]) -> None:
        what = asked["do"]
        if what == "signal":
            number = asked["number"]
            if guest.pid and isinstance(number, int):
                _signal(guest.pid, number)
        elif what == "attach":
            self._seat(guest)
        elif what == "run" and not guest.pid and len(fds) == 3:
            self._run(guest, asked, fds)
        else:
            raise ValueError(what)

    def _run(self, guest: _Guest, asked: dict[str, object], fds: list[int]) -> None:
        argv, more = asked["argv"], asked["environment"]
        if not isinstance(argv, list) or not isinstance(more, dict):
            raise TypeError("argv")
        streams = Streams(fds[0], fds[1], fds[2], is_terminal=bool(asked["is_terminal"]))
        if streams.is_terminal:
            self._give_away(streams.input)
        try:
            environment = {**self._environment(), **more}
            order: rundir.Order = {**self._order, "argv": argv}
            guest.pid = launch(order, environment, streams)
        except CommandError as error:
            # As a shell says it: 127 for none of that name, 126 for what cannot be run.
            code = 127 if error.number in (errno.ENOENT, errno.ENOTDIR) else 126
            self._tell(guest, {"error": f"cannot run {argv[0]!r}: {error}", "exit_code": code})
            self._part_from(guest)
        except LaunchError as error:
            self._tell(guest, {"error": str(error)})
            self._part_from(guest)
        else:
            self._tell(guest, {"pid": guest.pid})

    def _environment(self) -> dict[str, str]:
        """Returns what the job was started with: it is in the kernel's keeping, so that ours need not hold secrets."""
        try:
            with open(f"/proc/{self._job_pid}/environ", "rb") as file:  # noqa: PTH123
                pairs = [pair.partition(b"=") for pair in file.read().split(b"\0") if b"=" in pair]
        except OSError as error:
            raise LaunchError(f"the job's environment cannot be read: {os.strerror(error.errno or 0)}") from error
        return {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs if name}

    def _seat(self, guest: _Guest) -> None:
        if self._terminal is None:
            self._tell(guest, {"error": "this job has no terminal; it was not submitted by 'run --pty'"})
            self._part_from(guest)
        elif self._is_attended():
            self._tell(guest, {"error": "somebody sits at this job's terminal already"})
            self._part_from(guest)
        else:
            guest.sits = True
            socket.send_fds(guest.connection, [b'{"pid": 0}'], [self._terminal])

    def _is_attended(self) -> bool:
        return any(guest.sits for guest in self._guests.values())

    def _give_away(self, terminal: int) -> None:
        """Makes a terminal the job's user's, who may then open it by its name."""
        if self._order["user"] is not None:
            os.fchown(terminal, self._order["uid"], self._order["gid"])
            os.fchmod(terminal, 0o620)

    def _part_from(self, guest: _Guest) -> None:
        """Ends a connection, and the program that lived by it."""
        if self._guests.pop(guest.connection.fileno(), None) is None:
            return
        guest.connection.close()
        if guest.sits:
            self._alone_since = time.monotonic()
        if guest.pid:
            _signal(guest.pid, signal.SIGHUP)
            _signal(guest.pid, signal.SIGCONT)
            guest.kill_at = time.monotonic() + HANGUP_SECONDS
            self._dying.append(guest)

    @staticmethod
    def _tell(guest: _Guest, what: dict[str, object]) -> None:
        with contextlib.suppress(OSError):  # who does not listen is not waited for
            guest.connection.send(json.dumps(what).encode())


def _signal(pid: int, number: int) -> None:
    """Signals a program and what it started in its session's first group."""
    with contextlib.suppress(OSError):
        os.killpg(pid, number)
