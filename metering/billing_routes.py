"""Tenants' own bills over HTTP: which months there are, and the files of one with its statement.

Of a closed month the files are those that were sealed, byte by byte; of one that is not, what is known now, and its
statement says that it is a draft.
"""

from collections.abc import Callable
from pathlib import Path as FilePath
from typing import Annotated
from zoneinfo import ZoneInfo

from fastapi import APIRouter, Depends, Path, Query, Response
from sqlalchemy.engine import Connection

from metering.closing import PeriodTerms
from metering.core.period import PeriodStatus
from metering.manifest import MANIFEST
from metering.periods import KnownPeriod, known_period, periods
from metering.sealed import export_known, folder_of
from metering.statements import write_statements
from metering.tarred import streamed, tar_of
from scheduler.auth import READS_STATEMENTS, Rights
from scheduler.clock import iso_utc
from scheduler.core.model import AccountId
from scheduler.refusal import Problem
from scheduler.routes.door import Door, answer
from scheduler.routes.limits import Slots
from scheduler.wire.problems import Json, page
from scheduler.wire.spec import invalid

MOST_DOWNLOADS, MOST_DOWNLOADS_PER_TOKEN = 4, 1
"""Bills made at once: each reads a tenant's month and keeps a thread and a snapshot."""
_Tenant = Annotated[str | None, Query(min_length=1, max_length=256, description="Whose; a tenant's people: their own.")]


def billing_routes(terms: PeriodTerms) -> Callable[[Door], APIRouter]:
    """Returns what makes the routes of bills, for `scheduler.routes.app`."""
    return lambda door: _routes(door, terms)


def _routes(door: Door, terms: PeriodTerms) -> APIRouter:
    router = APIRouter(tags=["money"])
    reader = door.allow(READS_STATEMENTS)
    slots = Slots(MOST_DOWNLOADS, MOST_DOWNLOADS_PER_TOKEN, "downloads of bills")

    @router.get("/v1/billing", summary="Months, and whether the bill of each is final")
    async def listing(rights: Annotated[Rights, Depends(reader)], tenant: _Tenant = None) -> Response:
        whose, now_ms = _tenant(rights, tenant), door.now_ms
        found = await door.read(lambda connection: periods(connection, terms.zone, now_ms))
        return answer(page("BillList", now_ms, [_bill(each, whose) for each in found], tenant=whose))

    @router.get(
        "/v1/billing/{period}",
        summary="A tar of a month's files and its statement",
        response_class=Response,
        responses={200: {"content": {"application/x-tar": {}}}},
    )
    async def download(
        period: Annotated[str, Path(max_length=16, description="2026-11")],
        rights: Annotated[Rights, Depends(reader)],
        tenant: _Tenant = None,
    ) -> Response:
        whose = _tenant(rights, tenant)
        slots.check(rights.caller.token_id)

        def write(folder: FilePath) -> None:
            with door.controller.database.read() as connection:
                known = known_period(connection, period, terms.zone, door.now_ms)
                _write(connection, folder, known, (whose, terms, door.now_ms))
            write_statements(folder)

        with slots.counted(rights.caller.token_id):
            file = await door.aside(tar_of, write)
        return streamed(door, file, "turnstile-bill.tar")

    return router


def _tenant(rights: Rights, asked: str | None) -> AccountId:
    whose = rights.bill_tenant(asked)
    if whose is None:
        raise invalid((Problem("say whose bill; all tenants' are in the ledger's export", "tenant"),))
    return whose


def _write(
    connection: Connection, folder: FilePath, known: KnownPeriod, terms: tuple[AccountId, PeriodTerms, int]
) -> None:
    tenant, centre, now_ms = terms
    span = (known.period.from_ms, known.period.to_ms)
    focus = None if known.status is PeriodStatus.CLOSED else centre.focus
    export_known(connection, folder, span, ZoneInfo(known.zone), tenant, known_until_ms=now_ms, focus=focus)


def _bill(known: KnownPeriod, tenant: AccountId) -> Json:
    is_closed = known.status is PeriodStatus.CLOSED
    manifest = None if known.seal is None else known.seal.files.get(f"{folder_of(tenant)}/{MANIFEST}")
    return {
        "period": known.period.name,
        "status": known.status.value,
        "from": iso_utc(known.period.from_ms),
        "to": iso_utc(known.period.to_ms),
        "zone": known.zone,
        "is_draft": not is_closed,
        "has_charges": manifest is not None if is_closed else None,
        "closed_at": None if known.closed_ms is None else iso_utc(known.closed_ms),
        "manifest_sha256": manifest,
    }
