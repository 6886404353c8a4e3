"""Idle spells found again in the stored windows, so that a restarted daemon counts on from where they began.

Windows are read back in time in steps that double, and of each GPU only while it was idle: most have just worked, and
cost one look. A spell found so is the one that whoever watched all the time would know. GPUs that the ledger knows as
slots are found by whom they were seen with lately; where that is unknown their spells begin anew.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from metering.agent_store import agents
from metering.idle import IdleSpells
from metering.ledger import MOST_WINDOW_MS
from metering.samples import PPM_PER_PERCENT
from metering.tables import GPU_WINDOW
from metering.witness import ledger_devices
from scheduler.store.database import chunks


@dataclass(frozen=True, slots=True)
class _Stored:
    """A window as far as idleness asks, under the name that the ledger has for its GPU."""

    uuid: str
    from_ms: int
    to_ms: int
    coverage_ratio: float
    utilization_max_percent: int | None


def recall(connection: Connection, spells: IdleSpells, since_ms: Mapping[str, int], now_ms: int) -> None:
    """Has `spells`, which know nothing yet, know the present spells of devices, each as far back as it matters.

    `since_ms` says by device how far that is: since when its job runs.
    """
    measured_as = _measured_as(connection, since_ms, now_ms)
    until_ms, step_ms = now_ms + 1, MOST_WINDOW_MS // 4
    while measured_as:
        from_ms = until_ms - step_ms
        for window in _before(connection, measured_as, from_ms, until_ms):
            if window.uuid in measured_as and not spells.look_back(window):
                del measured_as[window.uuid]
        # No older window reaches a spell that began later than this after what was read.
        reach_ms = from_ms + MOST_WINDOW_MS + spells.gap_ms
        began = {device: spells.began_ms(device, now_ms) for device in measured_as}
        measured_as = {
            device: uuid for device, uuid in measured_as.items() if since_ms[device] < began[device] <= reach_ms
        }
        until_ms, step_ms = from_ms, 2 * step_ms


def _measured_as(connection: Connection, devices: Mapping[str, int], now_ms: int) -> dict[str, str]:
    """Returns the name that windows of each device are stored under: its own, or that of the GPU behind a slot."""
    gpus = [(agent.node, device.uuid) for agent in agents(connection) for device in agent.devices]
    behind = {device: uuid for uuid, device in ledger_devices(connection, gpus, now_ms).items()}
    return {device: behind.get(device, device) for device in sorted(devices)}


def _before(connection: Connection, measured_as: Mapping[str, str], from_ms: int, until_ms: int) -> Iterator[_Stored]:
    """Yields the windows that began in `[from_ms, until_ms)`, the latest of each device first."""
    names = {uuid: device for device, uuid in measured_as.items()}
    stored = (
        *(GPU_WINDOW.c.device, GPU_WINDOW.c.from_ms, GPU_WINDOW.c.to_ms),
        *(GPU_WINDOW.c.coverage_ms, GPU_WINDOW.c.utilization_max_ppm),
    )
    span = (GPU_WINDOW.c.from_ms >= from_ms, GPU_WINDOW.c.from_ms < until_ms)
    for part in chunks(sorted(names)):
        statement = sa.select(*stored).where(GPU_WINDOW.c.device.in_(part), *span)
        latest_first = statement.order_by(GPU_WINDOW.c.device, GPU_WINDOW.c.from_ms.desc())
        for row in connection.execute(latest_first).all():
            uuid, began_ms, to_ms, coverage_ms, highest_ppm = row
            highest = None if highest_ppm is None else highest_ppm // PPM_PER_PERCENT
            yield _Stored(names[uuid], began_ms, to_ms, coverage_ms / (to_ms - began_ms), highest)
