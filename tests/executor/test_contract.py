"""What `scheduler.executor.Executor` promises, for every executor."""

from dataclasses import replace

import pytest

from scheduler.core.model import AllocationId, EndReason
from scheduler.executor import Ended, StartOrder, StartRefused
from tests.executor.rigs import Rig, find_end, find_shrunk, find_start


def test_a_job_that_exits_with_zero_starts_and_then_ends_without_a_reason(rig: Rig) -> None:
    order = rig.job(seconds=0.2)
    rig.executor.start(order)
    started = rig.until_started(order)
    ended = rig.until_ended(order)
    assert (ended.exit_code, ended.reason) == (0, None)
    assert ended.started_ms == started.at_ms
    assert ended.at_ms >= started.at_ms + 200 - 1


def test_a_job_that_exits_with_a_code_ends_as_exit_nonzero_with_that_code(rig: Rig) -> None:
    order = rig.job(exit_code=3)
    rig.executor.start(order)
    ended = rig.until_ended(order)
    assert (ended.exit_code, ended.reason) == (3, EndReason.EXIT_NONZERO)


def test_times_lie_between_the_decision_and_the_observation(rig: Rig) -> None:
    order = rig.job(seconds=0.05)
    rig.executor.start(order)
    ended = rig.until_ended(order)
    assert ended.started_ms is not None
    assert order.allocation.decided_ms <= ended.started_ms <= ended.at_ms


def test_a_second_start_of_the_same_allocation_does_nothing(rig: Rig) -> None:
    order = rig.job(seconds=0.1, exit_code=7)
    rig.executor.start(order)
    rig.executor.start(order)
    assert rig.until_ended(order).exit_code == 7
    rig.executor.start(order)
    ends = [news for news in rig.executor.observe() if isinstance(news, Ended)]
    assert [end.exit_code for end in ends] == [7]


def test_an_end_is_repeated_word_for_word_until_it_is_acknowledged(rig: Rig) -> None:
    order = rig.job()
    rig.executor.start(order)
    ended = rig.until_ended(order)
    assert find_end(list(rig.executor.observe()), order) == ended
    assert find_end(list(rig.executor.observe()), order) == ended
    rig.executor.acknowledge(order.allocation.id)
    assert find_end(list(rig.executor.observe()), order) is None


def test_a_second_acknowledgement_does_nothing(rig: Rig) -> None:
    order = rig.job()
    rig.executor.start(order)
    rig.until_ended(order)
    rig.executor.acknowledge(order.allocation.id)
    rig.executor.acknowledge(order.allocation.id)
    assert not rig.executor.observe()


def test_a_stopped_job_ends_with_the_reason_of_the_stop(rig: Rig) -> None:
    order = rig.job(seconds=3600)
    rig.executor.start(order)
    rig.until_started(order)
    rig.executor.stop(order.allocation.id, 5.0, EndReason.PREEMPTED)
    ended = rig.until_ended(order)
    assert (ended.exit_code, ended.reason) == (143, EndReason.PREEMPTED)


def test_a_job_that_ignores_the_stop_signal_is_killed_after_the_grace(rig: Rig) -> None:
    order = rig.stubborn_job(seconds=3600)
    rig.executor.start(order)
    started = rig.until_ready(order)
    rig.executor.stop(order.allocation.id, 0.3, EndReason.CANCELLED)
    ended = rig.until_ended(order)
    assert (ended.exit_code, ended.reason) == (137, EndReason.CANCELLED)
    assert ended.at_ms >= started.at_ms + 300 - 1


def test_a_second_stop_shortens_the_grace_and_keeps_the_first_reason(rig: Rig) -> None:
    order = rig.stubborn_job(seconds=3600)
    rig.executor.start(order)
    rig.until_ready(order)
    rig.executor.stop(order.allocation.id, 3600.0, EndReason.PREEMPTED)
    rig.executor.stop(order.allocation.id, 0.0, EndReason.CANCELLED)
    ended = rig.until_ended(order)
    assert (ended.exit_code, ended.reason) == (137, EndReason.PREEMPTED)


def test_the_time_limit_ends_a_job_as_walltime(rig: Rig) -> None:
    order = rig.job(seconds=3600, limit_ms=300)
    rig.executor.start(order)
    ended = rig.until_ended(order)
    assert (ended.exit_code, ended.reason) == (143, EndReason.WALLTIME)
    assert ended.started_ms is not None
    assert ended.at_ms - ended.started_ms >= 300


def test_a_limit_that_is_given_later_counts_from_the_start(rig: Rig) -> None:
    order = rig.job(seconds=3600)
    rig.executor.start(order)
    rig.until_started(order)
    rig.executor.extend(order.allocation.id, 300)
    rig.executor.extend(AllocationId("01UNKNOWN"), 1)
    assert rig.until_ended(order).reason is EndReason.WALLTIME


def test_stopping_or_acknowledging_what_is_unknown_does_nothing(rig: Rig) -> None:
    rig.executor.stop(AllocationId("01UNKNOWN"), 1.0, EndReason.CANCELLED)
    rig.executor.acknowledge(AllocationId("01UNKNOWN"))
    assert not rig.executor.observe()


def test_a_job_without_a_command_is_refused(rig: Rig) -> None:
    order = rig.job()
    empty = replace(order, spec=replace(order.spec, argv=()))
    with pytest.raises(StartRefused, match="no command"):
        rig.executor.start(empty)
    assert not rig.executor.observe()


def test_after_a_restart_a_running_job_is_found_and_its_end_observed(rig: Rig) -> None:
    order = rig.job(seconds=0.6, exit_code=9)
    rig.executor.start(order)
    started = rig.until_started(order)
    rig.restart().recover([as_running(order, started.at_ms)])
    ended = rig.until_ended(order)
    assert (ended.exit_code, ended.started_ms) == (9, started.at_ms)


def test_after_a_restart_the_start_of_a_known_running_job_is_not_told_again(rig: Rig) -> None:
    order = rig.job(seconds=0.3)
    rig.executor.start(order)
    started = rig.until_started(order)
    executor = rig.restart()
    executor.recover([as_running(order, started.at_ms)])
    assert find_start(list(executor.observe()), order) is None
    rig.until_ended(order)


def test_what_was_decided_and_never_started_is_started_by_recovery(rig: Rig) -> None:
    order = rig.job(exit_code=5)
    rig.executor.recover([order])
    assert rig.until_ended(order).exit_code == 5


def test_a_refused_start_in_recovery_ends_as_launch_failed(rig: Rig) -> None:
    order = rig.job()
    empty = replace(order, spec=replace(order.spec, argv=()))
    rig.executor.recover([empty])
    ended = rig.until_ended(empty)
    assert (ended.exit_code, ended.reason, ended.started_ms) == (None, EndReason.LAUNCH_FAILED, None)
    assert ended.detail is not None
    assert "no command" in ended.detail


def test_a_second_recovery_changes_nothing(rig: Rig) -> None:
    order = rig.job(seconds=0.2, exit_code=4)
    rig.executor.start(order)
    started = rig.until_started(order)
    rig.executor.recover([as_running(order, started.at_ms)])
    rig.executor.recover([as_running(order, started.at_ms)])
    assert rig.until_ended(order).exit_code == 4


def test_logs_are_kept_after_the_acknowledgement_and_are_then_complete(rig: Rig) -> None:
    order = rig.job()
    rig.executor.start(order)
    rig.until_ended(order)
    rig.executor.acknowledge(order.allocation.id)
    assert rig.executor.logs(order.allocation.id, 0, 0, 100).is_complete


def test_logs_of_an_unknown_allocation_or_rank_are_a_key_error(rig: Rig) -> None:
    order = rig.job()
    rig.executor.start(order)
    with pytest.raises(KeyError):
        rig.executor.logs(order.allocation.id, 1, 0, 100)
    with pytest.raises(KeyError):
        rig.executor.logs(AllocationId("01UNKNOWN"), 0, 0, 100)
    rig.until_ended(order)


def test_the_inventory_is_the_injected_one(rig: Rig) -> None:
    assert [offered.node.name for offered in rig.executor.inventory()] == ["n0", "n1"]


def test_waiting_for_news_ends_when_woken_and_sees_nothing_otherwise(rig: Rig) -> None:
    assert not rig.executor.wait_for_news(0.0)
    rig.executor.wake()
    assert rig.executor.wait_for_news(3600.0)
    assert not rig.executor.observe()
    assert not rig.executor.wait_for_news(0.0)


def test_there_is_news_to_wait_for_once_a_job_is_started(rig: Rig) -> None:
    order = rig.job()
    rig.executor.start(order)
    assert rig.executor.wait_for_news(3600.0)
    rig.until_ended(order)


def test_a_gang_that_shrinks_runs_on_and_what_its_lost_nodes_did_says_nothing_of_its_end(rig: Rig) -> None:
    order = replace(rig.job(seconds=3600, nodes=2), least_nodes=1)
    gang = order.allocation.id
    rig.executor.start(order)
    rig.until_started(order)
    for _ in range(2):
        rig.executor.shrink(gang, 1, 5.0, EndReason.PREEMPTED)
    shrunk = rig.until_shrunk(order)
    assert (shrunk.nodes, shrunk.at_ms >= order.allocation.decided_ms) == (1, True)
    assert find_end(list(rig.executor.observe()), order) is None, "it runs on"
    assert find_shrunk(list(rig.executor.observe()), order) == shrunk, "told again until it is acknowledged"
    rig.executor.acknowledge_shrunk(gang)
    assert find_shrunk(list(rig.executor.observe()), order) is None
    smaller = replace(order.allocation, grants=order.allocation.grants[:1])
    rig.restart().recover([as_running(replace(order, allocation=smaller), shrunk.at_ms)])
    rig.executor.stop(gang, 5.0, EndReason.CANCELLED)
    ended = rig.until_ended(order)
    assert (ended.exit_code, ended.reason, ended.at_ms >= shrunk.at_ms) == (143, EndReason.CANCELLED, True)
    rig.executor.acknowledge(gang)
    assert not rig.executor.observe()


def as_running(order: StartOrder, started_ms: int) -> StartOrder:
    return replace(order, allocation=replace(order.allocation, started_ms=started_ms))
