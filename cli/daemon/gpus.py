"""This daemon's own GPUs, real or simulated: the readers, the samplers over them, and the inventory they make."""

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cli.daemon.settings import Settings
from metering.agent import GpuSnapshot, Sampler
from metering.gpus import GpuProblem
from metering.inventory import inventories_of
from metering.reader_process import ProcessReader, ReaderLimits
from metering.simulated import SimulatedReader, parse_sim
from metering.windows import SampleWindow
from scheduler.clock import Clock
from scheduler.core.model import NodeName, PoolName
from scheduler.executor import ExecutorError, NodeInventory

MEMORY_LABEL = "gpu_memory_bytes"
"""Node label by which a job that asks for GPU memory finds its classes."""
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class _Machine:
    """CPU and memory that jobs may have on a node."""

    cpu_millicores: int
    memory_bytes: int


class Gpus:
    """One sampler a node. Polled by the daemon's periodic work; read by the executor's inventory and by `/metrics`."""

    def __init__(self, samplers: Sequence[tuple[Sampler, _Machine]], pool: PoolName, close: Callable[[], None]) -> None:
        self._samplers = tuple(samplers)
        self._pool = pool
        self._close = close

    def poll(self) -> bool:
        """Reads every node; returns whether the inventory is not what it was."""
        before = self._inventory()
        for sampler, _ in self._samplers:
            sampler.poll()
        return self._inventory() != before

    def snapshots(self) -> tuple[GpuSnapshot, ...]:
        """Returns each node's last reading."""
        return tuple(sampler.snapshot for sampler, _ in self._samplers)

    def close_windows(self) -> tuple[SampleWindow, ...]:
        """Returns what was measured since the last call."""
        return tuple(window for sampler, _ in self._samplers for window in sampler.close_windows())

    def problems(self) -> tuple[GpuProblem, ...]:
        """Returns what could not be read at the last poll."""
        return tuple(problem for snapshot in self.snapshots() for problem in snapshot.problems)

    def inventory(self) -> tuple[NodeInventory, ...]:
        """Returns the nodes as last read. Raises ExecutorError before a first reading succeeded."""
        if any(snapshot.last_success_ms is None for snapshot in self.snapshots()):
            words = "; ".join(dict.fromkeys(problem.message for problem in self.problems())) or "not read yet"
            raise ExecutorError(f"no GPU inventory: {words}")
        return self._inventory()

    def _inventory(self) -> tuple[NodeInventory, ...]:
        found: list[NodeInventory] = []
        for sampler, machine in self._samplers:
            snapshot = sampler.snapshot
            identities = [device.identity for device in snapshot.devices]
            health = {device.identity.uuid: device.health for device in snapshot.devices}
            memory = {gpu.gpu_class: gpu.memory_bytes for gpu in identities}
            nodes = inventories_of(
                snapshot.node, self._pool, identities, machine.cpu_millicores, machine.memory_bytes, health
            )
            for each in nodes:
                labels = {**each.node.labels, MEMORY_LABEL: str(memory[each.node.gpu_class])}
                found.append(replace(each, node=replace(each.node, labels=labels)))
        return tuple(found)

    def close(self) -> None:
        """Ends the readers' processes."""
        self._close()


def simulated_gpus(sim: str, settings: Settings, clock: Clock, is_busy: Callable[[str], bool]) -> Gpus:
    """Returns GPUs that do not exist, from a text such as `2x8xH200`. Raises ValueError."""
    nodes = parse_sim(sim)
    samplers = [
        (
            Sampler(node.name, SimulatedReader(node, clock, is_busy), clock),
            _Machine(node.cpu_millicores, node.memory_bytes),
        )
        for node in nodes
    ]
    return Gpus(samplers, PoolName(settings.node.pool), lambda: None)


def real_gpus(settings: Settings, clock: Clock) -> Gpus:
    """Returns this machine's GPUs, read through NVML in a process of its own."""
    limits = ReaderLimits(call_seconds=settings.metering.read_deadline_seconds)
    reader = ProcessReader(clock, arguments={"class_overrides": settings.node.classes}, limits=limits)
    name = NodeName(settings.node.name or platform.node() or "localhost")
    return Gpus([(Sampler(name, reader, clock), _this_machine(settings))], PoolName(settings.node.pool), reader.close)


def no_gpus(settings: Settings) -> Gpus:
    """Returns none: where a cluster runs the jobs, its nodes' agents read their GPUs."""
    return Gpus((), PoolName(settings.node.pool), lambda: None)


def _this_machine(settings: Settings) -> _Machine:
    cpus = len(os.sched_getaffinity(0)) - settings.node.reserved_cpus
    memory = _memory_bytes() - settings.node.reserved_memory_gib * GIB
    return _Machine(max(1, cpus) * 1000, max(GIB, memory))


def _memory_bytes() -> int:
    """The machine's memory, in bytes, from /proc/meminfo (proc(5): MemTotal, in KiB)."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        name, _, rest = line.partition(":")
        if name == "MemTotal":
            return int(rest.split()[0]) * 1024
    raise ExecutorError("/proc/meminfo names no MemTotal; this does not look like Linux")
