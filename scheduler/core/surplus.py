"""How many more nodes an elastic gang gets at its start than it must have: what nobody else could use in this tick.

The least that a gang runs on is booked, ordered and promised like any other gang. What it may have beyond, its surplus,
is given out last: when every waiting job had its turn. It delays no promise, keeps limits and budgets, and leaves its
account within its target at every level; what is then left of a class that nobody waits for goes round, node by node.
Surplus is burst, or spot where the gang is, never guaranteed: the first to go when others need it, and stops nobody.
"""

from collections import Counter
from collections.abc import Callable, Set
from dataclasses import dataclass, replace

from scheduler.core.booking import Bookings
from scheduler.core.eviction import Standings
from scheduler.core.future import Asker
from scheduler.core.model import Booking, GpuClass, Grant, JobId, lineage
from scheduler.core.placement import place_more
from scheduler.core.plan import Start, Surplus
from scheduler.core.policy import Policy
from scheduler.core.reservation import Promises, rank_of
from scheduler.core.state import ClusterState


def surplus_booking(start: Start) -> Booking:
    """Returns how surplus nodes are held of a gang that starts like this."""
    return Booking.SPOT if start.booking is Booking.SPOT else Booking.BURST


@dataclass(frozen=True, slots=True)
class Giving:
    """Gives out at the end of a tick what is left beside all that it has decided."""

    state: ClusterState
    policy: Policy
    bookings: Bookings
    standings: Standings
    promises: Promises
    take: Callable[[Start, tuple[Grant, ...]], None]
    """Counts nodes as the surplus of a gang that starts."""

    def out(self, starts: list[Start], off: Set[JobId], closed: Set[GpuClass]) -> None:
        """Adds their surplus to the starts, in order. `off` are the jobs in line that start now or are claimed for.

        Nothing is given in `closed` classes: all that is free there is kept for the job that others wait behind.
        """
        jobs = self.state.jobs
        elastic = [
            number
            for number, start in enumerate(starts)
            if jobs[start.job].shape.is_elastic and start.gpu_class not in closed
        ]
        if not elastic:
            return
        for number in elastic:
            starts[number] = self._with(starts[number], self._within_share(starts[number]))
        wanted = self._wanted_classes(off)
        elastic = [number for number in elastic if starts[number].gpu_class not in wanted]
        while elastic:
            before = {number: starts[number] for number in elastic}
            for number in elastic:
                starts[number] = self._with(starts[number], min(1, self._most(starts[number])))
            elastic = [number for number in elastic if starts[number] is not before[number]]

    def _wanted_classes(self, off: Set[JobId]) -> set[GpuClass]:
        """Returns the classes in which jobs wait that nothing but order and room keeps from starting."""
        blocks, jobs = self.bookings.blocks(), self.state.jobs
        gone = Counter(self.state.group_of(jobs[each]) for each in off)
        return {
            gpu_class
            for shape, rows in self.state.waiting.of_shape.items()
            for group, row in rows.items()
            if group not in blocks and len(row.line) > gone[group]
            for gpu_class in shape.gpu_classes
        }

    def _within_share(self, start: Start) -> int:
        """Returns how many nodes more the gang may have, its account's targets at every level considered."""
        most, job = self._most(start), self.state.jobs[start.job]
        if most > 0 and start.booking is not Booking.SPOT:
            for name in lineage(job.account):
                left = self.standings.target(name, start.gpu_class) - self.standings.held(name, start.gpu_class)
                most = min(most, left // job.shape.gpu_units)
        return most

    def _most(self, start: Start) -> int:
        """Returns how many nodes more the gang may have by its range, limits and budgets; it is counted already."""
        job = self.state.jobs[start.job]
        has = job.shape.nodes + (0 if start.surplus is None else len(start.surplus.grants))
        wants = (job.shape.most_nodes or 0) - has
        return self.bookings.parts_left(self.state.group_of(job), start.gpu_class, surplus_booking(start), wants)

    def _with(self, start: Start, most: int) -> Start:
        """Returns the start with so many nodes more, as far as there is room: the same where there is none."""
        job, now_ms = self.state.jobs[start.job], self.promises.now_ms
        if most < 1 or self.promises.forbids(job.shape, now_ms + job.time_limit_ms):
            return start
        booking = surplus_booking(start)
        asker = Asker(rank_of(job.account, booking), is_promised=False)
        terms = self.policy.topology_labels, self.promises.spares(job.shape, job.time_limit_ms, asker)
        before = () if start.surplus is None else start.surplus.grants
        grants = place_more(self.state.capacity, job.shape, (*start.grants, *before), most, terms)
        if not grants:
            return start
        self.take(start, grants)
        return replace(start, surplus=Surplus(booking, (*before, *grants)))
