"""Who stands ahead of a job: the order walked as if everything in it could start.

A count for people, and the reason `order`: it says who would have the next turn, not who will get room.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from scheduler.core.booking import Bookings
from scheduler.core.model import Booking, BookingWanted, Job, JobId
from scheduler.core.order import FairLine
from scheduler.core.plan import Plan
from scheduler.core.reasons import Reason
from scheduler.core.state import ClusterState
from scheduler.core.waiting import Group

MOST_AHEAD = 5000
"""Jobs that are counted before the answer is "at least so many": more means nothing to a person, and costs the loop."""
MOST_SHOWN = 10
"""Jobs ahead whose numbers are kept, the first in the order."""

Blocked = Callable[[Group], bool]
"""Whether the jobs of a group are ahead of nobody, for they could not start."""


@dataclass(frozen=True, slots=True)
class Ahead:
    """Pending jobs that come before one in the order and want one of its classes."""

    jobs: int = 0
    units: int = 0
    """Capacity units that they ask for."""
    is_cut: bool = False
    """True when these are not all: the count stops at MOST_AHEAD jobs."""
    first: tuple[JobId, ...] = ()
    """The first MOST_SHOWN of them."""


def ahead_of(state: ClusterState, plan: Plan, job: Job, is_blocked: Blocked, enough: int = MOST_AHEAD) -> Ahead:
    """Counts who is ahead of a waiting job, or would be, did it stand in line; `enough` jobs end the count.

    The state is as before.
    """
    classes = set(job.shape.gpu_classes)
    jobs = units = 0
    first: list[JobId] = []
    with _standing_in_line(state, job):
        bookings = Bookings(state)
        line = FairLine(state, bookings, plan.now_ms, _NoneBut(is_blocked))
        for _ in range(MOST_AHEAD):
            candidate = line.next()
            if candidate is None or candidate[0] == job.id:
                return Ahead(jobs, units, False, tuple(first))
            job_id, group = candidate
            bookings.take(group, group.shape.gpu_classes[0], booking_of(bookings, group))
            line.started()
            if not classes.isdisjoint(group.shape.gpu_classes):
                jobs += 1
                units += group.shape.total_units
                if len(first) < MOST_SHOWN:
                    first.append(job_id)
                if jobs >= enough:
                    break
    return Ahead(jobs, units, True, tuple(first))


@contextmanager
def _standing_in_line(state: ClusterState, job: Job) -> Iterator[None]:
    """Has a job stand where it would if nothing but its turn kept it, and nothing of it afterwards."""
    key = state.queue_key_of(job)
    if state.waiting.has(job, key):
        yield
        return
    state.waiting.add(job, key)
    try:
        yield
    finally:
        state.waiting.remove(job, key)


@dataclass(frozen=True, slots=True)
class _NoneBut:
    is_blocked: Blocked

    def is_hopeless(self, group: Group) -> bool:
        return self.is_blocked(group)

    def is_dead(self, _: Group) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class AllStart:
    """The outlook of a count: everything starts but what is forbidden to."""

    blocks: Mapping[Group, Reason]

    def is_hopeless(self, group: Group) -> bool:
        return group in self.blocks

    def is_dead(self, _: Group) -> bool:
        return False


def booking_of(bookings: Bookings, group: Group) -> Booking:
    """Returns how a gang of the group would be held if it could start."""
    chosen = bookings.choose(group, group.shape.gpu_classes[0])
    if isinstance(chosen, Booking):
        return chosen
    return Booking.GUARANTEED if group.wanted is BookingWanted.GUARANTEED else Booking.BURST
