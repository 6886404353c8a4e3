"""The part of verification that asks who held what: open intervals and allocations must tell one story."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy.engine import Connection

from metering.core.usage import UnevenSegment, holding_of, open_holding_of, segments_of
from metering.findings import Check, Report
from metering.plain_gangs import plain_gang
from scheduler.core.model import DeviceId, Phase
from scheduler.core.occupancy import Cursor, Interval, OccupancyState, charged_units
from scheduler.store.ledger_allocations import IdRange, LedgerAllocation, allocations, id_ranges
from scheduler.store.ledger_rows import cursors, devices, has_reclassifications, last_of_lane, orphans
from scheduler.store.nodes import load_nodes, resting
from scheduler.store.readers import Readers
from scheduler.store.repartition import REMAINDER_CAUSE, Gap, device_gaps, is_remainder

_ALL_TIME_MS = (-1, 1 << 62)
ALLOCATIONS_AT_ONCE = 2_048
"""Allocations that a process checks at once: a tenth of a second's work."""


def verify_cursors(connection: Connection, report: Report) -> None:
    """Checks that each open interval continues the lane's last closed one, and that each device has its lane 0."""
    classes = {device.id: device.gpu_class for device in devices(connection)}
    resting_states = _resting_states(connection)
    seen: set[DeviceId] = set()
    gaps = device_gaps(connection)
    for cursor in cursors(connection):
        report.count("cursors")
        where = f"device {cursor.device} lane {cursor.lane}, open interval"
        if cursor.lane == 0:
            seen.add(cursor.device)
        report.expect(Check.CURSOR, f"{where} gpu_class", classes.get(cursor.device), cursor.gpu_class)
        last = last_of_lane(connection, cursor.device, cursor.lane)
        if last is not None:
            _verify_continuation(report, where, (cursor, last), gaps.get(cursor.device, ()))
        what = cursor.occupant
        if what.state is OccupancyState.ALLOCATED:
            report.expect(Check.CURSOR, f"{where} cause", None, what.cause)
        else:
            left = REMAINDER_CAUSE if is_remainder(cursor.device) else "removed"
            expected = resting_states.get(cursor.device, (OccupancyState.UNAVAILABLE, left))
            report.expect(Check.CURSOR, f"{where} state and cause", expected, (what.state, what.cause))
            report.expect(Check.CURSOR, f"{where} gpu_eq_units", 0, what.gpu_eq_units)
    for device in sorted(device.id for device in devices(connection) if device.removed_ms is None):
        if device not in seen:
            report.wrong(Check.CURSOR, f"device {device} lane 0", "an open interval", "none")


def _verify_continuation(report: Report, where: str, rows: tuple[Cursor, Interval], gaps: Sequence[Gap]) -> None:
    cursor, last = rows
    is_continued = cursor.since_ms == last.to_ms if cursor.lane == 0 else cursor.since_ms >= last.to_ms
    is_continued |= (last.to_ms, cursor.since_ms) in gaps
    if not is_continued:
        report.wrong(Check.CURSOR, f"{where} since_ms", str(last.to_ms), str(cursor.since_ms))
    # The key of a row names its lane and the version of the cursor that it closed.
    device, lane, version = last.idempotency_key.rsplit("/", 2)
    report.expect(Check.CURSOR, f"sequence {last.sequence} key", f"{last.device}/{last.lane}", f"{device}/{lane}")
    if not version.isdigit() or cursor.version <= int(version):
        report.wrong(Check.CURSOR, f"{where} version", f"more than {version}", str(cursor.version))


def _resting_states(connection: Connection) -> dict[DeviceId, tuple[OccupancyState, str | None]]:
    """Returns what each device of the inventory is, and why, while nobody holds it."""
    return {
        device.id: resting(known, device)
        for known in load_nodes(connection, with_removed=True).values()
        for device in known.devices
    }


def verify_allocations(readers: Readers[Connection], report: Report, until_ms: int) -> None:
    """Checks every allocation against what it holds and held."""
    for sequence, device, missing in orphans(readers.source):
        name = "open interval" if sequence is None else f"sequence {sequence}"
        report.wrong(Check.HOLDER, f"device {device}, {name}", f"an allocation {missing}", "none")
    before = report.counted.get("allocations", 0)
    for part, problem in readers.each(_Allocations(until_ms, as_written=True), _ranges(readers)):
        report.add(part)
        if problem is not None:
            seen = report.counted.get("allocations", 0) - before
            report.wrong(Check.HOLDER, f"allocations, after {seen} of them", "rows that can be read", problem)
            return


def verify_known_segments(readers: Readers[Connection], report: Report, until_ms: int) -> None:
    """Checks that the devices of a gang share its billed interval also as it is known now."""
    if not has_reclassifications(readers.source):
        return
    for part, problem in readers.each(_Allocations(until_ms, as_written=False), _ranges(readers)):
        report.add(part)
        if problem is not None:
            report.wrong(Check.RECLASSIFICATION, "allocations as known now", "rows that can be read", problem)
            return


def _ranges(readers: Readers[Connection]) -> Iterator[IdRange]:
    return id_ranges(readers.source, *_ALL_TIME_MS, None, ALLOCATIONS_AT_ONCE)


@dataclass(frozen=True, slots=True)
class _Allocations:
    """The work of checking allocations: as they were written, or as they are known now."""

    until_ms: int
    as_written: bool

    def begin(self, connection: Connection) -> Callable[[IdRange], tuple[Report, str | None]]:
        """Returns what checks those of a range of ids: what it found, and why it could not read on."""

        def check(ids: IdRange) -> tuple[Report, str | None]:
            report = Report()
            try:
                for allocation in allocations(connection, *_ALL_TIME_MS, ids=ids, as_written=self.as_written):
                    if not self.as_written:
                        _verify_segments(report, allocation, self.until_ms)
                        continue
                    report.count("allocations")
                    if not _is_plain(allocation):
                        _verify_allocation(connection, report, allocation, self.until_ms)
            except (ValueError, LookupError, TypeError) as error:
                return report, repr(error)
            return report, None

        return check


def _verify_allocation(connection: Connection, report: Report, allocation: LedgerAllocation, until_ms: int) -> None:
    _verify_terms(report, allocation)
    _verify_times(report, allocation)
    _verify_open(connection, report, allocation)
    _verify_segments(report, allocation, until_ms)


def _is_plain(allocation: LedgerAllocation) -> bool:
    """Says whether an allocation is of the plain kind and all that is checked below holds."""
    gang = plain_gang(allocation)
    if gang is None:
        return False
    _, gpu_class, _, units, holder, job, _, segment, booking = gang.terms
    return (
        (holder, job, gpu_class) == (allocation.account, allocation.job, allocation.gpu_class)
        and (segment, booking) == (allocation.segment, allocation.booking.value)
        and allocation.devices.issuperset(gang.devices)
        and gang.least_charged_units >= units
        and gang.from_ms == allocation.decided_ms
        and gang.running_ms in {None, allocation.started_ms}
        and gang.to_ms == allocation.ended_ms
    )


def _verify_terms(report: Report, allocation: LedgerAllocation) -> None:
    name = f"allocation {allocation.id}"
    rows: list[Interval | Cursor] = [*allocation.intervals, *allocation.cursors]
    for row in rows:
        where = f"{name}, {_row_name(row)}"
        what = row.occupant
        report.expect(Check.HOLDER, f"{where} holder", allocation.account, what.holder)
        report.expect(Check.HOLDER, f"{where} job_id", allocation.job, what.job)
        report.expect(Check.HOLDER, f"{where} gpu_class", allocation.gpu_class, row.gpu_class)
        if what.segment == allocation.segment:
            report.expect(Check.HOLDER, f"{where} booking", allocation.booking, what.booking)
        elif what.segment is None or not 1 <= what.segment < allocation.segment:
            report.wrong(Check.HOLDER, f"{where} segment", f"1 to {allocation.segment}", str(what.segment))
        if row.device not in allocation.devices:
            report.wrong(Check.HOLDER, f"{where} device", "one that it was granted", row.device)
        if what.gpu_eq_units < what.units:
            report.wrong(Check.HOLDER, f"{where} gpu_eq_units", f"{what.units} or more", str(what.gpu_eq_units))


def _verify_times(report: Report, allocation: LedgerAllocation) -> None:
    """Checks that what it held begins when it was decided, runs when it started, and ends when it ended."""
    rows = allocation.intervals
    if not rows:
        return
    name = f"allocation {allocation.id}"
    first_ms = min(row.from_ms for row in rows)
    report.expect(Check.HOLDER, f"{name} decided_ms", first_ms, allocation.decided_ms)
    running = [row.from_ms for row in rows if row.occupant.phase is Phase.RUNNING]
    running += [row.since_ms for row in allocation.cursors if row.occupant.phase is Phase.RUNNING]
    if running:
        report.expect(Check.HOLDER, f"{name} started_ms", min(running), allocation.started_ms)
    if allocation.ended_ms is not None:
        last_ms = max(row.to_ms for row in rows)
        report.expect(Check.HOLDER, f"{name} ended_ms", last_ms, allocation.ended_ms)


def _verify_open(connection: Connection, report: Report, allocation: LedgerAllocation) -> None:
    """Checks that a live allocation holds all its devices now, in its phase, and one that ended holds none."""
    name = f"allocation {allocation.id}"
    held = sorted(row.device for row in allocation.cursors)
    expected = sorted(allocation.devices) if allocation.ended_ms is None else []
    report.expect(Check.CURSOR, f"{name} devices held", expected, held)
    if allocation.ended_ms is not None:
        return
    closed = {row.device: row for row in allocation.intervals}  # the last of each device: what it is charged stays
    charges = _charges(connection, allocation) if len(closed) < len(allocation.cursors) else {}
    for cursor in allocation.cursors:
        what, where = cursor.occupant, f"{name}, {_row_name(cursor)}"
        report.expect(Check.CURSOR, f"{where} phase", allocation.phase, what.phase)
        report.expect(Check.CURSOR, f"{where} segment", allocation.segment, what.segment)
        if what.phase is Phase.STARTING and what.segment == 1:
            report.expect(Check.CURSOR, f"{where} since_ms", allocation.decided_ms, cursor.since_ms)
        # A closed interval of the gang is sealed by the chain; without one, the charge is reckoned again.
        before = closed.get(cursor.device)
        charged = before.occupant.gpu_eq_units if before else charges.get(cursor.device)
        report.expect(Check.CURSOR, f"{where} gpu_eq_units", charged, what.gpu_eq_units)
        report.expect(Check.CURSOR, f"{where} lane", before.lane if before else cursor.lane, cursor.lane)


def _charges(connection: Connection, allocation: LedgerAllocation) -> dict[DeviceId, int]:
    """Returns what each device is charged for, as it was reckoned when the gang was decided."""
    nodes = load_nodes(connection, {grant.node for grant in allocation.grants})
    charges: dict[DeviceId, int] = {}
    for grant in allocation.grants:
        known = nodes.get(grant.node)
        if known is None:
            continue
        whole = (known.node.cpu_millicores, known.node.memory_bytes)
        charged = charged_units(
            grant.units * len(grant.devices),
            (grant.cpu_millicores, whole[0]),
            (grant.memory_bytes, whole[1]),
            known.whole_units,
        )
        each, over = divmod(charged, len(grant.devices))
        charges |= {device: each + (over if place == 0 else 0) for place, device in enumerate(grant.devices)}
    return charges


def _verify_segments(report: Report, allocation: LedgerAllocation, until_ms: int) -> None:
    closed = (holding_of(row) for row in allocation.intervals)
    still_open = (open_holding_of(row, until_ms) for row in allocation.cursors)
    try:
        segments_of(holding for holding in (*closed, *still_open) if holding is not None)
    except UnevenSegment as error:
        report.wrong(Check.GANG, f"allocation {allocation.id}", "one billed interval for each segment", str(error))


def _row_name(row: Interval | Cursor) -> str:
    place = f"device {row.device} lane {row.lane}"
    return f"{place}, sequence {row.sequence}" if isinstance(row, Interval) else f"{place}, open interval"
