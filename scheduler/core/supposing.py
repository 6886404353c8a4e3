"""What if this job stood in line: a block in which it does, as if submitted just now, and nothing of it afterwards.

    with supposed(state, job, now_ms, instead_of=4711) as asked:
        made = plan(state, policy, now_ms)
        ... any(start.job == asked.id for start in made.starts)

For questions between two ticks by the thread that owns the state.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from scheduler.core.cycle import plan
from scheduler.core.events import JobEnded
from scheduler.core.model import EndReason, Job, JobId, JobState
from scheduler.core.policy import Policy
from scheduler.core.state import ClusterState

ASKED_ID = JobId(1 << 62)
"""Of a job that is only asked about: behind every other that was submitted at the same instant."""


@contextmanager
def supposed(state: ClusterState, job: Job, now_ms: int, instead_of: JobId | None = None) -> Iterator[Job]:
    """Puts the job into the line as submitted at `now_ms`, taking `instead_of` (pending or held) out of it meanwhile.

    Yields the job as it stands there. The state is as before when the block is left, however it is left, what ticks
    remember included. Raises KeyError for an `instead_of` that is not live.
    """
    shapes = len(state.waiting.shapes)
    old = None if instead_of is None else state.jobs[instead_of]
    promise = None if old is None else state.reservations.get(old.id)
    versions = state.promises_version, state.promised_version, state.planned_version
    crowded_out = dict(state.crowded_out)
    if old is not None:
        state.apply(_gone(now_ms, old.id))
    asked = replace(job, id=ASKED_ID, submitted_ms=now_ms, allocation=None)
    state.restore(asked)
    try:
        state.release_due(now_ms)
        yield state.jobs[ASKED_ID]
    finally:
        state.apply(_gone(now_ms, ASKED_ID))
        if old is not None:
            state.restore(old)
            state.release_due(now_ms)
        if promise is not None:
            state.reservations[promise.job] = promise
            state.future.promise(promise)
        # What was crowded out in between was so beside a job that is not there: it goes with the version it holds for.
        state.crowded_out = crowded_out
        state.promises_version, state.promised_version, state.planned_version = versions
        state.forget_shapes(shapes)


def would_start(state: ClusterState, policy: Policy, now_ms: int, job: Job, instead_of: JobId | None) -> bool:
    """Tells whether the job would start in the next tick, were it submitted now. Costs a tick."""
    with supposed(state, job, now_ms, instead_of) as asked:
        made = plan(state, policy, now_ms)
        return any(start.job == asked.id for start in made.starts)


def _gone(now_ms: int, job: JobId) -> JobEnded:
    return JobEnded(now_ms, job, JobState.CANCELLED, EndReason.CANCELLED)
