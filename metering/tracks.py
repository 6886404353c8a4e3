"""The partition of plain devices, proved while the chain is read: devices that were always held whole, in one lane.

The chain has a lane's intervals in the order of time, so a device that is whole is proved by its intervals touching
each other. A device of shares, or one with anything that is not as it should be, is not proved here: whoever verifies
lays its lanes side by side instead (`metering.verify`), which also says what is wrong.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scheduler.core.occupancy import Cursor
from scheduler.store.ledger_rows import LedgerDevice

_DEVICE, _LANE, _FROM, _TO, _STATE, _UNITS = 1, 2, 4, 5, 6, 7
"""Places in a row of `codec.INTERVAL_COLUMNS`."""


@dataclass(slots=True)
class Track:
    """A device, so far; `is_plain` ends with the first row that is not the whole device from where the last ended."""

    start_ms: int
    end_ms: int
    units: int
    is_plain: bool = True
    state_ms: dict[str, int] = field(default_factory=dict)


class Tracks:
    """Follows every device along the chain. Memory grows with devices, not with intervals."""

    def __init__(self) -> None:
        self.by_device: dict[str, Track] = {}

    def follow(self, row: Any) -> None:
        """Takes the next row of the chain, a tuple in the order of INTERVAL_COLUMNS."""
        device, from_ms, to_ms = row[_DEVICE], row[_FROM], row[_TO]
        track = self.by_device.get(device)
        if track is None:
            track = self.by_device[device] = Track(from_ms, from_ms, row[_UNITS])
        if not track.is_plain:
            return
        is_whole = row[_LANE] == 0 and row[_UNITS] == track.units
        if not (is_whole and to_ms.__class__ is int and from_ms == track.end_ms < to_ms):
            track.is_plain = False
            return
        track.end_ms = to_ms
        state = row[_STATE]
        track.state_ms[state] = track.state_ms.get(state, 0) + to_ms - from_ms

    def append(self, later: "Tracks") -> None:
        """Takes what was followed along the segment of the chain that comes next."""
        for device, following in later.by_device.items():
            track = self.by_device.get(device)
            if track is None:
                self.by_device[device] = following
                continue
            is_next = following.is_plain and following.units == track.units and following.start_ms == track.end_ms
            if not (track.is_plain and is_next):
                track.is_plain = False
                continue
            track.end_ms = following.end_ms
            for state, held_ms in following.state_ms.items():
                track.state_ms[state] = track.state_ms.get(state, 0) + held_ms

    def proved(self, device: LedgerDevice, open_lanes: Sequence[Cursor], until_ms: int) -> Mapping[str, int] | None:
        """Returns the unit-milliseconds of each state of a plain device, which add up to its life; None if it is none.

        The device is whole, known from when it was first seen, and its one open lane, if it has one, begins where the
        last interval ended and has begun by `until_ms`.
        """
        track = self.by_device.get(device.id)
        if track is None or not track.is_plain or track.units != device.units:
            return None
        if track.start_ms != device.first_seen_ms or len(open_lanes) > 1:
            return None
        state_ms = dict(track.state_ms)
        for cursor in open_lanes:
            is_next = cursor.lane == 0 and track.end_ms == cursor.since_ms <= until_ms
            if not is_next or cursor.occupant.units != device.units:
                return None
            state = cursor.occupant.state.value
            state_ms[state] = state_ms.get(state, 0) + until_ms - cursor.since_ms
        return {state: held_ms * device.units for state, held_ms in state_ms.items()}
