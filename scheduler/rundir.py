"""What stands on the disk between the local executor and its supervisors: file names, formats, the lock.

    BASE/doorbell               a FIFO; supervisors write `ALLOCATION RANK` lines when something happened
    BASE/runs/ALLOCATION/RANK/  one per supervisor, mode 0700, gone once the end is acknowledged
        lock                    held with flock as long as its supervisor lives
        order.json              what to run; removed by the supervisor as soon as it is read: it holds secrets
        claim.json              who runs it; its modification time is the sign of life
        control, control.json   a FIFO that says "look", and what is asked: a stop, a new time limit
        enter                   a socket of packets, see `entrance`: who comes in while the job runs
        status.json             how it ended; written whole, last, and durably
    BASE/logs/ALLOCATION/RANK/  segments of the output, see `joblog`
    BASE/scratch/ALLOCATION/    the job's own: its checkpoint file

Shared with the supervisor, which must start fast: nothing here may import more than the few modules below.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Mapping
from typing import Any, TypedDict

ORDER = "order.json"
CLAIM = "claim.json"
CONTROL = "control.json"
CONTROL_BELL = "control"
STATUS = "status.json"
LOCK = "lock"
ENTRANCE = "enter"


class Order(TypedDict):
    """order.json. `uid`, `gid` count only with a `user`; the environment still lacks TURNSTILE_DEADLINE."""

    allocation: str
    rank: int
    ranks: int
    boot_id: str
    argv: list[str]
    environment: dict[str, str]
    workdir: str
    output: str | None
    user: str | None
    uid: int
    gid: int
    stop_signal: int
    grace_seconds: float
    time_limit_ms: int
    log_directory: str
    log_limit_bytes: int
    cgroup: str | None
    doorbell: str
    devices: list[str]
    master_port: int
    is_terminal: bool


class Claim(TypedDict):
    """claim.json: what must be known of a run if its supervisor vanishes. The last three are None until the start."""

    boot_id: str
    pid: int
    start_ticks: int
    cgroup: str | None
    devices: list[str]
    master_port: int
    job_pid: int | None
    job_start_ticks: int | None
    started_ms: int | None


class Stop(TypedDict):
    """A stop that somebody asks for; `is_peer` when it is only the consequence of another rank's end."""

    reason: str
    grace_seconds: float
    detail: str | None
    is_peer: bool


class Control(TypedDict):
    """control.json. A `time_limit_ms` of None leaves the order's."""

    stop: Stop | None
    time_limit_ms: int | None


class Status(TypedDict):
    """status.json. `started_ms` and `exit_code` are None when the job never ran."""

    started_ms: int | None
    ended_ms: int
    exit_code: int | None
    reason: str | None
    detail: str | None
    is_peer_stop: bool


def read_json(path: str) -> Any:
    """Returns the file's content, None when it is absent or was cut by a crash."""
    try:
        with open(path, encoding="utf-8") as file:  # noqa: PTH123 -- pathlib is a third of the start-up time
            return json.load(file)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def write_atomically(path: str, content: Mapping[str, object], *, is_durable: bool = False) -> None:
    """Replaces a JSON file so that a reader sees the old or the new one. Raises OSError."""
    temporary = f"{path}.{os.getpid()}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(fd, "w", encoding="utf-8") as file:  # noqa: PTH123
        json.dump(content, file)
        if is_durable:
            file.flush()
            os.fsync(fd)
    os.replace(temporary, path)  # noqa: PTH105


def sync_directory(path: str | os.PathLike[str]) -> None:
    """Forces a directory's entries to the disk. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def ring(path: str, text: str) -> None:
    """Writes to a FIFO if somebody listens; best effort, never blocks: every listener also looks by itself."""
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)


def is_alive(directory: str) -> bool:
    """Tells whether a supervisor holds the run directory's lock; the answer cannot be fooled by a reused pid."""
    try:
        fd = os.open(f"{directory}/{LOCK}", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def time_limit_ms(directory: str) -> int | None:
    """Returns the limit that a supervisor keeps: what it was last asked for, else its order's; None without either."""
    control: Control | None = read_json(f"{directory}/{CONTROL}")
    if control is not None and control["time_limit_ms"] is not None:
        return control["time_limit_ms"]
    order: Order | None = read_json(f"{directory}/{ORDER}")
    return None if order is None else order["time_limit_ms"]


def ask(directory: str, *, stop: Stop | None = None, time_limit_ms: int | None = None) -> None:
    """Asks a supervisor for something, whether it already listens or not. The first reason to stop stays."""
    found: Control | None = read_json(f"{directory}/{CONTROL}")
    control: Control = found or {"stop": None, "time_limit_ms": None}
    if stop is not None:
        earlier = control["stop"]
        if earlier is not None:
            stop = {**earlier, "grace_seconds": min(stop["grace_seconds"], earlier["grace_seconds"])}
        control["stop"] = stop
    if time_limit_ms is not None:
        control["time_limit_ms"] = time_limit_ms
    try:
        write_atomically(f"{directory}/{CONTROL}", control)
    except FileNotFoundError:
        return  # the run is over and acknowledged
    ring(f"{directory}/{CONTROL_BELL}", "x")
