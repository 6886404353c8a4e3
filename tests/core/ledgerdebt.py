"""Debts read off the occupancy ledger, as an oracle: the same bits as the state has that lived through the events.

The ledger cuts an interval at every change of phase; an account's charge changes only where the holder, the booking or
the charged units of a lane do. Intervals that continue each other are joined before they count.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from scheduler.core.debt import HALF_LIFE_MS, Debt, Debts, RateBook, RateKey
from scheduler.core.model import AccountId, AllocationId, Booking, DeviceId, GpuClass, lineage
from scheduler.core.occupancy import Cursor, Interval, Occupant


@dataclass(frozen=True, slots=True)
class _Run:
    """A stretch in which one lane was charged to one burst gang; `to_ms` is None while it lasts."""

    allocation: AllocationId
    holder: AccountId
    gpu_class: GpuClass
    charged_units: int
    from_ms: int
    to_ms: int | None

    def continues(self, other: "_Run") -> bool:
        """Tells whether this is the same gang on the same lane, just after the other."""
        return (self.allocation, self.charged_units, self.from_ms) == (
            other.allocation,
            other.charged_units,
            other.to_ms,
        )


def debt_from_intervals(
    intervals: Iterable[Interval],
    cursors: Iterable[Cursor],
    rates: Iterable[tuple[int, Mapping[RateKey, int]]] = (),
    half_life_ms: int = HALF_LIFE_MS,
) -> dict[AccountId, Debt]:
    """Returns every account's debt from closed intervals in ledger order and the open lanes.

    `rates` are the changes of the list rates with their times, oldest first. Linear in the intervals; memory is linear
    in the lanes. Intervals that ended more than 128 half-lives ago may be left out.
    """
    book = RateBook()
    for at_ms, prices in rates:
        book.change(at_ms, prices)
    debts = Debts(half_life_ms)
    runs: dict[tuple[DeviceId, int], _Run] = {}
    for interval in intervals:
        run = _run(interval.occupant, interval.gpu_class, interval.from_ms, interval.to_ms)
        _join(debts, book, runs, (interval.device, interval.lane), run)
    for cursor in cursors:
        run = _run(cursor.occupant, cursor.gpu_class, cursor.since_ms, None)
        _join(debts, book, runs, (cursor.device, cursor.lane), run)
    for run in runs.values():
        _count(debts, book, run)
    return debts.values


def _run(occupant: Occupant, gpu_class: GpuClass, from_ms: int, to_ms: int | None) -> _Run | None:
    if occupant.booking is not Booking.BURST:
        return None
    assert occupant.allocation is not None, "what is booked has an allocation"
    assert occupant.holder is not None, "what is booked has a holder"
    return _Run(occupant.allocation, occupant.holder, gpu_class, occupant.gpu_eq_units, from_ms, to_ms)


def _join(
    debts: Debts,
    book: RateBook,
    runs: dict[tuple[DeviceId, int], _Run],
    lane: tuple[DeviceId, int],
    run: _Run | None,
) -> None:
    before = runs.pop(lane, None)
    if before is not None and run is not None and run.continues(before):
        run = _Run(run.allocation, run.holder, run.gpu_class, run.charged_units, before.from_ms, run.to_ms)
    elif before is not None:
        _count(debts, book, before)
    if run is not None:
        runs[lane] = run


def _count(debts: Debts, book: RateBook, run: _Run) -> None:
    path = lineage(run.holder)
    for at_ms, change in book.steps(run.gpu_class, Booking.BURST, run.charged_units, run.from_ms, run.to_ms):
        debts.step(path, at_ms, change)
