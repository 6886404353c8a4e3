"""Proves the journal: entries add up to zero, what is kept is its fold, and what was charged is what the ledger says.

The lines of an allocation are derived anew from occupancy and price books, in the zone that its charges name, and held
against what was posted for each. Allocations whose charge is still due are left out, and counted.
"""

from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from metering.charges import lines_due
from metering.findings import Check, Report
from metering.journal import (
    LineCharge,
    budgets,
    charged_lines,
    folded_balances,
    folded_use,
    kept_balances,
    kept_use,
    unbalanced_entries,
)
from metering.journal_chain import journal_breaks
from metering.tables import CHARGE_DUE, POSTING_ENTRY
from metering.timelines import DayTimelines, load_prices
from scheduler.core.model import AllocationId
from scheduler.refusal import Refused
from scheduler.store.database import StoreError, chunks
from scheduler.store.ledger_allocations import LedgerAllocation, allocations_by_id
from scheduler.store.tables import ALLOCATION


def verify_journal(connection: Connection, report: Report) -> None:
    """Notes what does not hold; memory grows with accounts and allocations, time with entries and use."""
    verify_entries(connection, report)
    _verify_charges(connection, report)


def verify_entries(connection: Connection, report: Report) -> None:
    """Notes where the journal does not hold by itself: its chain, its sums, and what is kept of them beside it."""
    for key, broken in journal_breaks(connection):
        where = f"journal {broken.what}" if broken.sequence is None else f"entry {broken.sequence} ({key})"
        report.wrong(Check.CHAIN, where, f"{broken.what} {broken.expected}", f"{broken.what} {broken.found}")
    for entry_id, key, total in unbalanced_entries(connection):
        report.wrong(Check.JOURNAL, f"entry {entry_id} ({key})", "legs that add up to 0", f"{total} micro-units")
    kept, folded = kept_balances(connection), folded_balances(connection)
    for place in sorted({*kept, *folded}):
        report.count("balances")
        report.expect(Check.JOURNAL, f"balance {'/'.join(place)}", folded.get(place, 0), kept.get(place, 0))
    use = kept_use(connection)
    for account, budget in budgets(connection).items():
        proved = folded_use(connection, budget)
        mine = {from_ms: micros for (name, from_ms), micros in use.items() if name == account}
        for from_ms in sorted({*proved, *mine}):
            where = f"budget {account} from {from_ms}"
            report.expect(Check.JOURNAL, where, proved.get(from_ms, 0), mine.get(from_ms, 0))


def _verify_charges(connection: Connection, report: Report) -> None:
    due = set(connection.execute(sa.select(CHARGE_DUE.c.allocation_id)).scalars())
    report.count("charges_due", len(due))
    zones: dict[str, str] = {}
    query = sa.select(POSTING_ENTRY.c.allocation_id, POSTING_ENTRY.c.zone).where(
        POSTING_ENTRY.c.kind == "charge", POSTING_ENTRY.c.allocation_id.is_not(None)
    )
    for row in connection.execute(query.order_by(POSTING_ENTRY.c.id)):
        zones[row.allocation_id] = row.zone  # the last one counts: it cut the lines anew
    try:
        days = DayTimelines(load_prices(connection))
    except Refused as problem:
        report.wrong(Check.JOURNAL, "price books", "books that can be read", str(problem))
        return
    # Where anything is charged, everything is: what was never charged is either due, free, or missing.
    every = connection.execute(sa.select(ALLOCATION.c.id)).scalars() if zones else ()
    last_zone = next(reversed(zones.values()), "")
    settled = sorted(AllocationId(each) for each in {*zones, *every} - due)
    for part in chunks(settled, 256):
        posted = charged_lines(connection, part)
        found = {each.id: each for each in allocations_by_id(connection, part)}
        for allocation in part:
            report.count("charged_allocations")
            known = found.get(allocation)
            if known is None:
                report.wrong(Check.JOURNAL, f"allocation {allocation}", "a row in allocation", "none")
            else:
                _verify_lines(
                    report, known, _posted(posted, allocation), (connection, days, zones.get(allocation, last_zone))
                )


def _posted(
    posted: dict[AllocationId, dict[tuple[str, str], LineCharge]], allocation: AllocationId
) -> dict[tuple[str, str], int]:
    return {key: line.micros for key, line in posted.get(allocation, {}).items()}


def _verify_lines(
    report: Report,
    allocation: LedgerAllocation,
    posted: dict[tuple[str, str], int],
    terms: tuple[Connection, DayTimelines, str],
) -> None:
    connection, days, name = terms
    where = f"charges of allocation {allocation.id}"
    try:
        zone = ZoneInfo(name)
        end_ms = allocation.ended_ms or allocation.decided_ms
        due = {
            key: line.micros for key, line in lines_due(connection, allocation, days.prices, zone, end_ms, days).items()
        }
    except (ZoneInfoNotFoundError, ValueError, StoreError) as problem:
        report.wrong(Check.JOURNAL, where, "lines that can be derived", str(problem))
        return
    for key in sorted({*due, *posted}):
        report.expect(Check.JOURNAL, f"{where}, line {key[0]}", due.get(key, 0), posted.get(key, 0))
