"""The reader through the real binding, over a library of our own in Python."""

import os
from collections.abc import Callable, Iterator

import pynvml
import pytest

from metering.gpus import GpuProblem, ProblemCode, ThrottleReason, gpu_positions
from metering.nvml import MPS_VARIABLE
from metering.nvml_errors import NvmlUnavailable
from metering.nvml_reader import NvmlReader
from scheduler.clock import ManualClock
from scheduler.core.model import GPU_UNITS
from tests.metering.fake_nvml import GPU_IS_LOST, UNINITIALIZED, UNKNOWN, FakeEvent, FakeGpu, FakeMig, FakeNvml, lost

A, B, C = "GPU-aaaa", "GPU-bbbb", "GPU-cccc"
MakeReader = Callable[[FakeNvml], NvmlReader]


@pytest.fixture
def reader_over(monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeReader]:
    readers: list[NvmlReader] = []

    def make(library: FakeNvml) -> NvmlReader:
        while readers:  # the binding knows one library at a time
            readers.pop().close()
        monkeypatch.setattr(pynvml, "nvmlLib", library)
        monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
        readers.append(NvmlReader(ManualClock()))
        return readers[-1]

    yield make
    for reader in readers:
        reader.close()


def codes(problems: object) -> list[str]:
    assert isinstance(problems, list)
    return [problem.code.value for problem in problems if isinstance(problem, GpuProblem)]


def test_a_gpu_is_identified_by_its_uuid_with_class_memory_and_address(reader_over: MakeReader) -> None:
    identities, problems = reader_over(FakeNvml([FakeGpu(A)])).identities()
    (gpu,) = identities
    assert problems == []
    assert (gpu.uuid, gpu.gpu_class, gpu.memory_bytes) == (A, "H100", 81559 * 1024**2)
    assert (gpu.pci_bus_id, gpu.serial, gpu.minor_number, gpu.units) == ("00000000:1B:00.0", "1650", 0, GPU_UNITS)


def test_the_order_of_indices_does_not_matter(reader_over: MakeReader) -> None:
    one, two = FakeGpu(A, pci_bus_id="00000000:1B:00.0"), FakeGpu(B, pci_bus_id="00000000:9D:00.0")
    straight = reader_over(FakeNvml([one, two])).identities()[0]
    swapped = reader_over(FakeNvml([two, one])).identities()[0]
    assert straight == swapped
    assert gpu_positions(swapped) == {A: "0", B: "1"}


def test_a_sample_carries_every_field_in_its_unit(reader_over: MakeReader) -> None:
    gpu = FakeGpu(A, throttle=0x04 | 0x40 | 0x01, ecc=2, remap=(0, 1, 1, 0), energy=2**40)
    samples, problems = reader_over(FakeNvml([gpu])).sample()
    (sample,) = samples
    assert problems == []
    assert (sample.utilization_percent, sample.memory_utilization_percent) == (42, 17)
    assert (sample.power_milliwatts, sample.energy_millijoules) == (350_000, 2**40)
    assert (sample.temperature_celsius, sample.ecc_uncorrected_errors) == (51, 2)
    assert (sample.row_remap_pending, sample.row_remap_failure) == (True, False)
    assert sample.throttle_reasons == (ThrottleReason.HW_THERMAL, ThrottleReason.POWER_CAP)
    assert sample.at_ms == ManualClock().now_ms()
    assert (sample.retired_pages, sample.retired_pages_pending) == (None, None)


def test_a_field_that_a_gpu_does_not_offer_is_none_and_no_problem(reader_over: MakeReader) -> None:
    gpu = FakeGpu(
        A, serial=None, utilization=None, power=None, energy=None, ecc=None, remap=None, mig_mode=None, throttle=None
    )
    reader = reader_over(FakeNvml([gpu]))
    (identity,), identity_problems = reader.identities()
    (sample,), problems = reader.sample()
    assert (identity_problems, problems, identity.serial) == ([], [], None)
    assert (sample.power_milliwatts, sample.energy_millijoules, sample.utilization_percent) == (None, None, None)
    assert (sample.ecc_uncorrected_errors, sample.row_remap_pending, sample.throttle_reasons) == (None, None, None)
    assert sample.temperature_celsius == 51


def test_before_ampere_retired_pages_stand_for_remapped_rows(reader_over: MakeReader) -> None:
    volta = FakeGpu(A, name="Tesla V100-SXM2-32GB", remap=None, pages=(3, 1), pages_pending=1)
    (sample,), _ = reader_over(FakeNvml([volta])).sample()
    assert (sample.retired_pages, sample.retired_pages_pending, sample.row_remap_pending) == (4, True, None)


def test_a_lost_gpu_is_a_problem_and_the_others_still_read(reader_over: MakeReader) -> None:
    reader = reader_over(FakeNvml([FakeGpu(A), lost(FakeGpu(B)), FakeGpu(C)]))
    samples, problems = reader.sample()
    assert [sample.uuid for sample in samples] == [A, C]
    (problem,) = problems
    assert (problem.code, problem.index, problem.uuid) == (ProblemCode.GPU_LOST, 1, None)
    assert problem.message.startswith("GPU 1: ")
    assert "fallen off the bus" in problem.message
    assert "reboot" in problem.message


def test_a_gpu_that_is_lost_later_is_named_by_the_uuid_it_had(reader_over: MakeReader) -> None:
    library = FakeNvml([FakeGpu(A), FakeGpu(B)])
    reader = reader_over(library)
    reader.sample()
    lost(library.gpus[1])
    _, (problem,) = reader.sample()
    assert (problem.uuid, problem.index) == (B, 1)


def test_a_gpu_that_is_lost_between_handle_and_field_gives_no_half_sample(reader_over: MakeReader) -> None:
    dying = FakeGpu(A, fail={"nvmlDeviceGetPowerUsage": GPU_IS_LOST})
    samples, problems = reader_over(FakeNvml([dying, FakeGpu(B)])).sample()
    assert [sample.uuid for sample in samples] == [B]
    assert [(problem.code, problem.uuid) for problem in problems] == [(ProblemCode.GPU_LOST, A)]


def test_a_field_that_fails_for_no_reason_is_none_and_said(reader_over: MakeReader) -> None:
    samples, problems = reader_over(FakeNvml([FakeGpu(A, fail={"nvmlDeviceGetPowerUsage": UNKNOWN})])).sample()
    assert (samples[0].power_milliwatts, samples[0].temperature_celsius) == (None, 51)
    assert [(problem.code, problem.uuid) for problem in problems] == [(ProblemCode.UNKNOWN, A)]
    assert "cannot read power" in problems[0].message


def test_a_field_that_permission_hides_is_none_and_said(reader_over: MakeReader) -> None:
    samples, problems = reader_over(FakeNvml([FakeGpu(A, fail={"nvmlDeviceGetTotalEccErrors": 4})])).sample()
    assert samples[0].ecc_uncorrected_errors is None
    assert codes(problems) == ["no_permission"]


def test_memory_used_leaves_out_the_drivers_reserve_where_the_driver_can(reader_over: MakeReader) -> None:
    library = FakeNvml([FakeGpu(A, used=5, reserved=3)])
    assert reader_over(library).sample()[0][0].memory_used_bytes == 5
    library.missing = {"nvmlDeviceGetMemoryInfo_v2"}
    assert reader_over(library).sample()[0][0].memory_used_bytes == 8


def test_an_old_driver_without_the_newer_names_still_gives_its_fields(reader_over: MakeReader) -> None:
    library = FakeNvml([FakeGpu(A, throttle=0x80)])
    library.missing = {"nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetRemappedRows"}
    (sample,), problems = reader_over(library).sample()
    assert (sample.throttle_reasons, problems) == ((ThrottleReason.POWER_BRAKE,), [])


def test_a_new_driver_without_the_old_temperature_call_gives_the_temperature(reader_over: MakeReader) -> None:
    library = FakeNvml([FakeGpu(A)])
    library.missing = {"nvmlDeviceGetTemperature"}
    assert reader_over(library).sample()[0][0].temperature_celsius == 51


def mig_gpu() -> FakeGpu:
    small = FakeMig("MIG-1", name="NVIDIA H100 80GB HBM3 MIG 1g.10gb")
    large = FakeMig("MIG-2", gpu_slices=3, compute_slices=3, memory=40448 * 1024**2, gpu_instance=2)
    return FakeGpu(A, mig_mode=1, mig=[small, None, large, None, None, None, None], remap=None)


def test_mig_instances_are_devices_in_sevenths_with_holes_in_their_range(reader_over: MakeReader) -> None:
    identities, problems = reader_over(FakeNvml([mig_gpu()])).identities()
    parent, small, large = identities
    assert problems == []
    assert parent.is_mig_parent
    assert not parent.is_mig
    assert (small.uuid, small.mig_profile, small.gpu_class, small.units) == ("MIG-1", "1g.10gb", "H100-1g.10gb", 1800)
    assert (large.uuid, large.mig_profile, large.gpu_class, large.units) == ("MIG-2", "3g.40gb", "H100-3g.40gb", 5400)
    assert {small.parent_uuid, large.parent_uuid} == {A}
    assert gpu_positions(identities) == {A: "0", "MIG-1": "0:0", "MIG-2": "0:2"}


def test_on_a_gpu_with_four_slots_an_instance_is_a_quarter(reader_over: MakeReader) -> None:
    gpu = FakeGpu(
        A, name="NVIDIA A30", mig_mode=1, mig=[FakeMig("MIG-1", name="NVIDIA A30 MIG 1g.6gb"), None, None, None]
    )
    assert reader_over(FakeNvml([gpu])).identities()[0][1].units == GPU_UNITS // 4


def test_a_mig_instance_has_memory_and_its_gpu_power_but_neither_utilisation(reader_over: MakeReader) -> None:
    parent, small, _ = reader_over(FakeNvml([mig_gpu()])).sample()[0]
    assert (parent.utilization_percent, parent.power_milliwatts) == (None, 350_000)
    assert (small.utilization_percent, small.power_milliwatts, small.energy_millijoules) == (None, None, None)
    assert small.memory_used_bytes == 1024**3


def test_after_a_reconfiguration_a_reused_handle_is_the_new_instance(reader_over: MakeReader) -> None:
    library = FakeNvml([mig_gpu()])
    reader = reader_over(library)
    reader.sample()
    library.gpus[0].mig[0] = FakeMig("MIG-9", name="NVIDIA H100 80GB HBM3 MIG 1g.10gb", used=7)
    assert {sample.uuid: sample.memory_used_bytes for sample in reader.sample()[0]}["MIG-9"] == 7
    assert "MIG-1" not in {gpu.uuid for gpu in reader.identities()[0]}


def test_one_broken_mig_instance_does_not_hide_its_neighbours(reader_over: MakeReader) -> None:
    gpu = mig_gpu()
    assert gpu.mig[0] is not None
    gpu.mig[0].fail = {"nvmlDeviceGetUUID": UNKNOWN}
    identities, problems = reader_over(FakeNvml([gpu])).identities()
    assert [identity.uuid for identity in identities] == [A, "MIG-2"]
    assert [(problem.code, problem.uuid) for problem in problems] == [(ProblemCode.UNKNOWN, A)]


@pytest.mark.parametrize(
    ("return_code", "code", "advice"),
    [
        (1, ProblemCode.UNINITIALIZED, "starts it again"),
        (4, ProblemCode.NO_PERMISSION, "/dev/nvidia"),
        (9, ProblemCode.DRIVER_NOT_LOADED, "modprobe nvidia"),
        (12, ProblemCode.LIBRARY_NOT_FOUND, "install the NVIDIA driver"),
        (18, ProblemCode.VERSION_MISMATCH, "reload the driver or reboot"),
        (28, ProblemCode.GPU_NOT_FOUND, "lspci"),
        (29, ProblemCode.INVALID_STATE, "reset the GPU"),
        (999, ProblemCode.UNKNOWN, "dmesg"),
        (77, ProblemCode.UNKNOWN, "NVML answered 77"),
    ],
)
def test_an_nvml_that_does_not_start_says_what_to_do(
    reader_over: MakeReader, return_code: int, code: ProblemCode, advice: str
) -> None:
    library = FakeNvml([])
    library.fail = {"nvmlInitWithFlags": return_code}
    with pytest.raises(NvmlUnavailable) as failure:
        reader_over(library)
    assert failure.value.code is code
    assert advice in str(failure.value)
    assert str(failure.value).startswith("cannot start NVML: ")


@pytest.mark.parametrize(
    ("return_code", "code", "advice"),
    [
        (8, "insufficient_power", "power cables"),
        (11, "irq_issue", "interrupts"),
        (14, "corrupted_inforom", "serviced"),
        (15, "gpu_lost", "reboot"),
        (16, "reset_required", "--gpu-reset"),
        (27, "not_ready", "not ready"),
        (28, "gpu_not_found", "lspci"),
        (29, "invalid_state", "reset the GPU"),
        (999, "unknown", "dmesg"),
    ],
)
def test_each_error_of_a_handle_has_its_own_code_and_says_what_to_do(
    reader_over: MakeReader, return_code: int, code: str, advice: str
) -> None:
    broken = FakeGpu(B, fail={"nvmlDeviceGetHandleByIndex_v2": return_code})
    samples, problems = reader_over(FakeNvml([FakeGpu(A), broken])).sample()
    assert [sample.uuid for sample in samples] == [A]
    assert codes(problems) == [code]
    assert advice in problems[0].message


def test_a_driver_that_goes_away_is_a_machine_wide_problem_and_is_started_again(reader_over: MakeReader) -> None:
    library = FakeNvml([FakeGpu(A)])
    reader = reader_over(library)
    library.fail = {"nvmlDeviceGetCount_v2": UNINITIALIZED}
    samples, problems = reader.sample()
    assert (samples, codes(problems), problems[0].is_machine_wide) == ([], ["uninitialized"], True)
    library.fail, library.calls = {}, []
    assert [sample.uuid for sample in reader.sample()[0]] == [A]
    assert library.calls[0] == "nvmlInitWithFlags"


def test_the_mps_variable_does_not_change_what_is_enumerated(
    reader_over: MakeReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MPS_VARIABLE, "1")
    reader_over(FakeNvml([FakeGpu(A)]))
    assert MPS_VARIABLE not in os.environ


def test_xids_come_with_the_uuid_of_their_gpu(reader_over: MakeReader) -> None:
    library = FakeNvml([FakeGpu(A), FakeGpu(B)])
    reader = reader_over(library)
    assert reader.xids(0) == []
    library.events = [FakeEvent(library.key_of(B), 79), FakeEvent(library.key_of(A), 31)]
    assert [(event.uuid, event.xid) for event in reader.xids(0)] == [(B, 79), (A, 31)]
    assert reader.xids(0) == []


def test_an_xid_of_a_mig_instance_is_its_own_and_one_without_instance_its_gpus(reader_over: MakeReader) -> None:
    library = FakeNvml([mig_gpu()])
    reader = reader_over(library)
    reader.sample()
    key = library.key_of(A)
    library.events = [FakeEvent(key, 31, gpu_instance=2, compute_instance=0), FakeEvent(key, 48)]
    assert [(event.uuid, event.xid) for event in reader.xids(0)] == [("MIG-2", 31), (A, 48)]


def test_the_xid_of_a_gpu_that_is_lost_in_the_same_moment_is_not_lost(reader_over: MakeReader) -> None:
    library = FakeNvml([FakeGpu(A), FakeGpu(B)])
    reader = reader_over(library)
    reader.sample()
    library.events = [FakeEvent(library.key_of(B), 79)]
    lost(library.gpus[1])
    library.gpus[1].fail["nvmlDeviceGetUUID"] = GPU_IS_LOST
    reader.sample()
    assert [(event.uuid, event.xid) for event in reader.xids(0)] == [(B, 79)]


def test_an_xid_of_no_gpu_that_answers_has_no_uuid(reader_over: MakeReader) -> None:
    library = FakeNvml([FakeGpu(A)])
    reader = reader_over(library)
    reader.sample()
    library.gpus.append(FakeGpu(B, fail={"nvmlDeviceGetUUID": UNKNOWN}))
    library.events = [FakeEvent(library.key_of(B), 62)]
    library.sets[next(iter(library.sets))].append(B)
    assert [(event.uuid, event.xid) for event in reader.xids(0)] == [(None, 62)]


def test_a_registration_that_fails_for_no_reason_frees_the_set_and_watches_the_others(reader_over: MakeReader) -> None:
    library = FakeNvml([FakeGpu(A), FakeGpu(B, fail={"nvmlDeviceRegisterEvents": UNKNOWN}), FakeGpu(C)])
    reader = reader_over(library)
    _, problems = reader.sample()
    assert library.freed_sets == 1
    assert list(library.sets.values()) == [[A, C]]
    assert [(problem.code, problem.uuid) for problem in problems] == [(ProblemCode.XIDS_UNREAD, B)]
    library.events = [FakeEvent(library.key_of(C), 48)]
    assert [event.uuid for event in reader.xids(0)] == [C]
    assert codes(reader.sample()[1]) == ["xids_unread"], "it is said as long as it lasts"


def test_a_gpu_without_xid_events_is_said_and_the_others_are_watched(reader_over: MakeReader) -> None:
    library = FakeNvml([FakeGpu(A, supported_events=0x2), FakeGpu(B)])
    _, problems = reader_over(library).sample()
    assert [(problem.code, problem.uuid) for problem in problems] == [(ProblemCode.XIDS_UNREAD, A)]
    assert list(library.sets.values()) == [[B]]


def test_a_wait_that_fails_is_said_once_and_the_set_is_made_anew(reader_over: MakeReader) -> None:
    library = FakeNvml([FakeGpu(A)])
    reader = reader_over(library)
    reader.sample()
    library.fail = {"nvmlEventSetWait_v2": UNKNOWN}
    assert reader.xids(0) == []
    library.fail = {}
    assert codes(reader.sample()[1]) == ["xids_unread"]
    assert codes(reader.sample()[1]) == []
    assert (library.freed_sets, list(library.sets.values())) == (1, [[A]])


def test_closing_frees_the_set_and_shuts_nvml_down(reader_over: MakeReader) -> None:
    library = FakeNvml([FakeGpu(A)])
    reader = reader_over(library)
    reader.sample()
    reader.close()
    assert library.sets == {}
    assert library.calls[-1] == "nvmlShutdown"
