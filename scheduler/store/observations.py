"""The command that takes in what the executor saw: gangs that started and gangs that ended.

Observations may come twice, late, and in any order; within one command they are put in order first. Times are the
node's, clamped to what the ledger knows: not before the interval that is open, not after now. All devices of a gang
share its billed interval and are free from its end, even where that was noticed later.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import sqlalchemy as sa

from scheduler.core.events import AllocationEnded, AllocationStarted
from scheduler.core.model import Allocation, AllocationId, Device, DeviceId, EndReason, Job, JobId, JobState, Phase
from scheduler.core.occupancy import Cursor, Evidence, OccupancyState, Occupant
from scheduler.core.outcome import Verdict, after_end
from scheduler.executor import Ended, Observation, Started
from scheduler.store.codec import JOB_COLUMNS, job_of
from scheduler.store.database import chunks
from scheduler.store.gangs import devices_of, lanes_of, load_live
from scheduler.store.nodes import KnownNode, load_nodes, resting
from scheduler.store.partition import in_phase
from scheduler.store.prepared import Prepared
from scheduler.store.tables import ALLOCATION, JOB, JsonObject
from scheduler.store.transaction import Transaction

_UPDATE_ALLOCATION = Prepared(
    sa.update(ALLOCATION).where(ALLOCATION.c.id == sa.bindparam("at_id")),
    ("phase", "started_ms", "ended_ms", "end_reason", "exit_code", "detail", "at_id"),
)
_UPDATE_JOB = Prepared(
    sa.update(JOB).where(JOB.c.id == sa.bindparam("at_id")),
    (
        *("state", "reason", "detail", "exit_code", "started_ms", "ended_ms", "begin_ms", "is_backing_off"),
        *("retries_left", "at_id"),
    ),
)


@dataclass(frozen=True, slots=True)
class Recorded:
    """What was new in the observations. Ends that were known already may be acknowledged as well."""

    started: tuple[AllocationId, ...]
    ended: tuple[tuple[AllocationId, Job], ...]
    """Each with its job as it is afterwards."""
    repeated: tuple[AllocationId, ...]
    """Known allocations that had ended before."""
    unknown: tuple[AllocationId, ...]
    """Ids that no allocation of ours has."""


@dataclass(frozen=True, slots=True)
class RecordObservations:
    """Takes in starts and ends."""

    observations: tuple[Observation, ...]
    evidence: Evidence = Evidence.NODE

    def execute(self, tx: Transaction) -> Recorded:
        """Returns what was new. Idempotent; an unknown allocation is reported and changes nothing."""
        ids = list(dict.fromkeys(observation.allocation for observation in self.observations))
        gangs = _Gangs(tx, ids, self.evidence)
        for observation in sorted(self.observations, key=_place):
            gangs.take(observation)
        gangs.write()
        known = _known(tx, [id_ for id_ in ids if not gangs.is_live(id_)])
        return Recorded(
            tuple(gangs.started),
            tuple(gangs.ended),
            tuple(id_ for id_ in ids if id_ in known),
            tuple(id_ for id_ in ids if id_ not in known and not gangs.is_live(id_)),
        )


def _place(observation: Observation) -> tuple[bool, int, AllocationId]:
    return (isinstance(observation, Ended), observation.at_ms, observation.allocation)


def _known(tx: Transaction, ids: list[AllocationId]) -> set[str]:
    known: set[str] = set()
    for part in chunks(ids):
        known.update(tx.connection.execute(sa.select(ALLOCATION.c.id).where(ALLOCATION.c.id.in_(part))).scalars())
    return known


class _Gangs:
    """The gangs that observations are about: read in bulk, moved one by one, written in bulk."""

    def __init__(self, tx: Transaction, ids: list[AllocationId], evidence: Evidence) -> None:
        self.started: list[AllocationId] = []
        self.ended: list[tuple[AllocationId, Job]] = []
        self._tx = tx
        self._evidence = evidence
        self._at_first = load_live(tx, ids)
        self._live = dict(self._at_first)
        self._jobs, self._marks, self._first_starts = _load_jobs(tx, [gang.job for gang in self._live.values()])
        devices = list(dict.fromkeys(device for gang in self._live.values() for device in devices_of(gang)))
        self._lanes = tx.lanes()
        self._lanes.load(devices)
        self._places: dict[DeviceId, tuple[KnownNode, Device]] = {}
        nodes = {grant.node for gang in self._live.values() for grant in gang.grants}
        for known in load_nodes(tx.connection, nodes).values():
            self._places.update((device.id, (known, device)) for device in known.devices)
        self._allocation_rows: dict[AllocationId, JsonObject] = {}
        self._job_rows: dict[JobId, JsonObject] = {}

    def is_live(self, id_: AllocationId) -> bool:
        """Tells whether the allocation had not ended before this command."""
        return id_ in self._at_first

    def take(self, observation: Observation) -> None:
        """Moves one gang, or does nothing when it is not live or nothing is new."""
        gang = self._live.get(observation.allocation)
        if gang is None:
            return
        if isinstance(observation, Started):
            self._start(gang, observation.at_ms)
        else:
            self._end(gang, observation)

    def write(self) -> None:
        """Writes all that moved."""
        connection = self._tx.connection
        _UPDATE_ALLOCATION.many(connection, list(self._allocation_rows.values()))
        _UPDATE_JOB.many(connection, list(self._job_rows.values()))
        self._lanes.flush()

    def _start(self, gang: Allocation, observed_ms: int, not_after_ms: int | None = None) -> Allocation:
        if gang.started_ms is not None:
            return gang
        now_ms = self._tx.now_ms if not_after_ms is None else not_after_ms
        at_ms = min(max(observed_ms, gang.decided_ms), now_ms)
        job = self._jobs[gang.job]
        if gang.phase is Phase.STARTING:
            cursors = lanes_of(self._lanes, gang)
            at_ms = max(at_ms, _latest(cursors))
            for cursor in cursors:
                self._lanes.move(cursor, in_phase(cursor.occupant, Phase.RUNNING), at_ms, self._evidence)
            gang = replace(gang, phase=Phase.RUNNING, started_ms=at_ms)
            job = replace(job, state=JobState.RUNNING)
        else:
            gang = replace(gang, started_ms=at_ms)
        self._live[gang.id] = gang
        self._jobs[job.id] = job
        self._first_starts.setdefault(job.id, at_ms)
        self.started.append(gang.id)
        self._save(gang, job)
        self._tx.emit(AllocationStarted(at_ms, gang.id))
        self._tx.note(job.id, "started", at_ms, allocation=gang.id, attempt=gang.attempt)
        return gang

    def _end(self, gang: Allocation, seen: Ended) -> None:
        end_ms = min(max(seen.at_ms, _latest(lanes_of(self._lanes, gang))), self._tx.now_ms)
        if seen.started_ms is not None:
            gang = self._start(gang, seen.started_ms, end_ms)
        for cursor in lanes_of(self._lanes, gang):
            self._release(cursor, end_ms)
        before = self._jobs[gang.job]
        reason = _end_reason(seen.reason, gang.stop_reason, self._marks.get(gang.job))
        job, verdict = after_end(before, reason, end_ms, self._tx.policy)
        del self._live[gang.id]
        self._jobs[job.id] = job
        self.ended.append((gang.id, job))
        self._save(gang, job, seen, reason, end_ms)
        self._tx.emit(AllocationEnded(end_ms, gang.id, reason, job))
        kind = "ended" if verdict is Verdict.ENDED else "requeued"
        self._tx.note(
            job.id, kind, end_ms, state=job.state, reason=reason, exit_code=seen.exit_code, allocation=gang.id
        )

    def _release(self, cursor: Cursor, end_ms: int) -> None:
        if cursor.lane > 0:
            self._lanes.merge(cursor, end_ms, self._evidence)
            return
        place = self._places.get(cursor.device)
        # A held device stays with its node; only an operator's hand on the tables could have taken it away.
        state, cause = (OccupancyState.UNAVAILABLE, "removed") if place is None else resting(*place)
        self._lanes.move(cursor, Occupant(state, cursor.occupant.units, cause), end_ms, self._evidence)

    def _save(
        self,
        gang: Allocation,
        job: Job,
        seen: Ended | None = None,
        reason: EndReason | None = None,
        end_ms: int | None = None,
    ) -> None:
        is_over = seen is not None and job.state is not JobState.PENDING
        exit_code, detail = (None, None) if seen is None else (seen.exit_code, seen.detail)
        self._allocation_rows[gang.id] = {
            "at_id": gang.id,
            "phase": gang.phase.value,
            "started_ms": gang.started_ms,
            "ended_ms": end_ms,
            "end_reason": reason,
            "exit_code": exit_code,
            "detail": detail,
        }
        mark = None if seen is not None else self._marks.get(job.id)
        self._job_rows[job.id] = {
            "at_id": job.id,
            "state": job.state.value,
            "reason": reason if is_over else mark,
            "detail": detail if is_over else None,
            "exit_code": exit_code if is_over else None,
            "started_ms": self._first_starts.get(job.id),
            "ended_ms": end_ms if is_over else None,
            "begin_ms": job.begin_ms,
            "is_backing_off": job.is_backing_off,
            "retries_left": job.retries_left,
        }


def _latest(cursors: Iterable[Cursor]) -> int:
    return max(cursor.since_ms for cursor in cursors)


def _end_reason(seen: EndReason | None, stop_reason: EndReason | None, mark: EndReason | None) -> EndReason | None:
    """Returns why a gang ended, from what was seen and what had been asked.

    A gang that ended well did so, whatever was asked of it. One whose job was cancelled meanwhile must not come back,
    whatever it was being stopped for. One that failed while it was being stopped was stopped.
    """
    if seen is None:
        return None
    if mark is not None:
        return mark
    if seen is EndReason.EXIT_NONZERO and stop_reason is not None:
        return stop_reason
    return seen


def _load_jobs(tx: Transaction, ids: list[JobId]) -> tuple[dict[JobId, Job], dict[JobId, EndReason], dict[JobId, int]]:
    """Returns jobs, the reasons for which those were cancelled that must not come back, and first starts."""
    jobs: dict[JobId, Job] = {}
    marks: dict[JobId, EndReason] = {}
    starts: dict[JobId, int] = {}
    for part in chunks(ids):
        for row in tx.connection.execute(
            sa.select(*JOB_COLUMNS, JOB.c.reason, JOB.c.started_ms).where(JOB.c.id.in_(part))
        ):
            *columns, reason, started_ms = row
            job = job_of(columns)
            jobs[job.id] = job
            if reason is not None:
                marks[job.id] = EndReason(reason)
            if started_ms is not None:
                starts[job.id] = started_ms
    return jobs, marks, starts
