"""Commands on jobs that are there: hold, release, cancel, requeue, update, and what a deadline ends.

Each takes many ids and is one transaction.

Rows are changed by set (`WHERE id IN …`), so that fifty thousand jobs cost a few dozen statements. An id that means no
job, or a state in which there is nothing to do, is told in the answer and is no refusal: a list that was read a moment
ago may name jobs that have ended since.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from scheduler.core.events import AllocationCheckpointed, JobChanged, JobEnded, JobHeld, JobReleased
from scheduler.core.lifecycle import ACTIVE, ENDS, WAITING
from scheduler.core.model import AllocationId, BookingWanted, EndReason, HoldKind, Job, JobId, JobState
from scheduler.refusal import RefusalCode, Refused
from scheduler.store.codec import JOB_COLUMNS, Row, job_of
from scheduler.store.columns import JsonObject
from scheduler.store.database import chunks
from scheduler.store.dependencies import settle_waiters
from scheduler.store.extending import TimeGiven, give_time
from scheduler.store.gangs import stop
from scheduler.store.moving import Move, check_movable, move
from scheduler.store.quotas import Ask, check_high
from scheduler.store.tables import ALLOCATION, JOB
from scheduler.store.transaction import Transaction

_GLANCE = (JOB.c.id, JOB.c.state, JOB.c.hold, JOB.c.allocation_id)
_UPDATE_JOB = sa.update(JOB).where(JOB.c.id == sa.bindparam("at_id"))

_RUNNING = frozenset({JobState.STARTING.value, JobState.RUNNING.value})
_WAITING = sorted(state.value for state in WAITING)

MOST_OVERDUE = 1_000
"""Jobs that one EndOverdue ends: many may share a deadline, and nobody else's write may wait for all of them."""


class Did(StrEnum):
    """What an action did to one job."""

    CANCELLED = "cancelled"
    STOPPING = "stopping"
    ALREADY_ENDED = "already_ended"
    HELD = "held"
    RELEASED = "released"
    REQUEUED = "requeued"
    CHECKPOINTED = "checkpointed"
    CHANGED = "changed"
    UNCHANGED = "unchanged"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class JobAction:
    """What became of one id; `state` is the job's afterwards, None for an id that means no job."""

    job: JobId
    did: Did
    state: JobState | None


@dataclass(frozen=True, slots=True)
class HoldJobs:
    """Keeps pending jobs from starting. An admin's hold takes a user's over, not the other way round."""

    ids: tuple[JobId, ...]
    kind: HoldKind
    actor: str

    def execute(self, tx: Transaction) -> tuple[JobAction, ...]:
        """Returns what became of each id, in order. Jobs that run are left alone."""
        glances = _glance(tx, self.ids)
        held = [
            id_
            for id_, row in glances.items()
            if row.state == JobState.PENDING or (row.state == JobState.HELD and self._outranks(row.hold))
        ]
        _set(tx, held, state=JobState.HELD.value, hold=self.kind.value)
        for id_ in held:
            tx.emit(JobHeld(tx.now_ms, id_, self.kind))
            tx.note(id_, "held", tx.now_ms, hold=self.kind, actor=self.actor)
        return _answer(self.ids, glances, dict.fromkeys(held, (Did.HELD, JobState.HELD)))

    def _outranks(self, hold: str | None) -> bool:
        return self.kind is HoldKind.ADMIN and hold != HoldKind.ADMIN


@dataclass(frozen=True, slots=True)
class ReleaseJobs:
    """Lets held jobs be pending again. A user may not release an admin's hold."""

    ids: tuple[JobId, ...]
    kind: HoldKind
    """Who releases: an admin may release any hold."""
    actor: str

    def execute(self, tx: Transaction) -> tuple[JobAction, ...]:
        """Returns what became of each id, in order. Refuses all when one is held by an admin and a user asks."""
        glances = _glance(tx, self.ids)
        held = [id_ for id_, row in glances.items() if row.state == JobState.HELD]
        for id_ in held:
            if self.kind is HoldKind.USER and glances[id_].hold == HoldKind.ADMIN:
                raise Refused(
                    RefusalCode.NOT_ALLOWED, f"job {id_} is held by an operator; only an operator can release it"
                )
        _set(tx, held, state=JobState.PENDING.value, hold=None)
        for id_ in held:
            tx.emit(JobReleased(tx.now_ms, id_))
            tx.note(id_, "released", tx.now_ms, actor=self.actor)
        return _answer(self.ids, glances, dict.fromkeys(held, (Did.RELEASED, JobState.PENDING)))


@dataclass(frozen=True, slots=True)
class CancelJobs:
    """Ends jobs: those that wait at once, those that are active by asking their gangs to stop.

    `reason` is `cancelled` for a person's wish; `deadline` for jobs whose deadline has passed, which end as failed.
    """

    ids: tuple[JobId, ...]
    actor: str
    reason: EndReason = EndReason.CANCELLED
    detail: str | None = None
    """Why, in words, of those that waited."""

    def execute(self, tx: Transaction) -> tuple[JobAction, ...]:
        """Returns what became of each id, in order."""
        glances = _glance(tx, self.ids)
        waiting = [id_ for id_, row in glances.items() if row.state in {JobState.PENDING, JobState.HELD}]
        active = [id_ for id_, row in glances.items() if row.state in ACTIVE]
        state = JobState.CANCELLED if self.reason is EndReason.CANCELLED else JobState.FAILED
        _set(
            tx, waiting, state=state.value, hold=None, reason=self.reason.value, detail=self.detail, ended_ms=tx.now_ms
        )
        for id_ in waiting:
            tx.emit(JobEnded(tx.now_ms, id_, state, self.reason))
            tx.note(id_, "ended", tx.now_ms, state=state, reason=self.reason, actor=self.actor)
        # A gang that stops already (preempted, say) keeps its reason; the job's own says that it must not come back.
        _set(tx, active, reason=self.reason.value)
        stop(tx, [AllocationId(glances[id_].allocation_id) for id_ in active], self.reason, self.actor)
        settle_waiters(tx, waiting)
        became = dict.fromkeys(waiting, (Did.CANCELLED, state))
        became.update(dict.fromkeys(active, (Did.STOPPING, JobState.STOPPING)))
        return _answer(self.ids, glances, became)


@dataclass(frozen=True, slots=True)
class EndOverdue:
    """Ends the jobs that missed their deadline or will: those that wait fail, those that run are asked to stop."""

    def execute(self, tx: Transaction) -> tuple[JobAction, ...]:
        """Returns what became of the overdue jobs, at most MOST_OVERDUE of them, by deadline; empty when none is."""
        ids = overdue_jobs(tx.connection, tx.now_ms)
        return CancelJobs(ids, "deadline", EndReason.DEADLINE).execute(tx)


def overdue_jobs(connection: Connection, now_ms: int) -> tuple[JobId, ...]:
    """Returns the jobs whose deadline has passed and that nothing ends yet: at most MOST_OVERDUE, by deadline.

    A job that waits and may not begin before its deadline (a pause after a failure outlasts it) is certain to miss it
    and is among them at once. A time limit makes nothing certain: it is the most that a job may take.
    Jobs that were cancelled, or told to stop at their deadline before, carry a reason and are left out. Costs a look
    into an index of the jobs with a deadline.
    """
    begins_too_late = sa.and_(JOB.c.state.in_(_WAITING), JOB.c.begin_ms >= JOB.c.deadline_ms)
    statement = (
        sa.select(JOB.c.id)
        .where(JOB.c.deadline_ms.is_not(None), JOB.c.ended_ms.is_(None), JOB.c.reason.is_(None))
        .where(sa.or_(JOB.c.deadline_ms <= now_ms, begins_too_late))
        .order_by(JOB.c.deadline_ms, JOB.c.id)
        .limit(MOST_OVERDUE)
    )
    return tuple(JobId(id_) for id_ in connection.execute(statement).scalars())


@dataclass(frozen=True, slots=True)
class RequeueJobs:
    """Stops the gangs of jobs that start or run; the jobs wait again then, in their old places."""

    ids: tuple[JobId, ...]
    actor: str

    def execute(self, tx: Transaction) -> tuple[JobAction, ...]:
        """Returns what became of each id, in order. Jobs that wait or stop already are left alone."""
        glances = _glance(tx, self.ids)
        active = [id_ for id_, row in glances.items() if row.state in _RUNNING]
        stop(tx, [AllocationId(glances[id_].allocation_id) for id_ in active], EndReason.REQUEUED, self.actor)
        return _answer(self.ids, glances, dict.fromkeys(active, (Did.REQUEUED, JobState.STOPPING)))


@dataclass(frozen=True, slots=True)
class CheckpointJobs:
    """Notes that the work of running jobs is saved up to now; so that they lose least if they are stopped."""

    ids: tuple[JobId, ...]

    def execute(self, tx: Transaction) -> tuple[JobAction, ...]:
        """Returns what became of each id, in order. Jobs that do not run are left alone."""
        glances = _glance(tx, self.ids)
        running = [id_ for id_, row in glances.items() if row.state == JobState.RUNNING]
        gangs = [AllocationId(glances[id_].allocation_id) for id_ in running]
        for part in chunks(gangs):
            statement = sa.update(ALLOCATION).where(ALLOCATION.c.id.in_(part))
            tx.connection.execute(statement.values(checkpointed_ms=tx.now_ms))
        for gang in gangs:
            tx.emit(AllocationCheckpointed(tx.now_ms, gang))
        return _answer(self.ids, glances, dict.fromkeys(running, (Did.CHECKPOINTED, JobState.RUNNING)))


@dataclass(frozen=True, slots=True)
class UpdateJobs:
    """Gives waiting jobs other terms, and running ones another time limit. None leaves a term as it is.

    `clears_begin` drops the begin time; `may_lengthen` is an operator's right to give running jobs more time.
    """

    ids: tuple[JobId, ...]
    actor: str
    time_limit_ms: int | None = None
    priority: int | None = None
    begin_ms: int | None = None
    clears_begin: bool = False
    deadline_ms: int | None = None
    wanted: BookingWanted | None = None
    may_lengthen: bool = False
    move: Move | None = None
    """Another name or project, which running jobs cannot get."""

    def execute(self, tx: Transaction) -> tuple[JobAction, ...]:
        """Returns what became of each id, in order. Jobs that run are left alone, but for their time limit.

        Refuses all when one would begin at its deadline or later, when one runs and other terms than its time limit
        are named with that, and what `give_time` refuses.
        """
        if self.move is not None:
            check_movable(tx, self.ids)
        glances = _glance(tx, self.ids)
        waiting = [id_ for id_, row in glances.items() if row.state in {JobState.PENDING, JobState.HELD}]
        became = self._running_changed(tx, glances)
        rows: list[JsonObject] = []
        loaded = _load(tx, waiting)
        if (self.priority or 0) > 0:
            raised = [job for job in loaded if job.priority <= 0]
            check_high(tx, [Ask(job.account, job.user, job.shape, 1, is_high=True) for job in raised])
        changed = {old.id: self._changed(old) for old in loaded}
        moved = set[JobId]() if self.move is None else move(tx, changed, self.move)
        for old in loaded:
            new = changed[old.id]
            if new == old and new.id not in moved:
                continue
            if self.move is not None and self.move.account is not None:
                new = replace(new, account=self.move.account)
            became[new.id] = (Did.CHANGED, new.state)
            rows.append(
                {
                    "at_id": new.id,
                    "time_limit_ms": new.time_limit_ms,
                    "priority": new.priority,
                    "begin_ms": new.begin_ms,
                    "is_backing_off": new.is_backing_off,
                    "deadline_ms": new.deadline_ms,
                    "wanted": new.wanted.value,
                }
            )
            tx.emit(JobChanged(tx.now_ms, new))
            tx.note(new.id, "changed", tx.now_ms, actor=self.actor, **self._terms(), **self._moved())
        if rows:
            tx.connection.execute(_UPDATE_JOB, rows)
        return _answer(self.ids, glances, became)

    def _running_changed(self, tx: Transaction, glances: Mapping[JobId, Row]) -> dict[JobId, tuple[Did, JobState]]:
        if self.time_limit_ms is None:
            return {}
        running = {id_: row for id_, row in glances.items() if row.state in _RUNNING}
        others = [value for name, value in self._terms().items() if name != "time_limit_ms"]
        if running and (self.clears_begin or any(value is not None for value in others)):
            raise Refused(
                RefusalCode.WRONG_STATE,
                f"job {min(running)} runs: of its terms only the time limit can change",
                tries=("-t alone",),
            )
        gangs = [AllocationId(row.allocation_id) for row in running.values()]
        changed = give_time(tx, gangs, TimeGiven(self.time_limit_ms, self.actor, self.may_lengthen))
        return {id_: (Did.CHANGED, JobState(running[id_].state)) for id_ in changed}

    def _changed(self, job: Job) -> Job:
        if self.time_limit_ms is not None:
            job = replace(job, time_limit_ms=self.time_limit_ms)
        if self.priority is not None:
            job = replace(job, priority=self.priority)
        if self.deadline_ms is not None:
            job = replace(job, deadline_ms=self.deadline_ms)
        if self.wanted is not None:
            job = replace(job, wanted=self.wanted)
        if self.begin_ms is not None or self.clears_begin:
            # A person's word ends a back-off too.
            job = replace(job, begin_ms=self.begin_ms, is_backing_off=False)
        has_times = job.begin_ms is not None and job.deadline_ms is not None and not job.is_backing_off
        if has_times and (job.deadline_ms or 0) <= (job.begin_ms or 0):
            raise Refused(RefusalCode.INVALID, f"job {job.id} would begin at its deadline or later")
        return job

    def _moved(self) -> dict[str, str | None]:
        return {} if self.move is None else {"name": self.move.name, "project": self.move.account}

    def _terms(self) -> dict[str, int | str | None]:
        return {
            "time_limit_ms": self.time_limit_ms,
            "priority": self.priority,
            "begin_ms": self.begin_ms,
            "deadline_ms": self.deadline_ms,
            "wanted": self.wanted,
        }


def _glance(tx: Transaction, ids: Sequence[JobId]) -> dict[JobId, Row]:
    rows: dict[JobId, Row] = {}
    for part in chunks(list(dict.fromkeys(ids))):
        for row in tx.connection.execute(sa.select(*_GLANCE).where(JOB.c.id.in_(part)).order_by(JOB.c.id)).all():
            rows[JobId(row.id)] = row
    return rows


def _load(tx: Transaction, ids: Sequence[JobId]) -> list[Job]:
    jobs: list[Job] = []
    for part in chunks(ids):
        rows = tx.connection.execute(sa.select(*JOB_COLUMNS).where(JOB.c.id.in_(part)).order_by(JOB.c.id))
        jobs += [job_of(row) for row in rows]
    return jobs


def _set(tx: Transaction, ids: Sequence[JobId], **values: str | int | None) -> None:
    for part in chunks(ids):
        tx.connection.execute(sa.update(JOB).where(JOB.c.id.in_(part)).values(**values))


def _answer(
    ids: Sequence[JobId], glances: Mapping[JobId, Row], became: Mapping[JobId, tuple[Did, JobState]]
) -> tuple[JobAction, ...]:
    actions: list[JobAction] = []
    for id_ in ids:
        row = glances.get(id_)
        if row is None:
            actions.append(JobAction(id_, Did.UNKNOWN, None))
        elif id_ in became:
            actions.append(JobAction(id_, *became[id_]))
        else:
            state = JobState(row.state)
            actions.append(JobAction(id_, Did.ALREADY_ENDED if state in ENDS else Did.UNCHANGED, state))
    return tuple(actions)
