"""Which job state may follow which, and which states a job ends in. Nothing else in the project knows.

    pending ──► starting ──► running ──► completed | failed | timeout | cancelled
     │   ▲         │  ▲         │
    held ┘         └──┴─────────┴──► stopping ──► cancelled | timeout | failed | completed
     └► cancelled                        │
                                         └──► pending (requeued or preempted)

A job that is requeued, preempted or retried is pending again and gets a new allocation later; it may also come back
held. `held` is entered from `pending` only: what runs is stopped, not held.
"""

from collections.abc import Mapping

from scheduler.core.model import JobId, JobState

_ENDS = frozenset({JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED, JobState.TIMEOUT})

FOLLOWS: Mapping[JobState, frozenset[JobState]] = {
    JobState.PENDING: frozenset({JobState.HELD, JobState.STARTING, JobState.CANCELLED, JobState.FAILED}),
    JobState.HELD: frozenset({JobState.PENDING, JobState.CANCELLED, JobState.FAILED}),
    JobState.STARTING: frozenset({JobState.RUNNING, JobState.STOPPING, JobState.PENDING}) | _ENDS,
    JobState.RUNNING: frozenset({JobState.STOPPING, JobState.PENDING}) | _ENDS,
    JobState.STOPPING: frozenset({JobState.PENDING, JobState.HELD}) | _ENDS,
    JobState.COMPLETED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
    JobState.TIMEOUT: frozenset(),
}
"""For each state, the states that may follow it."""

WAITING = frozenset({JobState.PENDING, JobState.HELD})
ACTIVE = frozenset({JobState.STARTING, JobState.RUNNING, JobState.STOPPING})
ENDS = _ENDS


class IllegalTransition(ValueError):
    """An event asked for a state that may not follow the present one. Carries the job's id and both states."""

    def __init__(self, job: JobId, old: JobState, new: JobState) -> None:
        super().__init__(f"job {job} is {old} and cannot become {new}")
        self.job = job
        self.old = old
        self.new = new


def check_transition(job: JobId, old: JobState, new: JobState) -> None:
    """Raises IllegalTransition unless `new` may follow `old`."""
    if new not in FOLLOWS[old]:
        raise IllegalTransition(job, old, new)
