"""A port of this machine that is a port of a running job: a WebSocket for each connection that is made to it."""

import contextlib
import json
import selectors
import socket
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cli.channel import channel
from cli.client import Client, step
from cli.errors import CliError, ExitCode
from cli.faults import ApiError
from cli.following import exit_code_of, has_ended
from cli.render import Screen
from cli.session import job_in

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

_PIECE_BYTES = 64 << 10
LOOK_SECONDS = 5.0
"""Between looks at whether the job still runs."""


def listen(port: int) -> socket.socket:
    """Returns a listener on this machine's own address alone. Raises OSError."""
    return socket.create_server(("127.0.0.1", port), backlog=64)


class Tunnel:
    """One pair of ports. Its connections are threads that end by themselves; the listener is the main thread's."""

    def __init__(
        self, client: Client, screen: Screen, reference: str, listener: socket.socket, remote: int, rank: int
    ) -> None:
        self._client = client
        self._screen = screen
        self._reference = reference
        self._listener = listener
        self._asked = {"port": remote, "rank": rank}
        self.local = int(listener.getsockname()[1])
        self.remote = remote

    def check(self) -> None:
        """Raises ApiError when the job cannot be entered; a port that nobody listens on yet is said and no error."""
        try:
            with channel(self._client, self._path, self._asked):
                return
        except ApiError as refused:
            if "listens" not in refused.message:
                raise
            self._screen.note(f"{refused.message} yet; connections are tried as they come")

    @staticmethod
    def serve(tunnels: Sequence["Tunnel"]) -> int:
        """Carries connections until the job has ended; returns its exit status. Ctrl-C ends it."""
        first = tunnels[0]
        look_at = time.monotonic() + LOOK_SECONDS
        with selectors.DefaultSelector() as waiting:
            for tunnel in tunnels:
                waiting.register(tunnel._listener, selectors.EVENT_READ, tunnel)  # noqa: SLF001 -- its own class
            while True:
                for key, _ in waiting.select(max(0.0, look_at - time.monotonic())):
                    key.data._welcome()  # noqa: SLF001
                if time.monotonic() >= look_at:
                    job = first._job()  # noqa: SLF001
                    if job is not None and has_ended(job):
                        first._screen.say(f"job {first._reference} has ended")  # noqa: SLF001
                        return exit_code_of(job)
                    look_at = time.monotonic() + LOOK_SECONDS

    @property
    def _path(self) -> str:
        return f"/v1/jobs/{step(self._reference)}/port"

    def _job(self) -> dict[str, object] | None:
        try:
            return dict(job_in(self._client.get(f"/v1/jobs/{step(self._reference)}")))
        except ApiError as problem:
            if problem.exit_code != ExitCode.UNREACHABLE:
                raise
            return None  # the server is away: the job goes on, and so does this

    def _welcome(self) -> None:
        connection, _ = self._listener.accept()
        threading.Thread(target=self._carry, args=(connection,), daemon=True).start()

    def _carry(self, connection: socket.socket) -> None:
        with contextlib.closing(connection):
            try:
                with channel(self._client, self._path, self._asked) as opened:
                    sending = threading.Thread(target=_send, args=(connection, opened), daemon=True)
                    sending.start()
                    _receive(connection, opened)
            except CliError as refused:
                self._screen.say(f"a connection to port {self.local} failed: {refused.message}")
            except OSError:
                return  # whoever connected went away


def _send(connection: socket.socket, opened: "ClientConnection") -> None:
    from websockets.exceptions import ConnectionClosed

    with contextlib.suppress(OSError, ConnectionClosed):
        while piece := connection.recv(_PIECE_BYTES):
            opened.send(piece)
        opened.send(json.dumps({"eof": True}))


def _receive(connection: socket.socket, opened: "ClientConnection") -> None:
    from websockets.exceptions import ConnectionClosed

    try:
        while True:
            piece = opened.recv()
            if isinstance(piece, str):
                connection.shutdown(socket.SHUT_WR)
                return
            connection.sendall(piece)
    except ConnectionClosed:
        return
