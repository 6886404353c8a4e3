"""What became known later, over HTTP: evidence from agents, what is unknown still, and an operator's word on it."""

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, TypeVar

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import Field, model_validator
from sqlalchemy.engine import Connection

from metering.core.quantity import GpuMs
from metering.spans import instant_of, zone_of
from scheduler.auth import DELIVERS_EVIDENCE, OPERATES, READS_MONEY, Rights, Role
from scheduler.clock import iso_utc
from scheduler.core.ending import COMPLETED, EvidenceKind
from scheduler.core.model import AllocationId, DeviceId, EndReason, tenant_of
from scheduler.core.occupancy import Evidence, Interval, OccupancyState
from scheduler.refusal import Problem, RefusalCode, Refused
from scheduler.routes.bodies import body_of
from scheduler.routes.door import Door, answer
from scheduler.store.evidence import Learned, Reclassify, RecordEvidence, Said
from scheduler.store.incidents import Hit, hits_between
from scheduler.store.overlays import unknown_stretches
from scheduler.store.read import latest_known_ms
from scheduler.wire.problems import Json, envelope, page
from scheduler.wire.requests import Strict, parse, parse_time
from scheduler.wire.spec import invalid
from scheduler.wire.text import Name, Words

MOST_ITEMS = 10_000
"""Pieces of evidence in one request: an agent's backlog of a day, at one sign of life a minute and job."""
W = TypeVar("W", bound=StrEnum)
_Moment = Annotated[str, Field(max_length=64)]
_OpenSpan = tuple[int, int | None]
"""From when, and until when if that is said; UTC milliseconds."""


class EvidenceItem(Strict):
    """One thing said about the end of an allocation; `key` is the sender's, and names it for ever."""

    key: Annotated[Name, Field(max_length=256)]
    allocation: Annotated[str, Field(max_length=64)]
    kind: Annotated[str, Field(max_length=16)]
    at: _Moment
    end_reason: Annotated[str | None, Field(max_length=32)] = None


class EvidenceBody(Strict):
    """Evidence, in any order and as often as one likes."""

    items: tuple[EvidenceItem, ...] = Field(max_length=MOST_ITEMS, min_length=1)


class ReclassifyBody(Strict):
    """Either what a device was over an unknown time, or when an allocation ended."""

    reason: Annotated[Words, Field(min_length=1)]
    device: Annotated[str | None, Field(max_length=256)] = None
    from_: _Moment | None = Field(None, alias="from")
    to: _Moment | None = None
    state: Annotated[str | None, Field(max_length=32)] = None
    cause: Annotated[Name | None, Field(max_length=64)] = None
    allocation: Annotated[str | None, Field(max_length=64)] = None
    ended_at: _Moment | None = None
    end_reason: Annotated[str | None, Field(max_length=32)] = None

    @model_validator(mode="after")
    def _one_of_them(self) -> "ReclassifyBody":
        of_device = (self.device, self.from_, self.to, self.state)
        of_end = (self.allocation, self.ended_at)
        if (None in of_device) == (None in of_end):
            raise ValueError("give device, from, to and state; or allocation and ended_at")
        if any(each is not None for each in (of_end if None in of_end else of_device)):
            raise ValueError("what is said of a device and of an allocation's end are two requests")
        return self


def _open_span(
    from_: Annotated[str | None, Query(alias="from", max_length=64)] = None,
    to: Annotated[str | None, Query(max_length=64)] = None,
    zone: Annotated[str, Query(max_length=64)] = "UTC",
) -> _OpenSpan:
    where = zone_of(zone)
    return 0 if from_ is None else instant_of(from_, where, "from"), None if to is None else instant_of(to, where, "to")


def evidence_routes(door: Door) -> APIRouter:
    """Returns the routes of late evidence."""
    router = APIRouter(tags=["money"])
    reader = door.allow(READS_MONEY)
    operator = door.allow_change(OPERATES)
    witness = door.allow_change(DELIVERS_EVIDENCE)

    @router.get("/v1/admin/ledger/unknown", summary="What the ledger does not know yet")
    async def unknown(
        rights: Annotated[Rights, Depends(reader)], span: Annotated[_OpenSpan, Depends(_open_span)]
    ) -> Response:
        rights.require_centre()
        found = await door.read(lambda connection: _unknown(connection, *span))
        return answer(page("UnknownList", door.now_ms, found))

    @router.get("/v1/admin/ledger/incidents", summary="What the centre was at fault for, and whom it hit")
    async def incidents(
        rights: Annotated[Rights, Depends(reader)], span: Annotated[_OpenSpan, Depends(_open_span)]
    ) -> Response:
        rights.require_centre()
        first_ms, last_ms = span[0], door.now_ms + 1 if span[1] is None else span[1]
        found = await door.read(lambda connection: _incidents(hits_between(connection, first_ms, last_ms)))
        return answer(page("IncidentList", door.now_ms, found))

    @router.post(
        "/v1/admin/ledger/reclassify",
        summary="Say what an unknown stretch was, or when an allocation ended",
        openapi_extra=body_of(ReclassifyBody),
    )
    async def reclassify(request: Request, rights: Annotated[Rights, Depends(operator)]) -> Response:
        rights.require_centre()
        asked = parse(ReclassifyBody, await request.body())
        user = rights.caller.user
        if asked.allocation is not None:
            learned = await door.carry_out(RecordEvidence((_operators_word(asked, user, door.now_ms),)))
            _refuse_nothing(learned, asked.allocation)
            return answer(envelope("Reclassified", door.now_ms, did_change=bool(learned.moved)))
        rows = await door.carry_out(_of_device(asked, user))
        return answer(envelope("Reclassified", door.now_ms, did_change=rows > 0))

    @router.post("/v1/ledger/evidence", summary="Deliver late evidence about ends", openapi_extra=body_of(EvidenceBody))
    async def evidence(request: Request, rights: Annotated[Rights, Depends(witness)]) -> Response:
        rights.require_centre()
        asked = parse(EvidenceBody, await request.body())
        source = Evidence.NODE if rights.caller.role is Role.AGENT else Evidence.HEARTBEAT
        said = tuple(_said(each, source, rights.caller.user) for each in asked.items)
        learned = await door.carry_out(RecordEvidence(said))
        told = {"new": learned.new, "moved": learned.moved, "unknown": learned.unknown, "live": learned.live}
        return answer(envelope("EvidenceTaken", door.now_ms, **told))

    return router


def _unknown(connection: Connection, from_ms: int, to_ms: int | None) -> list[Json]:
    last_ms = latest_known_ms(connection) if to_ms is None else to_ms
    return [_stretch(each) for each in unknown_stretches(connection, from_ms, max(last_ms, from_ms + 1))]


def _stretch(piece: Interval) -> Json:
    return {
        "device": piece.device,
        "lane": piece.lane,
        "gpu_model": piece.gpu_class,
        "from": iso_utc(piece.from_ms),
        "to": iso_utc(piece.to_ms),
        "cause": piece.occupant.cause,
        "gpu_hours": GpuMs.held(piece.occupant.units, piece.from_ms, piece.to_ms).hours_text,
        "sequence": piece.sequence,
    }


def _incidents(hits: Sequence[Hit]) -> list[Json]:
    by_id: dict[str, list[Hit]] = {}
    for hit in hits:
        by_id.setdefault(hit.incident, []).append(hit)
    return [_incident(each) for each in by_id.values()]


def _incident(hits: Sequence[Hit]) -> Json:
    first = hits[0]
    return {
        "id": first.incident,
        "reason": first.reason.value,
        "node": first.node,
        "began_at": iso_utc(first.began_ms),
        "tenants": sorted({tenant_of(hit.account) for hit in hits}),
        "allocations": [
            {"allocation": hit.allocation, "job_id": hit.job, "account": hit.account, "ended_at": iso_utc(hit.at_ms)}
            for hit in hits
        ],
    }


def _said(each: EvidenceItem, source: Evidence, actor: str) -> Said:
    kind = _word(EvidenceKind, each.kind, "kind")
    if kind is not EvidenceKind.ENDED and each.end_reason is not None:
        raise invalid((Problem("only an end has a reason", "end_reason"),))
    reason = _end_reason(each.end_reason)
    at_ms = parse_time(each.at, "at")
    return Said(each.key, AllocationId(each.allocation), kind, at_ms, source, reason, actor)


def _operators_word(asked: ReclassifyBody, actor: str, now_ms: int) -> Said:
    assert asked.allocation is not None, "the body was checked"
    assert asked.ended_at is not None, "the body was checked"
    at_ms, reason = parse_time(asked.ended_at, "ended_at"), _end_reason(asked.end_reason)
    key = f"operator/{asked.allocation}/{at_ms}/{reason or ''}/{now_ms}"
    id_ = AllocationId(asked.allocation)
    return Said(key, id_, EvidenceKind.ENDED, at_ms, Evidence.OPERATOR, reason, actor, asked.reason)


def _of_device(asked: ReclassifyBody, actor: str) -> Reclassify:
    assert asked.device is not None, "the body was checked"
    from_ms, to_ms = parse_time(asked.from_ or "", "from"), parse_time(asked.to or "", "to")
    if from_ms >= to_ms:
        raise invalid((Problem("must be after from", "to"),))
    state = _word(OccupancyState, asked.state or "", "state")
    return Reclassify(DeviceId(asked.device), from_ms, to_ms, state, asked.cause, actor, asked.reason)


def _end_reason(text: str | None) -> str | None:
    if text is None or text == COMPLETED:
        return text
    return _word(EndReason, text, "end_reason").value


def _word(words: type[W], text: str, field: str) -> W:
    try:
        return words(text)
    except ValueError:
        known = ", ".join(words)
        raise invalid((Problem(f"is not one of {known}", field),)) from None


def _refuse_nothing(learned: Learned, allocation: str) -> None:
    if learned.unknown:
        raise Refused(RefusalCode.NOT_FOUND, f"there is no allocation {allocation}")
    if learned.live:
        raise Refused(
            RefusalCode.WRONG_STATE,
            f"allocation {allocation} still runs; its end will be observed",
            tries=("cancel its job if it should not run",),
        )
