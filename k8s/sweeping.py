"""What runs in the cluster for nobody is ended, and pods of ended jobs are kept for their logs, for a while."""

from collections.abc import Collection, Iterable, Sequence

from k8s.chores import Chores
from k8s.cluster import Cluster
from k8s.pods import Pod
from scheduler.core.model import AllocationId


class Sweeper:
    """Ends what runs for allocations that are not live. One thread at a time."""

    def __init__(self, cluster: Cluster, chores: Chores, finished_seconds: float) -> None:
        """`finished_seconds`: how long pods of ended jobs stay."""
        self._cluster = cluster
        self._chores = chores
        self._keep_ms = round(finished_seconds * 1000)
        self._kept_until_ms: dict[AllocationId, int] = {}

    def keep(self, allocation: AllocationId, now_ms: int) -> None:
        """Lets the pods of an allocation that ended now stay for their time."""
        self._kept_until_ms[allocation] = now_ms + self._keep_ms

    def sweep(self, found: Iterable[AllocationId], live: Collection[AllocationId], now_ms: int) -> None:
        """Ends what of the allocations found in the cluster is not live and was kept long enough."""
        for allocation in sorted(set(found).difference(live)):
            mine, theirs = self._cluster.pods_of(allocation), self._cluster.jobs_of(allocation)
            mine = [pod for pod in mine if not pod.is_kept]
            if not theirs and not mine:
                continue
            namespace = theirs[0].namespace if theirs else mine[0].namespace
            job_names = tuple(job.name for job in theirs)
            gang = theirs[0].gang if theirs else ""
            if not mine or any(pod.usage is not None or pod.finish is None for pod in mine):
                self._chores.end(namespace, job_names, gang, mine)
            elif self._keep_until(allocation, mine) <= now_ms:
                self._chores.end(namespace, job_names, gang, mine)
                self._kept_until_ms.pop(allocation, None)

    def _keep_until(self, allocation: AllocationId, pods: Sequence[Pod]) -> int:
        ended_ms = max((pod.finish.at_ms or 0) if pod.finish is not None else 0 for pod in pods)
        return self._kept_until_ms.get(allocation, ended_ms + self._keep_ms)
