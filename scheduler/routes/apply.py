"""A declared centre: its differences to what there is, shown first and then made in one transaction.

Other packages may declare more: a `SectionKind` says how the entries of a section are read and compared.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel

from scheduler.auth import ADMINISTERS, OPERATES, Rights
from scheduler.refusal import Problem, RefusalCode, Refused
from scheduler.routes.accounts import capacity_of
from scheduler.routes.bodies import body_of
from scheduler.routes.door import Door, answer
from scheduler.store.declared import (
    ACCOUNTS,
    USERS,
    ApplyCentre,
    Change,
    DeclaredAccounts,
    DeclaredUsers,
    Section,
    change_values,
    differences,
    digest,
)
from scheduler.store.declared_pools import POOLS, DeclaredPools
from scheduler.wire.declaration import AccountEntry, ApplyBody, PoolEntry, UserEntry, parse_entries
from scheduler.wire.problems import Json, page
from scheduler.wire.requests import parse
from scheduler.wire.spec import invalid
from scheduler.wire.text import did_you_mean


@dataclass(frozen=True, slots=True)
class SectionKind:
    """How a section is read: the model of its entries, a check of the caller's rights on one, and the section made."""

    name: str
    entry: type[BaseModel]
    check: Callable[[Rights, Any], None]  # Any: an entry of the model
    declare: Callable[[Door, Rights, ApplyBody, list[Any]], Section]
    named_by: str = "id"
    """The field of an entry that a refusal of the caller's rights is about."""


def apply_routes(door: Door, more: Sequence[SectionKind] = ()) -> APIRouter:
    """Returns the route of declared centres; `more` are sections besides accounts, users and pools, made after them."""
    router = APIRouter(tags=["administration"])
    changing = door.allow_change(ADMINISTERS)
    kinds = {kind.name: kind for kind in (_ACCOUNTS, _USERS, _POOLS, *more)}

    @router.post("/v1/admin/apply", summary="Make the centre what is declared", openapi_extra=body_of(ApplyBody))
    async def apply(
        request: Request,
        rights: Annotated[Rights, Depends(changing)],
        dry_run: Annotated[bool, Query(description="Tell the differences and change nothing.")] = False,
    ) -> Response:
        asked = parse(ApplyBody, await request.body())
        sections = _sections(door, rights, asked, kinds)
        if dry_run:
            found = await door.read(lambda connection: differences(connection, sections, prunes=asked.prune))
        else:
            found = await door.carry_out(ApplyCentre(sections, asked.prune, asked.expect))
            door.tokens.forget()
        items = [change_values(each) for each in found]
        return answer(
            page("CentreChangeList", door.now_ms, items, digest=digest(found), is_applied=not dry_run, **_count(found))
        )

    return router


def _sections(door: Door, rights: Rights, asked: ApplyBody, kinds: dict[str, SectionKind]) -> tuple[Section, ...]:
    """Returns the sections in the order in which they are made. Raises Refused with all that is wrong."""
    problems = [
        Problem(f"unknown section{did_you_mean(name, tuple(kinds))}", name)
        for name in asked.sections
        if name not in kinds
    ]
    found: list[Section] = []
    for name, kind in kinds.items():
        if name not in asked.sections:
            continue
        entries, wrong = parse_entries(name, kind.entry, asked.sections[name])
        problems += wrong
        for index, entry in enumerate(entries):
            try:
                kind.check(rights, entry)
            except Refused as refused:
                if refused.code not in {RefusalCode.NOT_ALLOWED, RefusalCode.NOT_FOUND}:
                    raise
                problems.append(Problem(refused.message, f"{name}.{index}.{kind.named_by}"))
        found.append(kind.declare(door, rights, asked, entries))
    if problems:
        raise invalid(tuple(problems))
    return tuple(found)


def _count(changes: Sequence[Change]) -> Json:
    return {"changes": sum(each.command is not None for each in changes)}


def _accounts(door: Door, rights: Rights, asked: ApplyBody, entries: list[AccountEntry]) -> Section:
    capacity = None if asked.force and rights.is_operator else capacity_of(door)
    declared = tuple(entry.declared() for entry in entries)
    return DeclaredAccounts(declared, rights.visible_root, capacity, is_by_tenant=not rights.is_operator)


def _users(_: Door, rights: Rights, __: ApplyBody, entries: list[UserEntry]) -> Section:
    return DeclaredUsers(tuple(entry.declared() for entry in entries), rights.visible_root)


def _check_account(rights: Rights, entry: AccountEntry) -> None:
    rights.require_terms_of(entry.declared().id)


def _check_user(rights: Rights, entry: UserEntry) -> None:
    rights.require_people_of(entry.declared().account)


def _pools(_: Door, __: Rights, ___: ApplyBody, entries: list[PoolEntry]) -> Section:
    return DeclaredPools(tuple(entry.declared() for entry in entries))


def _check_pool(rights: Rights, _: PoolEntry) -> None:
    rights.require(OPERATES)


_ACCOUNTS = SectionKind(ACCOUNTS, AccountEntry, _check_account, _accounts)
_USERS = SectionKind(USERS, UserEntry, _check_user, _users, named_by="account")
_POOLS = SectionKind(POOLS, PoolEntry, _check_pool, _pools, named_by="name")
