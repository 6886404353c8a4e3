"""What answers without a token: whether the process lives, whether it is ready, and its metrics."""

import ipaddress

from fastapi import APIRouter, Request, Response

from scheduler.auth import OPERATES, Rights
from scheduler.routes.door import Door, answer
from scheduler.routes.scrapes import Scrapes
from scheduler.telemetry import CONTENT_TYPE, Telemetry
from scheduler.wire.problems import envelope


def public_routes(door: Door, telemetry: Telemetry) -> APIRouter:
    """Returns the routes of health and metrics."""
    router = APIRouter(tags=["public"])
    scrapes = Scrapes(door, telemetry)

    @router.get("/healthz", summary="The process answers")
    async def healthz() -> Response:
        # Alive is whoever answers: a daemon that cannot plan is not mended by a restart of its own accord. What keeps
        # it from being ready is said all the same.
        problems = await door.aside(door.controller.health)
        return answer(envelope("Health", door.now_ms, is_ready=not problems, problems=problems))

    @router.get("/readyz", summary="Leads, and all that it needs answers")
    async def readyz() -> Response:
        problems = await door.aside(door.controller.health)
        document = envelope("Health", door.now_ms, is_ready=not problems, problems=problems)
        return answer(document, 503 if problems else 200, {"Retry-After": "2"} if problems else None)

    @router.get("/metrics", summary="Prometheus metrics")
    async def metrics(request: Request) -> Response:
        if not (door.settings.is_metrics_open or _is_local(request)):
            Rights(await door.caller(request)).require(OPERATES)
        return Response(await scrapes.body(), media_type=CONTENT_TYPE)

    return router


def _is_local(request: Request) -> bool:
    """True for a client on this machine that no proxy stands before: a proxy's own clients are not here."""
    if request.client is None or "x-forwarded-for" in request.headers or "forwarded" in request.headers:
        return False
    try:
        return ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:
        return False
