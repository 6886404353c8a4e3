"""A network peer that speaks docs/api.md from recorded answers, on 127.0.0.1, for tests of the client.

It decides nothing: a test says what is answered, and reads what was asked.
"""

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

NOW = "2026-11-23T12:31:07Z"
Json = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """A request as it arrived."""

    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Json:
        """The body as JSON."""
        found: Json = json.loads(self.body)
        return found


@dataclass(frozen=True)
class Reply:
    """What is answered. `breaks_off` closes the connection: before the answer, or in the middle of its body."""

    body: bytes
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=lambda: {"Content-Type": "application/json"})
    breaks_off: bool = False


Answer = Reply | Callable[[Asked], Reply]


def envelope(kind: str, **content: Any) -> Json:
    """An answer's envelope, at the fixed time of these tests."""
    return {"apiVersion": "turnstile/v1", "kind": kind, "generated_at": NOW, **content}


def page(kind: str, items: list[Json], next_page: str | None = None, **content: Any) -> Json:
    """A list's envelope."""
    return envelope(kind, items=items, next_page=next_page, **content)


def said(document: Json, status: int = 200, **headers: str) -> Reply:
    """A JSON answer."""
    return Reply(json.dumps(document).encode(), status, {"Content-Type": "application/json", **headers})


def problem(code: str, status: int, detail: str, **more: Any) -> Reply:
    """A problem document."""
    headers = more.pop("headers", {})
    document = {
        "type": f"urn:turnstile:problem:{code}",
        "title": code,
        "status": status,
        "detail": detail,
        "code": code,
        "try": [],
        "problems": [],
        "request_id": "01JD8W3Z6Q5K9XN0V4T2R7M1AB",
    } | more
    return Reply(json.dumps(document).encode(), status, {"Content-Type": "application/problem+json", **headers})


class Peer:
    """A server with an answer for each (method, path), the last of several repeated; 404 for what it was not told."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self._answers: dict[tuple[str, str], list[Answer]] = {}
        self._lock = threading.Lock()
        peer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _serve(self) -> None:
                parts = urlsplit(self.path)
                length = int(self.headers.get("Content-Length") or 0)
                asked = Asked(
                    self.command, parts.path, parse_qs(parts.query), dict(self.headers.items()), self.rfile.read(length)
                )
                reply = peer._reply(asked)
                if reply.breaks_off and not reply.body:
                    self.close_connection = True
                    self.connection.close()
                    return
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                claimed = len(reply.body) + (100 if reply.breaks_off else 0)
                self.send_header("Content-Length", str(claimed))
                self.end_headers()
                self.wfile.write(reply.body)
                if reply.breaks_off:
                    self.wfile.flush()
                    self.close_connection = True

            do_GET = do_POST = do_PUT = do_DELETE = _serve  # noqa: N815  (the standard library's names)

            def log_message(self, *_: object) -> None:
                """Keeps quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def answers(self, method: str, path: str, *replies: Answer | Json) -> None:
        """Says what is answered to a request, one after the other; the last one stays."""
        ready: list[Answer] = [said(each) if isinstance(each, dict) else each for each in replies]
        with self._lock:
            self._answers[(method, path)] = ready

    def requests(self, method: str, path: str) -> list[Asked]:
        """The requests that arrived at a path."""
        with self._lock:
            return [each for each in self.asked if (each.method, each.path) == (method, path)]

    def close(self) -> None:
        """Stops answering."""
        self._server.shutdown()
        self._thread.join(5)
        self._server.server_close()

    def _reply(self, asked: Asked) -> Reply:
        with self._lock:
            self.asked.append(asked)
            listed = self._answers.get((asked.method, asked.path))
            if not listed:
                return problem("not_found", 404, f"no {asked.path} here")
            answer = listed.pop(0) if len(listed) > 1 else listed[0]
        return answer(asked) if callable(answer) else answer
