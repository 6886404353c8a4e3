"""Runs allocations as Jobs of a Kubernetes cluster: implements `scheduler.executor.Executor`.

    start ─► namespace, Service, Job(s) by name ─► pods appear in the mirror ─► Run takes their news
    observe ─► what is due (limit, failure, timeout, lost node) is ended ─► Started, Ended ─► acknowledge ─► tidied up

All that must survive is in the cluster and in the scheduler's store: this class is a cache that can be lost at any
instant, and `recover` makes it anew. Whatever of ours runs in the cluster for an allocation that is not live is deleted
on sight. Pods of ended jobs stay for a while, for their logs. What becomes of a run is
`judging`'s affair. Reading order: `start`, `observe`, `recover`.
"""

import logging
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from k8s import names
from k8s.api import Api, Json
from k8s.chores import Chores
from k8s.cluster import Cluster
from k8s.crew import Crew
from k8s.ending import Ender, surplus_jobs
from k8s.inside import Inside
from k8s.judging import Judge, View
from k8s.launching import Launcher
from k8s.logkeeper import LogKeeper
from k8s.manifests import is_meeting
from k8s.nodes import inventory
from k8s.options import Options
from k8s.places import Places
from k8s.pods import Pod
from k8s.problems import KubernetesProblem
from k8s.runs import Run, Stop
from k8s.seats import Seats
from k8s.shrinking import may_shrink, surplus_places
from k8s.sweeping import Sweeper
from scheduler.clock import Clock
from scheduler.core.model import AllocationId, EndReason, NodeAvailability
from scheduler.executor import (
    Ended,
    Entered,
    EntryRefused,
    ExecutorError,
    LogChunk,
    NodeInventory,
    Observation,
    Program,
    StartOrder,
    StartRefused,
)

AT_ONCE = 64
"""Allocations started in one go after a restart, before somebody looks up."""
SWEEP_MS = 30_000
"""Between two looks for what runs and should not, when nothing pointed at it."""
LOOK_MS = 1000
"""Between two looks at every run: how late a limit, a lost node or a timeout is noticed."""

_log = logging.getLogger(__name__)


class KubernetesExecutor:
    """One thread at a time, except `wake`, `wait_for_news` and `logs`."""

    def __init__(
        self,
        api: Api,
        clock: Clock,
        options: Options,
        keeper: LogKeeper,
        cluster: Cluster | None = None,
        adjust: Callable[[StartOrder, Json], Json] | None = None,
    ) -> None:
        self._api = api
        self._clock = clock
        self._options = options
        self._bell = threading.Event()
        self._cluster = cluster or Cluster(api, options)
        self._cluster.on_change(self._bell.set)
        self._launcher = Launcher(api, options, adjust)
        self._crew = Crew()
        self._chores = Chores(api, self._crew)
        self._keeper = keeper
        self._ender = Ender(api, clock, self._cluster, self._launcher, self._chores, keeper)
        self._inside = Inside(api)
        self._seats = Seats(self._inside, clock, self._bell.set)
        self._judge = Judge(self._cluster, self._ender, self._chores, self._seats, options.times)
        self._runs: dict[AllocationId, Run] = {}
        self._postponed: dict[AllocationId, StartOrder] = {}
        """Found by `recover` not to have been started (wholly): the next looks start them, some at a time."""
        self._places = Places(api, keeper)
        self._sweeper = Sweeper(self._cluster, self._chores, options.times.finished_seconds)
        self._asked: set[AllocationId] = set()
        """To be stopped, and not asked of the server yet."""
        self._has_offered = False
        self._next_sweep_ms = 0
        self._next_look_ms = 0
        self._is_recovered = False
        self._is_inventory_new = False

    # ---- what the cluster offers ----------------------------------------------------------------------------------

    def inventory(self) -> Sequence[NodeInventory]:
        """Returns the cluster's GPU nodes; draining while the API server does not answer. Raises ExecutorError."""
        cluster = self._cluster
        cluster.start(self._options.times.sync_seconds)
        orders = [*(run.order for run in self._runs.values()), *self._postponed.values()]
        held = {device for order in orders for grant in order.allocation.grants for device in grant.devices}
        usages = [
            pod.usage for pod in cluster.pods.objects().values() if pod.usage is not None and not self._is_ours(pod)
        ]
        machines = cluster.machines()
        offered = inventory(machines.values(), usages, held, self._options.nodes)
        if not offered and not self._has_offered and machines:
            raise ExecutorError(
                f"the cluster has {len(machines)} nodes and none offers {self._options.nodes.resource}: "
                "is NVIDIA's device plugin (or GPU operator) installed, and do the nodes have GPUs?"
            )
        self._has_offered = self._has_offered or bool(offered)
        if cluster.silent_seconds() >= self._options.times.outage_seconds:
            return [_unreachable(each) for each in offered]
        return offered

    def _is_ours(self, pod: Pod) -> bool:
        """Tells whether what a pod takes is what a live allocation holds; surplus that left holds nothing any more."""
        run = None if pod.allocation is None else self._runs.get(pod.allocation)
        return run is not None and run.is_own(pod)

    def take_inventory_news(self) -> bool:
        """Tells, once, whether nodes or what others take of them changed since the last call. From any thread."""
        is_new, self._is_inventory_new = self._is_inventory_new, False
        return is_new

    # ---- starting and stopping ------------------------------------------------------------------------------------

    def start(self, order: StartOrder) -> None:
        """Makes the allocation's Jobs, or does nothing if they are there. Raises StartRefused, ExecutorError."""
        for problem in self.start_many([order]).values():
            raise problem

    def start_many(self, orders: Sequence[StartOrder]) -> Mapping[AllocationId, ExecutorError]:
        """Makes the Jobs of several allocations side by side; returns the problems of those that have one."""
        failed: dict[AllocationId, ExecutorError] = {}
        runs: list[Run] = []
        for order in orders:
            try:
                runs += self._to_launch(order)
            except StartRefused as refusal:
                failed[order.allocation.id] = refusal
        for run, outcome in zip(
            runs, self._crew.each([partial(self._launcher.launch, run.order) for run in runs]), strict=True
        ):
            if not isinstance(outcome, ExecutorError):
                run.job_names, run.is_created = outcome, True
                self._bell.set()
                continue
            order = run.order
            failed[order.allocation.id] = outcome
            if isinstance(outcome, StartRefused):
                del self._runs[order.allocation.id]
                if not order.spec.adopts:  # those of a gang that were let go are ended as pods of no allocation
                    jobs = self._launcher.possible_jobs(order)
                    self._chores.discard(run.namespace, jobs, names.gang_name(order.allocation))
        return failed

    def _to_launch(self, order: StartOrder) -> list[Run]:
        """Returns the run, if its Jobs are still to be made. Raises StartRefused."""
        run = self._runs.get(order.allocation.id)
        if run is not None and (run.is_created or run.end is not None or run.stop is not None):
            return []
        self._launcher.check(order)
        if run is None:
            # Known before it is made: a Job that appears must not be taken for one that nobody wants.
            run = self._runs[order.allocation.id] = Run(order, self._launcher.namespace(order))
        return [run]

    def stop(self, allocation: AllocationId, grace_seconds: float, reason: EndReason) -> None:
        """Has the Jobs deleted, and the pods with the grace; a second stop can only shorten it.

        The next `observe` asks the server, for all that are to be stopped side by side, and again until it is done.
        """
        order = self._postponed.pop(allocation, None)
        if order is not None:
            run = self._runs[allocation] = Run(order, self._launcher.namespace(order), is_created=True)
            run.job_names = self._launcher.possible_jobs(order)
        else:
            known = self._runs.get(allocation)
            if known is None or known.end is not None:
                return
            run = known
        if run.stop is None:
            run.stop = Stop(reason, grace_seconds, self._clock.now_ms())
        elif grace_seconds < run.stop.grace_seconds:
            run.stop.grace_seconds = grace_seconds
            run.stop.is_hurried = True
        self._asked.add(allocation)
        self._bell.set()

    def shrink(self, allocation: AllocationId, nodes: int, grace_seconds: float, reason: EndReason) -> None:
        """Has the Jobs of the ranks from `nodes` on deleted, and their pods with the grace; returns at once.

        Of a gang that is still to be started all Jobs are made first: then what they are does not depend on when.
        """
        run, order = self._runs.get(allocation), self._postponed.get(allocation)
        if run is None and order is not None:
            run = self._runs[allocation] = Run(order, self._launcher.namespace(order))
        if run is None or not may_shrink(run):
            return
        assert nodes == run.least, "an elastic gang loses all of its surplus or nothing"
        run.leaving = Stop(reason, grace_seconds, self._clock.now_ms())
        self._asked.add(allocation)
        self._bell.set()

    def acknowledge_shrunk(self, allocation: AllocationId) -> None:
        """Forgets the ranks that left; their Jobs go, with their pods."""
        run = self._runs.get(allocation)
        if run is None or run.shrunk is None:
            return
        for place in () if run.order.spec.is_terminal else surplus_places(run):
            self._keeper.keep(allocation, place.pod, run.order.spec.log_limit_bytes)
        self._chores.discard(run.namespace, surplus_jobs(run), "")
        run.lose_surplus()

    def extend(self, allocation: AllocationId, time_limit_ms: int) -> None:
        """Keeps another limit from now on, and moves the Jobs' own backstop with it. Raises ExecutorError."""
        order = self._postponed.get(allocation)
        if order is not None:
            self._postponed[allocation] = _limited(order, time_limit_ms)
        run = self._runs.get(allocation)
        if run is None or run.end is not None or run.stop is not None:
            return
        run.order = _limited(run.order, time_limit_ms)
        self._bell.set()
        for job in self._cluster.jobs_of(allocation):
            self._launcher.move_backstop(run.order, job.name, job.deadline_seconds)

    def acknowledge(self, allocation: AllocationId) -> None:
        """Forgets the allocation; its pods stay for their logs, unless they run."""
        run = self._runs.pop(allocation, None)
        self._postponed.pop(allocation, None)
        self._seats.forget(allocation)
        self._asked.discard(allocation)
        if run is None:
            return
        is_ours = not run.order.spec.adopts
        gang = names.gang_name(run.order.allocation) if is_meeting(run.order) and is_ours else ""
        if run.end is None or run.stop is not None:
            self._chores.end(run.namespace, self._ender.job_names(run), gang, self._cluster.pods_of(allocation))
        else:
            for place in () if run.order.spec.is_terminal else run.ranks.values():
                self._keeper.keep(allocation, place.pod, run.order.spec.log_limit_bytes)
            if is_ours:
                self._sweeper.keep(allocation, self._clock.now_ms())
            self._chores.release(run.namespace, self._ender.job_names(run), gang)

    # ---- what happens ---------------------------------------------------------------------------------------------

    def observe(self) -> Sequence[Observation]:
        """Takes in what the mirrors heard, ends what is due, tidies up. Raises ExecutorError while they are deaf."""
        if not self._is_recovered:
            return []
        self._cluster.check()
        now_ms = self._clock.now_ms()
        touched = self._take_changes(now_ms)
        self._start_postponed()
        news: list[Observation] = []
        runs = self._to_look_at(touched, now_ms)
        view = View(now_ms, self._cluster.machines() if runs else {})
        for run in runs:
            try:
                self._judge.look(run, view)
            except KubernetesProblem as problem:
                # One run that cannot be ended now must not hide the others; the next look tries again.
                _log.warning("allocation %s: %s", run.order.allocation.id, problem)
        self._asked -= self._judge.carry_out(runs, self._crew)
        for run in runs:
            self._judge.try_to_end(run, now_ms)
            started = run.started()
            if started is not None and run.end is None:
                news.append(started)
        if now_ms >= self._next_sweep_ms:
            self._next_sweep_ms = now_ms + SWEEP_MS
            touched = self._cluster.allocations()
        self._sweeper.sweep(touched, self._live(), now_ms)
        self._chores.work()
        news += [run.shrunk for run in self._runs.values() if run.shrunk is not None]
        return [*news, *(run.end for run in self._runs.values() if run.end is not None)]

    def recover(self, live: Sequence[StartOrder]) -> None:
        """Finds the Jobs of what is live, makes those that never were, ends what nobody holds as live."""
        self._cluster.start(self._options.times.sync_seconds)
        self._cluster.check()
        now_ms = self._clock.now_ms()
        wanted = {order.allocation.id: order for order in live}
        for allocation in [known for known in self._runs if known not in wanted]:
            self.acknowledge(allocation)
        self._postponed.clear()
        self._take_changes(now_ms)
        for allocation, order in wanted.items():
            known = self._runs.get(allocation)
            if known is not None and known.is_created:
                known.is_start_told = order.allocation.started_ms is not None
                continue
            jobs = self._cluster.jobs_of(allocation)
            former = sorted(job.name for job in jobs if job.surplus not in {None, order.surplus})
            if former:  # the daemon died between the commit of their end and its acknowledgement
                self._chores.discard(self._launcher.namespace(order), former, "")
            found = tuple(sorted(job.name for job in jobs if job.surplus in {None, order.surplus}))
            self._take_up(order, found, now_ms)
        self._is_recovered = True
        self._sweeper.sweep(self._cluster.allocations(), self._live(), now_ms)

    def wait_for_news(self, timeout_seconds: float) -> bool:
        """Sleeps until a mirror hears something, `wake` is called, time makes a run due, or the time is over."""
        due_seconds = self._due_seconds()
        if due_seconds is not None and due_seconds <= timeout_seconds:
            self._bell.wait(due_seconds)
            self._bell.clear()
            return True
        is_news = self._bell.wait(timeout_seconds)
        self._bell.clear()
        return is_news

    def wake(self) -> None:
        """Ends a `wait_for_news` of another thread, or the next one."""
        self._bell.set()

    def logs(self, allocation: AllocationId, node_rank: int, offset: int, limit_bytes: int) -> LogChunk:
        """Returns a piece of a rank's output: as kept, or else read from its kubelet through the API server.

        Raises KeyError for a rank without a pod, which is also what a pod that was removed is.
        """
        return self._places.logs((allocation, node_rank), offset, limit_bytes, self._runs.get(allocation))

    # ---- the way in -----------------------------------------------------------------------------------------------

    def enter(self, allocation: AllocationId, node_rank: int, program: Program) -> Entered:
        """Runs a program in the container of a rank. Raises EntryRefused."""
        return self._inside.enter(self._places.running((allocation, node_rank)), program)

    def attach(self, allocation: AllocationId, node_rank: int, size: tuple[int, int]) -> Entered:
        """Takes the seat at the terminal that the job was started with. Raises EntryRefused."""
        pod = self._places.running((allocation, node_rank))
        run = self._runs.get(allocation)
        if run is None or not run.order.spec.is_terminal:
            raise EntryRefused("this job has no terminal; it was not submitted by 'run --pty'")
        return self._seats.take(allocation, pod, size)

    def reach(self, allocation: AllocationId, node_rank: int, port: int) -> socket.socket:
        """Returns a connection to a port of a rank's pod. Raises EntryRefused."""
        return self._inside.reach(self._places.running((allocation, node_rank)), port)

    def forget_logs(self, before_ms: int) -> int:
        """Removes the kept logs of jobs that ended before; returns of how many allocations. Raises OSError."""
        return self._keeper.forget(before_ms)

    def close(self) -> None:
        """Ends the watches. Jobs keep running."""
        self._cluster.stop()
        self._crew.close()
        self._keeper.close()
        self._api.close()

    # ---- inside ---------------------------------------------------------------------------------------------------

    def _take_changes(self, now_ms: int) -> set[AllocationId]:
        """Hands the pods' and Jobs' news to their runs; returns the allocations that were mentioned."""
        touched: set[AllocationId] = set()
        if self._cluster.nodes.take_changes():
            self._is_inventory_new = True
        for change in self._cluster.pods.take_changes():
            pod = change.value
            self._is_inventory_new = self._is_inventory_new or pod.allocation not in self._runs
            if pod.allocation is None:
                continue
            touched.add(pod.allocation)
            run = self._runs.get(pod.allocation)
            if run is not None and pod.namespace != run.namespace:
                continue  # somebody put our labels on a pod of another tenant's
            self._places.take(change)
            if run is not None and run.end is None:
                run.take(change, now_ms)
        touched.update(change.value.allocation for change in self._cluster.jobs.take_changes())
        return touched

    def _to_look_at(self, touched: set[AllocationId], now_ms: int) -> list[Run]:
        """Returns the runs that something happened to; all of them once a second, because time happens to all."""
        if now_ms < self._next_look_ms:
            return [self._runs[allocation] for allocation in sorted((touched | self._asked) & self._runs.keys())]
        self._next_look_ms = now_ms + LOOK_MS
        return list(self._runs.values())

    def _live(self) -> set[AllocationId]:
        return self._runs.keys() | self._postponed.keys()

    def _take_up(self, order: StartOrder, found: tuple[str, ...], now_ms: int) -> None:
        """Adopts a live allocation after a restart, starts it if it never was, or says that it is gone."""
        allocation = order.allocation
        run = Run(order, self._launcher.namespace(order), is_start_told=allocation.started_ms is not None)
        pods = self._cluster.pods_of(allocation.id)
        if found or pods:
            run.job_names, run.is_created = found, True
            self._runs[allocation.id] = run
            self._cluster.replay(pods, run, now_ms)
            is_partial = len(found) < len(self._launcher.needed_jobs(order, found))
            is_partial = is_partial or (len(pods) < len(order.spec.adopts) and allocation.started_ms is None)
            if is_partial and allocation.stop_reason is None:
                run.is_created = False
                self._postponed[allocation.id] = order
        elif allocation.started_ms is not None:
            words = "its Job is gone from the cluster"
            self._runs[allocation.id] = run
            run.is_created = True
            run.end = Ended(
                allocation.id, allocation.started_ms, None, EndReason.NODE_LOST, allocation.started_ms, words
            )
        elif allocation.stop_reason is not None:
            self._runs[allocation.id] = run
            run.is_created = True
            run.end = Ended(allocation.id, now_ms, None, allocation.stop_reason)
        else:
            self._postponed[allocation.id] = order

    def _start_postponed(self) -> None:
        """Starts what `recover` found not started, some at a time; a server in trouble is asked again later."""
        orders = [self._postponed[allocation] for allocation in list(self._postponed)[:AT_ONCE]]
        if not orders:
            return
        for order in orders:
            del self._postponed[order.allocation.id]
        problems = self.start_many(orders)
        for order in orders:
            problem = problems.get(order.allocation.id)
            if isinstance(problem, StartRefused):
                self._refuse(order, problem)
            elif problem is not None:
                _log.warning("allocation %s is started later: %s", order.allocation.id, problem)
                self._postponed[order.allocation.id] = order

    def _refuse(self, order: StartOrder, refusal: StartRefused) -> None:
        allocation = order.allocation.id
        run = self._runs[allocation] = Run(order, self._launcher.namespace(order), is_created=True)
        run.end = Ended(allocation, self._clock.now_ms(), None, EndReason.LAUNCH_FAILED, detail=str(refusal))

    def _due_seconds(self) -> float | None:
        """Returns in how many seconds time alone makes something due; None when nothing will."""
        times = [
            run.next_due_ms(self._options.times)
            for run in tuple(self._runs.values())
            if run.end is None and run.stop is None and run.is_created
        ]
        return None if not times else max(0.0, (min(times) - self._clock.now_ms()) / 1000)


def _unreachable(offered: NodeInventory) -> NodeInventory:
    words = "the Kubernetes API does not answer"
    node = offered.node
    if node.availability is NodeAvailability.UP:
        node = replace(node, availability=NodeAvailability.DRAINING, reason=words)
    return replace(offered, node=node)


def _limited(order: StartOrder, time_limit_ms: int) -> StartOrder:
    return replace(order, allocation=replace(order.allocation, time_limit_ms=time_limit_ms))
