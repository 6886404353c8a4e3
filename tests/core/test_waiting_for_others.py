"""Jobs that wait for other jobs, and arrays with a cap: what the planner sees of them, and what it says."""

from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.core import events
from scheduler.core.dependency import Standing, Tally, standing
from scheduler.core.explain import explain
from scheduler.core.lifecycle import ACTIVE
from scheduler.core.model import Account, Dependency, DependencyKind, EndReason, Job, JobId, JobState
from scheduler.core.outcome import Verdict, after_end
from scheduler.core.policy import Policy
from scheduler.core.reasons import ReasonCode
from tests.builders import START_MS, account, job, node
from tests.harness import Centre

KINDS = [kind for kind in DependencyKind if kind is not DependencyKind.SINGLETON]
ENDS = ("completed", "failed")


def meets(kind: DependencyKind, final: tuple[str, ...]) -> bool:
    """Whether jobs that ended so satisfy the dependency, by the words of its definition."""
    if kind is DependencyKind.AFTEROK:
        return all(each == "completed" for each in final)
    return kind is not DependencyKind.AFTERNOTOK or "failed" in final


@pytest.mark.parametrize("kind", KINDS)
def test_a_dependency_stands_as_every_future_of_its_jobs_says(kind: DependencyKind) -> None:
    """Never met exactly when no way for the live jobs to end would meet it; met for good, whatever comes."""
    for size in (1, 2, 3):
        for now in product(("waiting", "begun", *ENDS), repeat=size):
            tally = Tally(*(now.count(word) for word in ("waiting", "begun", *ENDS)))
            found = standing(kind, tally)
            if kind is DependencyKind.AFTER:
                assert found is (Standing.WAITS if "waiting" in now else Standing.MET)
                continue
            futures = list(product(*((each,) if each in ENDS else ENDS for each in now)))
            if not any(meets(kind, final) for final in futures):
                assert found is Standing.NEVER, now
            elif tally.live:
                assert found is Standing.WAITS, now
            else:
                assert found is Standing.MET, now


def waiter(*after: int, **changes: object) -> Job:
    waits_for = tuple(Dependency(DependencyKind.AFTEROK, JobId(number)) for number in after)
    return replace(job(), waits_for=waits_for, **changes)  # type: ignore[arg-type]  # a test's own keywords


def said(centre: Centre, waiting: JobId) -> str | None:
    assert centre.last is not None
    return explain(centre.state, centre.last, waiting).reasons[0].detail


def test_a_job_that_waits_for_another_starts_when_it_waits_no_more_and_says_for_what() -> None:
    centre = Centre(node(gpus=2))
    first = centre.submit(job())
    second = centre.submit(waiter(first))
    centre.tick()
    assert centre.running() == {first}
    assert centre.why(second) is ReasonCode.DEPENDENCY
    assert said(centre, second) == f"afterok:{first}"
    centre.end(first)
    centre.apply(events.JobChanged(centre.now_ms, replace(centre.state.jobs[second], waits_for=())))
    centre.tick()
    assert centre.running() == {second}


def test_what_waits_for_others_is_no_demand() -> None:
    centre = Centre(node(), accounts=(account("acme"),))
    centre.submit(waiter(7))
    assert not centre.state.settled_demand().totals


def test_a_job_whose_begin_time_is_to_come_waits_for_both() -> None:
    centre = Centre(node())
    later = centre.submit(waiter(7, begin_ms=START_MS + 60_000))
    centre.apply(events.JobChanged(centre.now_ms, replace(centre.state.jobs[later], waits_for=())))
    centre.tick()
    assert centre.why(later) is ReasonCode.BEGIN_TIME
    centre.advance(minutes=1)
    centre.tick()
    assert centre.running() == {later}


def array(centre: Centre, count: int, cap: int | None, **changes: object) -> list[JobId]:
    """Submits an array as the store does: ids in a row, the first of them the array's own."""
    first = JobId(max(centre.state.jobs, default=0) + 1)
    elements = [replace(job(), array=first, array_index=index, array_cap=cap, **changes) for index in range(count)]  # type: ignore[arg-type]
    return [centre.submit(each) for each in elements]


def test_no_more_elements_run_than_the_cap_and_the_next_one_follows() -> None:
    centre = Centre(node(gpus=8))
    elements = array(centre, 5, cap=2)
    centre.tick()
    assert centre.running() == set(elements[:2])
    assert [centre.why(each) for each in elements[2:]] == [ReasonCode.ARRAY_LIMIT] * 3
    assert said(centre, elements[2]) == f"at most 2 of array {elements[0]} at once"
    centre.end(elements[0])
    centre.tick()
    assert centre.running() == set(elements[1:3])


def test_an_element_that_stops_still_counts() -> None:
    centre = Centre(node(gpus=8))
    elements = array(centre, 2, cap=1)
    centre.tick()
    allocation = centre.state.jobs[elements[0]].allocation
    assert allocation is not None
    centre.apply(events.AllocationStopping(centre.now_ms, allocation, EndReason.CANCELLED))
    centre.tick()
    assert centre.state.jobs[elements[1]].state is JobState.PENDING
    centre.end(elements[0], EndReason.CANCELLED)
    centre.tick()
    assert centre.running() == {elements[1]}


def test_demand_counts_no_more_elements_than_may_run() -> None:
    centre = Centre(node(gpus=8))
    array(centre, 6, cap=2)
    assert sum(centre.state.settled_demand().totals.values()) == 2 * 2 * 12_600  # of the project and its tenant
    centre.tick()
    assert not centre.state.settled_demand().totals


def test_an_element_of_higher_priority_takes_the_place_in_line() -> None:
    centre = Centre(node(gpus=1))
    running = centre.submit(job())
    centre.tick()
    elements = array(centre, 3, cap=1)
    centre.apply(events.JobChanged(centre.now_ms, replace(centre.state.jobs[elements[2]], priority=1)))
    centre.end(running)
    centre.tick()
    assert centre.running() == {elements[2]}


steps = st.lists(
    st.tuples(st.sampled_from(["tick", "end", "requeue", "cancel", "hold", "release", "raise"]), st.integers(0, 9)),
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(gpus=st.integers(1, 6), sizes=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 4)), max_size=3), moves=steps)
def test_caps_hold_and_nobody_waits_beside_a_free_place(
    gpus: int, sizes: list[tuple[int, int]], moves: list[tuple[str, int]]
) -> None:
    """By counting elements by hand after every tick: the cap is kept, and what fits it and the node runs."""
    centre = Centre(node(gpus=gpus))
    for count, cap in sizes:
        array(centre, count, cap)
    for kind, number in moves:
        _move(centre, kind, number)
        _check(centre, gpus)
    centre.tick()
    _check(centre, gpus)
    for each in list(centre.state.jobs.values()):
        if each.state is JobState.PENDING:
            active = [other for other in centre.state.jobs.values() if other.array == each.array and other.allocation]
            is_full = len(centre.running()) == gpus
            assert is_full or len(active) == each.array_cap, f"{each.id} waits beside a free GPU"


def _move(centre: Centre, kind: str, number: int) -> None:
    live = sorted(centre.state.jobs)
    if kind == "tick" or not live:
        centre.tick()
        return
    target = centre.state.jobs[live[number % len(live)]]
    if kind in {"end", "requeue"} and target.state in ACTIVE:
        centre.end(target.id, None if kind == "end" else EndReason.REQUEUED)
    elif kind == "cancel" and target.state not in ACTIVE:
        centre.cancel(target.id)
    elif kind == "hold" and target.state is JobState.PENDING:
        centre.hold(target.id)
    elif kind == "release" and target.state is JobState.HELD:
        centre.apply(events.JobReleased(centre.now_ms, target.id))
    elif kind == "raise" and target.state is JobState.PENDING:
        centre.apply(events.JobChanged(centre.now_ms, replace(target, priority=number % 3 - 1)))


def _check(centre: Centre, gpus: int) -> None:
    running: dict[JobId | None, int] = {}
    for each in centre.state.jobs.values():
        running[each.array] = running.get(each.array, 0) + (each.state in ACTIVE)
    caps = {each.array: each.array_cap for each in centre.state.jobs.values()}
    assert all(count <= (caps[array_id] or 0) for array_id, count in running.items())
    assert sum(running.values()) <= gpus


def test_elements_behind_their_line_follow_a_new_order_of_their_project() -> None:
    """All others of the array run, so the project of what stands behind them has nobody in line."""
    centre = Centre(node(gpus=8))
    array(centre, 3, cap=2)
    centre.tick()
    (project,) = {each.account for each in centre.state.jobs.values()}
    changed = Account(project, limit_weight=2, takes_turns=True)
    centre.apply(events.AccountChanged(centre.now_ms, changed))
    centre.state.check()


@pytest.mark.parametrize(
    ("reason", "verdict", "left"),
    [
        (EndReason.OOM, Verdict.WAITS_AGAIN, 1),
        (EndReason.EXIT_NONZERO, Verdict.ENDED, 2),
        (EndReason.NODE_LOST, Verdict.WAITS_AGAIN, 2),
        (EndReason.PREEMPTED, Verdict.WAITS_AGAIN, 2),
        (EndReason.WALLTIME, Verdict.ENDED, 2),
    ],
)
def test_a_job_that_names_its_failures_is_retried_after_those_alone(
    reason: EndReason, verdict: Verdict, left: int
) -> None:
    ran = replace(job(retries=2), state=JobState.RUNNING, attempt=1, retry_on=(EndReason.OOM,))
    after, found = after_end(ran, reason, START_MS, Policy())
    assert (found, after.retries_left) == (verdict, left)


def test_a_job_may_be_preempted_any_number_of_times() -> None:
    ran = replace(job(), state=JobState.STOPPING, attempt=1000)
    assert after_end(ran, EndReason.PREEMPTED, START_MS, Policy())[1] is Verdict.WAITS_AGAIN
    lost = replace(ran, state=JobState.RUNNING)
    assert after_end(lost, EndReason.NODE_LOST, START_MS, Policy())[1] is Verdict.ENDED
