"""The journal's SQL: posts entries, folds them into balances, and proves that what is kept equals the fold.

`post` works inside the caller's write transaction; writers are serial, so an entry's id is one more than the last. What
is kept beside the journal (`balance`, `budget_use`) moves in the same transaction.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from zoneinfo import ZoneInfo

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.engine import Connection

from metering.core.budget import Budget, BudgetKind
from metering.core.journal import EntryKind, JournalEntry, Ledger, Leg
from metering.journal_chain import chained
from metering.tables import BALANCE, BUDGET_TERM, BUDGET_USE, POSTING, POSTING_ENTRY
from scheduler.core.model import ROOT_ACCOUNT, AccountId, AllocationId, lineage
from scheduler.refusal import RefusalCode, Refused
from scheduler.store.database import chunks

_LAST_ID = sa.select(sa.func.coalesce(sa.func.max(POSTING_ENTRY.c.id), 0))
_BY_KEY = sa.select(POSTING_ENTRY.c.id, POSTING_ENTRY.c.kind, POSTING_ENTRY.c.currency)
_NEWEST = sa.select(sa.func.max(BUDGET_TERM.c.sequence)).group_by(BUDGET_TERM.c.account)
NO_BUDGET = "none"
"""The kind of a term that ends a budget."""

LegPlace = tuple[Ledger, AccountId]


def post(connection: Connection, entry: JournalEntry) -> bool:
    """Posts an entry; False when the same entry is there already. Raises Refused (conflict) when its key is taken.

    The entry counts at once: in balances, and in the budgets of its accounts and those above them.
    """
    known = connection.execute(_BY_KEY.where(POSTING_ENTRY.c.key == entry.key)).first()
    if known is not None:
        if (known.kind, known.currency) == (entry.kind, entry.currency) and _legs(connection, known.id) == [
            _leg_values(leg, entry.at_ms) for leg in entry.legs
        ]:
            return False
        raise Refused(RefusalCode.CONFLICT, f"the journal has another entry under the key {entry.key!r}")
    legs = [{"place": place, **_leg_values(leg, entry.at_ms)} for place, leg in enumerate(entry.legs)]
    facts = {
        "key": entry.key,
        "kind": entry.kind.value,
        "currency": entry.currency,
        "at_ms": entry.at_ms,
        "allocation_id": entry.allocation,
        "job_id": entry.job,
        "actor": entry.actor,
        "reason": entry.reason,
        "zone": entry.zone,
    }
    row = chained(connection, facts, legs)
    connection.execute(POSTING.insert(), [{"entry_id": row["id"], **leg} for leg in legs])
    connection.execute(POSTING_ENTRY.insert(), row)
    for leg in entry.legs:
        _add_to_balance(connection, (leg.ledger.value, leg.account, entry.currency), leg.micros)
    _count_use(connection, entry)
    return True


def next_entry_id(connection: Connection) -> int:
    """Returns the id of the next entry: a number to make a key of, as writers are serial."""
    return int(connection.execute(_LAST_ID).scalar_one()) + 1


def _leg_values(leg: Leg, at_ms: int) -> dict[str, Any]:
    return {
        "ledger": leg.ledger.value,
        "account": leg.account,
        "micros": leg.micros,
        "line_id": leg.line_id,
        "for_ms": at_ms if leg.for_ms is None else leg.for_ms,
    }


def _legs(connection: Connection, entry_id: int) -> list[dict[str, Any]]:
    columns = (POSTING.c.ledger, POSTING.c.account, POSTING.c.micros, POSTING.c.line_id, POSTING.c.for_ms)
    query = sa.select(*columns).where(POSTING.c.entry_id == entry_id).order_by(POSTING.c.place)
    return [dict(row) for row in connection.execute(query).mappings()]


def _add_to_balance(connection: Connection, place: tuple[str, str, str], micros: int) -> None:
    ledger, account, currency = place
    _upsert(connection, BALANCE, {"ledger": ledger, "account": account, "currency": currency}, micros)


def _upsert(connection: Connection, table: sa.Table, key: Mapping[str, object], micros: int) -> None:
    insert = postgresql_insert if connection.dialect.name == "postgresql" else sqlite_insert
    statement = insert(table).values(**key, micros=micros)
    statement = statement.on_conflict_do_update(
        index_elements=list(key), set_={"micros": table.c.micros + statement.excluded.micros}
    )
    connection.execute(statement)


# ---- budgets' use ---------------------------------------------------------------------------------------------------


def budgets(connection: Connection, accounts: Sequence[AccountId] | None = None) -> dict[AccountId, Budget]:
    """Returns the budgets in force, of some accounts or of all, in order of accounts."""
    newest = _NEWEST if accounts is None else _NEWEST.where(BUDGET_TERM.c.account.in_(accounts))
    query = sa.select(BUDGET_TERM).where(BUDGET_TERM.c.sequence.in_(newest), BUDGET_TERM.c.kind != NO_BUDGET)
    rows = connection.execute(query.order_by(BUDGET_TERM.c.account))
    return {AccountId(row.account): _budget(row) for row in rows}


def _budget(row: Any) -> Budget:
    return Budget(
        account=AccountId(row.account),
        kind=BudgetKind(row.kind),
        currency=row.currency,
        zone=row.zone,
        limit_micros=row.limit_micros,
        overdraft_micros=row.overdraft_micros,
        is_hard=bool(row.is_hard),
        from_ms=row.from_ms,
        to_ms=row.to_ms,
        extra_micros=row.extra_micros,
        extra_from_ms=row.extra_from_ms,
    )


def _count_use(connection: Connection, entry: JournalEntry) -> None:
    charged = [leg for leg in entry.legs if leg.ledger is Ledger.REVENUE]
    if not charged:
        return
    found = budgets(connection, sorted({step for leg in charged for step in lineage(leg.account)}))
    for leg in charged:
        for step in lineage(leg.account):
            budget = found.get(step)
            if budget is None or budget.currency != entry.currency:
                continue
            period = budget.period_at(entry.at_ms if leg.for_ms is None else leg.for_ms, ZoneInfo(budget.zone))
            if period is not None:
                _upsert(connection, BUDGET_USE, {"account": step, "from_ms": period.from_ms}, -leg.micros)


def recount_use(connection: Connection, account: AccountId) -> None:
    """Makes the use of one account's budget anew from the journal: whenever its terms change."""
    connection.execute(BUDGET_USE.delete().where(BUDGET_USE.c.account == account))
    budget = budgets(connection, [account]).get(account)
    if budget is None:
        return
    rows = [
        {"account": account, "from_ms": from_ms, "micros": micros}
        for from_ms, micros in sorted(folded_use(connection, budget).items())
    ]
    if rows:
        connection.execute(BUDGET_USE.insert(), rows)


def folded_use(connection: Connection, budget: Budget) -> dict[int, int]:
    """Returns what was charged below a budget's account by the beginning of its periods: read from the journal."""
    query = (
        sa.select(POSTING.c.for_ms, sa.func.sum(POSTING.c.micros).label("micros"))
        .join(POSTING_ENTRY, POSTING_ENTRY.c.id == POSTING.c.entry_id)
        .where(
            POSTING.c.ledger == Ledger.REVENUE.value,
            POSTING_ENTRY.c.currency == budget.currency,
            _below(POSTING.c.account, budget.account),
        )
        .group_by(POSTING.c.for_ms)
    )
    zone = ZoneInfo(budget.zone)
    use: dict[int, int] = {}
    for row in connection.execute(query):
        period = budget.period_at(row.for_ms, zone)
        if period is not None:
            use[period.from_ms] = use.get(period.from_ms, 0) - int(row.micros)
    return use


def use_of(connection: Connection, account: AccountId, from_ms: int) -> int:
    """Returns what was charged below an account with a budget in the period that begins at `from_ms`."""
    query = sa.select(BUDGET_USE.c.micros).where(BUDGET_USE.c.account == account, BUDGET_USE.c.from_ms == from_ms)
    return int(connection.execute(query).scalar() or 0)


# ---- balances -------------------------------------------------------------------------------------------------------


def balance(connection: Connection, ledger: Ledger, account: AccountId, currency: str) -> int:
    """Returns the balance of one account on a ledger, without those below it: debits less credits."""
    query = sa.select(BALANCE.c.micros).where(
        BALANCE.c.ledger == ledger.value, BALANCE.c.account == account, BALANCE.c.currency == currency
    )
    return int(connection.execute(query).scalar() or 0)


def balance_below(connection: Connection, ledger: Ledger, account: AccountId, currency: str) -> int:
    """Returns the balance of an account and all below it; the centre's is that of all."""
    query = sa.select(sa.func.sum(BALANCE.c.micros)).where(
        BALANCE.c.ledger == ledger.value, BALANCE.c.currency == currency, _below(BALANCE.c.account, account)
    )
    return int(connection.execute(query).scalar() or 0)


def _below(column: Any, account: AccountId) -> sa.ColumnElement[bool]:
    if account == ROOT_ACCOUNT:
        return sa.true()
    # '0' is the character after '/': a range that the primary key serves, and no pattern to escape.
    return sa.or_(column == account, sa.and_(column >= f"{account}/", column < f"{account}0"))


@dataclass(frozen=True, slots=True)
class LineCharge:
    """What was posted for one line so far."""

    line_id: str
    account: AccountId
    currency: str
    micros: int
    for_ms: int
    """When the line's use began."""


def charged_lines(
    connection: Connection, ids: Sequence[AllocationId]
) -> dict[AllocationId, dict[tuple[str, str], LineCharge]]:
    """Returns what was posted for allocations by line and currency; lines that came to 0 are left out."""
    found: dict[AllocationId, dict[tuple[str, str], LineCharge]] = {}
    for part in chunks(ids):
        query = (
            sa.select(
                POSTING_ENTRY.c.allocation_id,
                POSTING.c.line_id,
                POSTING.c.account,
                POSTING_ENTRY.c.currency,
                sa.func.sum(POSTING.c.micros).label("micros"),
                sa.func.min(POSTING.c.for_ms).label("for_ms"),
            )
            .join(POSTING_ENTRY, POSTING_ENTRY.c.id == POSTING.c.entry_id)
            .where(
                POSTING_ENTRY.c.allocation_id.in_(part),
                POSTING_ENTRY.c.kind.in_(("charge", "correction")),
                POSTING.c.ledger == Ledger.REVENUE.value,
            )
            .group_by(POSTING_ENTRY.c.allocation_id, POSTING.c.line_id, POSTING.c.account, POSTING_ENTRY.c.currency)
        )
        for row in connection.execute(query):
            if row.micros:
                line = LineCharge(row.line_id, AccountId(row.account), row.currency, -int(row.micros), row.for_ms)
                found.setdefault(AllocationId(row.allocation_id), {})[row.line_id, row.currency] = line
    return found


def legs_of(
    connection: Connection, allocation: AllocationId, kinds: Sequence[str]
) -> list[tuple[Ledger, AccountId, str, int]]:
    """Returns an allocation's legs of some kinds as (ledger, account, currency, micros), oldest first."""
    query = (
        sa.select(POSTING.c.ledger, POSTING.c.account, POSTING_ENTRY.c.currency, POSTING.c.micros)
        .join(POSTING_ENTRY, POSTING_ENTRY.c.id == POSTING.c.entry_id)
        .where(POSTING_ENTRY.c.allocation_id == allocation, POSTING_ENTRY.c.kind.in_(kinds))
        .order_by(POSTING.c.entry_id, POSTING.c.place)
    )
    return [(Ledger(row.ledger), AccountId(row.account), row.currency, row.micros) for row in connection.execute(query)]


def entry_of(connection: Connection, key: str) -> tuple[str, str, list[tuple[str, str, int]]] | None:
    """Returns kind, currency and legs (ledger, account, micros) of the entry of a key; None for none."""
    known = connection.execute(_BY_KEY.where(POSTING_ENTRY.c.key == key)).first()
    if known is None:
        return None
    legs = [(leg["ledger"], leg["account"], leg["micros"]) for leg in _legs(connection, known.id)]
    return known.kind, known.currency, legs


def keys_of_kinds(connection: Connection, kinds: Sequence[EntryKind]) -> Iterator[tuple[str, int]]:
    """Yields key and instant of the entries of some kinds, oldest first."""
    query = sa.select(POSTING_ENTRY.c.key, POSTING_ENTRY.c.at_ms).where(
        POSTING_ENTRY.c.kind.in_([kind.value for kind in kinds])
    )
    for row in connection.execute(query.order_by(POSTING_ENTRY.c.id)):
        yield row.key, row.at_ms


def spent_on_job(connection: Connection, job: int, currency: str) -> int:
    """Returns what was charged for a job over all its starts, and what is set aside for it."""
    query = (
        sa.select(sa.func.sum(POSTING.c.micros))
        .join(POSTING_ENTRY, POSTING_ENTRY.c.id == POSTING.c.entry_id)
        .where(
            POSTING_ENTRY.c.job_id == job,
            POSTING_ENTRY.c.currency == currency,
            POSTING.c.ledger.in_((Ledger.REVENUE.value, Ledger.HOLD.value)),
        )
    )
    return -int(connection.execute(query).scalar() or 0)


# ---- proofs ---------------------------------------------------------------------------------------------------------


def unbalanced_entries(connection: Connection) -> Iterator[tuple[int, str, int]]:
    """Yields id, key and sum of entries that do not add up to 0, and ids of legs without an entry."""
    total = sa.func.coalesce(sa.func.sum(POSTING.c.micros), 0)
    count = sa.func.count(POSTING.c.place)
    query = (
        sa.select(POSTING_ENTRY.c.id, POSTING_ENTRY.c.key, total.label("total"))
        .outerjoin(POSTING, POSTING.c.entry_id == POSTING_ENTRY.c.id)
        .group_by(POSTING_ENTRY.c.id, POSTING_ENTRY.c.key)
        .having(sa.or_(total != 0, count < 2))
        .order_by(POSTING_ENTRY.c.id)
    )
    for row in connection.execute(query):
        yield row.id, row.key, int(row.total)
    orphans = (
        sa.select(POSTING.c.entry_id, sa.func.sum(POSTING.c.micros).label("total"))
        .outerjoin(POSTING_ENTRY, POSTING_ENTRY.c.id == POSTING.c.entry_id)
        .where(POSTING_ENTRY.c.id.is_(None))
        .group_by(POSTING.c.entry_id)
        .order_by(POSTING.c.entry_id)
    )
    for orphan in connection.execute(orphans):
        yield orphan.entry_id, "without an entry", int(orphan.total)


def folded_balances(connection: Connection) -> dict[tuple[str, str, str], int]:
    """Returns every balance by ledger, account and currency, read from the journal."""
    query = (
        sa.select(POSTING.c.ledger, POSTING.c.account, POSTING_ENTRY.c.currency, sa.func.sum(POSTING.c.micros))
        .join(POSTING_ENTRY, POSTING_ENTRY.c.id == POSTING.c.entry_id)
        .group_by(POSTING.c.ledger, POSTING.c.account, POSTING_ENTRY.c.currency)
    )
    return {(row[0], row[1], row[2]): int(row[3]) for row in connection.execute(query)}


def kept_balances(connection: Connection) -> dict[tuple[str, str, str], int]:
    """Returns every balance as it is kept."""
    query = sa.select(BALANCE.c.ledger, BALANCE.c.account, BALANCE.c.currency, BALANCE.c.micros)
    return {(row[0], row[1], row[2]): row[3] for row in connection.execute(query)}


def kept_use(connection: Connection) -> dict[tuple[AccountId, int], int]:
    """Returns the use of every budget and period as it is kept."""
    query = sa.select(BUDGET_USE.c.account, BUDGET_USE.c.from_ms, BUDGET_USE.c.micros)
    return {(AccountId(row[0]), row[1]): row[2] for row in connection.execute(query)}


def rebuild(connection: Connection) -> None:
    """Makes all that is kept beside the journal anew from it."""
    connection.execute(BALANCE.delete())
    rows = [
        {"ledger": ledger, "account": account, "currency": currency, "micros": micros}
        for (ledger, account, currency), micros in sorted(folded_balances(connection).items())
    ]
    if rows:
        connection.execute(BALANCE.insert(), rows)
    connection.execute(BUDGET_USE.delete())
    for account in budgets(connection):
        recount_use(connection, account)
