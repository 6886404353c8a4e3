"""Reads the GPUs of this machine through NVML: the real GpuReader.

Every sample enumerates anew, by UUID: an index says nothing after a reboot, a handle of a MIG instance nothing after a
reconfiguration, and looking up a UUID fails altogether as soon as any one GPU has fallen off the bus. An error of one
GPU is a problem beside the others' samples; a field that a GPU does not offer is None.

Calls can hang in the driver: a daemon uses this through `reader_process.ProcessReader`.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from metering import nvml
from metering.gpu_classes import gpu_class_of, mig_class, mig_profile, mig_profile_of
from metering.gpus import GpuIdentity, GpuProblem, GpuSample, ProblemCode, XidEvent
from metering.nvml import FoundDevice, Handle
from metering.nvml_errors import GpuFault, NotOffered, NvmlError, NvmlUnavailable
from metering.nvml_xids import XID_BURST_LIMIT, XidWatch
from scheduler.clock import Clock, LedgerClock
from scheduler.core.model import GPU_UNITS

T = TypeVar("T")


class NvmlReader:
    """Reads real GPUs. Raises NvmlUnavailable when NVML does not start; afterwards failures are problems.

    `class_overrides` maps product names to GPU classes of the installation's own.
    """

    collector = "nvml"

    def __init__(self, clock: Clock, class_overrides: Mapping[str, str] | None = None) -> None:
        self._clock = clock
        self._overrides = dict(class_overrides or {})
        nvml.start()
        self._is_started = True
        self._driver_version: str | None = None
        self._uuid_at: dict[int, str] = {}  # an index keeps its GPU as long as the driver stays loaded
        self._watch = XidWatch(clock)

    @property
    def driver_version(self) -> str | None:
        """The driver's version; None when it would not say."""
        if self._driver_version is None:
            try:
                self._driver_version = nvml.driver_version()
            except NvmlError:
                return None
        return self._driver_version

    def identities(self) -> tuple[Sequence[GpuIdentity], Sequence[GpuProblem]]:
        """Returns all GPUs and MIG instances by PCI bus id and MIG index, and what could not be read."""
        problems: list[GpuProblem] = []
        found = self._enumerate(problems)
        identities = [identity for device in found if (identity := self._identity(device, problems)) is not None]
        identities.sort(key=lambda gpu: (gpu.pci_bus_id, -1 if gpu.mig_index is None else gpu.mig_index, gpu.uuid))
        return identities, problems

    def sample(self) -> tuple[Sequence[GpuSample], Sequence[GpuProblem]]:
        """Returns a sample of each device that answers, and what could not be read, unread XIDs included."""
        problems: list[GpuProblem] = []
        found = self._enumerate(problems)
        samples = [sample for device in found if (sample := self._sample(device, problems)) is not None]
        problems.extend(self._watch.take_problems())
        return samples, problems

    def xids(self, wait_ms: int) -> Sequence[XidEvent]:
        """Returns the XIDs since the last call, waiting up to `wait_ms` for the first."""
        if not self._watch.is_following:
            self._enumerate([])  # its problems are those of the next sample too
        events: list[XidEvent] = []
        while len(events) < XID_BURST_LIMIT:
            event = self._watch.next(0 if events else wait_ms)
            if event is None:
                break
            events.append(event)
        return events

    def close(self) -> None:
        """Frees the event set and shuts NVML down; an NVML that is already gone is no error."""
        self._watch.free()
        if self._is_started:
            self._is_started = False
            try:
                nvml.stop()
            except NvmlError:
                return

    def _enumerate(self, problems: list[GpuProblem]) -> list[FoundDevice]:
        try:
            if not self._is_started:
                nvml.start()
                self._is_started = True
            found = [device for index in range(nvml.device_count()) for device in self._found_at(index, problems)]
        except NvmlError as error:
            # Whatever the whole library refuses, the next call starts it anew; a replaced driver needs a new process,
            # which `reader_process` gives it.
            self._is_started = not isinstance(error, NvmlUnavailable)
            problems.append(GpuProblem(error.code, str(error)))
            return []
        self._watch.follow(found)
        return found

    def _found_at(self, index: int, problems: list[GpuProblem]) -> list[FoundDevice]:
        try:
            handle = nvml.handle_at(index)
            uuid = nvml.uuid(handle)
            self._uuid_at[index] = uuid
            slots = self._field(_mig_slots, handle, uuid, problems)
        except NvmlUnavailable:
            raise
        except NvmlError as error:
            known = self._uuid_at.get(index)
            where = f"GPU {index}" + (f" ({known})" if known else "")
            problems.append(GpuProblem(error.code, f"{where}: {error}", uuid=known, index=index))
            return []
        parent = FoundDevice(uuid, handle, mig_slots=slots)
        return [parent, *self._mig_found(parent, slots or 0, problems)]

    def _mig_found(self, parent: FoundDevice, slots: int, problems: list[GpuProblem]) -> list[FoundDevice]:
        found = []
        for index in range(slots):
            try:
                handle = nvml.mig_handle_at(parent.handle, index)
                found.append(FoundDevice(nvml.uuid(handle), handle, parent, index))
            except NvmlUnavailable:
                raise
            except NvmlError as error:
                if error.code is not ProblemCode.NOT_FOUND:  # a hole in the range is normal
                    problems.append(GpuProblem(error.code, f"{parent.uuid}: {error}", uuid=parent.uuid))
        return found

    def _identity(self, device: FoundDevice, problems: list[GpuProblem]) -> GpuIdentity | None:
        try:
            if device.parent is not None:
                return self._mig_identity(device, device.parent, problems)
            product = nvml.name(device.handle)
            memory = self._field(nvml.memory_bytes, device.handle, device.uuid, problems)
            return GpuIdentity(
                uuid=device.uuid,
                name=product,
                gpu_class=gpu_class_of(product, self._overrides),
                memory_bytes=memory[0] if memory else 0,
                pci_bus_id=nvml.pci_bus_id(device.handle),
                minor_number=self._field(nvml.minor_number, device.handle, device.uuid, problems),
                serial=self._field(nvml.serial, device.handle, device.uuid, problems),
                is_mig_parent=device.mig_slots is not None,
            )
        except NvmlError as error:
            problems.append(GpuProblem(error.code, f"{device.uuid}: {error}", uuid=device.uuid))
            return None

    def _mig_identity(self, device: FoundDevice, parent: FoundDevice, problems: list[GpuProblem]) -> GpuIdentity:
        gpu_slices, compute_slices = nvml.mig_slices(device.handle)
        memory = self._field(nvml.memory_bytes, device.handle, device.uuid, problems)
        instance_bytes = memory[0] if memory else 0
        product = nvml.name(parent.handle)
        slots = parent.mig_slots or 1  # one slot per compute slice: seven on most models, four on small ones
        profile = mig_profile_of(nvml.name(device.handle))
        if profile is None:
            profile = mig_profile(gpu_slices, compute_slices, instance_bytes, nvml.memory_bytes(parent.handle)[0])
        return GpuIdentity(
            uuid=device.uuid,
            name=f"{product} MIG {profile}",
            gpu_class=mig_class(gpu_class_of(product, self._overrides), profile),
            memory_bytes=instance_bytes,
            pci_bus_id=nvml.pci_bus_id(parent.handle),
            minor_number=self._field(nvml.minor_number, parent.handle, parent.uuid, problems),
            serial=self._field(nvml.serial, parent.handle, parent.uuid, problems),
            is_mig=True,
            parent_uuid=parent.uuid,
            mig_profile=profile,
            mig_index=device.mig_index,
            units=GPU_UNITS * min(compute_slices, slots) // slots,
        )

    def _sample(self, device: FoundDevice, problems: list[GpuProblem]) -> GpuSample | None:
        started_ns = time.perf_counter_ns()
        at_ms = self._clock.now_ms()

        def field(read: Callable[[Handle], T]) -> T | None:
            return self._field(read, device.handle, device.uuid, problems)

        try:
            memory, processes = field(nvml.memory_bytes), field(nvml.process_ids)
            if device.parent is not None:  # memory and processes are an instance's own; all else is the whole GPU's
                return GpuSample(
                    device.uuid,
                    at_ms,
                    memory_used_bytes=memory and memory[1],
                    process_ids=processes,
                    latency_microseconds=(time.perf_counter_ns() - started_ns) // 1000,
                )
            rates = field(nvml.utilization_percent)
            power, energy = field(nvml.power_milliwatts), field(nvml.energy_millijoules)
            temperature, throttled = field(nvml.temperature_celsius), field(nvml.throttle_reasons)
            errors, remap = field(nvml.ecc_uncorrected_errors), field(nvml.row_remap)
            pages = field(nvml.retired_pages) if remap is None else None
        except NvmlError as error:
            problems.append(GpuProblem(error.code, f"{device.uuid}: {error}", uuid=device.uuid))
            return None
        return GpuSample(
            uuid=device.uuid,
            at_ms=at_ms,
            utilization_percent=rates and rates[0],
            memory_utilization_percent=rates and rates[1],
            memory_used_bytes=memory and memory[1],
            power_milliwatts=power,
            energy_millijoules=energy,
            temperature_celsius=temperature,
            throttle_reasons=throttled,
            ecc_uncorrected_errors=errors,
            row_remap_pending=remap and remap[0],
            row_remap_failure=remap and remap[1],
            retired_pages=pages and pages[0],
            retired_pages_pending=pages and pages[1],
            process_ids=processes,
            latency_microseconds=(time.perf_counter_ns() - started_ns) // 1000,
        )

    @staticmethod
    def _field(read: Callable[[Handle], T], handle: Handle, uuid: str, problems: list[GpuProblem]) -> T | None:
        """Reads one field; None when it is not offered. A fault of the GPU or the library ends the device's sample."""
        try:
            return read(handle)
        except (GpuFault, NvmlUnavailable):
            raise
        except NvmlError as error:
            if not isinstance(error, NotOffered) or error.code is ProblemCode.NO_PERMISSION:
                problems.append(GpuProblem(error.code, f"{uuid}: {error}", uuid=uuid))
            return None


def _mig_slots(handle: Handle) -> int | None:
    """Returns the MIG slots of a GPU in MIG mode; None while the mode is off. Raises NvmlError."""
    return nvml.mig_slot_count(handle) if nvml.is_mig_enabled(handle) else None


def open_reader(class_overrides: Mapping[str, str] | None = None) -> NvmlReader:
    """Returns a reader on this process's own clock: what `reader_process` starts in the child.

    Raises NvmlUnavailable.
    """
    return NvmlReader(LedgerClock(), class_overrides)
