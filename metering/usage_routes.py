"""What was used, over HTTP: `GET /v1/usage`, for tenants of their own accounts and for billing of all."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response

from metering.core.quantity import AMOUNT_DECIMALS, GPU_HOURS_DECIMALS, MS_PER_HOUR, divide, fixed
from metering.spans import instant_of, zone_of
from metering.usage_report import GroupBy, Span, UsageGroup, totals_of, usage_by
from scheduler.auth import READS_JOBS, Rights
from scheduler.clock import iso_utc
from scheduler.core.model import AccountId
from scheduler.refusal import Problem, RefusalCode, Refused
from scheduler.routes.door import Door, answer
from scheduler.routes.limits import Slots
from scheduler.wire.problems import Json, page
from scheduler.wire.spec import invalid

MOST_REPORTS, MOST_REPORTS_PER_TOKEN = 4, 2
"""Reports at once: each reads the lines of its range and keeps a thread and a snapshot."""
MOST_DAYS = 400
"""The longest range, a year and a month: what a report is asked for, and what bounds its time."""


def usage_routes(door: Door) -> APIRouter:
    """Returns the route of usage reports."""
    router = APIRouter(tags=["money"])
    reader = door.allow(READS_JOBS)
    slots = Slots(MOST_REPORTS, MOST_REPORTS_PER_TOKEN, "usage reports")

    def span_of(
        from_: Annotated[str, Query(alias="from", max_length=64, description="A day in `zone`, or an RFC 3339 time.")],
        to: Annotated[str, Query(max_length=64, description="Exclusive; as `from`. Not beyond the present.")],
        zone: Annotated[str, Query(max_length=64, description="An IANA time zone.")] = "UTC",
    ) -> Span:
        where = zone_of(zone)
        span = Span(instant_of(from_, where, "from"), min(instant_of(to, where, "to"), door.now_ms), where)
        if not 0 <= span.from_ms < span.to_ms:
            raise invalid((Problem("must be before `to` and before now", "from"),))
        if span.to_ms - span.from_ms > MOST_DAYS * 24 * MS_PER_HOUR:
            raise invalid((Problem(f"is more than {MOST_DAYS} days before `to`", "from"),))
        return span

    @router.get("/v1/usage", summary="GPU-hours, idle part and cost, by project, user, job, GPU model or day")
    async def usage(
        rights: Annotated[Rights, Depends(reader)],
        span: Annotated[Span, Depends(span_of)],
        by: Annotated[GroupBy, Query(description="What the lines are added up by.")] = GroupBy.PROJECT,
        account: Annotated[str | None, Query(min_length=1, max_length=256, description="This account's only.")] = None,
    ) -> Response:
        whose = rights.visible_root if account is None else AccountId(account)
        if not rights.may_see_account(whose):
            raise Refused(RefusalCode.NOT_FOUND, f"no account {account!r} that this token may see")
        slots.check(rights.caller.token_id)
        with slots.counted(rights.caller.token_id):
            groups = await door.aside(_grouped, door, span, by, whose)
        return answer(
            page(
                "UsageList",
                door.now_ms,
                [_group(each) for each in groups],
                totals=[_group(each) for each in totals_of(groups)],
                by=by.value,
                account=whose,
                zone=span.zone.key,
                **{"from": iso_utc(span.from_ms), "to": iso_utc(span.to_ms)},
            )
        )

    return router


def _grouped(door: Door, span: Span, by: GroupBy, account: AccountId) -> list[UsageGroup]:
    with door.controller.database.read() as connection:
        return usage_by(connection, span, by, account)


def _group(group: UsageGroup) -> Json:
    is_measured = group.measured_gpu_ms > 0
    return {
        "key": group.key,
        "name": group.name,
        "lines": group.lines,
        "gpu_hours": fixed(group.gpu_hours_nano, GPU_HOURS_DECIMALS),
        "preempted_gpu_hours": fixed(group.preempted_hours_nano, GPU_HOURS_DECIMALS),
        "measured_gpu_hours": _hours(group.measured_gpu_ms),
        "idle_gpu_hours": _hours(group.idle_gpu_ms) if is_measured else None,
        "idle_percent": divide(100 * group.idle_gpu_ms, group.measured_gpu_ms) if is_measured else None,
        "cost": None
        if group.currency is None
        else {"amount": fixed(group.amount_micros, AMOUNT_DECIMALS), "currency": group.currency},
    }


def _hours(gpu_ms: int) -> str:
    return fixed(divide(gpu_ms * 10**GPU_HOURS_DECIMALS, MS_PER_HOUR), GPU_HOURS_DECIMALS)
