"""Jobs that wait for others: kept true in the database by whatever makes the others begin or end."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scheduler.core import events
from scheduler.core.model import (
    Dependency,
    DependencyKind,
    EndReason,
    HoldKind,
    JobId,
    JobState,
)
from scheduler.executor import Ended
from scheduler.refusal import RefusalCode, Refused
from scheduler.store.actions import CancelJobs, HoldJobs, ReleaseJobs
from scheduler.store.observations import RecordObservations
from tests.store.conftest import MakeDatabase
from tests.store.harness import Centre, draft, start

OK, ANY, FAIL = DependencyKind.AFTEROK, DependencyKind.AFTERANY, DependencyKind.AFTERNOTOK
BEGUN = DependencyKind.AFTER
SINGLETON = (Dependency(DependencyKind.SINGLETON),)


def on(kind: DependencyKind, *jobs: JobId) -> tuple[Dependency, ...]:
    return tuple(Dependency(kind, job) for job in jobs)


def on_array(kind: DependencyKind, array: JobId, *, index: int | None = None) -> tuple[Dependency, ...]:
    job = array if index is None else JobId(array + index)
    return (Dependency(kind, job, array, index),)


def run_to(centre: Centre, job: JobId, reason: EndReason | None) -> None:
    """Starts a job and ends it at once."""
    allocation = centre.apply(start(job, "n0/0")).started[0].allocation
    centre.started(allocation)
    centre.ended(allocation, reason)


def waits(centre: Centre, job: JobId) -> bool:
    return bool(centre.state.jobs[job].waits_for)


@pytest.mark.parametrize(
    ("kind", "end", "becomes"),
    [
        (OK, None, JobState.PENDING),
        (OK, EndReason.EXIT_NONZERO, JobState.CANCELLED),
        (ANY, EndReason.EXIT_NONZERO, JobState.PENDING),
        (ANY, None, JobState.PENDING),
        (FAIL, EndReason.WALLTIME, JobState.PENDING),
        (FAIL, None, JobState.CANCELLED),
        (BEGUN, EndReason.OOM, JobState.PENDING),
    ],
)
def test_the_end_of_a_job_lets_waiters_go_on_or_ends_them(
    centre: Centre, kind: DependencyKind, end: EndReason | None, becomes: JobState
) -> None:
    (first,) = centre.submit()
    (waiter,) = centre.submit(draft(after=on(kind, first)))
    assert waits(centre, waiter)
    centre.check()
    run_to(centre, first, end)
    assert centre.job_state(waiter) is becomes
    if becomes is JobState.PENDING:
        assert not waits(centre, waiter)
        assert "dependencies_met" in centre.kinds(waiter)
        assert not centre.apply(start(waiter, "n0/0")).rejected
    else:
        assert centre.job_column(waiter, "reason") == "dependency"
        assert centre.job_column(waiter, "detail") == f"{kind}:{first} can never be met"
        assert waiter not in centre.state.jobs
    centre.check()


def test_after_is_met_when_the_other_begins(centre: Centre) -> None:
    (first,) = centre.submit()
    (waiter,) = centre.submit(draft(after=on(BEGUN, first)))
    allocation = centre.apply(start(first, "n0/0")).started[0].allocation
    assert waits(centre, waiter)
    centre.started(allocation)
    assert not waits(centre, waiter)
    centre.check()


def test_a_plan_that_starts_a_waiter_is_rejected(centre: Centre) -> None:
    (first,) = centre.submit()
    (waiter,) = centre.submit(draft(after=on(OK, first)))
    assert centre.apply(start(waiter, "n0/0")).rejected == ((waiter, f"the job waits for afterok:{first}"),)
    centre.check()


def test_a_dependency_that_was_met_before_is_none_and_one_that_never_will_be_is_refused(centre: Centre) -> None:
    completed, failed = centre.submit(draft(), draft())
    run_to(centre, completed, None)
    run_to(centre, failed, EndReason.EXIT_NONZERO)
    (free,) = centre.submit(draft(after=(*on(OK, completed), *on(FAIL, failed), *on(ANY, failed, completed))))
    assert not waits(centre, free)
    for after in (on(OK, failed), on(FAIL, completed)):
        with pytest.raises(Refused, match="could never start") as raised:
            centre.submit(draft(after=after))
        assert raised.value.code is RefusalCode.NEVER_FITS
        assert raised.value.tries == (f"--after any:{after[0].job}",)
    centre.check()


def test_cancelling_a_job_ends_the_whole_chain_that_waits_for_its_success(centre: Centre) -> None:
    (first,) = centre.submit()
    (second,) = centre.submit(draft(after=on(OK, first)))
    (third,) = centre.submit(draft(after=on(OK, second)))
    (tidy_up,) = centre.submit(draft(after=on(ANY, third)))
    centre.do(CancelJobs((first,), "ana"))
    assert [centre.job_state(job) for job in (second, third)] == [JobState.CANCELLED] * 2
    assert centre.job_state(tidy_up) is JobState.PENDING
    assert not waits(centre, tidy_up)
    centre.check()


def test_a_waiter_waits_for_all_that_it_names_and_survives_a_restart_between(centre: Centre) -> None:
    one, two = centre.submit(draft(), draft())
    (waiter,) = centre.submit(draft(after=on(OK, one, two)))
    run_to(centre, one, None)
    assert centre.state.jobs[waiter].waits_for == on(OK, two)
    centre.reopen()
    centre.model.jobs = {id_: job for id_, job in centre.state.jobs.items()}  # noqa: C416  (keys of another type)
    assert centre.state.jobs[waiter].waits_for == on(OK, two)
    run_to(centre, two, None)
    assert not waits(centre, waiter)
    centre.check()


def test_a_retried_job_has_not_ended(centre: Centre) -> None:
    (first,) = centre.submit(draft(retries=1))
    (waiter,) = centre.submit(draft(after=on(OK, first)))
    run_to(centre, first, EndReason.EXIT_NONZERO)
    assert centre.job_state(first) is JobState.PENDING
    assert waits(centre, waiter)
    centre.check()


def test_an_array_is_waited_for_as_a_whole_and_an_element_alone(centre: Centre) -> None:
    array, *_ = centre.submit(draft(array_indexes=(0, 1, 2)))
    (whole,) = centre.submit(draft(after=on_array(ANY, array)))
    (single,) = centre.submit(draft(after=on_array(OK, array, index=1)))
    assert str(centre.state.jobs[single].waits_for[0]) == f"afterok:{array}_1"
    run_to(centre, JobId(array + 1), None)
    assert not waits(centre, single)
    assert waits(centre, whole)
    run_to(centre, array, EndReason.OOM)
    assert waits(centre, whole)
    run_to(centre, JobId(array + 2), None)
    assert not waits(centre, whole)
    centre.check()


def test_one_failed_element_ends_what_waits_for_the_success_of_the_array(centre: Centre) -> None:
    array, *_ = centre.submit(draft(array_indexes=(0, 1)))
    (waiter,) = centre.submit(draft(after=on_array(OK, array)))
    run_to(centre, array, EndReason.EXIT_NONZERO)
    assert centre.job_state(waiter) is JobState.CANCELLED
    centre.check()


def test_an_array_may_wait_and_all_of_its_elements_do(centre: Centre) -> None:
    (first,) = centre.submit()
    elements = centre.submit(draft(array_indexes=(0, 1, 2), after=on(OK, first)))
    assert all(waits(centre, each) for each in elements)
    centre.check()
    run_to(centre, first, None)
    assert not any(waits(centre, each) for each in elements)
    centre.check()


def test_singletons_of_one_name_and_user_run_one_after_another(centre: Centre) -> None:
    (first,) = centre.submit(draft(after=SINGLETON))
    assert not waits(centre, first)
    (second,) = centre.submit(draft(after=SINGLETON))
    (third,) = centre.submit(draft(after=SINGLETON))
    (other,) = centre.submit(draft(name="another", after=SINGLETON))
    assert not waits(centre, other)
    run_to(centre, first, EndReason.EXIT_NONZERO)
    assert (waits(centre, second), waits(centre, third)) == (False, True)
    centre.do(CancelJobs((second,), "ana"))
    assert not waits(centre, third)
    centre.check()


def test_a_held_waiter_stays_held_when_its_dependency_is_met(centre: Centre) -> None:
    (first,) = centre.submit()
    (waiter,) = centre.submit(draft(after=on(OK, first)))
    centre.do(HoldJobs((waiter,), HoldKind.USER, "ana"))
    run_to(centre, first, None)
    assert centre.job_state(waiter) is JobState.HELD
    centre.do(ReleaseJobs((waiter,), HoldKind.USER, "ana"))
    assert not centre.apply(start(waiter, "n0/0")).rejected
    centre.check()


def test_a_cancelled_waiter_leaves_nothing_behind(centre: Centre) -> None:
    (first,) = centre.submit()
    (waiter,) = centre.submit(draft(after=on(OK, first)))
    centre.do(CancelJobs((waiter,), "ana"))
    run_to(centre, first, None)
    assert centre.job_state(waiter) is JobState.CANCELLED
    centre.check()


def test_the_store_starts_no_more_elements_than_the_cap(centre: Centre) -> None:
    """A plan is made from memory; the store counts again, and what is stopping counts too."""
    elements = centre.submit(draft(array_indexes=(0, 1, 2), array_cap=1))
    plan = (start(elements[0], "n0/0"), start(elements[1], "n0/1"))
    applied = centre.apply(*plan)
    assert [each.allocation.job for each in applied.started] == [elements[0]]
    assert applied.rejected == ((elements[1], f"1 of array {elements[0]} hold GPUs already"),)
    centre.do(CancelJobs((elements[0],), "ana"))
    assert centre.apply(start(elements[1], "n0/1")).rejected
    centre.ended(applied.started[0].allocation, EndReason.CANCELLED)
    assert not centre.apply(start(elements[1], "n0/1")).rejected
    centre.check()


def oracle(kind: DependencyKind, ends: list[bool | None], begun: list[bool]) -> str:
    """What must become of a waiter on jobs that ended well (True), badly (False), or not yet (None)."""
    if kind is OK:
        return "never" if False in ends else "waits" if None in ends else "met"
    if kind is BEGUN:
        return "met" if all(did or end is not None for did, end in zip(begun, ends, strict=True)) else "waits"
    if None in ends:
        return "waits"
    return "never" if kind is FAIL and all(ends) else "met"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kinds=st.lists(st.sampled_from([OK, ANY, FAIL, BEGUN]), min_size=1, max_size=3, unique=True),
    moves=st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["begin", "well", "badly", "cancel"])), max_size=6),
)
def test_a_waiter_stands_as_counting_by_hand_says(
    make_database: MakeDatabase, kinds: list[DependencyKind], moves: list[tuple[int, str]]
) -> None:
    """Arrays of three, any order of starts, ends and cancels; the brute force looks at each element every time."""
    centre = Centre.open(make_database())
    array, *_ = elements = centre.submit(draft(array_indexes=(0, 1, 2)))
    waiters = {kind: centre.submit(draft(name=kind, after=on_array(kind, array)))[0] for kind in kinds}
    ends: list[bool | None] = [None] * 3
    begun, running = [False] * 3, {}
    for index, move in moves:
        if ends[index] is not None:
            continue
        if move == "cancel" and index not in running:
            centre.do(CancelJobs((elements[index],), "ana"))
            ends[index] = False
        elif move == "begin" and index not in running:
            running[index] = centre.apply(start(elements[index], f"n0/{index}")).started[0].allocation
            centre.started(running[index])
            begun[index] = True
        elif move in {"well", "badly"} and index in running:
            centre.ended(running[index], None if move == "well" else EndReason.EXIT_NONZERO)
            ends[index] = move == "well"
        for kind, waiter in waiters.items():
            expected = oracle(kind, ends, begun)
            state = centre.job_state(waiter)
            assert (state is JobState.CANCELLED) == (expected == "never"), (kind, ends)
            if expected != "never":
                assert waits(centre, waiter) == (expected == "waits"), (kind, ends, begun)
    centre.check()


def test_every_change_of_a_waiter_is_told_as_an_event(centre: Centre) -> None:
    (first,) = centre.submit()
    (waiter,) = centre.submit(draft(after=on(OK, first)))
    (vain,) = centre.submit(draft(after=on(FAIL, first)))
    allocation = centre.apply(start(first, "n0/0")).started[0].allocation
    ended = Ended(allocation.id, centre.clock.now_ms(), 0, None, centre.clock.now_ms())
    batch = centre.commit(RecordObservations((ended,)))
    changed = [event.job.id for event in batch.events if isinstance(event, events.JobChanged)]
    over = [(event.job, event.reason) for event in batch.events if isinstance(event, events.JobEnded)]
    assert changed == [waiter]
    assert over == [(vain, EndReason.DEPENDENCY)]
