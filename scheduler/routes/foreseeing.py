"""What is asked of the planner about a job that waits or may be submitted: why, until when, what would start it sooner.

Each question runs between two ticks. A search for what would help is many questions, with ticks between them, and only
one search runs at a time: however many people ask, the planner plans most of the time for all.
"""

import asyncio
from dataclasses import dataclass, replace

from scheduler.core.calibration import TrackRecord, calibrated
from scheduler.core.cycle import plan
from scheduler.core.estimate import StartEstimate, estimate_start
from scheduler.core.explain import Explanation, explain
from scheduler.core.lifecycle import WAITING
from scheduler.core.model import Account, Job, JobId, JobState, lineage
from scheduler.core.plan import Plan
from scheduler.core.policy import Policy
from scheduler.core.reasons import ReasonCode
from scheduler.core.shares import Shares
from scheduler.core.sooner import Room, room_for, search
from scheduler.core.state import ClusterState
from scheduler.core.supposing import supposed, would_start
from scheduler.routes.door import Door
from scheduler.routes.knowing import Knowing
from scheduler.routes.quota import standing_answer
from scheduler.wire.problems import Json

_NO_CHANGE_HELPS = frozenset(
    {
        ReasonCode.SUSPENDED,
        ReasonCode.HELD_ADMIN,
        ReasonCode.HELD_USER,
        ReasonCode.DEPENDENCY,
        ReasonCode.BEGIN_TIME,
        ReasonCode.BACKOFF,
        ReasonCode.ARRAY_LIMIT,
        ReasonCode.PREEMPTING,
    }
)
"""What a job waits for that no other size, limit or class would end."""


@dataclass(frozen=True, slots=True)
class Foreseen:
    """Why a job waits, when it is likely to start, and what such estimates were worth in its pool."""

    explanation: Explanation
    estimate: StartEstimate | None = None
    record: TrackRecord | None = None
    ahead: tuple[Job, ...] = ()
    """The first of those ahead, whoever they belong to."""
    shares: tuple[Json, ...] = ()
    """What each account of the job's path may hold, holds and should hold of its classes, the tenant first."""
    project: Account | None = None
    """The job's own account, with the terms that order its jobs; None for a job that is not live."""


class Foreseeing:
    """Shared by the routes of one app. Belongs to one event loop."""

    def __init__(self, door: Door, knowing: Knowing) -> None:
        self._door = door
        self._knowing = knowing
        self._searching = asyncio.Semaphore(1)

    async def job(self, job_id: JobId) -> Foreseen | None:
        """Returns what is known of a live job; None for one that is not live (any more)."""
        policy = self._door.controller.policy
        found = await self._door.ask(lambda state, made: _explained(state, made, policy, job_id))
        if found is None:
            return None
        told, (ahead, shares, project) = found
        return replace(self._measured(*told), ahead=ahead, shares=shares, project=project)

    async def draft(self, job: Job) -> Foreseen:
        """Returns what would be known of a job, were it submitted now; no reason means that it would start."""
        policy, now_ms = self._door.controller.policy, self._door.now_ms
        found = await self._door.ask(lambda state, made: _supposed(state, made, (policy, now_ms), job))
        return self._measured(*found)

    async def sooner(self, job: Job, explanation: Explanation) -> tuple[Job, ...]:
        """Returns changes of a pending job each of which would start it in the next tick, as tried just now."""
        if job.state is not JobState.PENDING or not explanation.reasons:
            return ()
        if explanation.reasons[0].code in _NO_CHANGE_HELPS:
            return ()
        async with self._searching:
            found = await self._door.ask(lambda state, _: _room(state, job.id))
            return () if found is None else await self._search(*found)

    async def _search(self, job: Job, room: Room) -> tuple[Job, ...]:
        policy = self._door.controller.policy
        steps = search(job, room)
        try:
            asked = next(steps)
            while True:
                asked = steps.send(await self._would_start(policy, asked, job.id))
        except StopIteration as done:
            found: tuple[Job, ...] = done.value
            return found

    async def _would_start(self, policy: Policy, asked: Job, instead_of: JobId) -> bool:
        now_ms = self._door.now_ms

        def tried(state: ClusterState, _: Plan) -> bool:
            return _is_in_line(state, instead_of) and would_start(state, policy, now_ms, asked, instead_of)

        # The planner knows what holds cost only of jobs that it tried to start: whoever keeps the money is asked too.
        return await self._door.ask(tried) and await self._knowing.is_affordable(asked)

    def _measured(self, explanation: Explanation, estimate: StartEstimate | None) -> Foreseen:
        if estimate is None or estimate.pool is None:
            return Foreseen(explanation, estimate)
        record = self._door.controller.track_record(estimate.pool)
        return Foreseen(explanation, calibrated(estimate, record, explanation.as_of_ms), record)


def _room(state: ClusterState, job_id: JobId) -> tuple[Job, Room] | None:
    if not _is_in_line(state, job_id):
        return None
    job = state.jobs[job_id]
    return job, room_for(state, job)


def _is_in_line(state: ClusterState, job_id: JobId) -> bool:
    """True for a pending job that others are not being stopped for: its claim would be lost."""
    is_pending = job_id in state.jobs and state.jobs[job_id].state is JobState.PENDING
    return is_pending and job_id not in state.claims.by_job


def _explained(
    state: ClusterState, made: Plan, policy: Policy, job_id: JobId
) -> tuple[tuple[Explanation, StartEstimate | None], tuple[tuple[Job, ...], tuple[Json, ...], Account]] | None:
    if job_id not in state.jobs:
        return None
    found, job = explain(state, made, job_id), state.jobs[job_id]
    ahead = tuple(state.jobs[each] for each in found.ahead_first)
    told = found, estimate_start(state, policy, made.now_ms, job_id)
    project = state.accounts.get(job.account) or Account(job.account)
    return told, (ahead, _shares_of(state, made, job) if job.state in WAITING else (), project)


def _shares_of(state: ClusterState, made: Plan, job: Job) -> tuple[Json, ...]:
    shares, path = Shares(state, made.now_ms), lineage(job.account)
    standings = {(each.account, each.gpu_class): each for each in shares.standings() if each.account in path}
    keys = [(name, gpu_class) for gpu_class in job.shape.gpu_classes for name in reversed(path)]
    return tuple(standing_answer(state, shares, standings[key]) for key in keys if key in standings)


def _supposed(
    state: ClusterState, made: Plan, terms: tuple[Policy, int], job: Job
) -> tuple[Explanation, StartEstimate | None]:
    """Plans once with the job in line: what that plan says of it is what the next tick would."""
    policy, now_ms = terms
    with supposed(state, job, now_ms) as asked:
        tried = plan(state, policy, now_ms, made.decision)
        estimate = estimate_start(state, policy, now_ms, asked.id)
        if any(start.job == asked.id for start in tried.starts):
            return Explanation(asked.id, made.decision, now_ms, ()), estimate
        return explain(state, tried, asked.id), estimate
