"""Readers that the tests of the watchdog start in its child process, by name."""

import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pynvml

from metering.gpus import GpuIdentity, GpuProblem, GpuSample, ProblemCode, ThrottleReason, XidEvent
from metering.nvml_errors import NvmlUnavailable
from metering.nvml_reader import NvmlReader
from scheduler.clock import ManualClock
from scheduler.core.model import GpuClass
from tests.metering.fake_nvml import FakeGpu, FakeNvml


class ScriptedReader:
    """Answers, hangs or dies as the files in `folder` say: a file `hang-CALL` or `die-CALL` does that to one call."""

    collector = "nvml"
    driver_version = "1.2.3"

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)

    def identities(self) -> tuple[Sequence[GpuIdentity], Sequence[GpuProblem]]:
        self._obey("identities")
        print("a driver's library may print anything")  # must not end up between the answers
        return [GpuIdentity("GPU-1", "NVIDIA H200", GpuClass("H200"), 5, "00000000:1B:00.0")], []

    def sample(self) -> tuple[Sequence[GpuSample], Sequence[GpuProblem]]:
        self._obey("sample")
        if (self._folder / "driver-gone").exists():
            return [], [GpuProblem(ProblemCode.DRIVER_NOT_LOADED, "the driver is gone")]
        sample = GpuSample(
            "GPU-1", 1, utilization_percent=os.getpid() % 100, throttle_reasons=(ThrottleReason.POWER_CAP,)
        )
        return [sample], [GpuProblem(ProblemCode.GPU_LOST, "lost", uuid="GPU-2", index=1)]

    def xids(self, wait_ms: int) -> Sequence[XidEvent]:
        self._obey("xids")
        return [XidEvent("GPU-1", 79, wait_ms), XidEvent(None, 31, 0)]

    def close(self) -> None:
        pass

    def _obey(self, call: str) -> None:
        if (self._folder / f"hang-{call}").exists():
            threading.Event().wait()
        if (self._folder / f"die-{call}").exists():
            os._exit(7)
        if (self._folder / f"babble-{call}").exists():
            for descriptor in range(3, 20):  # the answers' pipe is one of them
                try:
                    os.write(descriptor, b"this is no answer\n")
                except OSError:
                    continue


def scripted(folder: str) -> ScriptedReader:
    """Opens at once, or fails or hangs as the files `unavailable`, `broken`, `hang-start` say."""
    path = Path(folder)
    with (path / "starts").open("a") as starts:
        starts.write(f"{os.getpid()}\n")
    if (path / "unavailable").exists():
        raise NvmlUnavailable(ProblemCode.LIBRARY_NOT_FOUND, "cannot start NVML: no library")
    if (path / "broken").exists():
        raise RuntimeError("an error that nobody foresaw")
    if (path / "hang-start").exists():
        threading.Event().wait()
    return ScriptedReader(folder)


def hanging_in_the_driver() -> NvmlReader:
    """The real reader over a library whose power call never returns."""
    library = FakeNvml([FakeGpu("GPU-1")])
    library.hang = {"nvmlDeviceGetPowerUsage"}
    pynvml.nvmlLib = library
    return NvmlReader(ManualClock())


def main(folder: str) -> None:
    """Plays the daemon: starts a watchdog whose child hangs, says so, and waits to be killed."""
    from metering.reader_process import ProcessReader, ReaderLimits

    limits = ReaderLimits(call_seconds=20)
    reader = ProcessReader(ManualClock(), "tests.metering.child_readers:scripted", {"folder": folder}, limits=limits)
    reader.identities()
    print(reader.process_id, flush=True)
    reader.sample()  # hangs


if __name__ == "__main__":
    main(sys.argv[1])
