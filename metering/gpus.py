"""What is read off a GPU: identity, sample, XID, problem, and the protocol of whatever reads them.

Plain values without NVML: `nvml_reader` and `simulated` make them, `agent` folds them into windows and verdicts,
`telemetry` shows them. A GPU is known by its UUID; an index is only where it happened to be found. None always means
"this GPU or driver does not say", never zero.

Read next: `xids` (what an XID means), `gpu_classes` (what a product is sold as), `nvml` (the door), `reader_process`
(the watchdog around it).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from scheduler.core.model import GPU_UNITS, GpuClass


class ThrottleReason(StrEnum):
    """Why a GPU's clocks are held down. The words are label values of `turnstile_gpu_throttled`."""

    HW_THERMAL = "hw_thermal"
    SW_THERMAL = "sw_thermal"
    POWER_BRAKE = "power_brake"
    POWER_CAP = "power_cap"
    HW_SLOWDOWN = "hw_slowdown"
    SYNC_BOOST = "sync_boost"
    USER_CLOCKS = "user_clocks"


class ProblemCode(StrEnum):
    """Why something could not be read, as counted and tested; the message beside it says what to do."""

    LIBRARY_NOT_FOUND = "library_not_found"
    DRIVER_NOT_LOADED = "driver_not_loaded"
    VERSION_MISMATCH = "version_mismatch"
    NO_PERMISSION = "no_permission"
    UNINITIALIZED = "uninitialized"
    GPU_LOST = "gpu_lost"
    RESET_REQUIRED = "reset_required"
    INSUFFICIENT_POWER = "insufficient_power"
    IRQ_ISSUE = "irq_issue"
    CORRUPTED_INFOROM = "corrupted_inforom"
    GPU_NOT_FOUND = "gpu_not_found"
    NOT_READY = "not_ready"
    INVALID_STATE = "invalid_state"
    NOT_SUPPORTED = "not_supported"
    FUNCTION_NOT_FOUND = "function_not_found"
    NOT_FOUND = "not_found"
    NO_DATA = "no_data"
    INVALID_ARGUMENT = "invalid_argument"
    ARGUMENT_VERSION = "argument_version"
    TIMEOUT = "timeout"
    IN_USE = "in_use"
    OUT_OF_MEMORY = "out_of_memory"
    OPERATING_SYSTEM = "operating_system"
    UNKNOWN = "unknown"
    XIDS_UNREAD = "xids_unread"
    READER_STARTING = "reader_starting"
    READER_HUNG = "reader_hung"
    READER_DIED = "reader_died"


@dataclass(frozen=True, slots=True)
class GpuIdentity:
    """A GPU or a MIG instance: what stays the same between two samples.

    `units` is its size in capacity units: GPU_UNITS for a whole GPU, and for a MIG instance the part of that which its
    compute slices are (sevenths on most models, quarters on the small ones). A GPU in MIG mode is listed as well as its
    instances (`is_mig_parent`); only the instances can be held.
    """

    uuid: str
    name: str  # as NVML gives it
    gpu_class: GpuClass
    memory_bytes: int
    pci_bus_id: str
    minor_number: int | None = None
    serial: str | None = None
    is_mig: bool = False
    is_mig_parent: bool = False
    parent_uuid: str | None = None
    mig_profile: str | None = None  # `3g.40gb`
    mig_index: int | None = None  # where the instance stands on its GPU, with holes
    units: int = GPU_UNITS


@dataclass(frozen=True, slots=True)
class GpuSample:
    """One reading of a GPU or MIG instance at `at_ms`. An instance has memory and processes only; all else is None."""

    uuid: str
    at_ms: int
    utilization_percent: int | None = None
    """Share of the driver's last sample period (1/6 to 1 s) in which a kernel ran; 100 does not mean busy SMs."""
    memory_utilization_percent: int | None = None
    """Share of the same period in which device memory was read or written."""
    memory_used_bytes: int | None = None
    power_milliwatts: int | None = None
    energy_millijoules: int | None = None
    """A counter since the driver was loaded; starts again at zero with it."""
    temperature_celsius: int | None = None
    throttle_reasons: tuple[ThrottleReason, ...] | None = None  # sorted; empty means not throttled
    ecc_uncorrected_errors: int | None = None
    """Since the driver was loaded (the volatile counter)."""
    row_remap_pending: bool | None = None
    row_remap_failure: bool | None = None
    retired_pages: int | None = None  # GPUs before Ampere, which remap no rows
    retired_pages_pending: bool | None = None
    process_ids: tuple[int, ...] | None = None
    """What computes on it, by the reader's PID namespace, sorted."""
    latency_microseconds: int = 0
    """How long all calls for this sample took together."""


@dataclass(frozen=True, slots=True)
class XidEvent:
    """The driver reported an error. `uuid` is None when it would not say of which GPU."""

    uuid: str | None
    xid: int
    at_ms: int


@dataclass(frozen=True, slots=True)
class GpuProblem:
    """Something could not be read. Without UUID and index it concerns the whole machine."""

    code: ProblemCode
    message: str
    uuid: str | None = None
    index: int | None = None

    @property
    def is_machine_wide(self) -> bool:
        """True when nothing on the machine could be read."""
        return self.uuid is None and self.index is None


class GpuReader(Protocol):
    """Reads the GPUs of one machine. Failures are values: one lost GPU does not hide the others.

    Calls come from one thread at a time. Only `reader_process.ProcessReader` promises to return within a deadline.
    """

    @property
    def collector(self) -> str:
        """The word for this source in `turnstile_collector_last_success_timestamp_seconds`: `nvml`, `simulated`."""
        ...

    @property
    def driver_version(self) -> str | None:
        """The driver's version as it calls itself; None while unknown."""
        ...

    def identities(self) -> tuple[Sequence[GpuIdentity], Sequence[GpuProblem]]:
        """Returns the GPUs and MIG instances found now, by PCI bus id and MIG index, and what could not be read."""
        ...

    def sample(self) -> tuple[Sequence[GpuSample], Sequence[GpuProblem]]:
        """Returns a sample of each GPU and MIG instance that answers, and what could not be read."""
        ...

    def xids(self, wait_ms: int) -> Sequence[XidEvent]:
        """Returns the XIDs since the last call, waiting up to `wait_ms` for the first; applications' own included.

        What happened before the first call is not known to NVML. When XIDs cannot be read, `sample` says so.
        """
        ...

    def close(self) -> None:
        """Lets go of the driver. Nothing may be called afterwards."""
        ...


def gpu_positions(identities: Sequence[GpuIdentity]) -> dict[str, str]:
    """Returns each UUID's place on its node as text: `0`, `1` … by PCI bus id; `0:2` is MIG slot 2 of the first.

    This is the label `gpu`. It depends on the slots that are filled, not on the order in which NVML listed them.
    """
    wholes = sorted((gpu for gpu in identities if not gpu.is_mig), key=lambda gpu: (gpu.pci_bus_id, gpu.uuid))
    places = {gpu.uuid: str(place) for place, gpu in enumerate(wholes)}
    for gpu in identities:
        if gpu.is_mig and gpu.parent_uuid in places:
            places[gpu.uuid] = f"{places[gpu.parent_uuid]}:{gpu.mig_index or 0}"
    return places
