"""The way into jobs that run as pods: programs beside them, the terminal of `run --pty`, their ports.

    caller ─► daemon ─► pipes ─► threads here ─► WebSocket ─► API server ─► kubelet ─► container

What is run begins with a few words of the container's own shell, which tell its process id and set its variables: by
that id it is signalled, and ended when its caller has gone, which the kubelet would not do. An image without `/bin/sh`
cannot be entered. Three threads carry each program, two each connection to a port.
"""

import contextlib
import json
import logging
import os
import select
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from k8s.api import Api
from k8s.pods import Pod
from k8s.problems import KubernetesProblem
from k8s.streaming import ERROR, PORT_PROTOCOLS, PROTOCOLS, STDERR, STDIN, STDOUT, Outcome, Stream, outcome_of
from scheduler.executor import Entered, EntryRefused, Program

ANSWER_SECONDS = 20.0
"""For a container that is asked to run something: a node out of breath takes seconds."""
REFUSAL_SECONDS = 0.25
"""How long a port is given to say that nothing listens there: the kubelet says it within milliseconds, and says nothing
when something does."""
PIECE_BYTES = 32 << 10
MARK = b"turnstile-pid "
_BEGIN = (
    'printf "turnstile-pid %d\\n" "$$"; n=$1; shift; '
    'while [ "$n" -gt 0 ]; do export "$1"; shift; n=$((n-1)); done; exec "$@"'
)
_SIGNAL = 'kill -"$1" -"$0" 2>/dev/null || kill -"$1" "$0"'
_END = (
    'kill -HUP -"$0" 2>/dev/null || kill -HUP "$0" || exit 0; i=0; '
    'while kill -0 "$0" 2>/dev/null && [ "$i" -lt 5 ]; do sleep 1; i=$((i+1)); done; '
    'kill -KILL -"$0" 2>/dev/null || kill -KILL "$0" 2>/dev/null'
)

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Remote(Entered):
    """Ends of what runs in a container: its terminal, if it has one, is not of this machine."""

    def resize(self, size: tuple[int, int]) -> None:
        """Tells the container's terminal its rows and columns."""
        with contextlib.suppress(OSError):
            self.control.send(json.dumps({"do": "resize", "size": size}).encode())


@dataclass(slots=True)
class _Ends:
    """The far ends of the pipes that a caller has."""

    input_fd: int
    output_fd: int
    error_fd: int | None
    control: socket.socket


@dataclass(slots=True)
class _Talk:
    """One program, or one seat at a terminal, and the threads that carry its bytes."""

    stream: Stream
    ends: _Ends
    signal: Callable[[int, int], None]
    """Sends a signal, by number, to a process id of the container."""
    leave: Callable[[int | None], None]
    """What is done when the caller has gone before the end."""
    needs_mark: bool
    began: threading.Event = field(default_factory=threading.Event)
    pid: int | None = None
    outcome: Outcome | None = None

    def start(self) -> None:
        for work in (self._from_container, self._to_container, self._obey):
            threading.Thread(target=work, name="inside a pod", daemon=True).start()

    def _from_container(self) -> None:
        rest = b"" if self.needs_mark else None
        targets = {STDOUT: self.ends.output_fd, STDERR: self.ends.error_fd or self.ends.output_fd}
        if not self.needs_mark:
            self.began.set()
        for channel, data in self.stream.messages():
            if channel == ERROR:
                self.outcome = outcome_of(data)
                break
            output = data
            if channel == STDOUT and rest is not None:
                rest, output = self._take_mark(rest + data)
            if channel in targets and output and not _write(targets[channel], output):
                break
        self._finish()

    def _take_mark(self, data: bytes) -> tuple[bytes | None, bytes]:
        """Returns what is still to be looked at and what is output, once the first line is there."""
        line, end, output = data.partition(b"\n")
        if not end:
            return data, b""
        number = line.strip().removeprefix(MARK)
        self.pid = int(number) if number.isdigit() else None
        self.began.set()
        return None, output

    def _finish(self) -> None:
        os.close(self.ends.output_fd)
        if self.ends.error_fd is not None:
            os.close(self.ends.error_fd)
        if self.outcome is None:
            self.outcome = Outcome(None, "the connection to the container broke")
        with contextlib.suppress(OSError):
            # Of a pod's own program the kubelet says success whatever its status: that is the job's end to tell.
            if self.needs_mark and self.outcome.exit_code is not None:
                self.ends.control.send(json.dumps({"exit_code": self.outcome.exit_code}).encode())
            self.ends.control.shutdown(socket.SHUT_WR)
        self.began.set()

    def _to_container(self) -> None:
        with contextlib.suppress(OSError):
            while data := os.read(self.ends.input_fd, PIECE_BYTES):
                if not self.stream.send(STDIN, data):
                    break
            else:
                self.stream.close_input()
        os.close(self.ends.input_fd)

    def _obey(self) -> None:
        """Does what the caller asks by the control socket, until it closes that."""
        while True:
            try:
                data = self.ends.control.recv(4096)
            except OSError:
                data = b""
            if not data:
                break
            asked = json.loads(data)
            if asked.get("do") == "resize":
                rows, columns = asked["size"]
                self.stream.resize(int(rows), int(columns))
            elif self.pid is not None and self.outcome is None:
                self.signal(self.pid, int(asked["number"]))
        if self.outcome is None:
            self.leave(self.pid)
        self.stream.close()
        self.ends.control.close()


class Inside:
    """Opens such ways. From any thread."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def enter(self, pod: Pod, program: Program) -> Entered:
        """Runs a program in a pod's container, with its user, environment and limits. Raises EntryRefused."""
        variables = [f"{name}={value}" for name, value in program.environment.items()]
        command = ["/bin/sh", "-c", _BEGIN, "sh", str(len(variables)), *variables, *program.argv]
        is_terminal = program.terminal is not None
        stream = self._open(pod, "exec", command, is_terminal=is_terminal)
        if program.terminal is not None:
            stream.resize(*program.terminal)
        ours, theirs = _pipes(is_terminal=is_terminal)
        talk = _Talk(stream, theirs, lambda pid, number: self._signal(pod, pid, number), self._leaver(pod), True)
        talk.start()
        if not talk.began.wait(ANSWER_SECONDS):
            ours.close()
            raise EntryRefused("its container does not answer")
        if talk.pid is None:
            ours.close()
            words = "nothing" if talk.outcome is None else talk.outcome.message
            raise EntryRefused(f"its container runs nothing beside the job (an image needs /bin/sh for it): {words}")
        return ours

    def sit_down(self, pod: Pod, size: tuple[int, int], leave: Callable[[], None]) -> Entered:
        """Takes the seat at the terminal of a pod's own program; calls `leave` when the caller has gone.

        Raises EntryRefused.
        """
        stream = self._open(pod, "attach", (), is_terminal=True)
        stream.resize(*size)
        ours, theirs = _pipes(is_terminal=True)
        _Talk(stream, theirs, lambda _pid, _number: None, lambda _: leave(), False).start()
        return ours

    def reach(self, pod: Pod, port: int) -> socket.socket:
        """Returns a connection to a port of a pod's own network. Raises EntryRefused."""
        try:
            stream = Stream.open(self._api, _path(pod, "portforward"), [("ports", str(port))], PORT_PROTOCOLS)
        except KubernetesProblem as problem:
            raise EntryRefused(str(problem)) from problem
        ours, theirs = socket.socketpair()
        way = _Way(stream, theirs)
        way.start()
        if way.refused.wait(REFUSAL_SECONDS):
            ours.close()
            _log.info("port %d of pod %s: %s", port, pod.name, way.words)
            raise EntryRefused(f"nothing listens on port {port}")
        return ours

    def run(self, pod: Pod, command: Sequence[str]) -> Outcome | None:
        """Runs something short in a pod's container and waits for it; None when that broke. Raises EntryRefused."""
        stream = self._open(pod, "exec", command, is_terminal=False)
        found = next((outcome_of(data) for channel, data in stream.messages() if channel == ERROR), None)
        stream.close()
        return found

    def _open(self, pod: Pod, how: str, command: Sequence[str], *, is_terminal: bool) -> Stream:
        asked: Mapping[str, str] = {
            "container": pod.container,
            "stdin": "true",
            "stdout": "true",
            "stderr": "false" if is_terminal else "true",
            "tty": "true" if is_terminal else "false",
        }
        query = [*asked.items(), *(("command", each) for each in command)]
        try:
            return Stream.open(self._api, _path(pod, how), query, PROTOCOLS)
        except KubernetesProblem as problem:
            raise EntryRefused(str(problem)) from problem

    def _signal(self, pod: Pod, pid: int, number: int) -> None:
        try:
            self.run(pod, ["/bin/sh", "-c", _SIGNAL, str(pid), str(number)])
        except EntryRefused as problem:
            _log.warning("a signal for process %d of pod %s was not sent: %s", pid, pod.name, problem)

    def _leaver(self, pod: Pod) -> Callable[[int | None], None]:
        """Returns what ends a program whose caller has gone: a hang-up, five seconds, the kill."""

        def leave(pid: int | None) -> None:
            if pid is None:
                return
            try:
                self.run(pod, ["/bin/sh", "-c", _END, str(pid)])
            except EntryRefused as problem:
                _log.warning("process %d of pod %s goes on without its caller: %s", pid, pod.name, problem)

        return leave


class _Way:
    """A connection to a port: bytes between a socket and a stream, a thread each way."""

    def __init__(self, stream: Stream, end: socket.socket) -> None:
        self._stream = stream
        self._end = end
        self.refused = threading.Event()
        self.words = ""

    def start(self) -> None:
        for work in (self._from_port, self._to_port):
            threading.Thread(target=work, name="port of a pod", daemon=True).start()

    def _from_port(self) -> None:
        greeted: set[int] = set()
        for channel, message in self._stream.messages():
            data = message if channel in greeted else message[2:]  # each begins with its port's number
            greeted.add(channel)
            if not data:
                continue
            if channel == 1:
                self.words = data.decode("utf-8", "replace").strip()
                self.refused.set()
                break
            try:
                self._end.sendall(data)
            except OSError:
                break
        else:
            self.words = self.words or "the connection was closed at once"
            if not greeted - {1}:
                self.refused.set()
        self._stream.close()
        with contextlib.suppress(OSError):
            self._end.shutdown(socket.SHUT_RDWR)

    def _to_port(self) -> None:
        with contextlib.suppress(OSError):
            while data := self._end.recv(PIECE_BYTES):
                if not self._stream.send(0, data):
                    break
            # The protocol has no half a close: what comes is awaited until the caller has gone altogether.
            watch = select.poll()
            watch.register(self._end, 0)
            watch.poll()
        self._stream.close()
        self._end.close()


def _path(pod: Pod, how: str) -> str:
    return f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}/{how}"


def _pipes(*, is_terminal: bool) -> tuple[Entered, _Ends]:
    """Returns the caller's ends, which never block, and ours, which do."""
    in_read, in_write = os.pipe()
    out_read, out_write = os.pipe()
    err_read, err_write = (None, None) if is_terminal else os.pipe()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for fd in (in_write, out_read, err_read):
        if fd is not None:
            os.set_blocking(fd, False)
    ours.setblocking(False)
    return _Remote(in_write, out_read, err_read, ours), _Ends(in_read, out_write, err_write, theirs)


def _write(fd: int, data: bytes) -> bool:
    """Writes all of it; False when nobody reads any more."""
    left = memoryview(data)
    try:
        while left:
            left = left[os.write(fd, left) :]
    except OSError:
        return False
    return True
