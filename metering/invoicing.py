"""What closing a period posts: credits, tax and rounding, packages sold, used and expired, and monthly fees.

Everything is read off the period's sealed usage lines, so that it can be derived again for ever; use itself is charged
line by line as it goes (`charges`). A package is money owed for something not used yet: `deferred` until its use is
told, period by period, and whatever is left when it expires. So the books of a package come to zero, to the micro-unit.
"""

import csv
from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from metering.core.journal import MOST_TEXT, EntryKind, JournalEntry, Ledger, Leg, transfer
from metering.core.period import Period
from metering.core.quantity import AMOUNT_DECIMALS
from metering.core.rating import LineType
from metering.core.volume import Package
from metering.packages import packages_of
from metering.tables import POSTING
from metering.usage_columns import USAGE_COLUMNS
from scheduler.core.model import AccountId, tenant_of

POSTED_AT_CLOSE = (
    *(EntryKind.CREDIT, EntryKind.TAX, EntryKind.ROUNDING),
    *(EntryKind.PURCHASE, EntryKind.DRAW, EntryKind.EXPIRY),
)
"""Kinds of entries that come from here and from nowhere else."""
_POSTED = {
    LineType.CREDIT: (EntryKind.CREDIT, Ledger.SLA_EXPENSE),
    LineType.TAX: (EntryKind.TAX, Ledger.TAX),
    LineType.ROUNDING: (EntryKind.ROUNDING, Ledger.ROUNDING),
    LineType.PACKAGE: (EntryKind.PURCHASE, Ledger.DEFERRED),
    LineType.RESERVED: (EntryKind.PURCHASE, Ledger.FEES),
}
"""Lines that are posted each by itself, and against which ledger."""
_DRAWN = frozenset({LineType.USAGE, LineType.MINIMUM})
_PLAIN = tuple(f",{kind},,,".encode() for kind in (LineType.USAGE, LineType.MINIMUM, LineType.ENERGY))
"""The end of line_type, corrects_line_id and package_id of a line that is charged as it goes, and is not looked at."""
_AT = {name: place for place, name in enumerate(USAGE_COLUMNS)}
_TYPE, _PACKAGE, _EFFECTIVE = _AT["line_type"], _AT["package_id"], _AT["effective_amount"]


def deferred_before(connection: Connection, before_ms: int) -> dict[str, int]:
    """Returns what was sold by each package and not used by an instant, in micro-units, by the journal."""
    query = sa.select(POSTING.c.line_id, sa.func.sum(POSTING.c.micros).label("micros")).where(
        POSTING.c.ledger == Ledger.DEFERRED.value, POSTING.c.for_ms < before_ms
    )
    found = connection.execute(query.group_by(POSTING.c.line_id))
    return {row.line_id: -int(row.micros) for row in found if row.micros}


def entries_at_close(connection: Connection, folder: Path, period: Period) -> Iterator[JournalEntry]:
    """Yields what is posted when a period is closed with the files of a folder. Memory grows with packages."""
    sold = {each.id: each for each in packages_of(connection)}
    deferred = deferred_before(connection, period.from_ms)
    drawn: dict[str, int] = {}
    for row in _looked_at(folder):
        kind = LineType(row[_TYPE])
        if kind in _POSTED:
            yield from _of_row(row, kind, period, deferred)
        elif kind in _DRAWN and row[_PACKAGE] in sold:
            drawn[row[_PACKAGE]] = drawn.get(row[_PACKAGE], 0) + _micros(row[_EFFECTIVE])
    yield from _told(period, EntryKind.DRAW, [(sold[name], micros) for name, micros in sorted(drawn.items())], deferred)
    over = [each for _, each in sorted(sold.items()) if period.from_ms < each.to_ms <= period.to_ms]
    yield from _told(period, EntryKind.EXPIRY, [(each, deferred.get(each.id, 0)) for each in over], deferred)


def _of_row(
    row: Sequence[str], kind: LineType, period: Period, deferred: MutableMapping[str, int]
) -> Iterator[JournalEntry]:
    entry_kind, ledger = _POSTED[kind]
    line_id, owed = row[_AT["line_id"]], _micros(row[_AT["amount"]])
    if not owed:
        return
    account = AccountId(row[_AT["project_id"]] or row[_AT["tenant_id"]])
    legs = transfer((Ledger.RECEIVABLE, account), (ledger, account), owed)
    if ledger is Ledger.DEFERRED:
        deferred[line_id] = deferred.get(line_id, 0) + owed
    yield JournalEntry(
        key=(f"purchase/{line_id}" if entry_kind is EntryKind.PURCHASE else line_id)[-MOST_TEXT:],
        kind=entry_kind,
        currency=row[_AT["currency"]],
        at_ms=period.to_ms,
        legs=_of_period(legs, line_id, period),
        reason=row[_AT["incident_id"]] or None,
    )


def _told(
    period: Period, kind: EntryKind, of: Sequence[tuple[Package, int]], deferred: MutableMapping[str, int]
) -> Iterator[JournalEntry]:
    """Yields that parts of what packages cost are earned: used, or nobody's any more."""
    for package, micros in of:
        if not micros:
            continue
        deferred[package.id] = deferred.get(package.id, 0) - micros
        tenant = tenant_of(package.tenant)
        legs = transfer((Ledger.DEFERRED, tenant), (Ledger.FEES, tenant), micros)
        key = f"{kind}/{period.name}/{package.id}"[-MOST_TEXT:]
        yield JournalEntry(key, kind, package.currency, period.to_ms, _of_period(legs, package.id, period))


def _of_period(legs: Sequence[Leg], line_id: str, period: Period) -> tuple[Leg, ...]:
    # Its last millisecond: legs of the next period are those that are not before its beginning.
    return tuple(replace(leg, line_id=line_id, for_ms=period.to_ms - 1) for leg in legs)


def _micros(text: str) -> int:
    return int(Decimal(text).scaleb(AMOUNT_DECIMALS).to_integral_exact()) if text else 0


def _looked_at(folder: Path) -> Iterator[list[str]]:
    """Yields the rows that may be posted; the many that cannot are told by their bytes, and not taken apart."""
    (path,) = folder.glob("usage_lines_*.csv")
    with path.open("rb") as stream:
        next(stream)
        # A cell with a quote may say anything, commas included; what is in none has no commas of its own.
        lines = (line.decode() for line in stream if b'"' in line or not any(mark in line for mark in _PLAIN))
        yield from csv.reader(lines)
