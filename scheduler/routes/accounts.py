"""The account tree, as operators keep it."""

from collections.abc import Iterable
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request, Response

from scheduler.auth import OPERATES, Rights
from scheduler.core.model import ROOT_ACCOUNT, Account, AccountId, GpuClass
from scheduler.refusal import Problem, RefusalCode, Refused
from scheduler.routes.bodies import body_of
from scheduler.routes.door import Door, answer
from scheduler.store import centre
from scheduler.store.accounts import RemoveAccount, SaveAccount
from scheduler.wire.fitting import Offer
from scheduler.wire.problems import Json, envelope, page
from scheduler.wire.requests import AccountBody, parse
from scheduler.wire.spec import invalid
from scheduler.wire.text import account_path

AccountRef = Annotated[str, Path(max_length=256)]


def account_routes(door: Door) -> APIRouter:
    """Returns the routes of accounts."""
    router = APIRouter(tags=["administration"])
    operator = door.allow(OPERATES)
    changing = door.allow_change(OPERATES)

    @router.get("/v1/admin/accounts", summary="The account tree")
    async def accounts(_: Annotated[Rights, Depends(operator)]) -> Response:
        found = await door.read(centre.accounts)
        items = [_account(each.account, each.display_name) for each in found if each.account.id != ROOT_ACCOUNT]
        return answer(page("AccountList", door.now_ms, items))

    @router.put(
        "/v1/admin/accounts/{path:path}", summary="Make or change an account", openapi_extra=body_of(AccountBody)
    )
    async def save(
        request: Request,
        path: AccountRef,
        _: Annotated[Rights, Depends(changing)],
        force: Annotated[bool, Query(description="Also when more is guaranteed than there is.")] = False,
    ) -> Response:
        asked = parse(AccountBody, await request.body())
        account = Account(
            id=_checked(path),
            weight=asked.weight,
            guarantee={GpuClass(name): count for name, count in asked.guarantee.items() if count},
            limit={GpuClass(name): count for name, count in asked.limit.items()},
            is_suspended=asked.is_suspended,
        )
        if not force and account.parent == ROOT_ACCOUNT:
            others = await door.read(centre.accounts)
            _check_guarantees(account, [each.account for each in others], door.controller.offers)
        display_name = asked.display_name or account.id
        did_change = await door.carry_out(SaveAccount(account, display_name))
        return answer(envelope("Account", door.now_ms, **_account(account, display_name), did_change=did_change))

    @router.delete("/v1/admin/accounts/{path:path}", summary="Remove an account without jobs")
    async def remove(path: AccountRef, _: Annotated[Rights, Depends(changing)]) -> Response:
        account = _checked(path)
        await door.carry_out(RemoveAccount(account))
        return answer(envelope("AccountRemoved", door.now_ms, id=account))

    return router


def _checked(path: str) -> AccountId:
    try:
        return AccountId(account_path(path))
    except ValueError as error:
        raise invalid((Problem(str(error), "path"),)) from None


def _check_guarantees(account: Account, others: Iterable[Account], offers: Iterable[Offer]) -> None:
    """Raises Refused (`policy`) when tenants would be guaranteed more GPUs of a class than the centre has."""
    capacity: dict[GpuClass, int] = {}
    for offer in offers:
        capacity[offer.gpu_class] = capacity.get(offer.gpu_class, 0) + offer.gpus * offer.nodes
    tenants = [each for each in others if each.parent == ROOT_ACCOUNT and each.id != account.id]
    problems = []
    for gpu_class, wanted in sorted(account.guarantee.items()):
        sold = sum(each.guarantee.get(gpu_class, 0) for each in tenants)
        left = capacity.get(gpu_class, 0) - sold
        if wanted > left:
            problems.append(
                Problem(
                    f"{wanted} {gpu_class} are more than is left: the centre has {capacity.get(gpu_class, 0)}, and "
                    f"{sold} are guaranteed to others",
                    f"guarantee.{gpu_class}",
                )
            )
    if problems:
        raise Refused(RefusalCode.POLICY, problems[0].message, tries=("--force",), problems=tuple(problems))


def _account(account: Account, display_name: str) -> Json:
    return {
        "id": account.id,
        "display_name": display_name,
        "parent": account.parent or None,
        "weight": account.weight,
        "guarantee": dict(sorted(account.guarantee.items())),
        "limit": dict(sorted(account.limit.items())),
        "is_suspended": account.is_suspended,
    }
