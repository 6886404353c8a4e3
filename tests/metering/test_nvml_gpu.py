"""A smoke test on a machine that has a GPU."""

import pytest

from metering.gpus import ProblemCode
from metering.reader_process import ProcessReader
from scheduler.clock import LedgerClock

pytestmark = pytest.mark.gpu


def test_a_real_gpu_has_a_uuid_memory_and_a_plausible_sample() -> None:
    reader = ProcessReader(LedgerClock())
    try:
        identities, problems = reader.identities()
        if any(problem.code in (ProblemCode.LIBRARY_NOT_FOUND, ProblemCode.DRIVER_NOT_LOADED) for problem in problems):
            pytest.skip(f"no NVIDIA GPU here: {problems[0].message}")
        samples, _ = reader.sample()
        assert identities
        assert reader.driver_version is not None
        for gpu in identities:
            assert gpu.uuid.startswith(("GPU-", "MIG-"))
            assert gpu.memory_bytes > 0
        assert {sample.uuid for sample in samples} == {gpu.uuid for gpu in identities}
        for sample in samples:
            assert sample.utilization_percent is None or 0 <= sample.utilization_percent <= 100
            assert sample.power_milliwatts is None or 1_000 < sample.power_milliwatts < 3_000_000
            assert sample.temperature_celsius is None or 5 < sample.temperature_celsius < 120
        assert list(reader.xids(0)) == []
    finally:
        reader.close()
