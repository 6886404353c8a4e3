"""Actions on jobs: hold, release, cancel, requeue, update; many at once, each told what became of it."""

import pytest
from sqlalchemy import event as sa_event

from scheduler.core.model import EndReason, HoldKind, JobId, JobState, NodeName
from scheduler.refusal import RefusalCode, Refused
from scheduler.store.actions import (
    CancelJobs,
    Did,
    EndOverdue,
    HoldJobs,
    JobAction,
    ReleaseJobs,
    RequeueJobs,
    UpdateJobs,
    overdue_jobs,
)
from scheduler.store.allocations import MarkStopping
from tests.store.harness import Centre, draft, start


def dids(actions: tuple[JobAction, ...]) -> list[Did]:
    return [action.did for action in actions]


def test_each_id_is_told_what_became_of_it(centre: Centre) -> None:
    running = centre.run("n0/0")
    waiting, held, over = centre.submit(draft(), draft(is_held=True), draft())
    centre.do(CancelJobs((over,), "ana"))
    actions = centre.do(CancelJobs((waiting, held, running.job, over, JobId(999)), "ana"))
    assert dids(actions) == [Did.CANCELLED, Did.CANCELLED, Did.STOPPING, Did.ALREADY_ENDED, Did.UNKNOWN]
    assert [action.state for action in actions][-2:] == [JobState.CANCELLED, None]
    assert centre.job_column(held, "hold") is None
    assert centre.job_column(waiting, "ended_ms") == centre.clock.now_ms()
    assert centre.kinds(running.job) == ["submitted", "allocated", "stopping"]
    centre.check()


def test_cancelling_fifty_thousand_jobs_is_one_command_of_few_statements(centre: Centre) -> None:
    """The work is set-based: a thousand jobs a statement, not a statement a job."""
    ids = centre.submit(draft(array_indexes=tuple(range(50_000))))
    statements: list[str] = []
    sa_event.listen(
        centre.database._writer, "before_cursor_execute", lambda *arguments: statements.append(arguments[2])
    )
    actions = centre.do(CancelJobs(ids, "ana"))
    assert {action.did for action in actions} == {Did.CANCELLED}
    assert len(statements) < 150
    assert centre.state.jobs == {}
    assert centre.rebuilt().jobs == {}


def test_a_user_may_not_release_what_an_operator_holds_and_nothing_of_the_command_happens(centre: Centre) -> None:
    mine, theirs = centre.submit(draft(), draft())
    centre.do(HoldJobs((mine,), HoldKind.USER, "ana"))
    centre.do(HoldJobs((theirs,), HoldKind.ADMIN, "root"))
    with pytest.raises(Refused) as raised:
        centre.do(ReleaseJobs((mine, theirs), HoldKind.USER, "ana"))
    assert raised.value.code is RefusalCode.NOT_ALLOWED
    assert centre.job_state(mine) is JobState.HELD
    assert dids(centre.do(ReleaseJobs((mine, theirs), HoldKind.ADMIN, "root"))) == [Did.RELEASED, Did.RELEASED]
    centre.check()


def test_an_operators_hold_takes_a_users_over_and_not_the_other_way_round(centre: Centre) -> None:
    (job,) = centre.submit(draft(is_held=True))
    assert dids(centre.do(HoldJobs((job,), HoldKind.USER, "ana"))) == [Did.UNCHANGED]
    assert dids(centre.do(HoldJobs((job,), HoldKind.ADMIN, "root"))) == [Did.HELD]
    assert dids(centre.do(HoldJobs((job,), HoldKind.USER, "ana"))) == [Did.UNCHANGED]
    assert centre.state.jobs[job].hold is HoldKind.ADMIN
    centre.check()


def test_what_runs_is_not_held_or_updated(centre: Centre) -> None:
    job = centre.run("n0/0").job
    assert dids(centre.do(HoldJobs((job,), HoldKind.USER, "ana"))) == [Did.UNCHANGED]
    assert dids(centre.do(UpdateJobs((job,), "ana", priority=1))) == [Did.UNCHANGED]
    centre.check()


def test_a_requeued_job_stops_and_waits_again_in_its_old_place(centre: Centre) -> None:
    allocation = centre.run("n0/0")
    centre.started(allocation)
    assert dids(centre.do(RequeueJobs((allocation.job,), "ana"))) == [Did.REQUEUED]
    assert dids(centre.do(RequeueJobs((allocation.job,), "ana"))) == [Did.UNCHANGED]
    centre.ended(allocation, EndReason.REQUEUED)
    job = centre.state.jobs[allocation.job]
    assert (job.state, job.attempt, job.begin_ms) == (JobState.PENDING, 1, None)
    assert centre.kinds(job.id) == ["submitted", "allocated", "started", "stopping", "requeued"]
    centre.check()


@pytest.mark.parametrize("seen", [EndReason.PREEMPTED, EndReason.NODE_LOST, EndReason.EXIT_NONZERO])
def test_a_job_that_is_cancelled_while_it_is_preempted_does_not_come_back(centre: Centre, seen: EndReason) -> None:
    allocation = centre.run("n0/0", retries=3)
    centre.started(allocation)
    centre.do(MarkStopping((allocation.id,), EndReason.PREEMPTED))
    assert dids(centre.do(CancelJobs((allocation.job,), "ana"))) == [Did.STOPPING]
    centre.ended(allocation, seen)
    assert centre.job_state(allocation.job) is JobState.CANCELLED
    assert centre.job_column(allocation.job, "reason") == "cancelled"
    centre.check()


def test_a_job_that_ended_well_before_its_cancel_took_effect_is_completed(centre: Centre) -> None:
    allocation = centre.run("n0/0")
    centre.started(allocation)
    centre.do(CancelJobs((allocation.job,), "ana"))
    centre.ended(allocation)
    assert centre.job_state(allocation.job) is JobState.COMPLETED
    assert centre.job_column(allocation.job, "reason") is None


def test_a_deadline_that_passes_fails_a_waiting_job(centre: Centre) -> None:
    (job,) = centre.submit(draft(deadline_ms=centre.clock.now_ms()))
    centre.do(CancelJobs((job,), "deadline", EndReason.DEADLINE))
    assert (centre.job_state(job), centre.job_column(job, "reason")) == (JobState.FAILED, "deadline")


def test_a_pause_after_a_failure_that_outlasts_the_deadline_ends_the_job_at_once(centre: Centre) -> None:
    now_ms = centre.clock.now_ms()
    doomed = centre.run("n0/0", retries=1, deadline_ms=now_ms + 9_000)
    saved = centre.run("n0/1", retries=1, deadline_ms=now_ms + 60_000)
    for each in (doomed, saved):
        centre.started(each)
        centre.ended(each, reason=EndReason.EXIT_NONZERO)
    assert [centre.job_state(each.job) for each in (doomed, saved)] == [JobState.PENDING, JobState.PENDING]
    centre.do(EndOverdue())
    assert [centre.job_state(each.job) for each in (doomed, saved)] == [JobState.FAILED, JobState.PENDING]
    assert centre.job_column(doomed.job, "reason") == "deadline"


def test_what_is_overdue_ends_once_and_what_has_no_deadline_or_a_later_one_goes_on(centre: Centre) -> None:
    due_ms = centre.clock.now_ms() + 60_000
    running = centre.run("n0/0", deadline_ms=due_ms)
    centre.started(running)
    pending, held, later, never = centre.submit(
        draft(deadline_ms=due_ms),
        draft(deadline_ms=due_ms, is_held=True),
        draft(deadline_ms=due_ms + 1),
        draft(),
    )
    assert centre.do(EndOverdue()) == ()
    centre.clock.advance(minutes=1)
    actions = centre.do(EndOverdue())
    assert [(action.job, action.state) for action in actions] == [
        (running.job, JobState.STOPPING),
        (pending, JobState.FAILED),
        (held, JobState.FAILED),
    ]
    assert {centre.job_column(job, "reason") for job in (running.job, pending, held)} == {"deadline"}
    assert [centre.job_state(job) for job in (later, never)] == [JobState.PENDING, JobState.PENDING]
    assert centre.do(EndOverdue()) == (), "a gang that stops at its deadline is not told again"
    centre.ended(running, reason=EndReason.EXIT_NONZERO)
    assert (centre.job_state(running.job), centre.job_column(running.job, "reason")) == (JobState.TIMEOUT, "deadline")
    centre.check()


def test_a_job_that_is_requeued_when_its_deadline_passes_does_not_come_back(centre: Centre) -> None:
    running = centre.run("n0/0", deadline_ms=centre.clock.now_ms() + 60_000)
    centre.started(running)
    centre.do(RequeueJobs((running.job,), "ana"))
    centre.clock.advance(minutes=1)
    centre.do(EndOverdue())
    centre.ended(running, reason=EndReason.EXIT_NONZERO)
    assert centre.job_state(running.job) is JobState.TIMEOUT


def test_the_look_for_overdue_jobs_costs_an_index_of_those_with_a_deadline(centre: Centre) -> None:
    centre.submit(draft(array_indexes=tuple(range(1000))))
    statements: list[tuple[str, object]] = []
    sa_event.listen(centre.database._reader, "before_cursor_execute", lambda *each: statements.append(each[2:4]))
    with centre.database.read() as connection:
        assert overdue_jobs(connection, centre.clock.now_ms()) == ()
        ((statement, parameters),) = [each for each in statements if "deadline" in each[0]]
        if connection.dialect.name == "sqlite":
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()  # type: ignore[arg-type]
            assert "ix_job_deadline_ms" in str(plan)


def test_an_update_changes_what_it_names_and_leaves_the_rest(centre: Centre) -> None:
    begin_ms = centre.clock.now_ms() + 60_000
    (job,) = centre.submit(draft(begin_ms=begin_ms))
    centre.do(UpdateJobs((job,), "ana", time_limit_ms=1000))
    assert (centre.state.jobs[job].time_limit_ms, centre.state.jobs[job].begin_ms) == (1000, begin_ms)
    assert dids(centre.do(UpdateJobs((job,), "ana", time_limit_ms=1000))) == [Did.UNCHANGED]
    assert dids(centre.do(UpdateJobs((job,), "ana", priority=1, clears_begin=True))) == [Did.CHANGED]
    assert (centre.state.jobs[job].priority, centre.state.jobs[job].begin_ms) == (1, None)
    centre.check()
    assert centre.apply(start(job, "n0/0")).started[0].allocation.time_limit_ms == 1000


def test_a_running_job_is_given_another_limit_which_all_who_look_ahead_see(centre: Centre) -> None:
    running = centre.run("n0/0", "n0/1")
    centre.started(running)
    began_ms = centre.clock.now_ms()
    centre.clock.advance(minutes=5)
    longer = UpdateJobs((running.job,), "root", time_limit_ms=7_200_000, may_lengthen=True)
    assert dids(centre.do(longer)) == [Did.CHANGED]
    assert dids(centre.do(longer)) == [Did.UNCHANGED]
    assert centre.state.future.end_ms(running.id, NodeName("n0")) == began_ms + 7_200_000
    centre.check()
    shorter = UpdateJobs((running.job,), "ana", time_limit_ms=600_000)
    assert dids(centre.do(shorter)) == [Did.CHANGED]
    assert centre.state.future.end_ms(running.id, NodeName("n0")) == began_ms + 600_000
    centre.check()
    centre.do(RequeueJobs((running.job,), "ana"))
    assert dids(centre.do(longer)) == [Did.UNCHANGED]
    centre.ended(running, reason=EndReason.REQUEUED)
    assert centre.state.jobs[running.job].time_limit_ms == 600_000
    centre.check()


@pytest.mark.parametrize(
    ("terms", "code"),
    [
        ({"time_limit_ms": 7_200_000}, RefusalCode.NOT_ALLOWED),
        ({"time_limit_ms": 60_000}, RefusalCode.INVALID),
        ({"time_limit_ms": 7_200_000, "priority": 1, "may_lengthen": True}, RefusalCode.WRONG_STATE),
        ({"time_limit_ms": 7_200_000, "clears_begin": True, "may_lengthen": True}, RefusalCode.WRONG_STATE),
    ],
)
def test_a_limit_that_a_running_job_may_not_have_is_refused_and_nothing_changes(
    centre: Centre, terms: dict[str, int], code: RefusalCode
) -> None:
    running = centre.run("n0/0")
    (waiting,) = centre.submit(draft())
    centre.started(running)
    centre.clock.advance(minutes=5)
    with pytest.raises(Refused) as refused:
        centre.do(UpdateJobs((waiting, running.job), "ana", **terms))  # type: ignore[arg-type]
    assert refused.value.code is code
    assert centre.state.jobs[waiting].time_limit_ms == centre.state.jobs[running.job].time_limit_ms
    centre.check()
