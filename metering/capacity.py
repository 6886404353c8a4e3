"""What every device was, per civil day: the rows of `capacity.csv`, which prove that nothing is lost or counted twice.

Per device and day the states' capacity units × milliseconds add up to the device's units × the time that the ledger
knows it for. Intervals of lanes are added up as they come, one device at a time.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date

from sqlalchemy.engine import Connection

from metering.core.civil import Day
from metering.core.who_pays import WHO_PAYS, Payer
from scheduler.core.model import AllocationId, Phase
from scheduler.core.occupancy import OccupancyState, Occupant
from scheduler.store.database import StoreCorrupt
from scheduler.store.ledger_rows import LedgerDevice, cursors, devices, has_run, known_of_device, life_start_ms

_ORDER = tuple(OccupancyState)


@dataclass(frozen=True, slots=True)
class StateOfDay:
    """How long a device was in one state on one day. `billed_unit_ms` is the part that tenants are charged for."""

    device: LedgerDevice
    day: date
    state: OccupancyState
    unit_ms: int
    billed_unit_ms: int
    state_ms: int
    """The same in whole milliseconds of the device; the states of a day add up to `capacity_ms`."""
    capacity_unit_ms: int
    capacity_ms: int


def capacity_of(connection: Connection, days: Sequence[Day]) -> Iterator[StateOfDay]:
    """Yields every device's states of each day, by device, day and state; states that did not occur are left out.

    `days` are contiguous. Open intervals count to the end of the last day, which the caller has found to be known.
    Raises StoreCorrupt when the states of a day do not add up to the device.
    """
    for device in devices(connection):
        yield from _days_of_device(connection, device, days)


def _days_of_device(connection: Connection, device: LedgerDevice, days: Sequence[Day]) -> Iterator[StateOfDay]:
    from_ms, to_ms = days[0].from_ms, days[-1].to_ms
    billing = _Billing(connection)
    held: dict[int, dict[OccupancyState, int]] = defaultdict(lambda: defaultdict(int))
    billed: dict[int, int] = defaultdict(int)
    life_end_ms = from_ms

    def add(occupant: Occupant, lane: int, first_ms: int, last_ms: int) -> None:
        is_billed = billing.is_billed(occupant, lane, first_ms)
        number = max(0, bisect_right(days, first_ms, key=lambda day: day.from_ms) - 1)
        while number < len(days) and days[number].from_ms < last_ms:
            inside_ms = min(last_ms, days[number].to_ms) - max(first_ms, days[number].from_ms)
            held[number][occupant.state] += occupant.units * inside_ms
            billed[number] += occupant.units * inside_ms if is_billed else 0
            number += 1

    for interval in known_of_device(connection, device.id, from_ms, to_ms):
        add(interval.occupant, interval.lane, interval.from_ms, interval.to_ms)
        life_end_ms = max(life_end_ms, min(interval.to_ms, to_ms))
    for cursor in cursors(connection, device.id):
        if cursor.since_ms < to_ms:
            add(cursor.occupant, cursor.lane, cursor.since_ms, to_ms)
            life_end_ms = to_ms
    start_ms = life_start_ms(connection, device.id)
    for number in sorted(held):
        life_ms = min(days[number].to_ms, life_end_ms) - max(days[number].from_ms, start_ms)
        yield from _states_of_day(device, days[number], held[number], billed[number], life_ms)


def _states_of_day(
    device: LedgerDevice, day: Day, held: dict[OccupancyState, int], billed_unit_ms: int, life_ms: int
) -> Iterator[StateOfDay]:
    capacity_unit_ms = device.units * life_ms
    if sum(held.values()) != capacity_unit_ms:
        raise StoreCorrupt(
            f"device {device.id} on {day.date}: its states add up to {sum(held.values())} unit-milliseconds, but it has"
            f" {capacity_unit_ms}; run the ledger's verification"
        )
    whole = _whole_ms({state: held[state] for state in _ORDER if held.get(state)}, device.units, life_ms)
    for state, state_ms in whole.items():
        part = billed_unit_ms if state is OccupancyState.ALLOCATED else 0
        yield StateOfDay(device, day.date, state, held[state], part, state_ms, capacity_unit_ms, life_ms)


def _whole_ms(held: dict[OccupancyState, int], units: int, life_ms: int) -> dict[OccupancyState, int]:
    """Returns the states in whole milliseconds that add up to `life_ms`: largest remainder, ties by state."""
    whole = {state: unit_ms // units for state, unit_ms in held.items()}
    by_rest = sorted(held, key=lambda state: (-(held[state] % units), _ORDER.index(state)))
    for state in by_rest[: life_ms - sum(whole.values())]:
        whole[state] += 1
    return whole


class _Billing:
    """Tells whether a tenant is charged for an interval; a device's intervals come in the order of time."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._running: dict[int, AllocationId] = {}
        """What ran last on each lane of the device."""

    def is_billed(self, occupant: Occupant, lane: int, first_ms: int) -> bool:
        phase, allocation = occupant.phase, occupant.allocation
        if phase is None or allocation is None or WHO_PAYS.by_phase[phase] is not Payer.TENANT:
            return False
        if phase is Phase.RUNNING:
            self._running[lane] = allocation
            return True
        return self._running.get(lane) == allocation or has_run(self._connection, allocation, first_ms)
