"""What we know of a cluster: mirrors of its nodes, its pods, and our Jobs, and whether they are to be trusted now."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from k8s import names
from k8s.api import Api, Json
from k8s.mirror import Change, Mirror, MirrorLimits
from k8s.nodes import Machine, reduce_node, returned_ms
from k8s.options import Options
from k8s.pods import Pod, reduce_pod
from k8s.problems import Unreachable
from k8s.runs import Run
from scheduler.core.model import AllocationId, NodeAvailability

PATIENCE_SECONDS = 3.0
"""A mirror that hears nothing for longer is told of: one whose watch is cut and resumed is nobody's business."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class OurJob:
    """One Job of ours, reduced to what we act on."""

    namespace: str
    name: str
    allocation: AllocationId
    gang: str
    """The name of the allocation's Service."""
    surplus: AllocationId | None
    """Of a rank beyond an elastic gang's least: the allocation that holds its node."""
    is_deleting: bool
    deadline_seconds: int | None = None
    """Its `activeDeadlineSeconds`."""


class Cluster:
    """Starts its mirrors on the first need, so that a daemon that only follows asks for nothing."""

    def __init__(self, api: Api, options: Options, limits: MirrorLimits | None = None) -> None:
        self._listeners: list[Callable[[], None]] = []
        self._is_started = False
        self._silent: set[str] = set()
        """Nodes that were last seen down; like `_returned_ms` touched by the nodes' own watch alone."""
        self._returned_ms: dict[str, int] = {}
        self._options = options
        nodes_query = {"labelSelector": options.nodes.node_selector} if options.nodes.node_selector else None
        self.nodes: Mirror[Machine] = Mirror(api, "/api/v1/nodes", self._reduce_node, self._tell, nodes_query, limits)
        self.pods: Mirror[Pod] = Mirror(
            api, "/api/v1/pods", self._reduce_pod, self._tell, None, limits, lambda pod: pod.allocation
        )
        ours = {"labelSelector": names.selector(options.installation)}
        self.jobs: Mirror[OurJob] = Mirror(
            api, "/apis/batch/v1/jobs", _reduce_job, self._tell, ours, limits, lambda job: job.allocation
        )
        self._mirrors: tuple[Mirror[Machine] | Mirror[Pod] | Mirror[OurJob], ...] = (self.nodes, self.pods, self.jobs)

    def on_change(self, listener: Callable[[], None]) -> None:
        """Calls `listener` (quick, from a watch's thread) whenever something changed."""
        self._listeners.append(listener)

    def start(self, timeout_seconds: float) -> None:
        """Starts the mirrors once, and waits for their first lists. Raises KubernetesProblem when they don't come."""
        if not self._is_started:
            self._is_started = True
            for mirror in self._mirrors:
                mirror.start()
        for mirror in self._mirrors:
            if not mirror.is_synced and not mirror.wait_until_synced(timeout_seconds):
                raise mirror.failure or Unreachable(f"no list of {mirror.path} within {timeout_seconds:g} s")

    def check(self) -> None:
        """Raises KubernetesProblem when what is known may be stale."""
        for mirror in self._mirrors:
            if mirror.failure is not None and mirror.silent_seconds() > PATIENCE_SECONDS:
                raise mirror.failure

    def silent_seconds(self) -> float:
        """Returns for how long the API server has not answered the worst of the mirrors."""
        return max(mirror.silent_seconds() for mirror in self._mirrors)

    def stop(self) -> None:
        """Ends the watches."""
        for mirror in self._mirrors:
            mirror.stop()

    def machines(self) -> dict[str, Machine]:
        """Returns the nodes, by name; those that offer no GPU too."""
        return {machine.name: machine for machine in self.nodes.objects().values()}

    def jobs_of(self, allocation: AllocationId) -> list[OurJob]:
        """Returns an allocation's Jobs."""
        return self.jobs.of(allocation)

    def pods_of(self, allocation: AllocationId) -> list[Pod]:
        """Returns an allocation's pods."""
        return self.pods.of(allocation)

    def allocations(self) -> set[AllocationId]:
        """Returns the allocations that have a Job or a pod."""
        groups = {*self.jobs.groups(), *self.pods.groups()}
        return {AllocationId(group) for group in groups if isinstance(group, str)}

    def replay(self, pods: Iterable[Pod], run: Run, now_ms: int) -> None:
        """Tells a run that is taken up what its pods are now, the oldest of a rank first."""
        for pod in sorted(pods, key=lambda pod: (pod.created_ms, pod.uid)):
            run.take(Change(pod.uid, pod), now_ms)

    def _reduce_node(self, item: Json) -> Machine:
        """Remembers when a node was last heard again: one that is back must not look as if it had never been away."""
        machine = reduce_node(item, self._options.nodes)
        if machine.availability is NodeAvailability.DOWN:
            self._silent.add(machine.name)
            return machine
        if machine.name in self._silent:
            self._silent.discard(machine.name)
            self._returned_ms[machine.name] = returned_ms(item) or 0
        seen_ms = self._returned_ms.get(machine.name)
        if seen_ms is None:
            return machine
        return replace(machine, returned_ms=max(seen_ms, machine.returned_ms or 0))

    def _reduce_pod(self, item: Json) -> Pod | None:
        return reduce_pod(item, self._options.installation)

    def _tell(self) -> None:
        for listener in self._listeners:
            listener()


def _reduce_job(item: Json) -> OurJob | None:
    metadata = item["metadata"]
    labels = metadata.get("labels") or {}
    allocation = names.allocation_of(labels)
    if allocation is None:
        return None
    gang = f"job-{labels.get(names.JOB, '')}-{allocation.lower()}"
    deadline_seconds = (item.get("spec") or {}).get("activeDeadlineSeconds")
    is_deleting = bool(metadata.get("deletionTimestamp"))
    surplus = AllocationId(labels[names.SURPLUS]) if labels.get(names.SURPLUS) else None
    return OurJob(metadata["namespace"], metadata["name"], allocation, gang, surplus, is_deleting, deadline_seconds)
