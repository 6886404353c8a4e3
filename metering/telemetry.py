"""GPU metrics for Prometheus, made at scrape time from the samplers' snapshots. A view: nothing here is billed.

Names and labels are a contract with dashboards, alerts and users' own queries. Every series of a GPU carries `node` and
`gpu`, its place on the node by PCI bus id; `turnstile_gpu_info` joins them to UUID, class and pool. A value that the
GPU does not offer, or that the last poll did not read, has no series: a vanished GPU shows as a series that ends.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from metering.agent import DeviceReading, GpuSnapshot
from metering.gpus import GpuSample, ThrottleReason
from scheduler.core.model import NodeName
from scheduler.exposition import Written, escaped

XID_BIRTH_MS = 120_000
"""How long a new XID counter says 0 before it tells its count: `increase()` does not see a counter that is born at 1.
Two minutes are two scrapes at the longest usual interval. Alerts use the time stamp, which is there at once."""

ALWAYS_SHOWN_THROTTLING = (
    ThrottleReason.HW_SLOWDOWN,
    ThrottleReason.HW_THERMAL,
    ThrottleReason.POWER_BRAKE,
    ThrottleReason.POWER_CAP,
    ThrottleReason.SW_THERMAL,
)
"""Reasons with a series of 0 while they do not hold; the others, which people set on purpose, show only if they do."""


@dataclass(frozen=True, slots=True)
class CollectorSuccess:
    """Something else that collects from a node, for the same family: the Kubernetes watch, the agent's uploads."""

    node: NodeName
    collector: str
    last_success_ms: int


class GpuCollector(Collector):
    """Shows the snapshots that `snapshots` returns. `pool_of` names a node's pool; it may change between scrapes.

    `successes` adds other collectors' last success, because a family may have only one source in a registry.
    """

    def __init__(
        self,
        snapshots: Callable[[], Iterable[GpuSnapshot]],
        pool_of: Callable[[NodeName], str],
        successes: Callable[[], Iterable[CollectorSuccess]] = tuple,
    ) -> None:
        self._snapshots = snapshots
        self._pool_of = pool_of
        self._successes = successes

    def describe(self) -> Iterable[Metric]:
        """Returns the families without series, so that registering reads nothing and doubles are refused."""
        return _Families().all()

    def collect(self) -> Iterator[Metric]:
        """Returns the families with the values of now."""
        families = _Families()
        for snapshot in sorted(self._snapshots(), key=lambda snapshot: (snapshot.node, snapshot.collector)):
            for device in snapshot.devices:
                families.add_device(snapshot.node, device, self._pool_of(snapshot.node))
            families.add_xids(snapshot)
            if snapshot.last_success_ms is not None:
                families.add_success(snapshot.node, snapshot.collector, snapshot.last_success_ms)
        for success in self._successes():
            families.add_success(success.node, success.collector, success.last_success_ms)
        yield from families.all()


class _Families:
    """One exposition of the GPU families: those with a series for every GPU as lines, the others as values."""

    def __init__(self) -> None:
        gpu = ["node", "gpu"]
        self.info = Written(
            "turnstile_gpu_info", "A GPU or MIG instance that the last poll read.", [*gpu, "uuid", "model", "pool"]
        )
        self.utilization = Written(
            "turnstile_gpu_utilization_ratio",
            "Share of the driver's last sample period in which a kernel ran. Absent in MIG mode.",
            gpu,
        )
        self.memory_used = Written("turnstile_gpu_memory_used_bytes", "Device memory in use.", gpu)
        self.memory = Written("turnstile_gpu_memory_bytes", "Device memory.", gpu)
        self.power = Written("turnstile_gpu_power_watts", "Power of the board.", gpu)
        self.energy = Written(
            "turnstile_gpu_energy_joules",
            "Energy since the driver was loaded, by the GPU's own sensor. An estimate.",
            gpu,
            "counter",
        )
        self.temperature = Written("turnstile_gpu_temperature_celsius", "Temperature of the chip.", gpu)
        self.throttled = Written(
            "turnstile_gpu_throttled", "1 while the reason holds the clocks down.", [*gpu, "reason"]
        )
        self.ecc = Written(
            "turnstile_gpu_ecc_uncorrected_errors",
            "Uncorrected memory errors since the driver was loaded.",
            gpu,
            "counter",
        )
        self.remap_pending = Written(
            "turnstile_gpu_row_remap_pending", "1 while a memory row waits for a reset to be remapped.", gpu
        )
        self.remap_failure = Written(
            "turnstile_gpu_row_remap_failure", "1 when a memory row could not be remapped.", gpu
        )
        self.xid_errors = CounterMetricFamily(
            "turnstile_gpu_xid_errors",
            "XIDs since the sampler started. A new counter says 0 for its first two minutes.",
            labels=[*gpu, "xid"],
        )
        self.xid_last = GaugeMetricFamily(
            "turnstile_gpu_xid_last_timestamp_seconds", "When the XID was last seen.", labels=[*gpu, "xid"]
        )
        self.success = GaugeMetricFamily(
            "turnstile_collector_last_success_timestamp_seconds",
            "When the collector last read all that it collects from the node.",
            labels=["node", "collector"],
        )

    def all(self) -> list[Metric]:
        """Returns the families in the order of the exposition."""
        return list(vars(self).values())

    def add_device(self, node: NodeName, device: DeviceReading, pool: str) -> None:
        sample, identity = device.sample, device.identity
        if sample is None:
            return
        gpu, name = f'gpu="{escaped(device.position)}"', f'node="{escaped(node)}"'
        here = f"{{{gpu},{name}}} "
        model, of_pool, uuid = escaped(identity.gpu_class), escaped(pool), escaped(identity.uuid)
        self.info.add(f'{{{gpu},model="{model}",{name},pool="{of_pool}",uuid="{uuid}"}} ', 1)
        if identity.memory_bytes:
            self.memory.add(here, identity.memory_bytes)
        for family, value in self._values(sample):
            if value is not None:
                family.add(here, value)
        if sample.throttle_reasons is not None:
            for reason in _reasons_shown(sample.throttle_reasons):
                at = f'{{{gpu},{name},reason="{reason.value}"}} '
                self.throttled.add(at, int(reason in sample.throttle_reasons))

    def _values(self, sample: GpuSample) -> tuple[tuple[Written, float | None], ...]:
        return (
            (self.utilization, _scaled(sample.utilization_percent, 100)),
            (self.memory_used, sample.memory_used_bytes),
            (self.power, _scaled(sample.power_milliwatts, 1000)),
            (self.energy, _scaled(sample.energy_millijoules, 1000)),
            (self.temperature, sample.temperature_celsius),
            (self.ecc, sample.ecc_uncorrected_errors),
            (self.remap_pending, sample.row_remap_pending),
            (self.remap_failure, sample.row_remap_failure),
        )

    def add_xids(self, snapshot: GpuSnapshot) -> None:
        position_of = {device.identity.uuid: device.position for device in snapshot.devices}
        counts: dict[tuple[str, int], int] = {}
        last_ms: dict[tuple[str, int], int] = {}
        for count in snapshot.xids:
            # XIDs of no known GPU, and of MIG instances that are gone, share the place `unknown`.
            key = (position_of.get(count.uuid or "", "unknown"), count.xid)
            is_new = snapshot.at_ms - count.first_ms < XID_BIRTH_MS
            counts[key] = counts.get(key, 0) + (0 if is_new else count.count)
            last_ms[key] = max(last_ms.get(key, 0), count.last_ms)
        for (position, xid), total in sorted(counts.items()):
            labels = [snapshot.node, position, str(xid)]
            self.xid_errors.add_metric(labels, total)
            self.xid_last.add_metric(labels, last_ms[position, xid] / 1000)

    def add_success(self, node: NodeName, collector: str, last_success_ms: int) -> None:
        self.success.add_metric([node, collector], last_success_ms / 1000)


def _reasons_shown(holding: tuple[ThrottleReason, ...]) -> Sequence[ThrottleReason]:
    """Returns the reasons that have a series while these hold, sorted."""
    return sorted({*ALWAYS_SHOWN_THROTTLING, *holding}) if holding else ALWAYS_SHOWN_THROTTLING


def _scaled(value: int | None, divisor: int) -> float | None:
    return None if value is None else value / divisor
