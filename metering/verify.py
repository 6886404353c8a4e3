"""Proves the ledger, or says where it does not hold: `verify` a database, `verify_export` the files of an export.

Reads only, streams, and trusts nothing that it can derive: hashes are computed again, intervals are laid side by side,
open intervals are held against the allocations that they belong to. What nothing else in the database repeats cannot
be proved: whether an open interval's version is higher than it need be. Whoever writes the whole ledger anew, hashes
included, is found by the chain head in the manifest of an earlier export.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush, merge

from sqlalchemy.engine import Connection

from metering.core.tariff import price_book_of
from metering.findings import Check, Finding, Report
from metering.ledger import price_book_rows
from metering.packages import package_sha256, packages_of, stored_hashes
from metering.tracks import Tracks
from metering.verify_chain import UNREADABLE, verify_chain
from metering.verify_chained import verify_chained, verify_covers, verify_settled
from metering.verify_files import verify_export
from metering.verify_holders import verify_allocations, verify_cursors, verify_known_segments
from metering.verify_journal import verify_journal
from metering.verify_periods import verify_periods
from scheduler.core.occupancy import Cursor, Interval, OccupancyState
from scheduler.refusal import Refused
from scheduler.store.codec import cursor_of
from scheduler.store.ledger_rows import (
    LedgerDevice,
    cursor_rows,
    cursors,
    devices,
    devices_in_ledger,
    intervals_of_device,
)
from scheduler.store.read import latest_known_ms
from scheduler.store.readers import Alone, Readers
from scheduler.store.repartition import Gap, absent_ms, device_gaps

__all__ = ["Check", "Finding", "Report", "verify", "verify_export"]
END_OF_TIME_MS = 1 << 62


def verify(
    connection: Connection,
    known_until_ms: int | None = None,
    *,
    period: str | None = None,
    readers: Readers[Connection] | None = None,
) -> Report:
    """Proves the whole ledger of one snapshot; time grows with its rows, memory does not.

    Open intervals count up to `known_until_ms`, by default the latest time in the ledger itself. Of closed periods all
    are proved, or the one that is named. `readers` of the same snapshot share the work; what is found is the same.
    """
    report = Report()
    together = Alone(connection) if readers is None else readers
    is_readable, tracks = verify_chain(together, report)
    is_readable = is_readable and _verify_readable(connection, report)
    _verify_price_books(connection, report)
    _verify_packages(connection, report)
    verify_chained(connection, report)
    if not is_readable:
        # Rows that say no known word cannot be laid beside others; the findings so far name them.
        return report
    until_ms = latest_known_ms(connection) if known_until_ms is None else known_until_ms
    _verify_devices(connection, report, until_ms, tracks)
    verify_cursors(connection, report)
    fits = verify_covers(connection, report)
    verify_allocations(together, report, until_ms)
    verify_journal(connection, report)
    if fits:
        verify_known_segments(together, report, until_ms)
        verify_settled(connection, report)
        verify_periods(connection, report, period)
    return report


def _verify_readable(connection: Connection, report: Report) -> bool:
    """Returns whether every open interval could be read."""
    is_readable = True
    for row in cursor_rows(connection):
        try:
            cursor_of(row)
        except UNREADABLE as error:
            is_readable = False
            where = f"device {row.device} lane {row.lane}, open interval"
            report.wrong(Check.CURSOR, where, "a row that can be read", repr(error))
    return is_readable


def _verify_price_books(connection: Connection, report: Report) -> None:
    for row in price_book_rows(connection):
        where = f"price book {row.version}"
        report.count("price_books")
        try:
            book = price_book_of(row.body)
        except (Refused, TypeError, AttributeError) as error:
            report.wrong(Check.PRICE_BOOK, where, "a readable body", str(error))
            continue
        report.expect(Check.PRICE_BOOK, f"{where} sha256", book.sha256, row.sha256)
        stored = (row.version, row.effective_ms, row.currency)
        report.expect(Check.PRICE_BOOK, f"{where} columns", (book.version, book.effective_ms, book.currency), stored)


def _verify_packages(connection: Connection, report: Report) -> None:
    hashes = stored_hashes(connection)
    try:
        for package in packages_of(connection):
            report.count("packages")
            report.expect(Check.PACKAGE, f"{package.id} sha256", package_sha256(package), hashes[package.id])
    except UNREADABLE as error:
        report.wrong(Check.PACKAGE, "packages", "rows that can be read", repr(error))


def _verify_devices(connection: Connection, report: Report, until_ms: int, tracks: Tracks) -> None:
    known = {device.id: device for device in devices(connection)}
    for name in sorted(devices_in_ledger(connection) - known.keys()):
        report.wrong(Check.PARTITION, f"device {name}", "a row in device", "none")
    open_lanes: dict[str, list[Cursor]] = {}
    for cursor in cursors(connection):
        open_lanes.setdefault(cursor.device, []).append(cursor)
    life_unit_ms = 0
    gaps = device_gaps(connection)
    for name in sorted(gaps.keys() - known.keys()):
        report.wrong(Check.PARTITION, f"device_end of {name}", "a row in device", "none")
    for device in known.values():
        report.count("devices")
        lanes = open_lanes.get(device.id, ())
        is_plain = bool(lanes) and device.id not in gaps
        held = tracks.proved(device, lanes, until_ms) if is_plain else None
        if held is None:
            life_unit_ms += _verify_device(connection, report, device, (gaps.get(device.id, ()), until_ms))
            continue
        for state, unit_ms in held.items():
            report.count(f"{state}_unit_ms", unit_ms)
            life_unit_ms += unit_ms
    total = sum(report.counted.get(f"{state}_unit_ms", 0) for state in OccupancyState)
    report.expect(Check.CONSERVATION, "all devices", f"{life_unit_ms} unit-ms", f"{total} unit-ms")


def _verify_device(
    connection: Connection, report: Report, device: LedgerDevice, times: tuple[Sequence[Gap], int]
) -> int:
    """Checks one device's lanes; returns its units × the time that the ledger knows it for. `times`: gaps, and now."""
    gaps, until_ms = times
    open_lanes = sorted(cursors(connection, device.id), key=lambda cursor: (cursor.since_ms, cursor.lane))
    closed = map(_closed_piece, intervals_of_device(connection, device.id, -1, END_OF_TIME_MS))
    sweep = _Sweep(report, device, gaps)
    held = 0
    for piece in merge(closed, map(_open_piece, open_lanes), key=lambda piece: (piece.from_ms, piece.lane)):
        sweep.take(piece)
        to_ms = until_ms if piece.sequence is None else piece.to_ms
        unit_ms = piece.units * max(0, to_ms - piece.from_ms)
        report.count(f"{piece.state}_unit_ms", unit_ms)
        held += unit_ms
    if not sweep.has_begun:  # it was there for no time at all
        report.expect(Check.PARTITION, f"device {device.id} ends", ((device.first_seen_ms, None),), tuple(gaps))
        return 0
    end_ms = sweep.finish()
    report.expect(Check.PARTITION, f"device {device.id} begins", device.first_seen_ms, sweep.start_ms)
    if not open_lanes:
        # Its life is over: something has to say so.
        last = gaps[-1] if gaps else None
        report.expect(Check.PARTITION, f"device {device.id} ends", (end_ms, None), last)
    whole_ms = (until_ms if open_lanes else end_ms) - sweep.start_ms
    life = device.units * max(0, whole_ms - absent_ms(gaps, sweep.start_ms, sweep.start_ms + max(0, whole_ms)))
    report.expect(Check.CONSERVATION, f"device {device.id}", f"{life} unit-ms", f"{held} unit-ms")
    return life


@dataclass(frozen=True, slots=True)
class _Piece:
    """An interval as the sweep sees it; without a sequence it is open and ends beyond all time."""

    lane: int
    from_ms: int
    to_ms: int
    units: int
    state: OccupancyState
    sequence: int | None


def _closed_piece(row: Interval) -> _Piece:
    return _Piece(row.lane, row.from_ms, row.to_ms, row.occupant.units, row.occupant.state, row.sequence)


def _open_piece(row: Cursor) -> _Piece:
    return _Piece(row.lane, row.since_ms, END_OF_TIME_MS, row.occupant.units, row.occupant.state, None)


class _Sweep:
    """Lays a device's lanes side by side along time; pieces come in the order of their starts."""

    def __init__(self, report: Report, device: LedgerDevice, gaps: Sequence[Gap] = ()) -> None:
        self.start_ms = 0
        self._gaps = dict(gaps)
        self._report = report
        self._device = device
        self._held: list[tuple[int, int]] = []  # (end, units), a heap
        self._units = 0
        self._at_ms: int | None = None  # start of the last piece; None before the first
        self._lane_ends: dict[int, int] = {}

    @property
    def has_begun(self) -> bool:
        """Tells whether any piece was taken."""
        return self._at_ms is not None

    def take(self, piece: _Piece) -> None:
        """Takes the next piece and checks all instants before its start."""
        if self._at_ms is None:
            self.start_ms = piece.from_ms
        elif piece.from_ms > self._at_ms:
            self._advance(piece.from_ms)
        self._at_ms = piece.from_ms
        self._check_lane(piece)
        heappush(self._held, (piece.to_ms, piece.units))
        self._units += piece.units

    def finish(self) -> int:
        """Checks what is left; returns when the device's closed life ends."""
        end_ms = self.start_ms
        while self._held and self._held[0][0] < END_OF_TIME_MS:
            end_ms = self._held[0][0]
            self._check_units()
            self._release(end_ms)
        if self._held:  # a device that is gone has no open lanes, and no units to add up
            self._check_units()
        return end_ms

    def _advance(self, to_ms: int) -> None:
        """Lets go of what ended up to `to_ms`; between two starts the units must be whole at each step."""
        self._check_units()
        while self._held and self._held[0][0] <= to_ms:
            end_ms = self._held[0][0]
            self._release(end_ms)
            if end_ms < to_ms:
                self._at_ms = end_ms
                self._check_units()

    def _release(self, end_ms: int) -> None:
        while self._held and self._held[0][0] == end_ms:
            self._units -= heappop(self._held)[1]

    def _check_units(self) -> None:
        where = f"device {self._device.id} at {self._at_ms}"
        units = 0 if self._at_ms in self._gaps else self._device.units
        self._report.expect(Check.PARTITION, where, f"{units} units", f"{self._units} units")

    def _check_lane(self, piece: _Piece) -> None:
        name = "open interval" if piece.sequence is None else f"sequence {piece.sequence}"
        where = f"device {self._device.id} lane {piece.lane}, {name}"
        if piece.from_ms >= piece.to_ms:
            self._report.wrong(Check.PARTITION, where, f"an end after {piece.from_ms}", str(piece.to_ms))
        last_ms = self._lane_ends.get(piece.lane)
        # A share's lane ends with its holder and may open again later; lane 0 lives as long as its device.
        is_back = last_ms is not None and last_ms < piece.from_ms == self._gaps.get(last_ms)
        if last_ms is not None and not is_back and self._is_apart(piece, last_ms):
            self._report.wrong(Check.PARTITION, where, f"to begin at {last_ms}", str(piece.from_ms))
        self._lane_ends[piece.lane] = piece.to_ms

    @staticmethod
    def _is_apart(piece: _Piece, last_ms: int) -> bool:
        return piece.from_ms < last_ms or (piece.lane == 0 and piece.from_ms != last_ms)
