"""The door to NVML: the only import of `pynvml`. Typed calls in, our exceptions out (their tree: `nvml_errors`).

Nothing here decides or remembers; `nvml_reader` does. What the binding makes necessary:

- `NVMLError` has `__eq__` without `__hash__` and cannot be compared with None, so it never leaves this module.
- Function pointers are cached per process: a driver that is replaced under a running process needs a new process.
- `NVML_MPS_DEVICE_ENUMERATION=1` in the environment changes which devices are enumerated, so it is removed first.
- Handles of MIG instances are reused after a reconfiguration, so no handle is kept between two samples.

NVML calls can hang for ever in the driver; in a process that must not hang they run behind `reader_process`.
"""

import ctypes
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import NewType, TypeVar

import pynvml

from metering.gpus import ThrottleReason
from metering.nvml_errors import NotOffered, nvml_error

T = TypeVar("T")
Handle = NewType("Handle", object)
EventSet = NewType("EventSet", object)

MPS_VARIABLE = "NVML_MPS_DEVICE_ENUMERATION"
NO_INSTANCE = 0xFFFFFFFF
"""What an event carries for the MIG instance when it has none (nvml.h, nvmlEventData_t)."""

# Bits of nvmlDeviceGetCurrentClocksEventReasons (nvml.h, "Clocks Event Reasons"). Idle (0x1) and the display clock
# (0x100) hold clocks down without slowing anybody's work, so they are no throttling.
_THROTTLE_BITS = (
    (0x02, ThrottleReason.USER_CLOCKS),
    (0x04, ThrottleReason.POWER_CAP),
    (0x08, ThrottleReason.HW_SLOWDOWN),
    (0x10, ThrottleReason.SYNC_BOOST),
    (0x20, ThrottleReason.SW_THERMAL),
    (0x40, ThrottleReason.HW_THERMAL),
    (0x80, ThrottleReason.POWER_BRAKE),
)


@dataclass(frozen=True, slots=True)
class FoundDevice:
    """A GPU or MIG instance of one enumeration, with its handle.

    `parent` and `mig_index` are an instance's; `mig_slots` is a GPU's in MIG mode: how many instances it can hold.
    """

    uuid: str
    handle: Handle
    parent: "FoundDevice | None" = None
    mig_index: int | None = None
    mig_slots: int | None = None


@dataclass(frozen=True, slots=True)
class RawEvent:
    """An XID as the driver delivers it. Compare `handle_key`s to find the GPU even when it no longer answers."""

    handle: Handle
    xid: int
    gpu_instance: int | None
    compute_instance: int | None


def call(asked: str, function: Callable[..., T], *arguments: object) -> T:
    """Calls a function of the binding. Raises NvmlError; `asked` says in a word or two what was wanted."""
    try:
        return function(*arguments)
    except pynvml.NVMLError as error:
        code = int(error.value)
    raise nvml_error(code, asked)


def start() -> None:
    """Loads the library and starts it. Raises NvmlUnavailable. A broken GPU does not make it fail."""
    os.environ.pop(MPS_VARIABLE, None)
    code = 0
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        code = int(error.value)
    if code:
        raise nvml_error(code, "anything", at_start=True)


def stop() -> None:
    """Shuts NVML down. Raises NvmlError."""
    call("the end", pynvml.nvmlShutdown)


def driver_version() -> str:
    """Returns the driver's version, `570.86.15`. Raises NvmlError."""
    return _text(call("the driver's version", pynvml.nvmlSystemGetDriverVersion))


def device_count() -> int:
    """Returns how many GPUs the driver knows, those included whose handle cannot be had. Raises NvmlError."""
    return int(call("the number of GPUs", pynvml.nvmlDeviceGetCount))


def handle_at(index: int) -> Handle:
    """Returns the GPU at an index, good for this sample only. Raises NvmlError."""
    return Handle(call(f"GPU {index}", pynvml.nvmlDeviceGetHandleByIndex, index))


def handle_key(handle: Handle) -> int:
    """Returns a number that is equal for equal handles."""
    return int(ctypes.cast(handle, ctypes.c_void_p).value or 0)  # type: ignore[arg-type] # an opaque ctypes pointer


def uuid(handle: Handle) -> str:
    """Returns `GPU-…` or `MIG-…`. Raises NvmlError."""
    return _text(call("the UUID", pynvml.nvmlDeviceGetUUID, handle))


def name(handle: Handle) -> str:
    """Returns the product's name. Raises NvmlError."""
    return _text(call("the product name", pynvml.nvmlDeviceGetName, handle))


def serial(handle: Handle) -> str:
    """Returns the board's serial number. Raises NvmlError (GeForce has none)."""
    return _text(call("the serial number", pynvml.nvmlDeviceGetSerial, handle))


def pci_bus_id(handle: Handle) -> str:
    """Returns `00000000:3B:00.0`, upper case. Raises NvmlError."""
    return _text(call("the PCI address", pynvml.nvmlDeviceGetPciInfo, handle).busId).upper()


def minor_number(handle: Handle) -> int:
    """Returns n of /dev/nvidia-n. Raises NvmlError."""
    return int(call("the device number", pynvml.nvmlDeviceGetMinorNumber, handle))


def memory_bytes(handle: Handle) -> tuple[int, int]:
    """Returns (total, used). Raises NvmlError.

    Version 2 keeps the driver's own reserve apart; older drivers have version 1, whose `used` includes the reserve.
    """
    try:
        memory = call("memory", pynvml.nvmlDeviceGetMemoryInfo, handle, pynvml.nvmlMemory_v2)
    except NotOffered:
        memory = call("memory", pynvml.nvmlDeviceGetMemoryInfo, handle)
    return int(memory.total), int(memory.used)


def utilization_percent(handle: Handle) -> tuple[int, int]:
    """Returns (kernels, memory traffic), each 0 to 100. Raises NvmlError: NotOffered on GPUs in MIG mode."""
    rates = call("utilisation", pynvml.nvmlDeviceGetUtilizationRates, handle)
    return int(rates.gpu), int(rates.memory)


def power_milliwatts(handle: Handle) -> int:
    """Returns the board's power. Raises NvmlError."""
    return int(call("power", pynvml.nvmlDeviceGetPowerUsage, handle))


def energy_millijoules(handle: Handle) -> int:
    """Returns the energy since the driver was loaded (Volta and later). Raises NvmlError."""
    return int(call("energy", pynvml.nvmlDeviceGetTotalEnergyConsumption, handle))


def temperature_celsius(handle: Handle) -> int:
    """Returns the chip's temperature. Raises NvmlError. The old call is tried first: every driver so far has it."""
    try:
        return int(call("temperature", pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU))
    except NotOffered:
        newer = getattr(pynvml, "nvmlDeviceGetTemperatureV", None)  # bindings before 12.570 lack it
        if newer is None:
            raise
    return int(call("temperature", newer, handle, pynvml.NVML_TEMPERATURE_GPU))


def throttle_reasons(handle: Handle) -> tuple[ThrottleReason, ...]:
    """Returns why clocks are held down, sorted. Raises NvmlError. Drivers before 535 have the call's older name."""
    try:
        bits = call("throttling", pynvml.nvmlDeviceGetCurrentClocksEventReasons, handle)
    except NotOffered:
        bits = call("throttling", pynvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle)
    return tuple(sorted(reason for bit, reason in _THROTTLE_BITS if int(bits) & bit))


def ecc_uncorrected_errors(handle: Handle) -> int:
    """Returns the errors since the driver was loaded. Raises NvmlError: NotOffered while ECC is off."""
    kind, counter = pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC
    return int(call("ECC errors", pynvml.nvmlDeviceGetTotalEccErrors, handle, kind, counter))


def row_remap(handle: Handle) -> tuple[bool, bool]:
    """Returns (pending, failed). Raises NvmlError: NotOffered before Ampere and with MIG instances."""
    _, _, is_pending, has_failed = call("remapped rows", pynvml.nvmlDeviceGetRemappedRows, handle)
    return bool(is_pending), bool(has_failed)


def retired_pages(handle: Handle) -> tuple[int, bool]:
    """Returns (pages retired for either cause, whether more wait for a reset). Raises NvmlError (Ampere and later)."""
    pages = 0
    for cause in range(int(pynvml.NVML_PAGE_RETIREMENT_CAUSE_COUNT)):
        pages += len(call("retired pages", pynvml.nvmlDeviceGetRetiredPages, handle, cause))
    return pages, bool(call("retired pages", pynvml.nvmlDeviceGetRetiredPagesPendingStatus, handle))


def process_ids(handle: Handle) -> tuple[int, ...]:
    """Returns the processes that compute on a GPU or MIG instance, sorted, as the process's own PID namespace has them.

    Raises NvmlError.
    """
    found = call("processes", pynvml.nvmlDeviceGetComputeRunningProcesses, handle)
    return tuple(sorted({int(each.pid) for each in found}))


def is_mig_enabled(handle: Handle) -> bool:
    """Returns whether MIG mode is on now, pending changes aside. Raises NvmlError: NotOffered where there is no MIG."""
    current, _pending = call("MIG mode", pynvml.nvmlDeviceGetMigMode, handle)
    return int(current) == int(pynvml.NVML_DEVICE_MIG_ENABLE)


def mig_slot_count(handle: Handle) -> int:
    """Returns how many MIG slots a GPU has, filled or not. Raises NvmlError."""
    return int(call("MIG instances", pynvml.nvmlDeviceGetMaxMigDeviceCount, handle))


def mig_handle_at(parent: Handle, index: int) -> Handle:
    """Returns the MIG instance in a slot. Raises NvmlError: NotOffered with `not_found` for an empty one."""
    return Handle(call(f"MIG instance {index}", pynvml.nvmlDeviceGetMigDeviceHandleByIndex, parent, index))


def mig_slices(handle: Handle) -> tuple[int, int]:
    """Returns a MIG instance's (GPU slices, compute slices), sevenths each. Raises NvmlError."""
    attributes = call("MIG slices", pynvml.nvmlDeviceGetAttributes_v2, handle)
    return int(attributes.gpuInstanceSliceCount), int(attributes.computeInstanceSliceCount)


def mig_instance_ids(handle: Handle) -> tuple[int, int]:
    """Returns a MIG instance's (GPU instance, compute instance). Raises NvmlError."""
    gpu_instance = call("MIG instance ids", pynvml.nvmlDeviceGetGpuInstanceId, handle)
    return int(gpu_instance), int(call("MIG instance ids", pynvml.nvmlDeviceGetComputeInstanceId, handle))


def event_set() -> EventSet:
    """Returns a new event set, to be freed. Raises NvmlError."""
    return EventSet(call("XIDs", pynvml.nvmlEventSetCreate))


def watch_xids(events: EventSet, handle: Handle) -> None:
    """Adds a GPU's XIDs to a set. Raises NvmlError; after `unknown` the set is undefined and must be freed."""
    supported = int(call("XIDs", pynvml.nvmlDeviceGetSupportedEventTypes, handle))
    wanted = supported & int(pynvml.nvmlEventTypeXidCriticalError)
    if not wanted:
        raise nvml_error(int(pynvml.NVML_ERROR_NOT_SUPPORTED), "XIDs")
    call("XIDs", pynvml.nvmlDeviceRegisterEvents, handle, wanted, events)


def next_xid(events: EventSet, wait_ms: int) -> RawEvent | None:
    """Returns the next XID of the set, or None when none came in time. Raises NvmlError."""
    try:
        event = pynvml.nvmlEventSetWait_v2(events, wait_ms)
    except pynvml.NVMLError as error:
        code = int(error.value)
        if code == int(pynvml.NVML_ERROR_TIMEOUT):
            return None
    else:
        return RawEvent(
            handle=Handle(event.device),
            xid=int(event.eventData),
            gpu_instance=_instance(int(event.gpuInstanceId)),
            compute_instance=_instance(int(event.computeInstanceId)),
        )
    raise nvml_error(code, "XIDs")


def free_events(events: EventSet) -> None:
    """Frees an event set. Raises NvmlError."""
    call("XIDs", pynvml.nvmlEventSetFree, events)


def _instance(number: int) -> int | None:
    return None if number == NO_INSTANCE else number


def _text(value: str | bytes) -> str:
    # Bindings before 11.5 and ctypes arrays inside structures give bytes.
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
