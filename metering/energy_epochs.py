"""A GPU's energy by driver epoch: each time the driver is loaded anew, its counter begins at nothing.

A window lies in one epoch, and says when it begins one (`metering.windows`), so what a stretch of time used is the sum
of its epochs, none of them negative. Between the last sample before a restart and the restart nobody read the counter:
that is the part of a restart's sampling interval that is not told.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from metering.ledger import overlapping, sum_windows
from metering.tables import GPU_WINDOW
from scheduler.core.model import DeviceId
from scheduler.store.database import chunks


@dataclass(frozen=True, slots=True)
class EnergyEpoch:
    """What a GPU used between two restarts of its counter, or between one and an edge of the time asked for."""

    device: DeviceId
    from_ms: int
    to_ms: int
    millijoules: int
    is_restart: bool
    """Its counter began anew where it begins; the first of those asked for began before."""


def energy_epochs(
    connection: Connection, devices: Sequence[DeviceId], from_ms: int, to_ms: int
) -> Iterator[EnergyEpoch]:
    """Yields the epochs of each GPU whose counter restarted in `[from_ms, to_ms)`, in their order; none of others."""
    begins: dict[DeviceId, list[int]] = {}
    for part in chunks(devices):
        query = (
            sa.select(GPU_WINDOW.c.device, GPU_WINDOW.c.from_ms)
            .where(GPU_WINDOW.c.counter_resets > 0, *overlapping(part, from_ms, to_ms))
            .order_by(GPU_WINDOW.c.device, GPU_WINDOW.c.from_ms)
        )
        for device, at_ms in connection.execute(query):
            begins.setdefault(DeviceId(device), []).append(at_ms)
    for device, restarts in begins.items():
        for first, last in pairwise([from_ms, *(max(at_ms, from_ms) for at_ms in restarts), to_ms]):
            if first < last:
                used = sum_windows(connection, [device], first, last).energy_millijoules
                yield EnergyEpoch(device, first, last, used, first in restarts)
