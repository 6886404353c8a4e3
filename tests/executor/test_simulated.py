"""What only virtual time can show: exact times, faults on demand, and a heap that stays in order."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.clock import ManualClock
from scheduler.core.model import DeviceHealth, DeviceId, EndReason, NodeName
from scheduler.executor import Ended, ExecutorError, LaunchSpec, Shrunk, Started
from scheduler.simulated import SimulatedExecutor, SimulatedSettings
from tests.builders import START_MS, node
from tests.executor.rigs import find_end, find_shrunk, order


def executor(clock: ManualClock, **chosen: float) -> SimulatedExecutor:
    return SimulatedExecutor(clock, lambda: [node("n0"), node("n1")], SimulatedSettings(**chosen))


def test_times_are_exact_however_late_one_looks() -> None:
    clock = ManualClock()
    simulated = executor(clock, startup_latency_seconds=0.25)
    job = order(decided_ms=START_MS, simulated_seconds=10.5)
    simulated.start(job)
    clock.advance(hours=5)
    assert list(simulated.observe()) == [
        Started(job.allocation.id, START_MS + 250),
        Ended(job.allocation.id, START_MS + 10_750, 0, None, START_MS + 250),
    ]


def test_a_job_without_a_duration_ends_when_it_starts() -> None:
    clock = ManualClock()
    simulated = executor(clock)
    job = order(decided_ms=START_MS)
    simulated.start(job)
    assert find_end(list(simulated.observe()), job) == Ended(job.allocation.id, START_MS, 0, None, START_MS)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=1, max_size=30))
def test_a_replay_by_due_times_sees_each_end_at_its_instant_and_in_order(jobs: list[tuple[int, int]]) -> None:
    clock = ManualClock(START_MS)
    simulated = executor(clock)
    expected = {}
    waiting = sorted(jobs)
    seen: list[tuple[int, str]] = []
    while True:
        while waiting and START_MS + waiting[0][0] <= clock.now_ms():
            _, duration_ms = waiting.pop(0)
            job = order(decided_ms=clock.now_ms(), simulated_seconds=duration_ms / 1000)
            expected[job.allocation.id] = clock.now_ms() + duration_ms
            simulated.start(job)
        for news in simulated.observe():
            if isinstance(news, Ended):
                assert news.at_ms == clock.now_ms() == expected[news.allocation]
                seen.append((news.at_ms, news.allocation))
                simulated.acknowledge(news.allocation)
        due_ms = simulated.next_due_ms()
        following = [at for at in (due_ms, START_MS + waiting[0][0] if waiting else None) if at is not None]
        if not following:
            break
        clock.move_to(max(clock.now_ms(), min(following)))
    assert len(seen) == len(jobs)
    assert [at_ms for at_ms, _ in seen] == sorted(at_ms for at_ms, _ in seen)


def test_a_job_that_ends_by_itself_within_the_grace_keeps_its_own_exit_code() -> None:
    clock = ManualClock()
    simulated = executor(clock, obeys_stop_after_seconds=10.0)
    job = order(decided_ms=START_MS, simulated_seconds=60.0, simulated_exit_code=3)
    simulated.start(job)
    clock.advance(seconds=55)
    simulated.stop(job.allocation.id, 30.0, EndReason.PREEMPTED)
    clock.advance(seconds=60)
    ended = find_end(list(simulated.observe()), job)
    assert ended is not None
    assert (ended.at_ms, ended.exit_code, ended.reason) == (START_MS + 60_000, 3, EndReason.PREEMPTED)


def test_a_job_stopped_before_its_start_never_ran() -> None:
    clock = ManualClock()
    simulated = executor(clock, startup_latency_seconds=30.0)
    job = order(decided_ms=START_MS, simulated_seconds=60.0)
    simulated.start(job)
    simulated.stop(job.allocation.id, 30.0, EndReason.CANCELLED)
    assert list(simulated.observe()) == [Ended(job.allocation.id, START_MS, None, EndReason.CANCELLED)]


def test_a_stop_after_the_end_changes_nothing() -> None:
    clock = ManualClock()
    simulated = executor(clock)
    job = order(decided_ms=START_MS, simulated_seconds=1.0)
    simulated.start(job)
    clock.advance(seconds=2)
    simulated.stop(job.allocation.id, 30.0, EndReason.CANCELLED)
    ended = find_end(list(simulated.observe()), job)
    assert ended is not None
    assert (ended.at_ms, ended.reason) == (START_MS + 1000, None)


def test_a_lost_node_takes_its_gangs_with_it_and_leaves_the_inventory() -> None:
    clock = ManualClock()
    simulated = executor(clock)
    gang = order(nodes=2, decided_ms=START_MS, simulated_seconds=60.0)
    single = order(nodes=1, decided_ms=START_MS, simulated_seconds=60.0)
    simulated.start(gang)
    simulated.start(single)
    clock.advance(seconds=7)
    simulated.lose_node(NodeName("n1"))
    news = list(simulated.observe())
    ended = find_end(news, gang)
    assert ended is not None
    assert (ended.at_ms, ended.reason, ended.started_ms) == (START_MS + 7000, EndReason.NODE_LOST, START_MS)
    assert find_end(news, single) is None
    assert [offered.node.name for offered in simulated.inventory()] == ["n0"]


def test_a_lost_node_that_a_gang_can_do_without_is_lost_to_it_and_does_not_end_it() -> None:
    clock = ManualClock()
    simulated = executor(clock)
    gang = replace(order(nodes=2, decided_ms=START_MS, simulated_seconds=60.0), least_nodes=1)
    simulated.start(gang)
    clock.advance(seconds=7)
    simulated.lose_node(NodeName("n1"))
    news = list(simulated.observe())
    assert find_end(news, gang) is None
    assert find_shrunk(news, gang) == Shrunk(gang.allocation.id, START_MS + 7000, 1, EndReason.NODE_LOST)
    clock.advance(seconds=53)
    ended = find_end(list(simulated.observe()), gang)
    assert ended is not None
    assert (ended.at_ms, ended.reason) == (START_MS + 60_000, None)


def test_a_failed_device_ends_what_holds_it_and_is_shown_as_failed() -> None:
    clock = ManualClock()
    simulated = executor(clock)
    job = order(decided_ms=START_MS, simulated_seconds=60.0)
    simulated.start(job)
    clock.advance(seconds=3)
    simulated.fail_device(DeviceId("GPU-n0-1"))
    ended = find_end(list(simulated.observe()), job)
    assert ended is not None
    assert (ended.at_ms, ended.reason) == (START_MS + 3000, EndReason.GPU_ERROR)
    failed = [d.id for offered in simulated.inventory() for d in offered.devices if d.health is DeviceHealth.FAILED]
    assert failed == ["GPU-n0-1"]
    again = order(decided_ms=clock.now_ms(), simulated_seconds=60.0)
    simulated.start(again)
    assert find_end(list(simulated.observe()), again) is not None


def test_what_happens_in_a_silence_is_told_after_it_with_its_own_time() -> None:
    clock = ManualClock()
    simulated = executor(clock)
    job = order(decided_ms=START_MS, simulated_seconds=5.0)
    simulated.start(job)
    simulated.silence()
    clock.advance(minutes=10)
    assert not simulated.observe()
    simulated.speak()
    ended = find_end(list(simulated.observe()), job)
    assert ended is not None
    assert ended.at_ms == START_MS + 5000


def test_out_of_order_every_call_says_so_and_nothing_is_lost() -> None:
    clock = ManualClock()
    simulated = executor(clock)
    job = order(decided_ms=START_MS, simulated_seconds=5.0)
    simulated.start(job)
    simulated.break_down("no connection")
    clock.advance(seconds=9)
    with pytest.raises(ExecutorError, match="no connection"):
        simulated.observe()
    with pytest.raises(ExecutorError, match="no connection"):
        simulated.start(order())
    simulated.repair()
    assert find_end(list(simulated.observe()), job) is not None


def test_the_memory_of_a_replay_is_what_runs_and_not_what_ran() -> None:
    clock = ManualClock()
    simulated = executor(clock)
    for _ in range(200):
        job = order(decided_ms=clock.now_ms(), simulated_seconds=1.0)
        simulated.start(job)
        clock.advance(seconds=1)
        simulated.observe()
        simulated.acknowledge(job.allocation.id)
    assert simulated.next_due_ms() is None
    assert (len(simulated._runs), len(simulated._due), len(simulated._ended)) == (0, 0, 0)


@pytest.mark.parametrize(
    ("argv", "lasts_ms"), [(("sleep", "45.5"), 45_500), (("sleep", "-1"), 0), (("train", "90"), 0)]
)
def test_a_sleep_lasts_as_long_as_it_says_and_no_other_program_does(argv: tuple[str, ...], lasts_ms: int) -> None:
    clock = ManualClock()
    simulated = executor(clock)
    job = replace(order(decided_ms=START_MS), spec=LaunchSpec(argv, argv[0]))
    simulated.start(job)
    assert simulated.next_due_ms() == START_MS
    simulated.observe()
    clock.advance(hours=1)
    ended = find_end(list(simulated.observe()), job)
    assert ended is not None
    assert (ended.at_ms, ended.exit_code) == (START_MS + lasts_ms, 0)
