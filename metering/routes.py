"""The ledger, usage and prices over HTTP: verify, export, reports, price books, for `scheduler.routes.app`.

An export is made in a directory that is gone before the first byte leaves: a client that hangs up leaves nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated
from zoneinfo import ZoneInfo

from fastapi import APIRouter, Depends, Query, Response
from sqlalchemy.engine import Connection

from metering.evidence_routes import evidence_routes
from metering.focus import UNNAMED_ISSUER, FocusTerms
from metering.focus_columns import VERSIONS
from metering.forecast_routes import forecast_routes
from metering.periods import known_period
from metering.price_routes import price_routes
from metering.report_routes import report_routes
from metering.sealed import export_known
from metering.spans import instant_of, zone_of
from metering.statements import write_statements
from metering.tarred import streamed, tar_of
from metering.together import reading_ledger
from metering.usage_routes import usage_routes
from metering.verify import Report, verify
from scheduler.auth import READS_MONEY, Rights
from scheduler.core.model import AccountId
from scheduler.refusal import Problem
from scheduler.routes.door import Door, answer
from scheduler.routes.limits import Slots
from scheduler.store.readers import Readers
from scheduler.wire.problems import Json, envelope
from scheduler.wire.spec import invalid

MOST_LEDGER_READS = 2
"""Exports and verifications at once: each reads the ledger from end to end and keeps a thread and a snapshot."""


def _terms_by(plain: FocusTerms) -> Callable[..., FocusTerms | None]:
    """Returns the dependency that reads what a FOCUS file is asked to be; None where nothing is asked."""

    def terms(
        focus: Annotated[str | None, Query(max_length=8, description="The version of FOCUS: 1.2 or 1.3.")] = None,
        issuer: Annotated[str | None, Query(max_length=256, description="The centre's name on invoices.")] = None,
    ) -> FocusTerms | None:
        if focus is None and issuer is None:
            return None
        try:
            return FocusTerms(focus or plain.version, plain.issuer if issuer is None else issuer)
        except ValueError as error:
            field = "focus" if focus is not None and focus not in VERSIONS else "issuer"
            raise invalid((Problem(str(error), field),)) from None

    return terms


def ledger_routes(door: Door, issuer_known: str = UNNAMED_ISSUER, processes: int | None = None) -> APIRouter:
    """Returns the routes of the ledger and of prices. Invoices are of `issuer_known` where nobody asks for another.

    `processes` read the ledger at once where it is exported or proved; None: as many as are worth it.
    """
    router = APIRouter(tags=["money"])
    reader = door.allow(READS_MONEY)
    plain = FocusTerms(issuer=issuer_known)
    focus_terms = _terms_by(plain)
    slots = Slots(MOST_LEDGER_READS, MOST_LEDGER_READS, "readings of the ledger")

    @router.get("/v1/admin/ledger/verify", summary="Prove the ledger, or say where it does not hold")
    async def verify_ledger(
        rights: Annotated[Rights, Depends(reader)],
        period: Annotated[str | None, Query(max_length=7, description="Of closed periods only this one.")] = None,
    ) -> Response:
        rights.require_centre()
        slots.check("")
        with slots.counted(""):
            report = await door.aside(_verified, door, period, processes)
        return answer(envelope("LedgerReport", door.now_ms, **_report(report)))

    @router.get(
        "/v1/admin/ledger/export",
        summary="A tar of the billing files and their manifest",
        response_class=Response,
        responses={200: {"content": {"application/x-tar": {}}}},
    )
    async def export_ledger(
        rights: Annotated[Rights, Depends(reader)],
        focus: Annotated[FocusTerms | None, Depends(focus_terms)],
        from_: Annotated[str, Query(alias="from", max_length=64, description="A day in `zone`, or an RFC 3339 time.")],
        to: Annotated[str, Query(max_length=64, description="Exclusive; as `from`.")],
        zone: Annotated[str, Query(max_length=64, description="An IANA time zone.")] = "UTC",
        tenant: Annotated[str | None, Query(min_length=1, max_length=256)] = None,
    ) -> Response:
        whose = rights.ledger_tenant(tenant)
        where = zone_of(zone)
        wanted = _Wanted(
            instant_of(from_, where, "from"), instant_of(to, where, "to"), where, whose, focus, plain, processes
        )
        slots.check("")
        with slots.counted(""):
            file = await door.aside(_exported, door, wanted)
        return streamed(door, file, "turnstile-export.tar")

    router.include_router(price_routes(door))
    router.include_router(usage_routes(door))
    router.include_router(report_routes(door))
    router.include_router(forecast_routes(door))
    router.include_router(evidence_routes(door))
    return router


@dataclass(frozen=True, slots=True)
class _Wanted:
    from_ms: int
    to_ms: int
    zone: ZoneInfo
    tenant: AccountId | None
    focus: FocusTerms | None
    unasked: FocusTerms
    processes: int | None


def _verified(door: Door, period: str | None, processes: int | None) -> Report:
    with reading_ledger(door.controller.database, processes) as readers:
        if period is not None:
            known_period(readers.source, period, "UTC", door.now_ms)
        return verify(readers.source, period=period, readers=readers)


def _report(report: Report) -> Json:
    return {
        "is_sound": report.is_proved,
        "failures": [
            {"check": each.check.value, "where": each.where, "what": f"expected {each.expected}, found {each.found}"}
            for each in report.findings
        ],
        "failure_count": report.failures,
        "counts": dict(sorted(report.counted.items())),
    }


def _exported(door: Door, wanted: _Wanted) -> IO[bytes]:
    def write(folder: Path) -> None:
        with reading_ledger(door.controller.database, wanted.processes) as readers:
            _export(readers, folder, wanted, door.now_ms)
        write_statements(folder)

    return tar_of(write)


def _export(readers: Readers[Connection], folder: Path, wanted: _Wanted, now_ms: int) -> None:
    span = (wanted.from_ms, wanted.to_ms)
    export_known(
        readers.source,
        folder,
        span,
        wanted.zone,
        wanted.tenant,
        known_until_ms=now_ms,
        focus=wanted.focus,
        unasked=wanted.unasked,
        readers=readers,
    )
