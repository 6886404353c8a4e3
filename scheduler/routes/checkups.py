"""The daemon's own findings, for `turnstile doctor` and the centre's operators: they name nodes."""

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Depends, Response

from scheduler.auth import OPERATES, Rights
from scheduler.checkup import Check, Checkup
from scheduler.routes.door import Door, answer
from scheduler.wire.problems import Json, page


def checkup_routes(checkups: Sequence[Checkup], door: Door) -> APIRouter:
    """Returns the route that runs all checkups, one after the other, aside from everything else."""
    router = APIRouter(tags=["public"])

    @router.get("/v1/admin/health", summary="What the daemon finds wrong with itself, and what to do about it")
    async def health(rights: Annotated[Rights, Depends(door.allow(OPERATES))]) -> Response:
        rights.require_centre()
        found = await door.aside(lambda: [check for look in checkups for check in look()])
        return answer(page("HealthCheckList", door.now_ms, [_item(each) for each in found]))

    return router


def _item(each: Check) -> Json:
    return {"check": each.name, "is_ok": each.is_ok, "detail": each.detail, "try": each.advice}
