"""Where each rank of an allocation is now: the pod whose log is read, and that people enter. From any thread."""

from k8s.api import Api
from k8s.logkeeper import LogKeeper
from k8s.mirror import Change
from k8s.pods import Pod
from k8s.problems import NotFound, Unacceptable
from k8s.runs import Run
from scheduler.core.model import AllocationId
from scheduler.executor import EntryRefused, LogChunk

Rank = tuple[AllocationId, int]


class Places:
    """The pod of each rank; replaced entry by entry, so that another thread may look."""

    def __init__(self, api: Api, keeper: LogKeeper) -> None:
        self._api = api
        self._keeper = keeper
        self._pods: dict[Rank, Pod] = {}

    def take(self, change: Change[Pod]) -> None:
        """Takes in a pod's news; one of no allocation has no place."""
        pod = change.value
        if pod.allocation is None:
            return
        rank = (pod.allocation, pod.rank)
        known = self._pods.get(rank)
        if not change.is_gone:
            self._pods[rank] = pod
        elif known is not None and known.uid == pod.uid:
            del self._pods[rank]

    def running(self, rank: Rank) -> Pod:
        """Returns the pod of a rank that runs. Raises EntryRefused."""
        pod = self._pods.get(rank)
        if pod is None or pod.started_ms is None or pod.finish is not None:
            raise EntryRefused("its container does not run")
        return pod

    def logs(self, rank: Rank, offset: int, limit_bytes: int, run: Run | None) -> LogChunk:
        """Returns a piece of a rank's output: as kept, or else read from its kubelet through the API server.

        Raises KeyError for a rank without a pod, which is also what a pod that was removed is. The API counts from the
        beginning only, so the cost grows with `offset`. `run` is the allocation's, while it is live.
        """
        kept = self._keeper.kept(*rank, offset, limit_bytes)
        if kept is not None:
            return kept
        pod = self._pods.get(rank)
        if pod is None:
            if run is not None and rank[1] < run.size:
                return LogChunk(b"", offset, is_complete=run.end is not None)
            raise KeyError(f"no log of rank {rank[1]} of allocation {rank[0]}")
        is_over = pod.finish is not None
        if pod.is_terminal:
            return LogChunk(b"", offset, is_over)
        path = f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}/log"
        query: dict[str, str | int] = {"container": pod.container, "limitBytes": offset + limit_bytes}
        try:
            data = self._api.text(path, query, offset + limit_bytes)[offset:]
        except NotFound:
            raise KeyError(f"the pod of rank {rank[1]} of allocation {rank[0]} is gone, and its log") from None
        except Unacceptable:
            return LogChunk(b"", offset, is_complete=is_over)  # its container has not started
        return LogChunk(data, offset + len(data), is_over and len(data) < limit_bytes)
