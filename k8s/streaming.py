"""Long talks with a container through the API server: exec, attach and port-forward over WebSockets.

The channel protocol (`v4.channel.k8s.io`, client-go's `remotecommand`): the first byte of each binary message names its
stream. From Kubernetes 1.30 on there is `v5`, whose one addition is that a stream can be closed: before, a program's
input has no end.
"""

import contextlib
import json
import ssl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, WebSocketException
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from k8s.api import Api
from k8s.problems import Unreachable, rejection

STDIN, STDOUT, STDERR, ERROR, RESIZE = range(5)
CLOSE = 255
PROTOCOLS = ("v5.channel.k8s.io", "v4.channel.k8s.io")
PORT_PROTOCOLS = ("v4.channel.k8s.io",)
OPEN_SECONDS = 10.0
PING_SECONDS = 20.0
SILENCE_SECONDS = 60.0
"""A server that answers no ping for so long is gone: a half-open connection looks like that."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How what ran in a container ended. `exit_code` is None where it was not run; `message` says why."""

    exit_code: int | None
    message: str


class Stream:
    """One such talk. `send` and `close` from any thread; `messages` is for one."""

    def __init__(self, connection: ClientConnection, opened: contextlib.ExitStack) -> None:
        self._connection = connection
        self._opened = opened

    @classmethod
    def open(cls, api: Api, path: str, query: Sequence[tuple[str, str]], protocols: Sequence[str]) -> "Stream":
        """Opens one. Raises KubernetesProblem."""
        access = api.streaming()
        url = access.url.replace("http", "ws", 1) + path + "?" + urlencode(query)
        opened = contextlib.ExitStack()
        try:
            opening = connect(
                url,
                ssl=access.tls if url.startswith("wss") else None,
                subprotocols=[Subprotocol(each) for each in protocols],
                additional_headers=dict(access.headers),
                compression=None,
                proxy=access.proxy,
                open_timeout=OPEN_SECONDS,
                ping_interval=PING_SECONDS,
                ping_timeout=SILENCE_SECONDS,
                close_timeout=1.0,
            )
            connection = opened.enter_context(opening)
        except InvalidStatus as refused:
            answer = refused.response
            raise rejection("GET", path, answer.status_code, bytes(answer.body or b"")) from refused
        except (OSError, InvalidHandshake, WebSocketException, ssl.SSLError) as problem:
            raise Unreachable(f"{access.url} opens no stream: {problem}") from problem
        return cls(connection, opened)

    @property
    def can_close_input(self) -> bool:
        """True where the server lets a program's input end."""
        return self._connection.subprotocol == PROTOCOLS[0]

    def send(self, channel: int, data: bytes) -> bool:
        """Sends a piece; False when the stream has ended."""
        try:
            self._connection.send(bytes((channel,)) + data)
        except (ConnectionClosed, OSError):
            return False
        return True

    def resize(self, rows: int, columns: int) -> bool:
        """Tells the container's terminal its size."""
        return self.send(RESIZE, json.dumps({"Width": columns, "Height": rows}).encode())

    def close_input(self) -> None:
        """Says that nothing more is typed, where the server understands that."""
        if self.can_close_input:
            self.send(CLOSE, bytes((STDIN,)))

    def messages(self) -> Iterator[tuple[int, bytes]]:
        """Yields (channel, piece) until the stream has ended."""
        try:
            for message in self._connection:
                data = message if isinstance(message, bytes) else message.encode()
                if data:
                    yield data[0], data[1:]
        except (ConnectionClosed, OSError):
            return

    def close(self) -> None:
        """Ends it. What runs in the container may go on."""
        self._opened.close()


def outcome_of(data: bytes) -> Outcome:
    """Returns what the error channel says at the end: a `Status` of Kubernetes."""
    try:
        status: dict[str, Any] = json.loads(data)
    except ValueError:
        return Outcome(None, data.decode("utf-8", "replace"))
    message = str(status.get("message") or "")
    if status.get("status") == "Success":
        return Outcome(0, message)
    causes = (status.get("details") or {}).get("causes") or ()
    codes = [str(each.get("message")) for each in causes if each.get("reason") == "ExitCode"]
    return Outcome(int(codes[0]) if codes and codes[0].isdigit() else None, message)
