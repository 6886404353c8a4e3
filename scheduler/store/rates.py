"""List rates and debts: what fairness keeps of prices, and what it reads back of burst use when a state is rebuilt.

Debts are never stored: they follow from the occupancy ledger and the history of rates, exactly and in any order, so the
state that a restart builds owes the same to the last bit (see `core.debt`). What ended more than 128 half-lives ago
weighs less than 2^-64 and is left out.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from scheduler.core.debt import RateKey
from scheduler.core.events import RatesChanged
from scheduler.core.model import AccountId, Booking, GpuClass
from scheduler.store.ledger_tables import OCCUPANCY, RATE_CHANGE
from scheduler.store.tables import ALLOCATION
from scheduler.store.transaction import Transaction

FORGOTTEN_HALF_LIVES = 128


@dataclass(frozen=True, slots=True)
class BurstUse:
    """Burst use that is over: units charged to an account over a time."""

    account: AccountId
    gpu_class: GpuClass
    charged_units: int
    from_ms: int
    to_ms: int


@dataclass(frozen=True, slots=True)
class ChangeRates:
    """Puts list rates in force from now on, unless they are already: micro-credits per GPU-second."""

    rates: Mapping[RateKey, int]

    def execute(self, tx: Transaction) -> bool:
        """Returns whether they were other than before."""
        body = {f"{gpu_class}/{booking.value}": rate for (gpu_class, booking), rate in sorted(self.rates.items())}
        last = tx.connection.execute(
            sa.select(RATE_CHANGE.c.rates).order_by(RATE_CHANGE.c.sequence.desc()).limit(1)
        ).scalar()
        if last == body or (last is None and not body):
            return False
        tx.connection.execute(sa.insert(RATE_CHANGE).values(at_ms=tx.now_ms, rates=body))
        tx.emit(RatesChanged(tx.now_ms, dict(self.rates)))
        return True


def rate_history(connection: Connection) -> tuple[RatesChanged, ...]:
    """Returns every change of the list rates, oldest first."""
    rows = connection.execute(sa.select(RATE_CHANGE.c.at_ms, RATE_CHANGE.c.rates).order_by(RATE_CHANGE.c.sequence))
    return tuple(RatesChanged(at_ms, {_key(name): rate for name, rate in body.items()}) for at_ms, body in rows)


def ended_burst_use(connection: Connection, since_ms: int) -> tuple[BurstUse, ...]:
    """Returns the burst use in the ledger that is over, as far as it ended after `since_ms`.

    That is all of gangs that ended, and of gangs that were promoted the time before; what a live burst gang holds is
    counted with the gang. Scans the ledger's rows of that time once.
    """
    still_burst = sa.select(ALLOCATION.c.id).where(
        ALLOCATION.c.ended_ms.is_(None), ALLOCATION.c.booking == Booking.BURST.value
    )
    lanes = (
        sa.select(
            OCCUPANCY.c.holder,
            OCCUPANCY.c.gpu_class,
            OCCUPANCY.c.gpu_eq_units,
            sa.func.min(OCCUPANCY.c.from_ms).label("from_ms"),
            sa.func.max(OCCUPANCY.c.to_ms).label("to_ms"),
        )
        .where(
            OCCUPANCY.c.booking == Booking.BURST.value,
            OCCUPANCY.c.to_ms > since_ms,
            OCCUPANCY.c.allocation_id.not_in(still_burst),
        )
        # A lane's rows of one allocation and segment follow each other without a gap, whatever their phases.
        .group_by(
            OCCUPANCY.c.allocation_id,
            OCCUPANCY.c.segment,
            OCCUPANCY.c.device,
            OCCUPANCY.c.lane,
            OCCUPANCY.c.holder,
            OCCUPANCY.c.gpu_class,
            OCCUPANCY.c.gpu_eq_units,
        )
        .subquery()
    )
    gangs = (
        sa.select(lanes.c.holder, lanes.c.gpu_class, sa.func.sum(lanes.c.gpu_eq_units), lanes.c.from_ms, lanes.c.to_ms)
        .group_by(lanes.c.holder, lanes.c.gpu_class, lanes.c.from_ms, lanes.c.to_ms)
        .order_by(lanes.c.from_ms, lanes.c.to_ms, lanes.c.holder, lanes.c.gpu_class)
    )
    return tuple(
        BurstUse(AccountId(holder), GpuClass(gpu_class), int(units), from_ms, to_ms)
        for holder, gpu_class, units, from_ms, to_ms in connection.execute(gangs)
    )


def _key(name: str) -> RateKey:
    gpu_class, _, booking = name.rpartition("/")
    return GpuClass(gpu_class), Booking(booking)
