"""What the month may cost, over HTTP: `GET /v1/usage/forecast`, for tenants of their own accounts."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response

from metering.core.quantity import AMOUNT_DECIMALS, fixed
from metering.forecast import Forecast, forecasts
from metering.spans import zone_of
from scheduler.auth import READS_JOBS, Rights
from scheduler.clock import iso_utc
from scheduler.core.model import AccountId
from scheduler.refusal import RefusalCode, Refused
from scheduler.routes.door import Door, answer
from scheduler.routes.limits import Slots
from scheduler.wire.problems import Json, page

MOST_FORECASTS, MOST_FORECASTS_PER_TOKEN = 4, 2
"""Forecasts at once: each reads the lines of up to a month and keeps a thread and a snapshot."""


def forecast_routes(door: Door) -> APIRouter:
    """Returns the route of forecasts."""
    router = APIRouter(tags=["money"])
    reader = door.allow(READS_JOBS)
    slots = Slots(MOST_FORECASTS, MOST_FORECASTS_PER_TOKEN, "forecasts")

    @router.get("/v1/usage/forecast", summary="What the month may cost: a range from the last seven days")
    async def forecast(
        rights: Annotated[Rights, Depends(reader)],
        zone: Annotated[str, Query(max_length=64, description="An IANA time zone.")] = "UTC",
        account: Annotated[str | None, Query(min_length=1, max_length=256, description="This account's only.")] = None,
    ) -> Response:
        whose, where = rights.visible_root if account is None else AccountId(account), zone_of(zone)
        if not rights.may_see_account(whose):
            raise Refused(RefusalCode.NOT_FOUND, f"no account {account!r} that this token may see")
        slots.check(rights.caller.token_id)

        def read() -> list[Forecast]:
            with door.controller.database.read() as connection:
                return forecasts(connection, whose, where, door.now_ms)

        with slots.counted(rights.caller.token_id):
            found = await door.aside(read)
        items = [_item(each) for each in found if each.account]
        totals = [_item(each) for each in found if not each.account]
        return answer(page("ForecastList", door.now_ms, items, totals=totals, account=whose, zone=where.key))

    return router


def _item(found: Forecast) -> Json:
    def amount(micros: int | None) -> Json | None:
        if micros is None:
            return None
        return {"amount": fixed(micros, AMOUNT_DECIMALS), "currency": found.currency}

    return {
        "account": found.account or None,
        "so_far": amount(found.so_far_micros),
        "low": amount(found.low_micros),
        "high": amount(found.high_micros),
        "until": iso_utc(found.until_ms),
        "days": found.days,
    }
