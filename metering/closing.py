"""Closing a period: recompute everything, prove it, write the files, and seal them with the heads of all chains.

The files are made from one snapshot and kept part by part under the hash of them all; one last transaction checks that
nothing about the period became known meanwhile, and seals. A crash anywhere before leaves the period closing, and the
same command again gives the same bytes.
"""

import hashlib
import tempfile
from concurrent.futures import Future
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Protocol, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from metering.closing_files import MOST_NAMED, refuse_unsound, write_period
from metering.core.journal import JournalEntry
from metering.core.period import Period, PeriodStatus
from metering.focus import FocusTerms
from metering.invoicing import entries_at_close
from metering.journal import post
from metering.ledger import price_book_rows
from metering.periods import (
    CHAINS,
    AdvancePeriods,
    KnownPeriod,
    Seal,
    event_values,
    known_period,
    periods,
    refuse_to_close,
)
from metering.sealed import PARTS_AT_ONCE, WHOLE, KeepParts, parts_of
from metering.tables import PERIOD_EVENT
from metering.together import reading_ledger
from metering.verify import verify
from scheduler.clock import Clock
from scheduler.refusal import RefusalCode, Refused
from scheduler.store.chained import append, head_of
from scheduler.store.database import Database
from scheduler.store.ledger_tables import OCCUPANCY, RECLASSIFICATION
from scheduler.store.overlays import unknown_stretches
from scheduler.store.read import ledger_head
from scheduler.store.transaction import Transaction
from scheduler.store.write import Command

T = TypeVar("T")


class Desk(Protocol):
    """What closing needs of the controller."""

    @property
    def database(self) -> Database:
        """The ledger's."""
        ...

    @property
    def clock(self) -> Clock:
        """The ledger's."""
        ...

    def carry_out(self, command: Command[T]) -> Future[T]:
        """Carries out a command in a transaction of its own."""
        ...


@dataclass(frozen=True, slots=True)
class PeriodTerms:
    """How a centre's periods are: their zone, how long late facts are waited for, and who issues the invoices."""

    zone: str
    window_ms: int
    focus: FocusTerms
    processes: int | None = None
    """How many read at once where a period is closed; None: as many as are worth it."""


@dataclass(frozen=True, slots=True)
class SealPeriod:
    """Closes a period whose files are kept, unless something about it became known since they were made."""

    period: Period
    seal: Seal
    actor: str
    entries: tuple[JournalEntry, ...] = ()
    """Credits, tax, rounding, packages and fees, to be posted in the same transaction."""

    def execute(self, tx: Transaction) -> KnownPeriod:
        """Returns the closed period. Raises Refused (`conflict`) for what must be made again."""
        connection = tx.after_ledger()
        known = known_period(connection, self.period.name, "UTC", tx.now_ms)
        if known.status is PeriodStatus.CLOSED:
            raise Refused(RefusalCode.WRONG_STATE, f"{self.period.name} was closed meanwhile")
        if _touched_since(connection, self.period, self.seal):
            raise Refused(
                RefusalCode.CONFLICT,
                f"something about {self.period.name} became known while its files were made",
                tries=(f"turnstile admin ledger close --period {self.period.name}",),
            )
        for entry in self.entries:
            post(connection, replace(entry, at_ms=tx.now_ms))
        values = event_values(known, PeriodStatus.CLOSED, tx.now_ms, self.actor, self.seal)
        append(connection, PERIOD_EVENT, [values])
        return known_period(connection, self.period.name, "UTC", tx.now_ms)


def close_period(desk: Desk, terms: PeriodTerms, name: str, actor: str, *, is_early: bool = False) -> KnownPeriod:
    """Closes a period and returns it. Reads the ledger from end to end; call it beside the event loop.

    Raises Refused with the reason when it cannot be closed now, StoreError.
    """
    now_ms = desk.clock.now_ms()
    desk.carry_out(AdvancePeriods(terms.zone)).result()
    with tempfile.TemporaryDirectory(prefix="turnstile-close-") as scratch:
        root = Path(scratch)
        with reading_ledger(desk.database, terms.processes) as readers:
            connection = readers.source
            known = known_period(connection, name, terms.zone, now_ms)
            refuse_to_close(periods(connection, terms.zone, now_ms), known, now_ms, terms.window_ms, is_early=is_early)
            unresolved = _unresolved(connection, known, is_firm=now_ms >= known.period.to_ms + terms.window_ms)
            refuse_unsound(verify(connection, period=name, readers=readers), "the ledger")
            write_period(readers, root, known, terms.focus)
            heads = heads_of(connection)
            books = {row.version: row.sha256 for row in price_book_rows(connection)}
            entries = tuple(entries_at_close(connection, root / WHOLE, known.period))
        files = {path.relative_to(root).as_posix(): _sha256(path) for path in sorted(root.rglob("*")) if path.is_file()}
        attempt = hashlib.sha256("\n".join(f"{sha256} {path}" for path, sha256 in files.items()).encode()).hexdigest()
        parts = parts_of(root)
        while batch := tuple(islice(parts, PARTS_AT_ONCE)):
            desk.carry_out(KeepParts(attempt, batch)).result()
    seal = Seal(attempt, heads, books, files, unresolved)
    return desk.carry_out(SealPeriod(known.period, seal, actor, entries)).result()


def heads_of(connection: Connection) -> dict[str, tuple[int, str]]:
    """Returns where each chain of the ledger ends, by table."""
    last = ledger_head(connection)
    heads = {OCCUPANCY.name: (last.sequence, last.hash)}
    for table in CHAINS[1:]:
        head = head_of(connection, table)
        heads[table.name] = (head.sequence, head.hash)
    return heads


def _touched_since(connection: Connection, period: Period, seal: Seal) -> bool:
    """Says whether a row about the period came after the seal's snapshot.

    An interval that reaches beyond the period was open in the snapshot, and counted there to the period's end.
    """
    closed = sa.select(OCCUPANCY.c.sequence).where(
        OCCUPANCY.c.sequence > seal.heads[OCCUPANCY.name][0], OCCUPANCY.c.to_ms < period.to_ms
    )
    later = sa.select(RECLASSIFICATION.c.sequence).where(
        RECLASSIFICATION.c.sequence > seal.heads[RECLASSIFICATION.name][0],
        RECLASSIFICATION.c.from_ms < period.to_ms,
    )
    books = {row.version: row.sha256 for row in price_book_rows(connection)}
    is_written = any(connection.execute(query.limit(1)).first() is not None for query in (closed, later))
    return is_written or books != seal.price_books


def _unresolved(connection: Connection, known: KnownPeriod, *, is_firm: bool) -> int:
    """Returns the unknown time of a period, which the provider bears. Raises Refused while it may yet be settled."""
    span = known.period.from_ms, known.period.to_ms
    found = list(unknown_stretches(connection, *span))
    if found and not is_firm:
        named = ", ".join(f"{each.device} from {each.from_ms} to {each.to_ms}" for each in found[:MOST_NAMED])
        more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
        raise Refused(
            RefusalCode.WRONG_STATE,
            f"{known.period.name} has time that nobody can account for yet: {named}{more}",
            tries=("turnstile admin ledger reclassify", "wait until late facts are waited for no longer"),
        )
    return sum(each.occupant.units * (min(each.to_ms, span[1]) - max(each.from_ms, span[0])) for each in found)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
