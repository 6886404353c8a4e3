"""Who is told of jobs, and of what: a user's own target, and a tenant's."""

import secrets
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import APIRouter, Depends, Query, Request, Response
from sqlalchemy.engine import Connection

from scheduler.auth import RUNS_JOBS, Rights, Role
from scheduler.clock import iso_utc
from scheduler.core.model import AccountId, UserName
from scheduler.notices import ASKABLE, NoticeEvent
from scheduler.refusal import Problem, RefusalCode, Refused
from scheduler.routes.bodies import body_of
from scheduler.routes.door import Door, answer
from scheduler.store.notices import EVERYBODY, DeliveryRecord, SetTarget, Target, TestTarget, deliveries_of, targets
from scheduler.wire.answers import time_or_none
from scheduler.wire.problems import Json, envelope
from scheduler.wire.requests import NotifyBody, parse
from scheduler.wire.spec import invalid

_SHOWN = 20
OfTenant = Annotated[bool, Query(description="The whole tenant's, for its admins, instead of one's own.")]


def notice_routes(door: Door) -> APIRouter:
    """Returns the routes of notices."""
    router = APIRouter(tags=["notices"])
    reader = door.allow(RUNS_JOBS)
    changing = door.allow_change(RUNS_JOBS)

    @router.get("/v1/notify", summary="Where one is told of jobs, of what, and what became of the last notices")
    async def show(rights: Annotated[Rights, Depends(reader)], tenant: OfTenant = False) -> Response:
        key = _key(rights, of_tenant=tenant)

        def look(connection: Connection) -> tuple[Target | None, list[DeliveryRecord]]:
            return targets(connection).get(key), deliveries_of(connection, *key, _SHOWN)

        target, last = await door.read(look)
        return answer(envelope("Notify", door.now_ms, **_shown(target), deliveries=[_delivery(each) for each in last]))

    @router.put("/v1/notify", summary="Say where one wants to be told, and of what", openapi_extra=body_of(NotifyBody))
    async def change(
        request: Request, rights: Annotated[Rights, Depends(changing)], tenant: OfTenant = False
    ) -> Response:
        key = _key(rights, of_tenant=tenant)
        asked = parse(NotifyBody, await request.body())
        _check(asked)
        before = (await door.read(targets)).get(key)
        is_same_hook = before is not None and asked.webhook is not None and before.webhook == asked.webhook
        secret = before.secret if is_same_hook and before is not None else None
        made = None
        if asked.webhook is not None and secret is None:
            secret = made = f"whs_{secrets.token_urlsafe(32)}"
        target = Target(*key, asked.webhook, asked.email, frozenset(asked.events), secret)
        await door.carry_out(SetTarget(target))
        is_gone = asked.webhook is None and asked.email is None
        return answer(envelope("Notify", door.now_ms, **_shown(None if is_gone else target), secret=made))

    @router.post("/v1/notify/test", summary="Send a test notice")
    async def test(rights: Annotated[Rights, Depends(changing)], tenant: OfTenant = False) -> Response:
        made = await door.carry_out(TestTarget(*_key(rights, of_tenant=tenant)))
        return answer(envelope("NotifyTest", door.now_ms, deliveries=list(made)))

    return router


def _key(rights: Rights, *, of_tenant: bool) -> tuple[AccountId, UserName]:
    """Returns whose target is meant. Raises Refused where there is none to be had."""
    caller = rights.caller
    if caller.tenant is None:
        raise Refused(RefusalCode.NOT_ALLOWED, "notices are for tenants' jobs, and this token is the centre's own")
    if not of_tenant:
        return caller.tenant, caller.user
    rights.require(frozenset({Role.TENANT_ADMIN}))
    if caller.account != caller.tenant:
        raise Refused(RefusalCode.NOT_ALLOWED, f"the tenant's notices need a token for {caller.tenant} itself")
    return caller.tenant, EVERYBODY


def _check(asked: NotifyBody) -> None:
    problems = []
    if NoticeEvent.TEST in asked.events:
        problems.append(Problem(f"must be of {', '.join(ASKABLE)}", "events"))
    if asked.webhook is not None:
        try:
            parts = urlsplit(asked.webhook)
            is_right = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port or 1) > 0
            has_login = "@" in parts.netloc
        except ValueError:
            is_right, has_login = False, False
        if not is_right or not asked.webhook.isascii() or " " in asked.webhook:
            problems.append(Problem("must be an address such as https://hooks.acme.example/turnstile", "webhook"))
        elif has_login:
            problems.append(Problem("must not hold a name or password: notices are signed instead", "webhook"))
    if asked.email is not None and (asked.email.count("@") != 1 or asked.email.strip("@") != asked.email):
        problems.append(Problem("must be an address such as mei@acme.example", "email"))
    if problems:
        raise invalid(tuple(problems))


def _shown(target: Target | None) -> Json:
    if target is None:
        return {"webhook": None, "email": None, "events": [], "is_signed": False}
    events = [event.value for event in ASKABLE if event in target.events]
    return {
        "webhook": target.webhook,
        "email": target.email,
        "events": events,
        "is_signed": target.webhook is not None,
    }


def _delivery(each: DeliveryRecord) -> Json:
    return {
        "id": each.id,
        "channel": each.channel,
        "event": each.event,
        "job_id": each.job,
        "made_at": iso_utc(each.made_ms),
        "tries": each.tries,
        "next_try_at": time_or_none(each.next_ms),
        "done_at": time_or_none(each.done_ms),
        "error": each.error,
    }
