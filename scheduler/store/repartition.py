"""GPUs that are cut into MIG instances and made whole again: where lives of devices end and begin with that.

A device that is gone is `unavailable`, for as long as it takes: a GPU that fell off its bus is still the centre's. What
was partitioned otherwise is not gone, it is other devices now, and must not be counted beside them. So a whole GPU that
is cut ends its life, and so does an instance that its machine does not list any more; `device_end` says when, and each
begins anew should it come back. What no instance holds of a cut GPU is a device of the ledger's own, which nobody can
hold, `unavailable(mig_remainder)`: then the parts of a GPU are the GPU at every instant.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from scheduler.core.model import GPU_UNITS, DeviceHealth, DeviceId, GpuClass
from scheduler.core.occupancy import Evidence, OccupancyState, Occupant
from scheduler.executor import NodeInventory
from scheduler.store.ledger_rows import cursors
from scheduler.store.ledger_tables import DEVICE_CURSOR, DEVICE_END, OCCUPANCY
from scheduler.store.tables import DEVICE
from scheduler.store.transaction import Transaction

REMAINDER_CAUSE = "mig_remainder"
_REMAINDER = "/mig-remainder/"
_GONE = (
    sa.select(DEVICE.c.id, DEVICE.c.node, DEVICE.c.gpu_class, DEVICE.c.units)
    .where(
        DEVICE.c.removed_ms.is_not(None),
        sa.exists().where(DEVICE_CURSOR.c.device == DEVICE.c.id),
    )
    .order_by(DEVICE.c.id)
)


@dataclass(frozen=True, slots=True)
class _Remainder:
    """What no instance holds of a cut GPU."""

    id: DeviceId
    node: str
    gpu_class: GpuClass
    units: int


def is_remainder(device: str) -> bool:
    """Tells whether a device of the ledger is what no instance holds of a GPU."""
    return _REMAINDER in device


def repartition(tx: Transaction, nodes: Iterable[NodeInventory], evidence: Evidence) -> None:
    """Ends what is partitioned otherwise by now, and begins what is left over; devices that came are there already."""
    listed = tuple(nodes)
    machines = {_machine(each.node.name, each.node.gpu_class) for each in listed}
    cut = {gpu.id for each in listed for gpu in each.cut_gpus}
    left = {each.id: each for each in _remainders(listed)}
    gone = tx.connection.execute(_GONE).all()
    lanes = tx.lanes()
    open_ = {row.id for row in gone}
    ending = [
        DeviceId(row.id)
        for row in gone
        if row.id in cut
        or (
            (row.units < GPU_UNITS or is_remainder(row.id))
            and row.id not in left
            and _machine(row.node, row.gpu_class) in machines
        )
    ]
    beginning = [each for id_, each in left.items() if id_ not in open_]
    if not ending and not beginning:
        return
    lanes.load([*ending, *(each.id for each in beginning)])
    for device in ending:
        lanes.end_device(device, tx.now_ms, "repartitioned", evidence)
    for each in beginning:
        _know(tx, each)
        rest = Occupant(OccupancyState.UNAVAILABLE, each.units, REMAINDER_CAUSE)
        lanes.open_device(each.id, each.gpu_class, tx.now_ms, rest)
    lanes.flush()


def _machine(node: str, gpu_class: str) -> str:
    """Returns the machine of a node: one with GPUs of several classes is a node for each, named `machine.class`."""
    return node.removesuffix(f".{gpu_class.lower()}")


def _remainders(nodes: Iterable[NodeInventory]) -> Iterator[_Remainder]:
    for each in nodes:
        for gpu in each.cut_gpus:
            if gpu.left_units:
                id_ = DeviceId(f"{gpu.id}{_REMAINDER}{gpu.left_units}")
                yield _Remainder(id_, each.node.name, gpu.gpu_class, gpu.left_units)


def _know(tx: Transaction, remainder: _Remainder) -> None:
    """Has the ledger know a remainder as a device; the scheduler never sees it."""
    there = sa.select(DEVICE.c.id).where(DEVICE.c.id == remainder.id)
    if tx.connection.execute(there).first() is not None:
        return
    values = {
        "id": remainder.id,
        "node": remainder.node,
        "position": 0,
        "gpu_class": remainder.gpu_class,
        "units": remainder.units,
        "health": DeviceHealth.FAILED.value,
        "reason": REMAINDER_CAUSE,
        "is_foreign": False,
        "first_seen_ms": tx.now_ms,
        "removed_ms": tx.now_ms,
    }
    tx.connection.execute(sa.insert(DEVICE).values(values))


Gap = tuple[int, int | None]
"""When a device was not there: from the end of its life to where it began anew, None while it has not."""


def device_gaps(connection: Connection) -> dict[DeviceId, tuple[Gap, ...]]:
    """Returns when devices were not there, each device's gaps in order and apart from each other."""
    ends: dict[DeviceId, list[int]] = {}
    query = sa.select(DEVICE_END.c.device, DEVICE_END.c.at_ms).order_by(DEVICE_END.c.device, DEVICE_END.c.at_ms)
    for device, at_ms in connection.execute(query):
        ends.setdefault(DeviceId(device), []).append(at_ms)
    return {device: tuple(_gaps(connection, device, at)) for device, at in ends.items()}


def _gaps(connection: Connection, device: DeviceId, ends: Iterable[int]) -> Iterator[Gap]:
    since_ms = next((each.since_ms for each in cursors(connection, device) if each.lane == 0), None)
    until_ms: int | None = -1
    for end_ms in ends:
        if until_ms is None or end_ms < until_ms:
            continue  # it was back for no time, and is in the gap before
        follows = sa.select(sa.func.min(OCCUPANCY.c.from_ms)).where(
            OCCUPANCY.c.device == device, OCCUPANCY.c.lane == 0, OCCUPANCY.c.from_ms >= end_ms
        )
        until_ms = connection.execute(follows).scalar()
        if until_ms is None:
            until_ms = since_ms
        if until_ms is None or until_ms > end_ms:
            yield end_ms, until_ms


def absent_ms(gaps: Iterable[Gap], from_ms: int, to_ms: int) -> int:
    """Returns how much of `[from_ms, to_ms)` lies in gaps."""
    inside = ((max(start, from_ms), to_ms if end is None else min(end, to_ms)) for start, end in gaps)
    return sum(max(0, end - start) for start, end in inside)
