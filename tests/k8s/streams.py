"""The streams of a kubelet: exec, attach and port-forward over real WebSockets, behind the API server of ours.

What is run in a "container" is run on this machine, in a session of its own, as a container runtime does it; what a pod
itself runs begins when somebody first attaches to its terminal. /dev/shm of a pod is a folder of its own.
"""

import contextlib
import json
import os
import pty
import select
import socket
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Sequence
from fcntl import ioctl
from pathlib import Path
from typing import IO, Any

from websockets.datastructures import Headers
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol

STDIN, STDOUT, STDERR, ERROR, RESIZE, CLOSE = 0, 1, 2, 3, 4, 255
PIECE = 4096
OWN_TERMINAL = (
    "import fcntl, os, sys, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "os.execvp(sys.argv[1], sys.argv[1:])"
)
"""Makes standard input the terminal of a session of its own, so that Ctrl-C there is a signal."""


class Talk:
    """One WebSocket, from its handshake to its end."""

    def __init__(self, connection: socket.socket, head: bytes, protocols: Sequence[str]) -> None:
        self._connection = connection
        self._protocol = ServerProtocol(subprotocols=protocols)  # type: ignore[arg-type] # plain texts
        self._sending = threading.Lock()
        self._events: list[Frame] = []
        self._protocol.receive_data(head)
        (request,) = self._protocol.events_received()
        assert isinstance(request, Request)
        self._protocol.send_response(self._protocol.accept(request))
        self._flush()

    @property
    def can_close(self) -> bool:
        return self._protocol.subprotocol == "v5.channel.k8s.io"

    def send(self, channel: int, data: bytes) -> None:
        with self._sending, contextlib.suppress(OSError):
            self._protocol.send_binary(bytes((channel,)) + data)
            self._flush()

    def receive(self) -> bytes | None:
        """The next binary message; None at the end."""
        while not self._events:
            try:
                data = self._connection.recv(1 << 16)
            except OSError:
                return None
            if not data:
                return None
            with self._sending, contextlib.suppress(OSError):
                self._protocol.receive_data(data)
                self._events += [each for each in self._protocol.events_received() if isinstance(each, Frame)]
                self._flush()
            self._events = [each for each in self._events if each.opcode in {Opcode.BINARY, Opcode.CLOSE}]
        event = self._events.pop(0)
        return bytes(event.data) if event.opcode is Opcode.BINARY else None

    def end(self) -> None:
        with self._sending, contextlib.suppress(Exception):  # it may be closed by the other side already
            self._protocol.send_close(1000)
            self._flush()
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def _flush(self) -> None:
        for data in self._protocol.data_to_send():
            if data:
                self._connection.sendall(data)


def request_head(path: str, headers: Any) -> bytes:  # Any: an http.client.HTTPMessage
    lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in Headers(headers.items()).raw_items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


class Kubelet:
    """What runs in pods. `folder` is for their /dev/shm."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shell = "/bin/sh"
        self.terminals: dict[str, tuple[subprocess.Popen[bytes], int]] = {}
        """Pods' own programs, with the outer end of their terminals."""
        self.programs: list[subprocess.Popen[bytes]] = []

    def stop(self) -> None:
        for program in [*self.programs, *(program for program, _ in self.terminals.values())]:
            if program.poll() is None:
                program.kill()
            program.wait()
        for _, outer in self.terminals.values():
            with contextlib.suppress(OSError):
                os.close(outer)

    def exec(self, talk: Talk, pod: str, command: Sequence[str], *, is_terminal: bool) -> None:
        outer, inner = pty.openpty() if is_terminal else (-1, -1)
        pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), inner if is_terminal else subprocess.PIPE)
        try:
            program = self._start(pod, command, is_terminal=is_terminal, **pipes)
        except OSError as error:
            words = f'failed to exec in container: exec: "{command[0]}": {error.strerror}'
            talk.send(ERROR, json.dumps({"status": "Failure", "message": words}).encode())
            talk.end()
            return
        self.programs.append(program)
        if is_terminal:
            os.close(inner)
            outputs = [(outer, STDOUT)]
        else:
            assert program.stdout is not None
            assert program.stderr is not None
            outputs = [(program.stdout.fileno(), STDOUT), (program.stderr.fileno(), STDERR)]
        into = program.stdin or os.fdopen(os.dup(outer), "wb", buffering=0)
        threading.Thread(target=self._feed, args=(talk, into, outer), daemon=True).start()
        _pour(talk, outputs)
        _tell_end(talk, program.wait())
        for each in (into, program.stdout, program.stderr):
            if each is not None:
                with contextlib.suppress(OSError):  # it read no more of what it was given
                    each.close()
        if is_terminal:
            os.close(outer)

    def attach(self, talk: Talk, pod: str, command: Sequence[str]) -> int | None:
        """Returns the exit status when the program ended, None when the caller has gone before."""
        if pod not in self.terminals:
            outer, inner = pty.openpty()
            started = self._start(pod, command, is_terminal=True, stdin=inner, stdout=inner, stderr=inner)
            os.close(inner)
            self.terminals[pod] = (started, outer)
        program, outer = self.terminals[pod]
        gone = threading.Event()
        with os.fdopen(os.dup(outer), "wb", buffering=0) as into:
            threading.Thread(target=self._feed, args=(talk, into, outer, gone), daemon=True).start()
            is_over = _pour(talk, [(outer, STDOUT)], gone)
        if not is_over:
            return None
        code = program.wait()
        _tell_end(talk, 0)  # as kubelets do, whatever the status
        return code

    def forward(self, talk: Talk, port: int) -> None:
        for channel in (0, 1):
            talk.send(channel, struct.pack("<H", port))
        try:
            connection = socket.create_connection(("127.0.0.1", port), 5)
        except OSError as error:
            talk.send(1, f"error forwarding port {port}: {error.strerror}".encode())
            talk.end()
            return
        with connection:
            threading.Thread(target=_to_port, args=(talk, connection), daemon=True).start()
            while data := connection.recv(PIECE):
                talk.send(0, data)
        talk.end()

    def _start(self, pod: str, command: Sequence[str], *, is_terminal: bool, **pipes: Any) -> subprocess.Popen[bytes]:
        shm = self.folder / pod
        shm.mkdir(exist_ok=True)
        command = [self.shell if word == "/bin/sh" else word for word in command]
        argv = [word.replace("/dev/shm", str(shm)) for word in command]
        if is_terminal:
            argv = [sys.executable, "-c", OWN_TERMINAL, *argv]
        return subprocess.Popen(argv, bufsize=0, start_new_session=not is_terminal, **pipes)

    def _feed(self, talk: Talk, into: IO[bytes], terminal: int, gone: threading.Event | None = None) -> None:
        with contextlib.suppress(OSError, ValueError):  # nobody reads any more
            while (message := talk.receive()) is not None:
                channel, data = message[0], message[1:]
                if channel == STDIN:
                    into.write(data)
                elif channel == RESIZE:
                    size = json.loads(data)
                    ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", size["Height"], size["Width"], 0, 0))
                elif channel == CLOSE and talk.can_close:
                    into.close()
        if gone is not None:
            gone.set()


def _pour(talk: Talk, outputs: list[tuple[int, int]], gone: threading.Event | None = None) -> bool:
    """Sends what comes out until all outputs have ended; False when the caller has gone before."""
    channels = dict(outputs)
    while channels:
        if gone is not None and gone.is_set():
            return False
        for fd in select.select(list(channels), [], [], 0.05)[0]:
            try:
                data = os.read(fd, PIECE)
            except OSError:  # EIO: the last program at a terminal has gone
                data = b""
            if data:
                talk.send(channels[fd], data)
            else:
                del channels[fd]
    return True


def _tell_end(talk: Talk, status: int) -> None:
    code = status if status >= 0 else 128 - status
    told: dict[str, Any] = {"metadata": {}, "status": "Success"}
    if code:
        causes = [{"reason": "ExitCode", "message": str(code)}]
        told = {"metadata": {}, "status": "Failure", "reason": "NonZeroExitCode", "details": {"causes": causes}}
    talk.send(ERROR, json.dumps(told).encode())
    talk.end()


def _to_port(talk: Talk, connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while (message := talk.receive()) is not None:
            connection.sendall(message[1:])
        connection.shutdown(socket.SHUT_RDWR)
