"""Which allocation holds which GPU of this node: the kubelet's PodResources API, joined with our pods' labels.

The kubelet chooses the devices of a container and says which over gRPC on a unix socket (PodResources v1, `List`). It
names pods by namespace and name; whose pods they are stands in their labels, which are asked of the API server when a
pod is seen for the first time, so that a node costs it a request a pod and not one a look. That a pod is listed does
not say that it runs: one that has ended may be listed until it is removed, and then holds nothing here.

The only import of grpc and protobuf, which come with the extra `kubernetes-agent`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from k8s.api import Api
from k8s.names import ALLOCATION
from scheduler.clock import Clock
from scheduler.core.model import AllocationId, NodeName
from scheduler.executor import DeviceWitness, ExecutorError

DEFAULT_SOCKET = "/var/lib/kubelet/pod-resources/kubelet.sock"
RESOURCE_PREFIX = "nvidia.com/"
"""Extended resources whose device ids are GPUs' UUIDs: `nvidia.com/gpu` and `nvidia.com/mig-…`."""
CALL_SECONDS = 5.0
"""The kubelet answers in milliseconds; one that does not in this time is in trouble itself."""
LOOK_AGAIN_MS = 60_000
"""After which a pod without a label of ours is asked about again: the API server's cache may have been behind."""
LARGEST_ANSWER_BYTES = 16 * 1024 * 1024
"""gRPC's default of 4 MB is what 10,000 pods need; kubelets are capped at a few hundred."""
_METHOD = "/v1.PodResourcesLister/List"
_ENDED = frozenset({"Succeeded", "Failed"})


@dataclass(frozen=True, slots=True, order=True)
class PodRef:
    """A pod of this node, as the kubelet names it."""

    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class HeldDevices:
    """The devices of one resource that a pod's container holds."""

    pod: PodRef
    container: str
    resource: str
    device_ids: tuple[str, ...]


class KubeletProblem(ExecutorError):
    """The kubelet does not say who holds what; the message says why, and what to look at."""


class PodOwners(Protocol):
    """Whose pods there are on this node."""

    def __call__(self) -> Mapping[PodRef, AllocationId | None]:
        """Returns the pods of allocations; None for one that has ended. Raises ExecutorError."""
        ...


def _field(message: Any, number: int, name: str, *, of: str | None = None, is_many: bool = False) -> None:
    kinds = descriptor_pb2.FieldDescriptorProto
    field = message.field.add(name=name, number=number)
    field.label = kinds.LABEL_REPEATED if is_many else kinds.LABEL_OPTIONAL
    field.type = kinds.TYPE_STRING if of is None else kinds.TYPE_MESSAGE
    if of is not None:
        field.type_name = f".v1.{of}"


def podresources_messages() -> tuple[Any, Any]:
    """Returns the message classes of `List`'s request and answer, as far as they are read here.

    Made from the field numbers of the published v1 API (k8s.io/kubelet/pkg/apis/podresources/v1/api.proto), which never
    change; fields that newer kubelets add are skipped by protobuf's own rules.
    """
    file = descriptor_pb2.FileDescriptorProto(name="turnstile/podresources.proto", package="v1", syntax="proto3")
    file.message_type.add(name="ListPodResourcesRequest")
    answer = file.message_type.add(name="ListPodResourcesResponse")
    _field(answer, 1, "pod_resources", of="PodResources", is_many=True)
    pod = file.message_type.add(name="PodResources")
    _field(pod, 1, "name")
    _field(pod, 2, "namespace")
    _field(pod, 3, "containers", of="ContainerResources", is_many=True)
    container = file.message_type.add(name="ContainerResources")
    _field(container, 1, "name")
    _field(container, 2, "devices", of="ContainerDevices", is_many=True)
    devices = file.message_type.add(name="ContainerDevices")
    _field(devices, 1, "resource_name")
    _field(devices, 2, "device_ids", is_many=True)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)  # type: ignore[no-untyped-call, unused-ignore]
    names = ("v1.ListPodResourcesRequest", "v1.ListPodResourcesResponse")
    request, response = (message_factory.GetMessageClass(pool.FindMessageTypeByName(name)) for name in names)
    return request, response


class Kubelet:
    """Asks the kubelet of this node. Keeps one connection, which gRPC mends by itself. For one thread at a time."""

    def __init__(self, socket: str = DEFAULT_SOCKET, timeout_seconds: float = CALL_SECONDS) -> None:
        self._socket = socket
        self._timeout_seconds = timeout_seconds
        request, answer = podresources_messages()
        limits = [("grpc.max_receive_message_length", LARGEST_ANSWER_BYTES)]
        self._channel = grpc.insecure_channel(f"unix://{socket}", options=limits)
        self._request = request()
        self._list = self._channel.unary_unary(
            _METHOD, request_serializer=request.SerializeToString, response_deserializer=answer.FromString
        )

    def held(self) -> tuple[HeldDevices, ...]:
        """Returns what containers hold, in the kubelet's order. Raises KubeletProblem."""
        try:
            answer = self._list(self._request, timeout=self._timeout_seconds)
        except grpc.RpcError as problem:
            raise KubeletProblem(self._words(problem)) from problem
        return tuple(
            HeldDevices(
                PodRef(pod.namespace, pod.name), container.name, devices.resource_name, tuple(devices.device_ids)
            )
            for pod in answer.pod_resources
            for container in pod.containers
            for devices in container.devices
        )

    def close(self) -> None:
        """Closes the connection."""
        self._channel.close()

    def _words(self, problem: grpc.RpcError) -> str:
        # What is raised is an RpcError and a Call at once; the stubs know them as strangers to each other.
        code: grpc.StatusCode | None = getattr(problem, "code", lambda: None)()
        where = f"the kubelet's socket {self._socket}"
        if code is grpc.StatusCode.UNAVAILABLE:
            return f"{where} does not answer: does the kubelet run, and is the folder mounted into this container?"
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return f"{where} gave no answer within {self._timeout_seconds:g} s; look at the kubelet's log"
        if code is grpc.StatusCode.UNIMPLEMENTED:
            return f"{where} does not serve PodResources v1; it needs Kubernetes 1.20 or later"
        return f"{where} answered {code.name if code is not None else type(problem).__name__}"


class PodResourcesWitness(DeviceWitness):
    """Tells which allocation holds which GPU of one node. For one thread at a time."""

    def __init__(self, node: NodeName, kubelet: Kubelet, owners: PodOwners, clock: Clock) -> None:
        self._node = node
        self._kubelet = kubelet
        self._owners = owners
        self._clock = clock
        self._known: dict[PodRef, AllocationId | None] = {}
        self._asked_ms = 0
        self._seen_ms: int | None = None

    def holders(self) -> Mapping[str, AllocationId]:
        """Returns device id to allocation, without pods of others. Raises KubeletProblem, ExecutorError."""
        held = [each for each in self._kubelet.held() if each.resource.startswith(RESOURCE_PREFIX)]
        pods = {each.pod for each in held}
        if self._must_ask(pods, held):
            found = self._owners()
            self._known = {pod: found.get(pod) for pod in pods}
            self._asked_ms = self._clock.now_ms()
        self._known = {pod: owner for pod, owner in self._known.items() if pod in pods}
        self._seen_ms = self._clock.now_ms()
        holders: dict[str, AllocationId] = {}
        for each in held:
            owner = self._known[each.pod]
            if owner is not None:
                holders.update(dict.fromkeys(each.device_ids, owner))
        return holders

    def last_seen_ms(self, node: NodeName) -> int | None:
        """Returns when the kubelet of this node last answered; None for other nodes."""
        return self._seen_ms if node == self._node else None

    def _must_ask(self, pods: set[PodRef], held: list[HeldDevices]) -> bool:
        """True when a pod is new, a device is listed twice (one of the two has ended), or strangers are due again."""
        if not pods <= self._known.keys():
            return True
        claimed = [device for each in held if self._known[each.pod] is not None for device in each.device_ids]
        if len(set(claimed)) < len(claimed):
            return True
        is_due = self._clock.now_ms() - self._asked_ms >= LOOK_AGAIN_MS
        return is_due and any(self._known[pod] is None for pod in pods)

    def close(self) -> None:
        """Closes the connection to the kubelet."""
        self._kubelet.close()


def owners_on(api: Api, node: NodeName) -> Callable[[], Mapping[PodRef, AllocationId | None]]:
    """Returns what asks the API server for a node's pods of ours. One request, answered from the server's cache."""

    def owners() -> Mapping[PodRef, AllocationId | None]:
        query = {"fieldSelector": f"spec.nodeName={node}", "labelSelector": ALLOCATION, "resourceVersion": "0"}
        pods, _ = api.list_all("/api/v1/pods", query)
        found: dict[PodRef, AllocationId | None] = {}
        for pod in pods:
            metadata = pod["metadata"]
            has_ended = (pod.get("status") or {}).get("phase") in _ENDED
            allocation = AllocationId(metadata["labels"][ALLOCATION])
            found[PodRef(metadata["namespace"], metadata["name"])] = None if has_ended else allocation
        return found

    return owners
