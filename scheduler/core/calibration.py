"""How good start estimates were: the last ones of each pool against what then happened, and what that says of the next.

An estimate is kept as the wait that it foretold and the wait that came. The median of their differences is what people
are told. The late estimate of the next job is the foretold wait times the ratio that nine of ten past waits stayed
below: it holds nine times of ten as long as the pool goes on as it did, whatever made the estimates wrong.
"""

from collections import deque
from dataclasses import dataclass, replace

from scheduler.core.estimate import StartEstimate
from scheduler.core.model import PoolName

KEPT = 200
"""Estimates of a pool that are remembered: a day's worth in a busy pool, and enough for a steady ninth decile."""
LEAST = 20
"""With fewer, the late estimate goes by time limits: a ninth decile of less is one or two jobs' luck."""
SHORTEST_MS = 60_000
"""A foretold wait counts as a minute at least, or a job that was to start at once would make any ratio of it."""


@dataclass(frozen=True, slots=True)
class TrackRecord:
    """What the last estimates of a pool were worth. `late_permille` is None while there are too few."""

    count: int
    median_error_ms: int
    late_permille: int | None
    """The ninth decile of came / foretold, in thousandths."""


@dataclass(frozen=True, slots=True)
class Measured:
    """An estimate that came to a start: the wait that it foretold and the one that came, both from when it was made."""

    pool: PoolName
    foretold_ms: int
    came_ms: int


class PastEstimates:
    """The last estimates of each pool that came to a start."""

    def __init__(self) -> None:
        self._waits: dict[PoolName, deque[tuple[int, int]]] = {}

    def add(self, measured: Measured) -> None:
        """Takes in the latest."""
        waits = self._waits.setdefault(measured.pool, deque(maxlen=KEPT))
        waits.append((max(0, measured.foretold_ms), max(0, measured.came_ms)))

    def record(self, pool: PoolName) -> TrackRecord | None:
        """Returns what the pool's estimates were worth; None before the first."""
        waits = self._waits.get(pool)
        if not waits:
            return None
        errors = sorted(abs(came - foretold) for foretold, came in waits)
        ratios = sorted(1000 * came // max(foretold, SHORTEST_MS) for foretold, came in waits)
        late = ratios[_ninth_decile(len(ratios))] if len(ratios) >= LEAST else None
        return TrackRecord(len(errors), errors[len(errors) // 2], late)


def _ninth_decile(count: int) -> int:
    """Returns the place below or at which nine of ten lie, the next one to come counted (split conformal)."""
    return min(count - 1, -(-9 * (count + 1) // 10) - 1)


def calibrated(estimate: StartEstimate, record: TrackRecord | None, now_ms: int) -> StartEstimate:
    """Returns the estimate with the late time that past errors make likely; a promise is never put off by it."""
    if record is None or record.late_permille is None or estimate.likely_ms <= now_ms:
        return estimate
    late_ms = now_ms + max(estimate.likely_ms - now_ms, SHORTEST_MS) * record.late_permille // 1000
    if estimate.is_promised:
        late_ms = min(late_ms, estimate.late_ms)
    return replace(estimate, late_ms=max(late_ms, estimate.likely_ms), is_measured=True)
