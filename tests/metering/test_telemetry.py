"""The exposition that Prometheus would scrape."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from metering.agent import DeviceReading, GpuSnapshot, Sampler, XidCount
from metering.gpus import GpuIdentity, GpuSample, ThrottleReason
from metering.health import GpuHealth
from metering.simulated import SimulatedReader, parse_sim
from metering.telemetry import XID_BIRTH_MS, CollectorSuccess, GpuCollector
from scheduler.clock import ManualClock
from scheduler.core.model import DeviceHealth, GpuClass, NodeName

NODE = NodeName("h200-01")
AT_MS = 1_790_000_000_000
FULL = GpuSample(
    "GPU-1",
    AT_MS,
    utilization_percent=42,
    memory_utilization_percent=7,
    memory_used_bytes=1234,
    power_milliwatts=350_500,
    energy_millijoules=2_000_500,
    temperature_celsius=61,
    throttle_reasons=(ThrottleReason.HW_THERMAL, ThrottleReason.USER_CLOCKS),
    ecc_uncorrected_errors=3,
    row_remap_pending=True,
    row_remap_failure=False,
)


def snapshot(sample: GpuSample | None = FULL, *xids: XidCount, last_success_ms: int | None = AT_MS) -> GpuSnapshot:
    identity = GpuIdentity("GPU-1", "NVIDIA H200", GpuClass("H200"), 150_000, "00000000:1B:00.0")
    device = DeviceReading(identity, "0", sample, GpuHealth("GPU-1", DeviceHealth.OK), None)
    return GpuSnapshot(NODE, "nvml", AT_MS, last_success_ms, "570", (device,), xids)


def exposition(*snapshots: GpuSnapshot, successes: tuple[CollectorSuccess, ...] = ()) -> str:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(GpuCollector(lambda: snapshots, lambda _node: "main", lambda: successes))
    return generate_latest(registry).decode()


def series(text: str) -> Mapping[str, float]:
    """Returns every series of an exposition as `name{labels}` with labels in order."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            key = f"{sample.name}{{{labels}}}"
            assert key not in found, "each series once"
            found[key] = sample.value
    return found


def test_a_full_sample_shows_every_series_of_the_contract_in_base_units() -> None:
    assert series(exposition(snapshot())) == {
        "turnstile_gpu_info{gpu=0,model=H200,node=h200-01,pool=main,uuid=GPU-1}": 1,
        "turnstile_gpu_utilization_ratio{gpu=0,node=h200-01}": 0.42,
        "turnstile_gpu_memory_used_bytes{gpu=0,node=h200-01}": 1234,
        "turnstile_gpu_memory_bytes{gpu=0,node=h200-01}": 150_000,
        "turnstile_gpu_power_watts{gpu=0,node=h200-01}": 350.5,
        "turnstile_gpu_energy_joules_total{gpu=0,node=h200-01}": 2000.5,
        "turnstile_gpu_temperature_celsius{gpu=0,node=h200-01}": 61,
        "turnstile_gpu_throttled{gpu=0,node=h200-01,reason=hw_slowdown}": 0,
        "turnstile_gpu_throttled{gpu=0,node=h200-01,reason=hw_thermal}": 1,
        "turnstile_gpu_throttled{gpu=0,node=h200-01,reason=power_brake}": 0,
        "turnstile_gpu_throttled{gpu=0,node=h200-01,reason=power_cap}": 0,
        "turnstile_gpu_throttled{gpu=0,node=h200-01,reason=sw_thermal}": 0,
        "turnstile_gpu_throttled{gpu=0,node=h200-01,reason=user_clocks}": 1,
        "turnstile_gpu_ecc_uncorrected_errors_total{gpu=0,node=h200-01}": 3,
        "turnstile_gpu_row_remap_pending{gpu=0,node=h200-01}": 1,
        "turnstile_gpu_row_remap_failure{gpu=0,node=h200-01}": 0,
        "turnstile_collector_last_success_timestamp_seconds{collector=nvml,node=h200-01}": AT_MS / 1000,
    }


def test_every_family_has_help_and_its_type_even_without_series() -> None:
    text = exposition(snapshot(None, last_success_ms=None))
    assert series(text) == {}
    types = dict(line.split()[2:4] for line in text.splitlines() if line.startswith("# TYPE"))
    helps = {line.split()[2] for line in text.splitlines() if line.startswith("# HELP")}
    assert set(types) == helps
    assert types == {
        "turnstile_gpu_info": "gauge",
        "turnstile_gpu_utilization_ratio": "gauge",
        "turnstile_gpu_memory_used_bytes": "gauge",
        "turnstile_gpu_memory_bytes": "gauge",
        "turnstile_gpu_power_watts": "gauge",
        "turnstile_gpu_energy_joules_total": "counter",
        "turnstile_gpu_temperature_celsius": "gauge",
        "turnstile_gpu_throttled": "gauge",
        "turnstile_gpu_ecc_uncorrected_errors_total": "counter",
        "turnstile_gpu_row_remap_pending": "gauge",
        "turnstile_gpu_row_remap_failure": "gauge",
        "turnstile_gpu_xid_errors_total": "counter",
        "turnstile_gpu_xid_last_timestamp_seconds": "gauge",
        "turnstile_collector_last_success_timestamp_seconds": "gauge",
    }


def test_what_a_gpu_does_not_say_has_no_series() -> None:
    shown = series(exposition(snapshot(GpuSample("GPU-1", AT_MS, temperature_celsius=0))))
    names = {key.partition("{")[0] for key in shown}
    assert names == {
        "turnstile_gpu_info",
        "turnstile_gpu_memory_bytes",
        "turnstile_gpu_temperature_celsius",
        "turnstile_collector_last_success_timestamp_seconds",
    }


def test_a_gpu_that_the_last_poll_did_not_read_has_no_info_so_that_it_counts_as_missing() -> None:
    assert not any(key.startswith("turnstile_gpu_") for key in series(exposition(snapshot(None))))


def xid(count: int, first_ms: int, last_ms: int, uuid: str | None = "GPU-1") -> XidCount:
    return XidCount(uuid, 79, count, first_ms, last_ms)


def test_an_xid_counter_is_born_with_zero_so_that_increase_sees_the_first() -> None:
    errors = "turnstile_gpu_xid_errors_total{gpu=0,node=h200-01,xid=79}"
    last = "turnstile_gpu_xid_last_timestamp_seconds{gpu=0,node=h200-01,xid=79}"
    young = series(exposition(snapshot(FULL, xid(1, AT_MS - XID_BIRTH_MS + 1, AT_MS - 5_000))))
    assert (young[errors], young[last]) == (0, (AT_MS - 5_000) / 1000), (
        "the time stamp, which alerts use, is there at once"
    )
    grown = series(exposition(snapshot(FULL, xid(4, AT_MS - XID_BIRTH_MS, AT_MS))))
    assert grown[errors] == 4


def test_xids_of_no_known_gpu_are_one_series() -> None:
    gone = [xid(2, 0, 1_000, None), xid(3, 0, 9_000, "MIG-gone")]
    shown = series(exposition(snapshot(FULL, *gone)))
    assert shown["turnstile_gpu_xid_errors_total{gpu=unknown,node=h200-01,xid=79}"] == 5
    assert shown["turnstile_gpu_xid_last_timestamp_seconds{gpu=unknown,node=h200-01,xid=79}"] == 9


def test_other_collectors_share_the_family_of_last_success() -> None:
    shown = series(exposition(snapshot(), successes=(CollectorSuccess(NODE, "kubernetes", 5_000),)))
    assert shown["turnstile_collector_last_success_timestamp_seconds{collector=kubernetes,node=h200-01}"] == 5


def test_a_second_collector_of_the_same_names_is_refused_by_the_registry() -> None:
    registry = CollectorRegistry()
    registry.register(GpuCollector(tuple, lambda _node: "main"))
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        registry.register(GpuCollector(tuple, lambda _node: "main"))


def test_many_nodes_are_one_exposition_that_follows_the_samplers() -> None:
    clock = ManualClock()
    nodes = parse_sim("2x8xH200,1x4xA100-80GB")
    samplers = [Sampler(node.name, SimulatedReader(node, clock, lambda _uuid: True), clock) for node in nodes]
    registry = CollectorRegistry()
    registry.register(GpuCollector(lambda: [sampler.snapshot for sampler in samplers], lambda node: node[:4]))
    for sampler in samplers:
        sampler.poll()
    shown = series(generate_latest(registry).decode())
    infos = [key for key in shown if key.startswith("turnstile_gpu_info")]
    assert len(infos) == 20
    assert sum("model=A100-80GB,node=a100-80gb-01,pool=a100" in key for key in infos) == 4
    clock.advance(seconds=60)
    samplers[0].poll()
    energy = "turnstile_gpu_energy_joules_total{gpu=0,node=h200-01}"
    assert series(generate_latest(registry).decode())[energy] > shown[energy]


def test_a_label_with_quotes_and_line_ends_stays_one_series() -> None:
    odd = replace(snapshot(), node=NodeName('no"de\\\n1'))
    assert any(key.startswith("turnstile_gpu_info") for key in series(exposition(odd)))
