"""Packages of GPU-hours as they were sold: rows that are only ever added.

A package pays for its tenant's use of a GPU class, spot excepted, from its beginning until it is used up or expires,
before money does. Money for it is due when it begins. Functions work inside the caller's transaction.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from decimal import Decimal

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from metering.core.civil import utc_text
from metering.core.quantity import decimal_text
from metering.core.volume import Package
from metering.ledger import current_book
from metering.tables import PACKAGE
from scheduler.core.model import AccountId, GpuClass
from scheduler.refusal import RefusalCode, Refused

MOST_HOURS = 10**9
"""GPU-hours of one package: a hundred thousand GPUs for a year."""


def packages_of(
    connection: Connection, sold_until_ms: int | None = None, tenant: AccountId | None = None
) -> Iterator[Package]:
    """Yields packages by id: all of them, those sold by an instant, or those of one tenant."""
    query = sa.select(PACKAGE).order_by(PACKAGE.c.id)
    if sold_until_ms is not None:
        query = query.where(PACKAGE.c.sold_ms <= sold_until_ms)
    if tenant is not None:
        query = query.where(PACKAGE.c.tenant == tenant)
    for row in connection.execute(query):
        yield Package(
            row.id,
            AccountId(row.tenant),
            GpuClass(row.gpu_class),
            row.gpu_hours,
            Decimal(row.price),
            row.currency,
            row.from_ms,
            row.to_ms,
        )


def sell(connection: Connection, package: Package, now_ms: int) -> Package:
    """Stores a package; the same one again changes nothing.

    Raises Refused: conflict for an id that is taken, policy for a beginning in the past (what was used since then had
    its price) or a currency that is not the one of the book in force then.
    """
    row = connection.execute(sa.select(PACKAGE).where(PACKAGE.c.id == package.id)).first()
    if row is not None:
        stored = next(each for each in packages_of(connection) if each.id == package.id)
        if stored == package:
            return stored
        raise Refused(RefusalCode.CONFLICT, f"{package.id} is sold already, with other terms; packages never change")
    if package.from_ms < now_ms:
        raise Refused(
            RefusalCode.POLICY,
            f"{package.id} would begin at {utc_text(package.from_ms)}, but what is over has its price already",
            tries=(f"begin at {utc_text(now_ms)} or later",),
        )
    book = current_book(connection, package.from_ms)
    if book is None or book.currency != package.currency:
        known = "there is no price book then" if book is None else f"the book in force then is in {book.currency}"
        raise Refused(RefusalCode.POLICY, f"{package.id} is priced in {package.currency}, but {known}")
    connection.execute(
        PACKAGE.insert().values(
            id=package.id,
            tenant=package.tenant,
            gpu_class=package.gpu_class,
            gpu_hours=package.gpu_hours,
            price=decimal_text(package.price),
            currency=package.currency,
            from_ms=package.from_ms,
            to_ms=package.to_ms,
            sold_ms=now_ms,
            sha256=package_sha256(package),
        )
    )
    return package


def package_sha256(package: Package) -> str:
    """Returns the identity of what was sold: SHA-256 (hex) of its canonical JSON in UTF-8."""
    body = {**asdict(package), "price": decimal_text(package.price)}
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def stored_hashes(connection: Connection) -> dict[str, str]:
    """Returns the hash that each package was stored with, by id: what verification compares."""
    return {row.id: row.sha256 for row in connection.execute(sa.select(PACKAGE.c.id, PACKAGE.c.sha256))}
