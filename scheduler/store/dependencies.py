"""Jobs that wait for others: what is still to be waited for, and what becomes of waiters when others move.

`core.dependency` has the rule. Here the jobs that a dependency is on are counted, at the submission and whenever one
of them begins or ends, in that same transaction: what a waiter still waits for is always true in the database.

A waiter whose dependency can never be met any more ends as cancelled, and those that wait for it learn of that too.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import sqlalchemy as sa

from scheduler.core.dependency import Standing, Tally, standing
from scheduler.core.events import JobChanged, JobEnded
from scheduler.core.lifecycle import ENDS, WAITING
from scheduler.core.model import (
    AccountId,
    Dependency,
    DependencyKind,
    EndReason,
    Job,
    JobId,
    JobState,
    UserName,
)
from scheduler.refusal import Problem, RefusalCode, Refused
from scheduler.store.codec import JOB_COLUMNS, job_of, waits_for_text
from scheduler.store.database import chunks
from scheduler.store.prepared import Prepared
from scheduler.store.tables import JOB, JOB_DEPENDENCY, JsonObject
from scheduler.store.transaction import Transaction

Alike = tuple[AccountId, UserName, str]
"""Project, user and name of a job: what a singleton is one of."""

_NAMES = ("job_id", "dependency", "kind", "on_job", "on_array", "account", "user", "name")
_INSERT = Prepared(sa.insert(JOB_DEPENDENCY), _NAMES)
_ANY = sa.select(JOB_DEPENDENCY.c.job_id).limit(1)
_ENDED = sorted(state.value for state in ENDS)
_UPDATE_WAITS = Prepared(sa.update(JOB).where(JOB.c.id == sa.bindparam("at_id")), ("waits_for", "at_id"))
_INSTEAD = {DependencyKind.AFTEROK: "any", DependencyKind.AFTERNOTOK: "any"}


def still_to_wait_for(tx: Transaction, after: Sequence[Dependency], alike: Alike) -> tuple[Dependency, ...]:
    """Returns those of a new job's dependencies that are not met yet, each once.

    Raises Refused (`never_fits`) when one can never be met. `alike` is of the new job, which is not stored yet.
    """
    wanted = tuple(dict.fromkeys(after))
    tallies = _tallies(tx, [each for each in wanted if each.job is not None])
    left = []
    for each in wanted:
        tally = Tally(waiting=_count_alike(tx, alike)) if each.job is None else tallies[each]
        found = standing(each.kind, tally)
        if found is Standing.NEVER:
            raise _never(each)
        if found is Standing.WAITS:
            left.append(each)
    return tuple(left)


def file_dependencies(tx: Transaction, jobs: Sequence[Job], name: str) -> None:
    """Notes what new jobs wait for, so that they are found when that moves."""
    rows: list[JsonObject] = [_row(job, each, name) for job in jobs for each in job.waits_for]
    if rows:
        _INSERT.many(tx.connection, rows)


def settle_waiters(tx: Transaction, moved: Iterable[JobId]) -> None:
    """Lets jobs go on whose dependencies are met now that these began or ended; ends those that wait in vain.

    Costs one look where no job waits for another.
    """
    ids = list(dict.fromkeys(moved))
    if not ids or tx.connection.execute(_ANY).first() is None:
        return
    while ids:
        ids = _settle_once(tx, ids)


def _settle_once(tx: Transaction, moved: list[JobId]) -> list[JobId]:
    """Does one step; returns the jobs that it ended, for the next."""
    _forget_ended(tx, moved)
    asked = _dependencies_on(tx, moved)
    if not asked:
        return []
    jobs = _load(tx, sorted(asked))
    named = {each for job in jobs for each in job.waits_for if str(each) in asked[job.id]}
    tallies = _tallies(tx, sorted((each for each in named if each.job is not None), key=str))
    going_on: list[Job] = []
    ending: list[tuple[Job, Dependency]] = []
    for job in jobs:
        if job.state not in WAITING:
            continue
        stands = {each: _standing(tx, job, each, tallies) for each in job.waits_for if str(each) in asked[job.id]}
        vain = next((each for each, found in stands.items() if found is Standing.NEVER), None)
        met = {each for each, found in stands.items() if found is Standing.MET}
        if vain is not None:
            ending.append((job, vain))
        elif met:
            going_on.append(replace(job, waits_for=tuple(each for each in job.waits_for if each not in met)))
            _forget(tx, job.id, met)
    _go_on(tx, going_on)
    return _end(tx, ending)


def _standing(tx: Transaction, job: Job, each: Dependency, tallies: Mapping[Dependency, Tally]) -> Standing:
    if each.job is not None:
        return standing(each.kind, tallies[each])
    row = tx.connection.execute(sa.select(JOB.c.account, JOB.c.user, JOB.c.name).where(JOB.c.id == job.id)).one()
    return standing(each.kind, Tally(waiting=_count_alike(tx, tuple(row), before=job.array or job.id)))


def _go_on(tx: Transaction, jobs: Sequence[Job]) -> None:
    rows: list[JsonObject] = []
    for job in jobs:
        rows.append({"at_id": job.id, "waits_for": waits_for_text(job.waits_for)})
        tx.emit(JobChanged(tx.now_ms, job))
        if not job.waits_for:
            tx.note(job.id, "dependencies_met", tx.now_ms)
    _UPDATE_WAITS.many(tx.connection, rows)


def _end(tx: Transaction, ending: Sequence[tuple[Job, Dependency]]) -> list[JobId]:
    for job, vain in ending:
        statement = sa.update(JOB).where(JOB.c.id == job.id)
        tx.connection.execute(
            statement.values(
                state=JobState.CANCELLED.value,
                hold=None,
                reason=EndReason.DEPENDENCY.value,
                detail=f"{vain} can never be met",
                ended_ms=tx.now_ms,
            )
        )
        tx.emit(JobEnded(tx.now_ms, job.id, JobState.CANCELLED, EndReason.DEPENDENCY))
        tx.note(
            job.id,
            "ended",
            tx.now_ms,
            state=JobState.CANCELLED,
            reason=EndReason.DEPENDENCY,
            dependency=str(vain),
        )
    return [job.id for job, _ in ending]


def _dependencies_on(tx: Transaction, moved: Sequence[JobId]) -> dict[JobId, set[str]]:
    """Returns, by waiter, the dependencies that the moved jobs may have settled."""
    found: dict[JobId, set[str]] = {}
    table = JOB_DEPENDENCY.c
    for part in chunks(moved):
        arrays = sa.select(JOB.c.array_id).where(JOB.c.id.in_(part), JOB.c.array_id.is_not(None))
        alike = sa.select(table.job_id, table.dependency).join(
            JOB, sa.and_(JOB.c.account == table.account, JOB.c.user == table.user, JOB.c.name == table.name)
        )
        for statement in (
            sa.select(table.job_id, table.dependency).where(table.on_job.in_(part)),
            sa.select(table.job_id, table.dependency).where(table.on_array.in_(arrays)),
            alike.where(JOB.c.id.in_(part), table.kind == DependencyKind.SINGLETON.value),
        ):
            for job, dependency in tx.connection.execute(statement):
                found.setdefault(JobId(job), set()).add(dependency)
    return found


def _tallies(tx: Transaction, wanted: Sequence[Dependency]) -> dict[Dependency, Tally]:
    """Returns how the jobs stand that each dependency is on. Two statements for each thousand."""
    single = _counted(tx, JOB.c.id, [each.job for each in wanted if each.job is not None and not each.is_on_array])
    whole = _counted(tx, JOB.c.array_id, [each.job for each in wanted if each.job is not None and each.is_on_array])
    tallies = {}
    for each in wanted:
        tally = (whole if each.is_on_array else single).get(each.job or 0)
        # Rows of jobs are kept for ever, and a dependency is made on rows that are there.
        assert tally is not None, f"there is no job {each}"
        tallies[each] = tally
    return tallies


def _counted(tx: Transaction, key: "sa.ColumnElement[int]", ids: Sequence[JobId]) -> dict[int, Tally]:
    has_begun = sa.case((JOB.c.started_ms.is_(None), 0), else_=1)
    tallies: dict[int, Tally] = {}
    for part in chunks(list(dict.fromkeys(ids))):
        statement = sa.select(key, JOB.c.state, has_begun, sa.func.count()).where(key.in_(part))
        for id_, state, begun, count in tx.connection.execute(statement.group_by(key, JOB.c.state, has_begun)):
            old = tallies.get(id_, Tally())
            if state == JobState.COMPLETED:
                tallies[id_] = old._replace(completed=old.completed + count)
            elif state in _ENDED:
                tallies[id_] = old._replace(failed=old.failed + count)
            elif begun:
                tallies[id_] = old._replace(begun=old.begun + count)
            else:
                tallies[id_] = old._replace(waiting=old.waiting + count)
    return tallies


def _count_alike(tx: Transaction, alike: Sequence[str], before: JobId | None = None) -> int:
    """Returns how many jobs of the project, user and name live; `before` counts those that came earlier only."""
    account, user, name = alike
    statement = sa.select(sa.func.count()).where(
        JOB.c.account == account, JOB.c.user == user, JOB.c.name == name, JOB.c.state.not_in(_ENDED)
    )
    if before is not None:
        statement = statement.where(JOB.c.id < before)
    return int(tx.connection.execute(statement).scalar_one())


def _load(tx: Transaction, ids: Sequence[JobId]) -> list[Job]:
    return [
        job_of(row)
        for part in chunks(ids)
        for row in tx.connection.execute(sa.select(*JOB_COLUMNS).where(JOB.c.id.in_(part)).order_by(JOB.c.id))
    ]


def _forget_ended(tx: Transaction, moved: Sequence[JobId]) -> None:
    """A waiter that was cancelled waits for nothing any more; one that goes on has no row."""
    for part in chunks(moved):
        over = sa.select(JOB.c.id).where(JOB.c.id.in_(part), JOB.c.state.in_(_ENDED))
        tx.connection.execute(sa.delete(JOB_DEPENDENCY).where(JOB_DEPENDENCY.c.job_id.in_(over)))


def _forget(tx: Transaction, job: JobId, met: Iterable[Dependency]) -> None:
    tx.connection.execute(
        sa.delete(JOB_DEPENDENCY).where(
            JOB_DEPENDENCY.c.job_id == job, JOB_DEPENDENCY.c.dependency.in_([str(each) for each in met])
        )
    )


def _row(job: Job, each: Dependency, name: str) -> JsonObject:
    is_singleton = each.job is None
    return {
        "job_id": job.id,
        "dependency": str(each),
        "kind": each.kind.value,
        "on_job": None if each.is_on_array else each.job,
        "on_array": each.job if each.is_on_array else None,
        "account": job.account if is_singleton else None,
        "user": job.user if is_singleton else None,
        "name": name if is_singleton else None,
    }


def _never(each: Dependency) -> Refused:
    place = str(each).partition(":")[2]
    how = "has not completed and never will" if each.kind is DependencyKind.AFTEROK else "has completed"
    what = f"{each}: {place} {how}"
    return Refused(
        RefusalCode.NEVER_FITS,
        f"{what}, so this job could never start",
        tries=(f"--after any:{place}",),
        problems=(Problem(what, "after"),),
    )
