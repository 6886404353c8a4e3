"""Jobs that wait for others: what is still to be waited for, and what becomes of waiters when others move.

`core.dependency` has the rule. Here the jobs that a dependency is on are counted, at the submission and whenever one
of them begins or ends, in that same transaction: what a waiter still waits for is always true in the database.

A waiter whose dependency can never be met any more ends as cancelled, and those that wait for it learn of that too.
"""

from collections.abc import Collection, Iterable, Sequence
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
from scheduler.store.columns import JsonObject
from scheduler.store.database import chunks
from scheduler.store.prepared import Prepared
from scheduler.store.tables import JOB, JOB_DEPENDENCY
from scheduler.store.transaction import Transaction

Alike = tuple[AccountId, UserName, str]
"""Project, user and name of a job: what a singleton is one of."""

_NAMES = ("job_id", "dependency", "kind", "on_job", "on_array", "account", "user", "name")
_INSERT = Prepared(sa.insert(JOB_DEPENDENCY), _NAMES)
_ANY = sa.select(JOB_DEPENDENCY.c.job_id).limit(1)
_ENDED = sorted(state.value for state in ENDS)
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
    """Does one step; returns the jobs that it ended, for the next. Costs a few statements for each thousand waiters.

    First it is asked how each dependency on the moved jobs stands, once for all that share it; waiters of those that
    still stand are not looked at.
    """
    _forget_ended(tx, moved)
    on_jobs = _dependencies_on(tx, moved)
    tallies = _tallies(tx, on_jobs)
    met: dict[JobId, set[str]] = {}
    vain: dict[JobId, Dependency] = {}
    for each in on_jobs:
        found = standing(each.kind, tallies[each])
        if found is Standing.WAITS:
            continue
        for job in _waiters_of(tx, each):
            if found is Standing.MET:
                met.setdefault(job, set()).add(str(each))
            else:
                vain.setdefault(job, each)
    for job in _first_of_their_kind(tx, moved):
        met.setdefault(job, set()).add(DependencyKind.SINGLETON.value)
    jobs = [job for job in _load(tx, sorted({*met, *vain})) if job.state in WAITING]
    _go_on(tx, [_without(job, met[job.id]) for job in jobs if job.id not in vain])
    return _end(tx, [(job, vain[job.id]) for job in jobs if job.id in vain])


def _without(job: Job, met: set[str]) -> Job:
    return replace(job, waits_for=tuple(each for each in job.waits_for if str(each) not in met))


def _go_on(tx: Transaction, jobs: Sequence[Job]) -> None:
    """Writes what each job still waits for; those that wait for the same are written together."""
    alike: dict[tuple[Dependency, ...], list[JobId]] = {}
    for job in jobs:
        alike.setdefault(job.waits_for, []).append(job.id)
        tx.emit(JobChanged(tx.now_ms, job))
        if not job.waits_for:
            tx.note(job.id, "dependencies_met", tx.now_ms)
    for waits_for, ids in alike.items():
        left = [str(each) for each in waits_for]
        for part in chunks(ids):
            is_met = sa.and_(JOB_DEPENDENCY.c.job_id.in_(part), JOB_DEPENDENCY.c.dependency.not_in(left))
            tx.connection.execute(sa.delete(JOB_DEPENDENCY).where(is_met))
            statement = sa.update(JOB).where(JOB.c.id.in_(part))
            tx.connection.execute(statement.values(waits_for=waits_for_text(waits_for)))


def _end(tx: Transaction, ending: Sequence[tuple[Job, Dependency]]) -> list[JobId]:
    alike: dict[Dependency, list[JobId]] = {}
    for job, vain in ending:
        alike.setdefault(vain, []).append(job.id)
        tx.emit(JobEnded(tx.now_ms, job.id, JobState.CANCELLED, EndReason.DEPENDENCY))
        tx.note(
            job.id,
            "ended",
            tx.now_ms,
            state=JobState.CANCELLED,
            reason=EndReason.DEPENDENCY,
            dependency=str(vain),
        )
    for vain, ids in alike.items():
        values = {
            "state": JobState.CANCELLED.value,
            "hold": None,
            "reason": EndReason.DEPENDENCY.value,
            "detail": f"{vain} can never be met",
            "ended_ms": tx.now_ms,
        }
        for part in chunks(ids):
            tx.connection.execute(sa.update(JOB).where(JOB.c.id.in_(part)).values(**values))
    return [job.id for job, _ in ending]


def _dependencies_on(tx: Transaction, moved: Sequence[JobId]) -> list[Dependency]:
    """Returns the dependencies on the moved jobs, or on their arrays, that somebody waits for; each once, in order."""
    found: dict[str, Dependency] = {}
    table = JOB_DEPENDENCY.c
    asked = sa.select(table.dependency, table.kind, table.on_job, table.on_array).distinct()
    for part in chunks(moved):
        arrays = sa.select(JOB.c.array_id).where(JOB.c.id.in_(part), JOB.c.array_id.is_not(None))
        for statement in (asked.where(table.on_job.in_(part)), asked.where(table.on_array.in_(arrays))):
            for name, kind, on_job, on_array in tx.connection.execute(statement):
                found[name] = _written(name, DependencyKind(kind), on_job, on_array)
    return [found[name] for name in sorted(found)]


def _written(name: str, kind: DependencyKind, on_job: int | None, on_array: int | None) -> Dependency:
    """Returns a dependency as its row has it: of an element the name has its array and index besides."""
    if on_job is None:
        assert on_array is not None, "a dependency is on a job or an array"
        return Dependency(kind, JobId(on_array), JobId(on_array))
    array, _, index = name.partition(":")[2].partition("_")
    if not index:
        return Dependency(kind, JobId(on_job))
    return Dependency(kind, JobId(on_job), JobId(int(array)), int(index))


def _waiters_of(tx: Transaction, each: Dependency) -> list[JobId]:
    table = JOB_DEPENDENCY.c
    is_on = table.on_array == each.job if each.is_on_array else table.on_job == each.job
    statement = sa.select(table.job_id).where(is_on, table.dependency == str(each))
    return [JobId(job) for job in tx.connection.execute(statement.order_by(table.job_id)).scalars()]


def _first_of_their_kind(tx: Transaction, moved: Sequence[JobId]) -> list[JobId]:
    """Returns the singletons that wait for nobody any more now that these moved: none alike lives that came earlier.

    Elements of one array don't wait for each other.
    """
    table = JOB_DEPENDENCY.c
    kinds: set[tuple[str, str, str]] = set()
    for part in chunks(moved):
        alike = sa.and_(JOB.c.account == table.account, JOB.c.user == table.user, JOB.c.name == table.name)
        statement = sa.select(table.account, table.user, table.name).distinct().join(JOB, alike)
        kinds.update(tuple(row) for row in tx.connection.execute(statement.where(JOB.c.id.in_(part))))
    return _firsts(tx, kinds)


def let_go_on(tx: Transaction, kinds: Collection[Alike]) -> None:
    """Lets singletons go on that waited for jobs which got another name or project, and so are none of theirs."""
    if not kinds or tx.connection.execute(_ANY).first() is None:
        return
    met = {DependencyKind.SINGLETON.value}
    _go_on(tx, [_without(job, met) for job in _load(tx, sorted(_firsts(tx, kinds))) if job.state in WAITING])


def _firsts(tx: Transaction, kinds: Collection[tuple[str, str, str]]) -> list[JobId]:
    table = JOB_DEPENDENCY.c
    found: list[JobId] = []
    for account, user, name in sorted(kinds):
        first = (
            sa.select(sa.func.min(JOB.c.id))
            .where(JOB.c.account == account, JOB.c.user == user, JOB.c.name == name, JOB.c.state.not_in(_ENDED))
            .scalar_subquery()
        )
        statement = (
            sa.select(table.job_id)
            .join(JOB, JOB.c.id == table.job_id)
            .where(table.account == account, table.user == user, table.name == name)
            .where(sa.func.coalesce(JOB.c.array_id, JOB.c.id) <= first)
        )
        found += [JobId(job) for job in tx.connection.execute(statement.order_by(table.job_id)).scalars()]
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


def _count_alike(tx: Transaction, alike: Sequence[str]) -> int:
    """Returns how many jobs of the project, user and name live."""
    account, user, name = alike
    statement = sa.select(sa.func.count()).where(
        JOB.c.account == account, JOB.c.user == user, JOB.c.name == name, JOB.c.state.not_in(_ENDED)
    )
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
