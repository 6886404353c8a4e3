"""The real path to the driver: dlopen of `libnvidia-ml.so.1`, the real binding, the watchdog's own process."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from metering.gpus import ProblemCode
from metering.reader_process import ProcessReader
from scheduler.clock import ManualClock

pytestmark = pytest.mark.gcc

MakeReader = Callable[..., ProcessReader]


@pytest.fixture(scope="module")
def library_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the stub built as the driver's library."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler (gcc or cc) on the path: the real loading of libnvidia-ml.so.1 is not tested")
    folder = tmp_path_factory.mktemp("nvml")
    source = Path(__file__).parent / "nvml_stub.c"
    library = folder / "libnvidia-ml.so.1"
    options = ["-shared", "-fPIC", "-Wall", "-Werror", "-Wl,-soname,libnvidia-ml.so.1"]
    subprocess.run([compiler, *options, "-o", str(library), str(source)], check=True)
    return folder


@pytest.fixture
def stub_reader(library_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeReader]:
    """Makes readers whose child finds the stub, as LD_LIBRARY_PATH is read when a process starts."""
    readers: list[ProcessReader] = []

    def make(**environment: str) -> ProcessReader:
        monkeypatch.setenv("LD_LIBRARY_PATH", str(library_folder))
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        readers.append(ProcessReader(ManualClock()))
        return readers[-1]

    yield make
    for reader in readers:
        reader.close()


def test_the_drivers_library_is_found_and_read(stub_reader: MakeReader) -> None:
    reader = stub_reader()
    identities, problems = reader.identities()
    assert problems == []
    assert [gpu.uuid for gpu in identities] == ["GPU-stub-1", "GPU-stub-0"], "by PCI bus id"
    assert [(gpu.gpu_class, gpu.memory_bytes) for gpu in identities] == [("H200", 150_754_820_096)] * 2
    assert reader.driver_version == "555.42.02"
    first = {sample.uuid: sample for sample in reader.sample()[0]}
    second = {sample.uuid: sample for sample in reader.sample()[0]}
    assert first["GPU-stub-0"].utilization_percent == 90
    assert first["GPU-stub-0"].memory_used_bytes == 1_234_567_890
    assert [first[uuid].process_ids for uuid in ("GPU-stub-0", "GPU-stub-1")] == [(4711,), ()]
    energies = [sample.energy_millijoules for sample in (first["GPU-stub-0"], second["GPU-stub-0"])]
    assert energies == [5_000_035_000, 5_000_105_000], "64 bits, in order"


def test_symbols_that_the_library_lacks_are_fields_that_are_absent(stub_reader: MakeReader) -> None:
    samples, problems = stub_reader().sample()
    assert {sample.ecc_uncorrected_errors for sample in samples} == {None}
    assert {sample.throttle_reasons for sample in samples} == {None}
    assert {problem.code for problem in problems} == {ProblemCode.XIDS_UNREAD}


def test_a_lost_gpu_leaves_the_other_readable(stub_reader: MakeReader) -> None:
    samples, problems = stub_reader(STUB_LOST="1").sample()
    assert [sample.uuid for sample in samples] == ["GPU-stub-0"]
    assert (ProblemCode.GPU_LOST, 1) in [(problem.code, problem.index) for problem in problems]


@pytest.mark.parametrize(
    ("returned", "code"), [("9", "driver_not_loaded"), ("18", "version_mismatch"), ("999", "unknown")]
)
def test_an_initialisation_that_fails_is_one_problem_of_the_machine(
    stub_reader: MakeReader, returned: str, code: str
) -> None:
    samples, problems = stub_reader(STUB_INIT=returned).sample()
    assert (samples, [problem.code.value for problem in problems]) == ([], [code])
    assert problems[0].is_machine_wide


def test_without_a_library_the_problem_says_what_to_install(tmp_path: Path) -> None:
    # A library that cannot be loaded hides one that the machine may have.
    (tmp_path / "libnvidia-ml.so.1").write_bytes(b"")
    script = (
        "from metering.nvml_errors import NvmlUnavailable\n"
        "from metering.nvml_reader import open_reader\n"
        "try: open_reader()\n"
        "except NvmlUnavailable as error: print(error.code.value, error)\n"
    )
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert result.stderr == ""
    assert result.stdout.startswith("library_not_found cannot start NVML: libnvidia-ml.so.1 was not found; install")
