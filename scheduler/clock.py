"""The only door to the machine's clocks. A clock is a value that is passed in; tests pass a ManualClock."""

import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Protocol

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


class Clock(Protocol):
    """Tells the time."""

    def now_ms(self) -> int:
        """Returns UTC milliseconds since 1970; never less than an earlier answer of the same clock."""
        ...


class LedgerClock:
    """A wall anchor plus monotonic time: follows the wall clock forwards, never backwards.

    Between calls the monotonic clock counts. When the wall clock is ahead of that, its value is taken (a suspended
    machine, an NTP step forward); when it is behind, time stands still at the last answer plus the monotonic elapse
    until the wall clock catches up. `floor_ms` is the latest time that the ledger already knows, so that a restart on a
    machine whose clock was set back still never writes an interval that runs backwards.
    """

    def __init__(self, floor_ms: int = 0) -> None:
        self._last_ms = max(floor_ms, time.time_ns() // 1_000_000)
        self._last_monotonic_ns = time.monotonic_ns()
        self._lock = threading.Lock()

    def now_ms(self) -> int:
        """Returns UTC milliseconds since 1970; never less than an earlier answer or the floor, in whatever thread."""
        with self._lock:
            return self._step()

    def _step(self) -> int:
        monotonic_ns = time.monotonic_ns()
        elapsed_ms = (monotonic_ns - self._last_monotonic_ns) // 1_000_000
        wall_ms = time.time_ns() // 1_000_000
        if wall_ms >= self._last_ms:
            self._last_ms = wall_ms
            self._last_monotonic_ns = monotonic_ns
        elif elapsed_ms > 0:
            # The wall clock went back. Ideal would be one true clock; monotonic time is the best there is until it
            # catches up, and a forward drift of a set-back's length is repaid by standing on the wall clock again then.
            self._last_ms += elapsed_ms
            self._last_monotonic_ns += elapsed_ms * 1_000_000
        return self._last_ms

    def raise_floor(self, floor_ms: int) -> None:
        """Makes sure that no later answer is less than `floor_ms`."""
        with self._lock:
            if floor_ms > self._last_ms:
                self._last_ms = floor_ms
                self._last_monotonic_ns = time.monotonic_ns()


class ManualClock:
    """A clock that moves only when told: for tests, replay and demonstrations in virtual time."""

    def __init__(self, start_ms: int = 1_790_000_000_000) -> None:
        self._now_ms = start_ms

    def now_ms(self) -> int:
        """Returns the time it was set to."""
        return self._now_ms

    def advance(self, *, milliseconds: int = 0, seconds: int = 0, minutes: int = 0, hours: int = 0) -> int:
        """Moves forward and returns the new time in UTC milliseconds."""
        step_ms = milliseconds + 1000 * (seconds + 60 * (minutes + 60 * hours))
        assert step_ms >= 0, "a ManualClock never moves back"
        self._now_ms += step_ms
        return self._now_ms

    def move_to(self, now_ms: int) -> None:
        """Sets the time, which must not be before the present one."""
        assert now_ms >= self._now_ms, "a ManualClock never moves back"
        self._now_ms = now_ms


def iso_utc(at_ms: int) -> str:
    """Returns an instant as RFC 3339 UTC with milliseconds, `2026-11-23T12:31:07.250Z`."""
    moment = datetime.fromtimestamp(at_ms // 1000, tz=UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{at_ms % 1000:03d}Z"


def parse_utc_ms(text: str) -> int:
    """Returns UTC milliseconds of an ISO 8601 time with an offset. Raises ValueError when it has none."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone; add Z or an offset such as +08:00")
    return (moment - _EPOCH) // _MILLISECOND
