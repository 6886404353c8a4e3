"""Draining nodes, and what became of them and their GPUs."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request, Response

from scheduler.auth import OPERATES, Rights
from scheduler.clock import iso_utc
from scheduler.core.model import NodeName
from scheduler.routes.bodies import body_of
from scheduler.routes.door import Door, answer
from scheduler.store.inventory import SetDrain
from scheduler.store.lookups import node_history
from scheduler.store.node_events import NodeEvent, node_events
from scheduler.wire.answers import gpu_count
from scheduler.wire.problems import Json, envelope, page
from scheduler.wire.requests import DrainBody, not_found, parse
from scheduler.wire.text import is_printable, shown

NodeRef = Annotated[str, Path(max_length=256)]


def node_routes(door: Door) -> APIRouter:
    """Returns the routes of nodes."""
    router = APIRouter(tags=["administration"])
    operator = door.allow(OPERATES)
    changing = door.allow_change(OPERATES)

    @router.post(
        "/v1/admin/nodes/{name}/drain", summary="Let running jobs finish, start none", openapi_extra=body_of(DrainBody)
    )
    async def drain(request: Request, name: NodeRef, rights: Annotated[Rights, Depends(changing)]) -> Response:
        asked = parse(DrainBody, await request.body())
        return await _set(door, name, asked.reason, rights)

    @router.post("/v1/admin/nodes/{name}/resume", summary="End the drain")
    async def resume(name: NodeRef, rights: Annotated[Rights, Depends(changing)]) -> Response:
        return await _set(door, name, None, rights)

    @router.get("/v1/admin/nodes/{name}/history", summary="What became of the node and its GPUs, newest first")
    async def history(
        name: NodeRef,
        _: Annotated[Rights, Depends(operator)],
        limit: Annotated[int, Query(ge=1, le=1000)] = 200,
    ) -> Response:
        node = _name(name)
        devices, intervals = await door.read(lambda connection: node_history(connection, node, limit))
        events = await door.read(lambda connection: node_events(connection, node, limit))
        if not devices and not events:
            raise not_found(f"there is no node {shown(name)}")
        items: list[Json] = [
            {
                "gpu": devices.index(each.device),
                "device": each.device,
                "from": iso_utc(each.from_ms),
                "to": iso_utc(each.to_ms),
                "state": each.occupant.state.value,
                "cause": each.occupant.cause,
                "gpus": gpu_count(each.occupant.units),
                "job_id": each.occupant.job,
                "tenant": each.occupant.holder,
                "event": None,
                "detail": None,
            }
            for each in intervals
        ]
        items += [_event(each, devices) for each in events]
        items.sort(key=lambda item: str(item["from"]), reverse=True)
        return answer(page("NodeHistory", door.now_ms, items[:limit]))

    return router


def _event(event: NodeEvent, devices: list[str]) -> Json:
    """Returns an event as an interval of no length and no state."""
    at = iso_utc(event.at_ms)
    return {
        "gpu": devices.index(event.device) if event.device in devices else None,
        "device": event.device,
        "from": at,
        "to": at,
        **dict.fromkeys(("state", "cause", "gpus", "job_id", "tenant")),
        "event": event.kind,
        "detail": event.detail,
    }


def _name(text: str) -> NodeName:
    if not is_printable(text):
        raise not_found(f"there is no node {shown(text)}")
    return NodeName(text)


async def _set(door: Door, name: str, reason: str | None, rights: Rights) -> Response:
    did_change = await door.carry_out(SetDrain(_name(name), reason, rights.caller.user))
    return answer(envelope("NodeDrain", door.now_ms, name=name, reason=reason, did_change=did_change))
