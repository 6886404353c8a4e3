"""The flight recorder over the real loop: every tick of a life can be planned once more, and decides the same."""

import random

import pytest
import sqlalchemy as sa

from scheduler import recorder
from scheduler.core.decided import Kind
from scheduler.core.model import JobId
from scheduler.core.reasons import ReasonCode
from scheduler.loop import Controller
from scheduler.recording import Entry, NotRecorded, Replayed, Ticked, replay, subject_of, unpack_entries, unpack_state
from scheduler.store.actions import CancelJobs
from scheduler.store.decisions import ENTRIES, MOST_FORGOTTEN, STATE, ForgetDecisions, last_tick, of_job, tape, wait_of
from scheduler.store.history_tables import DECISION, DECISION_TAPE
from scheduler.store.queries import job as stored_job
from scheduler.store.rates import ChangeRates
from tests.builders import node
from tests.loop.conftest import SECONDS, World, submit, until


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is written down soon."""
    monkeypatch.setattr(recorder, "FLUSH_SECONDS", 0.05)


def live_a_while(world: World, controller: Controller) -> list[JobId]:
    """Fills the nodes, lets jobs come, go, wait and be cancelled, and changes what there is and what it costs."""
    chance = random.Random(7)
    running = submit(controller, gpus=8, seconds=3600, count=2)
    waiting = submit(controller, gpus=4, seconds=0.05, count=6)
    controller.carry_out(ChangeRates({})).result(SECONDS)
    for round_ in range(8):
        submit(controller, gpus=chance.choice((1, 2, 8)), seconds=0.02, count=3)
        if round_ == 3:
            controller.carry_out(CancelJobs((running[0],), "ops")).result(SECONDS)
        if round_ == 5:
            world.nodes.append(node("n3"))
            controller.refresh_inventory()
            until(controller, lambda: controller.ask(lambda state, _: len(state.capacity.rooms) == 3).result(SECONDS))
    until(controller, lambda: controller.ask(lambda state, _: len(state.jobs) == 1).result(SECONDS))
    return [*running, *waiting]


def pieces_of(controller: Controller, at_ms: int) -> tuple[bytes, list[Entry]]:
    with controller.database.read() as connection:
        begin, *rest = tape(connection, at_ms)
    assert begin.kind == STATE
    assert {piece.kind for piece in rest} <= {ENTRIES}
    return begin.body, [entry for piece in rest for entry in unpack_entries(piece.body)]


def planned_again(begin: bytes, entries: list[Entry], decision: int) -> Replayed:
    snapshot, told = unpack_state(begin)
    state = snapshot.state()
    for event in told:
        state.apply(event)
    return replay(state, snapshot, entries, decision)


def is_flushed(controller: Controller) -> bool:
    """True when the tape has what the last plan was."""
    decision = controller.ask(lambda _, plan: plan.decision).result(SECONDS)
    with controller.database.read() as connection:
        stored = connection.execute(sa.select(sa.func.max(DECISION_TAPE.c.last_decision))).scalar()
    return stored is not None and stored >= decision


@pytest.mark.usefixtures("quick")
def test_every_tick_of_a_life_is_planned_again_and_decides_the_same(world: World) -> None:
    controller = world.leader()
    jobs = live_a_while(world, controller)
    until(controller, lambda: is_flushed(controller))
    begin, entries = pieces_of(controller, world.clock.now_ms())
    ticks = [entry for entry in entries if isinstance(entry, Ticked)]
    assert len(ticks) > 10
    assert [tick.decision for tick in ticks] == list(range(1, len(ticks) + 1))
    starting = 0
    for tick in ticks:
        again = planned_again(begin, entries, tick.decision)
        assert again.is_same, tick
        starting += len(again.plan.starts)
    assert starting >= 30
    with pytest.raises(NotRecorded):
        planned_again(begin, entries, len(ticks) + 1)

    with controller.database.read() as connection:
        (started, *_) = of_job(connection, jobs[0], world.clock.now_ms(), 10)
        assert (started.kind, started.tenant) == (Kind.START, "acme")
        assert started.allocation is not None
        kept = stored_job(connection, jobs[2])
        assert kept is not None
        last = last_tick(connection, kept.job.submitted_ms)
        assert last is not None
        found = wait_of(connection, subject_of(kept.job.shape), last.epoch, kept.started_ms or 0)
        lines = connection.execute(sa.select(sa.func.count()).select_from(DECISION)).scalar_one()
    assert found is not None
    assert found.reasons == () or found.reasons[0]["code"] == ReasonCode.CAPACITY
    assert lines < 12 * len(ticks), "waiting jobs are told of when their reason changes"


@pytest.mark.usefixtures("quick")
def test_a_tape_goes_on_from_a_state_taken_in_the_middle_of_things(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "STATE_SECONDS", 0.2)
    controller = world.leader()
    live_a_while(world, controller)
    monkeypatch.setattr(recorder, "STATE_SECONDS", 3600.0)

    def played_on() -> tuple[bytes, list[Entry], list[int]]:
        submit(controller, gpus=8, seconds=3600, count=1)
        until(controller, lambda: is_flushed(controller))
        begin, entries = pieces_of(controller, world.clock.now_ms())
        return begin, entries, [entry.decision for entry in entries if isinstance(entry, Ticked)]

    begin, entries, ticks = played_on()
    while len(ticks) < 3:  # one more state is still due: until it is in, each commit may be the one that brings it
        begin, entries, ticks = played_on()
    with controller.database.read() as connection:
        states = connection.execute(sa.select(sa.func.count()).where(DECISION_TAPE.c.kind == STATE)).scalar_one()
    assert states > 1
    # The first tick after a state may not know the promises of the tick before it.
    assert [tick for tick in ticks[1:] if not planned_again(begin, entries, tick).is_same] == []

    now_ms = world.clock.now_ms()
    forget = ForgetDecisions(now_ms + 1, now_ms + 1)
    assert 0 < controller.carry_out(forget).result(SECONDS) < 2 * MOST_FORGOTTEN

    def is_forgotten() -> bool:
        controller.carry_out(forget).result(SECONDS)  # again: what was decided before may be written down after
        with controller.database.read() as connection:
            return last_tick(connection, now_ms) is None

    until(controller, is_forgotten)
    until(controller, lambda: is_flushed(controller))
    with controller.database.read() as connection:
        assert tape(connection, now_ms)[0].kind == STATE, "what ticks to come are replayed from is kept"
