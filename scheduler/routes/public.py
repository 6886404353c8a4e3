"""What answers without a token: whether the process lives, whether it is ready, and its metrics."""

import ipaddress

from fastapi import APIRouter, Request, Response

from scheduler.auth import OPERATES, Rights
from scheduler.gauges import Photograph, families, photograph
from scheduler.routes.door import Door, answer
from scheduler.telemetry import CONTENT_TYPE, Telemetry
from scheduler.wire.problems import envelope


def public_routes(door: Door, telemetry: Telemetry) -> APIRouter:
    """Returns the routes of health and metrics."""
    router = APIRouter(tags=["public"])

    @router.get("/healthz", summary="The process answers")
    async def healthz() -> Response:
        return answer(envelope("Health", door.now_ms, is_ready=None, problems=[]))

    @router.get("/readyz", summary="Leads, and all that it needs answers")
    async def readyz() -> Response:
        problems = await door.aside(door.controller.health)
        document = envelope("Health", door.now_ms, is_ready=not problems, problems=problems)
        return answer(document, 503 if problems else 200, {"Retry-After": "2"} if problems else None)

    @router.get("/metrics", summary="Prometheus metrics")
    async def metrics(request: Request) -> Response:
        if not (door.settings.is_metrics_open or _is_local(request)):
            Rights(await door.caller(request)).require(OPERATES)
        photo = await door.ask(photograph) if door.controller.is_leading else None
        body = await door.aside(_rendered, telemetry, photo, door.now_ms)
        return Response(body, media_type=CONTENT_TYPE)

    return router


def _rendered(telemetry: Telemetry, photo: Photograph | None, now_ms: int) -> bytes:
    """Renders all metrics; a follower, which holds no state, tells only of itself."""
    return telemetry.render(families(photo, now_ms) if photo is not None else ())


def _is_local(request: Request) -> bool:
    """True for a client on this machine that no proxy stands before: a proxy's own clients are not here."""
    if request.client is None or "x-forwarded-for" in request.headers or "forwarded" in request.headers:
        return False
    try:
        return ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:
        return False
