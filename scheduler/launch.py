"""From a StartOrder to what a supervisor is told: the user, the environment, the rendezvous, the order file.

A job inherits nothing of the daemon's environment but a named few variables, and can replace none of ours: device
visibility and identity are not its to choose.
"""

import hashlib
import os
import pwd
import re
import signal
import socket
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from scheduler.compat import slurm_variables
from scheduler.core.model import GPU_UNITS, tenant_of
from scheduler.executor import StartOrder, StartRefused
from scheduler.processes import ALLOCATION_VARIABLE
from scheduler.rundir import Order

INHERITED_VARIABLES = (
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "LC_*", "TZ", "TMPDIR", "LD_LIBRARY_PATH",
    "CUDA_HOME", "CUDA_PATH",
)  # fmt: skip
"""What a job gets of the daemon's environment: where programs are and how to speak, never a setting or a secret."""

PROTECTED_PREFIX = "TURNSTILE_"
PROTECTED_VARIABLES = frozenset({"CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "NVIDIA_VISIBLE_DEVICES"})
FIRST_PORT, PORTS = 20_000, 10_000
"""Rendezvous ports: above the registered services in common use, below Linux's ephemeral range (32768 and up)."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where one rank runs: its files, its group, and how the gang's ranks find each other."""

    log_directory: Path
    scratch_directory: Path
    doorbell: Path
    boot_id: str
    host: str
    port: int
    cgroup: Path | None = None


def user_for(run_as: str | None) -> pwd.struct_passwd | None:
    """Returns the account whose rights the job gets, None for the daemon's own. Raises StartRefused."""
    if run_as is None:
        return None
    try:
        user = pwd.getpwnam(run_as)
    except KeyError:
        raise StartRefused(f"no system user {run_as!r} on this machine") from None
    if user.pw_uid == os.geteuid():
        return None
    if os.geteuid() != 0:
        raise StartRefused(f"the daemon is not root, so it cannot run jobs as {run_as!r}")
    return user


def check_secrets(order: StartOrder) -> None:
    """Refuses an order without the values of its secrets, where the scheduler keeps them. Raises StartRefused."""
    for name in order.spec.secrets:
        if name not in order.secrets:
            raise StartRefused(f"the secret {name} was removed after the job was submitted")
        if not _is_passable(order.secrets[name]):
            raise StartRefused(f"the secret {name} contains a NUL byte or text that is not Unicode")


def check(order: StartOrder) -> None:
    """Refuses what no machine could run. Raises StartRefused."""
    spec = order.spec
    if not spec.argv or not spec.argv[0]:
        raise StartRefused("the job has no command")
    for position, argument in enumerate(spec.argv):
        if not _is_passable(argument):
            raise StartRefused(f"argument {position} contains a NUL byte or text that is not Unicode")
    for name, value in {**spec.environment, "TURNSTILE_JOB_NAME": spec.name}.items():
        if not name or "=" in name or not _is_passable(name + value):
            text = "has an empty name, an equals sign in its name, a NUL byte, or text that is not Unicode"
            raise StartRefused(f"environment variable {name!r} {text}")
    if spec.workdir is not None and not Path(spec.workdir).is_absolute():
        raise StartRefused(f"working directory {spec.workdir!r} is not absolute")
    stop_signal(order)


def _is_passable(text: str) -> bool:
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def stop_signal(order: StartOrder) -> int:
    """Returns the number of the signal that asks the job to end. Raises StartRefused."""
    try:
        return signal.Signals[order.spec.stop_signal].value
    except KeyError:
        raise StartRefused(f"{order.spec.stop_signal!r} is not a signal's name, such as SIGTERM or SIGUSR1") from None


def rendezvous_port(allocation: str, taken: Collection[int]) -> int:
    """Returns the allocation's port: the same each time, unless something listens there; then the next free one."""
    start = int.from_bytes(hashlib.sha256(allocation.encode()).digest()[:8], "big")
    for step in range(PORTS):
        port = FIRST_PORT + (start + step) % PORTS
        if port not in taken and _is_free(port):
            return port
    raise StartRefused(f"none of the ports {FIRST_PORT} to {FIRST_PORT + PORTS - 1} is free")


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def order_for(order: StartOrder, rank: int, place: Place, inherited: Mapping[str, str]) -> Order:
    """Returns what the rank's supervisor is told. `inherited` is the permitted part of the daemon's environment."""
    allocation, spec, grant = order.allocation, order.spec, order.allocation.grants[rank]
    user = user_for(spec.run_as)
    environment = {**inherited, **_identity(user)}
    given = {**spec.environment, **order.secrets}
    environment |= {name: value for name, value in given.items() if not is_protected(name)}
    rendezvous = _rendezvous(order, rank, place)
    environment = {**rendezvous, **slurm_variables(order, rank), **environment, **_ours(order, rank, place)}
    workdir = spec.workdir or environment.get("HOME") or "/"
    return {
        "allocation": allocation.id,
        "rank": rank,
        "ranks": len(allocation.grants),
        "boot_id": place.boot_id,
        "argv": list(spec.argv),
        "environment": environment,
        "workdir": workdir,
        "output": None if spec.output is None else output_path(spec.output, order, rank),
        "user": None if user is None else user.pw_name,
        "uid": 0 if user is None else user.pw_uid,
        "gid": 0 if user is None else user.pw_gid,
        "stop_signal": stop_signal(order),
        "grace_seconds": spec.grace_seconds,
        "time_limit_ms": allocation.time_limit_ms,
        "log_directory": str(place.log_directory),
        "log_limit_bytes": spec.log_limit_bytes,
        "cgroup": None if place.cgroup is None else str(place.cgroup),
        "doorbell": str(place.doorbell),
        "devices": list(grant.devices),
        "master_port": place.port,
        "is_terminal": spec.is_terminal,
    }


def inheritable(environment: Mapping[str, str], names: Collection[str]) -> dict[str, str]:
    """Returns the variables that `names` permit; a name may end in `*`."""
    prefixes = tuple(name.removesuffix("*") for name in names if name.endswith("*"))
    return {
        name: value
        for name, value in environment.items()
        if (name in names or (prefixes and name.startswith(prefixes))) and not is_protected(name)
    }


def is_protected(name: str) -> bool:
    """Tells whether a variable is ours to set: the submission's value is dropped."""
    return name.startswith(PROTECTED_PREFIX) or name in PROTECTED_VARIABLES


def output_path(pattern: str, order: StartOrder, rank: int) -> str:
    """Returns an output file's path: `%j` job id, `%a` array index, `%n` node rank, `%x` job name, `%%` itself."""
    index = order.array_index
    known = {
        "j": str(order.allocation.job),
        "a": "" if index is None else str(index),
        "n": str(rank),
        "x": order.spec.name.replace("/", "_"),
        "%": "%",
    }
    return re.sub(r"%(.)", lambda match: known.get(match[1], match[0]), pattern)


def _identity(user: pwd.struct_passwd | None) -> dict[str, str]:
    if user is None:
        return {}
    temporary = "/tmp"  # noqa: S108 -- the daemon's TMPDIR is not that user's
    return {
        "HOME": user.pw_dir,
        "USER": user.pw_name,
        "LOGNAME": user.pw_name,
        "SHELL": user.pw_shell,
        "TMPDIR": temporary,
    }


def _rendezvous(order: StartOrder, rank: int, place: Place) -> dict[str, str]:
    """What torchrun reads by itself (torch.distributed.run: each flag's PET_ variable); the job may choose its own."""
    nodes, gpus = len(order.allocation.grants), len(order.allocation.grants[rank].devices)
    return {
        "MASTER_ADDR": place.host,
        "MASTER_PORT": str(place.port),
        "PET_NNODES": str(nodes),
        "PET_NODE_RANK": str(rank),
        "PET_NPROC_PER_NODE": str(max(1, gpus)),
        "PET_MASTER_ADDR": place.host,
        "PET_MASTER_PORT": str(place.port),
    }


def _ours(order: StartOrder, rank: int, place: Place) -> dict[str, str]:
    allocation, grant = order.allocation, order.allocation.grants[rank]
    tenant = tenant_of(allocation.account)
    devices = ",".join(grant.devices)
    values = {
        ALLOCATION_VARIABLE: allocation.id,
        "TURNSTILE_JOB_ID": order.reference,
        "TURNSTILE_JOB_NAME": order.spec.name,
        "TURNSTILE_TENANT": tenant,
        "TURNSTILE_PROJECT": allocation.account.removeprefix(tenant).lstrip("/"),
        "TURNSTILE_NODES": str(len(allocation.grants)),
        "TURNSTILE_NODE_RANK": str(rank),
        "TURNSTILE_GPUS_PER_NODE": str(len(grant.devices)),
        "TURNSTILE_ATTEMPT": str(allocation.attempt),
        "TURNSTILE_CHECKPOINT_FILE": str(place.scratch_directory / "checkpoint"),
        "CUDA_VISIBLE_DEVICES": devices,
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "NVIDIA_VISIBLE_DEVICES": devices or "void",
    }
    if order.least_nodes is not None:
        values["TURNSTILE_NODES_MIN"] = str(order.least_nodes)
    if order.array_index is not None:
        values["TURNSTILE_ARRAY_INDEX"] = str(order.array_index)
    if len(grant.devices) == 1 and grant.units < GPU_UNITS:
        # Honoured where the MPS control daemon runs; otherwise a share is a promise among the jobs on the device.
        values["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] = str(max(1, 100 * grant.units // GPU_UNITS))
    return values
