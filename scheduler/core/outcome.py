"""What becomes of a job when one of its allocations ends: a pure rule, used by the store and by replay alike."""

from dataclasses import replace
from enum import StrEnum

from scheduler.core.lifecycle import check_transition
from scheduler.core.model import EndReason, Job, JobState
from scheduler.core.policy import Policy

_STATE_OF = {
    EndReason.CANCELLED: JobState.CANCELLED,
    EndReason.WALLTIME: JobState.TIMEOUT,
    EndReason.DEADLINE: JobState.TIMEOUT,
}
_LOST = frozenset({EndReason.NODE_LOST, EndReason.GPU_ERROR})
"""The centre's fault, as far as is known: the job waits again, at no cost to its retries, up to `most_attempts`."""
_SENT_BACK = frozenset({EndReason.PREEMPTED, EndReason.REQUEUED})
"""The centre's doing or an explicit request: the job waits again in its old place, however often that happens."""
RETRIED = frozenset({EndReason.EXIT_NONZERO, EndReason.OOM, EndReason.LAUNCH_FAILED, EndReason.IMAGE_PULL})
"""Failures of the job's own, which its retries are for."""


class Verdict(StrEnum):
    """Whether the job goes on."""

    ENDED = "ended"
    WAITS_AGAIN = "waits_again"


def after_end(
    job: Job, reason: EndReason | None, at_ms: int, policy: Policy, *, runs_once: bool = False
) -> tuple[Job, Verdict]:
    """Returns the job as it is after its allocation ended, and whether that was its end.

    `reason` is None for success. A job that `runs_once` is over whatever ended it: what it ran is not ours to make
    again. Raises IllegalTransition when the job is not active.
    """
    state = job.state
    changed: Job
    if runs_once:
        changed = job.ended_as(JobState.COMPLETED if reason is None else _STATE_OF.get(reason, JobState.FAILED))
    elif reason in _SENT_BACK or (reason in _LOST and job.attempt < policy.most_attempts):
        backs_off = reason in _LOST
        changed = replace(
            job,
            state=JobState.PENDING,
            allocation=None,
            begin_ms=at_ms + policy.backoff_ms(job.attempt) if backs_off else job.begin_ms,
            is_backing_off=backs_off,
        )
    elif _is_retried(job, reason) and job.attempt < policy.most_attempts:
        changed = replace(
            job,
            state=JobState.PENDING,
            allocation=None,
            retries_left=job.retries_left - 1,
            begin_ms=at_ms + policy.backoff_ms(job.attempt),
            is_backing_off=True,
        )
    else:
        end = JobState.COMPLETED if reason is None else _STATE_OF.get(reason, JobState.FAILED)
        changed = job.ended_as(end)
    check_transition(job.id, state, changed.state)
    return changed, Verdict.WAITS_AGAIN if changed.state is JobState.PENDING else Verdict.ENDED


def _is_retried(job: Job, reason: EndReason | None) -> bool:
    return reason in RETRIED and job.retries_left > 0 and (not job.retry_on or reason in job.retry_on)
