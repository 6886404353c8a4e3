"""The rows of `capacity.csv`: each device's days by state, told by several processes from what was added up by one."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy.engine import Connection

from metering.capacity import Lived, StateOfDay, states_of
from metering.core.civil import Day
from metering.csv_files import CsvRows, Rows, harmless_name

CAPACITY_COLUMNS = (
    *("device_id", "node", "gpu_model", "gpu_units", "day", "state"),
    *("state_unit_ms", "billed_unit_ms", "state_ms", "capacity_unit_ms", "capacity_ms"),
)
DEVICES_AT_ONCE = 128
"""Devices that a process tells of at once: of a month, a twentieth of a second's work."""


@dataclass(frozen=True, slots=True)
class Told:
    """Rows of consecutive devices, and what they add up to."""

    rows: Rows
    unit_ms: int
    billed_unit_ms: int


@dataclass(frozen=True, slots=True)
class CapacityRows:
    """The work of telling devices' days."""

    days: tuple[Day, ...]

    def begin(self, _: Connection) -> Callable[[Sequence[Lived]], Told]:
        """Returns what tells of some devices. Raises StoreCorrupt when their states do not add up to them."""

        def tell(devices: Sequence[Lived]) -> Told:
            rows, unit_ms, billed_unit_ms = CsvRows(CAPACITY_COLUMNS), 0, 0
            for lived in devices:
                for state in states_of(lived, self.days):
                    rows.row(_cells(state))
                    unit_ms += state.unit_ms
                    billed_unit_ms += state.billed_unit_ms
            return Told(rows.take(), unit_ms, billed_unit_ms)

        return tell


def _cells(state: StateOfDay) -> list[str]:
    device = state.device
    numbers: Iterable[int] = (
        *(state.unit_ms, state.billed_unit_ms, state.state_ms),
        *(state.capacity_unit_ms, state.capacity_ms),
    )
    names = map(harmless_name, (device.id, device.node, device.gpu_class))
    return [*names, str(device.units), state.day.isoformat(), state.state.value, *map(str, numbers)]
