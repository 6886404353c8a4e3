"""The local executor's hands: directories, durable orders, supervisors spawned and reaped. Decides nothing.

`rundir` describes what lies where. A supervisor is spawned with the lock of its directory already held, by a descriptor
that it inherits, so there is no instant at which one is on its way and the lock is free.
"""

import contextlib
import fcntl
import os
import re
import shutil
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import scheduler
from scheduler import launch, rundir, supervisor
from scheduler.cgroups import CgroupTree
from scheduler.core.model import AllocationId
from scheduler.executor import ExecutorError, StartOrder
from scheduler.processes import boot_id

_SOURCES = str(Path(scheduler.__file__).resolve().parent.parent)
_children: set[int] = set()
"""Supervisors that this process has to collect: they are its children, whichever executor of it started them."""
_NEW, _GONE = ".new-", ".gone-"


@dataclass(frozen=True, slots=True)
class LocalSettings:
    """How jobs are run on this machine.

    `rescan_seconds` bounds how late a lost ring or a vanished supervisor is noticed; a scan reads a few files a job.
    `advertised_host` is what the ranks of a gang call each other by: they all are on this machine.
    `cgroup_root` is a cgroup v2 directory that is the daemon's own; None looks for one that systemd delegated.
    """

    python_executable: str = sys.executable
    advertised_host: str = "127.0.0.1"
    rescan_seconds: float = 3.0
    inherited_variables: tuple[str, ...] = launch.INHERITED_VARIABLES
    cgroup_root: Path | None = None


class Workspace:
    """The base directory and the supervisors that this process has spawned."""

    def __init__(self, base: Path, settings: LocalSettings, groups: CgroupTree) -> None:
        self.base = base.resolve()
        self.boot_id = boot_id()
        self._settings = settings
        self._groups = groups
        self._inherited = launch.inheritable(os.environ, settings.inherited_variables)
        # Jobs of other users must reach their checkpoint file below scratch; nobody but us reads the rest.
        for path, mode in ((self.base, 0o711), (self.runs, 0o700), (self.logs, 0o700), (self.base / "scratch", 0o711)):
            if not path.is_dir():
                path.mkdir(parents=True)
                path.chmod(mode)
        with contextlib.suppress(FileExistsError):
            os.mkfifo(self.doorbell, 0o600)

    @property
    def runs(self) -> Path:
        """Holds a directory for each allocation whose end is not yet acknowledged."""
        return self.base / "runs"

    @property
    def logs(self) -> Path:
        """Holds a directory for each allocation that `forget_logs` left."""
        return self.base / "logs"

    @property
    def doorbell(self) -> Path:
        """The FIFO that supervisors ring."""
        return self.base / "doorbell"

    def run(self, allocation: AllocationId) -> Path:
        """Returns an allocation's run directory, whether it exists or not."""
        assert re.fullmatch(r"[0-9A-Za-z_-]+", allocation), f"{allocation!r} is no allocation id"
        return self.runs / allocation

    def rank(self, allocation: AllocationId, rank: int) -> str:
        """Returns a rank's run directory."""
        return f"{self.run(allocation)}/{rank}"

    def log(self, allocation: AllocationId, rank: int) -> Path:
        """Returns a rank's log directory."""
        return self.logs / self.run(allocation).name / str(rank)

    def scratch(self, allocation: AllocationId) -> Path:
        """Returns the directory of the allocation that its job may write to."""
        return self.base / "scratch" / self.run(allocation).name

    def allocations(self) -> dict[AllocationId, int]:
        """Returns what has a run directory, and its number of ranks; removes what a crash left half made or gone."""
        found = {}
        for path in sorted(self.runs.iterdir()):
            if path.name.startswith((_NEW, _GONE)):
                shutil.rmtree(path)
            else:
                found[AllocationId(path.name)] = sum(1 for _ in path.iterdir())
        for path in (self.base / "scratch").iterdir():
            if path.name not in found:
                shutil.rmtree(path, ignore_errors=True)
        return found

    def is_gone(self, allocation: AllocationId) -> bool:
        """Tells that there is no run directory and none is being made: it has not begun, or has been removed."""
        # In this order: the one being made becomes the other.
        return not (self.runs / f"{_NEW}{allocation}").exists() and not self.run(allocation).exists()

    def ranks(self, allocation: AllocationId) -> int:
        """Returns how many ranks an allocation's run directory has; 0 where there is none."""
        return sum(1 for _ in self.run(allocation).iterdir()) if self.run(allocation).is_dir() else 0

    def prepare(self, order: StartOrder, port: int) -> None:
        """Writes the orders of all ranks, whole or not at all, and forces them to the disk. Raises ExecutorError."""
        allocation = order.allocation.id
        staging = self.runs / f"{_NEW}{allocation}"
        try:
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(mode=0o700)
            self._make_scratch(order)
            for rank in range(len(order.allocation.grants)):
                self._prepare_rank(order, rank, port, staging / str(rank))
            rundir.sync_directory(str(staging))
            staging.rename(self.run(allocation))
            rundir.sync_directory(str(self.runs))
        except OSError as error:
            self.discard(allocation, len(order.allocation.grants))
            shutil.rmtree(staging, ignore_errors=True)
            raise ExecutorError(f"cannot prepare allocation {allocation} in {self.base}: {error.strerror}") from error

    def spawn(self, allocation: AllocationId, rank: int) -> None:
        """Starts a rank's supervisor unless one lives or has lived. Raises ExecutorError."""
        directory = self.rank(allocation, rank)
        lock = os.open(f"{directory}/{rundir.LOCK}", os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not Path(directory, rundir.CLAIM).exists():
                _children.add(self._spawn(directory, lock))
        except BlockingIOError:
            return
        except OSError as error:
            raise ExecutorError(f"cannot start {self._settings.python_executable}: {error.strerror}") from error
        finally:
            os.close(lock)

    def reap(self) -> None:
        """Collects supervisors that have ended, so that no zombie stays in a living daemon."""
        for pid in tuple(_children):
            try:
                done, _ = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                done = pid
            if done:
                _children.discard(pid)

    def held(self, allocation: AllocationId, ranks: int) -> tuple[frozenset[str], int | None]:
        """Returns the devices and the rendezvous port that the run directory names."""
        devices: set[str] = set()
        port: int | None = None
        for rank in range(ranks):
            for name in (rundir.CLAIM, rundir.ORDER):
                known: rundir.Claim | rundir.Order | None = rundir.read_json(f"{self.rank(allocation, rank)}/{name}")
                if known is not None:
                    devices.update(known["devices"])
                    port = known["master_port"]
        return frozenset(devices), port

    def conclude(self, allocation: AllocationId, rank: int, status: rundir.Status) -> None:
        """Writes an end that no supervisor could, as durable as theirs. Raises ExecutorError."""
        directory = self.rank(allocation, rank)
        try:
            rundir.write_atomically(f"{directory}/{rundir.STATUS}", status, is_durable=True)
            rundir.sync_directory(directory)
            Path(directory, rundir.ORDER).unlink(missing_ok=True)
        except OSError as error:
            raise ExecutorError(f"cannot write {directory}/{rundir.STATUS}: {error.strerror}") from error

    def discard(self, allocation: AllocationId, ranks: int) -> None:
        """Removes all but the logs. A supervisor that comes too late finds nothing under the old name."""
        for rank in range(ranks):
            self._groups.remove(f"{allocation}-{rank}")
        gone = self.runs / f"{_GONE}{allocation}"
        with contextlib.suppress(FileNotFoundError):
            self.run(allocation).rename(gone)
        shutil.rmtree(gone, ignore_errors=True)  # what is left is removed by `allocations` after the next start
        shutil.rmtree(self.scratch(allocation), ignore_errors=True)

    def last_words(self, allocation: AllocationId, rank: int) -> str:
        """Returns the last line that a supervisor wrote of itself; empty when it wrote none."""
        try:
            lines = Path(self.rank(allocation, rank), "supervisor.err").read_text(errors="replace").splitlines()
        except OSError:
            return ""
        return lines[-1] if lines else ""

    def _make_scratch(self, order: StartOrder) -> None:
        scratch = self.scratch(order.allocation.id)
        scratch.mkdir(mode=0o700, exist_ok=True)
        user = launch.user_for(order.spec.run_as)
        if user is not None:
            os.chown(scratch, user.pw_uid, user.pw_gid)

    def _prepare_rank(self, order: StartOrder, rank: int, port: int, directory: Path) -> None:
        allocation, grant = order.allocation.id, order.allocation.grants[rank]
        directory.mkdir(mode=0o700)
        log = self.log(allocation, rank)
        log.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.mkfifo(directory / rundir.CONTROL_BELL, 0o600)
        (directory / rundir.LOCK).touch(mode=0o600)
        place = launch.Place(
            log_directory=log,
            scratch_directory=self.scratch(allocation),
            doorbell=self.doorbell,
            boot_id=self.boot_id,
            host=self._settings.advertised_host,
            port=port,
            cgroup=self._groups.create(f"{allocation}-{rank}", grant.memory_bytes, grant.cpu_millicores),
        )
        text = launch.order_for(order, rank, place, self._inherited)
        rundir.write_atomically(str(directory / rundir.ORDER), text, is_durable=True)
        rundir.sync_directory(str(directory))

    def _spawn(self, directory: str, lock: int) -> int:
        words = os.open(f"{directory}/supervisor.err", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        high_lock = fcntl.fcntl(
            lock, fcntl.F_DUPFD_CLOEXEC, supervisor.LOCK_FD + 1
        )  # dup2 to itself would keep CLOEXEC
        python = self._settings.python_executable
        argv = [python, "-I", "-S", "-X", "utf8", "-c", supervisor.COMMAND, _SOURCES, directory]
        ignored = [number for number in signal.valid_signals() if number not in (signal.SIGKILL, signal.SIGSTOP)]
        try:
            return os.posix_spawn(
                python,
                argv,
                # A Python outside the system's library path needs to be told where its library is, nothing else.
                {name: value for name, value in self._inherited.items() if name == "LD_LIBRARY_PATH"},
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, words, 2),
                    (os.POSIX_SPAWN_DUP2, 2, 1),
                    (os.POSIX_SPAWN_DUP2, high_lock, supervisor.LOCK_FD),
                ],
                setsid=True,
                setsigmask=(),
                setsigdef=ignored,
            )
        finally:
            os.close(words)
            os.close(high_lock)
