"""One allocation in a cluster: what its pods say, whether it runs, whether it must be ended, how it ended. No I/O.

    take(change)   a pod's news, rank by rank          due(now, machines)   why it must be ended now, if it must
    started()      when the whole gang ran             ended(now)           how it ended, once every rank is over

The first pod of a rank decides; one that a controller made to replace it is ended with the rest, because a run that
lost a rank is over, and one that it made beside it, when an outage hid the first from it, is ended at once. Pods of a
rank whose node is lost for good count as over: nobody will ever say more of them.

Of an elastic gang the ranks beyond the least may leave, asked to or because their node was lost (`leaving`): from then
on what becomes of them says nothing of the gang, which runs on with those that stay.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from k8s.manifests import job_names
from k8s.mirror import Change
from k8s.nodes import Machine
from k8s.options import TimeOptions
from k8s.pods import Pod
from scheduler.core.model import EndReason
from scheduler.executor import Ended, Shrunk, Started, StartOrder

LINGER_MS = 10_000
"""How long a pod may go on after its job's container ended: sidecars that a cluster injects may never end."""
SETTLE_MS = 2_000
"""How long after its Jobs were deleted a gang without pods is watched for late ones."""
SECOND_MS = 1000
"""The resolution of times in pods."""


@dataclass(slots=True)
class Stop:
    """Why and how a gang is being ended."""

    reason: EndReason
    grace_seconds: float
    asked_ms: int
    detail: str | None = None
    is_hurried: bool = False
    """Its grace became shorter than what its pods were told."""
    is_tidying: bool = False
    """The job had ended; only what its pod left running is."""


@dataclass(slots=True)
class RankPod:
    """The pod of a rank as last seen."""

    pod: Pod
    seen_ms: int
    gone_ms: int | None = None
    lost_ms: int | None = None
    """The last sign of life of its node, once that was given up."""
    finished_ms: int | None = None
    """When its end was noticed."""

    @property
    def is_over(self) -> bool:
        """True when it holds no device any more, or its node is lost."""
        return self.gone_ms is not None or self.lost_ms is not None or self._is_finished

    @property
    def _is_finished(self) -> bool:
        return not holds(self.pod)


@dataclass(slots=True)
class Run:
    """One allocation."""

    order: StartOrder
    namespace: str
    is_created: bool = False
    is_start_told: bool = False
    job_names: tuple[str, ...] = ()
    ranks: dict[int, RankPod] = field(default_factory=dict)
    extra: dict[str, Pod] = field(default_factory=dict)
    """Pods beyond the first of their rank, by uid."""
    stop: Stop | None = None
    are_jobs_deleted: bool = False
    leaving: Stop | None = None
    """Why and how the ranks beyond an elastic gang's least are being ended, while the others go on."""
    are_surplus_jobs_deleted: bool = False
    shrunk: Shrunk | None = None
    """They are gone, and nobody has acknowledged it yet."""
    end: Ended | None = None

    @property
    def size(self) -> int:
        """How many ranks the gang has, those that leave it too."""
        return len(self.order.allocation.grants)

    @property
    def staying(self) -> int:
        """How many ranks the gang has and keeps."""
        return self.size if self.leaving is None else self.least

    @property
    def least(self) -> int:
        """How many ranks cannot be taken from it: all, but for an elastic gang."""
        return self.order.least_nodes or self.size

    def is_own(self, pod: Pod) -> bool:
        """Tells whether a pod is of a node that the gang has now; not of surplus that it had before."""
        if self.order.least_nodes is None:
            return True
        return pod.rank < self.size and pod.surplus == (self.order.surplus if pod.rank >= self.least else None)

    def take(self, change: Change[Pod], now_ms: int) -> None:
        """Takes in a pod's news. `now_ms` is when it was known at the latest."""
        pod = change.value
        known = self.ranks.get(pod.rank)
        if self.is_own(pod) and (known is None or known.pod.uid == pod.uid):
            place = known or RankPod(pod, now_ms)
            place.pod = pod
            if change.is_gone:
                place.gone_ms = now_ms if change.is_seen else place.seen_ms
            else:
                place.seen_ms = now_ms
            if pod.finish is not None and place.finished_ms is None:
                place.finished_ms = now_ms
            self.ranks[pod.rank] = place
        elif change.is_gone:
            self.extra.pop(pod.uid, None)
        else:
            self.extra[pod.uid] = pod

    def started_ms(self) -> int | None:
        """Returns since when every rank has run; None while one has not."""
        times = [place.pod.started_ms for rank, place in self.ranks.items() if rank < self.staying]
        if len(times) < self.staying or None in times:
            return self.order.allocation.started_ms
        latest = max(time for time in times if time is not None)
        return self.order.allocation.started_ms or max(latest, self.order.allocation.decided_ms)

    def started(self) -> Started | None:
        """Returns the start when it is new, once."""
        started_ms = self.started_ms()
        if started_ms is None or self.is_start_told:
            return None
        self.is_start_told = True
        return Started(self.order.allocation.id, started_ms)

    def lose_surplus(self) -> None:
        """Forgets the ranks that left."""
        staying = replace(self.order.allocation, grants=self.order.allocation.grants[: self.staying])
        self.ranks = self._staying()
        self.order = replace(self.order, allocation=staying, surplus=None, is_shrinking=False)
        self.job_names = job_names(self.order, is_indexed=False)
        self.leaving = self.shrunk = None
        self.are_surplus_jobs_deleted = False

    # ---- must it be ended? ----------------------------------------------------------------------------------------

    def due(self, now_ms: int, machines: Mapping[str, Machine], times: TimeOptions) -> Stop | None:
        """Returns why the gang must be ended now; None while it may go on, or is being ended already."""
        if self.stop is not None or self.end is not None:
            return None
        # What failed by itself first: the Job's controller takes the other ranks away for it.
        places = sorted(self._staying().items(), key=lambda each: (is_taken_away(each[1]), each[0]))
        for rank, place in places:
            stop = self._due_to(rank, place, now_ms, times)
            if stop is None and is_taken_away(place):
                reason, words = who_took(place.pod, machines)
                asked_ms = place.pod.deleted_ms or place.gone_ms or now_ms
                stop = Stop(reason, self.order.spec.grace_seconds, asked_ms, words)
            if stop is not None:
                return stop
        return self._due_by_time(now_ms, times)

    def _staying(self) -> dict[int, RankPod]:
        return {rank: place for rank, place in self.ranks.items() if rank < self.staying}

    def _due_to(self, rank: int, place: RankPod, now_ms: int, times: TimeOptions) -> Stop | None:
        """Returns why one rank's own doing ends the gang."""
        trouble, finish = place.pod.trouble, place.pod.finish
        if is_taken_away(place):
            return None
        if finish is not None:
            if finish.reason is not None and not self._are_others_finished(rank):
                words = f"rank {rank}: {finish.detail or finish.reason}"
                return Stop(finish.reason, self.order.spec.grace_seconds, now_ms, words)
            if place.finished_ms is not None and not place.is_over and place.finished_ms + LINGER_MS <= now_ms:
                return Stop(EndReason.REQUEUED, 0.0, now_ms, is_tidying=True)
        elif trouble is not None and trouble.reason is not EndReason.REQUEUED:
            waited_ms = now_ms - place.pod.created_ms
            if trouble.is_final or waited_ms >= times.image_seconds * 1000:
                return Stop(trouble.reason, 0.0, now_ms, f"rank {rank}: {trouble.detail}")
        return None

    def _are_others_finished(self, rank: int) -> bool:
        """Tells whether all other ranks ended, each by itself."""
        others = [place for other, place in self._staying().items() if other != rank]
        if any(is_taken_away(place) for place in others):
            return False
        return len(others) == self.staying - 1 and all(
            place.pod.finish is not None or place.is_over for place in others
        )

    def _due_by_time(self, now_ms: int, times: TimeOptions) -> Stop | None:
        allocation, started_ms = self.order.allocation, self.started_ms()
        if started_ms is not None:
            if started_ms + allocation.time_limit_ms <= now_ms:
                return Stop(EndReason.WALLTIME, self.order.spec.grace_seconds, now_ms)
            return None
        if allocation.decided_ms + times.start_seconds * 1000 > now_ms:
            return None
        return Stop(EndReason.REQUEUED, 0.0, now_ms, self.late_words(times))

    def waiting(self) -> list[int]:
        """Returns the ranks that stay and have not run yet."""
        return [rank for rank in range(self.staying) if self._is_waiting(rank)]

    def late_words(self, times: TimeOptions) -> str:
        """Returns what is said of a gang that did not start whole in time."""
        found = [f"rank {rank}: {self._waits_for(rank)}" for rank in self.waiting()[:3]]
        return f"not all pods ran within {times.start_seconds:g} s; {'; '.join(found)}"

    def next_due_ms(self, times: TimeOptions) -> int:
        """Returns when time alone may make the gang due."""
        started_ms = self.started_ms()
        if started_ms is not None:
            return started_ms + self.order.allocation.time_limit_ms
        return self.order.allocation.decided_ms + round(times.start_seconds * 1000)

    def _is_waiting(self, rank: int) -> bool:
        return rank not in self.ranks or self.ranks[rank].pod.started_ms is None

    def _waits_for(self, rank: int) -> str:
        if rank not in self.ranks:
            return "no pod was made"
        trouble = self.ranks[rank].pod.trouble
        return "its container was not started" if trouble is None else trouble.detail

    def given_up(self, machines: Mapping[str, Machine], now_ms: int, times: TimeOptions) -> list[tuple[RankPod, str]]:
        """Returns the ranks whose node is lost for good, with the node's name."""
        lost = []
        for place in self.ranks.values():
            usage = place.pod.usage
            if place.is_over or usage is None:
                continue
            machine = machines.get(usage.node)
            patience_ms = round(times.node_lost_seconds * 1000)
            if machine is None or (machine.given_up_ms is not None and machine.given_up_ms + patience_ms <= now_ms):
                lost.append((place, usage.node))
        return lost

    # ---- how did it end? ------------------------------------------------------------------------------------------

    def pods_to_delete(self) -> list[Pod]:
        """Returns the pods that are neither over nor being deleted."""
        pods = [place.pod for place in self.ranks.values() if not place.is_over] + list(self.extra.values())
        return [pod for pod in pods if not pod.is_deleting]

    def doubles(self) -> list[Pod]:
        """Returns the pods beyond the first of their rank, or of ranks that left, that nobody has asked to go yet."""
        return [pod for pod in self.extra.values() if holds(pod) and not pod.is_deleting]

    def try_to_end(self, now_ms: int) -> Ended | None:
        """Returns the end once every rank is over; the same one ever after."""
        if self.end is None and self._is_over(now_ms):
            self.end = self._conclude()
        return self.end

    def _is_over(self, now_ms: int) -> bool:
        if any(not place.is_over for place in self.ranks.values()) or any(
            holds(pod) for pod in self.extra.values() if self.is_own(pod)
        ):
            return False
        missing = [rank for rank in range(self.size) if rank not in self.ranks]
        if all(rank >= self.staying for rank in missing) and (not missing or self.is_surplus_settled(now_ms)):
            return True
        return self.stop is not None and self.are_jobs_deleted and self.stop.asked_ms + SETTLE_MS <= now_ms

    def is_surplus_settled(self, now_ms: int) -> bool:
        """Tells whether no pod will come any more of the ranks that leave."""
        return (
            self.leaving is not None and self.are_surplus_jobs_deleted and self.leaving.asked_ms + SETTLE_MS <= now_ms
        )

    def _conclude(self) -> Ended:
        allocation, stop = self.order.allocation, self.stop
        everywhere = {rank: self._end_of(place) for rank, place in sorted(self.ranks.items())}
        ends = [end for rank, end in everywhere.items() if rank < self.staying]
        started_ms = self.started_ms()
        over = ends if self.shrunk is not None else everywhere.values()
        at_ms = max([end.at_ms for end in over] or [stop.asked_ms if stop is not None else allocation.decided_ms])
        at_ms = max(at_ms, started_ms or 0, allocation.decided_ms)
        failed = sorted((end for end in ends if end.reason is not None), key=lambda end: end.order)
        first = failed[0] if failed else _RankEnd(at_ms, (False, 0, 0), 0 if ends else None, None, None)
        reason, detail = first.reason, first.detail
        if stop is not None and not stop.is_tidying and (reason is not None or not ends):
            reason, detail = stop.reason, stop.detail or detail
        return Ended(allocation.id, at_ms, first.exit_code, reason, started_ms, detail)

    def _end_of(self, place: RankPod) -> "_RankEnd":
        finish = place.pod.finish
        stop = None if self.stop is None or self.stop.is_tidying else self.stop
        noticed_ms = place.finished_ms or place.seen_ms
        at_ms = (place.gone_ms or place.seen_ms) if finish is None else (finish.at_ms or noticed_ms)
        order = (is_taken_away(place), at_ms, noticed_ms)
        if finish is not None:
            # A job that was asked to end and did so, with whatever code, ended because it was asked to.
            was_asked = stop is not None and stop.asked_ms < at_ms + SECOND_MS
            if was_asked and stop is not None and finish.reason in {None, EndReason.EXIT_NONZERO}:
                return _RankEnd(at_ms, order, finish.exit_code, stop.reason, stop.detail)
            return _RankEnd(at_ms, order, finish.exit_code, finish.reason, finish.detail)
        if place.lost_ms is not None:
            words = f"node {_node(place.pod)} was lost"
            return _RankEnd(place.lost_ms, order, None, EndReason.NODE_LOST, words)
        if stop is None:
            return _RankEnd(at_ms, order, None, EndReason.NODE_LOST, "its pod vanished")
        return _RankEnd(at_ms, order, None, stop.reason, stop.detail)


@dataclass(frozen=True, slots=True)
class _RankEnd:
    """How one rank ended."""

    at_ms: int
    order: tuple[bool, int, int]
    """Taken away, when, when noticed: the rank that brought the gang down comes first, also within one second."""
    exit_code: int | None
    reason: EndReason | None
    detail: str | None


def holds(pod: Pod) -> bool:
    """Tells whether a pod holds devices, or may yet."""
    return pod.finish is None or pod.usage is not None


def _node(pod: Pod) -> str:
    return pod.node or "?"


def is_taken_away(place: RankPod) -> bool:
    """Tells whether somebody else removed the pod before its job had ended."""
    pod, finish = place.pod, place.pod.finish
    if finish is None or finish.at_ms is None:
        return finish is None and (place.gone_ms is not None or pod.is_deleting)
    return pod.deleted_ms is not None and pod.deleted_ms < finish.at_ms + SECOND_MS


def who_took(pod: Pod, machines: Mapping[str, Machine]) -> tuple[EndReason, str]:
    """Returns whose doing it was that a pod is deleted, when it was not ours."""
    if pod.disruption is not None:
        return EndReason.NODE_LOST, f"its pod was taken away: {pod.disruption}"
    machine = None if pod.node is None else machines.get(pod.node)
    if pod.node is not None and (machine is None or machine.reason is not None):
        why = "is gone" if machine is None else machine.reason
        return EndReason.NODE_LOST, f"its pod was taken away; node {pod.node} {why}"
    if machine is not None and pod.deleted_ms is not None and (machine.returned_ms or 0) + SECOND_MS > pod.deleted_ms:
        # Servers before 1.26 don't say that it was their own eviction; by now the node may be back.
        return EndReason.NODE_LOST, f"its pod was taken away while node {machine.name} was not ready"
    return EndReason.CANCELLED, "its pod was deleted in Kubernetes, by hand or by another controller"
