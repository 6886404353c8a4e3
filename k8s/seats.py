"""Who sits at the terminals of `run --pty` jobs: one at each, and a job at whose terminal nobody sits is not kept.

The program waits for its first viewer: the container's shell begins it once a file says that somebody has come, and
ends by itself when nobody does. Later on it is ended by whoever asks `deserted`. Kept in memory: a daemon that takes
over gives everybody the time to come back.
"""

import threading
from collections.abc import Callable, Sequence

from k8s.inside import Inside
from k8s.pods import Pod
from scheduler.clock import Clock
from scheduler.core.model import AllocationId
from scheduler.executor import Entered, EntryRefused

PATIENCE_SECONDS = 60
"""As for jobs of this machine: enough for a restart of the daemon, short enough that a closed laptop does not keep GPUs
for the night."""
DESERTED = f"nobody sat at its terminal for {PATIENCE_SECONDS} s"
_SEAT = "/dev/shm/.turnstile-seat"  # noqa: S108 -- inside the container, where every job of ours has a file system
_WAIT = (
    f'n=0; while [ ! -e {_SEAT} ]; do n=$((n+1)); [ "$n" -gt {PATIENCE_SECONDS * 5} ] && exit 1; sleep 0.2; done; '
    'exec "$@"'
)


def awaiting(argv: Sequence[str]) -> list[str]:
    """Returns the command of a container that runs `argv` once somebody sits at its terminal."""
    return ["/bin/sh", "-c", _WAIT, "sh", *argv]


class Seats:
    """The terminals. From any thread."""

    def __init__(self, inside: Inside, clock: Clock, ring: Callable[[], None]) -> None:
        self._inside = inside
        self._clock = clock
        self._ring = ring
        self._lock = threading.Lock()
        self._taken: set[AllocationId] = set()
        self._left_ms: dict[AllocationId, int] = {}

    def take(self, allocation: AllocationId, pod: Pod, size: tuple[int, int]) -> Entered:
        """Sits down, and lets the program begin if it waits. Raises EntryRefused."""
        with self._lock:
            if allocation in self._taken:
                raise EntryRefused("somebody sits at this job's terminal already")
            self._taken.add(allocation)
        try:
            entered = self._inside.sit_down(pod, size, lambda: self._leave(allocation))
        except EntryRefused:
            self._leave(allocation)
            raise
        begun = self._inside.run(pod, ["/bin/sh", "-c", f": > {_SEAT}"])
        if begun is None or begun.exit_code != 0:
            entered.close()
            raise EntryRefused(f"its program does not begin: {'' if begun is None else begun.message}")
        return entered

    def deserted(self, allocation: AllocationId) -> bool:
        """Tells whether nobody has sat there for too long; the time begins with the first question."""
        now_ms = self._clock.now_ms()
        with self._lock:
            if allocation in self._taken:
                return False
            return now_ms - self._left_ms.setdefault(allocation, now_ms) >= PATIENCE_SECONDS * 1000

    def forget(self, allocation: AllocationId) -> None:
        """Says that the job is over."""
        with self._lock:
            self._left_ms.pop(allocation, None)
            self._taken.discard(allocation)

    def _leave(self, allocation: AllocationId) -> None:
        with self._lock:
            self._taken.discard(allocation)
            self._left_ms[allocation] = self._clock.now_ms()
        self._ring()
