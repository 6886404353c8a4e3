"""Where the adapter is tested: the API server of ours, or a real control plane with nodes that a driver plays.

Both are used through their API alone: pods and nodes are steered by annotations that either cluster's kubelets obey,
so that one suite says the same of both.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from ulid import ULID

from k8s.api import Access, Api, Json, RequestLimits
from k8s.cluster import Cluster
from k8s.jobs import KubernetesExecutor
from k8s.logkeeper import LogKeeper
from k8s.mirror import MirrorLimits
from k8s.names import namespace_of
from k8s.options import NamespaceOptions, NodeOptions, Options, PodOptions, TimeOptions
from k8s.pods import Pod
from scheduler.clock import LedgerClock
from scheduler.core.model import (
    GPU_UNITS,
    AccountId,
    Allocation,
    AllocationId,
    Booking,
    GpuClass,
    Grant,
    JobId,
    NodeName,
    UserName,
)
from scheduler.executor import Ended, LaunchSpec, NodeInventory, Observation, Started, StartOrder
from tests.k8s.apiserver import ApiServer
from tests.k8s.controllers import PREFIX, Controllers, node

T = TypeVar("T")
DEADLINE_SECONDS = 40.0
"""How long a test waits for what takes milliseconds here, and seconds on a real control plane under load."""
KUBECONFIG = "TURNSTILE_TEST_KUBECONFIG"
SCRIPTS = "TURNSTILE_CLUSTER_SCRIPTS"
REPOSITORY = Path(__file__).resolve().parents[2]
FAST_WATCHES = MirrorLimits(watch_seconds=20, silence_seconds=2.0, first_wait_seconds=0.02, most_wait_seconds=0.2)
FAST_REQUESTS = RequestLimits(first_wait_seconds=0.01, most_wait_seconds=0.05, read_seconds=5.0)


@dataclass
class Ground:
    """A cluster with four nodes of eight GPUs."""

    kubeconfig: Path
    nodes: tuple[str, ...]
    folder: Path
    server: ApiServer | None = None
    """None on a real control plane."""
    node_selector: str = ""

    def api(self) -> Api:
        return Api.connect(Access(str(self.kubeconfig)), FAST_REQUESTS)


@contextmanager
def memory_ground(folder: Path) -> Iterator[Ground]:
    server = ApiServer()
    controllers = Controllers(server.store)
    nodes = tuple(f"gpu-node-{index:04d}" for index in range(4))
    for name in nodes:
        server.store.create("nodes", "", node(name))
    try:
        yield Ground(server.kubeconfig(folder / "kubeconfig"), nodes, folder, server)
    finally:
        controllers.stop()
        server.stop()


def scripts() -> Path | None:
    """The folder with the driver of fake nodes, if this machine has it."""
    folder = Path(os.environ.get(SCRIPTS) or REPOSITORY.parent / "shared" / "cluster")
    return folder if (folder / "fake_nodes.py").exists() else None


def why_no_real_ground() -> str | None:
    if not os.environ.get(KUBECONFIG):
        return f"{KUBECONFIG} names no kubeconfig of a control plane to test against"
    if scripts() is None:
        return f"nobody plays the nodes of the control plane: {SCRIPTS} names no folder with fake_nodes.py"
    return None


@contextmanager
def real_ground(folder: Path) -> Iterator[Ground]:
    """Four fake nodes on the control plane of the variable, gone afterwards."""
    driver_folder = scripts()
    assert driver_folder is not None, "asked before"
    kubeconfig, prefix = Path(os.environ[KUBECONFIG]), f"test-{os.getpid()}"
    # A copy, because Python would write compiled files beside a script that may not be ours to write to.
    script = Path(shutil.copy(driver_folder / "fake_nodes.py", folder))
    options = ["--nodes", "4", "--prefix", prefix, "--run-seconds", "inf", "--start-seconds", "0.1", "--cleanup"]
    log = (folder / "fake_nodes.log").open("wb")
    driver = subprocess.Popen([sys.executable, str(script), "--kubeconfig", str(kubeconfig), *options], stderr=log)
    nodes = tuple(f"{prefix}-{index:04d}" for index in range(4))
    selector = f"kubernetes.io/hostname in ({','.join(nodes)})"
    ground = Ground(kubeconfig, nodes, folder, node_selector=selector)
    try:
        api = ground.api()
        until(lambda: len(api.list_all("/api/v1/nodes", {"labelSelector": selector})[0]) == 4, "four nodes")
        until(
            lambda: all(_is_ready(item) for item in api.list_all("/api/v1/nodes", {"labelSelector": selector})[0]),
            "ready",
        )
        yield ground
    finally:
        driver.terminate()
        driver.wait(30)
        log.close()


def _is_ready(item: Json) -> bool:
    return not (item["spec"].get("taints") or ()) and bool(item["status"].get("allocatable", {}).get("nvidia.com/gpu"))


def until(look: Callable[[], T | None], what: str, seconds: float = DEADLINE_SECONDS) -> T:
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"no {what} in {seconds} s"
        time.sleep(0.02)
    return found


class Rig:
    """One executor on a ground, for one tenant of its own, and what a test does with it."""

    def __init__(self, ground: Ground, **times: float) -> None:
        self.ground = ground
        self.admin = ground.api()
        self.clock = LedgerClock()
        self.account = AccountId(f"t{str(ULID()).lower()[-10:]}/nlp")
        self.namespace = namespace_of(self.account, "turnstile-")
        self.options = Options(
            NodeOptions(
                lambda product: GpuClass("H100" if "H100" in product else product), node_selector=ground.node_selector
            ),
            PodOptions(annotations={PREFIX + "run-seconds": "forever"}),
            NamespaceOptions(),
            TimeOptions(**times),
            installation=f"test-{str(ULID()).lower()[-8:]}",
        )
        self.logs = ground.folder / f"logs-{self.options.installation}"
        self.executor = self.build()
        self.seen: list[Observation] = []
        self.executor.recover([])

    def build(self) -> KubernetesExecutor:
        api = self.ground.api()
        cluster = Cluster(api, self.options, FAST_WATCHES)
        keeper = LogKeeper(api, self.logs)
        return KubernetesExecutor(api, self.clock, self.options, keeper, cluster, self._adjust)

    def order(self, *, nodes: int = 1, gpus: int = 2, limit_ms: int = 600_000, seconds: float | None = None,
              exit_code: int = 0, first: int = 0, on: int = 0, **spec: object) -> StartOrder:  # fmt: skip
        grants = tuple(
            Grant(
                NodeName(name),
                tuple(device.id for device in self.offered(name).devices[first : first + gpus]),
                GPU_UNITS, 4000, 8 << 30,
            )
            for name in self.ground.nodes[on : on + nodes]
        )  # fmt: skip
        allocation = Allocation(
            AllocationId(str(ULID())), JobId(4711), self.account, UserName("mei"), GpuClass("H100"), Booking.BURST,
            grants, self.clock.now_ms(), 1, limit_ms,
        )  # fmt: skip
        launch = LaunchSpec(
            ("train",), "train", image="registry.example/train:1", grace_seconds=5.0,
            simulated_seconds=seconds, simulated_exit_code=exit_code,
        )  # fmt: skip
        return StartOrder(allocation, replace(launch, **spec))  # type: ignore[arg-type] # fields by name

    def offered(self, name: str) -> NodeInventory:
        return next(each for each in self.executor.inventory() if each.node.name == name)

    def start(self, order: StartOrder) -> Started:
        self.executor.start(order)
        return self.until_started(order)

    def until_started(self, order: StartOrder) -> Started:
        return self.until(lambda: self._find(Started, order), f"start of {order.allocation.id}")

    def until_ended(self, order: StartOrder) -> Ended:
        return self.until(lambda: self._find(Ended, order), f"end of {order.allocation.id}")

    def until(self, look: Callable[[], T | None], what: str) -> T:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while True:
            self.seen += self.executor.observe()
            if found := look():
                return found
            assert time.monotonic() < deadline, f"no {what} in {DEADLINE_SECONDS} s; seen: {self.seen[-5:]}"
            self.executor.wait_for_news(0.05)

    def pods(self, order: StartOrder) -> list[Pod]:
        return sorted(self.executor._cluster.pods_of(order.allocation.id), key=lambda pod: pod.rank)

    def annotate(self, order: StartOrder, rank: int = 0, **notes: str) -> None:
        """Tells the kubelet what becomes of a rank's pod."""
        pod = self.pods(order)[rank]
        changes = {PREFIX + name.replace("_", "-"): value for name, value in notes.items()}
        path = f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}"
        self.admin.merge(path, {"metadata": {"annotations": changes}})

    def annotate_node(self, name: str, **notes: str | None) -> None:
        changes = {PREFIX + key: value for key, value in notes.items()}
        self.admin.merge(f"/api/v1/nodes/{name}", {"metadata": {"annotations": changes}})

    def jobs(self) -> list[Json]:
        return self.admin.list_all(f"/apis/batch/v1/namespaces/{self.namespace}/jobs")[0]

    def restart(self) -> KubernetesExecutor:
        self.executor.close()
        self.executor = self.build()
        return self.executor

    def close(self) -> None:
        """Removes all that the test made, through the executor itself, and then the namespace."""
        self.executor.recover([])
        sweeper = self.executor._sweeper
        sweeper._kept_until_ms.clear()
        sweeper._keep_ms = -(10**12)
        self.executor._next_sweep_ms = 0

        def is_gone() -> bool:
            self.executor.observe()
            self.executor._next_sweep_ms = 0
            return not self.executor._cluster.allocations()

        until(is_gone, "empty namespace")
        self.executor.close()
        if self.admin.list_all("/api/v1/namespaces", {"fieldSelector": f"metadata.name={self.namespace}"})[0]:
            self.admin.delete(f"/api/v1/namespaces/{self.namespace}")
        self.admin.close()

    def _find(self, kind: type[T], order: StartOrder) -> T | None:
        return next((n for n in self.seen if isinstance(n, kind) and n.allocation == order.allocation.id), None)

    @staticmethod
    def _adjust(order: StartOrder, job: Json) -> Json:
        """Lets an order say how its fake pods run, as the simulated executor's orders do."""
        if order.spec.simulated_seconds is not None:
            notes = {"run-seconds": str(order.spec.simulated_seconds), "exit-code": str(order.spec.simulated_exit_code)}
            job = json.loads(json.dumps(job))
            job["spec"]["template"]["metadata"]["annotations"].update({PREFIX + k: v for k, v in notes.items()})
        return job
