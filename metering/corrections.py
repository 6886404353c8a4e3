"""Corrections: charges of the open period that bring a line of a closed one to what is known now.

`differences` rates a closed period again and holds it against its sealed lines and the corrections so far, allocation
by allocation; what is left becomes correction rows. So late evidence, reclassifications and prices that reach back all
come to the tenant by one way, the same fact never twice, and a sealed file never changes. An operator may add a
correction by hand; those are kept apart, so that rating again does not take them back.
"""

import csv
import filecmp
import json
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from enum import StrEnum
from itertools import groupby
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from metering.budgets import Purse
from metering.core.journal import MOST_TEXT, EntryKind, JournalEntry, Ledger, transfer
from metering.core.period import PeriodStatus
from metering.core.quantity import AMOUNT_DECIMALS, GPU_HOURS_DECIMALS, fixed
from metering.core.rating import LineType
from metering.core.who_pays import WHO_PAYS_VERSIONS
from metering.credit_lines import CREDIT
from metering.export import export_usage
from metering.journal import post
from metering.ledger import price_book_rows
from metering.periods import KnownPeriod, Seal, known_period, periods
from metering.sealed import WHOLE, sealed_manifest, write_sealed
from metering.tables import CORRECTION, PRICE_BOOK
from metering.usage_lines import PERIOD_STATUS
from scheduler.core.model import AccountId, AllocationId
from scheduler.refusal import RefusalCode, Refused
from scheduler.store.chained import append, head_of
from scheduler.store.ledger_tables import RECLASSIFICATION
from scheduler.store.transaction import Transaction

_MICROS = 10**AMOUNT_DECIMALS
_NANO = 10**GPU_HOURS_DECIMALS
_RATED = frozenset({LineType.USAGE, LineType.CREDIT, LineType.MINIMUM, LineType.ENERGY})
"""Line types that are rated from occupancy."""
_FEES = frozenset({LineType.PACKAGE, LineType.RESERVED})
"""Line types that are due whatever is used: few, and at the end of a file. What of them was unused costs nothing."""


class Origin(StrEnum):
    """Who made a correction."""

    RERATED = "rerated"  # rating the period again
    OPERATOR = "operator"  # a person


@dataclass(frozen=True, slots=True)
class Correction:
    """A correction that is to be written: by how much `target` moves, and the line that it corrects."""

    corrected_period: str
    corrects_line_id: str
    target_line_id: str
    origin: Origin
    cells: Mapping[str, str]
    """The native row that it is about: who, what, when."""
    amount_micros: int
    gpu_ms: int
    hours_nano: int
    reason: str
    actor: str = ""


@dataclass(slots=True)
class _Sum:
    amount_micros: int = 0
    gpu_ms: int = 0
    hours_nano: int = 0

    def add(self, amount_micros: int, gpu_ms: int, hours_nano: int) -> None:
        self.amount_micros += amount_micros
        self.gpu_ms += gpu_ms
        self.hours_nano += hours_nano


@dataclass(frozen=True, slots=True)
class PostCorrections:
    """Writes corrections into the period of now, and posts them to the tenants' accounts."""

    corrections: tuple[Correction, ...]
    seen: int
    """The last correction that the differences took into account."""
    zone: str

    def execute(self, tx: Transaction) -> int:
        """Returns how many were written. Raises Refused (`conflict`) when others were written meanwhile."""
        connection = tx.connection
        if head_of(connection, CORRECTION).sequence != self.seen:
            raise Refused(RefusalCode.CONFLICT, "corrections were written meanwhile; look again")
        return _write(tx, self.corrections, self.zone)


@dataclass(frozen=True, slots=True)
class CorrectLine:
    """An operator's correction of a line of a closed period, by an amount, for a reason."""

    period: str
    line_id: str
    amount: Decimal
    reason: str
    actor: str
    zone: str
    sealed: Mapping[str, str]
    """The line's row as sealed."""

    def execute(self, tx: Transaction) -> str:
        """Returns the id of the correction line; the same line, amount and reason again is the one that is there.

        Refuses what is not closed, and an amount that is none.
        """
        known = known_period(tx.connection, self.period, self.zone, tx.now_ms)
        refuse_open(known)
        scaled = self.amount * _MICROS if self.amount.is_finite() else Decimal("0.5")
        if scaled != scaled.to_integral_value() or not 0 < abs(scaled) < 2**62:
            raise Refused(RefusalCode.INVALID, f"a correction is an amount with at most {AMOUNT_DECIMALS} decimals")
        if not self.reason.strip():
            raise Refused(RefusalCode.INVALID, "a correction needs a reason that the tenant can read")
        there = self._there(tx.connection, int(scaled))
        if there is not None:
            return there
        row = Correction(
            self.period, self.line_id, self.line_id, Origin.OPERATOR, self.sealed, int(scaled), 0, 0, self.reason,
            self.actor,
        )  # fmt: skip
        _write(tx, (row,), self.zone)
        key = sa.select(CORRECTION.c.key).order_by(CORRECTION.c.sequence.desc()).limit(1)
        return str(tx.connection.execute(key).scalar_one())

    def _there(self, connection: Connection, micros: int) -> str | None:
        """Whoever heard no answer asks again: that must not charge twice."""
        known: str | None = connection.execute(
            sa.select(CORRECTION.c.key).where(
                CORRECTION.c.corrected_period == self.period,
                CORRECTION.c.target_line_id == self.line_id,
                CORRECTION.c.origin == Origin.OPERATOR.value,
                CORRECTION.c.amount_micros == micros,
                CORRECTION.c.reason == self.reason,
            )
        ).scalar()
        return known


def refuse_open(known: KnownPeriod) -> None:
    """Raises Refused for a period that is not closed: what is open is not corrected but put right."""
    if known.status is not PeriodStatus.CLOSED:
        name = known.period.name
        raise Refused(
            RefusalCode.WRONG_STATE,
            f"{name} is {known.status}: its lines follow from the ledger still, and nothing of it is to be corrected",
            tries=(
                "turnstile admin ledger reclassify, where time was not what the ledger says",
                f"turnstile admin ledger close --period {name}, and correct it then",
            ),
        )


def sealed_line(connection: Connection, known: KnownPeriod, line_id: str) -> dict[str, str]:
    """Returns the sealed row of use, a credit or a fee. Raises Refused: it is open, or has no such priced line."""
    refuse_open(known)
    with tempfile.TemporaryDirectory(prefix="turnstile-sealed-") as scratch:
        write_sealed(connection, _seal_of(known), WHOLE, Path(scratch))
        for row in _rows(Path(scratch)):
            if row["line_id"] == line_id and row["currency"] and row["line_type"] in _RATED | _FEES:
                return row
    raise Refused(RefusalCode.NOT_FOUND, f"{known.period.name} has no priced line {line_id}")


def differences(connection: Connection, known: KnownPeriod) -> list[Correction]:
    """Returns the corrections that a closed period lacks; none when all that is known is charged.

    Rates the period again into files beside; memory grows with the differences, not with the period.
    """
    refuse_open(known)
    done = _corrected(connection, known.period.name)
    found: list[Correction] = []
    with tempfile.TemporaryDirectory(prefix="turnstile-rerate-") as scratch:
        sealed = _sealed_rows(connection, known, Path(scratch) / "sealed")
        again = _again(connection, known, Path(scratch) / "again")
        if not done and _is_same(Path(scratch) / "sealed", Path(scratch) / "again"):
            return found
        for before, after in _side_by_side(sealed, again):
            found += _of_allocation(known.period.name, before, after, done)
        fees = [
            [row for row in _rows(Path(scratch) / name) if row["line_type"] in _FEES] for name in ("sealed", "again")
        ]
        found += _of_allocation(known.period.name, fees[0], fees[1], done)
    return found


def touched_since(connection: Connection, known: KnownPeriod) -> bool:
    """Says whether anything that was written after a period's seal could change what it charges."""
    seal, period = known.seal, known.period
    assert seal is not None, "a closed period is sealed"
    later = sa.select(RECLASSIFICATION.c.sequence).where(
        RECLASSIFICATION.c.sequence > seal.heads[RECLASSIFICATION.name][0],
        RECLASSIFICATION.c.from_ms < period.to_ms,
    )  # what was before the period counts too: it may have drawn on a package that goes on
    if connection.execute(later.limit(1)).first() is not None:
        return True
    books = sa.select(PRICE_BOOK.c.version).where(PRICE_BOOK.c.effective_ms < period.to_ms)
    return any(version not in seal.price_books for version in connection.execute(books).scalars())


def moved_by_charges(connection: Connection, since_ms: int) -> Iterator[tuple[AccountId, str, int]]:
    """Yields tenant, currency and micro-units of corrections written since an instant that charges of use move."""
    row = CORRECTION.c
    query = sa.select(row.tenant, row.currency, row.amount_micros, row.target_line_id, row.cells).where(
        row.recorded_ms >= since_ms, row.origin == Origin.RERATED.value, row.amount_micros != 0
    )
    for each in connection.execute(query.order_by(row.sequence)):
        is_use = bool(json.loads(each.cells)["job_id"]) and not each.target_line_id.startswith(CREDIT)
        if is_use:
            yield AccountId(each.tenant), each.currency, each.amount_micros


def fingerprint(connection: Connection) -> tuple[int, int]:
    """Returns what moves when a closed period may have to be corrected."""
    return head_of(connection, RECLASSIFICATION).sequence, len(price_book_rows(connection))


def _corrected(connection: Connection, period: str) -> dict[tuple[str, str], _Sum]:
    """Returns what rating again has corrected so far, by target line and currency."""
    done: dict[tuple[str, str], _Sum] = defaultdict(_Sum)
    row = CORRECTION.c
    query = sa.select(CORRECTION).where(row.corrected_period == period, row.origin == Origin.RERATED.value)
    for each in connection.execute(query):
        done[each.target_line_id, each.currency].add(each.amount_micros, each.gpu_ms, each.hours_nano)
    return done


def _write(tx: Transaction, corrections: Iterable[Correction], zone: str) -> int:
    connection = tx.connection
    open_period = next(each for each in reversed(periods(connection, zone, tx.now_ms)))
    rows: list[dict[str, Any]] = []
    counts: dict[str, int] = {}
    for each in corrections:
        prefix = f"correction/{each.corrected_period}/{each.target_line_id}/"
        if prefix not in counts:
            like = sa.func.substr(CORRECTION.c.key, 1, len(prefix)) == prefix
            counts[prefix] = int(
                connection.execute(sa.select(sa.func.count()).select_from(CORRECTION).where(like)).scalar_one()
            )
        counts[prefix] += 1
        row = _values(each, f"{prefix}{counts[prefix]}", open_period.period.name, tx.now_ms)
        rows.append(row)
        _post(tx, each, str(row["key"]))
    return len(append(connection, CORRECTION, rows))


def _values(each: Correction, key: str, period: str, now_ms: int) -> dict[str, Any]:
    cells = {
        **each.cells,
        "line_id": key,
        "line_type": "correction",
        "gpu_ms": str(each.gpu_ms),
        "gpu_hours": fixed(each.hours_nano, GPU_HOURS_DECIMALS),
        "list_amount": fixed(each.amount_micros, AMOUNT_DECIMALS),
        "discount_amount": fixed(0, AMOUNT_DECIMALS),
        "amount": fixed(each.amount_micros, AMOUNT_DECIMALS) if each.cells["currency"] else "",
        "corrects_line_id": each.corrects_line_id,
        "evidence": "operator" if each.origin is Origin.OPERATOR else each.cells["evidence"],
    }
    if "effective_amount" in cells:
        cells["effective_amount"] = cells["amount"]
    return {
        "key": key,
        "period": period,
        "corrected_period": each.corrected_period,
        "corrects_line_id": each.corrects_line_id,
        "target_line_id": each.target_line_id,
        "origin": each.origin.value,
        "tenant": each.cells["tenant_id"],
        "amount_micros": each.amount_micros,
        "gpu_ms": each.gpu_ms,
        "hours_nano": each.hours_nano,
        "currency": each.cells["currency"],
        "price_book": each.cells["price_book"],
        "cells": json.dumps(cells, sort_keys=True, ensure_ascii=False, separators=(",", ":")),
        "reason": each.reason,
        "actor": each.actor,
        "recorded_ms": now_ms,
    }


def _post(tx: Transaction, each: Correction, key: str) -> None:
    """Posts what the tenant owes more or less; a correction of time alone moves no money.

    What follows from occupancy is charged by whoever keeps budgets, line by line to what is known: the journal has it
    once, whichever of the two was first. Here its allocation is only looked at again.
    """
    if each.amount_micros == 0:
        return
    is_credit, is_fee = each.cells["line_type"] == LineType.CREDIT, each.cells["line_type"] in _FEES
    if each.origin is Origin.RERATED and not (is_credit or is_fee):
        tx.admission.release(tx.connection, [AllocationId(_allocation_of(each.cells))], tx.now_ms)
        return
    account = AccountId(each.cells["project_id"] or each.cells["tenant_id"])
    # What use costs, whoever keeps budgets pays; the rest was never part of a budget.
    owed = (Ledger.RECEIVABLE, account) if is_credit or is_fee else Purse.of(tx.connection, account).payer
    against = Ledger.SLA_EXPENSE if is_credit else Ledger.FEES if is_fee else Ledger.REVENUE
    legs = transfer(owed, (against, account), each.amount_micros)
    entry = JournalEntry(
        key=f"correction-{head_of(tx.connection, CORRECTION).sequence}-{key}"[-MOST_TEXT:],
        kind=EntryKind.CORRECTION,
        currency=each.cells["currency"],
        at_ms=tx.now_ms,
        legs=tuple(replace(leg, line_id=key) for leg in legs),
        actor=each.actor or None,
        reason=each.reason[:MOST_TEXT],
    )
    post(tx.connection, entry)


def _sealed_rows(connection: Connection, known: KnownPeriod, folder: Path) -> Iterator[dict[str, str]]:
    write_sealed(connection, _seal_of(known), WHOLE, folder)
    return _rated_rows(folder)


def _seal_of(known: KnownPeriod) -> Seal:
    assert known.seal is not None, "a closed period is sealed"
    return known.seal


def _again(connection: Connection, known: KnownPeriod, folder: Path) -> Iterator[dict[str, str]]:
    period = known.period
    assert known.seal is not None, "a closed period is sealed"
    version = sealed_manifest(connection, known.seal).who_pays
    table = WHO_PAYS_VERSIONS.get(version)
    if table is None:
        raise ValueError(f"who-pays table {version!r} is not known; a newer version of the program closed this period")
    export_usage(
        connection,
        folder,
        period.from_ms,
        period.to_ms,
        ZoneInfo(known.zone),
        known_until_ms=period.to_ms,
        status=PeriodStatus.CLOSED,
        who_pays=table,
    )
    # What is known now is of no seal: a correction made of it is open.
    return ({**row, "period_status": PERIOD_STATUS} for row in _rated_rows(folder))


def _is_same(one: Path, other: Path) -> bool:
    """Says whether two folders have the same usage lines, byte by byte: nothing is to be corrected then."""
    (sealed,), (again,) = one.glob("usage_lines_*.csv"), other.glob("usage_lines_*.csv")
    return filecmp.cmp(sealed, again, shallow=False)


def _rated_rows(folder: Path) -> Iterator[dict[str, str]]:
    """Yields the rows of a folder's usage lines that are rated from occupancy, in the file's order."""
    return (row for row in _rows(folder) if row["line_type"] in _RATED)


def _rows(folder: Path) -> Iterator[dict[str, str]]:
    (path,) = folder.glob("usage_lines_*.csv")
    with path.open(encoding="utf-8-sig", newline="") as stream:
        yield from csv.DictReader(stream)


def _allocation_of(row: Mapping[str, str]) -> str:
    return row["line_id"].removeprefix(CREDIT).partition("/")[0]


def _side_by_side(
    sealed: Iterator[dict[str, str]], again: Iterator[dict[str, str]]
) -> Iterator[tuple[list[dict[str, str]], list[dict[str, str]]]]:
    """Yields the rows of each allocation of either file, which both have in the order of allocations."""
    one, other = (((key, list(rows)) for key, rows in groupby(each, _allocation_of)) for each in (sealed, again))
    left, right = next(one, None), next(other, None)
    while left is not None or right is not None:
        key = min(each[0] for each in (left, right) if each is not None)
        before = left[1] if left is not None and left[0] == key else []
        after = right[1] if right is not None and right[0] == key else []
        yield before, after
        left = next(one, None) if left is not None and left[0] == key else left
        right = next(other, None) if right is not None and right[0] == key else right


def _of_allocation(
    period: str,
    before: list[dict[str, str]],
    after: list[dict[str, str]],
    done: Mapping[tuple[str, str], _Sum],
) -> Iterator[Correction]:
    sums: dict[tuple[str, str], _Sum] = defaultdict(_Sum)
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for sign, rows in ((-1, before), (1, after)):
        for row in rows:
            key = (row["line_id"], row["currency"])
            cells[key] = row
            sums[key].add(sign * _micros(row["amount"]), sign * int(row["gpu_ms"] or 0), sign * _nano(row["gpu_hours"]))
    for key in sorted(sums):
        left, so_far = sums[key], done.get(key, _Sum())
        left.add(-so_far.amount_micros, -so_far.gpu_ms, -so_far.hours_nano)
        if left == _Sum():
            continue
        yield Correction(
            corrected_period=period,
            corrects_line_id=_corrects(key[0], before),
            target_line_id=key[0],
            origin=Origin.RERATED,
            cells=cells[key],
            amount_micros=left.amount_micros,
            gpu_ms=left.gpu_ms,
            hours_nano=left.hours_nano,
            reason="rated again with what became known after the period was closed",
        )


def _corrects(line_id: str, sealed: list[dict[str, str]]) -> str:
    """Returns the sealed line that a difference is about: its own, its day's, its allocation's last, or none but it."""
    ids = [row["line_id"] for row in sealed]
    day = line_id.rsplit("/", 1)[0]
    near = [each for each in ids if each == line_id] or [each for each in ids if each.rsplit("/", 1)[0] == day]
    return (near or ids[-1:] or [line_id])[0]


def _micros(text: str) -> int:
    return int(Decimal(text) * _MICROS) if text else 0


def _nano(text: str) -> int:
    return int(Decimal(text) * _NANO) if text else 0
