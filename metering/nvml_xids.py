"""XIDs from the driver: one event set over all GPUs, behind `nvml_reader`.

NVML records nothing that happened before a GPU was registered, and a registration that fails for an unknown reason
leaves the whole set undefined; such a GPU is left out and said so, and the others are watched.
"""

from collections.abc import Sequence

from metering import nvml
from metering.gpus import GpuProblem, ProblemCode, XidEvent
from metering.nvml import EventSet, FoundDevice
from metering.nvml_errors import NvmlError
from scheduler.clock import Clock

XID_BURST_LIMIT = 256
"""Most XIDs taken in one call: a GPU that fails in a loop must not keep the reader from its samples."""


class XidWatch:
    """The event set over all GPUs, made anew whenever the GPUs or their MIG instances change."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._events: EventSet | None = None
        self._followed: tuple[str, ...] | None = None
        self._uuid_of: dict[int, str] = {}  # handle to GPU
        self._mig: list[tuple[str, int, int, str]] = []  # GPU, GPU instance, compute instance, MIG instance
        self._refused: set[str] = set()  # GPUs whose registration broke a set
        self._backlog: list[XidEvent] = []
        self._standing: list[GpuProblem] = []
        self._passing: list[GpuProblem] = []

    @property
    def is_following(self) -> bool:
        """Whether GPUs were enumerated since the set was last given up."""
        return self._followed is not None

    def take_problems(self) -> list[GpuProblem]:
        """Returns what cannot be watched now, and once what failed since the last call."""
        passing, self._passing = self._passing, []
        return [*self._standing, *passing]

    def follow(self, found: Sequence[FoundDevice]) -> None:
        """Watches exactly these GPUs; does nothing while they stay the same."""
        uuids = tuple(sorted(device.uuid for device in found))
        if uuids == self._followed:
            return
        self._drain()  # a GPU that has just gone has very likely said why
        self.free()
        self._followed, self._standing, self._refused = uuids, [], set()
        self._uuid_of = {nvml.handle_key(device.handle): device.uuid for device in found if device.parent is None}
        self._mig = [ids for device in found if (ids := _mig_ids(device)) is not None]
        gpus = [device for device in found if device.parent is None]
        # A registration that fails with `unknown` leaves the whole set undefined: it is freed, and a new one made
        # without that GPU. Each round loses a GPU, so there are at most as many rounds as GPUs.
        while gpus and not self._register([gpu for gpu in gpus if gpu.uuid not in self._refused]):
            continue

    def next(self, wait_ms: int) -> XidEvent | None:
        """Returns the next XID, or None when none came in time or none can be read (`take_problems` says why)."""
        if self._backlog:
            return self._backlog.pop(0)
        if self._events is None:
            return None
        try:
            event = nvml.next_xid(self._events, wait_ms)
        except NvmlError as error:
            self.free()  # the next enumeration makes a new set
            self._passing.append(GpuProblem(ProblemCode.XIDS_UNREAD, f"XIDs were not read for a moment: {error}"))
            return None
        if event is None:
            return None
        return XidEvent(self._uuid(event), event.xid, self._clock.now_ms())

    def free(self) -> None:
        """Frees the set, if there is one."""
        events, self._events, self._followed = self._events, None, None
        if events is not None:
            try:
                nvml.free_events(events)
            except NvmlError as error:
                self._passing.append(GpuProblem(ProblemCode.XIDS_UNREAD, f"an event set was not freed: {error}"))

    def _drain(self) -> None:
        taken: list[XidEvent] = []
        while len(taken) < XID_BURST_LIMIT and (event := self.next(0)) is not None:
            taken.append(event)
        self._backlog = taken

    def _register(self, gpus: Sequence[FoundDevice]) -> bool:
        """Registers all of `gpus`; False when the set had to be given up and one GPU more is refused."""
        if not gpus:
            return True
        try:
            self._events = nvml.event_set()
        except NvmlError as error:
            self._standing.append(GpuProblem(ProblemCode.XIDS_UNREAD, f"XIDs are not read on this machine: {error}"))
            return True
        for gpu in gpus:
            try:
                nvml.watch_xids(self._events, gpu.handle)
            except NvmlError as error:
                text = f"{gpu.uuid}: XIDs are not read, so its errors show only in `dmesg`: {error}"
                self._standing.append(GpuProblem(ProblemCode.XIDS_UNREAD, text, uuid=gpu.uuid))
                if error.code is ProblemCode.UNKNOWN:
                    followed = self._followed
                    self.free()
                    self._followed = followed
                    self._refused.add(gpu.uuid)
                    return False
        return True

    def _uuid(self, event: nvml.RawEvent) -> str | None:
        gpu = self._uuid_of.get(nvml.handle_key(event.handle))
        if gpu is None:
            try:
                gpu = nvml.uuid(event.handle)
            except NvmlError:
                return None  # not of any GPU that still answers
        for parent, gpu_instance, compute_instance, instance in self._mig:
            is_same = parent == gpu and gpu_instance == event.gpu_instance
            if is_same and event.compute_instance in (None, compute_instance):
                return instance
        return gpu


def _mig_ids(device: FoundDevice) -> tuple[str, int, int, str] | None:
    if device.parent is None:
        return None
    try:
        return (device.parent.uuid, *nvml.mig_instance_ids(device.handle), device.uuid)
    except NvmlError:
        return None  # its XIDs are then its GPU's
