"""PodResources over a real gRPC server on a unix socket of the test's own, and the join with pods' labels."""

from collections.abc import Iterator, Mapping
from concurrent import futures
from pathlib import Path
from typing import Any

import pytest

grpc = pytest.importorskip("grpc")

from k8s.podresources import (  # noqa: E402
    LOOK_AGAIN_MS,
    Kubelet,
    KubeletProblem,
    PodRef,
    PodResourcesWitness,
    podresources_messages,
)
from scheduler.clock import ManualClock  # noqa: E402
from scheduler.core.model import AllocationId, NodeName  # noqa: E402

GPU = "nvidia.com/gpu"


class FakeKubelet:
    """Serves PodResources `List` from what a test says: pod, resource, device ids."""

    def __init__(self, socket: Path) -> None:
        self.held: list[tuple[str, str, tuple[str, ...]]] = []
        self.hangs = False
        self._request, self._answer = podresources_messages()
        self._server = grpc.server(futures.ThreadPoolExecutor(2))
        method = grpc.unary_unary_rpc_method_handler(
            self._list,
            request_deserializer=self._request.FromString,
            response_serializer=lambda message: message.SerializeToString(),
        )
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("v1.PodResourcesLister", {"List": method}),)
        )
        self._server.add_insecure_port(f"unix://{socket}")
        self._server.start()

    def _list(self, _request: Any, context: Any) -> Any:
        if self.hangs:
            context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the kubelet sleeps")
        answer = self._answer()
        for pod, resource, ids in self.held:
            row = answer.pod_resources.add(name=pod, namespace="acme")
            container = row.containers.add(name="job")
            container.devices.add(resource_name=resource, device_ids=ids)
        return answer

    def close(self) -> None:
        self._server.stop(None).wait(10)


class Owners:
    """The API server's answer, and how often it was asked."""

    def __init__(self) -> None:
        self.pods: dict[PodRef, AllocationId | None] = {}
        self.asked = 0

    def __call__(self) -> Mapping[PodRef, AllocationId | None]:
        self.asked += 1
        return dict(self.pods)

    def has(self, pod: str, allocation: str | None) -> None:
        self.pods[PodRef("acme", pod)] = None if allocation is None else AllocationId(allocation)


class Rig:
    def __init__(self, socket: Path) -> None:
        self.kubelet, self.owners, self.clock = FakeKubelet(socket), Owners(), ManualClock()
        self.witness = PodResourcesWitness(NodeName("n1"), Kubelet(str(socket)), self.owners, self.clock)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path / "k.sock")
    yield made
    made.witness.close()
    made.kubelet.close()


def test_each_device_of_our_pods_is_its_allocations_and_those_of_others_are_nobodys(rig: Rig) -> None:
    rig.owners.has("ours", "A1")
    rig.kubelet.held = [
        ("ours", GPU, ("GPU-0", "GPU-1")),
        ("foreign", GPU, ("GPU-2",)),
        ("ours", "example.com/nic", ("nic-0",)),
        ("ours", "nvidia.com/mig-3g.40gb", ("MIG-7",)),
    ]
    assert rig.witness.last_seen_ms(NodeName("n1")) is None
    assert rig.witness.holders() == {"GPU-0": "A1", "GPU-1": "A1", "MIG-7": "A1"}
    assert rig.witness.last_seen_ms(NodeName("n1")) == rig.clock.now_ms()
    assert rig.witness.last_seen_ms(NodeName("n2")) is None


def test_the_api_server_is_asked_once_a_pod_and_about_strangers_again_after_a_minute(rig: Rig) -> None:
    rig.kubelet.held = [("late", GPU, ("GPU-0",))]
    for _ in range(5):
        assert rig.witness.holders() == {}
    assert rig.owners.asked == 1
    rig.owners.has("late", "A1")
    rig.clock.advance(milliseconds=LOOK_AGAIN_MS)
    for _ in range(5):
        assert rig.witness.holders() == {"GPU-0": "A1"}
    assert rig.owners.asked == 2
    rig.kubelet.held.append(("next", GPU, ("GPU-1",)))
    rig.witness.holders()
    assert rig.owners.asked == 3


def test_a_pod_that_has_ended_holds_nothing_though_the_kubelet_still_lists_it(rig: Rig) -> None:
    rig.owners.has("old", "A1")
    rig.kubelet.held = [("old", GPU, ("GPU-0",))]
    assert rig.witness.holders() == {"GPU-0": "A1"}
    rig.owners.has("old", None)
    rig.owners.has("new", "A2")
    rig.kubelet.held = [("new", GPU, ("GPU-0",)), ("old", GPU, ("GPU-0",))]
    assert rig.witness.holders() == {"GPU-0": "A2"}


def test_a_kubelet_that_is_away_or_slow_is_told_in_words_and_heard_again(tmp_path: Path) -> None:
    socket = tmp_path / "k.sock"
    asking = Kubelet(str(socket), timeout_seconds=0.5)
    with pytest.raises(KubeletProblem, match="does the kubelet run, and is the folder mounted"):
        asking.held()
    asking.close()
    served = FakeKubelet(socket)
    again = Kubelet(str(socket))
    assert again.held() == ()
    served.hangs = True
    with pytest.raises(KubeletProblem, match="no answer within 5 s"):
        again.held()
    again.close()
    served.close()


def test_a_kubelet_without_podresources_is_told_what_it_needs(tmp_path: Path) -> None:
    server = grpc.server(futures.ThreadPoolExecutor(1))
    server.add_insecure_port(f"unix://{tmp_path / 'k.sock'}")
    server.start()
    asking = Kubelet(str(tmp_path / "k.sock"))
    with pytest.raises(KubeletProblem, match=r"Kubernetes 1\.20"):
        asking.held()
    asking.close()
    server.stop(None).wait(10)
