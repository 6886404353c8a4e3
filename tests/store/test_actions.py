"""Actions on jobs: hold, release, cancel, requeue, update; many at once, each told what became of it."""

import pytest
from sqlalchemy import event as sa_event

from scheduler.core.model import EndReason, HoldKind, JobId, JobState
from scheduler.refusal import RefusalCode, Refused
from scheduler.store.actions import CancelJobs, Did, HoldJobs, JobAction, ReleaseJobs, RequeueJobs, UpdateJobs
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
