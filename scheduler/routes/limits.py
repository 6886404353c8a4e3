"""Rates and counts that a client may not exceed: token buckets, and slots for answers that stay open."""

from collections.abc import Iterator
from contextlib import contextmanager

from scheduler.refusal import RefusalCode, Refused

_MOST_BUCKETS = 20_000


class TooFast(Refused):
    """A rate limit was reached; trying again makes sense after `retry_after_seconds`."""

    def __init__(self, message: str, retry_after_seconds: int) -> None:
        super().__init__(RefusalCode.TOO_MANY, message)
        self.retry_after_seconds = retry_after_seconds


class Rates:
    """A token bucket for each key, refilled by time. Bounded: when there are too many keys, the full ones go first."""

    def __init__(self, per_second: float, burst: int) -> None:
        self._per_second = per_second
        self._burst = float(burst)
        self._buckets: dict[str, tuple[float, int]] = {}

    def wait_seconds(self, key: str, now_ms: int) -> float:
        """Returns how long until the key has one request to spend; 0 when it has one now."""
        left = self._left(key, now_ms)
        return 0.0 if left >= 1 else (1 - left) / self._per_second

    def spend(self, key: str, now_ms: int) -> bool:
        """Takes one request from the key's bucket; False when it is empty."""
        left = self._left(key, now_ms)
        if left < 1:
            return False
        if len(self._buckets) >= _MOST_BUCKETS and key not in self._buckets:
            self._shed(now_ms)
        self._buckets[key] = (left - 1, now_ms)
        return True

    def _left(self, key: str, now_ms: int) -> float:
        found = self._buckets.get(key)
        if found is None:
            return self._burst
        left, at_ms = found
        return min(self._burst, left + max(0, now_ms - at_ms) * self._per_second / 1000)

    def _shed(self, now_ms: int) -> None:
        """Drops full buckets, which say nothing; all of them when none is full."""
        kept = {key: found for key, found in self._buckets.items() if self._left(key, now_ms) < self._burst}
        self._buckets = kept if len(kept) < _MOST_BUCKETS else {}


class Slots:
    """How many answers may stay open, in all and for each key. Belongs to one event loop."""

    def __init__(self, most: int, most_per_key: int, what: str) -> None:
        self._most = most
        self._most_per_key = most_per_key
        self._what = what
        self._taken: dict[str, int] = {}
        self._all = 0

    def check(self, key: str) -> None:
        """Raises Refused (`too_many`) when the key, or all keys together, have as many open as they may."""
        if self._taken.get(key, 0) >= self._most_per_key:
            raise TooFast(f"this token has {self._most_per_key} {self._what} open; close one first", 5)
        if self._all >= self._most:
            raise TooFast(f"the daemon has {self._most} {self._what} open, the most it allows", 5)

    @contextmanager
    def counted(self, key: str) -> Iterator[None]:
        """Counts the body as one that is open. `check` goes before, where a refusal can still be answered."""
        self._taken[key] = self._taken.get(key, 0) + 1
        self._all += 1
        try:
            yield
        finally:
            self._all -= 1
            self._taken[key] -= 1
            if not self._taken[key]:
                del self._taken[key]
