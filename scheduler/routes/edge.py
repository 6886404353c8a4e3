"""The edge of the API: request ids, bounded bodies, timing, and every error as a problem document.

A plain ASGI layer, because it stands in the way of each submission.
"""

import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from scheduler.refusal import Problem, RefusalCode, Refused
from scheduler.routes.door import LedElsewhere
from scheduler.routes.limits import TooFast
from scheduler.store.database import Fenced, StoreUnavailable
from scheduler.wire.problems import HTTP_STATUS, PROBLEM_TYPE, encode, failure, problem
from scheduler.wire.spec import invalid
from scheduler.wire.text import shown, words_of

logger = logging.getLogger(__name__)

UNTIMED = frozenset({"/v1/jobs/{ref}/wait", "/v1/jobs/{ref}/logs"})
"""Routes whose answers stay open as long as the client likes: their time says nothing about the daemon."""
UNMATCHED = "unmatched"
_GIVEN_ID = re.compile(r"[A-Za-z0-9._\-]{1,64}\Z")
_RETRY_SECONDS = 2


class RequestTimes(Protocol):
    """Takes in how long an answer took, by route template and status."""

    def request(self, route: str, code: int, seconds: float) -> None:
        """Takes in one answer."""
        ...


class Edge:
    """The outermost layer of ours."""

    def __init__(self, app: ASGIApp, most_body_bytes: int, times: RequestTimes) -> None:
        self._app = app
        self._most_body_bytes = most_body_bytes
        self._times = times

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        if scope["type"] == "websocket":
            await self._app(scope, receive, send)  # its routes answer errors themselves, see `denial_of`
            return
        began = time.perf_counter()
        status = 0

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await self._app(scope, _bounded(scope, receive, self._most_body_bytes), send_marked)
        except Exception:
            # The edge of the loop over requests: the log gets the trace and the client the request's id.
            logger.exception("request %s failed: %s %s", request_id, scope["method"], shown(scope["path"]))
            if status:
                raise  # half an answer is out already: only cutting the connection says that it is not whole
            broken = Response(encode(failure(request_id)), 500, media_type=PROBLEM_TYPE)
            await broken(scope, receive, send_marked)
        finally:
            template = getattr(scope.get("route"), "path", UNMATCHED)
            if template not in UNTIMED and status:
                self._times.request(template, status, time.perf_counter() - began)


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            given = value.decode("latin-1")
            if _GIVEN_ID.match(given):
                return str(given)
    return secrets.token_hex(8)


def _bounded(scope: Scope, receive: Receive, most_bytes: int) -> Receive:
    """Returns `receive` with an end: Refused (`too_large`) as soon as the body is known to be longer."""
    declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
    too_long = declared.isdigit() and (len(declared) > 18 or int(declared) > most_bytes)
    taken = 0

    async def receive_bounded() -> Message:
        nonlocal taken
        if too_long:
            raise _too_large(most_bytes)
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > most_bytes:
            raise _too_large(most_bytes)
        return message

    return receive_bounded


def _too_large(most_bytes: int) -> Refused:
    return Refused(RefusalCode.TOO_LARGE, f"the body is larger than {most_bytes} bytes, the most that is taken")


def request_id_of(request: HTTPConnection) -> str:
    """Returns the id that the edge gave the request."""
    return str(request.state.request_id)


def refusal_response(request: HTTPConnection, refused: Refused) -> Response:
    """Returns a refusal as the answer to a request."""
    headers = {"Cache-Control": "no-store"}
    if refused.code is RefusalCode.NOT_LOGGED_IN:
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(refused, TooFast):
        headers["Retry-After"] = str(refused.retry_after_seconds)
    elif refused.code in {RefusalCode.TOO_MANY, RefusalCode.UNAVAILABLE}:
        headers["Retry-After"] = str(_RETRY_SECONDS)
    body = encode(problem(refused, request_id_of(request)))
    return Response(body, HTTP_STATUS[refused.code], headers, PROBLEM_TYPE)


Handler = Callable[[HTTPConnection, Exception], Awaitable[Response]]


async def _refused(request: HTTPConnection, error: Exception) -> Response:
    assert isinstance(error, Refused), "registered for Refused"
    return refusal_response(request, error)


async def _store_unavailable(request: HTTPConnection, error: Exception) -> Response:
    logger.warning("request %s: %s", request_id_of(request), error)
    return refusal_response(
        request, Refused(RefusalCode.UNAVAILABLE, "the database is not available; nothing was stored, try again")
    )


async def _fenced(request: HTTPConnection, _: Exception) -> Response:
    return refusal_response(
        request, Refused(RefusalCode.UNAVAILABLE, "another daemon has taken over; nothing was stored here, try again")
    )


async def _led_elsewhere(request: HTTPConnection, error: Exception) -> Response:
    assert isinstance(error, LedElsewhere), "registered for LedElsewhere"
    if error.url is None:
        return refusal_response(request, Refused(RefusalCode.UNAVAILABLE, "no daemon leads at the moment; try again"))
    query = f"?{request.url.query}" if request.url.query else ""
    return Response(None, 307, {"Location": f"{error.url.rstrip('/')}{request.url.path}{query}"})


_HANDLERS: Mapping[type[Exception], Handler] = {
    Refused: _refused,
    StoreUnavailable: _store_unavailable,
    Fenced: _fenced,
    LedElsewhere: _led_elsewhere,
}
DENIALS = tuple(_HANDLERS)
"""What a WebSocket's route may raise before it accepts; `denial_of` answers it."""


async def denial_of(websocket: HTTPConnection, error: Exception) -> Response:
    """Returns the answer to a request for a WebSocket that is not opened: the same as over plain HTTP."""
    handler = next(each for kind, each in _HANDLERS.items() if isinstance(error, kind))
    return await handler(websocket, error)


async def _malformed(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError), "registered for RequestValidationError"
    found = []
    for each in error.errors():
        place = ".".join(shown(str(step)) for step in each["loc"][1:])
        unknown = each["type"] == "extra_forbidden"
        message = "unknown parameter" if unknown else words_of(each["type"], each.get("ctx", {}))
        found.append(Problem(message, place or None))
    return refusal_response(request, invalid(tuple(found)))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException), "registered for HTTPException"
    path = shown(request.url.path)
    if error.status_code == 404:
        refused = Refused(RefusalCode.NOT_FOUND, f"no such address: {path}", tries=("GET /v1/openapi.json",))
        return refusal_response(request, refused)
    if error.status_code == 405:
        refused = Refused(RefusalCode.INVALID, f"{request.method} is not possible at {path}")
        return _with_status(refusal_response(request, refused), 405, {"Allow": _methods_at(request)})
    response = refusal_response(request, Refused(RefusalCode.INVALID, str(error.detail)))
    return _with_status(response, error.status_code, error.headers or {})


def _methods_at(request: Request) -> str:
    """Returns all methods that the address takes; the framework names those of one route of it only."""
    template = str(getattr(request.scope.get("route"), "path", "")).replace(":path}", "}")
    app: FastAPI = request.app
    return ", ".join(sorted(method.upper() for method in app.openapi()["paths"].get(template, {})))


def _with_status(response: Response, status: int, headers: Mapping[str, str]) -> Response:
    """Returns a refusal under a status that no code of ours has."""
    body = bytes(response.body).replace(b'"status":422', f'"status":{status}'.encode(), 1)
    return Response(body, status, {"Cache-Control": "no-store", **headers}, PROBLEM_TYPE)


def install(app: FastAPI, most_body_bytes: int, times: RequestTimes) -> None:
    """Puts the edge around an app and its handlers into it."""
    for kind, handler in _HANDLERS.items():
        app.add_exception_handler(kind, handler)
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_middleware(Edge, most_body_bytes=most_body_bytes, times=times)
