"""A library object for `pynvml.nvmlLib`: NVML in Python, called through the real binding, scriptable in every call.

`FakeNvml(gpus)` answers the calls that the reader makes. A field that is None is NOT_SUPPORTED; `fail` maps a
function's name to the code that it returns, for the library or for one GPU; `missing` are symbols that the driver
lacks; `hang` are functions that never return.
"""
# ruff: noqa: N802 -- the functions bear the names of the library's symbols

import ctypes
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

SUCCESS, UNINITIALIZED, NOT_SUPPORTED, NOT_FOUND, INVALID_ARGUMENT, TIMEOUT = 0, 1, 3, 6, 2, 10
INSUFFICIENT_SIZE, GPU_IS_LOST, UNKNOWN = 7, 15, 999
XID_EVENT = 0x8
NO_INSTANCE = 0xFFFFFFFF
GIB = 1024**3


@dataclass
class FakeMig:
    uuid: str
    gpu_slices: int = 1
    compute_slices: int = 1
    memory: int = 9856 * 1024**2
    used: int = 1 * GIB
    name: str = ""
    gpu_instance: int = 7
    compute_instance: int = 0
    processes: tuple[int, ...] | None = ()
    fail: dict[str, int] = field(default_factory=dict)


@dataclass
class FakeGpu:
    uuid: str
    name: str = "NVIDIA H100 80GB HBM3"
    pci_bus_id: str = "00000000:1B:00.0"
    serial: str | None = "1650"
    minor_number: int | None = 0
    memory: int = 81559 * 1024**2
    used: int = 2 * GIB
    reserved: int = 1 * GIB
    utilization: tuple[int, int] | None = (42, 17)
    power: int | None = 350_000
    energy: int | None = 1_000_000
    temperature: int | None = 51
    throttle: int | None = 0
    ecc: int | None = 0
    remap: tuple[int, int, int, int] | None = (0, 0, 0, 0)
    pages: tuple[int, int] | None = None  # per cause
    pages_pending: int = 0
    mig_mode: int | None = 0
    mig: list[FakeMig | None] = field(default_factory=list)
    processes: tuple[int, ...] | None = ()
    supported_events: int = 0xFF
    fail: dict[str, int] = field(default_factory=dict)


@dataclass
class FakeEvent:
    key: int
    xid: int
    gpu_instance: int = NO_INSTANCE
    compute_instance: int = NO_INSTANCE


def lost(gpu: FakeGpu) -> FakeGpu:
    gpu.fail = {"nvmlDeviceGetHandleByIndex_v2": GPU_IS_LOST}
    return gpu


class FakeNvml:
    """The library. Attribute look-up is symbol look-up."""

    def __init__(self, gpus: list[FakeGpu], driver: str = "570.86.15") -> None:
        self.gpus = gpus
        self.driver = driver
        self.fail: dict[str, int] = {}
        self.missing: set[str] = set()
        self.hang: set[str] = set()
        self.calls: list[str] = []
        self.events: list[FakeEvent] = []
        self.sets: dict[int, list[str]] = {}  # live event sets and the GPUs registered in them
        self.freed_sets = 0

    def __getattr__(self, name: str) -> Callable[..., int]:
        function = globals().get(f"_{name}")
        if name in self.__dict__.get("missing", ()) or function is None:
            raise AttributeError(name)

        def symbol(*arguments: Any) -> int:
            self.calls.append(name)
            if name in self.hang:
                threading.Event().wait()
            if name in self.fail:
                return self.fail[name]
            result = function(self, *arguments)
            assert isinstance(result, int)
            return result

        symbol.__name__ = name
        return symbol

    def key_of(self, uuid: str) -> int:
        for position, gpu in enumerate(self.gpus):
            if gpu.uuid == uuid:
                return 0x10000 * (position + 1)
            for slot, instance in enumerate(gpu.mig):
                if instance is not None and instance.uuid == uuid:
                    return 0x10000 * (position + 1) + 0x10 * (slot + 1)
        raise KeyError(uuid)

    def at(self, handle: Any) -> Any:
        key = ctypes.cast(handle, ctypes.c_void_p).value or 0
        gpu = self.gpus[key // 0x10000 - 1]
        slot = key % 0x10000 // 0x10
        return gpu if slot == 0 else gpu.mig[slot - 1]


def _set(reference: Any, value: int) -> int:
    reference._obj.value = value
    return SUCCESS


def _set_pointer(reference: Any, address: int) -> int:
    ctypes.cast(ctypes.pointer(reference._obj), ctypes.POINTER(ctypes.c_void_p))[0] = address
    return SUCCESS


def _read(library: FakeNvml, handle: Any, function: str, name: str, reference: Any) -> int:
    device = library.at(handle)
    if function in device.fail:
        return int(device.fail[function])
    value = getattr(device, name, None)
    return NOT_SUPPORTED if value is None else _set(reference, value)


def _text(library: FakeNvml, handle: Any, function: str, name: str, buffer: Any) -> int:
    device = library.at(handle)
    if function in device.fail:
        return int(device.fail[function])
    value = getattr(device, name, None)
    if value is None:
        return NOT_SUPPORTED
    buffer.value = value.encode()
    return SUCCESS


def _nvmlInitWithFlags(library: FakeNvml, flags: int) -> int:
    return SUCCESS


def _nvmlShutdown(library: FakeNvml) -> int:
    return SUCCESS


def _nvmlSystemGetDriverVersion(library: FakeNvml, buffer: Any, size: Any) -> int:
    buffer.value = library.driver.encode()
    return SUCCESS


def _nvmlDeviceGetCount_v2(library: FakeNvml, reference: Any) -> int:
    return _set(reference, len(library.gpus))


def _nvmlDeviceGetHandleByIndex_v2(library: FakeNvml, index: Any, reference: Any) -> int:
    gpu = library.gpus[index.value]
    code = gpu.fail.get("nvmlDeviceGetHandleByIndex_v2", SUCCESS)
    return code or _set_pointer(reference, library.key_of(gpu.uuid))


def _nvmlDeviceGetUUID(library: FakeNvml, handle: Any, buffer: Any, size: Any) -> int:
    return _text(library, handle, "nvmlDeviceGetUUID", "uuid", buffer)


def _nvmlDeviceGetName(library: FakeNvml, handle: Any, buffer: Any, size: Any) -> int:
    return _text(library, handle, "nvmlDeviceGetName", "name", buffer)


def _nvmlDeviceGetSerial(library: FakeNvml, handle: Any, buffer: Any, size: Any) -> int:
    return _text(library, handle, "nvmlDeviceGetSerial", "serial", buffer)


def _nvmlDeviceGetPciInfo_v3(library: FakeNvml, handle: Any, reference: Any) -> int:
    reference._obj.busId = library.at(handle).pci_bus_id.encode()
    return SUCCESS


def _nvmlDeviceGetMinorNumber(library: FakeNvml, handle: Any, reference: Any) -> int:
    return _read(library, handle, "nvmlDeviceGetMinorNumber", "minor_number", reference)


def _nvmlDeviceGetMemoryInfo(library: FakeNvml, handle: Any, reference: Any) -> int:
    device = library.at(handle)
    reference._obj.total, reference._obj.used = device.memory, device.used + getattr(device, "reserved", 0)
    return int(device.fail.get("nvmlDeviceGetMemoryInfo", SUCCESS))


def _nvmlDeviceGetMemoryInfo_v2(library: FakeNvml, handle: Any, reference: Any) -> int:
    device = library.at(handle)
    reference._obj.total, reference._obj.used = device.memory, device.used
    return int(device.fail.get("nvmlDeviceGetMemoryInfo_v2", SUCCESS))


def _nvmlDeviceGetUtilizationRates(library: FakeNvml, handle: Any, reference: Any) -> int:
    gpu = library.at(handle)
    if gpu.utilization is None or gpu.mig_mode:
        return NOT_SUPPORTED
    reference._obj.gpu, reference._obj.memory = gpu.utilization
    return int(gpu.fail.get("nvmlDeviceGetUtilizationRates", SUCCESS))


def _nvmlDeviceGetPowerUsage(library: FakeNvml, handle: Any, reference: Any) -> int:
    return _read(library, handle, "nvmlDeviceGetPowerUsage", "power", reference)


def _nvmlDeviceGetTotalEnergyConsumption(library: FakeNvml, handle: Any, reference: Any) -> int:
    return _read(library, handle, "nvmlDeviceGetTotalEnergyConsumption", "energy", reference)


def _nvmlDeviceGetTemperature(library: FakeNvml, handle: Any, sensor: Any, reference: Any) -> int:
    return _read(library, handle, "nvmlDeviceGetTemperature", "temperature", reference)


def _nvmlDeviceGetTemperatureV(library: FakeNvml, handle: Any, reference: Any) -> int:
    reference._obj.temperature = library.at(handle).temperature
    return SUCCESS


def _nvmlDeviceGetCurrentClocksEventReasons(library: FakeNvml, handle: Any, reference: Any) -> int:
    return _read(library, handle, "nvmlDeviceGetCurrentClocksEventReasons", "throttle", reference)


def _nvmlDeviceGetCurrentClocksThrottleReasons(library: FakeNvml, handle: Any, reference: Any) -> int:
    return _read(library, handle, "nvmlDeviceGetCurrentClocksThrottleReasons", "throttle", reference)


def _nvmlDeviceGetTotalEccErrors(library: FakeNvml, handle: Any, kind: Any, counter: Any, reference: Any) -> int:
    assert (kind.value, counter.value) == (1, 0), "uncorrected errors of the volatile counter are what is wanted"
    return _read(library, handle, "nvmlDeviceGetTotalEccErrors", "ecc", reference)


def _nvmlDeviceGetRemappedRows(library: FakeNvml, handle: Any, *references: Any) -> int:
    rows = library.at(handle).remap
    if rows is None:
        return NOT_SUPPORTED
    for reference, value in zip(references, rows, strict=True):
        reference._obj.value = value
    return SUCCESS


def _nvmlDeviceGetRetiredPages(library: FakeNvml, handle: Any, cause: Any, count: Any, pages: Any) -> int:
    retired = library.at(handle).pages
    if retired is None:
        return NOT_SUPPORTED
    count._obj.value = retired[cause.value]
    return SUCCESS


def _nvmlDeviceGetRetiredPagesPendingStatus(library: FakeNvml, handle: Any, reference: Any) -> int:
    return _set(reference, library.at(handle).pages_pending)


def _nvmlDeviceGetComputeRunningProcesses_v3(library: FakeNvml, handle: Any, count: Any, found: Any) -> int:
    processes = library.at(handle).processes
    if processes is None:
        return NOT_SUPPORTED
    room, count._obj.value = count._obj.value, len(processes)
    if room < len(processes):
        return INSUFFICIENT_SIZE
    for place, pid in enumerate(processes):
        found[place].pid = pid
    return SUCCESS


def _nvmlDeviceGetMigMode(library: FakeNvml, handle: Any, current: Any, pending: Any) -> int:
    gpu = library.at(handle)
    if "nvmlDeviceGetMigMode" in gpu.fail:
        return int(gpu.fail["nvmlDeviceGetMigMode"])
    if gpu.mig_mode is None:
        return NOT_SUPPORTED
    _set(pending, gpu.mig_mode)
    return _set(current, gpu.mig_mode)


def _nvmlDeviceGetMaxMigDeviceCount(library: FakeNvml, handle: Any, reference: Any) -> int:
    return _set(reference, len(library.at(handle).mig))


def _nvmlDeviceGetMigDeviceHandleByIndex(library: FakeNvml, handle: Any, index: Any, reference: Any) -> int:
    instance = library.at(handle).mig[index.value]
    return NOT_FOUND if instance is None else _set_pointer(reference, library.key_of(instance.uuid))


def _nvmlDeviceGetAttributes_v2(library: FakeNvml, handle: Any, reference: Any) -> int:
    instance = library.at(handle)
    reference._obj.gpuInstanceSliceCount = instance.gpu_slices
    reference._obj.computeInstanceSliceCount = instance.compute_slices
    return int(instance.fail.get("nvmlDeviceGetAttributes_v2", SUCCESS))


def _nvmlDeviceGetGpuInstanceId(library: FakeNvml, handle: Any, reference: Any) -> int:
    return _set(reference, library.at(handle).gpu_instance)


def _nvmlDeviceGetComputeInstanceId(library: FakeNvml, handle: Any, reference: Any) -> int:
    return _set(reference, library.at(handle).compute_instance)


def _nvmlEventSetCreate(library: FakeNvml, reference: Any) -> int:
    key = 0x900 + len(library.sets) + library.freed_sets
    library.sets[key] = []
    return _set_pointer(reference, key)


def _nvmlDeviceGetSupportedEventTypes(library: FakeNvml, handle: Any, reference: Any) -> int:
    return _set(reference, library.at(handle).supported_events)


def _nvmlDeviceRegisterEvents(library: FakeNvml, handle: Any, kinds: Any, events: Any) -> int:
    gpu = library.at(handle)
    assert kinds.value == XID_EVENT, "only what the GPU supports and the reader wants"
    code = int(gpu.fail.get("nvmlDeviceRegisterEvents", SUCCESS))
    if code == SUCCESS:
        library.sets[ctypes.cast(events, ctypes.c_void_p).value or 0].append(gpu.uuid)
    return code


def _nvmlEventSetWait_v2(library: FakeNvml, events: Any, reference: Any, wait_ms: Any) -> int:
    registered = library.sets[ctypes.cast(events, ctypes.c_void_p).value or 0]
    watched = [
        event for event in library.events if not _is_gpu(library, event) or _uuid_of(library, event) in registered
    ]
    if not watched:
        return TIMEOUT
    event = watched[0]
    library.events.remove(event)
    data = reference._obj
    ctypes.cast(ctypes.pointer(data), ctypes.POINTER(ctypes.c_void_p))[0] = event.key  # `device` is the first member
    data.eventType, data.eventData = XID_EVENT, event.xid
    data.gpuInstanceId, data.computeInstanceId = event.gpu_instance, event.compute_instance
    return SUCCESS


def _is_gpu(library: FakeNvml, event: FakeEvent) -> bool:
    return 0 < event.key // 0x10000 <= len(library.gpus)


def _uuid_of(library: FakeNvml, event: FakeEvent) -> str:
    return library.gpus[event.key // 0x10000 - 1].uuid


def _nvmlEventSetFree(library: FakeNvml, events: Any) -> int:
    del library.sets[ctypes.cast(events, ctypes.c_void_p).value or 0]
    library.freed_sets += 1
    return SUCCESS
