"""The writer: what is answered is durable, what is refused leaves no trace, what comes twice happens once."""

from dataclasses import dataclass

import pytest
import sqlalchemy as sa

from scheduler.clock import ManualClock
from scheduler.core.events import JobSubmitted
from scheduler.core.model import Account, AccountId, JobId, JobState
from scheduler.core.plan import Plan
from scheduler.core.policy import Policy
from scheduler.executor import Ended
from scheduler.refusal import RefusalCode, Refused
from scheduler.store import read
from scheduler.store.accounts import RemoveAccount, SaveAccount
from scheduler.store.actions import CancelJobs, Did, JobAction
from scheduler.store.allocations import ApplyPlan
from scheduler.store.history_tables import JOB_EVENT
from scheduler.store.jobs import SubmitJobs
from scheduler.store.observations import RecordObservations
from scheduler.store.tables import JOB, POOL, SUBMISSION_KEY
from scheduler.store.transaction import Transaction
from scheduler.store.write import Writer
from tests.store.harness import ACME, ANA, PROJECT, Centre, check_ledger, draft, refused, start, values


@dataclass(frozen=True, slots=True)
class WriteThenRefuse:
    """Does everything a command can do, and then refuses."""

    def execute(self, tx: Transaction) -> None:
        SubmitJobs((draft(),), ACME, ANA, "key", "sha").execute(tx)
        tx.connection.execute(sa.insert(POOL).values(name="trace", is_closed=True))
        raise Refused(RefusalCode.POLICY, "on second thought")


@dataclass(frozen=True, slots=True)
class Break:
    """A command that is broken."""

    def execute(self, tx: Transaction) -> None:
        raise ZeroDivisionError


def submission(key: str | None = None, sha: str = "one") -> SubmitJobs:
    return SubmitJobs((draft(),), ACME, ANA, key, sha)


def count(centre: Centre, table: sa.Table) -> int:
    with centre.database.read() as connection:
        return connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()


def test_a_refused_command_leaves_no_trace_and_the_others_of_its_batch_go_on(centre: Centre) -> None:
    pools = count(centre, POOL)
    batch = centre.commit(submission(), WriteThenRefuse(), submission("key", "other"))
    assert values(batch) == [(JobId(1),), RefusalCode.POLICY, (JobId(3),)]
    assert refused(batch, 1).message == "on second thought"
    assert [event.job.id for event in batch.events if isinstance(event, JobSubmitted)] == [1, 3]
    assert count(centre, JOB) == 2
    assert count(centre, JOB_EVENT) == 2
    assert count(centre, SUBMISSION_KEY) == 1
    assert count(centre, POOL) == pools
    centre.check()


def test_a_refused_command_that_moved_the_ledger_leaves_the_chain_as_it_was(centre: Centre) -> None:
    """The ledger's rows are written at the end of the batch: those of a refused command must not be among them."""

    @dataclass(frozen=True, slots=True)
    class StartThenRefuse:
        job: JobId

        def execute(self, tx: Transaction) -> None:
            plan = Plan(1, tx.now_ms, (start(self.job, "n0/0"),), terms=dict(centre.state.accounts))
            applied = ApplyPlan(plan).execute(tx)
            assert len(applied.started) == 1
            raise Refused(RefusalCode.OVER_BUDGET, "no money")

    first, second = centre.submit(draft(), draft())
    centre.clock.advance(seconds=1)
    batch = centre.commit(StartThenRefuse(first))
    assert values(batch) == [RefusalCode.OVER_BUDGET]
    assert centre.intervals() == []
    assert centre.job_state(first) is JobState.PENDING
    centre.apply(start(second, "n0/0"))
    centre.check()
    assert len(centre.intervals()) == 1


def test_a_broken_command_undoes_its_whole_batch(centre: Centre) -> None:
    with pytest.raises(ZeroDivisionError):
        centre.commit(submission(), Break())
    assert count(centre, JOB) == 0
    # PostgreSQL leaves a gap in the ids, SQLite none; either way the next submission is whole.
    assert len(centre.submit()) == 1
    assert count(centre, JOB) == 1


def test_the_same_key_and_request_get_the_same_jobs_and_make_nothing(centre: Centre) -> None:
    first = centre.submit(draft(), draft(), key="k")
    assert centre.submit(draft(), draft(), key="k") == first
    assert count(centre, JOB) == 2
    centre.check()


def test_the_same_key_twice_in_one_batch_makes_one_job(centre: Centre) -> None:
    batch = centre.commit(submission("k"), submission("k"), submission("k", "other"))
    assert values(batch) == [(JobId(1),), (JobId(1),), RefusalCode.CONFLICT]
    assert count(centre, JOB) == 1


def test_the_same_key_for_another_request_is_a_conflict(centre: Centre) -> None:
    centre.submit(key="k", sha="one")
    with pytest.raises(Refused, match="another request") as raised:
        centre.submit(key="k", sha="two")
    assert raised.value.code is RefusalCode.CONFLICT


def test_a_key_belongs_to_its_user(centre: Centre) -> None:
    batch = centre.commit(
        submission("k"),
        SubmitJobs((draft(),), ACME, type(ANA)("bob"), "k", "two"),
        SubmitJobs((draft(),), AccountId("other"), ANA, "k", "three"),
    )
    assert values(batch) == [(JobId(1),), (JobId(2),), (JobId(3),)]


def test_a_command_sees_what_the_commands_before_it_in_the_batch_did(centre: Centre) -> None:
    batch = centre.commit(submission(), CancelJobs((JobId(1),), "ana"))
    assert values(batch) == [(JobId(1),), (JobAction(JobId(1), Did.CANCELLED, JobState.CANCELLED),)]
    centre.check()


def test_ids_rise_and_are_never_given_again_even_when_the_newest_jobs_are_gone(centre: Centre) -> None:
    centre.submit(draft(), draft())
    with centre.database.write() as connection:
        connection.execute(sa.delete(JOB))
    centre.reopen()
    assert centre.submit() == (JobId(3),)


def test_an_unknown_or_suspended_account_takes_no_jobs(centre: Centre) -> None:
    with pytest.raises(Refused, match="no project") as unknown:
        centre.submit(draft(account=AccountId("acme/none")))
    assert unknown.value.code is RefusalCode.NOT_FOUND
    centre.do(SaveAccount(Account(ACME, is_suspended=True), "Acme"))
    with pytest.raises(Refused, match="acme is suspended") as suspended:
        centre.submit()
    assert suspended.value.code is RefusalCode.POLICY


def test_an_account_that_is_suspended_within_the_batch_takes_no_more_jobs(centre: Centre) -> None:
    suspend = SaveAccount(Account(PROJECT, is_suspended=True), "Vision")
    assert values(centre.commit(submission(), suspend, submission())) == [(JobId(1),), True, RefusalCode.POLICY]


def test_an_array_is_consecutive_jobs_that_share_an_array_id(centre: Centre) -> None:
    ids = centre.submit(draft(), draft(array_indexes=(3, 5, 9)), draft())
    assert ids == (1, 2, 3, 4, 5)
    jobs = [centre.state.jobs[id_] for id_ in ids]
    assert [(job.array, job.array_index) for job in jobs] == [(None, None), (2, 3), (2, 5), (2, 9), (None, None)]
    with pytest.raises(Refused, match="index"):
        centre.submit(draft(array_indexes=()))


def test_accounts_need_their_parents_and_stay_while_they_are_used(centre: Centre) -> None:
    with pytest.raises(Refused, match="needs its parent blue"):
        centre.do(SaveAccount(Account(AccountId("blue/lab")), "Lab"))
    with pytest.raises(Refused, match="remove acme/vision first"):
        centre.do(RemoveAccount(ACME))
    centre.submit()
    with pytest.raises(Refused, match="1 jobs"):
        centre.do(RemoveAccount(PROJECT))
    assert centre.do(SaveAccount(Account(PROJECT), "Vision")) is False
    assert centre.do(SaveAccount(Account(PROJECT, weight=3), "Vision")) is True
    centre.check()


def test_a_writer_never_dates_anything_before_what_the_ledger_knows(centre: Centre) -> None:
    """A daemon takes over on a machine whose clock is a minute behind."""
    centre.clock.advance(minutes=5)
    allocation = centre.run("n0/0")
    behind = ManualClock(centre.clock.now_ms() - 60_000)
    writer = Writer(centre.database, behind, Policy(), centre.epoch)
    recorded, _ = writer.run(RecordObservations(()))
    assert recorded.ended == ()
    writer.run(RecordObservations((Ended(allocation.id, behind.now_ms(), 0, None),)))
    with centre.database.read() as connection:
        assert all(cursor.since_ms <= centre.clock.now_ms() for cursor in read.cursors(connection))
    check_ledger(centre.database, centre.clock.now_ms())


def test_what_was_committed_before_its_events_were_delivered_is_there_after_a_restart(centre: Centre) -> None:
    """The daemon dies between commit and event delivery: the rebuilt state is what the events would have made."""
    centre.run("n0/0", "n0/1")
    lost = centre.writer.commit([submission(), submission("k")])
    after = centre.rebuilt()
    for event in lost.events:
        centre.state.apply(event)
    assert after.facts() == centre.state.facts()
    # The client asks again under its key, having had no answer.
    centre.reopen()
    assert centre.submit(key="k") == (JobId(3),)
