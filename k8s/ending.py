"""Ends runs in the cluster, whole or their surplus ranks alone: Jobs first, so that no pod is made, then the pods.

What a pod has written is read while it ends, because its log goes with it.
"""

import logging
from collections.abc import Iterable, Sequence
from itertools import chain

from k8s import names
from k8s.api import Api
from k8s.chores import Chores
from k8s.cluster import Cluster
from k8s.launching import Launcher
from k8s.logkeeper import LogKeeper
from k8s.manifests import job_names
from k8s.pods import ms_of
from k8s.problems import NotFound, Rejected
from k8s.runs import RankPod, Run, Stop
from k8s.shrinking import pods_to_delete, surplus_places
from scheduler.clock import Clock
from scheduler.core.model import EndReason, Grant

LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"

_log = logging.getLogger(__name__)


class Ender:
    """Asks the server for ends. Several threads may, each for another run."""

    def __init__(
        self, api: Api, clock: Clock, cluster: Cluster, launcher: Launcher, chores: Chores, keeper: LogKeeper
    ) -> None:
        self._api = api
        self._clock = clock
        self._cluster = cluster
        self._launcher = launcher
        self._chores = chores
        self._keeper = keeper

    def end(self, run: Run) -> None:
        """Deletes a run's Jobs, and then its pods, with the grace. Raises KubernetesProblem."""
        assert run.stop is not None, "it is to be stopped"
        if not run.are_jobs_deleted:
            self._follow(run, run.ranks.values(), run.stop)
            for name in self.job_names(run):
                self._chores.delete_job(run.namespace, name)
            run.are_jobs_deleted = True
        pods = run.pods_to_delete()
        if run.stop.is_hurried:
            pods = [place.pod for place in run.ranks.values() if not place.is_over] + list(run.extra.values())
        for pod in pods:
            self._chores.delete_pod(pod, run.stop.grace_seconds)
        run.stop.is_hurried = False

    def let_leave(self, run: Run) -> None:
        """Deletes the Jobs and the pods of the ranks that leave. Raises KubernetesProblem."""
        assert run.leaving is not None, "they are to leave"
        if not run.are_surplus_jobs_deleted:
            self._follow(run, surplus_places(run), run.leaving)
            for name in surplus_jobs(run):
                self._chores.delete_job(run.namespace, name)
            run.are_surplus_jobs_deleted = True
        for pod in pods_to_delete(run):
            self._chores.delete_pod(pod, run.leaving.grace_seconds)

    def job_names(self, run: Run) -> tuple[str, ...]:
        """Returns the names of a run's Jobs, or those that they may have."""
        return run.job_names or self._launcher.possible_jobs(run.order)

    def blame_removed_node(self, grants: Sequence[Grant], stop: Stop) -> None:
        """Pods and nodes are watched apart: a pod may be seen to go before the node that took it along."""
        for node in sorted({names.machine_of(device) for device in chain.from_iterable(g.devices for g in grants)}):
            try:
                self._api.get(f"/api/v1/nodes/{node}")
            except NotFound:
                stop.reason, stop.detail = EndReason.NODE_LOST, f"node {node} was removed from the cluster"
                return

    def last_sign_ms(self, node: str, seen_ms: int, run: Run) -> int:
        """Returns the last evidence that a lost node lived: its lease, its report, or what its pods told."""
        machine = self._cluster.machines().get(node)
        signs = [run.started_ms() or run.order.allocation.decided_ms]
        if machine is not None and machine.heartbeat_ms is not None:
            signs.append(machine.heartbeat_ms)
        try:
            renewed = self._api.get(f"{LEASES}/{node}")["spec"].get("renewTime")
            signs.append(ms_of(renewed) or 0)
        except Rejected as refusal:
            _log.info("the lease of node %s: %s", node, refusal)
        return min(max(signs), max(seen_ms, self._clock.now_ms()))

    def _follow(self, run: Run, places: Iterable[RankPod], stop: Stop) -> None:
        for place in () if run.order.spec.is_terminal else places:
            if place.pod.started_ms is not None and place.gone_ms is None and place.lost_ms is None:
                limit_bytes = run.order.spec.log_limit_bytes
                self._keeper.follow(run.order.allocation.id, place.pod, limit_bytes, stop.grace_seconds)


def surplus_jobs(run: Run) -> tuple[str, ...]:
    """Returns the names of the Jobs of the ranks beyond an elastic gang's least."""
    return job_names(run.order, is_indexed=False)[run.least :]
