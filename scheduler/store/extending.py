"""Another time limit for gangs that run: the money for it is asked for, the planner learns it, the executor is told.

A longer limit is an operator's to give: a short one let the job start early, in a gap before what others are promised.
Whoever may act on the job may shorten it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from scheduler.admission import CostQuestion, HoldAsk
from scheduler.core.events import AllocationExtended
from scheduler.core.model import Allocation, AllocationId, JobId
from scheduler.refusal import RefusalCode, Refused
from scheduler.store.codec import ALLOCATION_COLUMNS, allocation_of, launch_of
from scheduler.store.database import chunks
from scheduler.store.tables import ALLOCATION, JOB
from scheduler.store.transaction import Transaction

MINUTE_MS = 60_000


@dataclass(frozen=True, slots=True)
class TimeGiven:
    """The limit that running gangs shall have, counted from their start, and who says so."""

    limit_ms: int
    actor: str
    may_lengthen: bool


def give_time(tx: Transaction, allocations: Sequence[AllocationId], given: TimeGiven) -> tuple[JobId, ...]:
    """Changes the limit of gangs that start or run; returns the jobs whose limit is another now.

    Raises Refused for all when one would be lengthened without the right to (`not_allowed`), has run for longer already
    (`invalid`), or may cost more than is left (`over_budget`).
    """
    changed: list[Allocation] = []
    for part in chunks(sorted(allocations)):
        is_surplus = sa.and_(ALLOCATION.c.surplus_of.in_(part), ALLOCATION.c.ended_ms.is_(None))
        meant = sa.or_(ALLOCATION.c.id.in_(part), is_surplus)
        rows = tx.connection.execute(sa.select(*ALLOCATION_COLUMNS).where(meant))
        changed += [each for each in map(allocation_of, rows) if each.time_limit_ms != given.limit_ms]
    for old in sorted(changed, key=lambda each: each.id):
        _check(tx, old, given)
        tx.connection.execute(
            sa.update(ALLOCATION).where(ALLOCATION.c.id == old.id).values(time_limit_ms=given.limit_ms)
        )
        tx.connection.execute(sa.update(JOB).where(JOB.c.id == old.job).values(time_limit_ms=given.limit_ms))
        tx.emit(AllocationExtended(tx.now_ms, old.id, given.limit_ms, old.surplus_of))
        if old.surplus_of is not None:
            continue  # the history tells of the gang
        tx.note(old.job, "changed", tx.now_ms, actor=given.actor, time_limit_ms=given.limit_ms)
    return tuple(each.job for each in changed if each.surplus_of is None)


def _check(tx: Transaction, old: Allocation, given: TimeGiven) -> None:
    began_ms = tx.now_ms if old.started_ms is None else old.started_ms
    left_ms = began_ms + given.limit_ms - tx.now_ms
    if left_ms <= 0:
        ran = max(1, (tx.now_ms - began_ms) // MINUTE_MS)
        raise Refused(
            RefusalCode.INVALID,
            f"job {old.job} has run for {ran} min already, which is longer",
            tries=(f"turnstile cancel {old.job}",),
        )
    if given.limit_ms < old.time_limit_ms:
        return
    if not given.may_lengthen:
        raise Refused(
            RefusalCode.NOT_ALLOWED,
            f"job {old.job} runs: only an operator can give it more time, for others may be promised what it holds",
            tries=("save its work and submit the rest", "ask an operator"),
        )
    # What it is charged for was fixed at its start, and admission knows it; what it holds is the least that can be.
    question = CostQuestion(old.account, old.gpu_class, old.booking, old.total_units, left_ms)
    launch = tx.connection.execute(sa.select(JOB.c.launch).where(JOB.c.id == old.job)).scalar_one()
    grace_ms = int(1000 * launch_of(launch).grace_seconds)
    tx.admission.extend(
        tx.connection, HoldAsk(old.id, old.job, question, grace_ms, is_surplus=old.surplus_of is not None), tx.now_ms
    )
