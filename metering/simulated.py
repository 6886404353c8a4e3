"""GPUs that do not exist: an inventory from `2x8xH200`, and a reader whose samples are plausible and exact.

The same text gives the same nodes and UUIDs on every machine; the same seed, clock and calls give the same samples.
Power is constant between two samples and chosen anew at each, from whether the device is held; the energy counter is
its exact integral. What a node of a class has besides GPUs stands in `hardware`.
"""

import hashlib
import math
import re
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from metering.gpus import GpuIdentity, GpuProblem, GpuSample, ProblemCode, ThrottleReason, XidEvent
from metering.hardware import ReferenceHardware, reference_hardware
from metering.inventory import inventory_of
from scheduler.clock import Clock
from scheduler.core.model import GpuClass, NodeName, PoolName
from scheduler.executor import NodeInventory

MOST_GPUS_PER_NODE = 32
"""More than any machine has; catches `8x2000xH200` for `2000x8xH200`."""
MOST_GPUS = 100_000
"""The largest cluster that the scheduler promises to plan."""

_EXAMPLE = "write NODESxGPUSxCLASS, several with commas, such as 2x8xH200 or 2x8xH200,1x4xA100-80GB"
_CLASS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_NUMBER = re.compile(r"[0-9]{1,9}")
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "simulated.turnstile.invalid")

_IDLE_POWER_PERCENT = 13  # an idle H100 draws 95 of 700 W
_AMBIENT_CELSIUS = 28
_RISE_CELSIUS = 45  # at full power
_WARMING_MS = 60_000  # to within 1/e of the new temperature


@dataclass(frozen=True, slots=True)
class SimulatedNode:
    """A node of the simulated inventory. CPU and memory are the class's usual part per GPU times its GPUs."""

    name: NodeName
    gpu_class: GpuClass
    gpus: int

    @property
    def hardware(self) -> ReferenceHardware:
        """What its GPUs are, and its CPU and memory per GPU."""
        return reference_hardware(self.gpu_class)

    @property
    def cpu_millicores(self) -> int:
        """CPU that jobs may have."""
        return self.gpus * self.hardware.cpu_millicores_per_gpu

    @property
    def memory_bytes(self) -> int:
        """Memory that jobs may have."""
        return self.gpus * self.hardware.memory_bytes_per_gpu

    def identities(self) -> tuple[GpuIdentity, ...]:
        """Returns its GPUs by PCI bus id; the UUIDs follow from the node's name and the index alone."""
        hardware = self.hardware
        return tuple(
            GpuIdentity(
                uuid=f"GPU-{uuid.uuid5(_NAMESPACE, f'{self.name}/{index}')}",
                name=hardware.product,
                gpu_class=self.gpu_class,
                memory_bytes=hardware.memory_bytes,
                pci_bus_id=f"00000000:{0x10 + 4 * index:02X}:00.0",
                minor_number=index,
                serial=f"SIM{index:04d}",
            )
            for index in range(self.gpus)
        )

    def inventory(self, pool: PoolName) -> NodeInventory:
        """Returns it as the scheduler's inventory."""
        return inventory_of(self.name, pool, self.identities(), self.cpu_millicores, self.memory_bytes)


def parse_sim(text: str) -> tuple[SimulatedNode, ...]:
    """Returns the nodes of `2x8xH200,1x4xA100-80GB`, named `h200-01`, `h200-02`, `a100-80gb-01` in the order written.

    Raises ValueError that says which part is wrong and what would be right.
    """
    nodes: list[SimulatedNode] = []
    numbered: dict[str, int] = {}
    for part in text.split(","):
        count, gpus, gpu_class = _parse_part(part.strip(), text)
        if sum(node.gpus for node in nodes) + count * gpus > MOST_GPUS:
            raise ValueError(
                f"simulated inventory {text!r} has more than {MOST_GPUS:,} GPUs; {MOST_GPUS:,} are the most"
            )
        for _ in range(count):
            numbered[gpu_class.lower()] = number = numbered.get(gpu_class.lower(), 0) + 1
            nodes.append(SimulatedNode(NodeName(f"{gpu_class.lower()}-{number:02d}"), GpuClass(gpu_class), gpus))
    return tuple(nodes)


def format_sim(nodes: Sequence[SimulatedNode]) -> str:
    """Returns the shortest text that `parse_sim` takes for these nodes, neighbours of one shape together."""
    parts: list[tuple[int, int, str]] = []
    for node in nodes:
        if parts and parts[-1][1:] == (node.gpus, node.gpu_class):
            parts[-1] = (parts[-1][0] + 1, node.gpus, node.gpu_class)
        else:
            parts.append((1, node.gpus, node.gpu_class))
    return ",".join(f"{count}x{gpus}x{gpu_class}" for count, gpus, gpu_class in parts)


def _parse_part(part: str, text: str) -> tuple[int, int, str]:
    where = f"simulated inventory {text!r}: {part!r}" if part != text else f"simulated inventory {text!r}"
    fields = part.split("x", 2)
    if len(fields) != 3:
        raise ValueError(f"{where} is not complete; {_EXAMPLE}")
    nodes, gpus, gpu_class = fields
    for number, what in ((nodes, "nodes"), (gpus, "GPUs per node")):
        if not _NUMBER.fullmatch(number) or int(number) == 0:
            raise ValueError(f"{where}: the number of {what} is {number!r}, not a whole number from 1; {_EXAMPLE}")
    if int(gpus) > MOST_GPUS_PER_NODE:
        raise ValueError(f"{where}: a node has at most {MOST_GPUS_PER_NODE} GPUs, not {gpus}; {_EXAMPLE}")
    if not _CLASS.fullmatch(gpu_class):
        raise ValueError(f"{where}: {gpu_class!r} is no GPU class (letters, digits, '.', '_', '-'); {_EXAMPLE}")
    return int(nodes), int(gpus), gpu_class


@dataclass(slots=True)
class _State:
    """A simulated GPU between two samples. Energy is kept in microjoules: milliwatts times milliseconds."""

    at_ms: int
    power_milliwatts: int
    energy_microjoules: int = 0
    celsius: float = 33.0
    is_lost: bool = False


@dataclass(slots=True)
class SimulatedReader:
    """Reads a node that does not exist. `is_busy` tells whether a job holds a UUID now."""

    node: SimulatedNode
    clock: Clock
    is_busy: Callable[[str], bool]
    seed: int = 0
    collector: str = "simulated"
    _identities: tuple[GpuIdentity, ...] = field(init=False)
    _states: dict[str, _State] = field(init=False)
    _xids: list[XidEvent] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._identities = self.node.identities()
        idle = self._limit_milliwatts * _IDLE_POWER_PERCENT // 100
        self._states = {gpu.uuid: _State(self.clock.now_ms(), idle) for gpu in self._identities}

    @property
    def driver_version(self) -> str | None:
        """There is no driver."""
        return None

    def identities(self) -> tuple[Sequence[GpuIdentity], Sequence[GpuProblem]]:
        """Returns the GPUs that are not lost."""
        return [gpu for gpu in self._identities if not self._states[gpu.uuid].is_lost], self._lost()

    def sample(self) -> tuple[Sequence[GpuSample], Sequence[GpuProblem]]:
        """Returns a sample of each GPU that is not lost, as of now."""
        now_ms = self.clock.now_ms()
        return [self._sample(gpu, now_ms) for gpu in self.identities()[0]], self._lost()

    def xids(self, wait_ms: int) -> Sequence[XidEvent]:  # noqa: ARG002 -- in virtual time there is nothing to wait for
        """Returns the XIDs injected since the last call, at once."""
        events, self._xids = self._xids, []
        return events

    def close(self) -> None:
        """Does nothing."""

    def inject_xid(self, gpu_uuid: str, xid: int) -> None:
        """Makes a GPU report an XID now. Raises KeyError when the node has no such GPU."""
        self._xids.append(XidEvent(self._known(gpu_uuid), xid, self.clock.now_ms()))

    def lose(self, gpu_uuid: str) -> None:
        """Makes a GPU fall off the bus. Raises KeyError when the node has no such GPU."""
        self._states[self._known(gpu_uuid)].is_lost = True

    def restore(self, gpu_uuid: str) -> None:
        """Brings a GPU back as after a reboot: its energy counter begins at zero. Raises KeyError as `lose` does."""
        idle = self._limit_milliwatts * _IDLE_POWER_PERCENT // 100
        self._states[self._known(gpu_uuid)] = _State(self.clock.now_ms(), idle)

    @property
    def _limit_milliwatts(self) -> int:
        return self.node.hardware.power_limit_milliwatts

    def _known(self, gpu_uuid: str) -> str:
        if gpu_uuid not in self._states:
            raise KeyError(f"simulated node {self.node.name} has no GPU {gpu_uuid}")
        return gpu_uuid

    def _lost(self) -> list[GpuProblem]:
        message = "the GPU is lost: it has fallen off the bus (simulated)"
        lost = [gpu.uuid for gpu in self._identities if self._states[gpu.uuid].is_lost]
        return [GpuProblem(ProblemCode.GPU_LOST, f"{gpu}: {message}", uuid=gpu) for gpu in lost]

    def _sample(self, gpu: GpuIdentity, now_ms: int) -> GpuSample:
        state = self._states[gpu.uuid]
        self._pass_time(state, now_ms)
        is_busy = self.is_busy(gpu.uuid)
        noise = self._noise(gpu.uuid, now_ms)
        utilization = 88 + noise % 12 if is_busy else 0
        percent = _IDLE_POWER_PERCENT + (100 - _IDLE_POWER_PERCENT - 2) * utilization // 100
        state.power_milliwatts = self._limit_milliwatts * percent // 100 + noise % 1000
        reserved = gpu.memory_bytes // 200
        return GpuSample(
            uuid=gpu.uuid,
            at_ms=now_ms,
            utilization_percent=utilization,
            memory_utilization_percent=utilization * 2 // 3,
            memory_used_bytes=gpu.memory_bytes * (70 + noise % 20) // 100 if is_busy else reserved,
            power_milliwatts=state.power_milliwatts,
            energy_millijoules=state.energy_microjoules // 1000,
            temperature_celsius=round(state.celsius),
            throttle_reasons=(ThrottleReason.POWER_CAP,) if percent >= 97 else (),
            ecc_uncorrected_errors=0,
            row_remap_pending=False,
            row_remap_failure=False,
        )

    def _pass_time(self, state: _State, now_ms: int) -> None:
        elapsed_ms = now_ms - state.at_ms
        state.energy_microjoules += state.power_milliwatts * elapsed_ms
        target = _AMBIENT_CELSIUS + _RISE_CELSIUS * state.power_milliwatts / self._limit_milliwatts
        state.celsius = target + (state.celsius - target) * math.exp(-elapsed_ms / _WARMING_MS)
        state.at_ms = now_ms

    def _noise(self, gpu_uuid: str, now_ms: int) -> int:
        """Returns a number from 0 to 65535 that follows from seed, GPU and second."""
        text = f"{self.seed}/{gpu_uuid}/{now_ms // 1000}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=2).digest(), "big")
