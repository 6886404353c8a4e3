"""The second witness: whose processes compute on a GPU, by their cgroups, beside the kubelet's word."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from k8s.api import Json
from k8s.processes import LOOK_AGAIN_MS, CgroupWitness, ProcessesHidden, pod_of, pods_on
from metering.agent import GpuSnapshot, Sampler
from metering.holders import Held, HolderWatch
from metering.simulated import SimulatedNode, SimulatedReader
from scheduler.clock import ManualClock
from scheduler.core.model import AllocationId, GpuClass, NodeName
from scheduler.executor import ExecutorError

UID = "1f0e7a52-93b5-4a8e-b0a5-0c5d6f7e8a90"
HASH = "8be1d8a7f0c5b7d6a1e2f3c4b5a69788"
NODE = NodeName("n1")
A, B = AllocationId("A1"), AllocationId("B2")


@pytest.mark.parametrize(
    ("cgroups", "uid"),
    [
        (f"0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UID.replace('-', '_')}.slice/x", UID),
        (f"0::/kubepods.slice/kubepods-pod{UID.replace('-', '_')}.slice/cri-containerd-abc.scope", UID),
        (f"12:devices:/kubepods/besteffort/pod{UID}/3f2a\n11:cpu,cpuacct:/kubepods/besteffort/pod{UID}/3f2a", UID),
        (f"0::/system.slice/kubelet.service/kubepods/burstable/pod{UID}/3f2a", UID),
        (f"0::/kubepods/burstable/pod{HASH}/3f2a", HASH),
        ("0::/system.slice/nvidia-persistenced.service", None),
        ("0::/", None),
        (f"0::/user.slice/pod{UID}/x", None),
    ],
)  # fmt: skip
def test_a_cgroup_names_the_pod_that_its_process_belongs_to(cgroups: str, uid: str | None) -> None:
    assert pod_of(cgroups) == uid


class Node:
    """A node's processes in a folder, and the API server's pods."""

    def __init__(self, folder: Path) -> None:
        self.proc, self.clock = folder, ManualClock(1_790_000_000_000)
        self.pods: dict[str, AllocationId] = {}
        self.asked = 0
        self.given: dict[str, AllocationId] | None = {}
        self.witness = CgroupWitness(self.ask, self.clock, folder)

    def ask(self) -> Mapping[str, AllocationId]:
        self.asked += 1
        return dict(self.pods)

    def runs(self, pid: int, pod: str | None) -> None:
        (self.proc / str(pid)).mkdir()
        path = f"/kubepods/burstable/pod{pod}/c" if pod else "/system.slice/mps.service"
        (self.proc / str(pid) / "cgroup").write_text(f"0::{path}\n")

    def holders(self) -> Mapping[str, AllocationId]:
        if self.given is None:
            raise ExecutorError("the kubelet does not answer")
        return self.given

    def last_seen_ms(self, node: NodeName) -> int | None:
        return None

    def snapshot(self, **processes: tuple[int, ...]) -> GpuSnapshot:
        """Returns what a sampler saw of GPUs with these names and processes."""
        clock = ManualClock(0)
        machine = SimulatedNode(NODE, GpuClass("H200"), len(processes))
        sampler = Sampler(NODE, SimulatedReader(machine, clock, lambda _: True), clock)
        snapshot = sampler.poll()
        devices = [
            replace(
                each,
                identity=replace(each.identity, uuid=name),
                sample=each.sample and replace(each.sample, uuid=name, process_ids=pids),
            )
            for each, (name, pids) in zip(snapshot.devices, processes.items(), strict=True)
        ]
        return replace(snapshot, devices=tuple(devices))


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def uid(number: int) -> str:
    return f"{number:08x}-93b5-4a8e-b0a5-0c5d6f7e8a90"


def test_the_api_server_is_asked_once_for_each_new_pod_and_now_and_then_for_a_stranger(node: Node) -> None:
    node.pods = {uid(1): A}
    node.runs(10, uid(1))
    node.runs(11, uid(2))
    for _ in range(3):
        assert node.witness.owners({"g0": [10], "g1": [11, 10]}) == {"g0": {A}, "g1": {None, A}}
    assert node.asked == 1
    node.pods[uid(2)] = B
    node.clock.advance(seconds=LOOK_AGAIN_MS // 1000)
    assert node.witness.owners({"g1": [11]}) == {"g1": {B}}
    assert node.asked == 2


def test_processes_that_ended_meanwhile_are_left_out_and_none_at_all_means_that_the_host_is_hidden(node: Node) -> None:
    node.runs(10, None)
    assert node.witness.owners({"g0": [10, 99], "g1": [98]}) == {"g0": {None}, "g1": frozenset()}
    with pytest.raises(ProcessesHidden, match="hostPID"):
        node.witness.owners({"g0": [98, 99]})


def test_both_witnesses_agree_and_the_kubelets_word_is_kept(node: Node) -> None:
    node.pods, node.given = {uid(1): A}, {"g0": A}
    node.runs(10, uid(1))
    held, problems = HolderWatch(node, node.witness).look(node.snapshot(g0=(10,), g1=()))
    assert (held, problems) == ([Held("g0", A, "podresources")], [])


def test_where_the_kubelet_is_silent_the_processes_stand_in_for_it(node: Node) -> None:
    node.pods, node.given = {uid(1): A, uid(2): B}, None
    node.runs(10, uid(1))
    node.runs(11, uid(2))
    held, problems = HolderWatch(node, node.witness).look(node.snapshot(g0=(10,), g1=(10, 11)))
    assert held == [Held("g0", A, "cgroup")], "two on one GPU: neither is believed"
    assert problems == ["who holds which GPU is not known: the kubelet does not answer"]
    alone = HolderWatch(None, node.witness).look(node.snapshot(g0=(10,)))
    assert alone == ([Held("g0", A, "cgroup")], []), "where no kubelet was named, that is no problem"


def test_who_computes_on_anothers_gpu_is_told_and_never_recorded_as_its_holder(node: Node) -> None:
    node.pods, node.given = {uid(1): A, uid(2): B}, {"g0": A}
    node.runs(10, uid(2))
    node.runs(11, None)
    held, problems = HolderWatch(node, node.witness).look(node.snapshot(g0=(10, 11), g1=(10,), g2=(11,)))
    assert held == [Held("g0", A, "podresources")]
    assert problems == [
        "GPU g0: processes of allocation B2 and of no allocation compute on it; the kubelet gave it to allocation A1",
        "GPU g1: processes of allocation B2 compute on it; the kubelet gave it to nobody of ours",
    ], "g2 is used by somebody to whom the kubelet may well have given it"


def test_only_pods_that_have_not_ended_are_anybodys(monkeypatch: pytest.MonkeyPatch) -> None:
    def pod(name: str, allocation: AllocationId, phase: str, **notes: str) -> Json:
        labels = {"gpu-turnstile/allocation": allocation}
        return {"metadata": {"uid": name, "labels": labels, "annotations": notes}, "status": {"phase": phase}}

    class Server:
        def list_all(self, path: str, query: Mapping[str, str]) -> tuple[list[Json], str]:
            assert (path, query["fieldSelector"]) == ("/api/v1/pods", "spec.nodeName=n1")
            static = pod("u3", B, "Running", **{"kubernetes.io/config.hash": HASH})
            return [pod("u1", A, "Running"), pod("u2", B, "Succeeded"), static], "1"

    asks = pods_on(Server(), NODE)  # type: ignore[arg-type] # what it asks of an Api
    assert asks() == {"u1": A, HASH: B}
