"""Limits by cgroup v2: what is written to a stand-in directory, and what a real kernel then does where there is one."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from scheduler import cgroups
from scheduler.core.model import EndReason
from scheduler.spawn import LocalSettings
from tests.executor.processes import exists
from tests.executor.rigs import LocalRig, order, shell


def stand_in(root: Path, *, controllers: str = "cpuset cpu io memory pids", enabled: str = "cpu memory") -> Path:
    """A directory with the files that a delegated cgroup has."""
    root.mkdir(parents=True)
    (root / "cgroup.controllers").write_text(controllers + "\n")
    (root / "cgroup.subtree_control").write_text(enabled + "\n")
    (root / "cgroup.procs").write_text("")
    return root


def test_a_group_carries_the_memory_and_cpu_limits_of_its_grant(tmp_path: Path) -> None:
    tree = cgroups.detect(stand_in(tmp_path / "root"))
    assert tree.capability.is_enforced
    group = tree.create("01A-0", memory_bytes=8 << 30, cpu_millicores=2500)
    assert group == tmp_path / "root" / "turnstile-01A-0"
    assert (group / "memory.max").read_text() == str(8 << 30)
    assert (group / "memory.oom.group").read_text() == "1"
    assert (group / "cpu.max").read_text() == "250000 100000"


def test_a_grant_without_limits_makes_a_group_without_limits(tmp_path: Path) -> None:
    group = cgroups.detect(stand_in(tmp_path / "root")).create("01A-0", memory_bytes=0, cpu_millicores=0)
    assert group is not None
    assert not list(group.iterdir())


def test_controllers_are_enabled_where_they_are_not_yet(tmp_path: Path) -> None:
    root = stand_in(tmp_path / "root", enabled="")
    assert cgroups.detect(root).capability.is_enforced
    assert (root / "cgroup.subtree_control").read_text() == "+cpu +memory"


def test_the_daemon_moves_out_of_a_group_that_is_to_limit_others(tmp_path: Path) -> None:
    root = stand_in(tmp_path / "root", enabled="")
    (root / "cgroup.procs").write_text("4711\n")
    assert cgroups.detect(root).capability.is_enforced
    assert (root / "daemon" / "cgroup.procs").read_text() == "4711"


def test_missing_controllers_are_named_and_jobs_still_contained(tmp_path: Path) -> None:
    tree = cgroups.detect(stand_in(tmp_path / "root", controllers="hugetlb"))
    assert not tree.capability.is_enforced
    assert "no cpu and no memory controller" in tree.capability.why
    group = tree.create("01A-0", memory_bytes=1 << 30, cpu_millicores=1000)
    assert group is not None
    assert not list(group.iterdir())


def test_a_group_that_cannot_be_used_is_named_with_the_cause_and_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    tree = cgroups.detect(tmp_path / "empty")
    assert not tree.capability.is_enforced
    assert "No such file" in tree.capability.why
    assert "Delegate=memory cpu" in tree.capability.why
    assert tree.create("01A-0", 1 << 30, 1000) is None


def test_a_machine_without_cgroup_v2_is_said_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "mountinfo").write_text("25 1 0:22 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n")
    tree = cgroups.detect(proc=tmp_path)
    assert tree.capability == cgroups.Capability(False, "no cgroup v2 file system is mounted")


def test_a_group_that_is_not_delegated_is_left_alone(tmp_path: Path) -> None:
    root = stand_in(tmp_path / "fs" / "system.slice", enabled="")
    (tmp_path / "mountinfo").write_text(f"25 1 0:22 / {tmp_path}/fs rw shared:1 - cgroup2 cgroup2 rw\n")
    (tmp_path / "cgroup").write_text("1:name=systemd:/\n0::/system.slice\n")
    tree = cgroups.detect(proc=tmp_path)
    assert not tree.capability.is_enforced
    assert f"{root} is not delegated" in tree.capability.why
    assert (root / "cgroup.subtree_control").read_text() == "\n"


def test_removing_a_group_takes_what_the_job_made_below_it(tmp_path: Path) -> None:
    tree = cgroups.detect(stand_in(tmp_path / "root"))
    group = tree.create("01A-0", 0, 0)
    assert group is not None
    (group / "inner" / "most").mkdir(parents=True)
    assert tree.remove("01A-0")
    assert not group.exists()
    assert tree.remove("01A-0")


@pytest.fixture
def real_root() -> Iterator[Path]:
    """A cgroup of our own in the real file system, removed afterwards."""
    mount = cgroups.mount_point(Path("/proc/self/mountinfo"))
    if mount is None:
        pytest.skip("no cgroup v2 file system is mounted")
    root = mount / f"turnstile-test-{uuid.uuid4().hex[:8]}"
    try:
        root.mkdir()
    except OSError as error:
        pytest.skip(f"may not make a cgroup in {mount}: {error.strerror}")
    yield root
    for path, _, _ in os.walk(root, topdown=False):
        Path(path).rmdir()


def test_a_real_group_holds_all_of_a_job_and_is_gone_after_it(real_root: Path, tmp_path: Path) -> None:
    local = LocalRig(tmp_path / "base", LocalSettings(rescan_seconds=0.3, cgroup_root=real_root))
    job = shell("setsid sleep 3600 & echo $!; cat /proc/self/cgroup; echo ready; sleep 3600")
    local.executor.start(job)
    output = local.until_printed(job, b"ready").decode()
    group = real_root / f"turnstile-{job.allocation.id}-0"
    assert f"0::/{real_root.name}/{group.name}" in output
    escaped = int(output.split()[0])
    assert str(escaped) in (group / "cgroup.procs").read_text().split()
    local.executor.stop(job.allocation.id, 0.0, EndReason.CANCELLED)
    assert local.until_ended(job).exit_code == 137
    assert not exists(escaped)
    local.executor.acknowledge(job.allocation.id)
    assert not group.exists()
    local.close()


def test_a_real_memory_limit_ends_a_greedy_job_as_oom(real_root: Path, tmp_path: Path) -> None:
    local = LocalRig(tmp_path / "base", LocalSettings(rescan_seconds=0.3, cgroup_root=real_root))
    if not local.executor.limits.is_enforced:
        local.close()
        pytest.skip(local.executor.limits.why)
    job = order("/bin/sh", "-c", "tail -c 1G /dev/zero", memory_bytes=32 << 20)
    ended = local.run(job)
    assert (ended.exit_code, ended.reason) == (137, EndReason.OOM)
    local.close()
