"""The sampler over the simulated reader, and over one that answers exactly what the test says."""

from collections.abc import Sequence

import pytest

from metering.agent import DeviceReading, Sampler, SamplerPolicy
from metering.gpus import GpuIdentity, GpuProblem, GpuReader, GpuSample, ProblemCode, XidEvent
from metering.health import HealthPolicy
from metering.simulated import SimulatedNode, SimulatedReader
from scheduler.clock import ManualClock
from scheduler.core.model import GPU_UNITS, DeviceHealth, GpuClass, NodeName

NODE = NodeName("h100-01")


def identity(uuid: str, bus: int = 1, parent: str | None = None) -> GpuIdentity:
    return GpuIdentity(
        uuid, "NVIDIA H100 80GB HBM3", GpuClass("H100"), 80, f"00000000:{bus:02X}:00.0",
        is_mig=parent is not None, parent_uuid=parent, mig_index=0 if parent else None, units=GPU_UNITS,
    )  # fmt: skip


class TableReader:
    """Reads GPUs from lists that the test changes: what is not in `samples` does not answer."""

    collector = "nvml"
    driver_version = "570.86.15"

    def __init__(self, clock: ManualClock, *uuids: str) -> None:
        self.clock = clock
        self.gpus = {uuid: identity(uuid, bus) for bus, uuid in enumerate(uuids)}
        self.energy: dict[str, int] = dict.fromkeys(uuids, 1_000)
        self.silent: set[str] = set()
        self.problems: list[GpuProblem] = []
        self.events: list[XidEvent] = []
        self.identified = 0

    def identities(self) -> tuple[Sequence[GpuIdentity], Sequence[GpuProblem]]:
        self.identified += 1
        return [gpu for uuid, gpu in self.gpus.items() if uuid not in self.silent], list(self.problems)

    def sample(self) -> tuple[Sequence[GpuSample], Sequence[GpuProblem]]:
        now_ms = self.clock.now_ms()
        answering = [uuid for uuid in self.gpus if uuid not in self.silent]
        samples = [GpuSample(uuid, now_ms, 50, energy_millijoules=self.energy.get(uuid)) for uuid in answering]
        return samples, list(self.problems)

    def xids(self, wait_ms: int) -> Sequence[XidEvent]:
        events, self.events = self.events, []
        return events

    def close(self) -> None:
        pass

    def report(self, uuid: str | None, xid: int) -> None:
        self.events.append(XidEvent(uuid, xid, self.clock.now_ms()))


class Bench:
    """A sampler, its reader and its clock."""

    def __init__(self, *uuids: str) -> None:
        self.clock = ManualClock()
        self.reader = TableReader(self.clock, *uuids)
        checked: GpuReader = self.reader
        self.sampler = Sampler(NODE, checked, self.clock, SamplerPolicy(health=HealthPolicy()))

    def poll(self, rounds: int = 1) -> dict[str, DeviceReading]:
        for _ in range(rounds):
            self.clock.advance(seconds=15)
            self.sampler.poll()
        return {device.identity.uuid: device for device in self.sampler.snapshot.devices}

    def health(self, uuid: str) -> tuple[str, str | None]:
        verdict = next(device.health for device in self.sampler.snapshot.devices if device.identity.uuid == uuid)
        return verdict.health.value, verdict.code


def test_before_the_first_poll_the_snapshot_is_empty() -> None:
    snapshot = Bench("A").sampler.snapshot
    assert (snapshot.node, snapshot.devices, snapshot.last_success_ms) == (NODE, (), None)


def test_a_poll_shows_every_device_with_its_place_and_latest_sample() -> None:
    bench = Bench("A", "B")
    devices = bench.poll()
    assert [(uuid, device.position) for uuid, device in devices.items()] == [("A", "0"), ("B", "1")]
    assert {device.sample.at_ms for device in devices.values() if device.sample} == {bench.clock.now_ms()}
    assert bench.sampler.snapshot.last_success_ms == bench.clock.now_ms()
    assert bench.sampler.snapshot.driver_version == "570.86.15"


def test_windows_are_contiguous_and_cover_what_was_sampled() -> None:
    bench = Bench("A")
    bench.poll(3)
    (first,) = bench.sampler.close_windows()
    bench.reader.energy["A"] = 1_500
    bench.poll(2)
    (second,) = bench.sampler.close_windows()
    assert (first.from_ms, first.to_ms - first.from_ms) == (second.from_ms - 30_000, 30_000)
    assert first.to_ms == second.from_ms
    assert (second.energy_millijoules, second.utilization_mean_percent) == (500, 50)
    assert bench.sampler.close_windows() == ()


def test_over_a_simulated_node_the_window_has_the_counters_difference() -> None:
    clock = ManualClock()
    node = SimulatedNode(NODE, GpuClass("H100"), 1)
    sampler = Sampler(NODE, SimulatedReader(node, clock, lambda _uuid: True), clock)
    energies = []
    for _ in range(9):
        (device,) = sampler.poll().devices
        assert device.sample is not None
        energies.append(device.sample.energy_millijoules or 0)
        clock.advance(seconds=15)
    (window,) = sampler.close_windows()
    assert window.energy_millijoules == energies[-1] - energies[0]
    assert (window.coverage_ratio, window.samples) == (1.0, 9)


def test_a_fatal_xid_fails_the_gpu_until_an_operator_resumes_it() -> None:
    bench = Bench("A", "B")
    bench.poll()
    bench.reader.report("A", 79)
    bench.poll(20)
    assert bench.health("A") == ("failed", "xid_79")
    assert bench.health("B") == ("ok", None)
    bench.sampler.resume("A")
    bench.poll()
    assert bench.health("A") == ("ok", None)


def test_a_driver_that_was_loaded_anew_proves_the_reset_and_clears_the_xid() -> None:
    bench = Bench("A")
    bench.poll()
    bench.reader.report("A", 48)
    bench.poll()
    assert bench.health("A") == ("failed", "xid_48")
    bench.reader.energy["A"] = 10
    bench.poll()
    assert bench.health("A") == ("ok", None)


def test_an_applications_xid_is_counted_and_harms_no_gpu() -> None:
    bench = Bench("A")
    bench.poll()
    bench.reader.report("A", 31)
    first_ms = bench.clock.now_ms()
    bench.poll()
    bench.reader.report("A", 31)
    bench.poll()
    (count,) = bench.sampler.snapshot.xids
    assert (count.uuid, count.xid, count.count) == ("A", 31, 2)
    assert (count.first_ms, count.last_ms) == (first_ms, first_ms + 15_000)
    assert bench.health("A") == ("ok", None)


def test_an_xid_of_no_known_gpu_is_counted_and_fails_none() -> None:
    bench = Bench("A")
    bench.poll()
    bench.reader.report(None, 79)
    bench.poll()
    assert [(count.uuid, count.xid) for count in bench.sampler.snapshot.xids] == [(None, 79)]
    assert bench.health("A") == ("ok", None)


def test_what_hits_one_mig_instance_is_judged_on_its_gpu_and_all_instances() -> None:
    bench = Bench("A", "B")
    bench.reader.gpus["M0"] = identity("M0", 0, parent="A")
    bench.reader.gpus["M1"] = identity("M1", 0, parent="A")
    bench.poll()
    bench.reader.report("M0", 95)
    bench.poll()
    assert {uuid: bench.health(uuid)[0] for uuid in ("A", "M0", "M1", "B")} == {
        "A": "failed",
        "M0": "failed",
        "M1": "failed",
        "B": "ok",
    }
    assert next(d.health.uuid for d in bench.sampler.snapshot.devices if d.identity.uuid == "M1") == "M1"


def test_a_lost_gpu_fails_at_once_with_the_drivers_reason_and_keeps_its_place() -> None:
    bench = Bench("A", "B")
    bench.poll()
    bench.reader.silent.add("A")
    bench.reader.problems = [GpuProblem(ProblemCode.GPU_LOST, "fallen off the bus", uuid="A", index=0)]
    devices = bench.poll()
    assert bench.health("A") == ("failed", "gpu_lost")
    assert (devices["A"].sample, devices["A"].position) == (None, "0")
    assert (devices["B"].sample is None, devices["B"].position) == (False, "1")
    assert bench.health("B") == ("ok", None)
    assert bench.sampler.snapshot.last_success_ms == bench.clock.now_ms(), "the collector did its work"


def test_a_gpu_that_is_not_listed_for_two_rounds_fails_and_recovers_when_it_is_back() -> None:
    bench = Bench("A", "B")
    bench.poll()
    bench.reader.silent.add("B")
    bench.poll()
    assert bench.health("B") == ("ok", None)
    bench.poll()
    assert bench.health("B") == ("failed", "gpu_missing")
    bench.reader.silent.clear()
    bench.poll()
    assert bench.health("B") == ("ok", None)


def test_a_gpu_taken_out_of_the_machine_can_be_forgotten() -> None:
    bench = Bench("A", "B")
    bench.poll()
    bench.reader.silent.add("B")
    bench.poll(3)
    bench.sampler.forget("B")
    assert set(bench.poll()) == {"A"}
    with pytest.raises(KeyError, match="no GPU B was seen on node h100-01"):
        bench.sampler.forget("B")
    with pytest.raises(KeyError, match="no GPU B was seen on node h100-01"):
        bench.sampler.resume("B")


def test_a_destroyed_mig_instance_disappears_and_a_new_one_appears_without_delay() -> None:
    bench = Bench("A")
    bench.reader.gpus["M0"] = identity("M0", 0, parent="A")
    bench.poll()
    del bench.reader.gpus["M0"]
    bench.reader.gpus["M1"] = identity("M1", 0, parent="A")
    assert set(bench.poll()) == {"A", "M1"}


def test_a_hanging_driver_drains_all_gpus_after_a_minute_and_fails_none() -> None:
    bench = Bench("A", "B")
    bench.poll()
    healthy_ms = bench.clock.now_ms()
    bench.reader.silent = {"A", "B"}
    bench.reader.problems = [GpuProblem(ProblemCode.READER_HUNG, "the driver did not answer")]
    bench.poll(3)
    assert bench.health("A") == ("ok", None)
    bench.poll()
    verdict = bench.sampler.snapshot.devices[0].health
    assert (verdict.health, verdict.reason) == (
        DeviceHealth.DRAINING,
        "not read for 60 s: the driver did not answer",
    )
    assert bench.sampler.snapshot.last_success_ms == healthy_ms
    bench.reader.silent, bench.reader.problems = set(), []
    bench.poll()
    assert bench.health("A") == ("ok", None)


def test_xids_that_cannot_be_read_spoil_neither_samples_nor_health() -> None:
    bench = Bench("A")
    bench.reader.problems = [GpuProblem(ProblemCode.XIDS_UNREAD, "no event set")]
    bench.poll(10)
    assert bench.health("A") == ("ok", None)
    assert bench.sampler.snapshot.last_success_ms == bench.clock.now_ms()
    assert [problem.code for problem in bench.sampler.snapshot.problems] == [ProblemCode.XIDS_UNREAD]


def test_identities_are_read_once_a_minute_and_not_with_each_sample() -> None:
    bench = Bench("A")
    bench.poll(9)
    assert bench.reader.identified == 3


def test_an_idle_device_says_since_when() -> None:
    clock = ManualClock()
    node = SimulatedNode(NODE, GpuClass("H100"), 1)
    held = True
    sampler = Sampler(NODE, SimulatedReader(node, clock, lambda _uuid: held), clock)
    sampler.poll()
    clock.advance(seconds=15)
    assert sampler.poll().devices[0].idle_since_ms is None
    held, freed_ms = False, clock.now_ms()
    clock.advance(seconds=30)
    assert sampler.poll().devices[0].idle_since_ms == freed_ms
