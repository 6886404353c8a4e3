"""The account tree, as operators and, below their own account, tenants' admins keep it."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request, Response

from scheduler.auth import ADMINISTERS, Rights
from scheduler.core.model import ROOT_ACCOUNT, Account, AccountId, GpuClass
from scheduler.refusal import Problem
from scheduler.routes.bodies import body_of
from scheduler.routes.door import Door, answer
from scheduler.store import centre
from scheduler.store.accounts import PutAccount, RemoveAccount, SuspendAccount, version_of
from scheduler.wire.problems import Json, envelope, page
from scheduler.wire.requests import AccountBody, SuspendBody, parse
from scheduler.wire.spec import invalid
from scheduler.wire.text import account_path

AccountRef = Annotated[str, Path(max_length=256)]


def account_routes(door: Door) -> APIRouter:
    """Returns the routes of accounts."""
    router = APIRouter(tags=["administration"])
    reader = door.allow(ADMINISTERS)
    changing = door.allow_change(ADMINISTERS)

    @router.get("/v1/admin/accounts", summary="The account tree")
    async def accounts(rights: Annotated[Rights, Depends(reader)]) -> Response:
        found = await door.read(centre.accounts)
        seen = [each for each in found if each.account.id != ROOT_ACCOUNT and rights.may_see_account(each.account.id)]
        items = [account_answer(each.account, each.display_name) for each in seen]
        return answer(page("AccountList", door.now_ms, items))

    @router.put(
        "/v1/admin/accounts/{path:path}", summary="Make or change an account", openapi_extra=body_of(AccountBody)
    )
    async def save(
        request: Request,
        path: AccountRef,
        rights: Annotated[Rights, Depends(changing)],
        force: Annotated[bool, Query(description="Also when more is guaranteed than there is.")] = False,
        version: Annotated[
            str | None,
            Query(max_length=64, description="Only if the account's `version` is still this; `none`: only to make it."),
        ] = None,
    ) -> Response:
        asked = parse(AccountBody, await request.body())
        account = _account(_checked(path), asked)
        rights.require_terms_of(account.id)
        display_name = asked.display_name or account.id
        is_by_tenant = not rights.is_operator
        capacity = None if force and not is_by_tenant else capacity_of(door)
        did_change = await door.carry_out(PutAccount(account, display_name, capacity, is_by_tenant, version))
        door.tokens.forget()
        return answer(envelope("Account", door.now_ms, **await _as_is(door, account.id), did_change=did_change))

    @router.post(
        "/v1/admin/accounts/{path:path}/suspend",
        summary="Let an account start nothing new",
        openapi_extra=body_of(SuspendBody),
    )
    async def suspend(request: Request, path: AccountRef, rights: Annotated[Rights, Depends(changing)]) -> Response:
        asked = parse(SuspendBody, await request.body() or b"{}")
        return await _suspended(door, rights, path, is_suspended=True, drains=asked.drain)

    @router.post("/v1/admin/accounts/{path:path}/resume", summary="Let a suspended account start jobs again")
    async def resume(path: AccountRef, rights: Annotated[Rights, Depends(changing)]) -> Response:
        return await _suspended(door, rights, path, is_suspended=False, drains=False)

    @router.delete("/v1/admin/accounts/{path:path}", summary="Remove an account without jobs")
    async def remove(path: AccountRef, rights: Annotated[Rights, Depends(changing)]) -> Response:
        account = _checked(path)
        rights.require_terms_of(account)
        await door.carry_out(RemoveAccount(account))
        door.tokens.forget()
        return answer(envelope("AccountRemoved", door.now_ms, id=account))

    return router


def capacity_of(door: Door) -> dict[GpuClass, int]:
    """Returns the whole GPUs of each class that the centre has, those of drained nodes too."""
    capacity: dict[GpuClass, int] = {}
    for offer in door.controller.offers:
        capacity[offer.gpu_class] = capacity.get(offer.gpu_class, 0) + offer.gpus * offer.nodes
    return capacity


def account_answer(account: Account, display_name: str) -> Json:
    """Returns an account's terms."""
    return {
        "id": account.id,
        "display_name": display_name,
        "parent": account.parent or None,
        "weight": account.weight,
        "guarantee": dict(sorted(account.guarantee.items())),
        "limit": dict(sorted(account.limit.items())),
        "user_limit": dict(sorted(account.user_limit.items())),
        "running_limit": account.running_limit,
        "pending_limit": account.pending_limit,
        "high_limit": account.high_limit,
        "limit_weight": account.limit_weight,
        "service_weight": account.service_weight,
        "slowdown_weight": account.slowdown_weight,
        "takes_turns": account.takes_turns,
        "guaranteed_yields": account.guaranteed_yields,
        "is_suspended": account.is_suspended,
        "is_suspended_by_centre": account.is_locked,
        "version": version_of(account, display_name),
    }


async def _suspended(door: Door, rights: Rights, path: str, *, is_suspended: bool, drains: bool) -> Response:
    account = _checked(path)
    rights.require_terms_of(account)
    is_by_tenant = not rights.is_operator
    command = SuspendAccount(account, is_suspended, rights.caller.user, drains, is_by_tenant)
    stopped = await door.carry_out(command)
    door.tokens.forget()
    return answer(envelope("Account", door.now_ms, **await _as_is(door, account), jobs_stopped=stopped))


async def _as_is(door: Door, account: AccountId) -> Json:
    found = await door.read(centre.accounts)
    [known] = [each for each in found if each.account.id == account]
    return account_answer(known.account, known.display_name)


def _account(name: AccountId, asked: AccountBody) -> Account:
    return Account(
        id=name,
        weight=asked.weight,
        guarantee={GpuClass(gpu_class): count for gpu_class, count in asked.guarantee.items() if count},
        limit={GpuClass(gpu_class): count for gpu_class, count in asked.limit.items()},
        is_suspended=asked.is_suspended,
        limit_weight=asked.limit_weight,
        service_weight=asked.service_weight,
        slowdown_weight=asked.slowdown_weight,
        user_limit={GpuClass(gpu_class): count for gpu_class, count in asked.user_limit.items()},
        running_limit=asked.running_limit,
        pending_limit=asked.pending_limit,
        high_limit=asked.high_limit,
        takes_turns=asked.takes_turns,
        guaranteed_yields=asked.guaranteed_yields,
    )


def _checked(path: str) -> AccountId:
    try:
        return AccountId(account_path(path))
    except ValueError as error:
        raise invalid((Problem(str(error), "path"),)) from None
