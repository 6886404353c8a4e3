"""Ranks that leave an elastic gang: why they must, which pods are to go, and when they are gone. No I/O.

The nodes beyond an elastic gang's least are pods of Jobs of their own, and leave all together: because the scheduler
takes them, because one of them is lost or taken away, or because they did not start when the others did. A rank of them
that fails by itself ends the gang, like any other.
"""

from collections.abc import Mapping

from k8s.nodes import Machine
from k8s.options import TimeOptions
from k8s.pods import Pod
from k8s.runs import RankPod, Run, Stop, holds, is_taken_away, who_took
from scheduler.core.model import EndReason
from scheduler.executor import Shrunk


def may_shrink(run: Run) -> bool:
    """Tells whether the gang has nodes that it can lose, and keeps them so far."""
    is_going_on = run.stop is None and run.end is None and run.leaving is None
    return is_going_on and run.least < run.size


def surplus_places(run: Run) -> list[RankPod]:
    """Returns the pods of the ranks beyond the least, in rank order."""
    return [place for rank, place in sorted(run.ranks.items()) if rank >= run.least]


def due_to_leave(
    run: Run, now_ms: int, machines: Mapping[str, Machine], times: TimeOptions, *, is_job_deleted: bool
) -> Stop | None:
    """Returns why the ranks beyond the least must leave now; None while they may stay, or leave already.

    `is_job_deleted`: somebody deleted a Job of theirs.
    """
    if not may_shrink(run):
        return None
    grace_seconds = run.order.spec.grace_seconds
    for place in surplus_places(run):
        if is_taken_away(place):
            reason, words = who_took(place.pod, machines)
            return Stop(reason, grace_seconds, place.pod.deleted_ms or place.gone_ms or now_ms, words)
    if is_job_deleted:
        words = "its Job was deleted in Kubernetes, by hand or by another controller"
        return Stop(EndReason.CANCELLED, grace_seconds, now_ms, words)
    is_late = run.order.allocation.decided_ms + times.start_seconds * 1000 <= now_ms
    waiting = run.waiting() if is_late and run.started_ms() is None else []
    if waiting and waiting[0] >= run.least:
        return Stop(EndReason.REQUEUED, 0.0, now_ms, run.late_words(times))
    return None


def pods_to_delete(run: Run) -> list[Pod]:
    """Returns the pods of ranks that leave which are neither over nor being deleted."""
    return [place.pod for place in surplus_places(run) if not place.is_over and not place.pod.is_deleting]


def try_to_shrink(run: Run, now_ms: int) -> Shrunk | None:
    """Returns what is told once all ranks that leave are gone; the same until it is acknowledged.

    Where a node was lost, nothing is billed beyond the last sign of it: all of them count as gone then.
    """
    stop = run.leaving
    if run.shrunk is not None or stop is None or run.end is not None:
        return run.shrunk
    places = surplus_places(run)
    is_whole = len(places) == run.size - run.least
    if any(not place.is_over for place in places) or any(
        holds(pod) and run.is_own(pod) and pod.rank >= run.least for pod in run.extra.values()
    ):
        return None
    if not run.are_surplus_jobs_deleted or not (is_whole or run.is_surplus_settled(now_ms)):
        return None
    if stop.reason is EndReason.NODE_LOST:
        at_ms = min([place.lost_ms for place in places if place.lost_ms is not None] or [stop.asked_ms])
    else:
        at_ms = max([_gone_ms(place) for place in places] or [stop.asked_ms])
    started_ms = run.started_ms() or run.order.allocation.decided_ms
    run.shrunk = Shrunk(run.order.allocation.id, max(at_ms, started_ms), run.least, stop.reason)
    return run.shrunk


def _gone_ms(place: RankPod) -> int:
    finish = place.pod.finish
    if finish is not None:
        return finish.at_ms or place.finished_ms or place.seen_ms
    return place.gone_ms or place.lost_ms or place.seen_ms
