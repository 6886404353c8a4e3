"""The one door to the server: HTTP by the standard library, answers as JSON, what goes wrong as `ApiError`.

`http.client` and not httpx: importing it costs 0.03 s of CPU where httpx costs 0.12 (median of 7 on CPython 3.11), and
half of the 0.25 s that `turnstile queue` may take is spent in Typer. One connection is kept and used again. Requests
that may be repeated without harm (GET, PUT, DELETE, and POST with an idempotency key) are repeated when the connection
broke or the server asked for patience; nothing else is. Read in order: Endpoint, Client.
"""

import http.client
import json
import ssl
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO
from urllib.parse import quote, urlencode, urlsplit

from cli.answers import BrokenAnswer, Json, items, mapping, text
from cli.faults import ApiError, refusal, words

CONNECT_SECONDS = 5.0
READ_SECONDS = 90.0
"""Longer than the 60 s that the server may hold a long poll."""
ATTEMPTS = 3
"""Tries of one repeatable request, the first included."""
PATIENCE_SECONDS = 5.0
"""The longest Retry-After that is waited for; a longer one is the caller's to decide about."""
LARGEST_ANSWER_BYTES = 256 * 1024 * 1024
HOPS = 3
"""Redirects followed: a daemon that does not lead sends writes to the one that does."""

Query = Mapping[str, str | int | Sequence[str] | None]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where to send requests, as whom, and the words that say where both came from."""

    url: str
    token: str | None = None
    ca_file: str | None = None
    origin: str = ""

    def __repr__(self) -> str:
        """Leaves the token out."""
        return f"Endpoint(url={self.url!r}, origin={self.origin!r})"


@dataclass(frozen=True, slots=True)
class Event:
    """One server-sent event. `id` is where a later request goes on."""

    kind: str
    data: str
    id: str | None


@dataclass(frozen=True, slots=True)
class Doorway:
    """What opens a WebSocket: its address, the headers (with the token), the certificates to trust."""

    url: str
    headers: Mapping[str, str]
    trust: ssl.SSLContext | None

    def __repr__(self) -> str:
        """Leaves the token out."""
        return f"Doorway(url={self.url!r})"


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    path: str
    body: bytes | None
    headers: Mapping[str, str]
    is_repeatable: bool


class Client:
    """Speaks docs/api.md. Not for use by several threads; close it when done.

    Every method raises ApiError, with the server's words where it said any.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._base = urlsplit(endpoint.url)
        self._connection: http.client.HTTPConnection | None = None

    @property
    def endpoint(self) -> Endpoint:
        """Where this client sends its requests."""
        return self._endpoint

    def close(self) -> None:
        """Drops the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def get(self, path: str, query: Query | None = None) -> Json:
        """Returns the answer to a GET."""
        return self._json(_Request("GET", _target(path, query), None, {}, is_repeatable=True))

    def post(self, path: str, body: Json, *, query: Query | None = None, key: str | None = None) -> Json:
        """Returns the answer to a POST. With `key` the server carries it out once, however often it arrives."""
        headers = {} if key is None else {"Idempotency-Key": key}
        return self._json(_Request("POST", _target(path, query), _encode(body), headers, is_repeatable=key is not None))

    def put(self, path: str, body: Json, query: Query | None = None) -> Json:
        """Returns the answer to a PUT."""
        return self._json(_Request("PUT", _target(path, query), _encode(body), {}, is_repeatable=True))

    def delete(self, path: str, query: Query | None = None) -> Json:
        """Returns the answer to a DELETE."""
        return self._json(_Request("DELETE", _target(path, query), None, {}, is_repeatable=True))

    def listing(self, path: str, query: Query | None = None, *, most: int | None = None) -> dict[str, object]:
        """Returns one answer that holds the items of all pages, or the first `most` of them (`next_page` stays)."""
        answer = dict(self.get(path, query))
        found = items(answer)
        while (page := text(answer, "next_page")) is not None and (most is None or len(found) < most):
            further = self.get(path, {**(query or {}), "page": page})
            found += items(further)
            answer["next_page"] = further.get("next_page")
        answer["items"] = found if most is None else found[:most]
        return answer

    def chunk(self, path: str, query: Query | None = None) -> tuple[bytes, Mapping[str, str]]:
        """Returns raw bytes, as of a job's log, and the answer's headers by lower-case name."""
        response = self._send(_Request("GET", _target(path, query), None, {"Accept": "*/*"}, is_repeatable=True))
        body = self._read(response)
        return body, {name.lower(): value for name, value in response.getheaders()}

    def save(self, path: str, query: Query | None, into: BinaryIO) -> int:
        """Writes an answer's bytes into a file, in constant memory; returns how many they are."""
        response = self._send(_Request("GET", _target(path, query), None, {"Accept": "*/*"}, is_repeatable=True))
        written = 0
        try:
            while block := response.read(1 << 20):
                into.write(block)
                written += len(block)
            _check_whole(response)
        except (OSError, http.client.HTTPException) as broken:
            self.close()
            raise self._unreachable(broken) from None
        return written

    def events(self, path: str, query: Query | None = None, *, after: str | None = None) -> Iterator[Event]:
        """Yields server-sent events until the stream ends; a stream that breaks off ends without a word.

        The caller sees by the last event whether it was complete, and goes on with `after` set to the last id.
        """
        headers = {"Accept": "text/event-stream"} | ({} if after is None else {"Last-Event-ID": after})
        response = self._send(_Request("GET", _target(path, query), None, headers, is_repeatable=True))
        try:
            yield from _parse_events(response)
        except (OSError, http.client.HTTPException):
            return
        finally:
            # The stream may have been left in the middle: this connection cannot carry another request.
            self.close()

    def doorway(self, path: str) -> Doorway:
        """Returns how a WebSocket at this path is asked for."""
        scheme = "wss" if self._base.scheme == "https" else "ws"
        token = self._endpoint.token
        return Doorway(
            f"{scheme}://{self._base.netloc}{self._base.path.rstrip('/')}{path}",
            {} if token is None else {"Authorization": f"Bearer {token}"},
            ssl.create_default_context(cafile=self._endpoint.ca_file) if scheme == "wss" else None,
        )

    def turned_away(self, status: int, location: str | None, body: bytes) -> ApiError | None:
        """Returns why a WebSocket was not opened; None when another daemon leads, which this client now points at."""
        if status in {307, 308} and location is not None:
            self._turn_to(location)
            return None
        origin = f"{self._endpoint.url} answered {status}, not as Turnstile does"
        return refusal(status, body, stranger=origin, note=self._endpoint.origin)

    def unreachable(self, broken: BaseException) -> ApiError:
        """Returns what is said of a server that does not answer."""
        return self._unreachable(broken)

    def _json(self, request: _Request) -> Json:
        response = self._send(request)
        body = self._read(response)
        if not body:
            return {}
        try:
            return mapping(json.loads(body))
        except ValueError:
            raise BrokenAnswer(f"{request.method} {request.path} did not answer JSON") from None

    def _send(self, request: _Request) -> http.client.HTTPResponse:
        for attempt in range(1, ATTEMPTS + 1):
            may_repeat = request.is_repeatable and attempt < ATTEMPTS
            try:
                response = self._exchange(request)
            except (OSError, http.client.HTTPException) as broken:
                self.close()
                if may_repeat and _was_cut(broken):
                    continue
                raise self._unreachable(broken) from None
            if response.status < 300:
                return response
            patience = _patience(response) if may_repeat and response.status in {429, 503} else None
            refusal = self._refusal(response)
            if patience is None:
                raise refusal
            time.sleep(patience)
        raise AssertionError("the last attempt returns or raises")

    def _exchange(self, request: _Request) -> http.client.HTTPResponse:
        prefix = self._base.path.rstrip("/")
        response = self._once(request, prefix + request.path)
        for _ in range(HOPS):
            location = response.getheader("Location")
            if response.status not in {307, 308} or location is None:
                break
            self._read(response)
            self._turn_to(location)
            target = urlsplit(location)
            response = self._once(request, target.path + (f"?{target.query}" if target.query else ""))
        return response

    def _once(self, request: _Request, target: str) -> http.client.HTTPResponse:
        headers = {"Accept": "application/json", "User-Agent": "turnstile-cli", **request.headers}
        if request.body is not None:
            headers["Content-Type"] = "application/json"
        if self._endpoint.token is not None:
            headers["Authorization"] = f"Bearer {self._endpoint.token}"
        connection = self._connect()
        connection.request(request.method, target, body=request.body, headers=headers)
        return connection.getresponse()

    def _connect(self) -> http.client.HTTPConnection:
        if self._connection is None:
            host, port = self._base.hostname or "", self._base.port
            if self._base.scheme == "https":
                trust = ssl.create_default_context(cafile=self._endpoint.ca_file)
                fresh: http.client.HTTPConnection = http.client.HTTPSConnection(
                    host, port, timeout=CONNECT_SECONDS, context=trust
                )
            else:
                fresh = http.client.HTTPConnection(host, port, timeout=CONNECT_SECONDS)
            fresh.connect()
            assert fresh.sock is not None  # connect() returned
            fresh.sock.settimeout(READ_SECONDS)
            self._connection = fresh
        return self._connection

    def _turn_to(self, location: str) -> None:
        """Points this client at the daemon that leads. A token that travelled encrypted stays encrypted."""
        target = urlsplit(location)
        if not target.netloc or (target.scheme, target.netloc) == (self._base.scheme, self._base.netloc):
            return
        if target.scheme not in {"http", "https"} or (self._base.scheme == "https" and target.scheme != "https"):
            raise ApiError("unavailable", f"{self._endpoint.url} points at a place that a token may not be sent to")
        self.close()
        self._base = target._replace(path="", query="", fragment="")

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        try:
            body = response.read(LARGEST_ANSWER_BYTES + 1)
            if len(body) <= LARGEST_ANSWER_BYTES:
                _check_whole(response)
        except (OSError, http.client.HTTPException) as broken:
            self.close()
            raise self._unreachable(broken) from None
        if len(body) > LARGEST_ANSWER_BYTES:
            self.close()
            raise BrokenAnswer(f"it is longer than {LARGEST_ANSWER_BYTES} bytes")
        return body

    def _refusal(self, response: http.client.HTTPResponse) -> ApiError:
        body = self._read(response)
        origin = f"{self._endpoint.url} answered {response.status} {response.reason}, not as Turnstile does"
        return refusal(response.status, body, stranger=origin, note=self._endpoint.origin)

    def _unreachable(self, broken: BaseException) -> ApiError:
        where = f"{self._base.scheme}://{self._base.netloc}"
        return ApiError(
            "unavailable",
            f"cannot reach {where} ({words(broken)})",
            tries=("turnstile doctor",),
            notes=(self._endpoint.origin,) if self._endpoint.origin else (),
        )


def segment(name: str) -> str:
    """Returns a name as one step of a path; an account's slashes stay."""
    return quote(name, safe="/")


def step(name: str) -> str:
    """Returns a name as one step of a path in which a slash would be another step."""
    return quote(name, safe="")


def _target(path: str, query: Query | None) -> str:
    pairs = {name: value for name, value in (query or {}).items() if value is not None}
    return f"{path}?{urlencode(pairs, doseq=True)}" if pairs else path


def _encode(body: Json) -> bytes:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


def _parse_events(response: http.client.HTTPResponse) -> Iterator[Event]:
    kind, data, last_id = "message", list[str](), None
    while line := response.readline(LARGEST_ANSWER_BYTES):
        field, _, value = line.decode("utf-8", "replace").rstrip("\r\n").partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            data.append(value)
        elif field == "event":
            kind = value
        elif field == "id":
            last_id = value
        elif not field and not value and line.strip() == b"":
            if data or kind != "message":
                yield Event(kind, "\n".join(data), last_id)
            kind, data = "message", []


def _check_whole(response: http.client.HTTPResponse) -> None:
    """Raises IncompleteRead when the body is shorter than was announced: a read of limited size does not say so."""
    if response.length:
        raise http.client.IncompleteRead(b"", response.length)


def _was_cut(broken: BaseException) -> bool:
    """True where the connection was made and broke: a server that refuses connections is not asked twice."""
    return isinstance(broken, ConnectionResetError | BrokenPipeError | http.client.HTTPException) and not isinstance(
        broken, http.client.InvalidURL
    )


def _patience(response: http.client.HTTPResponse) -> float | None:
    asked = response.getheader("Retry-After", "")
    if not asked.isdigit():
        return None
    seconds = float(asked)
    return seconds if seconds <= PATIENCE_SECONDS else None
