"""What must become of runs: why each must end, or let ranks leave, and that the cluster does it."""

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial

from k8s.chores import Chores
from k8s.cluster import Cluster, OurJob
from k8s.crew import Crew
from k8s.ending import Ender
from k8s.nodes import Machine
from k8s.options import TimeOptions
from k8s.problems import KubernetesProblem
from k8s.runs import Run, Stop
from k8s.seats import DESERTED, Seats
from k8s.shrinking import due_to_leave, try_to_shrink
from scheduler.core.model import AllocationId, EndReason
from scheduler.executor import ExecutorError

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class View:
    """The cluster as it is for one look at all runs."""

    now_ms: int
    machines: dict[str, Machine]


class Judge:
    """Looks at runs, asks the server for ends, and sees them come. One thread at a time."""

    def __init__(self, cluster: Cluster, ender: Ender, chores: Chores, seats: Seats, times: TimeOptions) -> None:
        self._cluster = cluster
        self._ender = ender
        self._chores = chores
        self._seats = seats
        self._times = times

    def look(self, run: Run, view: View) -> None:
        """Finds out why a run must end or let ranks leave, if it must. Raises KubernetesProblem."""
        if run.end is not None or (not run.is_created and run.stop is None):
            return
        for place, node in run.given_up(view.machines, view.now_ms, self._times):
            place.lost_ms = self._ender.last_sign_ms(node, place.seen_ms, run)
            lost = Stop(EndReason.NODE_LOST, 0.0, view.now_ms, f"node {node} was lost")
            if place.pod.rank < run.least and run.stop is None:
                run.stop = lost
            elif place.pod.rank >= run.least and run.leaving is None:
                run.leaving = replace(lost, grace_seconds=run.order.spec.grace_seconds)
        jobs = self._cluster.jobs_of(run.order.allocation.id)
        self._look_at_surplus(run, view, jobs)
        if run.stop is None:
            run.stop = run.due(view.now_ms, view.machines, self._times)
            if run.stop is not None and run.stop.reason is EndReason.CANCELLED:
                self._ender.blame_removed_node(run.order.allocation.grants[: run.staying], run.stop)
        is_empty = run.order.spec.is_terminal and run.started_ms() is not None
        if run.stop is None and is_empty and self._seats.deserted(run.order.allocation.id):
            run.stop = Stop(EndReason.CANCELLED, run.order.spec.grace_seconds, view.now_ms, DESERTED)
        if run.stop is None and any(job.is_deleting for job in jobs if job.surplus is None):
            words = "its Job was deleted in Kubernetes, by hand or by another controller"
            run.stop = Stop(EndReason.CANCELLED, run.order.spec.grace_seconds, view.now_ms, words)

    def _look_at_surplus(self, run: Run, view: View, jobs: Sequence[OurJob]) -> None:
        """Finds out whether the ranks beyond the least must leave."""
        own = run.order.surplus
        is_job_deleted = any(job.is_deleting for job in jobs if job.surplus is not None and job.surplus == own)
        stop = due_to_leave(run, view.now_ms, view.machines, self._times, is_job_deleted=is_job_deleted)
        if stop is not None:
            run.leaving = stop
            if stop.reason is EndReason.CANCELLED:
                self._ender.blame_removed_node(run.order.allocation.grants[run.least :], stop)

    def carry_out(self, runs: Collection[Run], crew: Crew) -> set[AllocationId]:
        """Asks the server to end what is to be stopped, all of it side by side: a node may take a hundred along.

        Returns for what it was asked; the others are to be asked for again.
        """
        asked: set[AllocationId] = set()
        ending = [(run, self._ender.end) for run in runs if run.stop is not None and run.end is None]
        ending += [
            (run, self._ender.let_leave)
            for run in runs
            if run.stop is None
            and run.end is None
            and run.leaving is not None
            and run.shrunk is None
            and run.is_created
        ]
        for (run, _), outcome in zip(ending, crew.each([partial(end, run) for run, end in ending]), strict=True):
            if isinstance(outcome, ExecutorError):
                _log.warning("allocation %s is stopped later: %s", run.order.allocation.id, outcome)
            else:
                asked.add(run.order.allocation.id)
        return asked

    def try_to_end(self, run: Run, now_ms: int) -> None:
        """Tells the end of a run, or of its ranks that leave, if all of them are over."""
        if run.end is not None or (not run.is_created and run.stop is None):
            return
        for pod in run.doubles():
            try:
                self._chores.delete_pod(pod, 0.0)
            except KubernetesProblem as problem:
                _log.warning("pod %s is deleted later: %s", pod.name, problem)
        # First: a gang that ends before anybody heard of its loss is not billed for what was lost.
        try_to_shrink(run, now_ms)
        run.try_to_end(now_ms)
