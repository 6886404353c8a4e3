"""The front of the line: places and promised starts of those who are next, found once for all who ask in a moment.

`explain` and `estimate` answer for one job, wherever it stands, at a price that a list of jobs cannot pay for each.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from scheduler.core.ahead import AllStart, booking_of
from scheduler.core.booking import Bookings
from scheduler.core.estimate import StartEstimate
from scheduler.core.model import GpuClass, JobId
from scheduler.core.order import FairLine
from scheduler.core.plan import Plan
from scheduler.core.state import ClusterState
from scheduler.core.stretch import Reservation

MOST_IN_FRONT = 500
"""Places that are counted: a page of a list, and some milliseconds between two ticks."""


@dataclass(frozen=True, slots=True)
class Front:
    """Places count from 1 among those that want one of the job's classes, as `Explanation.position` does.

    Jobs that a limit, a guarantee or a suspension blocks have no place, and neither have those behind the front.
    """

    positions: Mapping[JobId, int] = field(default_factory=dict)
    promised: Mapping[JobId, StartEstimate] = field(default_factory=dict)


def front(state: ClusterState, plan: Plan, most: int = MOST_IN_FRONT) -> Front:
    """Returns the first `most` places of the line as of the plan, and every promised start. The state is as before."""
    bookings = Bookings(state)
    line = FairLine(state, bookings, plan.now_ms, AllStart(plan.blocks))
    positions: dict[JobId, int] = {}
    wanted: Counter[tuple[GpuClass, ...]] = Counter()
    for _ in range(most):
        candidate = line.next()
        if candidate is None:
            break
        job, group = candidate
        classes = group.shape.gpu_classes
        bookings.take(group, classes[0], booking_of(bookings, group))
        line.started()
        ahead = sum(count for others, count in wanted.items() if not set(classes).isdisjoint(others))
        wanted[classes] += 1
        if state.jobs[job].allocation is None:
            positions[job] = ahead + 1
    return Front(positions, {each.job: _promised(state, plan, each) for each in plan.reservations})


def _promised(state: ClusterState, plan: Plan, found: Reservation) -> StartEstimate:
    used_permille = state.used_permille.get(found.gpu_class, 1000)
    late_ms = max(plan.now_ms, found.start_ms)
    likely_ms = plan.now_ms + (late_ms - plan.now_ms) * used_permille // 1000
    return StartEstimate(likely_ms, late_ms, used_permille, is_promised=True)
