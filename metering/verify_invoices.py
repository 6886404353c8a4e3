"""Proves that the journal is what invoices say: each entry of a close, and what tenants owe over all closed periods.

For a tenant and currency, over all closed periods:

    posted + still due = payable of its invoices + corrections of them that no invoice has yet

`posted` is what the journal took from the tenant's side (receivable, prepaid, set aside) for use before the last closed
period's end, and for credits, corrections, packages, fees, tax and rounding. `still due` is use of allocations that are
to be charged again. So with nothing due or corrected and no money paid ahead, the receivable is the sum of invoices.
"""

import csv
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from zoneinfo import ZoneInfo

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from metering.charges import lines_due
from metering.core.journal import EntryKind, Ledger
from metering.core.period import PeriodStatus
from metering.core.quantity import AMOUNT_DECIMALS
from metering.corrections import moved_by_charges
from metering.export import TOTALS_FILE
from metering.findings import Check, Report
from metering.invoicing import POSTED_AT_CLOSE, entries_at_close
from metering.journal import charged_lines, entry_of, keys_of_kinds
from metering.periods import KnownPeriod, Seal, periods
from metering.sealed import WHOLE, sealed_bytes, write_sealed
from metering.tables import CHARGE_DUE, POSTING, POSTING_ENTRY
from metering.timelines import DayTimelines, load_prices
from scheduler.core.model import AccountId, AllocationId, tenant_of
from scheduler.refusal import Refused
from scheduler.store.database import StoreError, chunks
from scheduler.store.ledger_allocations import allocations_by_id

Owed = Counter[tuple[AccountId, str]]
"""Micro-units by tenant and currency."""
_TENANTS_SIDE = (Ledger.RECEIVABLE.value, Ledger.PREPAID.value, Ledger.HOLD.value)
_CORRECTED = (Ledger.REVENUE.value, Ledger.SLA_EXPENSE.value, Ledger.FEES.value)


def verify_invoices(connection: Connection, report: Report, only: str | None = None) -> None:
    """Checks the entries of every close, or of one, and the sums over all. What the files say must have held before."""
    closed = [each for each in periods(connection, "UTC", 0) if each.status is PeriodStatus.CLOSED and each.seal]
    if not closed:
        return
    try:
        for each in closed:
            if only in {None, each.period.name}:
                _verify_close(connection, report, each)
        _verify_keys(connection, report, closed)
        _verify_sums(connection, report, closed)
    except (Refused, StoreError, ValueError, LookupError, ArithmeticError) as error:
        report.wrong(Check.JOURNAL, "invoices", "closed periods that the journal can be held against", str(error))


def _verify_close(connection: Connection, report: Report, known: KnownPeriod) -> None:
    assert known.seal is not None, "a closed period is sealed"
    with tempfile.TemporaryDirectory(prefix="turnstile-sealed-") as scratch:
        write_sealed(connection, known.seal, WHOLE, Path(scratch))
        for entry in entries_at_close(connection, Path(scratch), known.period):
            report.count("closing_entries")
            where = f"{known.period.name} entry {entry.key}"
            wanted = (
                entry.kind.value,
                entry.currency,
                [(leg.ledger.value, leg.account, leg.micros) for leg in entry.legs],
            )
            report.expect(Check.JOURNAL, where, wanted, entry_of(connection, entry.key))


def _verify_keys(connection: Connection, report: Report, closed: Iterable[KnownPeriod]) -> None:
    """Names entries of a kind that only a close posts, which no close did: all of one have its instant."""
    closes = {each.closed_ms for each in closed}
    for key, at_ms in keys_of_kinds(connection, POSTED_AT_CLOSE):
        if at_ms not in closes:
            report.wrong(Check.JOURNAL, f"entry {key}", "an instant at which a period was closed", str(at_ms))


def _verify_sums(connection: Connection, report: Report, closed: list[KnownPeriod]) -> None:
    end_ms, zone = closed[-1].period.to_ms, closed[-1].zone
    if not _is_comparable(connection, zone, end_ms):
        report.count("periods_not_charged_alike", len(closed))
        return
    payable: Owed = Counter()
    for each in closed:
        assert each.seal is not None, "a closed period is sealed"
        for row in _totals(connection, each.seal):
            micros = Decimal(row["payable"]).scaleb(AMOUNT_DECIMALS)
            payable[AccountId(row["tenant_id"]), row["currency"]] += int(micros.to_integral_exact())
    for tenant, currency, moved in moved_by_charges(connection, end_ms):
        payable[tenant, currency] += moved
    posted = _posted(connection, end_ms)
    posted.update(_still_due(connection, end_ms, ZoneInfo(zone)))
    for tenant, currency in sorted({*payable, *posted}):
        report.count("invoiced_tenants")
        where = f"what {tenant} owes in {currency} for closed periods"
        report.expect(Check.JOURNAL, where, payable[tenant, currency], posted[tenant, currency])


def _is_comparable(connection: Connection, zone: str, end_ms: int) -> bool:
    """Says whether use was charged at all, and cut by the midnights of the periods: the zone may have been another."""
    of_use = POSTING_ENTRY.c.kind == EntryKind.CHARGE.value
    zones = connection.execute(sa.select(POSTING_ENTRY.c.zone).where(of_use).distinct()).scalars().all()
    if zones:
        return set(zones) == {zone}
    due = sa.select(CHARGE_DUE.c.allocation_id).limit(1)
    any_use = sa.text("SELECT 1 FROM occupancy WHERE phase = 'running' AND from_ms < :end LIMIT 1")
    is_used = connection.execute(any_use, {"end": end_ms}).first() is not None
    return not is_used or connection.execute(due).first() is not None


def _totals(connection: Connection, seal: Seal) -> Iterator[dict[str, str]]:
    data = b"".join(sealed_bytes(connection, seal.attempt, f"{WHOLE}/{TOTALS_FILE}"))
    return iter(csv.DictReader(data.decode("utf-8-sig").splitlines()))


def _posted(connection: Connection, end_ms: int) -> Owed:
    entry, leg = POSTING_ENTRY.c, POSTING.c
    used = sa.and_(entry.kind == EntryKind.CHARGE.value, leg.ledger == Ledger.REVENUE.value, leg.for_ms < end_ms)
    closing = sa.and_(entry.kind.in_([kind.value for kind in POSTED_AT_CLOSE]), leg.ledger.not_in(_TENANTS_SIDE))
    corrected = sa.and_(entry.kind == EntryKind.CORRECTION.value, entry.at_ms < end_ms, leg.ledger.in_(_CORRECTED))
    query = (
        sa.select(leg.account, entry.currency, sa.func.sum(leg.micros).label("micros"))
        .join(POSTING_ENTRY, entry.id == leg.entry_id)
        .where(sa.or_(used, closing, corrected))
        .group_by(leg.account, entry.currency)
    )
    found: Owed = Counter()
    for row in connection.execute(query):
        found[tenant_of(AccountId(row.account)), row.currency] -= int(row.micros)
    return found


def _still_due(connection: Connection, end_ms: int, zone: ZoneInfo) -> Owed:
    """Returns what allocations that are to be looked at lack of what they used before an instant."""
    found: Owed = Counter()
    names = connection.execute(sa.select(CHARGE_DUE.c.allocation_id).order_by(CHARGE_DUE.c.allocation_id)).scalars()
    prices = load_prices(connection)
    days = DayTimelines(prices)
    for part in chunks(list(map(AllocationId, names)), 256):
        posted = charged_lines(connection, part)
        for allocation in allocations_by_id(connection, part):
            before = posted.get(allocation.id, {})
            due = lines_due(connection, allocation, prices, zone, end_ms, days)
            for sign, lines in ((1, due), (-1, before)):
                for line in lines.values():
                    if line.for_ms < end_ms:
                        found[tenant_of(line.account), line.currency] += sign * line.micros
    return found
