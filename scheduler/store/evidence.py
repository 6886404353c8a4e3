"""Commands on what became known later: the evidence inbox, and the reclassifications that follow from it.

Evidence about an allocation that has ended is kept once by its key and folded with all that was said before
(`core.ending`); where the fold gives another end than the ledger knows, reclassifications are appended that make it so.
Evidence that comes twice, late or in another order therefore leaves the same partition. What an operator said of a
device is never overruled by a machine.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from scheduler.core.ending import COMPLETED, EvidenceKind, RecordedEnd, SettledEnd, settled_end
from scheduler.core.model import AllocationId, DeviceId, EndReason, Phase
from scheduler.core.occupancy import Evidence, Interval, OccupancyState, Occupant
from scheduler.core.overlay import laid_over
from scheduler.refusal import RefusalCode, Refused
from scheduler.store.chained import append
from scheduler.store.codec import INTERVAL_COLUMNS, interval_of, occupant_values
from scheduler.store.columns import JsonObject
from scheduler.store.database import chunks
from scheduler.store.ledger_tables import EVIDENCE, OCCUPANCY, RECLASSIFICATION
from scheduler.store.overlays import evidence_of, over, unknown_stretches
from scheduler.store.tables import ALLOCATION
from scheduler.store.transaction import Transaction

SILENT = "silent"
"""The cause of an unknown stretch: the node said nothing from then on."""
GANG_LOST = "gang_lost"
"""The cause of a draining stretch: the device was well, but a node of its gang was not."""
_SETTLED_STATES = (*(OccupancyState.IDLE, OccupancyState.DRAINING, OccupancyState.UNAVAILABLE, OccupancyState.FOREIGN),)
"""What an operator may say that an unknown stretch was; a tenant's time goes by the allocation's end."""


@dataclass(frozen=True, slots=True)
class Said:
    """One thing said about the end of an allocation. The same key again says nothing new."""

    key: str
    allocation: AllocationId
    kind: EvidenceKind
    at_ms: int
    source: Evidence
    end_reason: str | None = None
    actor: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Learned:
    """What evidence changed: how much of it was new, whose end moved, and ids that no ended allocation of ours has."""

    new: int
    moved: tuple[AllocationId, ...]
    unknown: tuple[AllocationId, ...]
    live: tuple[AllocationId, ...]
    """Allocations that still run: their end will be observed, so nothing was kept."""


@dataclass(frozen=True, slots=True)
class RecordEvidence:
    """Takes in evidence about allocations that ended."""

    said: tuple[Said, ...]

    def execute(self, tx: Transaction) -> Learned:
        """Returns what it changed. Idempotent; raises Refused (`conflict`) for a key that stood for something else."""
        connection = tx.after_ledger()
        ids = sorted({each.allocation for each in self.said})
        ended: dict[str, bool] = {}
        for part in chunks(ids):
            rows = connection.execute(
                sa.select(ALLOCATION.c.id, ALLOCATION.c.ended_ms).where(ALLOCATION.c.id.in_(part))
            )
            ended |= {row.id: row.ended_ms is not None for row in rows}
        new, moved = keep(tx, [each for each in self.said if ended.get(each.allocation)])
        return Learned(
            new,
            moved,
            tuple(id_ for id_ in ids if id_ not in ended),
            tuple(id_ for id_ in ids if id_ in ended and not ended[id_]),
        )


@dataclass(frozen=True, slots=True)
class Reclassify:
    """An operator's word on an unknown stretch of a device that no allocation's end can settle."""

    device: DeviceId
    from_ms: int
    to_ms: int
    state: OccupancyState
    cause: str | None
    actor: str
    reason: str

    def execute(self, tx: Transaction) -> int:
        """Returns how many rows were appended. Refuses what is not unknown, from end to end, and an empty reason."""
        if self.state not in _SETTLED_STATES:
            words = ", ".join(_SETTLED_STATES)
            raise Refused(
                RefusalCode.INVALID,
                f"an unknown stretch cannot become {self.state}; it becomes one of {words}",
                tries=("a tenant's time goes by the end of its allocation: give --allocation and --ended-at",),
            )
        if not self.reason.strip():
            raise Refused(RefusalCode.INVALID, "a reclassification needs a reason that an auditor can read")
        connection = tx.after_ledger()
        pieces = [
            each for each in unknown_stretches(connection, self.from_ms, self.to_ms) if each.device == self.device
        ]
        covered = sum(
            min(each.to_ms, self.to_ms) - max(each.from_ms, self.from_ms) for each in pieces if each.lane == 0
        )
        if not pieces or (covered < self.to_ms - self.from_ms and all(each.lane == 0 for each in pieces)):
            raise Refused(
                RefusalCode.WRONG_STATE,
                f"device {self.device} is not unknown over all of [{self.from_ms}, {self.to_ms})",
                tries=("turnstile admin ledger unknown lists what is",),
            )
        rows = []
        for piece in pieces:
            first_ms, last_ms = max(piece.from_ms, self.from_ms), min(piece.to_ms, self.to_ms)
            occupant = Occupant(self.state, piece.occupant.units, self.cause)
            rows.append(
                _values(piece, (first_ms, last_ms), occupant, Evidence.OPERATOR)
                | {"actor": self.actor, "reason": self.reason, "recorded_ms": tx.now_ms}
            )
        return len(append(connection, RECLASSIFICATION, rows))


def keep(tx: Transaction, said: Sequence[Said]) -> tuple[int, tuple[AllocationId, ...]]:
    """Keeps evidence about allocations that ended; returns how much was new, and whose end moved by it."""
    fresh = _fresh(tx, said)
    append(tx.connection, EVIDENCE, [_evidence_values(tx, each) for each in fresh])
    return len(fresh), settle(tx, _with_surplus(tx.connection, sorted({each.allocation for each in fresh})))


def _with_surplus(connection: Connection, ids: Sequence[AllocationId]) -> list[AllocationId]:
    """Returns the ids, and those of surplus nodes that ended with one of them: their end is that of their gang."""
    gang, found = ALLOCATION.alias(), list(ids)
    for part in chunks(ids):
        query = sa.select(ALLOCATION.c.id).join(gang, gang.c.id == ALLOCATION.c.surplus_of)
        ended_with = query.where(gang.c.id.in_(part), ALLOCATION.c.ended_ms == gang.c.ended_ms)
        found += [AllocationId(id_) for id_ in connection.execute(ended_with.order_by(ALLOCATION.c.id)).scalars()]
    return list(dict.fromkeys(found))


def late_word(allocation: AllocationId, at_ms: int, reason: EndReason | None, source: Evidence) -> Said:
    """Returns what an end says that was observed after the allocation's end was written."""
    is_lost = reason is EndReason.NODE_LOST
    word = COMPLETED if reason is None else reason.value
    kind = EvidenceKind.SILENT if is_lost else EvidenceKind.ENDED
    key = f"observed/{allocation}/{kind}/{at_ms}/{word}"
    return Said(key, allocation, kind, at_ms, source, None if is_lost else word)


def _fresh(tx: Transaction, said: Sequence[Said]) -> list[Said]:
    """Returns what is not in the inbox yet, each key once, in an order of its own."""
    by_key: dict[str, Said] = {}
    for each in said:
        if by_key.setdefault(each.key, each) != each:
            raise _other(each.key)
    for part in chunks(sorted(by_key)):
        for row in tx.connection.execute(sa.select(EVIDENCE).where(EVIDENCE.c.key.in_(part))):
            each = by_key.pop(row.key)
            stored = (row.allocation_id, row.kind, row.at_ms, row.source, row.end_reason)
            if stored != (each.allocation, each.kind.value, each.at_ms, each.source.value, each.end_reason):
                raise _other(each.key)
    return [by_key[key] for key in sorted(by_key)]


def _other(key: str) -> Refused:
    return Refused(
        RefusalCode.CONFLICT, f"the evidence {key!r} is known, and says something else; one thing has one key"
    )


def _evidence_values(tx: Transaction, each: Said) -> JsonObject:
    return {
        "key": each.key,
        "kind": each.kind.value,
        "allocation_id": each.allocation,
        "at_ms": each.at_ms,
        "source": each.source.value,
        "end_reason": each.end_reason,
        "actor": each.actor,
        "note": each.note,
        "recorded_ms": tx.now_ms,
    }


def settle(tx: Transaction, ids: Sequence[AllocationId]) -> tuple[AllocationId, ...]:
    """Appends what makes the partition say the end that the evidence gives; returns whose end moved."""
    missing = {id_: missing_rows(tx.connection, id_, tx.now_ms) for id_ in ids}
    append(tx.connection, RECLASSIFICATION, [row for rows in missing.values() for row in rows])
    moved = tuple(id_ for id_, rows in missing.items() if rows)
    if moved:
        tx.admission.release(tx.connection, moved, tx.now_ms)
    return moved


def missing_rows(connection: Connection, id_: AllocationId, now_ms: int = 0) -> list[JsonObject]:
    """Returns the reclassifications that an ended allocation's evidence asks for and that are not there yet."""
    whole = ALLOCATION.alias()
    columns = (ALLOCATION.c.ended_ms, ALLOCATION.c.end_reason, whole.c.id, whole.c.ended_ms)
    query = sa.select(*columns).outerjoin(whole, whole.c.id == ALLOCATION.c.surplus_of)
    ended_ms, word, of, whole_ended_ms = connection.execute(query.where(ALLOCATION.c.id == id_)).one()
    gang = _Gang(connection, id_, ended_ms, EndReason(word) if word else None)
    about = [id_] if of is None or whole_ended_ms != ended_ms else [AllocationId(of), id_]
    known = evidence_of(connection, about)
    rows = gang.rows_for(settled_end(gang.recorded, [said for each in about for said in known.get(each, ())]))
    return [row | {"recorded_ms": now_ms} for row in rows]


class _Gang:
    """An ended allocation's intervals, and those that follow them on its lanes until its end was noticed."""

    def __init__(self, connection: Connection, id_: AllocationId, ended_ms: int, reason: EndReason | None) -> None:
        self.id = id_
        row = OCCUPANCY.c
        own = sa.select(*INTERVAL_COLUMNS).where(row.allocation_id == id_).order_by(row.sequence)
        self._own = [interval_of(each) for each in connection.execute(own)]
        last = {(each.device, each.lane): each for each in self._own}
        after = sa.select(*INTERVAL_COLUMNS).where(
            row.device.in_(sorted({device for device, _ in last})),
            row.from_ms == ended_ms,
            row.cause.in_((SILENT, GANG_LOST)),
        )
        follow = {(each.device, each.lane): each for each in map(interval_of, connection.execute(after))}
        self._after = [(follow[lane], last[lane].occupant) for lane in sorted(last) if lane in follow]
        self._laid = over(connection, [each.sequence for each in (*self._own, *(each for each, _ in self._after))])
        begins = [each.from_ms for each in self._own if each.occupant.phase is Phase.RUNNING]
        ends = [self._ceiling(each) for each, _ in self._after] if len(self._after) == len(last) else []
        first_ms = min(begins or [each.from_ms for each in self._own], default=ended_ms)
        self.recorded = RecordedEnd(first_ms, ended_ms, min(ends, default=ended_ms), reason)

    def _ceiling(self, follow: Interval) -> int:
        """Returns the end of what is unknown, which is where an operator has said what a device was."""
        firm = [each.from_ms for each in self._laid.get(follow.sequence, ()) if each.evidence is Evidence.OPERATOR]
        return min([follow.to_ms, *firm])

    def rows_for(self, settled: SettledEnd) -> list[JsonObject]:
        """Returns the rows that are missing for this end: none when everything says so already."""
        wanted: list[tuple[Interval, int, int, Occupant]] = []
        for each in self._own:
            wanted.append((each, each.from_ms, min(each.to_ms, settled.end_ms), each.occupant))
            wanted.append(
                (each, max(each.from_ms, settled.end_ms), each.to_ms, self._rest(each.occupant.units, settled))
            )
        for each, occupant in self._after:
            wanted.append((each, each.from_ms, min(each.to_ms, settled.end_ms), occupant))
            rest = self._rest(each.occupant.units, settled) if settled.is_proved else each.occupant
            wanted.append((each, max(each.from_ms, settled.end_ms), each.to_ms, rest))
        return [row for piece in wanted if piece[1] < piece[2] for row in self._missing(*piece, settled)]

    def _rest(self, units: int, settled: SettledEnd) -> Occupant:
        """Returns what a lane was after the end."""
        if not self.recorded.is_lost:
            return Occupant(OccupancyState.IDLE, units)
        if settled.is_proved:
            return Occupant(OccupancyState.UNAVAILABLE, units, EndReason.NODE_LOST.value)
        return Occupant(OccupancyState.UNKNOWN, units, SILENT)

    def _missing(
        self, over_: Interval, first_ms: int, last_ms: int, occupant: Occupant, settled: SettledEnd
    ) -> Iterable[JsonObject]:
        laid = self._laid.get(over_.sequence, [])
        firm = [each for each in laid if each.evidence is Evidence.OPERATOR]
        for piece in laid_over(over_, laid):
            from_ms, to_ms = max(piece.from_ms, first_ms), min(piece.to_ms, last_ms)
            is_firm = any(each.from_ms < to_ms and each.to_ms > from_ms for each in firm)
            if from_ms < to_ms and piece.occupant != occupant and not is_firm:
                word = "proved" if settled.is_proved else "last known"
                yield _values(over_, (from_ms, to_ms), occupant, Evidence.NODE) | {
                    "actor": "",
                    "reason": f"allocation {self.id} ended at {settled.end_ms}, {word}",
                }


def _values(over_: Interval, span: tuple[int, int], occupant: Occupant, evidence: Evidence) -> dict[str, Any]:
    return occupant_values(replace(occupant, units=over_.occupant.units)) | {
        "covers": over_.sequence,
        "device": over_.device,
        "lane": over_.lane,
        "from_ms": span[0],
        "to_ms": span[1],
        "evidence": evidence.value,
    }
