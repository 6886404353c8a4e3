"""Promised starts as properties over random histories, with the brute-force schedule beside them (I10, I11, I12)."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.core.model import BookingWanted, JobId, JobState, Phase
from scheduler.core.policy import Backfill, Policy, Preemption, QueueOrder
from scheduler.core.stretch import Reservation
from tests.builders import job, node
from tests.core import naive
from tests.harness import Centre

MINUTE_MS = 60_000
clusters = st.lists(st.tuples(st.integers(1, 4), st.sampled_from(["a", "b"])), min_size=1, max_size=5)
submissions = st.tuples(st.just("submit"), st.tuples(st.integers(1, 4), st.integers(1, 3)), st.integers(1, 90))
steps = st.lists(
    st.one_of(
        submissions,
        submissions,
        st.tuples(st.just("end"), st.just((0, 0)), st.integers(0, 9)),
        st.tuples(st.just("pass"), st.just((0, 0)), st.integers(1, 40)),
    ),
    max_size=40,
)
Steps = list[tuple[str, tuple[int, int], int]]
policies = st.builds(
    Policy,
    preemption=st.just(Preemption.OFF),
    order=st.sampled_from(QueueOrder),
    backfill=st.sampled_from([Backfill.EASY, Backfill.CONSERVATIVE]),
    promised_jobs=st.integers(0, 4),
    promise_after_ms=st.sampled_from([None, 30 * MINUTE_MS]),
)


class History:
    """A centre to which random things happen; no gang outlives its limit. Remembers every first promise."""

    def __init__(self, sizes: list[tuple[int, str]], policy: Policy) -> None:
        nodes = [node(f"n{index}", gpus=gpus, pool=pool) for index, (gpus, pool) in enumerate(sizes)]
        self.centre = Centre(*nodes, policy=policy)
        self.promised: dict[JobId, int] = {}
        self.started: dict[JobId, int] = {}

    def step(self, kind: str, size: tuple[int, int], number: int) -> None:
        centre = self.centre
        running = sorted(centre.running())
        if kind == "submit":
            centre.submit(job(gpus=size[0], nodes=size[1], limit_ms=number * MINUTE_MS, project=f"x/{number % 3}"))
        elif kind == "end" and running:
            centre.end(running[number % len(running)])
        elif kind == "pass":
            for _ in range(number):
                self.minute()
        self.tick()

    def minute(self) -> None:
        centre = self.centre
        centre.advance(minutes=1)
        due = [
            each.job
            for each in centre.state.allocations.values()
            if each.decided_ms + each.time_limit_ms <= centre.now_ms
        ]
        for job_id in due:
            centre.end(job_id)
        if due:
            self.tick()

    def tick(self) -> None:
        centre = self.centre
        before = dict(centre.state.reservations)
        centre.tick()
        for job_id in centre.running():
            self.started.setdefault(job_id, centre.now_ms)
        for job_id, old in before.items():
            if job_id in centre.state.jobs and centre.state.jobs[job_id].state is JobState.PENDING:
                assert centre.state.reservations[job_id].start_ms <= old.start_ms, f"job {job_id} was put off"
        for job_id, made in centre.state.reservations.items():
            self.promised.setdefault(job_id, made.start_ms)


def _play(sizes: list[tuple[int, str]], policy: Policy, history: Steps) -> History:
    played = History(sizes, policy)
    for step in history:
        played.step(*step)
    return played


@settings(max_examples=60, deadline=None)
@given(clusters, policies, steps)
def test_no_backfill_and_no_order_delays_a_promise(
    sizes: list[tuple[int, str]], policy: Policy, history: Steps
) -> None:
    played = _play(sizes, policy, history)
    for _ in range(600):
        if not played.centre.state.reservations:
            break
        played.minute()
    for job_id, promised_ms in played.promised.items():
        if job_id in played.started:
            assert played.started[job_id] <= promised_ms
        else:
            assert promised_ms > played.centre.now_ms, f"job {job_id} was promised a start and did not get it"


contested = st.tuples(
    st.sampled_from(["x/p", "y/p"]),
    st.integers(1, 4),
    st.integers(1, 3),
    st.sampled_from([5, 30, 90]),
    st.sampled_from([BookingWanted.AUTO, BookingWanted.AUTO, BookingWanted.SPOT]),
    st.integers(0, 1),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.lists(contested, min_size=3, max_size=16))
def test_who_takes_the_place_of_others_without_a_guarantee_delays_no_promise(
    gpus: list[int], asked: list[tuple[str, int, int, int, BookingWanted, int]]
) -> None:
    """R0 and R2 with no guard in their way; those who are stopped go at once."""
    policy = Policy(min_run_ms=0, weigh_every_ms=0, most_evictions=1000, promise_after_ms=None, promised_jobs=2)
    centre = Centre(*(node(f"n{index}", gpus=count) for index, count in enumerate(gpus)), policy=policy)
    for project, size, nodes, minutes, wanted, priority in asked:
        gang = job(gpus=size, nodes=nodes, limit_ms=minutes * MINUTE_MS, project=project)
        centre.submit(replace(gang, wanted=wanted, priority=priority))
        for _ in range(3):
            before = dict(centre.state.reservations)
            centre.tick()
            for each in [each for each in centre.state.allocations.values() if each.phase is Phase.STOPPING]:
                centre.end(each.job, each.stop_reason)
            for job_id, old in before.items():
                if centre.state.jobs[job_id].state is JobState.PENDING and job_id not in centre.state.claims.by_job:
                    assert centre.state.reservations[job_id].start_ms <= old.start_ms, f"job {job_id} was put off"
        centre.advance(minutes=1)
        for each in list(centre.state.allocations.values()):
            if each.decided_ms + each.time_limit_ms <= centre.now_ms:
                centre.end(each.job)


@settings(max_examples=60, deadline=None)
@given(clusters, policies, steps)
def test_what_fits_and_delays_no_promise_starts_in_this_tick(
    sizes: list[tuple[int, str]], policy: Policy, history: Steps
) -> None:
    centre = _play(sizes, policy, history).centre
    for waiting in centre.state.jobs.values():
        if waiting.state is JobState.PENDING:
            assert not naive.may_start(centre.state, waiting, centre.now_ms), f"{waiting} could start"


@settings(max_examples=60, deadline=None)
@given(clusters, st.lists(submissions, max_size=15), st.booleans())
def test_promises_are_the_earliest_starts_in_order(
    sizes: list[tuple[int, str]], waiting: Steps, is_shortest_first: bool
) -> None:
    order = QueueOrder.SJF if is_shortest_first else QueueOrder.FIFO
    played = History(sizes, Policy(preemption=Preemption.OFF, order=order, backfill=Backfill.CONSERVATIVE))
    for step in waiting:
        if step[0] == "submit":
            size, minutes = step[1], step[2]
            played.centre.submit(job(gpus=size[0], nodes=size[1], limit_ms=minutes * MINUTE_MS))
    played.tick()
    state, now_ms = played.centre.state, played.centre.now_ms
    pending = [each for each in state.jobs.values() if each.state is JobState.PENDING]
    pending.sort(key=lambda each: (each.time_limit_ms if is_shortest_first else 0, each.id))
    # What started later in the order delays no promise, so each promise is as early as if only those before it existed.
    made: list[Reservation] = []
    for each in pending:
        promise = state.reservations.get(each.id)
        wanted_ms = naive.earliest_ms(state, each, now_ms, made)
        assert (None if promise is None else promise.start_ms) == wanted_ms
        made += [promise] if promise is not None else []


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(1, 60))
def test_a_large_gang_waits_a_bounded_time_behind_an_endless_stream(nodes: int, minutes: int) -> None:
    policy = Policy(preemption=Preemption.OFF, order=QueueOrder.SJF, promised_jobs=0, promise_after_ms=120 * MINUTE_MS)
    played = History([(1, "a")] * nodes, policy)
    for _ in range(nodes):
        played.step("submit", (1, 1), minutes)
    gang = played.centre.submit(job(gpus=1, nodes=nodes, limit_ms=90 * MINUTE_MS))
    bound_ms = played.centre.now_ms + (120 + minutes + 1) * MINUTE_MS
    while gang not in played.started:
        played.step("submit", (1, 1), minutes)
        played.minute()
        assert played.centre.now_ms <= bound_ms


@pytest.mark.parametrize("order", list(QueueOrder))
def test_the_same_history_makes_the_same_schedule(order: QueueOrder) -> None:
    history: Steps = [("submit", (1 + each % 4, 1 + each % 3), 10 + 7 * each % 80) for each in range(60)]
    history += [("pass", (0, 0), 30), ("end", (0, 0), 3)] * 5
    first, second = (
        _play([(4, "a"), (2, "a"), (3, "b")], Policy(preemption=Preemption.OFF, order=order), history) for _ in range(2)
    )
    assert first.centre.log == second.centre.log
    assert replace(first.centre.policy) == second.centre.policy
