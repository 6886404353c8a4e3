"""Carries out promotions: burst gangs that are held within their tenant's guarantee from now on."""

from collections.abc import Sequence
from dataclasses import replace

import sqlalchemy as sa

from scheduler.core.events import AllocationPromoted
from scheduler.core.model import AllocationId, Booking, Phase
from scheduler.core.occupancy import Evidence
from scheduler.core.plan import Promotion
from scheduler.store.columns import JsonObject
from scheduler.store.gangs import devices_of, lanes_of, load_live
from scheduler.store.tables import ALLOCATION
from scheduler.store.transaction import Transaction

_UPDATE = sa.update(ALLOCATION).where(ALLOCATION.c.id == sa.bindparam("at_id"))


def promote(tx: Transaction, promotions: Sequence[Promotion]) -> tuple[AllocationId, ...]:
    """Closes the interval of every device of each gang and opens the next under the new booking, in one transaction.

    Returns the gangs promoted; those that are gone, stop already, or are not burst any more are left as they are.
    """
    live = load_live(tx, [promotion.allocation for promotion in promotions])
    due = [
        (live[promotion.allocation], promotion.booking)
        for promotion in promotions
        if promotion.allocation in live
        and live[promotion.allocation].booking is Booking.BURST
        and live[promotion.allocation].phase is not Phase.STOPPING
    ]
    if not due:
        return ()
    lanes = tx.lanes()
    lanes.load(device for allocation, _ in due for device in devices_of(allocation))
    rows: list[JsonObject] = []
    for allocation, booking in due:
        segment = allocation.segment + 1
        for cursor in lanes_of(lanes, allocation):
            occupant = replace(cursor.occupant, booking=booking, segment=segment)
            lanes.move(cursor, occupant, tx.now_ms, Evidence.CONTROLLER)
        rows.append({"at_id": allocation.id, "booking": booking.value, "segment": segment})
        tx.emit(AllocationPromoted(tx.now_ms, allocation.id, booking, segment))
        tx.note(allocation.job, "promoted", tx.now_ms, booking=booking.value, allocation=allocation.id)
    tx.connection.execute(_UPDATE, rows)
    lanes.flush()
    return tuple(allocation.id for allocation, _ in due)
