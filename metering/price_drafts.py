"""Price books before they are published: drafts, and what only the centre can say against a book.

A draft may be changed, compared and withdrawn; nothing is rated by it. Publishing checks the book again, as it stands
then. Functions work inside the caller's transaction; expected refusals are `Refused`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from metering.core.pricebook import PriceBook, body_of
from metering.core.tariff import price_book_of
from metering.ledger import current_book, price_books
from metering.tables import PRICE_DRAFT
from scheduler.core.model import AccountId, GpuClass, tenant_of
from scheduler.refusal import Problem, RefusalCode, Refused
from scheduler.store.tables import ACCOUNT, DEVICE

MOST_DRAFTS = 100
"""Drafts that are kept at once: books that nobody withdrew."""


class Allow(StrEnum):
    """What a book may bring only if it is said to be meant."""

    NEW_CLASS = "new-class"
    NEW_CURRENCY = "new-currency"


@dataclass(frozen=True, slots=True)
class Draft:
    """A book that is not published."""

    book: PriceBook
    sha256: str
    saved_ms: int


def check_book(connection: Connection, book: PriceBook, allowed: frozenset[Allow] = frozenset()) -> None:
    """Raises Refused (invalid) with all that the centre knows to be wrong with a book: classes, tenants, currency."""
    problems = [*_strangers(connection, book, allowed)]
    classes = {field for field, _ in _classes_of(book)}
    # Only what would help is offered: to allow another thing than what is wrong hides the next mistake.
    helps = [Allow.NEW_CLASS] if any(each.field in classes for each in problems) else []
    if "/" in book.version:
        problems.append(
            Problem(f"{book.version!r} has a slash, which stands between the parts of a line's name", "version")
        )
    now = current_book(connection, book.effective_ms)
    if now is not None and now.currency != book.currency and Allow.NEW_CURRENCY not in allowed:
        problems.append(
            Problem(f"is {book.currency}, but book {now.version} before it is in {now.currency}", "currency")
        )
        helps.append(Allow.NEW_CURRENCY)
    if problems:
        many = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        tries = tuple(f"--allow {each}" for each in helps)
        first = f"{problems[0].field}: {problems[0].message}"
        raise Refused(RefusalCode.INVALID, f"the price book has {many}: {first}", problems=tuple(problems), tries=tries)


def _strangers(connection: Connection, book: PriceBook, allowed: frozenset[Allow]) -> Iterator[Problem]:
    classes = {GpuClass(name) for name in connection.execute(sa.select(DEVICE.c.gpu_class).distinct()).scalars()}
    if classes and Allow.NEW_CLASS not in allowed:
        known = ", ".join(sorted(classes))
        for field, gpu_class in sorted(_classes_of(book)):
            if gpu_class not in classes:
                yield Problem(f"no GPU of class {gpu_class!r} was ever here; known are {known}", field)
    accounts = {AccountId(name) for name in connection.execute(sa.select(ACCOUNT.c.id)).scalars()}
    for place, contract in enumerate(book.contracts):
        if contract.tenant not in accounts:
            yield Problem(f"there is no tenant {contract.tenant!r}", f"contracts[{place}].tenant")
    for place, fee in enumerate(book.reserved):
        if fee.account not in accounts:
            yield Problem(f"there is no account {fee.account!r}", f"reserved[{place}].account")


def _classes_of(book: PriceBook) -> set[tuple[str, GpuClass]]:
    found = {(f"prices.{gpu_class}", gpu_class) for gpu_class, _ in book.prices}
    found |= {(f"energy.{gpu_class}", gpu_class) for gpu_class in book.energy}
    found |= {(f"reserved[{place}].class", fee.gpu_class) for place, fee in enumerate(book.reserved)}
    for place, contract in enumerate(book.contracts):
        found |= {(f"contracts[{place}].prices.{gpu_class}", gpu_class) for gpu_class, _ in contract.prices}
    return found


def save_draft(connection: Connection, book: PriceBook, now_ms: int) -> Draft:
    """Keeps a draft under its version, in place of an earlier one.

    Raises Refused: conflict when a book of that version is published with other content, too_large beyond MOST_DRAFTS.
    """
    published = next((row for row in price_books(connection) if row.book.version == book.version), None)
    if published is not None and published.sha256 != book.sha256:
        raise Refused(
            RefusalCode.CONFLICT,
            f"price book {book.version} is published already, with other content; books never change",
            tries=("a new version",),
        )
    connection.execute(sa.delete(PRICE_DRAFT).where(PRICE_DRAFT.c.version == book.version))
    count = connection.execute(sa.select(sa.func.count()).select_from(PRICE_DRAFT)).scalar_one()
    if count >= MOST_DRAFTS:
        raise Refused(RefusalCode.TOO_LARGE, f"there are {count} drafts already", tries=("withdraw one",))
    draft = Draft(book, book.sha256, now_ms)
    connection.execute(
        sa.insert(PRICE_DRAFT).values(
            version=book.version, body=body_of(book), sha256=draft.sha256, saved_ms=draft.saved_ms
        )
    )
    return draft


def drafts(connection: Connection) -> list[Draft]:
    """Returns the drafts, by effective time and version."""
    rows = connection.execute(sa.select(PRICE_DRAFT))
    found = [Draft(price_book_of(row.body), row.sha256, row.saved_ms) for row in rows]
    return sorted(found, key=lambda draft: (draft.book.effective_ms, draft.book.version))


def draft_of(connection: Connection, version: str) -> Draft:
    """Returns a draft. Raises Refused (not_found)."""
    row = connection.execute(sa.select(PRICE_DRAFT).where(PRICE_DRAFT.c.version == version)).first()
    if row is None:
        raise Refused(
            RefusalCode.NOT_FOUND, f"there is no draft of a price book {version!r}", tries=("admin price list",)
        )
    return Draft(price_book_of(row.body), row.sha256, row.saved_ms)


def withdraw(connection: Connection, version: str) -> None:
    """Removes a draft. Raises Refused (not_found)."""
    draft_of(connection, version)
    connection.execute(sa.delete(PRICE_DRAFT).where(PRICE_DRAFT.c.version == version))


def prices_asked_of(book: PriceBook, account: AccountId, at_ms: int) -> PriceBook:
    """Returns a book as a tenant may see it: the list, its own contract, and nobody else's."""
    tenant = tenant_of(account)
    return PriceBook(
        version=book.version,
        currency=book.currency,
        effective_ms=book.effective_ms,
        prices=book.prices,
        tax_rate=book.tax_rate,
        rounding=book.rounding,
        rounding_unit=book.rounding_unit,
        zone=book.zone,
        bands=book.bands,
        contracts=tuple(
            each for each in book.contracts if each.tenant == tenant and (each.to_ms is None or each.to_ms > at_ms)
        ),
        reserved=tuple(fee for fee in book.reserved if tenant_of(fee.account) == tenant),
        energy=book.energy,
        minimum_ms=book.minimum_ms,
        increment_ms=book.increment_ms,
    )
