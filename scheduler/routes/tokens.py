"""Tokens: made by operators, by tenants' admins for their people, by everybody for itself; told once."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request, Response
from ulid import ULID

from scheduler.auth import ADMINISTERS, KEEPS_TOKENS, Rights, new_secret, secret_hash
from scheduler.core.model import AccountId, UserName
from scheduler.routes.bodies import body_of
from scheduler.routes.door import Door, answer
from scheduler.store import centre
from scheduler.store.tokens import RevokeToken, SaveOwnToken, SaveToken, TokenRecord
from scheduler.wire.answers import time_or_none
from scheduler.wire.problems import Json, envelope, page
from scheduler.wire.requests import OwnTokenBody, TokenBody, parse


def token_routes(door: Door) -> APIRouter:
    """Returns the routes of tokens."""
    router = APIRouter(tags=["administration"])
    reader = door.allow(ADMINISTERS)
    changing = door.allow_change(ADMINISTERS)

    @router.get("/v1/admin/tokens", summary="Tokens, without their secrets")
    async def tokens(rights: Annotated[Rights, Depends(reader)]) -> Response:
        found = await door.read(centre.tokens)
        seen = [_token(each) for each in found if rights.may_see_account(each.account)]
        return answer(page("TokenList", door.now_ms, seen))

    @router.post("/v1/admin/tokens", status_code=201, summary="Make a token", openapi_extra=body_of(TokenBody))
    async def make(request: Request, rights: Annotated[Rights, Depends(changing)]) -> Response:
        asked = parse(TokenBody, await request.body())
        rights.require_people_of(AccountId(asked.account))
        rights.require_giving(asked.role, AccountId(asked.account))
        secret = new_secret()
        now_ms = door.now_ms
        lifetime = asked.expires_in_seconds
        command = SaveToken(
            id=str(ULID()),
            secret_hash=secret_hash(secret),
            role=asked.role.value,
            account=AccountId(asked.account),
            user=UserName(asked.user),
            expires_ms=None if lifetime is None else now_ms + lifetime * 1000,
        )
        await door.carry_out(command)
        item = _token(
            TokenRecord(command.id, command.role, command.account, command.user, now_ms, command.expires_ms, None)
        )
        return answer(envelope("Token", now_ms, **item, secret=secret), 201)

    @router.delete("/v1/admin/tokens/{token_id}", summary="Revoke a token")
    async def revoke(
        token_id: Annotated[str, Path(max_length=64)], rights: Annotated[Rights, Depends(changing)]
    ) -> Response:
        was_valid = await door.carry_out(RevokeToken(token_id, rights.visible_root))
        door.tokens.forget()
        return answer(envelope("TokenRevoked", door.now_ms, id=token_id, was_valid=was_valid))

    _own_token_routes(door, router)
    return router


def _own_token_routes(door: Door, router: APIRouter) -> None:
    reader = door.allow(KEEPS_TOKENS)
    changing = door.allow_change(KEEPS_TOKENS)
    ending = door.allow_change(KEEPS_TOKENS, even_suspended=True)

    @router.get("/v1/tokens", summary="The caller's own tokens, without their secrets")
    async def own(rights: Annotated[Rights, Depends(reader)]) -> Response:
        caller = rights.caller
        found = await door.read(lambda connection: centre.tokens_of(connection, caller.account, caller.user))
        return answer(page("TokenList", door.now_ms, [_token(each) for each in found]))

    @router.post("/v1/tokens", status_code=201, summary="Make a token for oneself", openapi_extra=body_of(OwnTokenBody))
    async def make_own(request: Request, rights: Annotated[Rights, Depends(changing)]) -> Response:
        asked = parse(OwnTokenBody, await request.body())
        secret = new_secret()
        now_ms = door.now_ms
        lifetime = asked.expires_in_seconds
        expires_ms = rights.caller.expires_ms if lifetime is None else now_ms + lifetime * 1000
        command = SaveOwnToken(rights.caller.token_id, str(ULID()), secret_hash(secret), expires_ms)
        made = await door.carry_out(command)
        return answer(envelope("Token", now_ms, **_token(made), secret=secret), 201)

    @router.delete("/v1/tokens/{token_id}", summary="Revoke one of the caller's own tokens")
    async def revoke_own(
        token_id: Annotated[str, Path(max_length=64)], rights: Annotated[Rights, Depends(ending)]
    ) -> Response:
        caller = rights.caller
        was_valid = await door.carry_out(RevokeToken(token_id, caller.account, caller.user))
        door.tokens.forget()
        return answer(envelope("TokenRevoked", door.now_ms, id=token_id, was_valid=was_valid))


def _token(token: TokenRecord) -> Json:
    return {
        "id": token.id,
        "role": token.role,
        "account": token.account,
        "user": token.user,
        "created_at": time_or_none(token.created_ms),
        "expires_at": time_or_none(token.expires_ms),
        "revoked_at": time_or_none(token.revoked_ms),
    }
