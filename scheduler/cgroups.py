"""Memory and CPU limits by cgroup v2, where the machine lets us; where not, `Capability.why` says so in a sentence.

One group per allocation and rank. The supervisor stays outside of it; the job's process moves itself in before it
becomes the command, so nothing of the job is ever outside. Kernel interface: Documentation/admin-guide/cgroup-v2.rst;
delegation: systemd's "Control Group APIs and Delegation".
"""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

CONTROLLERS = frozenset({"memory", "cpu"})
CPU_PERIOD_MICROSECONDS = 100_000  # the kernel's own default for cpu.max
DAEMON_GROUP = "daemon"
GROUP_PREFIX = "turnstile-"
ADVICE = (
    "run the daemon by a unit with Delegate=memory cpu and DelegateSubgroup=daemon, or name a cgroup in cgroup_root"
)


@dataclass(frozen=True, slots=True)
class Capability:
    """Whether memory and CPU limits hold here, and the sentence for people."""

    is_enforced: bool
    why: str


class CgroupTree:
    """The groups below one directory of the cgroup v2 file system, or none at all when `root` is None."""

    def __init__(self, root: Path | None, capability: Capability) -> None:
        self._root = root
        self.capability = capability

    def create(self, name: str, memory_bytes: int, cpu_millicores: int) -> Path | None:
        """Returns a group with these limits (0 means none), None where there are no groups. Raises OSError."""
        if self._root is None:
            return None
        group = self._root / f"{GROUP_PREFIX}{name}"
        group.mkdir(exist_ok=True)
        if self.capability.is_enforced:
            if memory_bytes > 0:
                (group / "memory.max").write_text(str(memory_bytes))
                with contextlib.suppress(FileNotFoundError):  # a kernel without swap accounting has no such file
                    (group / "memory.swap.max").write_text("0")
                (group / "memory.oom.group").write_text("1")  # a job killed in part is of no use
            if cpu_millicores > 0:
                quota = cpu_millicores * CPU_PERIOD_MICROSECONDS // 1000
                (group / "cpu.max").write_text(f"{quota} {CPU_PERIOD_MICROSECONDS}")
        return group

    def remove(self, name: str) -> bool:
        """Removes a group without processes, with what the job made below it; False when it is still in use."""
        if self._root is None:
            return True
        group = self._root / f"{GROUP_PREFIX}{name}"
        below = [Path(path) for path, _, _ in os.walk(group, topdown=False)]
        try:
            for path in below:
                path.rmdir()
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True


def detect(configured: Path | None = None, proc: Path = Path("/proc/self")) -> CgroupTree:
    """Returns the tree that this process may use: the configured group, else a delegated one. Changes only that one.

    Groups are used for killing even where the controllers for limits are absent.
    """
    if configured is not None:
        try:
            configured.mkdir(exist_ok=True)
        except OSError as error:
            return CgroupTree(None, Capability(False, f"cgroup_root {configured}: {error.strerror}"))
        return _prepare(configured)
    own = _own_group(proc)
    if own is None:
        return CgroupTree(None, Capability(False, "no cgroup v2 file system is mounted"))
    for candidate in (own, own.parent):
        if _is_delegated(candidate):
            return _prepare(candidate)
    return CgroupTree(None, Capability(False, f"cgroup {own} is not delegated to the daemon; {ADVICE}"))


def _prepare(root: Path) -> CgroupTree:
    try:
        missing = sorted(CONTROLLERS - _words(root / "cgroup.controllers"))
        if missing:
            why = f"cgroup {root} has no {' and no '.join(missing)} controller; jobs are contained but not limited"
            return CgroupTree(root, Capability(False, why))
        if not _words(root / "cgroup.subtree_control") >= CONTROLLERS:
            _leave(root)
            (root / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in sorted(CONTROLLERS)))
    except OSError as error:
        return CgroupTree(None, Capability(False, f"cgroup {root} cannot be used: {error.strerror}; {ADVICE}"))
    return CgroupTree(root, Capability(True, f"memory and CPU limits by cgroup v2 below {root}"))


def _leave(root: Path) -> None:
    """Moves the group's processes, which are the daemon's, one level down: a group that limits others holds none."""
    pids = (root / "cgroup.procs").read_text(encoding="ascii").split()
    if not pids:
        return
    leaf = root / DAEMON_GROUP
    leaf.mkdir(exist_ok=True)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            (leaf / "cgroup.procs").write_text(pid)


def _words(path: Path) -> frozenset[str]:
    return frozenset(path.read_text(encoding="ascii").split())


def _own_group(proc: Path) -> Path | None:
    mount = mount_point(proc / "mountinfo")
    if mount is None:
        return None
    for line in (proc / "cgroup").read_text(encoding="utf-8").splitlines():
        if line.startswith("0::"):
            return mount / line.removeprefix("0::").lstrip("/")
    return None


def mount_point(mountinfo: Path) -> Path | None:
    """Returns where cgroup v2 is mounted, the fifth field of a line of mountinfo (proc(5)); None if nowhere."""
    for line in mountinfo.read_text(encoding="utf-8").splitlines():
        before, _, after = line.partition(" - ")
        if after.split(" ")[0] == "cgroup2":
            return Path(before.split(" ")[4])
    return None


def _is_delegated(group: Path) -> bool:
    """Systemd marks what it delegates with this extended attribute, the second for units of a user's manager too."""
    for name in ("trusted.delegate", "user.delegate"):
        with contextlib.suppress(OSError):
            if os.getxattr(group, name) == b"1":
                return True
    return False
