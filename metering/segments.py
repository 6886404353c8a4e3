"""The billed segments of one allocation of the ledger: the short way for plain ones, the long way for all others."""

from collections.abc import Iterator

from metering.core.usage import Holding, Segment, UnevenSegment, holding_of, open_holding_of, segments_of
from metering.plain_gangs import plain_gang
from scheduler.store.database import StoreCorrupt
from scheduler.store.ledger_allocations import LedgerAllocation


def segments_in(allocation: LedgerAllocation, to_ms: int) -> list[Segment]:
    """Returns an allocation's billed segments, what is still open cut at `to_ms`. Raises StoreCorrupt."""
    gang = plain_gang(allocation)
    if gang is not None:
        return gang.segments
    try:
        return segments_of(_holdings(allocation, to_ms))
    except UnevenSegment as error:
        raise StoreCorrupt(f"{error}; run the ledger's verification") from error


def _holdings(allocation: LedgerAllocation, to_ms: int) -> Iterator[Holding]:
    closed = (holding_of(interval) for interval in allocation.intervals)
    still_open = (open_holding_of(cursor, to_ms) for cursor in allocation.cursors)
    yield from (holding for holding in (*closed, *still_open) if holding is not None)
