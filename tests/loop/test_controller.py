"""The loop as a whole: desk, planner and runner over a real store."""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from metering.core.tariff import parse_price_book
from metering.price_routes import PublishPrices
from metering.rates import AnnounceRates
from metering.verify import verify
from scheduler import loop, planner
from scheduler.core.explain import explain
from scheduler.core.model import (
    AccountId,
    AllocationId,
    Booking,
    EndReason,
    GpuClass,
    HoldKind,
    JobId,
    JobState,
    NodeAvailability,
    NodeName,
    PoolName,
)
from scheduler.core.reasons import ReasonCode
from scheduler.executor import Ended, ExecutorError, Observation, StartOrder, StartRefused
from scheduler.loop import Controller
from scheduler.observer import Unobserved
from scheduler.refusal import RefusalCode, Refused
from scheduler.simulated import SimulatedExecutor
from scheduler.store import database
from scheduler.store.accounts import SaveAccount
from scheduler.store.actions import CancelJobs, HoldJobs, ReleaseJobs, UpdateJobs
from scheduler.store.queries import job as stored_job
from scheduler.store.rates import ChangeRates
from scheduler.store.read import build_state, load_state_parts
from scheduler.store.transaction import Transaction
from tests.builders import account, node
from tests.loop.conftest import SECONDS, Slow, World, submit, until


def state_of(controller: Controller, job: JobId) -> JobState:
    with controller.database.read() as connection:
        found = stored_job(connection, job)
    assert found is not None
    return found.job.state


def assert_memory_equals_database(controller: Controller) -> None:
    def both(state, _plan):  # type: ignore[no-untyped-def]  # runs on the planner's thread
        state.check()
        with controller.database.read() as connection:
            rebuilt = build_state(load_state_parts(connection))
        rebuilt.check()
        return (state.facts(), state.debt_facts()), (rebuilt.facts(), rebuilt.debt_facts())

    in_memory, in_database = controller.ask(both).result(SECONDS)
    for _ in range(600):  # what was committed a moment ago may not have come to the planner's memory yet
        if in_memory == in_database:
            break
        controller.wait_for_change(controller.version, 0.1)
        in_memory, in_database = controller.ask(both).result(SECONDS)
    assert in_memory == in_database


def test_jobs_run_to_their_end_and_leave_nothing_behind(world: World) -> None:
    controller = world.leader()
    jobs = submit(controller, count=60)
    until(controller, lambda: all(state_of(controller, job) is JobState.COMPLETED for job in jobs))
    until(controller, lambda: controller.ask(lambda state, _: not state.jobs).result(SECONDS))
    assert_memory_equals_database(controller)


def test_the_state_in_memory_is_the_state_in_the_database_in_the_middle_of_things(world: World) -> None:
    controller = world.leader()
    running = submit(controller, gpus=8, seconds=3600, count=3)
    waiting = submit(controller, gpus=1, seconds=3600, count=5)
    controller.carry_out(HoldJobs(tuple(waiting[:2]), HoldKind.USER, "mei")).result(SECONDS)
    until(controller, lambda: state_of(controller, running[1]) is JobState.RUNNING)
    assert_memory_equals_database(controller)
    code = controller.ask(lambda state, plan: explain(state, plan, running[2]).reasons[0].code).result(SECONDS)
    assert code is ReasonCode.CAPACITY


def test_a_daemon_that_takes_over_goes_on_where_the_other_stopped(world: World) -> None:
    first = world.leader(ttl_ms=1500)
    jobs = submit(first, gpus=8, seconds=3600, count=3)
    until(first, lambda: state_of(first, jobs[1]) is JobState.RUNNING)
    first.stop()
    second = world.daemon(holder="second")
    until(second, lambda: second.is_leading)
    assert_memory_equals_database(second)
    assert [state_of(second, job) for job in jobs] == [JobState.RUNNING, JobState.RUNNING, JobState.PENDING]
    second.carry_out(CancelJobs((jobs[0],), "mei")).result(SECONDS)
    until(second, lambda: state_of(second, jobs[2]) is JobState.RUNNING)


def test_another_limit_of_a_running_job_reaches_the_executor_even_when_that_is_out_of_order(world: World) -> None:
    failed: list[AllocationId] = []

    class Forgetful(Slow):
        def extend(self, allocation: AllocationId, time_limit_ms: int) -> None:
            if not failed:
                failed.append(allocation)
                raise ExecutorError("not now")
            super().extend(allocation, time_limit_ms)

    controller = world.leader(wrap=lambda executor: Forgetful(executor, lambda _: None))
    (job,) = submit(controller, seconds=3600)
    until(controller, lambda: state_of(controller, job) is JobState.RUNNING)
    controller.carry_out(UpdateJobs((job,), "mei", time_limit_ms=3_000)).result(SECONDS)
    assert_memory_equals_database(controller)
    until(controller, lambda: state_of(controller, job) is JobState.TIMEOUT)
    assert failed


def test_a_follower_turns_commands_away_and_knows_who_leads(world: World) -> None:
    world.leader()
    follower = world.daemon(holder="second")
    assert not follower.is_leading
    assert follower.leader_url == "http://first.invalid"
    with pytest.raises(Refused) as refused:
        submit(follower)
    assert refused.value.code is RefusalCode.UNAVAILABLE


def test_a_job_cancelled_before_its_start_is_carried_out_still_ends(world: World) -> None:
    released: list[StartOrder] = []

    def refuse_once(order: StartOrder) -> None:
        if not released:
            released.append(order)
            raise ExecutorError("not now")

    controller = world.leader(wrap=lambda executor: Slow(executor, refuse_once))
    (job,) = submit(controller, seconds=3600)
    until(controller, lambda: bool(released))
    controller.carry_out(CancelJobs((job,), "mei")).result(SECONDS)
    until(controller, lambda: state_of(controller, job) is JobState.CANCELLED)
    assert_memory_equals_database(controller)


class _Sulking(Slow):
    """An executor that takes no stops while it is away, and writes down what it was asked."""

    def __init__(self, inside: SimulatedExecutor) -> None:
        super().__init__(inside, lambda _: None)
        self.is_away = False
        self.asked: list[str] = []

    def stop(self, allocation: AllocationId, grace_seconds: float, reason: EndReason) -> None:
        self.asked.append("stop")
        if self.is_away:
            raise ExecutorError("away")
        super().stop(allocation, grace_seconds, reason)

    def observe(self) -> Sequence[Observation]:
        self.asked.append("observe")
        return super().observe()


def test_an_executor_that_is_away_is_observed_between_any_two_orders_that_it_cannot_take(world: World) -> None:
    """Each may take it seconds to fail: hundreds of them in a row would hide for minutes what happens meanwhile."""
    made: list[_Sulking] = []

    def wrap(executor: SimulatedExecutor) -> _Sulking:
        made.append(_Sulking(executor))
        return made[-1]

    controller = world.leader(wrap=wrap)
    (executor,) = made
    jobs = submit(controller, seconds=3600, count=8)
    until(controller, lambda: all(state_of(controller, job) is JobState.RUNNING for job in jobs))
    executor.is_away = True
    executor.asked.clear()
    controller.carry_out(CancelJobs(tuple(jobs), "mei")).result(SECONDS)
    until(controller, lambda: executor.asked.count("stop") >= len(jobs))
    assert ("stop", "stop") not in pairwise(executor.asked)
    executor.is_away = False
    until(controller, lambda: all(state_of(controller, job) is JobState.CANCELLED for job in jobs))


def test_a_start_that_the_executor_refuses_fails_the_job_with_its_words(world: World) -> None:
    def refuse(order: StartOrder) -> None:
        raise StartRefused("no such image")

    controller = world.leader(wrap=lambda executor: Slow(executor, refuse))
    (job,) = submit(controller)
    until(controller, lambda: state_of(controller, job) is JobState.FAILED)
    with controller.database.read() as connection:
        found = stored_job(connection, job)
    assert found is not None
    assert found.detail == "no such image"


def test_a_released_job_starts_and_a_held_one_does_not(world: World) -> None:
    controller = world.leader()
    blocker = submit(controller, gpus=8, seconds=3600, count=2)
    (held,) = submit(controller, seconds=0)
    controller.carry_out(HoldJobs((held,), HoldKind.USER, "mei")).result(SECONDS)
    controller.carry_out(CancelJobs(tuple(blocker), "mei")).result(SECONDS)
    until(controller, lambda: all(state_of(controller, job) is JobState.CANCELLED for job in blocker))
    assert state_of(controller, held) is JobState.HELD
    controller.carry_out(ReleaseJobs((held,), HoldKind.USER, "mei")).result(SECONDS)
    until(controller, lambda: state_of(controller, held) is JobState.COMPLETED)


def test_a_planner_that_meets_the_impossible_ends_its_term_and_the_next_is_right_again(world: World) -> None:
    controller = world.leader()
    jobs = submit(controller, gpus=8, seconds=3600, count=3)
    until(controller, lambda: state_of(controller, jobs[1]) is JobState.RUNNING)

    def corrupt(state, _plan):  # type: ignore[no-untyped-def]  # what no question should do
        state.jobs.pop(jobs[0])

    controller.ask(corrupt).result(SECONDS)
    controller.carry_out(CancelJobs((jobs[0],), "mei")).result(SECONDS)
    until(controller, lambda: controller.is_leading and state_of(controller, jobs[2]) is JobState.RUNNING)
    assert_memory_equals_database(controller)


def test_debts_and_rates_survive_a_takeover_to_the_last_bit(world: World) -> None:
    controller = world.leader()
    controller.carry_out(ChangeRates({(GpuClass("H100"), Booking.BURST): 6_666_667})).result(SECONDS)
    ended = submit(controller, gpus=2, count=5)
    until(controller, lambda: all(state_of(controller, job) is JobState.COMPLETED for job in ended))
    assert not controller.carry_out(ChangeRates({(GpuClass("H100"), Booking.BURST): 6_666_667})).result(SECONDS)
    running = submit(controller, gpus=8, seconds=3600, count=2)
    until(controller, lambda: all(state_of(controller, job) is JobState.RUNNING for job in running))
    controller.carry_out(ChangeRates({(GpuClass("H100"), Booking.BURST): 1_000_003})).result(SECONDS)
    assert_memory_equals_database(controller)
    at_ms = controller.clock.now_ms() + 1000
    owed = controller.ask(lambda state, _: state.usage.debts.credits(AccountId("acme/nlp"), at_ms)).result(SECONDS)
    assert owed > 0
    controller.stop()
    second = world.daemon(holder="second")
    until(second, lambda: second.is_leading)
    assert second.ask(lambda state, _: state.usage.debts.credits(AccountId("acme/nlp"), at_ms)).result(SECONDS) == owed
    assert_memory_equals_database(second)


def test_a_burst_gang_is_promoted_when_its_tenant_buys_a_guarantee(world: World) -> None:
    controller = world.leader()
    (job,) = submit(controller, gpus=4, seconds=3600)
    until(controller, lambda: state_of(controller, job) is JobState.RUNNING)
    controller.carry_out(SaveAccount(account("acme", guarantee=8), "acme")).result(SECONDS)

    def booking() -> Booking:
        held = controller.ask(lambda state, _: [each.booking for each in state.allocations.values()]).result(SECONDS)
        return held[0]

    until(controller, lambda: booking() is Booking.GUARANTEED)
    assert_memory_equals_database(controller)
    with controller.database.read() as connection:
        report = verify(connection)
    assert report.is_proved, report.findings


def test_published_prices_become_the_rates_that_debts_are_made_with(world: World) -> None:
    controller = world.leader()
    book = parse_price_book(
        'version = "1"\ncurrency = "CNY"\neffective = 2026-01-01T00:00:00Z\n[prices.H100]\nburst = "36"\nspot = "1.8"\n'
    )
    controller.carry_out(PublishPrices(book)).result(SECONDS)
    rates = controller.ask(lambda state, _: state.usage.rates.in_force()).result(SECONDS)
    assert rates == {(GpuClass("H100"), Booking.BURST): 10_000, (GpuClass("H100"), Booking.SPOT): 500}
    assert not controller.carry_out(AnnounceRates()).result(SECONDS)
    assert_memory_equals_database(controller)


def test_a_node_that_vanished_under_a_job_is_gone_once_the_job_is_over(world: World) -> None:
    """The executor's inventory is the same before and after the job's end: only the store's changes."""
    controller = world.leader()
    first, second = submit(controller, gpus=8, seconds=3600, count=2)
    until(controller, lambda: state_of(controller, first) is state_of(controller, second) is JobState.RUNNING)
    world.nodes = [node("n1")]
    controller.refresh_inventory()

    def devices() -> dict[str, int]:
        rooms = controller.ask(lambda state, _: dict(state.capacity.rooms)).result(SECONDS)
        return {name: len(room.devices) for name, room in rooms.items()}

    def is_down() -> bool:
        found = controller.ask(lambda state, _: state.node(NodeName("n2")).availability).result(SECONDS)
        return found is NodeAvailability.DOWN

    until(controller, is_down)
    assert devices() == {"n1": 8, "n2": 8}, "what is held stays on record"
    controller.carry_out(CancelJobs((first, second), "mei")).result(SECONDS)
    until(controller, lambda: state_of(controller, first) is state_of(controller, second) is JobState.CANCELLED)
    until(controller, lambda: devices() == {"n1": 8})
    assert_memory_equals_database(controller)


class EndsFirst(Slow):
    """An executor that keeps ends back until `before_end` was called with them, on the runner's thread."""

    def __init__(self, inside: SimulatedExecutor, before_end: Callable[[Ended], None]) -> None:
        super().__init__(inside, lambda _: None)
        self._before_end = before_end

    def observe(self) -> Sequence[Observation]:
        observed = super().observe()
        for each in observed:
            if isinstance(each, Ended):
                self._before_end(each)
        return observed


def test_a_stop_that_comes_when_the_end_was_seen_already_leaves_nothing_behind(world: World) -> None:
    told: list[AllocationId] = []

    def cancel(seen: Ended) -> None:
        if not told:
            told.append(seen.allocation)
            controller.carry_out(CancelJobs((first,), "mei")).result(SECONDS)

    controller = world.leader(wrap=lambda executor: EndsFirst(executor, cancel))
    (first,) = submit(controller, seconds=0.2)
    until(controller, lambda: state_of(controller, first) is JobState.COMPLETED)
    (second,) = submit(controller)
    until(controller, lambda: state_of(controller, second) is JobState.COMPLETED)
    assert told
    assert controller._term is not None
    assert controller._term.runner._stop_at_start == {}


class Posts(Unobserved):
    """Counts what it is told of the ledger."""

    def __init__(self) -> None:
        self.times: list[int] = []

    def ledger_posted(self, at_ms: int) -> None:
        self.times.append(at_ms)


def test_an_idle_centre_goes_on_saying_that_its_store_can_be_written(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scheduler.loop.LOOK_SECONDS", 0.05)
    posts = Posts()
    controller = world.leader(observer=posts)
    idle_since_ms, seen = world.clock.now_ms(), len(posts.times)
    until(controller, lambda: len(posts.times) >= seen + 3)
    assert posts.times[-1] > idle_since_ms


def measured(controller: Controller, pool: PoolName) -> int:
    record = controller.track_record(pool)
    return 0 if record is None else record.count


def test_what_start_estimates_were_worth_outlives_the_daemon(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "SURVEY_SECONDS", 0.1)
    first = world.leader()
    pool = world.nodes[0].node.pool
    submit(first, gpus=8, seconds=2.0, count=2)
    submit(first, gpus=8, count=2)
    until(first, lambda: measured(first, pool) == 2)
    known = first.track_record(pool)
    assert known is not None
    first.stop()
    assert world.daemon(holder="second").track_record(pool) == known


@dataclass(frozen=True, slots=True)
class Lasting:
    """A command that ends when it is told to."""

    may_end: threading.Event

    def execute(self, tx: Transaction) -> None:
        assert self.may_end.wait(SECONDS)


def test_a_write_that_takes_longer_than_the_lease_can_wait_does_not_cost_the_lead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Ten thousand GPUs are written at once, which holds the one writing connection for long on a busy machine."""
    caplog.set_level(logging.INFO, "scheduler.loop")
    monkeypatch.setattr(database, "BUSY_TIMEOUT_MS", 1000)
    monkeypatch.setattr(loop, "LOOK_SECONDS", 0.05)
    world = World(tmp_path)
    leader = world.leader()
    lasting = Lasting(threading.Event())
    written = leader.carry_out(lasting)
    until(leader, lambda: any("not renewed" in record.message for record in caplog.records))
    lasting.may_end.set()
    written.result(SECONDS)
    submitted = submit(leader)
    until(leader, lambda: state_of(leader, submitted[0]) is JobState.COMPLETED)
    world.close()
    assert [record.args for record in caplog.records if record.msg == "leads, epoch %d"] == [(1,)]
