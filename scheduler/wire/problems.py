"""Refusals as RFC 9457 problem documents, and the envelope that every answer stands in."""

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from scheduler.clock import iso_utc
from scheduler.refusal import RefusalCode, Refused

API_VERSION = "turnstile/v1"
PROBLEM_TYPE = "application/problem+json"

HTTP_STATUS: Mapping[RefusalCode, HTTPStatus] = {
    RefusalCode.INVALID: HTTPStatus.UNPROCESSABLE_ENTITY,
    RefusalCode.NEVER_FITS: HTTPStatus.UNPROCESSABLE_ENTITY,
    RefusalCode.OVER_QUOTA: HTTPStatus.UNPROCESSABLE_ENTITY,
    RefusalCode.OVER_BUDGET: HTTPStatus.UNPROCESSABLE_ENTITY,
    RefusalCode.POLICY: HTTPStatus.UNPROCESSABLE_ENTITY,
    RefusalCode.NOT_FOUND: HTTPStatus.NOT_FOUND,
    RefusalCode.NOT_LOGGED_IN: HTTPStatus.UNAUTHORIZED,
    RefusalCode.NOT_ALLOWED: HTTPStatus.FORBIDDEN,
    RefusalCode.WRONG_STATE: HTTPStatus.CONFLICT,
    RefusalCode.CONFLICT: HTTPStatus.CONFLICT,
    RefusalCode.TOO_LARGE: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    RefusalCode.TOO_MANY: HTTPStatus.TOO_MANY_REQUESTS,
    RefusalCode.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
}
"""The HTTP status of each code; the CLI's exit status of each stands in docs/api.md."""

_TITLES: Mapping[str, str] = {
    RefusalCode.INVALID: "The request is malformed",
    RefusalCode.NEVER_FITS: "No node could ever hold this",
    RefusalCode.OVER_QUOTA: "Over the quota",
    RefusalCode.OVER_BUDGET: "Over the budget",
    RefusalCode.POLICY: "Not allowed at this centre",
    RefusalCode.NOT_FOUND: "Not found",
    RefusalCode.NOT_LOGGED_IN: "Not logged in",
    RefusalCode.NOT_ALLOWED: "Not allowed",
    RefusalCode.WRONG_STATE: "Not possible in this state",
    RefusalCode.CONFLICT: "The idempotency key was used for another request",
    RefusalCode.TOO_LARGE: "The request is too large",
    RefusalCode.TOO_MANY: "Too many requests",
    RefusalCode.UNAVAILABLE: "Not available now",
    "internal": "Turnstile failed unexpectedly",
}

Json = dict[str, Any]  # Any: what json.dumps takes


def encode(document: Mapping[str, Any]) -> bytes:
    """Returns a document as compact JSON in UTF-8."""
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


def envelope(kind: str, now_ms: int, **content: Any) -> Json:
    """Returns an answer: the version, what kind it is, when it was made, and its content."""
    return {"apiVersion": API_VERSION, "kind": kind, "generated_at": iso_utc(now_ms), **content}


def page(kind: str, now_ms: int, items: list[Json], next_page: str | None = None, **content: Any) -> Json:
    """Returns an answer that is a list. `next_page` is an opaque cursor, None at the end."""
    return envelope(kind, now_ms, items=items, next_page=next_page, **content)


def problem(refused: Refused, request_id: str) -> Json:
    """Returns the problem document of a refusal."""
    return _document(
        code=refused.code,
        status=HTTP_STATUS[refused.code],
        detail=refused.message,
        request_id=request_id,
        tries=refused.tries,
        problems=[{"field": each.field, "message": each.message} for each in refused.problems],
    )


def failure(request_id: str) -> Json:
    """Returns the problem document of a fault of ours: it names the request and nothing else."""
    return _document(
        code="internal",
        status=HTTPStatus.INTERNAL_SERVER_ERROR,
        detail=f"Turnstile failed unexpectedly; its log says more under request {request_id}",
        request_id=request_id,
    )


def _document(
    *,
    code: str,
    status: int,
    detail: str,
    request_id: str,
    tries: tuple[str, ...] = (),
    problems: list[Json] | None = None,
) -> Json:
    return {
        "type": f"urn:turnstile:problem:{code}",
        "title": _TITLES[code],
        "status": int(status),
        "detail": detail,
        "code": str(code),
        "try": list(tries),
        "problems": problems or [],
        "request_id": request_id,
    }
