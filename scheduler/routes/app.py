"""Puts the API together: one FastAPI app of routers, behind the edge, with its OpenAPI document."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi

from scheduler.admission import Admission
from scheduler.routes.accounts import account_routes
from scheduler.routes.actions import action_routes
from scheduler.routes.apply import SectionKind, apply_routes
from scheduler.routes.cluster import cluster_routes
from scheduler.routes.decisions import decision_routes
from scheduler.routes.door import Door
from scheduler.routes.edge import install
from scheduler.routes.follow import follow_routes
from scheduler.routes.inside import inside_routes
from scheduler.routes.jobs import job_routes
from scheduler.routes.needs import ApiSettings, Controller
from scheduler.routes.nodes import node_routes
from scheduler.routes.notices import notice_routes
from scheduler.routes.pools import pool_routes
from scheduler.routes.public import public_routes
from scheduler.routes.quota import quota_routes
from scheduler.routes.reservations import reservation_routes
from scheduler.routes.secrets import secret_routes
from scheduler.routes.shown import Shown
from scheduler.routes.tokens import token_routes
from scheduler.routes.users import user_routes
from scheduler.routes.watch import JobWatch
from scheduler.store import lookups
from scheduler.telemetry import Telemetry

OPENAPI_PATH = "/v1/openapi.json"
MoreRoutes = Callable[[Door], APIRouter]
"""What another package adds: a factory that is given the door."""


def api(
    controller: Controller,
    admission: Admission,
    settings: ApiSettings,
    telemetry: Telemetry,
    more: Sequence[MoreRoutes] = (),
    sections: Sequence[SectionKind] = (),
) -> FastAPI:
    """Returns the app. It belongs to the event loop that serves it; `more` adds routers of packages above, `sections`
    what else a declared centre may hold."""
    door = Door(controller, settings)
    shown = Shown(door, admission)
    watch = JobWatch(door, lookups.ended_among)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        watch.close()
        door.close()

    app = FastAPI(
        title="Turnstile",
        version=settings.version,
        openapi_url=OPENAPI_PATH,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        # A redirect from `/v1/jobs/` would send a submission's body and token a second time.
        redirect_slashes=False,
    )
    install(app, settings.most_body_bytes, telemetry)
    routers = [
        public_routes(door, telemetry),
        action_routes(door),
        follow_routes(door, shown, watch),
        inside_routes(door),
        job_routes(door, shown),
        cluster_routes(door, shown),
        decision_routes(door),
        quota_routes(door),
        account_routes(door),
        token_routes(door),
        user_routes(door),
        apply_routes(door, sections),
        node_routes(door),
        pool_routes(door),
        reservation_routes(door),
        notice_routes(door),
        secret_routes(door),
        *(make(door) for make in more),
    ]
    for router in routers:
        app.include_router(router)
    app.openapi = lambda: _document(app)  # type: ignore[method-assign]  # FastAPI's own way to extend the document
    return app


def _document(app: FastAPI) -> dict[str, Any]:
    """Returns the OpenAPI document: FastAPI's, with the bearer token and the one shape of all errors."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, routes=app.routes)
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        schemas["Problem"] = _PROBLEM
        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        for path, methods in document["paths"].items():
            for operation in methods.values():
                if path.startswith("/v1/"):
                    operation["security"] = [{"token": []}]
                operation["responses"].pop("422", None)
                operation["responses"]["default"] = _ANY_PROBLEM
        app.openapi_schema = document
    return app.openapi_schema


_ANY_PROBLEM = {
    "description": "A problem (RFC 9457)",
    "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
}
_PROBLEM = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "code", "try", "problems", "request_id"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "code": {"type": "string"},
        "try": {"type": "array", "items": {"type": "string"}},
        "problems": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"field": {"type": ["string", "null"]}, "message": {"type": "string"}},
            },
        },
        "request_id": {"type": "string"},
    },
}
