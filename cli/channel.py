"""WebSockets to the server: how `exec`, `run --pty` and `port-forward` carry bytes both ways.

The `websockets` library is loaded here and nowhere else in the client, when one of those is typed: it costs a tenth of
a second that no other command shall pay.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cli.answers import BrokenAnswer, Json, mapping, sub, whole
from cli.client import CONNECT_SECONDS, HOPS, Client
from cli.faults import ApiError, refusal

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection


class NoSuchProgram(ApiError):
    """What was to run is no program there: exits as a shell does, 126 or 127."""

    def __init__(self, refused: ApiError, exit_code: int) -> None:
        super().__init__(refused.code, refused.message, tries=refused.tries)
        self.exit_code = exit_code


@contextmanager
def channel(client: Client, path: str, first: Json) -> Iterator["ClientConnection"]:
    """Opens a WebSocket, sends the first message and waits until it has taken effect. Raises ApiError."""
    from websockets.exceptions import InvalidHandshake, InvalidStatus, WebSocketException
    from websockets.sync.client import connect

    for _ in range(HOPS):
        way = client.doorway(path)
        try:
            opened = connect(
                way.url,
                additional_headers=way.headers,
                ssl=way.trust,
                user_agent_header="turnstile-cli",
                proxy=None,  # as the client's other requests
                open_timeout=CONNECT_SECONDS,
                max_size=None,
            )
        except InvalidStatus as answered:
            said = answered.response
            refused = client.turned_away(said.status_code, said.headers.get("Location"), bytes(said.body or b""))
            if refused is not None:
                raise refused from None
            continue
        except (OSError, InvalidHandshake, WebSocketException) as broken:
            raise client.unreachable(broken) from None
        with opened:
            opened.send(json.dumps(first))
            _check_started(opened)
            yield opened
        return
    raise ApiError("unavailable", "no daemon leads at the moment; try again")


def _check_started(opened: "ClientConnection") -> None:
    from websockets.exceptions import ConnectionClosed

    try:
        said = opened.recv()
        answer = mapping(json.loads(said))
    except ConnectionClosed:
        raise ApiError("unavailable", "the server closed the connection") from None
    except ValueError:
        raise BrokenAnswer("it does not begin a session with words") from None
    problem = sub(answer, "error")
    if problem is None:
        return
    refused = refusal(0, json.dumps(problem).encode(), stranger="refused", note="")
    code = whole(answer, "exit_code")
    raise refused if code is None else NoSuchProgram(refused, code)
