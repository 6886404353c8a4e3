"""Daemons, supervisors and machines die at the worst moment, and what the executor says afterwards is still true."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from scheduler import rundir
from scheduler.core.model import EndReason
from scheduler.executor import Ended, ExecutorError, StartOrder
from scheduler.processes import boot_id
from tests.executor.processes import exists, until
from tests.executor.rigs import LocalRig, find_end, order, shell

REPOSITORY = Path(__file__).resolve().parents[2]


def run_directory(local: LocalRig, job: StartOrder, rank: int = 0) -> Path:
    return local.base / "runs" / job.allocation.id / str(rank)


def claim_of(local: LocalRig, job: StartOrder, rank: int = 0) -> rundir.Claim:
    claim: rundir.Claim = json.loads((run_directory(local, job, rank) / rundir.CLAIM).read_text())
    return claim


def as_running(job: StartOrder, started_ms: int) -> StartOrder:
    return replace(job, allocation=replace(job.allocation, started_ms=started_ms))


def daemon_about_to_start(base: Path, job: StartOrder) -> subprocess.Popen[str]:
    arguments = [str(base), job.allocation.id, str(job.allocation.decided_ms), job.spec.argv[2]]
    daemon = subprocess.Popen(
        [sys.executable, "-m", "tests.executor.daemon", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert daemon.stdout is not None
    assert daemon.stdout.readline() == "starting\n"
    return daemon


def started_by_a_daemon(base: Path, job: StartOrder) -> tuple[subprocess.Popen[str], int]:
    daemon = daemon_about_to_start(base, job)
    assert daemon.stdout is not None
    return daemon, int(daemon.stdout.readline())


def kill_daemon(daemon: subprocess.Popen[str]) -> None:
    daemon.kill()
    daemon.communicate()


def test_a_job_goes_on_when_its_daemon_is_killed_and_the_next_one_sees_its_end(tmp_path: Path) -> None:
    base, gate = tmp_path / "base", tmp_path / "gate"
    job = shell(f"echo begun; while [ ! -e {gate} ]; do sleep 0.02; done; echo done; exit 42")
    daemon, started_ms = started_by_a_daemon(base, job)
    kill_daemon(daemon)
    local = LocalRig(base)
    local.executor.recover([as_running(job, started_ms)])
    assert not [news for news in local.executor.observe() if isinstance(news, Ended)]
    gate.touch()
    ended = local.until_ended(job)
    assert (ended.exit_code, ended.reason, ended.started_ms) == (42, EndReason.EXIT_NONZERO, started_ms)
    assert local.output(job) == b"begun\ndone\n"
    local.close()


@pytest.mark.parametrize("delay_ms", [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 25.0])
def test_a_daemon_killed_in_the_middle_of_a_start_has_started_the_job_once(tmp_path: Path, delay_ms: float) -> None:
    base, runs = tmp_path / "base", tmp_path / "runs"
    job = shell(f"echo x >> {runs}; exit 6")
    daemon = daemon_about_to_start(base, job)
    time.sleep(delay_ms / 1000)  # the moment of the kill is what is varied
    kill_daemon(daemon)
    local = LocalRig(base)
    local.executor.recover([job])
    assert local.until_ended(job).exit_code == 6
    assert runs.read_text() == "x\n"
    local.close()


def test_a_job_that_ends_while_no_daemon_lives_is_reported_with_its_own_end(tmp_path: Path) -> None:
    base, gate = tmp_path / "base", tmp_path / "gate"
    job = shell(f"while [ ! -e {gate} ]; do sleep 0.02; done; exit 7")
    daemon, started_ms = started_by_a_daemon(base, job)
    kill_daemon(daemon)
    gate.touch()
    status = base / "runs" / job.allocation.id / "0" / rundir.STATUS
    until(status.exists, "the supervisor writes the status without a daemon")
    ended_ms = json.loads(status.read_text())["ended_ms"]
    local = LocalRig(base)
    local.executor.recover([job])
    ended = local.until_ended(job)
    assert (ended.exit_code, ended.at_ms, ended.started_ms) == (7, ended_ms, started_ms)
    local.close()


def test_the_time_limit_holds_while_no_daemon_lives(local: LocalRig) -> None:
    job = order("sleep", "3600", limit_ms=300)
    local.executor.start(job)
    local.executor.close()
    until((run_directory(local, job) / rundir.STATUS).exists, "the supervisor ends the job by itself")
    local.executor = local.build()
    local.executor.recover([job])
    assert local.until_ended(job).reason is EndReason.WALLTIME


def test_a_killed_supervisor_means_node_lost_and_no_process_of_the_job_is_left(local: LocalRig, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    job = shell(f"sleep 3600 & setsid sleep 3600 & echo $! $$ >> {pids}; jobs -p >> {pids}; echo ready; sleep 3600")
    local.executor.start(job)
    started = local.until_started(job)
    local.until_printed(job, b"ready")
    seen = [int(pid) for pid in pids.read_text().split()]
    assert all(exists(pid) for pid in seen)
    os.kill(claim_of(local, job)["pid"], signal.SIGKILL)
    ended = local.until_ended(job)
    assert (ended.exit_code, ended.reason, ended.started_ms) == (None, EndReason.NODE_LOST, started.at_ms)
    assert ended.started_ms is not None
    assert ended.started_ms <= ended.at_ms <= local.clock.now_ms()
    assert not [pid for pid in seen if exists(pid)]


def test_a_supervisor_killed_while_no_daemon_lives_is_found_lost_and_the_verdict_stands(local: LocalRig) -> None:
    job = shell("sleep 3600 & echo ready; sleep 3600")
    local.executor.start(job)
    started = local.until_started(job)
    local.until_printed(job, b"ready")
    claim = claim_of(local, job)
    local.executor.close()
    os.kill(claim["pid"], signal.SIGKILL)
    until(lambda: not exists(claim["pid"]), "the supervisor is dead")
    local.executor = local.build()
    local.executor.recover([as_running(job, started.at_ms)])
    ended = local.until_ended(job)
    assert ended.reason is EndReason.NODE_LOST
    local.restart().recover([as_running(job, started.at_ms)])
    assert local.until_ended(job) == ended
    assert find_end(list(local.executor.observe()), job) == ended


def test_a_killed_supervisor_of_one_rank_ends_the_whole_gang(local: LocalRig) -> None:
    job = shell("echo ready; sleep 3600", nodes=2)
    local.executor.start(job)
    local.until_started(job)
    job_pid = claim_of(local, job, 0)["job_pid"]
    assert job_pid is not None
    os.kill(claim_of(local, job, 1)["pid"], signal.SIGKILL)
    assert local.until_ended(job).reason is EndReason.NODE_LOST
    assert not exists(job_pid)


def test_a_restart_of_the_machine_means_node_lost_at_the_last_sign_of_life(local: LocalRig) -> None:
    job = order("sleep", "3600")
    local.executor.start(job)
    started = local.until_started(job)
    claim = claim_of(local, job)
    local.executor.close()
    os.kill(claim["pid"], signal.SIGKILL)
    until(lambda: not exists(claim["pid"]), "the supervisor is dead")
    path = run_directory(local, job) / rundir.CLAIM
    path.write_text(json.dumps({**claim, "boot_id": "another boot", "job_pid": os.getpid()}))
    last_ms = started.at_ms + 1
    os.utime(path, ns=(last_ms * 1_000_000, last_ms * 1_000_000))
    local.executor = local.build()
    local.executor.recover([as_running(job, started.at_ms)])
    ended = local.until_ended(job)
    assert (ended.reason, ended.at_ms, ended.detail) == (EndReason.NODE_LOST, last_ms, "the machine was restarted")


def test_the_pid_of_a_lost_job_that_now_belongs_to_somebody_else_is_left_alone(local: LocalRig) -> None:
    bystander = subprocess.Popen(["sleep", "3600"], start_new_session=True)
    job = order("sleep", "3600")
    local.executor.start(job)
    started = local.until_started(job)
    claim = claim_of(local, job)
    local.executor.close()
    os.kill(claim["pid"], signal.SIGKILL)
    until(lambda: not exists(claim["pid"]), "the supervisor is dead")
    (run_directory(local, job) / rundir.CLAIM).write_text(json.dumps({**claim, "job_pid": bystander.pid}))
    local.executor = local.build()
    local.executor.recover([as_running(job, started.at_ms)])
    assert local.until_ended(job).reason is EndReason.NODE_LOST
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()


def test_an_order_written_before_a_crash_and_never_begun_is_begun_by_recovery(local: LocalRig, tmp_path: Path) -> None:
    job = shell(f"echo x >> {tmp_path}/runs")
    local.executor._space.prepare(job, 29_999)  # the crash comes between the order and the spawn
    local.restart().recover([job])
    assert local.until_ended(job).exit_code == 0
    assert (tmp_path / "runs").read_text() == "x\n"


def test_an_order_of_an_earlier_boot_is_never_begun(local: LocalRig, tmp_path: Path) -> None:
    job = shell(f"touch {tmp_path}/ran")
    local.executor._space.prepare(job, 29_999)
    path = run_directory(local, job) / rundir.ORDER
    path.write_text(path.read_text().replace(boot_id(), "an earlier boot"))
    local.restart().recover([job])
    ended = local.until_ended(job)
    assert (ended.reason, ended.started_ms) == (EndReason.NODE_LOST, None)
    assert not (tmp_path / "ran").exists()
    assert not path.exists()


def test_an_order_stopped_before_it_began_never_runs(local: LocalRig, tmp_path: Path) -> None:
    job = shell(f"touch {tmp_path}/ran")
    local.executor._space.prepare(job, 29_999)
    rundir.ask(
        str(run_directory(local, job)),
        stop={"reason": "cancelled", "grace_seconds": 0.0, "detail": None, "is_peer": False},
    )
    local.restart().recover([job])
    ended = local.until_ended(job)
    assert (ended.reason, ended.exit_code, ended.started_ms) == (EndReason.CANCELLED, None, None)
    assert not (tmp_path / "ran").exists()


def test_a_half_written_order_is_as_if_it_had_never_been(local: LocalRig) -> None:
    job = order("echo", "whole")
    staging = local.base / "runs" / f".new-{job.allocation.id}" / "0"
    staging.mkdir(parents=True)
    (staging / rundir.ORDER).write_text('{"argv": ["ech')
    local.restart().recover([job])
    assert local.until_ended(job).exit_code == 0
    assert local.output(job) == b"whole\n"


def test_a_running_allocation_without_any_trace_ends_as_node_lost_at_its_last_evidence(local: LocalRig) -> None:
    job = order("true")
    started_ms = job.allocation.decided_ms + 5
    local.executor.recover([as_running(job, started_ms)])
    ended = local.until_ended(job)
    assert (ended.reason, ended.exit_code, ended.at_ms) == (EndReason.NODE_LOST, None, started_ms)


def test_an_end_that_was_stored_and_not_acknowledged_does_not_keep_its_devices(local: LocalRig) -> None:
    earlier = order("true")
    local.run(earlier)  # the crash comes between the commit of this end and its acknowledgement
    later = order("echo", "mine now")
    assert earlier.allocation.grants == later.allocation.grants
    local.restart().recover([later])
    assert local.until_ended(later).exit_code == 0


def test_a_start_that_was_told_and_not_stored_is_told_again_in_the_next_term(local: LocalRig) -> None:
    job = shell("sleep 3600")
    local.executor.start(job)
    local.until_started(job)
    local.seen.clear()  # the term ends before the start is stored; the executor goes on
    local.executor.recover([job])
    assert local.until_started(job).allocation == job.allocation.id


def test_what_the_store_does_not_hold_as_live_is_killed_and_removed(local: LocalRig) -> None:
    job = shell("trap '' TERM; echo ready; sleep 3600")
    local.executor.start(job)
    local.until_started(job)
    job_pid = claim_of(local, job)["job_pid"]
    assert job_pid is not None
    executor = local.restart()
    executor.recover([])

    def is_gone() -> bool:
        assert not executor.observe()
        return not run_directory(local, job).parent.exists()

    until(is_gone, "the orphan is removed")
    assert not exists(job_pid)


def test_a_device_that_an_orphan_still_holds_is_not_given_to_another_job(local: LocalRig) -> None:
    orphan, next_job = order("sleep", "3600"), order("true")
    local.executor.start(orphan)
    local.until_started(orphan)
    executor = local.restart()
    os.kill(claim_of(local, orphan)["pid"], signal.SIGSTOP)  # it cannot obey for now
    executor.recover([])
    with pytest.raises(ExecutorError, match="is still held by allocation"):
        executor.start(next_job)
    os.kill(claim_of(local, orphan)["pid"], signal.SIGCONT)

    def starts() -> bool:
        executor.observe()
        try:
            executor.start(next_job)
        except ExecutorError:
            return False
        return True

    until(starts, "the device is free")
    assert local.until_ended(next_job).exit_code == 0


def test_a_job_waits_for_the_orphan_on_its_device_when_both_are_found_at_a_restart(local: LocalRig) -> None:
    orphan, next_job = order("sleep", "3600"), shell("echo begun")
    local.executor.start(orphan)
    local.until_started(orphan)
    executor = local.restart()
    os.kill(claim_of(local, orphan)["pid"], signal.SIGSTOP)  # it cannot obey for now
    executor.recover([next_job])
    assert not executor.observe()
    os.kill(claim_of(local, orphan)["pid"], signal.SIGCONT)
    assert local.until_ended(next_job).exit_code == 0
    assert local.output(next_job) == b"begun\n"


def test_a_job_whose_end_was_committed_and_not_acknowledged_keeps_its_device_from_nobody(local: LocalRig) -> None:
    before, next_job = shell("exit 3"), shell("echo begun")
    local.run(before)
    local.restart().recover([next_job])
    assert local.until_ended(next_job).exit_code == 0


def test_a_job_that_waits_for_an_orphan_and_is_stopped_never_runs(local: LocalRig) -> None:
    orphan, next_job = order("sleep", "3600"), shell("echo begun")
    local.executor.start(orphan)
    local.until_started(orphan)
    executor = local.restart()
    os.kill(claim_of(local, orphan)["pid"], signal.SIGSTOP)
    executor.recover([next_job])
    executor.stop(next_job.allocation.id, 0.0, EndReason.CANCELLED)
    ended = local.until_ended(next_job)
    assert (ended.reason, ended.exit_code, ended.started_ms) == (EndReason.CANCELLED, None, None)
    executor.acknowledge(next_job.allocation.id)
    os.kill(claim_of(local, orphan)["pid"], signal.SIGCONT)
    until(lambda: not executor.observe() and not any((local.base / "runs").iterdir()), "the orphan is removed")
    assert not (local.base / "logs" / next_job.allocation.id).exists()


def test_a_supervisor_told_to_end_by_the_machine_ends_its_job_as_node_lost(local: LocalRig) -> None:
    job = shell("echo ready; sleep 3600")
    local.executor.start(job)
    local.until_printed(job, b"ready")
    os.kill(claim_of(local, job)["pid"], signal.SIGTERM)
    ended = local.until_ended(job)
    assert (ended.exit_code, ended.reason, ended.detail) == (143, EndReason.NODE_LOST, "the machine is going down")


def test_a_lost_ring_is_made_up_for_by_the_next_scan(local: LocalRig) -> None:
    job = order("true")
    local.executor.start(job)
    (local.base / "doorbell").unlink()  # nobody hears the supervisor
    assert local.until_ended(job).exit_code == 0


def test_what_is_written_into_a_dead_runs_status_by_a_crash_is_no_end(local: LocalRig) -> None:
    job = order("sleep", "3600")
    local.executor.start(job)
    local.until_started(job)
    (run_directory(local, job) / rundir.STATUS).write_text("")
    assert find_end(list(local.executor.observe()), job) is None
    (run_directory(local, job) / rundir.STATUS).unlink()


def test_a_run_that_cannot_be_read_hides_no_other(local: LocalRig, caplog: pytest.LogCaptureFixture) -> None:
    broken, whole = order("true"), shell("exit 3")
    local.executor.start(broken)
    local.until_ended(broken)
    local.executor.acknowledge(broken.allocation.id)
    local.executor._space.prepare(broken, 29_999)
    lock = run_directory(local, broken) / rundir.LOCK
    lock.unlink()
    lock.mkdir()
    local.restart().recover([broken])
    assert local.run(whole).exit_code == 3
    assert broken.allocation.id in caplog.text
    lock.rmdir()
    lock.touch()
    assert local.until_ended(broken).exit_code == 0


def test_a_request_that_cannot_be_read_kills_no_job(local: LocalRig) -> None:
    job = order("sleep", "3600")
    local.executor.start(job)
    local.until_started(job)
    control = run_directory(local, job) / rundir.CONTROL
    (control / "in-the-way").mkdir(parents=True)
    rundir.ring(str(run_directory(local, job) / rundir.CONTROL_BELL), "x")
    time.sleep(0.3)
    assert not any(isinstance(seen, Ended) for seen in local.executor.observe())
    (control / "in-the-way").rmdir()
    control.rmdir()


def test_what_a_crash_left_in_scratch_is_removed(local: LocalRig) -> None:
    left = local.base / "scratch" / "01GONE"
    left.mkdir()
    local.restart().recover([])
    assert not left.exists()


def test_what_the_machine_refuses_is_an_executor_error_and_the_stop_may_be_tried_again(local: LocalRig) -> None:
    job = order("sleep", "3600")
    local.executor.start(job)
    local.until_started(job)
    control = run_directory(local, job) / rundir.CONTROL
    (control / "in-the-way").mkdir(parents=True)
    rundir.ring(str(run_directory(local, job) / rundir.CONTROL_BELL), "x")
    with pytest.raises(ExecutorError, match="cannot stop"):
        local.executor.stop(job.allocation.id, 0.0, EndReason.CANCELLED)
    (control / "in-the-way").rmdir()
    control.rmdir()
    local.executor.stop(job.allocation.id, 0.0, EndReason.CANCELLED)
    assert local.until_ended(job).reason is EndReason.CANCELLED
