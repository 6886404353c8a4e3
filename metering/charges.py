"""Charges: what allocations used becomes postings, line by line, as often as anybody looks and never twice.

The lines of an allocation follow from the ledger; what was posted for each stands in the journal. A charge posts the
difference, whichever way: a gang whose end turns out to be earlier than what was charged gets the rest back. So the
order and number of looks do not matter, and after the last one posted = lines, to the micro-unit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from zoneinfo import ZoneInfo

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from metering.budgets import Purse
from metering.core.journal import EntryKind, JournalEntry, Ledger, Leg
from metering.journal import LineCharge, charged_lines, legs_of, next_entry_id, post
from metering.tables import CHARGE_DUE
from metering.timelines import DayTimelines, Prices, is_metered, load_prices, timelines
from metering.usage_lines import lines_of
from scheduler.core.model import AccountId, AllocationId, GpuClass, JobId, tenant_of
from scheduler.store.database import chunks
from scheduler.store.ledger_allocations import LedgerAllocation
from scheduler.store.tables import ALLOCATION

LineKey = tuple[str, str]


def lines_due(
    connection: Connection,
    allocation: LedgerAllocation,
    prices: Prices,
    zone: ZoneInfo,
    until_ms: int,
    days: DayTimelines | None = None,
) -> dict[LineKey, LineCharge]:
    """Returns the priced lines of an allocation up to an instant. Raises StoreCorrupt.

    Who asks about many gives the `days` of the same prices, which those that are over share.
    """
    found: dict[LineKey, LineCharge] = {}
    if until_ms <= allocation.decided_ms:
        return found
    span = (allocation.decided_ms, until_ms)
    is_over = allocation.ended_ms is not None and allocation.ended_ms <= until_ms
    cuts = days.of((allocation.decided_ms, allocation.ended_ms or until_ms), zone) if days and is_over else None
    if cuts is None:
        cuts = timelines(connection, span, zone, prices, allocation.account)
    for rated in lines_of(allocation, cuts):
        line = rated.line
        if line.book is None or not line.amount_micros:
            continue
        piece = line.slice
        due = LineCharge(line.line_id, piece.segment.holder, line.book.currency, line.amount_micros, piece.from_ms)
        found[line.line_id, line.book.currency] = due
    return found


@dataclass(frozen=True, slots=True)
class Pot:
    """The money of one allocation, as the journal has it."""

    held_micros: dict[str, int]
    """Set aside and not used, by currency."""
    payers: tuple[tuple[Ledger, AccountId, str, int], ...]
    """Who set how much aside, oldest first: what is let go of goes back to them."""

    @classmethod
    def of(cls, connection: Connection, allocation: AllocationId) -> "Pot":
        """Reads what was set aside for an allocation, used and let go of."""
        held: dict[str, int] = {}
        payers: dict[tuple[Ledger, AccountId, str], int] = {}
        for ledger, _, currency, micros in legs_of(connection, allocation, ("hold", "release", "charge")):
            if ledger is Ledger.HOLD:
                held[currency] = held.get(currency, 0) - micros
        for ledger, account, currency, micros in legs_of(connection, allocation, ("hold", "release")):
            if ledger is not Ledger.HOLD:
                payers[ledger, account, currency] = payers.get((ledger, account, currency), 0) + micros
        return cls(held, tuple((*place, micros) for place, micros in payers.items()))


def charge(
    connection: Connection, allocation: LedgerAllocation, lines: dict[LineKey, LineCharge], zone: str, at_ms: int
) -> bool:
    """Posts what the lines come to beyond what was posted for them; returns whether anything was."""
    posted = charged_lines(connection, [allocation.id]).get(allocation.id, {})
    by_currency: dict[str, list[Leg]] = {}
    for key in sorted({*lines, *posted}):
        line, before = lines.get(key), posted.get(key)
        more = (line.micros if line else 0) - (before.micros if before else 0)
        known = line or before
        if more and known is not None:
            leg = Leg(Ledger.REVENUE, known.account, -more, known.line_id, known.for_ms)
            by_currency.setdefault(known.currency, []).append(leg)
    if not by_currency:
        return False
    held = Pot.of(connection, allocation.id).held_micros
    payer = Purse.of(connection, allocation.account).payer
    for currency, legs in sorted(by_currency.items()):
        total = -sum(leg.micros for leg in legs)
        from_hold = min(max(total, 0), max(held.get(currency, 0), 0))
        funded = ((Ledger.HOLD, allocation.account, from_hold), (*payer, total - from_hold))
        entry = JournalEntry(
            key=f"charge/{allocation.id}/{next_entry_id(connection)}",
            kind=EntryKind.CHARGE,
            currency=currency,
            at_ms=at_ms,
            legs=(*(Leg(*each) for each in funded if each[2]), *legs),
            allocation=allocation.id,
            job=allocation.job,
            zone=zone,
        )
        post(connection, entry)
    return True


def set_aside(
    connection: Connection, gang: tuple[AllocationId, int], purse: Purse, amount: tuple[int, str], at_ms: int
) -> None:
    """Sets an amount (micro-units, currency) aside for a gang (allocation, job)."""
    micros, currency = amount
    legs = (Leg(*purse.payer, micros), Leg(Ledger.HOLD, purse.account, -micros))
    _post(connection, EntryKind.HOLD, gang, currency, legs, at_ms)


def let_go(connection: Connection, allocation: LedgerAllocation, at_ms: int) -> bool:
    """Gives back what is set aside for a gang and not used, to who set it aside last first."""
    money = Pot.of(connection, allocation.id)
    has_any = False
    for currency, held in sorted(money.held_micros.items()):
        legs: list[Leg] = []
        rest = held
        for ledger, account, of, micros in reversed(money.payers):
            part = min(rest, micros) if of == currency else 0
            if part > 0:
                legs.append(Leg(ledger, account, -part))
                rest -= part
        if held > 0:
            assert rest == 0, f"allocation {allocation.id} has more set aside than anybody did"
            legs.append(Leg(Ledger.HOLD, allocation.account, held))
            _post(connection, EntryKind.RELEASE, (allocation.id, allocation.job), currency, tuple(legs), at_ms)
            has_any = True
    return has_any


def _post(
    connection: Connection,
    kind: EntryKind,
    gang: tuple[AllocationId, int],
    currency: str,
    legs: tuple[Leg, ...],
    at_ms: int,
) -> None:
    allocation, job = gang
    key = f"{kind.value}/{allocation}/{next_entry_id(connection)}"
    post(connection, JournalEntry(key, kind, currency, at_ms, legs, allocation, JobId(job)))


def priced_after(connection: Connection, allocations: Sequence[AllocationId]) -> list[AllocationId]:
    """Returns what may cost something else now that settled allocations turn out to have used more or less.

    Where a class has tiers, or a tenant packages of it, that is all of the tenant's use of the class since.
    """
    found: set[AllocationId] = set()
    prices: Prices | None = None
    for part in chunks(allocations):
        row = ALLOCATION.c
        settled = sa.select(row.account, row.gpu_class, sa.func.min(row.decided_ms).label("since_ms")).where(
            row.id.in_(part), row.id.not_in(sa.select(CHARGE_DUE.c.allocation_id))
        )
        for each in connection.execute(settled.group_by(row.account, row.gpu_class)).all():
            prices = load_prices(connection) if prices is None else prices
            tenant = tenant_of(AccountId(each.account))
            if not is_metered(prices, tenant, GpuClass(each.gpu_class)):
                continue
            its = sa.or_(row.account == tenant, row.account.startswith(f"{tenant}/", autoescape=True))
            lived = sa.or_(row.ended_ms.is_(None), row.ended_ms > each.since_ms)
            query = sa.select(row.id).where(its, row.gpu_class == each.gpu_class, lived)
            found.update(map(AllocationId, connection.execute(query).scalars()))
    return sorted(found - set(allocations))
