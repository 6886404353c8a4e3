"""Billing periods as stored: which there are, how far each is, and the clock that makes them close."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from zoneinfo import ZoneInfo

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from metering.core.civil import utc_text
from metering.core.period import Period, PeriodStatus, period_at
from metering.tables import CORRECTION, PERIOD_EVENT, POSTING_ENTRY
from scheduler.refusal import RefusalCode, Refused
from scheduler.store.chained import append
from scheduler.store.ledger_tables import DEVICE_END, EVIDENCE, INCIDENT, OCCUPANCY, RECLASSIFICATION
from scheduler.store.tables import DEVICE
from scheduler.store.transaction import Transaction

CLOSING_HOURS = 72
"""How long late facts are waited for after a period's end: three days outlast a weekend's outage of a node."""


CHAINS = (OCCUPANCY, EVIDENCE, RECLASSIFICATION, CORRECTION, POSTING_ENTRY, DEVICE_END, INCIDENT)
"""The tables whose heads a seal fixes."""
_LATER = (POSTING_ENTRY, DEVICE_END, INCIDENT)
"""Those that were not there, or had no chain, when the first periods were sealed."""


@dataclass(frozen=True, slots=True)
class Seal:
    """What was fixed when a period was closed."""

    attempt: str
    heads: Mapping[str, tuple[int, str]]
    """The end of each chain then, by table: sequence and hash."""
    price_books: Mapping[str, str]
    """Every book then, version to SHA-256."""
    files: Mapping[str, str]
    """Path to SHA-256 of each sealed file."""
    unresolved_unit_ms: int
    """Time that was unknown still, which the provider bears."""

    def to_json(self) -> str:
        """Returns the text that the chain holds."""
        document = {
            "heads": {name: list(head) for name, head in self.heads.items()},
            "price_books": dict(self.price_books),
            "files": dict(self.files),
            "unresolved_unit_ms": self.unresolved_unit_ms,
        }
        return json.dumps(document, sort_keys=True, ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, attempt: str, text: str) -> "Seal":
        """Returns the seal of a text. Raises ValueError for another text."""
        try:
            document: dict[str, Any] = json.loads(text)
            heads = {str(name): (int(head[0]), str(head[1])) for name, head in document["heads"].items()}
            files = {str(path): str(sha256) for path, sha256 in document["files"].items()}
            return cls(attempt, heads, dict(document["price_books"]), files, int(document["unresolved_unit_ms"]))
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise ValueError(f"the seal lacks what it must say: {error}") from error


@dataclass(frozen=True, slots=True)
class KnownPeriod:
    """A period with how far it is."""

    period: Period
    zone: str
    status: PeriodStatus
    closing_ms: int | None = None
    closed_ms: int | None = None
    actor: str | None = None
    seal: Seal | None = None


@dataclass(frozen=True, slots=True)
class AdvancePeriods:
    """Says of each period that is over that it is closing. Idempotent."""

    zone: str
    """Of the first period; those that follow stay in its zone."""

    def execute(self, tx: Transaction) -> tuple[str, ...]:
        """Returns the names of the periods that began to close."""
        known = periods(tx.connection, self.zone, tx.now_ms)
        over = [each for each in known if each.closing_ms is None and each.period.to_ms <= tx.now_ms]
        append(tx.connection, PERIOD_EVENT, [event_values(each, PeriodStatus.CLOSING, tx.now_ms) for each in over])
        return tuple(each.period.name for each in over)


def event_values(
    known: KnownPeriod, status: PeriodStatus, now_ms: int, actor: str = "", seal: Seal | None = None
) -> dict[str, Any]:
    """Returns the row that says that a period is in a status from now on."""
    return {
        "period": known.period.name,
        "status": status.value,
        "from_ms": known.period.from_ms,
        "to_ms": known.period.to_ms,
        "zone": known.zone,
        "at_ms": now_ms,
        "actor": actor,
        "attempt": "" if seal is None else seal.attempt,
        "seal": "" if seal is None else seal.to_json(),
    }


def periods(connection: Connection, zone: str, now_ms: int) -> list[KnownPeriod]:
    """Returns every period from the first that the ledger knows of to the one of now, in order; none before any GPU."""
    found: dict[str, KnownPeriod] = {}
    for row in connection.execute(sa.select(PERIOD_EVENT).order_by(PERIOD_EVENT.c.sequence)):
        before = found.get(row.period)
        if row.status == PeriodStatus.CLOSING:
            period = Period(row.period, row.from_ms, row.to_ms)
            found[row.period] = KnownPeriod(period, row.zone, PeriodStatus.CLOSING, row.at_ms)
        elif before is not None:
            seal = Seal.from_json(row.attempt, row.seal)
            found[row.period] = KnownPeriod(
                before.period, row.zone, PeriodStatus.CLOSED, before.closing_ms, row.at_ms, row.actor, seal
            )
    known = list(found.values())
    first_ms = connection.execute(sa.select(sa.func.min(DEVICE.c.first_seen_ms))).scalar()
    if known:
        first_ms, zone = known[-1].period.to_ms, known[-1].zone
    while first_ms is not None and first_ms <= now_ms:
        period = period_at(first_ms, ZoneInfo(zone))
        known.append(KnownPeriod(period, zone, PeriodStatus.OPEN))
        first_ms = period.to_ms
    return known


def lost_heads(connection: Connection, seal: Seal) -> list[tuple[str, str, str | None]]:
    """Returns the chains without the row that was their head at the seal: its place, and its hash then and now."""
    lost: list[tuple[str, str, str | None]] = []
    for table in CHAINS:
        if table in _LATER and table.name not in seal.heads:
            continue  # sealed before it had a chain
        sequence, sha256 = seal.heads.get(table.name, (-1, ""))
        if sequence == 0:
            continue
        (place,) = table.primary_key
        found = connection.execute(sa.select(table.c.hash).where(place == sequence)).scalar()
        if found != sha256:
            lost.append((f"{table.name} at {sequence}", sha256, found))
    return lost


def known_period(connection: Connection, name: str, zone: str, now_ms: int) -> KnownPeriod:
    """Returns a period by its name. Raises Refused (`not_found`)."""
    known = periods(connection, zone, now_ms)
    for each in known:
        if each.period.name == name:
            return each
    there = f"there are {known[0].period.name} to {known[-1].period.name}" if known else "there are none yet"
    raise Refused(
        RefusalCode.NOT_FOUND,
        f"there is no period {name}: a period is a month such as 2026-11, and {there}",
        tries=("turnstile admin ledger periods",),
    )


def refuse_to_close(
    known: list[KnownPeriod], wanted: KnownPeriod, now_ms: int, window_ms: int, *, is_early: bool
) -> None:
    """Raises Refused when a period cannot be closed now, for the first reason that holds."""
    name, end = wanted.period.name, utc_text(wanted.period.to_ms)
    if wanted.status is PeriodStatus.CLOSED:
        raise Refused(RefusalCode.WRONG_STATE, f"{name} is closed since {utc_text(wanted.closed_ms or 0)}, for ever")
    if now_ms < wanted.period.to_ms:
        raise Refused(RefusalCode.WRONG_STATE, f"{name} is not over: it ends at {end}")
    for earlier in known:
        if earlier.period.to_ms <= wanted.period.from_ms and earlier.status is not PeriodStatus.CLOSED:
            raise Refused(
                RefusalCode.WRONG_STATE,
                f"{earlier.period.name} is not closed yet; periods close in order",
                tries=(f"turnstile admin ledger close --period {earlier.period.name}",),
            )
    until_ms = wanted.period.to_ms + window_ms
    if now_ms < until_ms and not is_early:
        raise Refused(
            RefusalCode.WRONG_STATE,
            f"{name} waits for late facts until {utc_text(until_ms)}",
            tries=(f"turnstile admin ledger close --period {name} --early",),
        )
