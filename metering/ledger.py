"""Metering's SQL: price books and windows of samples. Occupancy itself is read through `scheduler.store`.

Every function works inside the caller's transaction. Expected refusals are `Refused`.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.engine import Connection, Row

from metering.core.civil import utc_text
from metering.core.tariff import PriceBook, body_of, price_book_of
from metering.core.who_pays import WHO_PAYS, Payer
from metering.tables import CHARGE_DUE, GPU_WINDOW, PRICE_BOOK
from scheduler.core.model import DeviceId
from scheduler.refusal import RefusalCode, Refused
from scheduler.store.database import chunks
from scheduler.store.ledger_rows import held_terms
from scheduler.store.tables import ALLOCATION

MOST_WINDOW_MS = 3_600_000
"""The longest window that is taken in, an hour: bounds how far back a look-up by time must reach."""
IDLE_BELOW_PPM = 50_000
"""A window whose mean utilisation is less counts as idle: 5 %, the threshold of agents and of the idle alert."""


@dataclass(frozen=True, slots=True)
class StoredBook:
    """A price book as it stands in the database. `sha256` is what was stored, not what the body hashes to now."""

    book: PriceBook
    sha256: str
    published_ms: int
    retroactive_reason: str | None = None


@dataclass(frozen=True, slots=True)
class GpuWindow:
    """What one GPU did over `[from_ms, to_ms)`; None is unknown, never zero. Ratios are parts per million."""

    device: DeviceId
    from_ms: int
    to_ms: int
    coverage_ms: int
    """How much of the window samples stand for."""
    utilization_mean_ppm: int | None = None
    utilization_max_ppm: int | None = None
    memory_mean_bytes: int | None = None
    memory_max_bytes: int | None = None
    power_mean_milliwatts: int | None = None
    energy_millijoules: int | None = None
    counter_resets: int = 0
    """1 where a new life of the driver begins with this window."""


@dataclass(frozen=True, slots=True)
class WindowSums:
    """Windows of some GPUs over a time, added up; windows that reach beyond it count by the part inside."""

    utilization_ppm_ms: int
    utilization_ms: int
    energy_millijoules: int
    energy_ms: int
    """GPU-milliseconds whose energy is known."""


def publish(connection: Connection, book: PriceBook, now_ms: int, retroactive_reason: str | None = None) -> StoredBook:
    """Stores a new price book; the same book again changes nothing.

    Raises Refused: conflict for a version or an effective time that is taken, policy for an effective time in the past
    when use since then already had a price and no reason is given to change it, and for another zone than before.
    """
    stored = price_books(connection)
    for other in stored:
        if other.book.version == book.version:
            if other.sha256 == book.sha256:
                return other
            raise Refused(
                RefusalCode.CONFLICT,
                f"price book {book.version} is published already, with other content; books never change",
                tries=("publish under a new version",),
            )
        if other.book.effective_ms == book.effective_ms:
            raise Refused(
                RefusalCode.CONFLICT,
                f"price book {other.book.version} is effective from {utc_text(book.effective_ms)} too",
                tries=("choose another effective time",),
            )
    _refuse_other_zone([other.book for other in stored], book)
    if retroactive_reason is None:
        _refuse_repricing(connection, [other.book for other in stored], book, now_ms)
    reason = retroactive_reason if book.effective_ms < now_ms else None
    row = StoredBook(book, book.sha256, now_ms, reason)
    connection.execute(
        PRICE_BOOK.insert().values(
            version=book.version,
            effective_ms=book.effective_ms,
            currency=book.currency,
            body=body_of(book),
            sha256=row.sha256,
            published_ms=now_ms,
            retroactive_reason=reason,
        )
    )
    _charge_by(connection, book, now_ms)
    return row


def _charge_by(connection: Connection, book: PriceBook, now_ms: int) -> None:
    """Has gangs looked at when a book's prices come into force, and what ran before under no price charged by it."""
    late = sa.and_(CHARGE_DUE.c.is_held, CHARGE_DUE.c.due_ms > book.effective_ms)
    connection.execute(CHARGE_DUE.update().where(late).values(due_ms=book.effective_ms))
    if book.effective_ms >= now_ms:
        return
    lived = sa.or_(ALLOCATION.c.ended_ms.is_(None), ALLOCATION.c.ended_ms > book.effective_ms)
    values = {"due_ms": 0, "is_held": False, "gpu_eq_units": 0, "grace_ms": 0, "is_warned": False}
    query = sa.select(ALLOCATION.c.id, *(sa.literal(value=value) for value in values.values()))
    missing = query.where(lived, ALLOCATION.c.id.not_in(sa.select(CHARGE_DUE.c.allocation_id)))
    connection.execute(CHARGE_DUE.insert().from_select(["allocation_id", *values], missing))


def next_book_ms(connection: Connection, now_ms: int) -> int | None:
    """Returns when other prices come into force; None when none are published for later."""
    query = sa.select(sa.func.min(PRICE_BOOK.c.effective_ms)).where(PRICE_BOOK.c.effective_ms > now_ms)
    return connection.execute(query).scalar()


def _refuse_other_zone(books: list[PriceBook], book: PriceBook) -> None:
    """Raises Refused for a second zone: a month of volume and of fees has one beginning."""
    zones = {other.zone for other in books if other.zone is not None}
    if book.zone is not None and zones - {book.zone}:
        raise Refused(
            RefusalCode.POLICY,
            f"price book {book.version} counts days and months in {book.zone}, earlier ones in {zones.pop()}; the"
            " centre's zone does not change",
        )


def _refuse_repricing(connection: Connection, books: list[PriceBook], book: PriceBook, now_ms: int) -> None:
    """Raises Refused when use between the book's effective time and now was priced by another book."""
    if book.effective_ms >= now_ms:
        return
    phases = [phase for phase, payer in WHO_PAYS.by_phase.items() if payer is Payer.TENANT]
    starts = [*(other.effective_ms for other in books if other.effective_ms < now_ms), now_ms]
    for other, (from_ms, to_ms) in zip(books, pairwise(starts), strict=False):
        first_ms = max(from_ms, book.effective_ms)
        if first_ms >= to_ms:
            continue
        for gpu_class, booking in sorted(held_terms(connection, phases, first_ms, to_ms)):
            if other.price(gpu_class, booking) is not None:
                raise Refused(
                    RefusalCode.POLICY,
                    f"{gpu_class} {booking} was used after {utc_text(book.effective_ms)} and has its price from book"
                    f" {other.version}; a book may not change it",
                    tries=(f"make it effective at {utc_text(now_ms)} or later", "--retroactive --reason TEXT"),
                )


def price_books(connection: Connection) -> list[StoredBook]:
    """Returns every published book, by effective time. Raises Refused when a stored body is no price book."""
    rows = connection.execute(sa.select(PRICE_BOOK).order_by(PRICE_BOOK.c.effective_ms))
    return [StoredBook(price_book_of(row.body), row.sha256, row.published_ms, row.retroactive_reason) for row in rows]


def price_book_rows(connection: Connection) -> list[Row[Any]]:
    """Returns the rows of `price_book` as they stand, by effective time: what verification reads."""
    return list(connection.execute(sa.select(PRICE_BOOK).order_by(PRICE_BOOK.c.effective_ms, PRICE_BOOK.c.version)))


def current_book(connection: Connection, at_ms: int) -> PriceBook | None:
    """Returns the book in force at an instant; None before the first. One row by index."""
    query = sa.select(PRICE_BOOK.c.body).where(PRICE_BOOK.c.effective_ms <= at_ms)
    body = connection.execute(query.order_by(PRICE_BOOK.c.effective_ms.desc()).limit(1)).scalar()
    return None if body is None else price_book_of(body)


def write_windows(connection: Connection, windows: Sequence[GpuWindow]) -> int:
    """Stores windows and returns how many were new; one that is there already (device and start) stays as it is.

    Raises ValueError for a window that is empty, longer than MOST_WINDOW_MS, or covered for longer than it lasts.
    """
    for window in windows:
        length_ms = window.to_ms - window.from_ms
        if not 0 < length_ms <= MOST_WINDOW_MS or not 0 <= window.coverage_ms <= length_ms:
            raise ValueError(
                f"window of {window.device} from {window.from_ms} to {window.to_ms} with {window.coverage_ms} ms"
                f" covered: a window lasts 1 to {MOST_WINDOW_MS} ms and is covered for no longer"
            )
    insert = postgresql_insert if connection.dialect.name == "postgresql" else sqlite_insert
    new = 0
    for part in chunks(windows):
        statement = insert(GPU_WINDOW).on_conflict_do_nothing().returning(GPU_WINDOW.c.from_ms)
        new += len(connection.execute(statement, [asdict(window) for window in part]).all())
    return new


def has_windows(connection: Connection, from_ms: int, to_ms: int) -> bool:
    """Says whether any window overlaps `[from_ms, to_ms)`."""
    query = sa.select(GPU_WINDOW.c.device).where(GPU_WINDOW.c.to_ms > from_ms, GPU_WINDOW.c.from_ms < to_ms).limit(1)
    return connection.execute(query).first() is not None


def windows_of(connection: Connection, device: DeviceId, from_ms: int, to_ms: int) -> list[GpuWindow]:
    """Returns a device's windows that overlap `[from_ms, to_ms)`, in order."""
    query = sa.select(GPU_WINDOW).where(*overlapping([device], from_ms, to_ms)).order_by(GPU_WINDOW.c.from_ms)
    return [GpuWindow(**row) for row in connection.execute(query).mappings()]


def sum_windows(connection: Connection, devices: Sequence[DeviceId], from_ms: int, to_ms: int) -> WindowSums:
    """Returns the windows of these devices added up over `[from_ms, to_ms)`."""
    window = GPU_WINDOW.c
    first = sa.case((window.from_ms < from_ms, from_ms), else_=window.from_ms)
    last = sa.case((window.to_ms > to_ms, to_ms), else_=window.to_ms)
    inside = last - first
    has_use, has_energy = window.utilization_mean_ppm.is_not(None), window.energy_millijoules.is_not(None)
    # Whole numbers in SQL: the energy of a window cut by an edge is rounded down to a millijoule.
    energy = window.energy_millijoules * inside // (window.to_ms - window.from_ms)
    sums = [0, 0, 0, 0]
    for part in chunks(devices):
        query = sa.select(
            sa.func.sum(sa.case((has_use, window.utilization_mean_ppm * inside), else_=0)),
            sa.func.sum(sa.case((has_use, inside), else_=0)),
            sa.func.sum(sa.case((has_energy, energy), else_=0)),
            sa.func.sum(sa.case((has_energy, inside), else_=0)),
        ).where(*overlapping(part, from_ms, to_ms))
        row = connection.execute(query).one()
        sums = [have + int(more or 0) for have, more in zip(sums, row, strict=True)]
    return WindowSums(*sums)


def idle_sums(connection: Connection, devices: Sequence[DeviceId], from_ms: int, to_ms: int) -> tuple[int, int]:
    """Returns the GPU-milliseconds of `[from_ms, to_ms)` in windows of idle use, and in all whose use is known."""
    window = GPU_WINDOW.c
    first = sa.case((window.from_ms < from_ms, from_ms), else_=window.from_ms)
    last = sa.case((window.to_ms > to_ms, to_ms), else_=window.to_ms)
    is_idle = window.utilization_mean_ppm < IDLE_BELOW_PPM
    idle_ms = measured_ms = 0
    for part in chunks(devices):
        sums = (sa.func.sum(sa.case((is_idle, last - first), else_=0)), sa.func.sum(last - first))
        known = window.utilization_mean_ppm.is_not(None)
        row = connection.execute(sa.select(*sums).where(known, *overlapping(part, from_ms, to_ms))).one()
        idle_ms, measured_ms = idle_ms + int(row[0] or 0), measured_ms + int(row[1] or 0)
    return idle_ms, measured_ms


def overlapping(devices: Sequence[DeviceId], from_ms: int, to_ms: int) -> tuple[sa.ColumnElement[bool], ...]:
    """Returns the conditions of windows of these devices that overlap `[from_ms, to_ms)`, found by their index."""
    window = GPU_WINDOW.c
    reach = window.from_ms > from_ms - MOST_WINDOW_MS
    return window.device.in_(devices), reach, window.from_ms < to_ms, window.to_ms > from_ms
