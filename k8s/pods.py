"""What a pod tells: whose it is, what it takes of its node, and how it began and ended. Pure.

The end of a run is what the pod's containers say, not what a Job's condition says: the controller manager lags, and
stamps its own time. Times in a pod are whole seconds of the node's clock; callers clamp them to what they know.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from k8s import names
from k8s.api import Json
from k8s.quantity import milli, whole
from scheduler.core.model import AllocationId, EndReason

_HOPELESS_IMAGE = frozenset({"InvalidImageName", "ErrImageNeverPull"})
_IMAGE = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "RegistryUnavailable", "ImageInspectError", "SignatureValidationFailed"}
)
_CANNOT_RUN = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})
_START_FAILURES = frozenset({"ContainerCannotRun", "StartError", "CreateContainerError"})


@dataclass(frozen=True, slots=True)
class Usage:
    """What a pod takes of its node while it is there."""

    node: str
    devices: Mapping[str, int]
    """By extended resource: GPUs, MIG instances."""
    cpu_millicores: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Finish:
    """How a pod's containers ended. `at_ms` is None where nobody wrote it down; `exit_code` too."""

    at_ms: int | None
    exit_code: int | None
    reason: EndReason | None
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a pod does not start. `is_final` when waiting would not change it."""

    reason: EndReason
    detail: str
    is_final: bool = False


@dataclass(frozen=True, slots=True)
class Pod:
    """One pod, reduced to what we act on."""

    uid: str
    namespace: str
    name: str
    usage: Usage | None
    """None before it is bound to a node, and once its containers are over."""
    created_ms: int
    allocation: AllocationId | None = None
    """None for pods of others; the rest of the fields are as they were made then."""
    rank: int = 0
    surplus: AllocationId | None = None
    """Of a rank beyond an elastic gang's least: the allocation that holds its node."""
    started_ms: int | None = None
    finish: Finish | None = None
    trouble: Trouble | None = None
    deleted_ms: int | None = None
    """When somebody asked for its deletion; None while nobody has."""
    disruption: str | None = None
    """Who takes the pod away, when the cluster says so: a drain, a taint, another pod."""
    node: str | None = None
    """Where it runs or ran; None before it is bound."""
    container: str = names.CONTAINER
    """The one whose log is the job's."""
    is_adopted: bool = False
    """Its user made it, and Turnstile let it go."""
    is_terminal: bool = False
    """Somebody sits at it: what its container writes is no log."""

    @property
    def is_kept(self) -> bool:
        """True for a user's own pod that is over: it is his to look at and to remove."""
        return self.is_adopted and self.finish is not None

    @property
    def is_deleting(self) -> bool:
        """True from the request on, until the object is gone."""
        return self.deleted_ms is not None


def reduce_pod(item: Json, installation: str) -> Pod | None:
    """Returns what matters of a pod; None for one of others that takes nothing (any more). Raises ValueError."""
    metadata, spec, status = item["metadata"], item["spec"], item.get("status") or {}
    labels = metadata.get("labels") or {}
    allocation = names.allocation_of(labels) if labels.get(names.INSTALLATION) == installation else None
    is_over = status.get("phase") in {"Succeeded", "Failed"}
    usage = None if is_over else _usage(spec)
    if allocation is None:
        if usage is None:
            return None
        return Pod(metadata["uid"], metadata.get("namespace", ""), metadata["name"], usage, 0)
    is_adopted = labels.get(names.ORIGIN) == names.ADOPTED
    container = main_container(spec) if is_adopted else names.CONTAINER
    state = _state(status, container)
    # What a container of ours says is the end. One of a user's own pod may be started again, as its policy has it.
    ended = None if is_adopted else _finish_of_container(state)
    return Pod(
        uid=metadata["uid"],
        namespace=metadata["namespace"],
        name=metadata["name"],
        usage=usage,
        created_ms=ms_of(metadata.get("creationTimestamp")) or 0,
        allocation=allocation,
        rank=_rank(metadata, labels),
        surplus=AllocationId(labels[names.SURPLUS]) if labels.get(names.SURPLUS) else None,
        started_ms=_started_ms(state),
        finish=_finish(status, state) if is_over else ended,
        trouble=None if is_over else _trouble(status, state),
        deleted_ms=_deleted_ms(metadata),
        disruption=_disruption(status),
        node=spec.get("nodeName"),
        container=container,
        is_adopted=is_adopted,
        is_terminal=not is_adopted and any(each.get("tty") for each in spec["containers"]),
    )


def main_container(spec: Json) -> str:
    """Returns the container of a user's pod that is the job: the first that asks for a device, or the first."""
    containers = spec["containers"]
    asking = (each for each in containers if any("/" in name for name in asked_of(each)))
    return str(next(asking, containers[0])["name"])


def ms_of(text: object) -> int | None:
    """Returns an API time (RFC 3339) as UTC milliseconds; None where there is none."""
    return None if not text else round(datetime.fromisoformat(str(text)).timestamp() * 1000)


def _deleted_ms(metadata: Json) -> int | None:
    """The API writes when the grace will be over; the request came that much before (metav1.ObjectMeta)."""
    ends_ms = ms_of(metadata.get("deletionTimestamp"))
    return None if ends_ms is None else ends_ms - 1000 * int(metadata.get("deletionGracePeriodSeconds") or 0)


def _usage(spec: Json) -> Usage | None:
    """Sums what the scheduler sums: containers side by side, or the largest init container where that is more."""
    node = spec.get("nodeName")
    if not node:
        return None
    together: dict[str, int] = {}
    for container in spec.get("containers") or ():
        for name, amount in asked_of(container).items():
            together[name] = together.get(name, 0) + amount
    for container in spec.get("initContainers") or ():
        for name, amount in asked_of(container).items():
            together[name] = max(together.get(name, 0), amount)
    cpu, memory = together.pop("cpu", 0), together.pop("memory", 0)
    return Usage(str(node), together, cpu, memory)


def asked_of(container: Json) -> dict[str, int]:
    """Returns what a container asks for: devices by resource, `cpu` in millicores, `memory` in bytes.

    Raises ValueError for a quantity that is none.
    """
    resources = container.get("resources") or {}
    asked = {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
    found = {name: whole(value) for name, value in asked.items() if "/" in name}
    if "cpu" in asked:
        found["cpu"] = milli(asked["cpu"])
    if "memory" in asked:
        found["memory"] = whole(asked["memory"])
    return found


def _rank(metadata: Json, labels: Mapping[str, str]) -> int:
    text = labels.get(names.RANK) or (metadata.get("annotations") or {}).get(names.COMPLETION_INDEX) or "0"
    return int(text) if str(text).isdigit() else 0


def _state(status: Json, name: str) -> Json:
    """Returns the state of the job's own container; sidecars that a cluster injects don't decide."""
    for container in status.get("containerStatuses") or ():
        if container["name"] == name:
            state: Json = container.get("state") or {}
            return state
    return {}


def _started_ms(state: Json) -> int | None:
    return ms_of((state.get("running") or state.get("terminated") or {}).get("startedAt"))


def _finish(status: Json, state: Json) -> Finish:
    """Returns the end of a pod in phase Succeeded or Failed."""
    ended = _finish_of_container(state)
    reason, message = str(status.get("reason") or ""), str(status.get("message") or "") or None
    if reason == "DeadlineExceeded":
        at_ms, code = (None, None) if ended is None else (ended.at_ms, ended.exit_code)
        return Finish(at_ms, code, EndReason.WALLTIME, message)
    if reason:
        blame, at_ms = _taken_away(reason, message or ""), None if ended is None else ended.at_ms
        return Finish(at_ms, None if ended is None else ended.exit_code, blame, f"{reason}: {message or 'no message'}")
    if ended is not None:
        return ended
    if status.get("phase") == "Succeeded":
        return Finish(None, 0, None)
    return Finish(None, None, EndReason.NODE_LOST, message or "the pod failed and its node did not say how")


def _taken_away(reason: str, message: str) -> EndReason:
    """Returns whose doing it was that the kubelet refused or ended a pod."""
    if reason == "Evicted" and ("exceeds" in message or "exceeded" in message):
        return EndReason.OOM  # it outgrew its own /dev/shm or scratch space, which its sizes said
    if reason.startswith("OutOf") or "AdmissionError" in reason:
        return EndReason.GPU_ERROR  # the devices that the node offered could not be had
    return EndReason.NODE_LOST


def _finish_of_container(state: Json) -> Finish | None:
    ended = state.get("terminated")
    if ended is None:
        return None
    code, why = int(ended.get("exitCode", 0)), str(ended.get("reason") or "")
    at_ms, said = ms_of(ended.get("finishedAt")), str(ended.get("message") or "").strip()[:500] or None
    if why == "OOMKilled":
        return Finish(at_ms, code, EndReason.OOM, said or "the kernel killed it: it outgrew its memory")
    if why in _START_FAILURES:
        return Finish(at_ms, None, EndReason.LAUNCH_FAILED, said or why)
    return Finish(at_ms, code, EndReason.EXIT_NONZERO if code else None, said if code else None)


def _trouble(status: Json, state: Json) -> Trouble | None:
    waiting = state.get("waiting") or {}
    why, said = str(waiting.get("reason") or ""), str(waiting.get("message") or "")[:500]
    if why in _HOPELESS_IMAGE or why in _IMAGE:
        return Trouble(EndReason.IMAGE_PULL, f"{why}: {said}", is_final=why in _HOPELESS_IMAGE)
    if why in _CANNOT_RUN:
        return Trouble(EndReason.LAUNCH_FAILED, f"{why}: {said}", is_final=why == "CreateContainerConfigError")
    for condition in status.get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            text = f"{condition.get('reason', 'Unschedulable')}: {condition.get('message', '')}"
            return Trouble(EndReason.REQUEUED, text[:500])
    return None


def _disruption(status: Json) -> str | None:
    for condition in status.get("conditions") or ():
        if condition["type"] == "DisruptionTarget" and condition["status"] == "True":
            return f"{condition.get('reason', 'disrupted')}: {condition.get('message', '')}"
    return None
