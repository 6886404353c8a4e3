"""What became known later about the partition, laid over it: reclassifications, and the pieces that both make.

A `Reclassification` says that a part of one closed interval was something else than was written then. It has the
interval's units, so whatever is laid over a device, its states still add up to its capacity. Of two that say something
about the same instant, the later one holds. Sums and exports read the pieces; the intervals below stay as they are.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from scheduler.core.model import DeviceId
from scheduler.core.occupancy import Evidence, Interval, Occupant


@dataclass(frozen=True, slots=True)
class Reclassification:
    """One row of the second table. `covers` is the sequence of the interval that it lies over, wholly inside."""

    sequence: int
    covers: int
    device: DeviceId
    lane: int
    from_ms: int
    to_ms: int
    occupant: Occupant
    evidence: Evidence


def laid_over(interval: Interval, rows: Sequence[Reclassification]) -> list[Interval]:
    """Returns the interval as it is known now: contiguous pieces in the order of time, each with the interval's names.

    `rows` cover this interval, in order of their sequences. A piece that ends earlier than was written ends by the
    evidence of what follows it.
    """
    pieces = [interval]
    for row in rows:
        assert interval.from_ms <= row.from_ms < row.to_ms <= interval.to_ms, "a reclassification lies inside"
        pieces = [part for piece in pieces for part in _cut(piece, row)]
    return _joined(pieces)


def _cut(piece: Interval, row: Reclassification) -> Iterable[Interval]:
    first_ms, last_ms = max(piece.from_ms, row.from_ms), min(piece.to_ms, row.to_ms)
    if first_ms >= last_ms:
        return (piece,)
    parts = [replace(piece, from_ms=first_ms, to_ms=last_ms, occupant=row.occupant, evidence=row.evidence)]
    if piece.from_ms < first_ms:
        parts.insert(0, replace(piece, to_ms=first_ms, evidence=row.evidence))
    if last_ms < piece.to_ms:
        parts.append(replace(piece, from_ms=last_ms))
    return parts


def _joined(pieces: Iterable[Interval]) -> list[Interval]:
    """Returns the pieces with neighbours of one occupant made one, so that how they came about leaves no trace."""
    whole: list[Interval] = []
    for piece in pieces:
        if whole and whole[-1].occupant == piece.occupant:
            whole[-1] = replace(whole[-1], to_ms=piece.to_ms, evidence=piece.evidence)
        else:
            whole.append(piece)
    return whole
