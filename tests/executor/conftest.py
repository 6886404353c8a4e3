"""Fixtures: `rig` is each executor in turn, `local` the one with real processes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.executor.rigs import LocalRig, Rig, SimulatedRig


@pytest.fixture(params=["local", "simulated"])
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    built: LocalRig | SimulatedRig = LocalRig(tmp_path / "base") if request.param == "local" else SimulatedRig()
    yield built
    built.close()


@pytest.fixture
def local(tmp_path: Path) -> Iterator[LocalRig]:
    built = LocalRig(tmp_path / "base")
    yield built
    built.close()
