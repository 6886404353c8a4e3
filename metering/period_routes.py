"""Billing periods over HTTP: which there are, closing one, correcting what is closed."""

from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from pydantic import Field
from sqlalchemy.engine import Connection

from metering.closing import PeriodTerms, close_period
from metering.corrections import CorrectLine, sealed_line
from metering.periods import KnownPeriod, known_period, periods
from metering.settling import correct_period
from scheduler.auth import OPERATES, READS_MONEY, Rights
from scheduler.clock import iso_utc
from scheduler.refusal import Problem
from scheduler.routes.bodies import body_of
from scheduler.routes.door import Door, answer
from scheduler.routes.limits import Slots
from scheduler.wire.problems import Json, envelope, page
from scheduler.wire.requests import Strict, parse
from scheduler.wire.spec import invalid
from scheduler.wire.text import Words

_Name = Annotated[str, Field(min_length=7, max_length=7)]


class CloseBody(Strict):
    """Which period is closed, and whether before late facts are waited for no longer."""

    period: _Name
    is_early: bool = False


class CorrectBody(Strict):
    """A closed period to be rated again; or a line of it, an amount and a reason."""

    period: _Name
    line_id: Annotated[str | None, Field(max_length=512)] = None
    amount: Annotated[str | None, Field(max_length=64)] = None
    reason: Annotated[Words | None, Field(min_length=1)] = None


def period_routes(terms: PeriodTerms) -> Callable[[Door], APIRouter]:
    """Returns what makes the routes of periods, for `scheduler.routes.app`."""
    return lambda door: _routes(door, terms)


def _routes(door: Door, terms: PeriodTerms) -> APIRouter:
    router = APIRouter(tags=["money"])
    reader = door.allow(READS_MONEY)
    operator = door.allow_change(OPERATES)
    slots = Slots(1, 1, "closings of periods")

    @router.get("/v1/admin/ledger/periods", summary="Billing periods and how far each is")
    async def listing(rights: Annotated[Rights, Depends(reader)]) -> Response:
        rights.require_centre()
        now_ms = door.now_ms
        found = await door.read(lambda connection: periods(connection, terms.zone, now_ms))
        return answer(page("PeriodList", now_ms, [_period(each, terms) for each in found]))

    @router.post("/v1/admin/ledger/close", summary="Close a period, for ever", openapi_extra=body_of(CloseBody))
    async def close(request: Request, rights: Annotated[Rights, Depends(operator)]) -> Response:
        rights.require_centre()
        asked = parse(CloseBody, await request.body())
        slots.check("")
        with slots.counted(""):
            closed = await door.aside(_closed, door, terms, asked, rights.caller.user)
        return answer(envelope("Period", door.now_ms, **_period(closed, terms)))

    @router.post("/v1/admin/ledger/correct", summary="Correct a closed period", openapi_extra=body_of(CorrectBody))
    async def correct(request: Request, rights: Annotated[Rights, Depends(operator)]) -> Response:
        rights.require_centre()
        asked = parse(CorrectBody, await request.body())
        amount = _amount(asked)
        slots.check("")
        with slots.counted(""):
            if amount is None:
                written = await door.aside(correct_period, door.controller, terms.zone, asked.period)
                return answer(envelope("Corrected", door.now_ms, corrections=written, line_id=None))
            sealed = await door.aside(_sealed, door, terms, asked)
        line_id, reason = asked.line_id or "", asked.reason or ""
        command = CorrectLine(asked.period, line_id, amount, reason, rights.caller.user, terms.zone, sealed)
        made = await door.carry_out(command)
        return answer(envelope("Corrected", door.now_ms, corrections=1, line_id=made))

    return router


def _closed(door: Door, terms: PeriodTerms, asked: CloseBody, actor: str) -> KnownPeriod:
    return close_period(door.controller, terms, asked.period, actor, is_early=asked.is_early)


def _sealed(door: Door, terms: PeriodTerms, asked: CorrectBody) -> dict[str, str]:
    def look(connection: Connection) -> dict[str, str]:
        known = known_period(connection, asked.period, terms.zone, door.now_ms)
        return sealed_line(connection, known, asked.line_id or "")

    with door.controller.database.read() as connection:
        return look(connection)


def _amount(asked: CorrectBody) -> Decimal | None:
    given = (asked.line_id, asked.amount, asked.reason)
    if given == (None, None, None):
        return None
    if None in given:
        raise invalid((Problem("a correction of a line needs line_id, amount and reason", "amount"),))
    try:
        return Decimal(asked.amount or "")
    except InvalidOperation:
        raise invalid((Problem("is not an amount such as -12.30", "amount"),)) from None


def _period(each: KnownPeriod, terms: PeriodTerms) -> Json:
    return {
        "period": each.period.name,
        "status": each.status.value,
        "from": iso_utc(each.period.from_ms),
        "to": iso_utc(each.period.to_ms),
        "zone": each.zone,
        "closes_from": iso_utc(each.period.to_ms + terms.window_ms),
        "closed_at": None if each.closed_ms is None else iso_utc(each.closed_ms),
        "closed_by": each.actor,
        "manifest_sha256": None if each.seal is None else each.seal.files.get("all/manifest.json"),
        "seal": None if each.seal is None else each.seal.attempt,
    }
