"""The daemon's side of coming into a running job of this machine: see `entrance` for what stands at the other end.

A port is reached only where a process of that very job listens on it. Everything else on this machine (the daemon's
own database, another tenant's notebook) is as if it were not there, whichever address it listens on.
"""

import contextlib
import json
import os
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from scheduler import rundir
from scheduler.executor import CannotRun, Entered, EntryRefused, Program, set_size
from scheduler.processes import boot_id, descendants

ANSWER_SECONDS = 10.0
"""For a supervisor that is asked: it answers in a millisecond unless the machine is out of breath."""
CONNECT_SECONDS = 5.0
_LISTENING = "0A"  # TCP_LISTEN, include/net/tcp_states.h


@dataclass(frozen=True, slots=True)
class _Listener:
    """A row of /proc/net/tcp or tcp6 that listens."""

    family: socket.AddressFamily
    host: str
    inode: int

    @property
    def is_wildcard(self) -> bool:
        return self.host in {"0.0.0.0", "::"}  # noqa: S104 -- read, not bound


def run_inside(directory: str, program: Program) -> Entered:
    """Runs a program inside the job of a rank's run directory. Raises EntryRefused."""
    with contextlib.ExitStack() as opened:
        if program.terminal is not None:
            outer, inner = os.openpty()
            set_size(outer, program.terminal)
            ours, theirs = [outer], [inner, inner, inner]
        else:
            (in_read, in_write), (out_read, out_write), (err_read, err_write) = os.pipe(), os.pipe(), os.pipe()
            ours, theirs = [in_write, out_read, err_read], [in_read, out_write, err_write]
        for fd in set(theirs):
            opened.callback(os.close, fd)
        with contextlib.ExitStack() as undo:
            for fd in ours:
                undo.callback(os.close, fd)
            control = _connect(directory)
            undo.callback(control.close)
            asked = {
                "do": "run",
                "argv": list(program.argv),
                "environment": dict(program.environment),
                "is_terminal": program.terminal is not None,
            }
            _ask(control, asked, theirs)
            undo.pop_all()
    for fd in ours:
        os.set_blocking(fd, False)
    control.setblocking(False)
    if program.terminal is None:
        return Entered(ours[0], ours[1], ours[2], control)
    return Entered(os.dup(ours[0]), ours[0], None, control)


def sit_down(directory: str, size: tuple[int, int]) -> Entered:
    """Takes the seat at the job's own terminal. Raises EntryRefused."""
    control = _connect(directory)
    try:
        (terminal,) = _ask(control, {"do": "attach"}, [])
    except (EntryRefused, ValueError):
        control.close()
        raise
    set_size(terminal, size)
    os.set_blocking(terminal, False)
    control.setblocking(False)
    return Entered(os.dup(terminal), terminal, None, control)


def reach(directory: str, port: int) -> socket.socket:
    """Returns a connection to a port on which the job of this run directory listens. Raises EntryRefused."""
    found = _place(directory, port)
    connection = socket.socket(found.family, socket.SOCK_STREAM)
    connection.settimeout(CONNECT_SECONDS)
    with contextlib.ExitStack() as undo:
        undo.callback(connection.close)
        try:
            connection.connect((_reachable(found), port))
        except OSError as error:
            raise EntryRefused(f"port {port} of the job does not answer: {error}") from error
        # Asked again: had it been closed in between and the port taken by another, the connection would be theirs.
        is_theirs = _place(directory, port).inode != found.inode
        if not is_theirs:
            undo.pop_all()
    if is_theirs:
        raise EntryRefused(f"port {port} changed hands; try again")
    return connection


def _place(directory: str, port: int) -> _Listener:
    claim: rundir.Claim | None = rundir.read_json(f"{directory}/{rundir.CLAIM}")
    if claim is None or claim["boot_id"] != boot_id() or not rundir.is_alive(directory):
        raise EntryRefused("the job does not run (any more)")
    own = _sockets_of(descendants(claim["pid"]))
    found = list(_listeners(port))
    ours = sorted((each for each in found if each.inode in own), key=lambda each: (each.family, each.host))
    if not ours:
        raise EntryRefused(f"no process of the job listens on port {port}")
    chosen = ours[0]
    for other in found:
        if other.inode not in own and other.family == chosen.family and (other.is_wildcard or _is_same(other, chosen)):
            raise EntryRefused(f"port {port} is another's too")
    return chosen


def _is_same(one: _Listener, other: _Listener) -> bool:
    return _reachable(one) == _reachable(other)


def _reachable(listener: _Listener) -> str:
    if not listener.is_wildcard:
        return listener.host
    return "127.0.0.1" if listener.family == socket.AF_INET else "::1"


def _listeners(port: int) -> Iterator[_Listener]:
    """Yields what listens on a port of this machine, by /proc/net/tcp (proc_net_tcp(5): words in host byte order)."""
    for name, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        try:
            with open(f"/proc/net/{name}", encoding="ascii") as file:  # noqa: PTH123
                rows = file.readlines()[1:]
        except FileNotFoundError:
            continue  # a kernel without IPv6
        for row in rows:
            fields = row.split()
            address, _, local = fields[1].partition(":")
            if fields[3] == _LISTENING and int(local, 16) == port:
                words = [int(address[i : i + 8], 16) for i in range(0, len(address), 8)]
                packed = struct.pack(f"={len(words)}I", *words)
                yield _Listener(family, socket.inet_ntop(family, packed), int(fields[9]))


def _sockets_of(pids: Sequence[int]) -> frozenset[int]:
    """Returns the inodes of the sockets that processes have open."""
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError):  # it has ended, or hides what it has
            for fd in os.listdir(f"/proc/{pid}/fd"):  # noqa: PTH208
                with contextlib.suppress(OSError):
                    target = os.readlink(f"/proc/{pid}/fd/{fd}")  # noqa: PTH115
                    if target.startswith("socket:["):
                        found.add(int(target[8:-1]))
    return frozenset(found)


def _connect(directory: str) -> socket.socket:
    """Returns a connection to the supervisor of a run directory. Raises EntryRefused."""
    try:
        at = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        raise EntryRefused("the job does not run (any more)") from None
    control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    control.settimeout(ANSWER_SECONDS)
    try:
        # By the directory's descriptor: a socket's path may have 107 bytes (unix(7)), and a data directory more.
        control.connect(f"/proc/self/fd/{at}/{rundir.ENTRANCE}")
    except OSError as error:
        control.close()
        why = "it ends, or was started by an older daemon"
        raise EntryRefused(f"the job cannot be entered: {why}") from error
    finally:
        os.close(at)
    return control


def _ask(control: socket.socket, what: Mapping[str, object], fds: Sequence[int]) -> list[int]:
    """Sends a request with its descriptors; returns those that came back. Raises EntryRefused with the answer's words.

    A program that cannot be run comes back as an exit status, as from a shell.
    """
    received: list[int] = []
    try:
        socket.send_fds(control, [json.dumps(what).encode()], list(fds))
        data, received, _, _ = socket.recv_fds(control, 1 << 16, 1, socket.MSG_CMSG_CLOEXEC)
    except OSError as error:
        raise EntryRefused("the job's supervisor does not answer") from error
    if not data:
        raise EntryRefused("the job ended")
    answer = json.loads(data)
    if "error" in answer:
        for fd in received:
            os.close(fd)
        code = answer.get("exit_code")
        raise CannotRun(str(answer["error"]), code) if isinstance(code, int) else EntryRefused(str(answer["error"]))
    return received
