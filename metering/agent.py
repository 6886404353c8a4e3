"""The sampler: reads a node's GPUs each interval and keeps what others ask for. No database, no clock of its own.

`poll` reads and folds; the daemon calls it each interval, in a thread of its own, because a read may take as long as
the reader allows. `snapshot` is the state after the last poll, a value that other threads may use without a lock
(scrapes); `close_windows` hands out what is to be stored. The folding is in `windows`, the verdicts are in `health`.
"""

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from metering.gpus import GpuIdentity, GpuProblem, GpuReader, GpuSample, ProblemCode, XidEvent, gpu_positions
from metering.health import GpuHealth, HealthFacts, HealthPolicy, judge, worse
from metering.windows import SampleWindow, WindowFold
from metering.xids import is_hardware_xid
from scheduler.clock import Clock
from scheduler.core.model import NodeName


@dataclass(frozen=True, slots=True)
class SamplerPolicy:
    """`interval_ms` 15 s, Prometheus's usual scrape interval. `identity_ms` one minute: MIG layouts change by hand.

    `gap_intervals` 3: a longer hole between two samples is unmeasured time. `idle_percent` 5: what counts as idle, the
    threshold of the alert for held but idle GPUs.
    """

    interval_ms: int = 15_000
    identity_ms: int = 60_000
    gap_intervals: int = 3
    idle_percent: int = 5
    health: HealthPolicy = field(default_factory=HealthPolicy)


@dataclass(frozen=True, slots=True)
class XidCount:
    """How often an XID was seen on a GPU since the sampler started. `uuid` is None for XIDs of no known GPU."""

    uuid: str | None
    xid: int
    count: int
    first_ms: int
    last_ms: int


@dataclass(frozen=True, slots=True)
class DeviceReading:
    """A device after the last poll. `sample` is None when that poll did not read it; `position` is the label `gpu`."""

    identity: GpuIdentity
    position: str
    sample: GpuSample | None
    health: GpuHealth
    idle_since_ms: int | None


@dataclass(frozen=True, slots=True)
class GpuSnapshot:
    """A node's GPUs after the last poll, by PCI bus id and MIG index. `last_success_ms` is None before the first."""

    node: NodeName
    collector: str
    at_ms: int
    last_success_ms: int | None
    driver_version: str | None
    devices: tuple[DeviceReading, ...] = ()
    xids: tuple[XidCount, ...] = ()
    problems: tuple[GpuProblem, ...] = ()


@dataclass(slots=True)
class _Device:
    """What the sampler remembers of a device between polls."""

    identity: GpuIdentity
    fold: WindowFold
    known_since_ms: int
    sample: GpuSample | None = None  # the latest, however old
    is_current: bool = False
    problem: GpuProblem | None = None
    missing_rounds: int = 0
    xids: dict[int, int] = field(default_factory=dict)  # in force: number to last time


class Sampler:
    """Samples the GPUs of one node through `reader`."""

    def __init__(self, node: NodeName, reader: GpuReader, clock: Clock, policy: SamplerPolicy | None = None) -> None:
        self._node = node
        self._reader = reader
        self._clock = clock
        self._policy = policy or SamplerPolicy()
        self._lock = threading.Lock()  # over everything below but the snapshot
        self._devices: dict[str, _Device] = {}
        self._xids: dict[tuple[str | None, int], XidCount] = {}
        self._identified_ms: int | None = None
        self._last_success_ms: int | None = None
        self._snapshot = GpuSnapshot(node, reader.collector, clock.now_ms(), None, None)

    @property
    def snapshot(self) -> GpuSnapshot:
        """The state after the last poll; empty before the first. Safe in any thread."""
        return self._snapshot

    def poll(self) -> GpuSnapshot:
        """Reads XIDs, identities when they are due, and a sample of each device. Takes as long as the reader does.

        Failures to read are in the snapshot's problems and in the devices' health; nothing is raised for them.
        """
        events = self._reader.xids(0)
        problems: list[GpuProblem] = []
        if self._are_identities_due():
            self._identify(problems)
        samples, sample_problems = self._reader.sample()
        if any(sample.uuid not in self._devices for sample in samples):
            self._identify(problems)  # a MIG instance was made, or a GPU came back
        problems = list(dict.fromkeys([*problems, *sample_problems]))
        with self._lock:
            now_ms = self._clock.now_ms()
            for event in events:
                self._count(event)
            self._fold(samples, problems, now_ms)
            self._snapshot = self._take_snapshot(problems, now_ms)
            return self._snapshot

    def close_windows(self) -> tuple[SampleWindow, ...]:
        """Returns each device's window since the last call, sorted by UUID; devices without two samples have none."""
        with self._lock:
            folds = [self._devices[uuid].fold for uuid in sorted(self._devices)]
            return tuple(window for fold in folds for window in fold.close())

    def resume(self, uuid: str) -> None:
        """Takes a device's XIDs, and those of its MIG instances, out of force: an operator says that it is well.

        What the next samples show still counts. Raises KeyError when the device is not known.
        """
        with self._lock:
            if uuid not in self._devices:
                raise KeyError(f"no GPU {uuid} was seen on node {self._node}")
            self._clear_xids(uuid)

    def forget(self, uuid: str) -> None:
        """Drops a device that was taken out of the machine. Raises KeyError when it is not known."""
        with self._lock:
            if uuid not in self._devices:
                raise KeyError(f"no GPU {uuid} was seen on node {self._node}")
            del self._devices[uuid]

    def _are_identities_due(self) -> bool:
        now_ms = self._clock.now_ms()
        return self._identified_ms is None or now_ms - self._identified_ms >= self._policy.identity_ms

    def _identify(self, problems: list[GpuProblem]) -> None:
        identities, found_problems = self._reader.identities()
        problems.extend(found_problems)
        if not _is_round_good(found_problems):
            return
        now_ms = self._clock.now_ms()
        found = {identity.uuid: identity for identity in identities}
        with self._lock:
            self._identified_ms = now_ms
            for uuid, identity in found.items():
                if uuid in self._devices:
                    self._devices[uuid].identity = identity
                else:
                    gap_ms = self._policy.gap_intervals * self._policy.interval_ms
                    fold = WindowFold(uuid, gap_ms=gap_ms, idle_percent=self._policy.idle_percent)
                    self._devices[uuid] = _Device(identity, fold, now_ms)
            # A MIG instance that is gone while its GPU answers was destroyed by an admin; a GPU would be missing.
            for uuid, device in list(self._devices.items()):
                if uuid not in found and device.identity.is_mig and device.identity.parent_uuid in found:
                    del self._devices[uuid]

    def _count(self, event: XidEvent) -> None:
        key = (event.uuid, event.xid)
        seen = self._xids.get(key)
        if seen is None:
            self._xids[key] = XidCount(event.uuid, event.xid, 1, event.at_ms, event.at_ms)
        else:
            self._xids[key] = replace(seen, count=seen.count + 1, last_ms=max(seen.last_ms, event.at_ms))
        device = self._devices.get(event.uuid) if event.uuid is not None else None
        if device is None or not is_hardware_xid(event.xid):
            return
        # Memory and bus are the whole GPU's: what hits one MIG instance is judged on its GPU.
        parent = self._devices.get(device.identity.parent_uuid or "")
        (parent or device).xids[event.xid] = event.at_ms

    def _fold(self, samples: Sequence[GpuSample], problems: Sequence[GpuProblem], now_ms: int) -> None:
        is_good = _is_round_good(problems)
        by_uuid = {sample.uuid: sample for sample in samples}
        problem_of = {problem.uuid: problem for problem in reversed(problems) if _is_of_health(problem)}
        machine_problem = next((problem for problem in problems if _is_machine_failure(problem)), None)
        for uuid, device in self._devices.items():
            sample = by_uuid.get(uuid)
            device.is_current = sample is not None
            device.problem = problem_of.get(uuid, machine_problem)
            if sample is not None:
                device.sample, device.missing_rounds = sample, 0
                if device.fold.add(sample):
                    self._clear_xids(uuid)
            elif is_good and uuid not in problem_of:
                device.missing_rounds += 1
        if is_good:
            self._last_success_ms = now_ms

    def _clear_xids(self, uuid: str) -> None:
        for device in self._devices.values():
            if uuid in (device.identity.uuid, device.identity.parent_uuid):
                device.xids.clear()

    def _take_snapshot(self, problems: Iterable[GpuProblem], now_ms: int) -> GpuSnapshot:
        identities = sorted((device.identity for device in self._devices.values()), key=_place)
        positions = gpu_positions(identities)
        health = self._judge_all(now_ms)
        devices = []
        for identity in identities:
            device = self._devices[identity.uuid]
            sample = device.sample if device.is_current else None
            idle_since_ms = device.fold.idle_since_ms if device.is_current else None
            position = positions.get(identity.uuid, identity.uuid)  # an instance whose GPU was never read
            devices.append(DeviceReading(identity, position, sample, health[identity.uuid], idle_since_ms))
        return GpuSnapshot(
            node=self._node,
            collector=self._reader.collector,
            at_ms=now_ms,
            last_success_ms=self._last_success_ms,
            driver_version=self._reader.driver_version,
            devices=tuple(devices),
            xids=tuple(sorted(self._xids.values(), key=lambda count: (count.uuid or "", count.xid))),
            problems=tuple(problems),
        )

    def _judge_all(self, now_ms: int) -> Mapping[str, GpuHealth]:
        own = {}
        for uuid, device in self._devices.items():
            since_ms = device.sample.at_ms if device.sample is not None else device.known_since_ms
            facts = HealthFacts(
                uuid=uuid,
                sample=device.sample,
                problem=device.problem,
                xids=device.xids,
                missing_rounds=device.missing_rounds,
                silent_ms=max(0, now_ms - since_ms),
            )
            own[uuid] = judge(facts, self._policy.health)
        verdicts = dict(own)
        for uuid, device in self._devices.items():
            parent = own.get(device.identity.parent_uuid or "")
            if parent is not None:
                verdicts[uuid] = replace(worse(own[uuid], parent), uuid=uuid)
        return verdicts


def _place(identity: GpuIdentity) -> tuple[str, int, str]:
    return (identity.pci_bus_id, -1 if identity.mig_index is None else identity.mig_index, identity.uuid)


def _is_machine_failure(problem: GpuProblem) -> bool:
    return problem.is_machine_wide and problem.code is not ProblemCode.XIDS_UNREAD


def _is_of_health(problem: GpuProblem) -> bool:
    return problem.uuid is not None and problem.code not in (ProblemCode.XIDS_UNREAD, ProblemCode.NO_PERMISSION)


def _is_round_good(problems: Iterable[GpuProblem]) -> bool:
    return not any(_is_machine_failure(problem) for problem in problems)
