"""On a real node: a job of two GPUs runs to its end, and its usage lines name the devices that the kubelet gave.

Wants TURNSTILE_TEST_KUBECONFIG, and on this machine that cluster's kubelet with a device plugin that offers at least
two `nvidia.com/gpu`, and the image TURNSTILE_TEST_IMAGE (default turnstile.local/busybox:1) on the node. The GPUs need
not exist: what is read of them is made up here, which of them a container got is the kubelet's own word.
"""

import csv
import io
import os
import tarfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from cli.client import Endpoint
from cli.daemon.agent import HttpUplink
from k8s.api import Access, Api
from k8s.podresources import DEFAULT_SOCKET, Kubelet, PodResourcesWitness, owners_on
from k8s.problems import NotFound
from metering.agent import Sampler
from metering.core.tariff import body_of
from metering.gpus import GpuIdentity, GpuProblem, GpuSample, XidEvent
from metering.holders import HolderWatch
from metering.reporter import AgentName, Reporter
from metering.spool import Spool
from scheduler.clock import LedgerClock
from scheduler.core.model import GpuClass, NodeName
from tests.acceptance.daemons import Daemon, until
from tests.metering.builders import book

IMAGE = os.environ.get("TURNSTILE_TEST_IMAGE", "turnstile.local/busybox:1")
PRODUCT = "NVIDIA-H100-80GB-HBM3"


def real_node() -> str | None:
    """The name of the node whose kubelet runs here; None when there is none."""
    if "TURNSTILE_TEST_KUBECONFIG" not in os.environ or not Path(DEFAULT_SOCKET).exists():
        return None
    nodes, _ = Api.connect(Access(os.environ["TURNSTILE_TEST_KUBECONFIG"])).list_all("/api/v1/nodes")
    for node in nodes:
        status = node["status"]
        runtime = str((status.get("nodeInfo") or {}).get("containerRuntimeVersion"))
        if runtime.startswith("containerd://") and int(status["allocatable"].get("nvidia.com/gpu", "0")) >= 2:
            return str(node["metadata"]["name"])
    return None


pytestmark = [pytest.mark.kubernetes, pytest.mark.acceptance]


class PluginsGpus:
    """A reader of GPUs that a device plugin made up: it reads what it is told they are called, always half busy."""

    collector = "simulated"
    driver_version = None

    def __init__(self, uuids: Sequence[str], clock: LedgerClock) -> None:
        self._uuids, self._clock = uuids, clock

    def identities(self) -> tuple[Sequence[GpuIdentity], Sequence[GpuProblem]]:
        gpus = [GpuIdentity(each, PRODUCT, GpuClass("H100"), 80 << 30, f"0:{n}") for n, each in enumerate(self._uuids)]
        return gpus, []

    def sample(self) -> tuple[Sequence[GpuSample], Sequence[GpuProblem]]:
        now_ms = self._clock.now_ms()
        return [GpuSample(each, now_ms, 50, 10, 1 << 30, energy_millijoules=now_ms) for each in self._uuids], []

    def xids(self, wait_ms: int) -> Sequence[XidEvent]:
        return []

    def close(self) -> None:
        pass


@pytest.fixture
def node() -> str:
    found = real_node()
    if found is None:
        pytest.skip("no kubelet with two nvidia.com/gpu runs on this machine: nothing was checked on a real node")
    return found


@pytest.fixture
def daemon(node: str, tmp_path: Path) -> Iterator[Daemon]:
    """A daemon over the cluster, as an admin of it, with namespaces of its own."""
    kubeconfig = os.environ["TURNSTILE_TEST_KUBECONFIG"]
    api = Api.connect(Access(kubeconfig))
    api.merge(f"/api/v1/nodes/{node}", {"metadata": {"labels": {"nvidia.com/gpu.product": PRODUCT}}})
    mark = f"t{uuid.uuid4().hex[:8]}"
    settings = tmp_path / "turnstile.toml"
    settings.write_text(
        f'[executor]\nkind = "kubernetes"\n[kubernetes]\nkubeconfig = "{kubeconfig}"\ninstallation = "{mark}"\n'
        f'namespace_prefix = "{mark}-"\nimage_pull_policy = "Never"\nnode_selector = "kubernetes.io/hostname={node}"\n'
    )
    made = Daemon.at(tmp_path / "daemon", "--config", str(settings))
    try:
        made.start().set_up()
        assert made.request("POST", "/v1/admin/prices", body_of(book())).status == 201
        yield made
    finally:
        made.close()
        with suppress(NotFound):
            api.delete(f"/api/v1/namespaces/{mark}-acme")


@pytest.mark.timeout(300)
def test_a_job_of_two_gpus_is_billed_with_the_devices_that_the_kubelet_gave(
    node: str, daemon: Daemon, tmp_path: Path
) -> None:
    run = daemon.submit("sleep", "12", gpus_per_node=2, image=IMAGE, time_limit_seconds=120)
    daemon.wait_for(run["id"], "running", seconds=120)

    clock, kubelet = LedgerClock(), Kubelet()
    api = Api.connect(Access(os.environ["TURNSTILE_TEST_KUBECONFIG"]))
    given = sorted(device for held in kubelet.held() for device in held.device_ids)
    assert len(given) == 2
    witness = PodResourcesWitness(NodeName(node), kubelet, owners_on(api, NodeName(node)), clock)
    assert sorted(witness.holders()) == given
    reader = PluginsGpus([*given, "GPU-of-nobody"], clock)
    sampler = Sampler(NodeName(node), reader, clock)
    reporter = Reporter(
        AgentName(NodeName(node), "one", "1"), sampler, Spool(tmp_path / "spool"), clock, HolderWatch(witness)
    )
    made = daemon.request("POST", "/v1/admin/tokens", {"role": "agent", "account": "", "user": node})
    uplink = HttpUplink(lambda: Endpoint(daemon.url, made.json["secret"]))

    def has_completed() -> bool:
        reporter.measure()
        return bool(daemon.job(run["id"])["state"] == "completed")

    until(has_completed, "the job has completed", 120)
    reporter.close()
    reporter.report(uplink)
    assert (reporter.link.refused, reporter.link.trouble) == (0, None)
    witness.close()
    uplink.close()

    answer = daemon.request("GET", "/v1/admin/ledger/export?from=2020-01-01&to=2100-01-01")
    assert answer.status == 200, answer
    with tarfile.open(fileobj=io.BytesIO(answer.body)) as archive:
        files = {member.name: archive.extractfile(member) for member in archive.getmembers()}
        (focus,) = (name for name in files if "focus" in name and name.endswith(".csv"))
        opened = files[focus]
        assert opened is not None
        lines = list(csv.DictReader(io.StringIO(opened.read().decode("utf-8-sig"))))
    assert [line["x_GpuUuids"].split() for line in lines] == [given]
    assert lines[0]["x_GpuUtilAvg"] == "50.00"
