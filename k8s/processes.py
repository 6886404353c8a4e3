"""Whose a process is: its cgroup names its pod by uid, and the pod's label its allocation.

The second witness of an agent, beside the kubelet's PodResources (see `podresources`). It wants the host's processes
(`hostPID`), because NVML numbers them as the host does. Paths of cgroups are as kubelets write them, for both cgroup
drivers and versions: `…/kubepods-burstable-pod1f0e…_….slice/…` and `…/kubepods/burstable/pod1f0e…-…/…`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from k8s.api import Api
from k8s.names import ALLOCATION
from scheduler.clock import Clock
from scheduler.core.model import AllocationId, NodeName
from scheduler.executor import ExecutorError

PodUid = str
LOOK_AGAIN_MS = 60_000
"""After which a pod that is nobody's is asked about again: the API server's cache may have been behind."""
_POD = re.compile(r"\bkubepods\b.*?[/-]pod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})(?=[./])")
_ENDED = frozenset({"Succeeded", "Failed"})


class ProcessesHidden(ExecutorError):
    """No process that NVML names is to be seen here."""


def pod_of(cgroups: str) -> PodUid | None:
    """Returns the uid of the pod whose `/proc/PID/cgroup` this is; None for a process of no pod."""
    found = _POD.search(cgroups)
    return None if found is None else found[1].replace("_", "-")


class CgroupWitness:
    """Tells of which allocations processes are. For one thread at a time."""

    def __init__(self, pods: Callable[[], Mapping[PodUid, AllocationId]], clock: Clock, proc: Path) -> None:
        self._pods = pods
        self._clock = clock
        self._proc = proc
        self._known: dict[PodUid, AllocationId | None] = {}
        self._asked_ms: int | None = None

    def owners(self, process_ids: Mapping[str, Sequence[int]]) -> Mapping[str, frozenset[AllocationId | None]]:
        """Returns, by device, whose processes are there. Raises ProcessesHidden, ExecutorError."""
        asked = {pid for pids in process_ids.values() for pid in pids}
        texts = {pid: text for pid in asked if (text := self._cgroups_of(pid)) is not None}
        if asked and not texts:
            raise ProcessesHidden(
                f"none of the {len(asked)} processes on this node's GPUs is in {self._proc}: does the pod have hostPID?"
            )
        pods = {pid: pod_of(text) for pid, text in texts.items()}
        self._learn({pod for pod in pods.values() if pod is not None})
        return {
            device: frozenset(self._owner(pods[pid]) for pid in pids if pid in pods)
            for device, pids in process_ids.items()
        }

    def _cgroups_of(self, pid: int) -> str | None:
        """Returns the text; None for a process that has ended."""
        try:
            return (self._proc / str(pid) / "cgroup").read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            return None

    def _owner(self, pod: PodUid | None) -> AllocationId | None:
        return None if pod is None else self._known[pod]

    def _learn(self, pods: set[PodUid]) -> None:
        """Asks for pods that are new, and for those of nobody from time to time; forgets those that are gone."""
        now_ms = self._clock.now_ms()
        is_due = self._asked_ms is None or now_ms - self._asked_ms >= LOOK_AGAIN_MS
        if not pods <= self._known.keys() or (is_due and any(self._known[pod] is None for pod in pods)):
            found = self._pods()
            self._known = {pod: found.get(pod) for pod in pods}
            self._asked_ms = now_ms
        self._known = {pod: owner for pod, owner in self._known.items() if pod in pods}


def pods_on(api: Api, node: NodeName) -> Callable[[], Mapping[PodUid, AllocationId]]:
    """Returns what asks the API server for the uids of a node's pods of ours that have not ended."""

    def pods() -> Mapping[PodUid, AllocationId]:
        query = {"fieldSelector": f"spec.nodeName={node}", "labelSelector": ALLOCATION, "resourceVersion": "0"}
        return {
            _uid(item["metadata"]): AllocationId(item["metadata"]["labels"][ALLOCATION])
            for item in api.list_all("/api/v1/pods", query)[0]
            if (item.get("status") or {}).get("phase") not in _ENDED
        }

    return pods


def _uid(metadata: Mapping[str, object]) -> PodUid:
    """Returns the uid that cgroups bear: a static pod's is the hash that its kubelet made."""
    notes = metadata.get("annotations")
    mirrored = notes.get("kubernetes.io/config.hash") if isinstance(notes, Mapping) else None
    return str(mirrored or metadata["uid"])
