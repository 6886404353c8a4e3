"""When a waiting job is likely to start: read off the shadow schedule, with the assumption that it rests on.

The late estimate takes every time limit to be used up and every job ahead in the order to be promised a start before
it; the likely one shortens that by what gangs of the class used of their limits lately. Neither is a promise: only a
`Reservation` is.
"""

from dataclasses import dataclass, replace

from scheduler.core.cycle import plan
from scheduler.core.model import JobId, JobState
from scheduler.core.policy import Backfill, Policy
from scheduler.core.state import ClusterState

MOST_AHEAD = 500
"""Jobs in line that are laid into the schedule for one answer: some tens of milliseconds. What stands further back gets
no estimate, for so long a queue changes before its end is reached."""


@dataclass(frozen=True, slots=True)
class StartEstimate:
    """When a job would start. `late_ms` (p90) goes by limits, `likely_ms` (p50) by what jobs used of them lately."""

    likely_ms: int
    late_ms: int
    used_permille: int
    """The assumption behind the likely one: the part of their limits that gangs of the class used, in thousandths."""
    is_promised: bool
    """True when `late_ms` is promised: no backfill can make it later."""


def estimate_start(state: ClusterState, policy: Policy, now_ms: int, job_id: JobId) -> StartEstimate | None:
    """Returns when a pending job would start; None for one that is stopped by more than others, or far back in line.

    The state is as before. Raises KeyError for a job that is not live. Costs a tick and a search for each job ahead.
    """
    job = state.jobs[job_id]
    if job.state is not JobState.PENDING:
        return None
    known = state.reservations.get(job_id)
    if known is not None:
        gpu_class, late_ms = known.gpu_class, known.start_ms
    else:
        asked = replace(policy, backfill=Backfill.CONSERVATIVE, most_promises=MOST_AHEAD)
        made = plan(state, asked, now_ms)
        start = next((each for each in made.starts if each.job == job_id), None)
        found = next((each for each in made.reservations if each.job == job_id), None)
        if start is not None:
            gpu_class, late_ms = start.gpu_class, now_ms
        elif found is not None:
            gpu_class, late_ms = found.gpu_class, found.start_ms
        else:
            return None
    used_permille = state.used_permille.get(gpu_class, 1000)
    late_ms = max(now_ms, late_ms)
    likely_ms = now_ms + (late_ms - now_ms) * used_permille // 1000
    return StartEstimate(likely_ms, late_ms, used_permille, known is not None)
