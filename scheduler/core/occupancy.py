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
    # Length-prefixed, so that no two different rows share an encoding; None is told from the empty string.
    try:
        parts = ["-" if value is None else _LENGTHS[len(text := f"{value}")] + text for value in fields]
    except IndexError:  # a text longer than those that are written out
        parts = ["-" if value is None else f"{len(text := str(value))}:{text}" for value in fields]
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()


_LENGTHS = tuple(f"{length}:" for length in range(256))
"""Lengths before their texts, made once: they are written a score of times in each row."""
