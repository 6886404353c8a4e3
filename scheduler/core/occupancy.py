"""The partition of every device's life: who held which GPU from when to when, in integers, chained by hashes.

An `Interval` is one closed row of the ledger's physical half: append-only, never changed. A `Cursor` is the one open
interval of a lane. A device's lanes divide its capacity units: lane 0 is the whole device, or what is left of it beside
the lanes that hold shares; the units of a device's open cursors always sum to the device's. Hence, per device and in
total: tenants + reserved unused + idle + draining + unavailable + foreign + unknown = capacity, exactly.

`gpu_eq_units` is what is charged (a job pays for the CPU and memory that it makes unavailable); `units`, what is held.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from scheduler.core.model import AccountId, AllocationId, Booking, DeviceId, GpuClass, JobId, Phase

GENESIS_HASH = "0" * 64
"""What the first row of a ledger is chained to."""


class OccupancyState(StrEnum):
    """What a lane of a device is at an instant."""

    ALLOCATED = "allocated"
    RESERVED_UNUSED = "reserved_unused"
    IDLE = "idle"
    DRAINING = "draining"
    UNAVAILABLE = "unavailable"
    FOREIGN = "foreign"
    UNKNOWN = "unknown"


class Evidence(StrEnum):
    """Who says that the interval ended when it did."""

    CONTROLLER = "controller"
    NODE = "node"
    HEARTBEAT = "heartbeat"
    OPERATOR = "operator"


_NOBODY = (None,) * 6


@dataclass(frozen=True, slots=True)
class Occupant:
    """What an interval is about, beside its device and times. Holder fields are set in state `allocated` only."""

    state: OccupancyState
    units: int
    cause: str | None = None
    """Why it is unavailable or draining, as a short code."""
    phase: Phase | None = None
    holder: AccountId | None = None
    job: JobId | None = None
    allocation: AllocationId | None = None
    segment: int | None = None
    booking: Booking | None = None
    gpu_eq_units: int = 0

    def __post_init__(self) -> None:
        fields = (self.phase, self.holder, self.job, self.allocation, self.segment, self.booking)
        is_right = None not in fields if self.state is OccupancyState.ALLOCATED else fields == _NOBODY
        assert is_right, "an interval has a holder when it is allocated"
        assert self.units >= 0, "units are never negative"


@dataclass(frozen=True, slots=True)
class Cursor:
    """The open interval of a lane. `version` rises by one with each move: the compare of compare-and-swap."""

    device: DeviceId
    lane: int
    gpu_class: GpuClass
    since_ms: int
    version: int
    occupant: Occupant


@dataclass(frozen=True, slots=True)
class Interval:
    """One closed, half-open interval `[from_ms, to_ms)` of a lane, as it stands in the ledger."""

    sequence: int
    device: DeviceId
    lane: int
    gpu_class: GpuClass
    from_ms: int
    to_ms: int
    occupant: Occupant
    evidence: Evidence
    recorded_ms: int
    idempotency_key: str
    previous_hash: str
    hash: str

    @property
    def unit_ms(self) -> int:
        """Capacity units times milliseconds held: the conserved quantity."""
        return self.occupant.units * (self.to_ms - self.from_ms)


def charged_units(held_units: int, cpu_ratio: tuple[int, int], memory_ratio: tuple[int, int], node_units: int) -> int:
    """Returns the capacity units that a grant on one node is charged for, at least `held_units`.

    `cpu_ratio` and `memory_ratio` are (granted, the node's whole); `node_units` is what the node's devices add up to.
    A job that takes half a node's memory pays for half its GPUs. Rounded up to a whole unit (1/12,600 of a GPU).
    """
    charged = held_units
    for granted, whole in (cpu_ratio, memory_ratio):
        if whole > 0:
            charged = max(charged, -(-granted * node_units // whole))
    return charged


def interval_hash(previous_hash: str, interval: Interval) -> str:
    """Returns the SHA-256 (hex) that chains an interval to the one before; every field but `hash` goes into it."""
    occupant = interval.occupant
    fields = (
        previous_hash,
        interval.sequence,
        interval.device,
        interval.lane,
        interval.gpu_class,
        interval.from_ms,
        interval.to_ms,
        occupant.state,
        occupant.units,
        occupant.cause,
        occupant.phase,
        occupant.holder,
        occupant.job,
        occupant.allocation,
        occupant.segment,
        occupant.booking,
        occupant.gpu_eq_units,
        interval.evidence,
        interval.recorded_ms,
        interval.idempotency_key,
    )
    return fields_hash(fields)


def fields_hash(fields: Sequence[object]) -> str:
    """Returns the SHA-256 (hex) of the fields of a row in the order of `interval_hash`, as core or stored values.

    A word of an enum and its text hash alike, so rows of the database need not become intervals to be proved.
    """
    return hashlib.sha256("\x1f".join(_encoded(fields)).encode()).hexdigest()


def _encoded(fields: Sequence[object]) -> list[str]:
    # Length-prefixed, so that no two different rows share an encoding; None is told from the empty string.
    try:
        return ["-" if value is None else _LENGTHS[len(text := f"{value}")] + text for value in fields]
    except IndexError:  # a text longer than those that are written out
        return ["-" if value is None else f"{len(text := str(value))}:{text}" for value in fields]


_LENGTHS = tuple(f"{length}:" for length in range(256))
"""Lengths before their texts, made once: they are written a score of times in each row."""
_SHA256 = hashlib.sha256()
_HASHED = 19
"""Fields of a stored row that are hashed: all before the previous row's hash, which goes first."""
_HASH_LETTERS = 64
_THIRTEEN_DIGITS = (10**12, 10**13 - 1)
"""Times of the years 2001 to 2286 in milliseconds."""
_MOST_PLACES, _MOST_HELD = 16_384, 1_024
"""Encodings that are remembered: of a large centre's devices, and of the gangs whose rows stand beside each other."""


class RowHashes:
    """Hashes stored rows, one after the other, as `fields_hash` does, in a third of the time.

    Of rows that follow each other much is alike: their devices come again, and a gang's devices are the same. The text
    of that is made once. Rows are tuples in the order of `interval_hash`, from the sequence on, of what a database
    gives for columns of integers and texts.
    """

    def __init__(self) -> None:
        self._places: dict[tuple[object, ...], str] = {}
        self._held: dict[tuple[object, ...], str] = {}

    def of(self, previous_hash: str, row: tuple[Any, ...]) -> str:
        """Returns the SHA-256 (hex) that chains a row to the one before."""
        from_ms, to_ms, recorded_ms, key = row[4], row[5], row[17], row[18]
        least, most = _THIRTEEN_DIGITS
        try:
            is_usual = least <= from_ms <= to_ms <= most and least <= recorded_ms <= most
            if not is_usual or len(previous_hash) != _HASH_LETTERS:
                return fields_hash((previous_hash, *row[:_HASHED]))
            place, held = row[1:4], row[6:17]
            place_text = self._places.get(place) or _remembered(self._places, place, _MOST_PLACES)
            held_text = self._held.get(held) or _remembered(self._held, held, _MOST_HELD)
            number = f"{row[0]}"
            text = (
                f"64:{previous_hash}\x1f{_LENGTHS[len(number)]}{number}\x1f{place_text}\x1f13:{from_ms}\x1f13:{to_ms}"
                f"\x1f{held_text}\x1f13:{recorded_ms}\x1f{_LENGTHS[len(key)]}{key}"
            )
        except (TypeError, IndexError):  # something else than what belongs there, or a text that is very long
            return fields_hash((previous_hash, *row[:_HASHED]))
        made = _SHA256.copy()  # to make one anew costs as much as to hash a row
        made.update(text.encode())
        return made.hexdigest()


def _remembered(known: dict[tuple[object, ...], str], fields: tuple[object, ...], most: int) -> str:
    if len(known) >= most:
        known.clear()
    text = known[fields] = "\x1f".join(_encoded(fields))
    return text
