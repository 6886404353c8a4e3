"""The writing half of the occupancy ledger: moves cursors, closes intervals, keeps the chain.

A `Chain` appends closed intervals in one transaction and holds the head. `Lanes` are the cursors that one command works
on: read at its start, changed in memory, written back by compare-and-swap at its end. Every change keeps the units of a
device's open lanes at the device's, and every lane without gap or overlap:

- `move` closes the open interval of a lane and opens the next at the same instant;
- `cut` takes units for a share out of lane 0 into the lowest free lane;
- `merge` gives a lane's units back to lane 0, and the lane ends;
- `end_device` ends a device's life, and `open_device` begins it again, should the device come back.

An interval without length is never written; its cursor just moves. A lane's versions rise for as long as its device
lives, through its ends and openings, so `device/lane/version` names one interval for ever.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from scheduler.core.model import DeviceId, GpuClass, Phase
from scheduler.core.occupancy import Cursor, Evidence, Interval, OccupancyState, Occupant, interval_hash
from scheduler.store.chained import append
from scheduler.store.codec import CURSOR_COLUMNS, cursor_of, occupant_values
from scheduler.store.columns import JsonObject
from scheduler.store.database import StoreCorrupt, chunks
from scheduler.store.ledger_tables import DEVICE_CURSOR, DEVICE_END, LEDGER_HEAD, OCCUPANCY
from scheduler.store.prepared import Prepared

LaneKey = tuple[DeviceId, int]

_CURSOR_NAMES = tuple(column.name for column in DEVICE_CURSOR.c)
_LANE_NAMES = ("at_device", "at_lane", "at_version")
_INSERT_INTERVAL = Prepared(sa.insert(OCCUPANCY), [column.name for column in OCCUPANCY.c])
_INSERT_CURSOR = Prepared(sa.insert(DEVICE_CURSOR), _CURSOR_NAMES)
_IS_LANE = sa.and_(
    DEVICE_CURSOR.c.device == sa.bindparam("at_device"),
    DEVICE_CURSOR.c.lane == sa.bindparam("at_lane"),
    DEVICE_CURSOR.c.version == sa.bindparam("at_version"),
)
_MOVE_CURSOR = Prepared(
    sa.update(DEVICE_CURSOR).where(_IS_LANE),
    [*(name for name in _CURSOR_NAMES if name not in {"device", "lane"}), *_LANE_NAMES],
)
_END_CURSOR = Prepared(sa.delete(DEVICE_CURSOR).where(_IS_LANE), _LANE_NAMES)
_SELECT_HEAD = sa.select(LEDGER_HEAD.c.sequence, LEDGER_HEAD.c.hash).where(LEDGER_HEAD.c.id == 1)


@dataclass(frozen=True, slots=True)
class ChainMark:
    """A point that a chain can be rewound to."""

    rows: int
    sequence: int
    hash: str


class Chain:
    """Appends intervals; nothing reaches the database before `flush`."""

    def __init__(self, connection: Connection, now_ms: int) -> None:
        self._connection = connection
        self._now_ms = now_ms
        row = connection.execute(_SELECT_HEAD).one_or_none()
        if row is None:
            raise StoreCorrupt("the table ledger_head has lost its row; restore a backup")
        self._sequence, self._hash = int(row[0]), str(row[1])
        self._rows: list[JsonObject] = []
        self._first = self.mark()

    def append(self, cursor: Cursor, to_ms: int, evidence: Evidence) -> None:
        """Closes a cursor's interval at `to_ms`, which is not before it began; writes nothing when it has no length."""
        assert to_ms >= cursor.since_ms, f"lane {cursor.lane} of {cursor.device} would run backwards"
        if to_ms == cursor.since_ms:
            return
        interval = Interval(
            self._sequence + 1,
            cursor.device,
            cursor.lane,
            cursor.gpu_class,
            cursor.since_ms,
            to_ms,
            cursor.occupant,
            evidence,
            self._now_ms,
            f"{cursor.device}/{cursor.lane}/{cursor.version}",
            self._hash,
            "",
        )
        hash_ = interval_hash(self._hash, interval)
        row = occupant_values(cursor.occupant)
        row["sequence"] = interval.sequence
        row["device"] = cursor.device
        row["lane"] = cursor.lane
        row["gpu_class"] = cursor.gpu_class
        row["from_ms"] = cursor.since_ms
        row["to_ms"] = to_ms
        row["evidence"] = evidence.value
        row["recorded_ms"] = self._now_ms
        row["idempotency_key"] = interval.idempotency_key
        row["previous_hash"] = self._hash
        row["hash"] = hash_
        self._rows.append(row)
        self._sequence, self._hash = interval.sequence, hash_

    def mark(self) -> ChainMark:
        """Returns the present point."""
        return ChainMark(len(self._rows), self._sequence, self._hash)

    def rewind(self, mark: ChainMark | None) -> None:
        """Forgets what was appended since the mark; since the transaction's beginning for None."""
        mark = self._first if mark is None else mark
        del self._rows[mark.rows :]
        self._sequence, self._hash = mark.sequence, mark.hash

    def flush(self) -> None:
        """Writes what was appended, and the head."""
        if not self._rows:
            return
        _INSERT_INTERVAL.many(self._connection, self._rows)
        self._connection.execute(
            sa.update(LEDGER_HEAD).where(LEDGER_HEAD.c.id == 1).values(sequence=self._sequence, hash=self._hash)
        )
        self._rows = []


def in_phase(occupant: Occupant, phase: Phase) -> Occupant:
    """Returns an allocated occupant in another phase."""
    # Written out: `dataclasses.replace` takes several times as long, and this is done for every GPU of every gang.
    return Occupant(
        occupant.state,
        occupant.units,
        occupant.cause,
        phase,
        occupant.holder,
        occupant.job,
        occupant.allocation,
        occupant.segment,
        occupant.booking,
        occupant.gpu_eq_units,
    )


class Lanes:
    """The cursors of the devices that a command is about."""

    def __init__(self, connection: Connection, chain: Chain) -> None:
        self._connection = connection
        self._chain = chain
        self._lanes: dict[DeviceId, dict[int, Cursor]] = {}
        self._stored: dict[LaneKey, int] = {}
        """Version of each lane as the database has it."""
        self._dirty: dict[LaneKey, None] = {}
        self._ended: dict[DeviceId, int] = {}
        """Devices whose life ended, with the greatest version that a lane of them had."""
        self._ends: list[JsonObject] = []

    def load(self, devices: Iterable[DeviceId]) -> None:
        """Reads the cursors of devices that are not read yet."""
        wanted = [device for device in dict.fromkeys(devices) if device not in self._lanes]
        for part in chunks(wanted):
            for device in part:
                self._lanes[device] = {}
            statement = sa.select(*CURSOR_COLUMNS).where(DEVICE_CURSOR.c.device.in_(part))
            for row in self._connection.execute(statement).all():
                cursor = cursor_of(row)
                self._lanes[cursor.device][cursor.lane] = cursor
                self._stored[cursor.device, cursor.lane] = cursor.version
        for part in chunks([device for device in wanted if not self._lanes[device]]):
            ended = sa.select(DEVICE_END.c.device, sa.func.max(DEVICE_END.c.version)).where(
                DEVICE_END.c.device.in_(part)
            )
            for name, version in self._connection.execute(ended.group_by(DEVICE_END.c.device)):
                self._ended[DeviceId(name)] = version

    def of(self, device: DeviceId) -> dict[int, Cursor]:
        """Returns a loaded device's open lanes by number; empty for a device that has no cursor yet."""
        return self._lanes[device]

    def open_device(self, device: DeviceId, gpu_class: GpuClass, since_ms: int, occupant: Occupant) -> None:
        """Opens a device's first lane: its life begins, or begins again."""
        assert not self._lanes[device], f"device {device} is known already"
        self._put(Cursor(device, 0, gpu_class, since_ms, self._ended.get(device, 0) + 1, occupant))

    def end_device(self, device: DeviceId, at_ms: int, cause: str, evidence: Evidence) -> None:
        """Ends a device's life at `at_ms`: it is not there any more, and nobody holds it."""
        lanes = self._lanes[device]
        assert all(cursor.occupant.allocation is None for cursor in lanes.values()), f"device {device} is held"
        version = max(cursor.version for cursor in lanes.values())
        for cursor in lanes.values():
            self._chain.append(cursor, at_ms, evidence)
            self._dirty[device, cursor.lane] = None
        self._lanes[device] = {}
        self._ended[device] = version
        self._ends.append({"device": device, "at_ms": at_ms, "version": version, "cause": cause, "recorded_ms": at_ms})

    def move(
        self, cursor: Cursor, occupant: Occupant, at_ms: int, evidence: Evidence, gpu_class: GpuClass | None = None
    ) -> Cursor:
        """Closes a lane's interval at `at_ms` and opens the next with `occupant`; returns the new cursor."""
        self._chain.append(cursor, at_ms, evidence)
        moved = Cursor(cursor.device, cursor.lane, gpu_class or cursor.gpu_class, at_ms, cursor.version + 1, occupant)
        self._put(moved)
        return moved

    def cut(self, device: DeviceId, occupant: Occupant, at_ms: int) -> Cursor:
        """Takes `occupant.units` out of lane 0 into the lowest free lane at `at_ms`; returns the new lane's cursor."""
        lanes = self._lanes[device]
        rest = lanes[0]
        left = rest.occupant.units - occupant.units
        assert left >= 0, f"device {device} has no {occupant.units} units left"
        rest = self.move(rest, replace(rest.occupant, units=left), at_ms, Evidence.CONTROLLER)
        lane = next(number for number in range(1, len(lanes) + 1) if number not in lanes)
        # Lane 0's version is above all that this lane ever had: see `merge`.
        cursor = Cursor(device, lane, rest.gpu_class, at_ms, rest.version + 1, occupant)
        self._put(cursor)
        return cursor

    def merge(self, cursor: Cursor, at_ms: int, evidence: Evidence) -> None:
        """Ends a lane at `at_ms` and gives its units to lane 0.

        Lane 0 may have been cut later than `at_ms` already: then the units are idle in their own lane up to that cut.
        """
        device = cursor.device
        assert cursor.lane > 0, "lane 0 never ends"
        rest = self._lanes[device][0]
        units = cursor.occupant.units
        if at_ms < rest.since_ms:
            cursor = self.move(cursor, Occupant(OccupancyState.IDLE, units), at_ms, evidence)
            at_ms = rest.since_ms
        self._chain.append(cursor, at_ms, evidence)
        del self._lanes[device][cursor.lane]
        self._dirty[device, cursor.lane] = None
        self._chain.append(rest, at_ms, evidence)
        occupant = replace(rest.occupant, units=rest.occupant.units + units)
        version = max(rest.version, cursor.version) + 1
        self._put(Cursor(device, 0, rest.gpu_class, at_ms, version, occupant))

    def flush(self) -> None:
        """Writes the changed cursors by compare-and-swap. Raises StoreCorrupt when one moved meanwhile."""
        moves: list[JsonObject] = []
        opens: list[JsonObject] = []
        ends: list[JsonObject] = []
        for device, lane in self._dirty:
            stored = self._stored.get((device, lane))
            cursor = self._lanes[device].get(lane)
            place = {"at_device": device, "at_lane": lane, "at_version": stored}
            if cursor is None:
                if stored is not None:
                    ends.append(place)
                    del self._stored[device, lane]
                continue
            (opens if stored is None else moves).append(_cursor_values(cursor, place if stored is not None else None))
            self._stored[device, lane] = cursor.version
        self._dirty.clear()
        self._swap(_MOVE_CURSOR, moves)
        self._swap(_END_CURSOR, ends)
        _INSERT_CURSOR.many(self._connection, opens)
        append(self._connection, DEVICE_END, self._ends)
        self._ends = []

    def _put(self, cursor: Cursor) -> None:
        self._lanes[cursor.device][cursor.lane] = cursor
        self._dirty[cursor.device, cursor.lane] = None

    def _swap(self, statement: Prepared, rows: list[JsonObject]) -> None:
        if statement.many(self._connection, rows) != len(rows):
            raise StoreCorrupt("a device's cursor moved outside of this transaction; stop other writers of the ledger")


def _cursor_values(cursor: Cursor, place: JsonObject | None) -> JsonObject:
    values = occupant_values(cursor.occupant)
    values["gpu_class"] = cursor.gpu_class
    values["since_ms"] = cursor.since_ms
    values["version"] = cursor.version
    if place is None:
        values["device"] = cursor.device
        values["lane"] = cursor.lane
    else:
        values.update(place)
    return values
