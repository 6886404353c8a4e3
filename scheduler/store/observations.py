"""The command that takes in what the executor saw: gangs that started, saved their work, and ended.

Observations may come twice, late, and in any order; within one command they are put in order first. Times are the
node's, clamped to what the ledger knows: not before the interval that is open, not after now. All devices of a gang
share its billed interval and are free from its end, even where that was noticed later.

Executors know an elastic gang as one allocation: what they say of it holds for its surplus nodes too, which begin and
end with it, unless they were taken before (`Shrunk`). A gang that fails after that has not survived it: it counts as
preempted.

A gang of a node that went silent ends at its last evidence; until the silence was noticed, its devices are `unknown`,
or `draining` on nodes that were well. An end of a gang that had ended already is late evidence, see `evidence`.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import sqlalchemy as sa

from scheduler.core.events import AllocationCheckpointed, AllocationEnded, AllocationStarted
from scheduler.core.model import (
    Allocation,
    AllocationId,
    Device,
    DeviceId,
    EndReason,
    Job,
    JobId,
    JobState,
    NodeAvailability,
    NodeName,
    Phase,
)
from scheduler.core.occupancy import Cursor, Evidence, OccupancyState, Occupant
from scheduler.core.outcome import Verdict, after_end
from scheduler.executor import Checkpointed, Ended, Observation, Shrunk, Started
from scheduler.store.adopted import is_adopted
from scheduler.store.claims import live_claims, reserve
from scheduler.store.codec import JOB_COLUMNS, job_of
from scheduler.store.columns import JsonObject
from scheduler.store.database import chunks
from scheduler.store.dependencies import settle_waiters
from scheduler.store.evidence import GANG_LOST, SILENT, keep, late_word
from scheduler.store.gangs import devices_of, lanes_of, load_live, load_surplus
from scheduler.store.incidents import faulty_node, note_incidents
from scheduler.store.nodes import KnownNode, load_nodes, resting
from scheduler.store.partition import in_phase
from scheduler.store.prepared import Prepared
from scheduler.store.tables import ALLOCATION, JOB
from scheduler.store.transaction import Transaction

_UPDATE_GANG = Prepared(
    sa.update(ALLOCATION).where(ALLOCATION.c.id == sa.bindparam("at_id")),
    ("phase", "started_ms", "ended_ms", "end_reason", "exit_code", "detail", "at_id"),
)
_UPDATE_CHECKPOINT = Prepared(
    sa.update(ALLOCATION).where(ALLOCATION.c.id == sa.bindparam("at_id")), ("checkpointed_ms", "at_id")
)
_IS_JOB = JOB.c.id == sa.bindparam("at_id")
_STARTING: sa.ColumnElement[str] = sa.literal_column(f"'{JobState.STARTING.value}'")
_RUNNING: sa.ColumnElement[str] = sa.literal_column(f"'{JobState.RUNNING.value}'")
_UPDATE_STARTED_JOB = Prepared(
    # A gang that was asked to stop before its start was seen goes on stopping.
    sa.update(JOB)
    .where(_IS_JOB)
    .values(
        state=sa.case((JOB.c.state == _STARTING, _RUNNING), else_=JOB.c.state),
        started_ms=sa.func.coalesce(JOB.c.started_ms, sa.bindparam("at_ms", type_=sa.BigInteger())),
    ),
    ("at_id", "at_ms"),
)
_UPDATE_ENDED_JOB = Prepared(
    sa.update(JOB).where(_IS_JOB),
    ("state", "reason", "detail", "exit_code", "ended_ms", "begin_ms", "is_backing_off", "retries_left", "at_id"),
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
        tx.after_ledger()
        ids = list(dict.fromkeys(observation.allocation for observation in self.observations))
        ending = {observation.allocation for observation in self.observations if isinstance(observation, Ended)}
        gangs = _Gangs(tx, ids, ending, self.evidence)
        for observation in sorted(self.observations, key=_place):
            gangs.take(observation)
        gangs.write()
        note_incidents(tx, gangs.faults)
        settle_waiters(tx, gangs.moved)
        known = _known(tx, [id_ for id_ in ids if not gangs.is_live(id_)])
        late = [each for each in self.observations if isinstance(each, Ended) and each.allocation in known]
        _take_late(tx, [each for each in late if each.at_ms != known[each.allocation]], self.evidence)
        return Recorded(
            tuple(gangs.started),
            tuple(gangs.ended),
            tuple(id_ for id_ in ids if id_ in known),
            tuple(id_ for id_ in ids if id_ not in known and not gangs.is_live(id_)),
        )


def _place(observation: Observation) -> tuple[int, int, AllocationId]:
    # A file's time may lie some milliseconds before the start that it follows: kernels date files by a coarser clock.
    kind = (Started, Checkpointed, Shrunk, Ended).index(type(observation))
    return kind, observation.at_ms, observation.allocation


def _known(tx: Transaction, ids: list[AllocationId]) -> dict[str, int]:
    """Returns those of the ids that are of allocations that ended, with the end that was written."""
    known: dict[str, int] = {}
    for part in chunks(ids):
        rows = tx.connection.execute(sa.select(ALLOCATION.c.id, ALLOCATION.c.ended_ms).where(ALLOCATION.c.id.in_(part)))
        known |= {row.id: row.ended_ms for row in rows}
    return known


def _take_late(tx: Transaction, late: list[Ended], source: Evidence) -> None:
    """Keeps ends that tell another time than was written: they may move what follows."""
    said = {each.key: each for each in (late_word(seen.allocation, seen.at_ms, seen.reason, source) for seen in late)}
    if said:
        keep(tx, list(said.values()))


class _Gangs:
    """The gangs that observations are about: read in bulk, moved one by one, written in bulk.

    A gang that starts costs no look at its job or its nodes; those are read for gangs that end.
    """

    def __init__(self, tx: Transaction, ids: list[AllocationId], ending: set[AllocationId], evidence: Evidence) -> None:
        self.started: list[AllocationId] = []
        self.ended: list[tuple[AllocationId, Job]] = []
        self.moved: list[JobId] = []
        """Jobs that began or ended."""
        self._left: list[AllocationId] = []
        """Surplus nodes that ended, with their gang or before it."""
        self.faults: list[tuple[Allocation, EndReason, NodeName, int]] = []
        """Gangs, and surplus nodes alone, that ended by a machine's fault: why, whose, and when."""
        self._tx = tx
        self._evidence = evidence
        self._at_first = load_live(tx, ids)
        found = load_surplus(tx, ids)
        self._surplus = {gang: surplus.id for gang, surplus in found.items()}
        """By gang, its surplus nodes, while it has any."""
        self._live = self._at_first | {surplus.id: surplus for surplus in found.values()}
        self._lanes = tx.lanes()
        self._lanes.load(device for gang in self._live.values() for device in devices_of(gang))
        leaving = [gang for gang in self._live.values() if gang.id in ending or gang.surplus_of is not None]
        self._jobs, self._marks = _load_jobs(tx, [gang.job for gang in leaving])
        nodes = load_nodes(tx.connection, {grant.node for gang in leaving for grant in gang.grants})
        self._places: dict[DeviceId, tuple[KnownNode, Device]] = {
            device.id: (known, device) for known in nodes.values() for device in known.devices
        }
        self._gang_rows: dict[AllocationId, JsonObject] = {}
        self._checkpoint_rows: dict[AllocationId, JsonObject] = {}
        self._freed: dict[DeviceId, int] = {}
        """Devices that ends have freed, with when."""
        self._start_rows: list[JsonObject] = []
        self._end_rows: list[JsonObject] = []

    def is_live(self, id_: AllocationId) -> bool:
        """Tells whether the allocation had not ended before this command."""
        return id_ in self._at_first

    def take(self, observation: Observation) -> None:
        """Moves one gang, or does nothing when it is not live or nothing is new."""
        gang = self._live.get(observation.allocation)
        if gang is None:
            return
        surplus = self._surplus_of(gang)
        if isinstance(observation, Started):
            gang = self._start(gang, observation.at_ms, self._tx.now_ms)
            if surplus is not None:
                self._start(surplus, gang.started_ms or observation.at_ms, self._tx.now_ms)
        elif isinstance(observation, Checkpointed):
            for each in (gang,) if surplus is None else (gang, surplus):
                self._checkpoint(each, observation.at_ms)
        elif isinstance(observation, Shrunk):
            if surplus is not None and observation.nodes <= len(gang.grants):
                self._shrink(gang, surplus, observation)
        else:
            self._end(gang, observation)

    def _surplus_of(self, gang: Allocation) -> Allocation | None:
        surplus = self._surplus.get(gang.id)
        return None if surplus is None else self._live[surplus]

    def write(self) -> None:
        """Writes all that moved."""
        connection = self._tx.connection
        _UPDATE_GANG.many(connection, list(self._gang_rows.values()))
        _UPDATE_CHECKPOINT.many(connection, list(self._checkpoint_rows.values()))
        _UPDATE_STARTED_JOB.many(connection, self._start_rows)
        _UPDATE_ENDED_JOB.many(connection, self._end_rows)
        self._keep_for_claims()
        self._lanes.flush()
        if self.ended:
            self._tx.admission.release(connection, [allocation for allocation, _ in self.ended], self._tx.now_ms)
        if self._left:
            self._tx.admission.release(connection, self._left, self._tx.now_ms)

    def _keep_for_claims(self) -> None:
        """Keeps what was freed for the jobs that it was freed for."""
        if not self._freed:
            return
        sizes = {id_: device.units for id_, (_, device) in self._places.items()}
        for claim in live_claims(self._tx.connection):
            for at_ms in sorted(set(self._freed.values())):
                freed = {device for device, freed_ms in self._freed.items() if freed_ms == at_ms}
                reserve(self._lanes, [claim], freed, at_ms, sizes)

    def _start(self, gang: Allocation, observed_ms: int, latest_ms: int) -> Allocation:
        if gang.started_ms is not None:
            return gang
        at_ms = min(max(observed_ms, gang.decided_ms), latest_ms)
        phase = gang.phase
        if phase is Phase.STARTING:
            phase = Phase.RUNNING
            cursors = lanes_of(self._lanes, gang)
            at_ms = max(at_ms, _latest(cursors))
            for cursor in cursors:
                self._lanes.move(cursor, in_phase(cursor.occupant, phase), at_ms, self._evidence)
        gang = replace(gang, phase=phase, started_ms=at_ms)
        self._live[gang.id] = gang
        self._gang_rows[gang.id] = _gang_values(gang)
        self._tx.emit(AllocationStarted(at_ms, gang.id))
        if gang.surplus_of is not None:
            return gang
        self.started.append(gang.id)
        self.moved.append(gang.job)
        self._start_rows.append({"at_id": gang.job, "at_ms": at_ms})
        self._tx.note(gang.job, "started", at_ms, allocation=gang.id, attempt=gang.attempt)
        return gang

    def _checkpoint(self, gang: Allocation, observed_ms: int) -> None:
        """Notes until when the work is saved; a job that has not started by our books saved nothing of ours."""
        if gang.started_ms is None:
            return
        at_ms = min(max(observed_ms, gang.started_ms), self._tx.now_ms)
        if gang.checkpointed_ms is not None and at_ms <= gang.checkpointed_ms:
            return
        self._live[gang.id] = replace(gang, checkpointed_ms=at_ms)
        self._checkpoint_rows[gang.id] = {"at_id": gang.id, "checkpointed_ms": at_ms}
        self._tx.emit(AllocationCheckpointed(at_ms, gang.id))

    def _end(self, gang: Allocation, seen: Ended) -> None:
        surplus = self._surplus_of(gang)
        parts = [gang] if surplus is None else [gang, surplus]
        latest_ms = max(_latest(lanes_of(self._lanes, each)) for each in parts)
        end_ms = min(max(seen.at_ms, latest_ms), self._tx.now_ms)
        if seen.started_ms is not None:
            parts = [self._start(each, seen.started_ms, end_ms) for each in parts]
            gang = parts[0]
        blind = self._blind(parts, seen.reason, end_ms)
        stop_reason = gang.stop_reason or (self._shrunk_for(gang) if self._jobs[gang.job].shape.is_elastic else None)
        reason = _end_reason(seen.reason, stop_reason, self._marks.get(gang.job))
        self._blame(gang, parts, (end_ms, reason))
        for each in parts[1:]:
            self._leave(each, (end_ms, reason), blind)
        self._free(gang, end_ms, blind)
        job, verdict = after_end(self._jobs[gang.job], reason, end_ms, self._tx.policy)
        if verdict is Verdict.WAITS_AGAIN and is_adopted(self._tx.connection, gang.job):
            job, verdict = after_end(self._jobs[gang.job], reason, end_ms, self._tx.policy, runs_once=True)
        del self._live[gang.id]
        self.ended.append((gang.id, job))
        self.moved.append(job.id)
        is_over = verdict is Verdict.ENDED
        self._gang_rows[gang.id] = _gang_values(gang) | {
            "ended_ms": end_ms,
            "end_reason": reason,
            "exit_code": seen.exit_code,
            "detail": seen.detail,
        }
        self._end_rows.append(_ended_values(job, seen, reason, end_ms if is_over else None))
        self._tx.emit(AllocationEnded(end_ms, gang.id, reason, job))
        self._tx.note(
            job.id,
            "ended" if is_over else "requeued",
            end_ms,
            state=job.state,
            reason=reason,
            exit_code=seen.exit_code,
            allocation=gang.id,
        )

    def _shrink(self, gang: Allocation, surplus: Allocation, seen: Shrunk) -> None:
        """Lets surplus nodes go, which were asked to or whose node was lost; their gang goes on."""
        end_ms = min(max(seen.at_ms, _latest(lanes_of(self._lanes, surplus))), self._tx.now_ms)
        reason = surplus.stop_reason or seen.reason
        self._blame(surplus, [surplus], (end_ms, reason))
        self._leave(surplus, (end_ms, reason), self._blind([surplus], seen.reason, end_ms))
        self._tx.note(gang.job, "shrunk", end_ms, allocation=gang.id, nodes=len(gang.grants), reason=reason)

    def _blame(self, whose: Allocation, parts: list[Allocation], end: tuple[int, EndReason | None]) -> None:
        """Notes whose machine's fault it was that these end, where it was a machine's."""
        end_ms, reason = end
        node = faulty_node(whose, reason, self._places)
        if node is not None and reason is not None:
            self.faults += [(each, reason, node, end_ms) for each in parts]

    def _leave(
        self, surplus: Allocation, end: tuple[int, EndReason | None], blind: dict[DeviceId, tuple[OccupancyState, str]]
    ) -> None:
        end_ms, reason = end
        self._free(surplus, end_ms, blind)
        assert surplus.surplus_of is not None, "only surplus leaves a gang"
        del self._live[surplus.id], self._surplus[surplus.surplus_of]
        self._left.append(surplus.id)
        self._gang_rows[surplus.id] = _gang_values(surplus) | {"ended_ms": end_ms, "end_reason": reason}
        self._tx.emit(AllocationEnded(end_ms, surplus.id, reason, self._jobs[surplus.job]))

    def _free(self, gang: Allocation, end_ms: int, blind: dict[DeviceId, tuple[OccupancyState, str]]) -> None:
        for cursor in lanes_of(self._lanes, gang):
            self._release(cursor, end_ms, blind.get(cursor.device))
            self._freed[cursor.device] = end_ms

    def _shrunk_for(self, gang: Allocation) -> EndReason | None:
        """Returns why a gang fails that lost nodes while it ran: PREEMPTED, or NODE_LOST where it was only that."""
        why = sa.func.coalesce(ALLOCATION.c.stop_reason, ALLOCATION.c.end_reason)
        statement = sa.select(why).where(ALLOCATION.c.surplus_of == gang.id, why.is_not(None))
        found = set(self._tx.connection.execute(statement).scalars())
        if not found:
            return None
        return EndReason.NODE_LOST if found == {EndReason.NODE_LOST.value} else EndReason.PREEMPTED

    def _blind(
        self, parts: list[Allocation], seen: EndReason | None, end_ms: int
    ) -> dict[DeviceId, tuple[OccupancyState, str]]:
        """Returns what the devices of a lost gang were between its last evidence and now, when that was noticed."""
        if seen is not EndReason.NODE_LOST or end_ms >= self._tx.now_ms:
            return {}
        places = {device: self._places.get(device) for gang in parts for device in devices_of(gang)}
        well = {
            device
            for device, place in places.items()
            if place is not None and place[0].node.availability is not NodeAvailability.DOWN
        }
        if len(well) == len(places):
            well = set()  # one of the nodes is silent, and nobody knows yet which
        lost = (OccupancyState.DRAINING, GANG_LOST), (OccupancyState.UNKNOWN, SILENT)
        return {device: lost[device not in well] for device in places}

    def _release(self, cursor: Cursor, end_ms: int, blind: tuple[OccupancyState, str] | None) -> None:
        if blind is not None:
            occupant = Occupant(blind[0], cursor.occupant.units, blind[1])
            cursor = self._lanes.move(cursor, occupant, end_ms, self._evidence)
            end_ms = self._tx.now_ms
        if cursor.lane > 0:
            self._lanes.merge(cursor, end_ms, self._evidence)
            return
        place = self._places.get(cursor.device)
        # A held device stays with its node; only an operator's hand on the tables could have taken it away.
        state, cause = (OccupancyState.UNAVAILABLE, "removed") if place is None else resting(*place)
        self._lanes.move(cursor, Occupant(state, cursor.occupant.units, cause), end_ms, self._evidence)


def _gang_values(gang: Allocation) -> JsonObject:
    return {
        "at_id": gang.id,
        "phase": gang.phase.value,
        "started_ms": gang.started_ms,
        "ended_ms": None,
        "end_reason": None,
        "exit_code": None,
        "detail": None,
    }


def _ended_values(job: Job, seen: Ended, reason: EndReason | None, over_ms: int | None) -> JsonObject:
    """Returns what an end writes to a job: its outcome when it is over at `over_ms`, none when it waits again."""
    is_over = over_ms is not None
    return {
        "at_id": job.id,
        "state": job.state.value,
        "reason": reason if is_over else None,
        "detail": seen.detail if is_over else None,
        "exit_code": seen.exit_code if is_over else None,
        "ended_ms": over_ms,
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


def _load_jobs(tx: Transaction, ids: list[JobId]) -> tuple[dict[JobId, Job], dict[JobId, EndReason]]:
    """Returns jobs, and the reasons for which those were cancelled that must not come back."""
    jobs: dict[JobId, Job] = {}
    marks: dict[JobId, EndReason] = {}
    for part in chunks(ids):
        for row in tx.connection.execute(sa.select(*JOB_COLUMNS, JOB.c.reason).where(JOB.c.id.in_(part))).all():
            job = job_of(row[:-1])
            jobs[job.id] = job
            if row[-1] is not None:
                marks[job.id] = EndReason(row[-1])
    return jobs, marks
