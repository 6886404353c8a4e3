"""Fixtures: `server` is the API server of ours, `ground` each cluster in turn, `rig` an executor on it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.k8s.apiserver import ApiServer
from tests.k8s.grounds import Ground, Rig, memory_ground, real_ground, why_no_real_ground


@pytest.fixture
def server() -> Iterator[ApiServer]:
    built = ApiServer()
    yield built
    built.stop()


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """The control plane of TURNSTILE_TEST_KUBECONFIG; says aloud why there is none."""
    why = why_no_real_ground()
    if why is not None:
        pytest.skip(f"the contract was NOT checked against a real control plane: {why}")
    with real_ground(tmp_path_factory.mktemp("real")) as ground:
        yield ground


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Ground]:
    with memory_ground(tmp_path) as ground:
        yield ground


@pytest.fixture(params=["memory", pytest.param("real", marks=pytest.mark.kubernetes)])
def ground(request: pytest.FixtureRequest) -> Ground:
    found: Ground = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def rig_with(ground: Ground) -> Iterator[Callable[..., Rig]]:
    """Makes an executor with times of one's own, such as `rig_with(start_seconds=1)`."""
    built: list[Rig] = []

    def make(**times: float) -> Rig:
        built.append(Rig(ground, **times))
        return built[-1]

    yield make
    for rig in built:
        rig.close()


@pytest.fixture
def rig(rig_with: Callable[..., Rig]) -> Rig:
    return rig_with()
