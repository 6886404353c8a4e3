"""Start estimates that are remembered until their jobs start, so that their errors are known and told.

Belongs to the planner's thread; `record` may be called from any. Jobs are asked about in surveys, each one schedule for
the first waiting jobs of every class: what it costs does not grow with the queue, and surveys take a hundredth of the
planner's time at most. A job that started before a survey saw it waiting is not measured: nobody was told anything.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from threading import Lock

from scheduler.core.calibration import Measured, PastEstimates, TrackRecord
from scheduler.core.estimate import estimate_starts
from scheduler.core.model import JobId, PoolName
from scheduler.core.policy import Policy
from scheduler.core.state import ClusterState
from scheduler.observer import Observer

SURVEYED = 32
"""Waiting jobs of each class that one survey asks about: every job passes here on its way to the head of the line."""
MOST_REMEMBERED = 20_000
"""Estimates that are waited for; then the oldest are forgotten."""
SURVEY_SECONDS = 2.0
"""Between surveys at least: a job that waits longer than this is seen waiting."""
SHARE = 100
"""A survey is followed by so many times its own length without one."""


@dataclass(frozen=True, slots=True)
class _Foretold:
    made_ms: int
    start_ms: int


class Forecasts:
    """The first estimate of each waiting job that a survey met, and what became of those before."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._foretold: dict[JobId, _Foretold] = {}
        self._past = PastEstimates()
        self._lock = Lock()

    def survey(self, state: ClusterState, policy: Policy, now_ms: int) -> int:
        """Remembers an estimate for each job asked about that has none; returns how many are new."""
        if not state.waiting.of_shape:
            return 0
        before = len(self._foretold)
        for job_id, estimate in sorted(estimate_starts(state, policy, now_ms, SURVEYED).items()):
            # What would start now does so in the tick that comes; nobody is told to wait.
            if estimate.late_ms > now_ms:
                self._foretold.setdefault(job_id, _Foretold(now_ms, estimate.likely_ms))
        new = len(self._foretold) - before
        for job_id in list(self._foretold)[: max(0, len(self._foretold) - MOST_REMEMBERED)]:
            del self._foretold[job_id]
        return new

    def recall(self, past: Iterable[Measured]) -> None:
        """Takes in what earlier terms measured, oldest first; told to nobody again."""
        with self._lock:
            for each in past:
                self._past.add(each)

    def started(self, job_id: JobId, pool: PoolName, at_ms: int) -> Measured | None:
        """Measures the job's estimate against its start and returns that; None for a job that had no estimate."""
        foretold = self._foretold.pop(job_id, None)
        if foretold is None:
            return None
        self._observer.start_estimated(pool, abs(at_ms - foretold.start_ms) / 1000)
        measured = Measured(pool, foretold.start_ms - foretold.made_ms, at_ms - foretold.made_ms)
        with self._lock:
            self._past.add(measured)
        return measured

    def forget(self, job_id: JobId) -> None:
        """Drops the estimate of a job that ended, was held, or asks for something else now."""
        self._foretold.pop(job_id, None)

    def record(self, pool: PoolName) -> TrackRecord | None:
        """Returns what the last estimates of a pool were worth; None before the first."""
        with self._lock:
            return self._past.record(pool)
