"""Advance reservations: nodes kept free for maintenance, or for one account's jobs."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request, Response

from scheduler.auth import OPERATES, READS_JOBS, Rights
from scheduler.clock import iso_utc
from scheduler.core.model import AccountId, GpuClass, NodeName, PoolName
from scheduler.core.stretch import AdvanceReservation
from scheduler.routes.bodies import body_of
from scheduler.routes.door import Door, answer
from scheduler.store.reservations import (
    MakeReservation,
    NodesWanted,
    RemoveReservation,
    ReservationRecord,
    reservations,
)
from scheduler.wire.answers import time_or_none
from scheduler.wire.problems import Json, envelope, page
from scheduler.wire.requests import ReservationBody, not_found, parse, parse_time
from scheduler.wire.text import is_printable, shown


def reservation_routes(door: Door) -> APIRouter:
    """Returns the routes of reservations."""
    router = APIRouter(tags=["cluster"])
    reader = door.allow(READS_JOBS)
    changing = door.allow_change(OPERATES)

    @router.get("/v1/reservations", summary="Reserved nodes: all for operators, its own for a tenant")
    async def listing(
        rights: Annotated[Rights, Depends(reader)],
        ended: Annotated[bool, Query(description="Those that are over too.")] = False,
    ) -> Response:
        found = await door.read(lambda connection: reservations(connection, with_ended=ended))
        items = [_record(each) for each in found if rights.may_see_reservation(each.reservation.account)]
        return answer(page("ReservationList", door.now_ms, items))

    @router.post("/v1/admin/reservations", summary="Keep nodes free for a time", openapi_extra=body_of(ReservationBody))
    async def make(request: Request, rights: Annotated[Rights, Depends(changing)]) -> Response:
        asked = parse(ReservationBody, await request.body())
        start_ms = door.now_ms if asked.start is None else parse_time(asked.start, "start")
        end_ms = start_ms + 1000 * asked.duration_seconds
        command = MakeReservation(
            asked.name,
            start_ms,
            end_ms,
            _nodes_of(asked),
            None if asked.account is None else AccountId(asked.account),
            asked.reason,
            rights.caller.user,
        )
        made = await door.carry_out(command)
        document = _reservation(made.reservation) | {"overrunning_jobs": list(made.overrunning)}
        return answer(envelope("Reservation", door.now_ms, **document))

    @router.delete("/v1/admin/reservations/{name}", summary="Take a reservation back")
    async def cancel(
        name: Annotated[str, Path(max_length=256)], rights: Annotated[Rights, Depends(changing)]
    ) -> Response:
        if not is_printable(name):
            raise not_found(f"there is no reservation {shown(name)}")
        gone = await door.carry_out(RemoveReservation(name, rights.caller.user))
        return answer(envelope("Reservation", door.now_ms, **_reservation(gone)))

    return router


def _nodes_of(asked: ReservationBody) -> tuple[NodeName, ...] | NodesWanted:
    if asked.nodes is not None:
        return tuple(NodeName(name) for name in asked.nodes)
    assert asked.gpu_model is not None, "the body was checked"
    assert asked.count is not None, "the body was checked"
    return NodesWanted(GpuClass(asked.gpu_model), asked.count, None if asked.pool is None else PoolName(asked.pool))


def _record(each: ReservationRecord) -> Json:
    return {
        **_reservation(each.reservation),
        "created_by": each.created_by,
        "created_at": iso_utc(each.created_ms),
        "is_in_force": each.is_in_force,
        "ended_at": time_or_none(each.ended_ms),
    }


def _reservation(made: AdvanceReservation) -> Json:
    return {
        "name": made.id,
        "start": iso_utc(made.start_ms),
        "end": iso_utc(made.end_ms),
        "nodes": list(made.nodes),
        "account": made.account,
        "reason": made.reason,
    }
