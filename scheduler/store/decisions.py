"""The decision log and the flight recorder's tape as stored: what is added, asked, and forgotten.

Rows are history: nothing is decided or billed by them.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from scheduler.core.calibration import Measured
from scheduler.core.decided import Kind
from scheduler.core.model import AllocationId, JobId, PoolName
from scheduler.store.columns import JsonObject
from scheduler.store.history_tables import DECISION, DECISION_TAPE
from scheduler.store.prepared import Prepared, json_text
from scheduler.store.transaction import Transaction

_NAMES = (
    *("epoch", "decision", "at_ms", "version", "policy", "kind", "subject", "job_id", "allocation_id", "tenant"),
    *("reasons", "words"),
)
_INSERT = Prepared(sa.insert(DECISION), _NAMES)
MOST_FORGOTTEN = 5000
"""Rows deleted in one transaction: some tens of milliseconds in which others wait."""
STATE, ENTRIES = "state", "entries"


@dataclass(frozen=True, slots=True)
class Logged:
    """A line of the log. `version` counts the durable events of the term that the tick had taken in."""

    epoch: int
    decision: int
    at_ms: int
    version: int
    policy: str
    """The first characters of the policy's SHA-256."""
    kind: Kind
    subject: str | None = None
    job: JobId | None = None
    allocation: AllocationId | None = None
    tenant: str | None = None
    reasons: tuple[JsonObject, ...] = ()
    words: str | None = None


@dataclass(frozen=True, slots=True)
class TapePiece:
    """A piece of the tape: a state (`kind` STATE), or what came after it (ENTRIES), up to `last_decision`."""

    epoch: int
    at_ms: int
    kind: str
    last_decision: int
    body: bytes


@dataclass(frozen=True, slots=True)
class SaveDecisions:
    """Adds lines and pieces, in order."""

    lines: tuple[Logged, ...]
    pieces: tuple[TapePiece, ...]

    def execute(self, tx: Transaction) -> None:
        """Adds them. Emits nothing: no state follows from them."""
        rows = [
            {
                "epoch": each.epoch,
                "decision": each.decision,
                "at_ms": each.at_ms,
                "version": each.version,
                "policy": each.policy,
                "kind": each.kind.value,
                "subject": each.subject,
                "job_id": each.job,
                "allocation_id": each.allocation,
                "tenant": each.tenant,
                "words": each.words,
                "reasons": json_text(each.reasons),
            }
            for each in self.lines
        ]
        _INSERT.many(tx.connection, rows)
        if self.pieces:
            pieces = [
                {
                    "epoch": each.epoch,
                    "at_ms": each.at_ms,
                    "kind": each.kind,
                    "body": each.body,
                    "last_decision": each.last_decision,
                }
                for each in self.pieces
            ]
            tx.connection.execute(sa.insert(DECISION_TAPE), pieces)


@dataclass(frozen=True, slots=True)
class ForgetDecisions:
    """Deletes what is older, at most MOST_FORGOTTEN rows of each table; a state goes with the last tick that needs it.

    A reason that still holds may be older than `lines_before_ms`: what waits is said anew at each start of a daemon and
    at each state of the tape, so that it is known again from there on.
    """

    lines_before_ms: int
    tape_before_ms: int

    def execute(self, tx: Transaction) -> int:
        """Returns how many rows it deleted; MOST_FORGOTTEN or more: call again."""
        old = sa.select(DECISION.c.sequence).where(DECISION.c.at_ms < self.lines_before_ms).limit(MOST_FORGOTTEN)
        deleted = tx.connection.execute(sa.delete(DECISION).where(DECISION.c.sequence.in_(old))).rowcount
        tape = DECISION_TAPE.c
        needed = tx.connection.execute(
            sa.select(sa.func.max(tape.sequence)).where(tape.kind == STATE, tape.at_ms < self.tape_before_ms)
        ).scalar()
        if needed is not None:
            gone = sa.select(tape.sequence).where(tape.sequence < needed).limit(MOST_FORGOTTEN)
            deleted += tx.connection.execute(sa.delete(DECISION_TAPE).where(tape.sequence.in_(gone))).rowcount
        return int(deleted)


def last_tick(connection: Connection, at_ms: int) -> Logged | None:
    """Returns the last line at or before an instant; None when the log does not reach back so far."""
    statement = sa.select(DECISION).where(DECISION.c.at_ms <= at_ms).order_by(DECISION.c.sequence.desc()).limit(1)
    row = connection.execute(statement).first()
    return None if row is None else _logged(row)


def of_job(connection: Connection, job: JobId, at_ms: int, most: int) -> list[Logged]:
    """Returns what was decided about a job up to an instant, the newest first."""
    statement = sa.select(DECISION).where(DECISION.c.job_id == job, DECISION.c.at_ms <= at_ms)
    return [_logged(row) for row in connection.execute(statement.order_by(DECISION.c.sequence.desc()).limit(most))]


def wait_of(connection: Connection, subject: str, epoch: int, at_ms: int) -> Logged | None:
    """Returns the last line about a group or a shape in a term, up to an instant."""
    statement = (
        sa.select(DECISION)
        .where(DECISION.c.subject == subject, DECISION.c.epoch == epoch, DECISION.c.at_ms <= at_ms)
        .order_by(DECISION.c.sequence.desc())
        .limit(1)
    )
    row = connection.execute(statement).first()
    return None if row is None else _logged(row)


def estimate_subject(pool: PoolName) -> str:
    """Returns under which subject the estimates of a pool stand."""
    return f"estimate:{pool}"


def past_estimates(connection: Connection, pools: Iterable[PoolName], most: int) -> list[Measured]:
    """Returns what the last estimates of these pools were worth, at most so many of each, oldest first."""
    found: list[Measured] = []
    for pool in pools:
        of_pool = sa.select(DECISION.c.reasons).where(DECISION.c.subject == estimate_subject(pool))
        rows = connection.execute(of_pool.order_by(DECISION.c.sequence.desc()).limit(most)).scalars().all()
        found += [Measured(pool, int(row[0]["foretold_ms"]), int(row[0]["came_ms"])) for row in reversed(rows)]
    return found


def tape(connection: Connection, at_ms: int) -> list[TapePiece]:
    """Returns the last state before an instant, and all of its term that came after, up to the piece past the instant.

    Empty where nothing is kept. A piece is some seconds long, so the last one may tell of ticks after the instant.
    """
    row = DECISION_TAPE.c
    begin = connection.execute(
        sa.select(row.sequence, row.epoch)
        .where(row.kind == STATE, row.at_ms <= at_ms)
        .order_by(row.sequence.desc())
        .limit(1)
    ).first()
    if begin is None:
        return []
    found: list[TapePiece] = []
    pieces = sa.select(DECISION_TAPE).where(row.sequence >= begin.sequence, row.epoch == begin.epoch)
    for each in connection.execute(pieces.order_by(row.sequence)):
        if found and each.kind == STATE:
            continue
        found.append(TapePiece(each.epoch, each.at_ms, each.kind, each.last_decision, each.body))
        if each.kind == ENTRIES and each.at_ms > at_ms:
            break
    return found


def _logged(row: Row[tuple[object, ...]]) -> Logged:
    return Logged(
        row.epoch, row.decision, row.at_ms, row.version, row.policy, Kind(row.kind), row.subject,
        None if row.job_id is None else JobId(row.job_id),
        None if row.allocation_id is None else AllocationId(row.allocation_id),
        row.tenant, tuple(row.reasons), row.words,
    )  # fmt: skip
