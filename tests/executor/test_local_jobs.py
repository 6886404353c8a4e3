"""What a job of the local executor sees, may do, and cannot do. Real processes."""

import os
import pwd
import stat
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from scheduler.core.model import GPU_UNITS, EndReason, JobId
from scheduler.executor import ExecutorError, StartRefused
from scheduler.local import LocalExecutor
from scheduler.spawn import LocalSettings
from tests.executor.processes import exists, until, zombie_children
from tests.executor.rigs import LocalRig, order, shell

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root may run jobs as somebody else")


def environment_of(local: LocalRig, job_order: object) -> dict[str, str]:
    lines = local.output(job_order).decode().split("\0")  # type: ignore[arg-type] # a StartOrder
    return dict(line.split("=", 1) for line in lines if line)


def test_stdout_and_stderr_are_kept_in_the_order_in_which_they_came(local: LocalRig) -> None:
    job = shell("echo one; echo two >&2; echo three")
    assert local.run(job).exit_code == 0
    assert local.output(job) == b"one\ntwo\nthree\n"


def test_a_job_reads_an_empty_standard_input(local: LocalRig) -> None:
    job = order("cat")
    assert local.run(job).exit_code == 0


def test_arguments_arrive_unchanged_and_no_shell_reads_them(local: LocalRig) -> None:
    job = order("printf", "%s|", "$(id)", "a b", "; rm -rf /", "'\"", "深圳", "*", "")
    local.run(job)
    assert local.output(job).decode() == "$(id)|a b|; rm -rf /|'\"|深圳|*||"


def test_binary_output_is_kept_byte_for_byte(local: LocalRig) -> None:
    job = order(sys.executable, "-c", "import os; os.write(1, bytes(range(256)) * 999)")
    local.run(job)
    assert local.output(job) == bytes(range(256)) * 999


def test_a_missing_command_ends_with_127_and_a_line_that_names_it(local: LocalRig) -> None:
    job = order("no-such-program-here")
    ended = local.run(job)
    assert (ended.exit_code, ended.reason) == (127, EndReason.EXIT_NONZERO)
    assert local.output(job) == b"turnstile: cannot run 'no-such-program-here': command not found\n"


def test_a_file_that_is_not_executable_ends_with_126(local: LocalRig, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a program")
    job = order(str(tmp_path / "notes.txt"))
    assert local.run(job).exit_code == 126
    assert b"Permission denied" in local.output(job)


def test_a_script_without_an_interpreter_line_ends_with_126_and_says_so(local: LocalRig, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("echo hello")
    script.chmod(0o755)
    job = order(str(script))
    assert local.run(job).exit_code == 126
    assert b"begins with #!" in local.output(job)


def test_a_missing_working_directory_is_a_launch_failure_that_names_it(local: LocalRig) -> None:
    ended = local.run(order("true", workdir="/no/such/place"))
    assert (ended.exit_code, ended.reason, ended.started_ms) == (None, EndReason.LAUNCH_FAILED, None)
    assert ended.detail == "working directory /no/such/place: No such file or directory"


def test_a_job_runs_in_its_working_directory(local: LocalRig, tmp_path: Path) -> None:
    job = order("pwd", workdir=str(tmp_path))
    local.run(job)
    assert local.output(job).decode().strip() == str(tmp_path)


def test_a_job_that_a_signal_killed_ends_with_128_plus_its_number(local: LocalRig) -> None:
    ended = local.run(shell("kill -SEGV $$"))
    assert (ended.exit_code, ended.detail) == (139, "killed by SIGSEGV")


def test_a_kill_from_elsewhere_is_not_taken_for_ours(local: LocalRig) -> None:
    ended = local.run(shell("kill -KILL $$"))
    assert (ended.exit_code, ended.reason) == (137, EndReason.EXIT_NONZERO)


def test_the_environment_has_what_the_documentation_promises(local: LocalRig) -> None:
    job = replace(order("env", "-0", array_index=3, environment={"GREETING": "你好\nworld"}), array=JobId(4711))
    ended = local.run(job)
    seen = environment_of(local, job)
    assert ended.started_ms is not None
    allocation = job.allocation
    expected = {
        "TURNSTILE_JOB_ID": "4711_3",
        "TURNSTILE_JOB_NAME": "train",
        "TURNSTILE_TENANT": "acme",
        "TURNSTILE_PROJECT": "nlp",
        "TURNSTILE_ARRAY_INDEX": "3",
        "TURNSTILE_NODES": "1",
        "TURNSTILE_NODE_RANK": "0",
        "TURNSTILE_GPUS_PER_NODE": "2",
        "TURNSTILE_ATTEMPT": "1",
        "TURNSTILE_ALLOCATION_ID": allocation.id,
        "TURNSTILE_DEADLINE": str((ended.started_ms + allocation.time_limit_ms) // 1000),
        "CUDA_VISIBLE_DEVICES": "GPU-n0-0,GPU-n0-1",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "MASTER_ADDR": "127.0.0.1",
        "PET_MASTER_PORT": seen["MASTER_PORT"],
        "PET_NNODES": "1",
        "PET_NODE_RANK": "0",
        "PET_NPROC_PER_NODE": "2",
        "GREETING": "你好\nworld",
    }
    assert {name: seen.get(name) for name in expected} == expected
    assert 20_000 <= int(seen["MASTER_PORT"]) < 30_000
    assert not [name for name in seen if name.startswith("SLURM_")]


def test_a_job_that_asks_sees_slurms_names_and_its_own_choice_of_them(local: LocalRig) -> None:
    job = order("env", "-0", array_index=3, has_slurm_names=True, environment={"SLURM_JOB_NAME": "mine"})
    grants = tuple(replace(grant, cpu_millicores=6500) for grant in job.allocation.grants)
    job = replace(job, array=JobId(4711), allocation=replace(job.allocation, grants=grants))
    local.run(job)
    seen = {name: value for name, value in environment_of(local, job).items() if name.startswith("SLURM_")}
    assert seen == {
        "SLURM_JOB_ID": str(job.allocation.job),
        "SLURM_JOB_NAME": "mine",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_NNODES": "1",
        "SLURM_NODEID": "0",
        "SLURM_PROCID": "0",
        "SLURM_GPUS_ON_NODE": "2",
        "SLURM_CPUS_ON_NODE": "6",
        "SLURM_ARRAY_JOB_ID": "4711",
        "SLURM_ARRAY_TASK_ID": "3",
    }


def test_nothing_of_the_daemons_environment_but_the_named_few_reaches_a_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = {
        "TURNSTILE_DATABASE_URL": "postgresql://u:hunter2@db",
        "AWS_SECRET_ACCESS_KEY": "hunter2",
        "PGPASSWORD": "x",
    }
    for name, value in {**secrets, "LC_TIME": "zh_CN.UTF-8"}.items():
        monkeypatch.setenv(name, value)
    rig = LocalRig(tmp_path / "base")
    job = order("env", "-0")
    rig.run(job)
    seen = environment_of(rig, job)
    rig.close()
    assert not secrets.keys() & seen.keys()
    assert "hunter2" not in str(seen)
    assert seen["LC_TIME"] == "zh_CN.UTF-8"
    assert seen["PATH"] == os.environ["PATH"]


def test_a_submission_cannot_replace_device_visibility_or_identity(local: LocalRig) -> None:
    stolen = {
        "CUDA_VISIBLE_DEVICES": "0,1,2,3",
        "TURNSTILE_TENANT": "rival",
        "TURNSTILE_X": "1",
        "NVIDIA_VISIBLE_DEVICES": "all",
    }
    job = order("env", "-0", environment=stolen)
    local.run(job)
    seen = environment_of(local, job)
    assert seen["CUDA_VISIBLE_DEVICES"] == seen["NVIDIA_VISIBLE_DEVICES"] == "GPU-n0-0,GPU-n0-1"
    assert seen["TURNSTILE_TENANT"] == "acme"
    assert "TURNSTILE_X" not in seen


def test_a_share_of_a_gpu_limits_the_threads_under_mps(local: LocalRig) -> None:
    job = order("env", "-0", units=GPU_UNITS // 4)
    local.run(job)
    assert environment_of(local, job)["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] == "25"


def test_text_that_no_process_can_be_given_is_refused(local: LocalRig) -> None:
    for bad in (
        order("echo", "a\0b"),
        order("true", environment={"A=B": "c"}),
        order("true", environment={"A": "\ud800"}),
    ):
        with pytest.raises(StartRefused):
            local.executor.start(bad)


def test_an_unknown_stop_signal_is_refused_with_an_example(local: LocalRig) -> None:
    with pytest.raises(StartRefused, match="such as SIGTERM"):
        local.executor.start(order("true", stop_signal="SIGNOPE"))


def test_a_job_is_asked_to_end_by_its_own_stop_signal(local: LocalRig) -> None:
    job = shell("trap 'echo saved; exit 0' USR1; echo ready; while :; do sleep 0.02; done", stop_signal="SIGUSR1")
    local.executor.start(job)
    local.until_printed(job, b"ready")
    local.executor.stop(job.allocation.id, 10.0, EndReason.PREEMPTED)
    ended = local.until_ended(job)
    assert (ended.exit_code, ended.reason) == (0, EndReason.PREEMPTED)
    assert b"saved" in local.output(job)


def test_a_file_named_for_the_output_gets_it_too(local: LocalRig, tmp_path: Path) -> None:
    job = order("echo", "hello", output="out-%j-%a-%n-100%%.txt", workdir=str(tmp_path), array_index=4)
    local.run(job)
    assert (tmp_path / f"out-{job.allocation.job}-4-0-100%.txt").read_bytes() == b"hello\n"
    assert local.output(job) == b"hello\n"


def test_an_output_file_that_cannot_be_written_is_a_launch_failure(local: LocalRig, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, cause in (
        ("/no/such/place/x", "No such file"),
        (str(tmp_path), "directory"),
        (str(tmp_path / "pipe"), ""),
    ):
        ended = local.run(order("true", output=path))
        assert ended.reason is EndReason.LAUNCH_FAILED
        assert ended.detail is not None
        assert path in ended.detail
        assert cause in ended.detail


def test_a_log_without_end_keeps_its_head_and_tail_within_its_cap(local: LocalRig) -> None:
    limit = 64 * 1024
    job = shell("seq 1 400000", log_limit_bytes=limit)
    assert local.run(job).exit_code == 0
    files = list((local.base / "logs" / job.allocation.id).rglob("*.log"))
    assert sum(path.stat().st_size for path in files) <= limit
    chunk = local.executor.logs(job.allocation.id, 0, 0, 1 << 24)
    assert chunk.is_truncated
    assert chunk.is_complete
    assert chunk.data.startswith(b"1\n2\n3\n")
    assert chunk.data.endswith(b"\n400000\n")
    assert chunk.data.count(b"bytes dropped here") == 1


def test_a_job_that_floods_its_log_is_still_stopped_in_time(local: LocalRig) -> None:
    job = order("yes", limit_ms=200, log_limit_bytes=8192)
    ended = local.run(job)
    assert ended.reason is EndReason.WALLTIME


def test_a_log_can_be_followed_by_offset_while_the_job_runs(local: LocalRig) -> None:
    job = shell("echo first; sleep 3600")
    local.executor.start(job)
    local.until_printed(job, b"first\n")
    chunk = local.executor.logs(job.allocation.id, 0, 2, 3)
    assert (chunk.data, chunk.next_offset, chunk.is_complete) == (b"rst", 5, False)


def test_the_log_of_a_gang_that_is_being_made_ready_is_not_complete(local: LocalRig) -> None:
    """Its log is there before its run directory has its name: who followed then was told of the end at once."""
    job = shell("echo first; sleep 3600")
    local.executor.start(job)
    local.until_printed(job, b"first\n")
    ready = local.base / "runs" / job.allocation.id
    staged = ready.with_name(f".new-{ready.name}")
    ready.rename(staged)
    assert not local.executor.logs(job.allocation.id, 0, 0, 100).is_complete
    staged.rename(ready)
    assert not local.executor.logs(job.allocation.id, 0, 0, 100).is_complete


def test_forget_logs_removes_old_logs_of_ended_jobs_only(local: LocalRig) -> None:
    ended, running = order("echo", "x"), order("sleep", "3600")
    local.run(ended)
    local.executor.acknowledge(ended.allocation.id)
    local.executor.start(running)
    local.until_started(running)
    assert local.executor.forget_logs(local.clock.now_ms() - 60_000) == 0
    assert local.executor.forget_logs(local.clock.now_ms() + 60_000) == 1
    with pytest.raises(KeyError):
        local.executor.logs(ended.allocation.id, 0, 0, 10)
    assert not local.executor.logs(running.allocation.id, 0, 0, 10).is_complete


def test_children_that_leave_group_and_session_are_killed_with_the_job(local: LocalRig, tmp_path: Path) -> None:
    code = (
        "import os, sys, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        "        os.closerange(0, 3)\n"
        "        open(sys.argv[1] + '.new', 'w').write(str(os.getpid()))\n"
        "        os.rename(sys.argv[1] + '.new', sys.argv[1])\n"
        "        time.sleep(3600)\n"
        "    os._exit(0)\n"
        "os.wait()\n"
        "while not os.path.exists(sys.argv[1]): time.sleep(0.01)\n"
    )
    pid_file = tmp_path / "pid"
    ended = local.run(order(sys.executable, "-c", code, str(pid_file)))
    assert ended.exit_code == 0
    assert not exists(int(pid_file.read_text()))


def test_a_job_that_forks_while_it_is_killed_leaves_nothing(local: LocalRig, tmp_path: Path) -> None:
    job = shell(
        f"trap '' TERM; echo ready; while :; do sleep 3600 & echo $! >> {tmp_path}/pids; sleep 0.01; done",
        grace_seconds=0.1,
    )
    local.executor.start(job)
    local.until_printed(job, b"ready")
    local.executor.stop(job.allocation.id, 0.1, EndReason.CANCELLED)
    assert local.until_ended(job).exit_code == 137
    assert not [pid for pid in (tmp_path / "pids").read_text().split() if exists(int(pid))]


def test_a_stop_before_the_supervisor_listens_is_obeyed_without_running_the_job(
    local: LocalRig, tmp_path: Path
) -> None:
    job = shell(f"touch {tmp_path}/ran; sleep 3600")
    local.executor.start(job)
    local.executor.stop(job.allocation.id, 0.0, EndReason.CANCELLED)
    ended = local.until_ended(job)
    assert ended.reason is EndReason.CANCELLED
    assert (ended.exit_code, ended.started_ms) == (None, None) or ended.exit_code == 137


def test_the_ranks_of_a_gang_find_each_other_and_end_together(local: LocalRig) -> None:
    job = shell("echo $TURNSTILE_NODE_RANK/$TURNSTILE_NODES $PET_NODE_RANK $MASTER_PORT $CUDA_VISIBLE_DEVICES", nodes=2)
    ended = local.run(job)
    assert (ended.exit_code, ended.reason) == (0, None)
    zero, one = (local.output(job, rank).decode().split() for rank in (0, 1))
    assert (zero[0], one[0]) == ("0/2", "1/2")
    assert (zero[1], one[1]) == ("0", "1")
    assert zero[2] == one[2]
    assert (zero[3], one[3]) == ("GPU-n0-0,GPU-n0-1", "GPU-n1-0,GPU-n1-1")


def test_a_rank_that_fails_stops_the_others_and_names_the_gangs_reason(local: LocalRig) -> None:
    text = 'if [ "$TURNSTILE_NODE_RANK" = 1 ]; then sleep 0.2; exit 5; fi; sleep 3600'
    job = shell(text, nodes=2, grace_seconds=2.0)
    ended = local.run(job)
    assert (ended.exit_code, ended.reason) == (5, EndReason.EXIT_NONZERO)


def test_a_rank_that_cannot_start_ends_the_gang_as_never_run(local: LocalRig, tmp_path: Path) -> None:
    (tmp_path / "out-0").touch()
    (tmp_path / "out-1").mkdir()
    ended = local.run(shell("sleep 3600", nodes=2, output=str(tmp_path / "out-%n")))
    assert (ended.exit_code, ended.reason, ended.started_ms) == (None, EndReason.LAUNCH_FAILED, None)


def test_an_extended_time_limit_counts_from_the_start(local: LocalRig) -> None:
    job = order("sleep", "0.8", limit_ms=600)
    local.executor.start(job)
    local.executor.extend(job.allocation.id, 60_000)
    assert local.until_ended(job).exit_code == 0


def test_the_checkpoint_file_tells_when_the_job_last_saved(local: LocalRig) -> None:
    job = shell('touch "$TURNSTILE_CHECKPOINT_FILE"; echo saved; sleep 3600')
    local.executor.start(job)
    started = local.until_started(job)
    local.until_printed(job, b"saved")
    saved_ms = local.executor.checkpointed_ms(job.allocation.id)
    assert saved_ms is not None
    assert started.at_ms - 1000 <= saved_ms <= local.clock.now_ms()


def test_no_secret_stays_on_the_disk_once_the_job_runs(local: LocalRig) -> None:
    job = order("sleep", "3600", environment={"HF_TOKEN": "hunter2-hunter2"})
    local.executor.start(job)
    local.until_started(job)
    files = [path for path in local.base.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if b"hunter2" in path.read_bytes()]


def test_run_directories_and_logs_are_readable_by_the_daemon_alone(local: LocalRig) -> None:
    job = order("sleep", "3600")
    local.executor.start(job)
    local.until_started(job)
    assert stat.S_IMODE((local.base / "runs").stat().st_mode) == 0o700
    assert stat.S_IMODE((local.base / "logs").stat().st_mode) == 0o700
    run = local.base / "runs" / job.allocation.id / "0"
    assert stat.S_IMODE(run.stat().st_mode) == 0o700
    assert all(stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 for path in run.iterdir())


def test_after_the_acknowledgement_only_the_log_is_left(local: LocalRig) -> None:
    job = order("echo", "x")
    local.run(job)
    local.executor.acknowledge(job.allocation.id)
    left = {str(path.relative_to(local.base)) for path in local.base.rglob("*") if path.is_file()}
    assert left == {f"logs/{job.allocation.id}/0/{0:020d}.log"}


def test_supervisors_leave_no_zombie_in_a_living_daemon(local: LocalRig) -> None:
    for _ in range(3):
        local.run(order("true"))

    def is_clean() -> bool:
        local.executor.observe()
        return not zombie_children(os.getpid())

    until(is_clean, "all supervisors are collected")


def test_a_python_that_is_not_there_is_an_executor_error_that_names_it(tmp_path: Path) -> None:
    rig = LocalRig(tmp_path / "base", LocalSettings(python_executable="/no/such/python", rescan_seconds=0.0))
    job = order("true")
    with pytest.raises(ExecutorError, match="/no/such/python"):
        rig.executor.start(job)
    rig.close()


def test_a_supervisor_that_never_gets_going_ends_its_job_as_launch_failed(tmp_path: Path) -> None:
    rig = LocalRig(tmp_path / "base", LocalSettings(python_executable="/bin/false", rescan_seconds=0.0))
    ended = rig.run(order("true"))
    rig.close()
    assert (ended.exit_code, ended.reason, ended.started_ms) == (None, EndReason.LAUNCH_FAILED, None)


def test_two_executors_on_one_base_start_an_allocation_once(local: LocalRig, tmp_path: Path) -> None:
    job = shell(f"echo x >> {tmp_path}/runs; sleep 0.3")
    other: LocalExecutor = local.build()
    local.executor.start(job)
    other.start(job)
    other.recover([job])
    local.until_ended(job)
    other.close()
    assert (tmp_path / "runs").read_text() == "x\n"


def test_an_unknown_user_is_refused(local: LocalRig) -> None:
    with pytest.raises(StartRefused, match="no system user"):
        local.executor.start(order("true", run_as="no-such-user"))


@AS_ROOT
def test_a_job_runs_with_the_rights_of_its_user_and_nothing_more(local: LocalRig) -> None:
    user = pwd.getpwnam("nobody")
    job = shell("id -u; id -g; id -G; echo $HOME $USER; cat /etc/shadow", run_as="nobody", workdir="/")
    ended = local.run(job)
    lines = local.output(job).decode().splitlines()
    assert lines[0] == str(user.pw_uid)
    assert lines[1] == str(user.pw_gid)
    assert "0" not in lines[2].split()
    assert lines[3] == f"{user.pw_dir} nobody"
    assert ended.exit_code != 0


@AS_ROOT
def test_an_output_file_is_opened_with_the_rights_of_the_jobs_user(local: LocalRig, tmp_path: Path) -> None:
    target = tmp_path / "roots-only"
    ended = local.run(order("echo", "pwned", run_as="nobody", workdir="/", output=str(target)))
    assert ended.reason is EndReason.LAUNCH_FAILED
    assert not target.exists()


def test_the_daemons_own_user_needs_no_root(local: LocalRig) -> None:
    me = pwd.getpwuid(os.geteuid()).pw_name
    job = order("id", "-un")
    local.run(replace(job, spec=replace(job.spec, run_as=me)))
    assert local.output(job).decode().strip() == me
