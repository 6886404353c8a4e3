"""Prices over HTTP: books and drafts for the centre, packages, and what a tenant itself is asked."""

import json
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any
from zoneinfo import ZoneInfo

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from sqlalchemy.engine import Connection

from metering.core.pricebook import PriceBook, body_of
from metering.core.quantity import UNIT_MS_PER_GPU_HOUR, BadDecimal, decimal_text, divide, fixed, parse_decimal
from metering.core.tariff import price_book_of
from metering.core.volume import Package
from metering.ledger import StoredBook, current_book, price_books, publish
from metering.packages import MOST_HOURS, packages_of, sell
from metering.price_drafts import (
    Allow,
    Draft,
    check_book,
    draft_of,
    drafts,
    prices_asked_of,
    save_draft,
    withdraw,
)
from metering.rates import AnnounceRates
from metering.timelines import load_prices, timelines
from scheduler.auth import OPERATES, READS_JOBS, READS_MONEY, Rights
from scheduler.clock import iso_utc
from scheduler.core.model import AccountId, GpuClass, tenant_of
from scheduler.refusal import Problem, RefusalCode, Refused
from scheduler.routes.door import Door, answer
from scheduler.store.tables import ACCOUNT
from scheduler.store.transaction import Transaction
from scheduler.wire.problems import Json, envelope, page
from scheduler.wire.requests import parse_time
from scheduler.wire.spec import invalid

MOST_REASON = 512
_ANY_OBJECT = {"requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}}
_Allowed = Annotated[
    list[Allow] | None, Query(alias="allow", max_length=len(Allow), description="What is new on purpose.")
]
_Version = Annotated[str, Path(min_length=1, max_length=64)]


@dataclass(frozen=True, slots=True)
class PublishPrices:
    """Publishes a price book; the scheduler learns its prices at once when it is in force already."""

    book: PriceBook
    allowed: frozenset[Allow] = frozenset()
    retroactive_reason: str | None = None

    def execute(self, tx: Transaction) -> StoredBook:
        """Returns the book as stored. Raises Refused as `check_book` and `ledger.publish` do."""
        check_book(tx.connection, self.book, self.allowed)
        stored = publish(tx.connection, self.book, tx.now_ms, self.retroactive_reason)
        AnnounceRates().execute(tx)
        return stored


@dataclass(frozen=True, slots=True)
class SaveDraft:
    """Keeps a price book as a draft."""

    book: PriceBook
    allowed: frozenset[Allow]

    def execute(self, tx: Transaction) -> Draft:
        """Returns the draft. Raises Refused as `check_book` and `save_draft` do."""
        check_book(tx.connection, self.book, self.allowed)
        return save_draft(tx.connection, self.book, tx.now_ms)


@dataclass(frozen=True, slots=True)
class PublishDraft:
    """Publishes a draft, which is then no draft any more."""

    version: str
    allowed: frozenset[Allow]
    retroactive_reason: str | None

    def execute(self, tx: Transaction) -> StoredBook:
        """Returns the book as stored. Raises Refused."""
        book = draft_of(tx.connection, self.version).book
        stored = PublishPrices(book, self.allowed, self.retroactive_reason).execute(tx)
        withdraw(tx.connection, self.version)
        return stored


@dataclass(frozen=True, slots=True)
class WithdrawDraft:
    """Removes a draft."""

    version: str

    def execute(self, tx: Transaction) -> None:
        """Raises Refused (not_found)."""
        withdraw(tx.connection, self.version)


@dataclass(frozen=True, slots=True)
class SellPackage:
    """Sells GPU-hours to a tenant."""

    package: Package

    def execute(self, tx: Transaction) -> Package:
        """Returns the package. Raises Refused: not_found for a tenant that is none, else as `packages.sell`."""
        tenant = self.package.tenant
        if tx.connection.execute(ACCOUNT.select().where(ACCOUNT.c.id == tenant)).first() is None:
            raise Refused(RefusalCode.NOT_FOUND, f"there is no tenant {tenant!r}")
        return sell(tx.connection, self.package, tx.now_ms)


def price_routes(door: Door) -> APIRouter:
    """Returns the routes of price books and packages."""
    router = APIRouter(tags=["money"])
    reader = door.allow(READS_MONEY)
    publisher = door.allow_change(OPERATES)
    _book_routes(door, router, (reader, publisher))
    _package_routes(door, router, (reader, publisher))

    @router.get("/v1/prices", summary="What the caller's tenant is asked for a GPU-hour, by class and booking")
    async def own_prices(rights: Annotated[Rights, Depends(door.allow(READS_JOBS))]) -> Response:
        now_ms = door.now_ms
        book = await door.read(lambda connection: current_book(connection, now_ms))
        if book is None:
            raise Refused(RefusalCode.NOT_FOUND, "no price book is in force yet")
        sees_all = not rights.visible_root and rights.caller.role in READS_MONEY
        shown = book if sees_all else prices_asked_of(book, rights.visible_root, now_ms)
        return answer(envelope("Prices", now_ms, **body_of(shown), effective_at=iso_utc(book.effective_ms)))

    return router


def _book_routes(door: Door, router: APIRouter, roles: tuple[Any, Any]) -> None:
    reader, publisher = roles

    @router.get("/v1/admin/prices", summary="Price books and drafts, by effective time")
    async def prices(_: Annotated[Rights, Depends(reader)]) -> Response:
        found = await door.read(lambda connection: (price_books(connection), drafts(connection)))
        items = [*map(_book, found[0]), *map(_draft, found[1])]
        return answer(page("PriceBookList", door.now_ms, items))

    @router.get("/v1/admin/prices/{version}", summary="One price book, or a draft of one")
    async def price_book(version: _Version, _: Annotated[Rights, Depends(reader)]) -> Response:
        return answer(envelope("PriceBook", door.now_ms, **await door.read(lambda each: _one(each, version))))

    @router.post("/v1/admin/prices", status_code=201, summary="Publish a price book", openapi_extra=_ANY_OBJECT)
    async def publish_prices(
        request: Request,
        _: Annotated[Rights, Depends(publisher)],
        allowed: _Allowed = None,
    ) -> Response:
        book = price_book_of(_document(await request.body()))
        stored = await door.carry_out(PublishPrices(book, frozenset(allowed or ())))
        return answer(envelope("PriceBook", door.now_ms, **_book(stored)), 201)

    @router.post("/v1/admin/price-drafts", status_code=201, summary="Keep a draft", openapi_extra=_ANY_OBJECT)
    async def keep_draft(
        request: Request,
        _: Annotated[Rights, Depends(publisher)],
        allowed: _Allowed = None,
    ) -> Response:
        book = price_book_of(_document(await request.body()))
        draft = await door.carry_out(SaveDraft(book, frozenset(allowed or ())))
        return answer(envelope("PriceBook", door.now_ms, **_draft(draft)), 201)

    @router.delete("/v1/admin/price-drafts/{version}", summary="Withdraw a draft")
    async def withdraw_draft(version: _Version, _: Annotated[Rights, Depends(publisher)]) -> Response:
        await door.carry_out(WithdrawDraft(version))
        return answer(envelope("PriceBook", door.now_ms, version=version, state="withdrawn"))

    @router.post("/v1/admin/price-drafts/{version}/publish", status_code=201, summary="Publish a draft")
    async def publish_draft(
        version: _Version,
        _: Annotated[Rights, Depends(publisher)],
        allowed: _Allowed = None,
        reason: Annotated[
            str | None,
            Query(min_length=1, max_length=MOST_REASON, description="Why it prices what was used before: retroactive."),
        ] = None,
    ) -> Response:
        stored = await door.carry_out(PublishDraft(version, frozenset(allowed or ()), reason))
        return answer(envelope("PriceBook", door.now_ms, **_book(stored)), 201)


def _package_routes(door: Door, router: APIRouter, roles: tuple[Any, Any]) -> None:
    reader, publisher = roles

    @router.get("/v1/admin/packages", summary="Packages of GPU-hours, and what is left of each")
    async def every_package(_: Annotated[Rights, Depends(reader)]) -> Response:
        now_ms = door.now_ms
        return answer(page("PackageList", now_ms, await door.aside(_packages, door, None, now_ms)))

    @router.get("/v1/packages", summary="The caller's tenant's packages of GPU-hours, and what is left of each")
    async def own_packages(rights: Annotated[Rights, Depends(door.allow(READS_JOBS))]) -> Response:
        now_ms, root = door.now_ms, rights.visible_root
        sees_all = not root and rights.caller.role in READS_MONEY
        tenant = None if sees_all else tenant_of(root)
        return answer(page("PackageList", now_ms, await door.aside(_packages, door, tenant, now_ms)))

    @router.post("/v1/admin/packages", status_code=201, summary="Sell a package", openapi_extra=_ANY_OBJECT)
    async def sell_package(request: Request, _: Annotated[Rights, Depends(publisher)]) -> Response:
        package = _package_of(_document(await request.body()))
        sold = await door.carry_out(SellPackage(package))
        return answer(envelope("Package", door.now_ms, **_package(sold, sold.unit_ms)), 201)


def _document(body: bytes) -> dict[str, Any]:
    """Returns a JSON object whose decimals are exact. Raises Refused (`invalid`)."""
    try:
        document = json.loads(body, parse_float=Decimal)
    except (ValueError, RecursionError):
        raise invalid((Problem("the body is not JSON"),)) from None
    if not isinstance(document, dict):
        raise invalid((Problem("it is no object"),))
    return document


def _book(stored: StoredBook) -> Json:
    return {
        **body_of(stored.book),
        "state": "published",
        "sha256": stored.sha256,
        "published_at": iso_utc(stored.published_ms),
        "retroactive_reason": stored.retroactive_reason,
    }


def _draft(draft: Draft) -> Json:
    return {
        **body_of(draft.book),
        "state": "draft",
        "sha256": draft.sha256,
        "saved_at": iso_utc(draft.saved_ms),
    }


def _one(connection: Connection, version: str) -> Json:
    for stored in price_books(connection):
        if stored.book.version == version:
            return _book(stored)
    return _draft(draft_of(connection, version))


_PACKAGE_KEYS = frozenset({"id", "tenant", "class", "gpu_hours", "price", "currency", "from", "to"})


def _package_of(document: dict[str, Any]) -> Package:
    """Returns the package that a request describes. Raises Refused (`invalid`) with all that is wrong with it."""
    problems = [Problem("unknown key", key) for key in sorted(document.keys() - _PACKAGE_KEYS)]
    texts: dict[str, str] = {}
    for key in sorted(_PACKAGE_KEYS - {"gpu_hours"}):
        value = document.get(key)
        if not isinstance(value, str) or not value.strip() or not value.isprintable() or len(value) > MOST_REASON:
            problems.append(Problem("is missing, or no text", key))
        else:
            texts[key] = value
    hours = document.get("gpu_hours")
    if isinstance(hours, bool) or not isinstance(hours, int) or not 0 < hours <= MOST_HOURS:
        problems.append(Problem(f"must be a whole number of 1 to {MOST_HOURS}", "gpu_hours"))
    price = Decimal(0)
    try:
        price = parse_decimal(texts.get("price", "0"))
    except BadDecimal as error:
        problems.append(Problem(str(error), "price"))
    if "tenant" in texts and tenant_of(AccountId(texts["tenant"])) != texts["tenant"]:
        problems.append(Problem(f"{texts['tenant']!r} is a project; packages are of whole tenants", "tenant"))
    if problems:
        raise invalid(tuple(problems))
    from_ms, to_ms = parse_time(texts["from"], "from"), parse_time(texts["to"], "to")
    if from_ms >= to_ms:
        raise invalid((Problem("must be after `from`", "to"),))
    assert isinstance(hours, int), "checked above"
    return Package(
        f"package/{texts['id']}",
        AccountId(texts["tenant"]),
        GpuClass(texts["class"]),
        hours,
        price,
        texts["currency"],
        from_ms,
        to_ms,
    )


def _packages(door: Door, tenant: AccountId | None, now_ms: int) -> list[Json]:
    with door.controller.database.read() as connection:
        found = list(packages_of(connection, tenant=tenant))
        if not found:
            return []
        left = _left(connection, now_ms, tenant)
        return [_package(each, left.get(each.id, each.unit_ms)) for each in found]


def _left(connection: Connection, now_ms: int, tenant: AccountId | None) -> dict[str, int]:
    """Returns the unit-milliseconds that are left of packages now, or were when they expired."""
    # The zone cuts days, which nothing here is told by.
    made = timelines(connection, (now_ms - 1, now_ms), ZoneInfo("UTC"), load_prices(connection), tenant)
    return {name: unit_ms for meter in made.meters.values() for name, unit_ms in meter.left_unit_ms.items()}


def _package(package: Package, left_unit_ms: int) -> Json:
    return {
        "id": package.id,
        "tenant": package.tenant,
        "class": package.gpu_class,
        "gpu_hours": package.gpu_hours,
        "left_gpu_hours": fixed(divide(left_unit_ms * 10**9, UNIT_MS_PER_GPU_HOUR), 9),
        "price": {"amount": decimal_text(package.price, 2), "currency": package.currency},
        "from": iso_utc(package.from_ms),
        "to": iso_utc(package.to_ms),
    }
