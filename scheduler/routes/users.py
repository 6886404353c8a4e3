"""Who belongs to an account, and as what: kept by operators and, within their own, by tenants' admins."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response

from scheduler.auth import ADMINISTERS, Rights
from scheduler.core.model import AccountId, UserName
from scheduler.routes.bodies import body_of
from scheduler.routes.door import Door, answer
from scheduler.store.tokens import Member, RemoveMember, SaveMember, members
from scheduler.wire.problems import Json, envelope, page
from scheduler.wire.requests import MemberBody, parse


def user_routes(door: Door) -> APIRouter:
    """Returns the routes of users."""
    router = APIRouter(tags=["administration"])
    reader = door.allow(ADMINISTERS)
    changing = door.allow_change(ADMINISTERS)

    @router.get("/v1/admin/users", summary="Who belongs to which account, and as what")
    async def users(
        rights: Annotated[Rights, Depends(reader)],
        account: Annotated[str | None, Query(max_length=256, description="This account and those below it.")] = None,
    ) -> Response:
        asked = rights.visible_root if account is None else AccountId(account)
        rights.require_people_of(asked)
        found = await door.read(lambda connection: members(connection, asked))
        return answer(page("UserList", door.now_ms, [_user(each) for each in found]))

    @router.put("/v1/admin/users", summary="Make or change a user of an account", openapi_extra=body_of(MemberBody))
    async def save(request: Request, rights: Annotated[Rights, Depends(changing)]) -> Response:
        asked = parse(MemberBody, await request.body())
        made = Member(AccountId(asked.account), UserName(asked.user), asked.role, asked.may_use_high)
        rights.require_people_of(made.account)
        did_change = await door.carry_out(SaveMember(made))
        door.tokens.forget()
        return answer(envelope("User", door.now_ms, **_user(made), did_change=did_change))

    @router.delete("/v1/admin/users", summary="Remove a user from an account, and revoke its tokens there")
    async def remove(
        rights: Annotated[Rights, Depends(changing)],
        account: Annotated[str, Query(max_length=256)],
        user: Annotated[str, Query(max_length=128)],
    ) -> Response:
        place = AccountId(account)
        rights.require_people_of(place)
        revoked = await door.carry_out(RemoveMember(place, UserName(user)))
        door.tokens.forget()
        return answer(envelope("UserRemoved", door.now_ms, account=account, user=user, tokens_revoked=revoked))

    return router


def _user(each: Member) -> Json:
    return {"user": each.user, "account": each.account, "role": each.role, "may_use_high": each.may_use_high}
