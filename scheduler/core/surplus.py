"""How many more nodes an elastic gang gets at its start than it must have: what nobody else could use in this tick.

The least that a gang runs on is booked, ordered and promised like any other gang. What it may have beyond, its surplus,
is given out last: when every waiting job had its turn. It delays no promise, keeps limits and budgets, and leaves its
account within its target at every level, so that where others wait it takes no more than its share. Surplus is burst,
or spot where the gang is, never guaranteed: it is the first to go when others need the nodes, and stops nobody itself.
"""

from dataclasses import dataclass

from scheduler.core.booking import Bookings
from scheduler.core.eviction import Standings
from scheduler.core.future import Asker
from scheduler.core.model import Booking, GpuClass, Job, lineage
from scheduler.core.placement import place_more
from scheduler.core.plan import Start, Surplus
from scheduler.core.policy import Policy
from scheduler.core.reservation import Promises, rank_of
from scheduler.core.state import ClusterState
from scheduler.core.waiting import Group


@dataclass(frozen=True, slots=True)
class Giving:
    """Gives out surplus nodes at the end of a tick, beside all that it has decided."""

    state: ClusterState
    policy: Policy
    bookings: Bookings
    standings: Standings
    promises: Promises

    def to(self, start: Start, job: Job) -> Surplus | None:
        """Returns the nodes that the elastic gang gets besides those that it starts on; None for none."""
        booking = Booking.SPOT if start.booking is Booking.SPOT else Booking.BURST
        most = self._most(self.state.group_of(job), start.gpu_class, booking)
        if most < 1 or self.promises.forbids(job.shape, self.promises.now_ms + job.time_limit_ms):
            return None
        asker = Asker(rank_of(job.account, booking), is_promised=False)
        terms = self.policy.topology_labels, self.promises.spares(job.shape, job.time_limit_ms, asker)
        grants = place_more(self.state.capacity, job.shape, start.grants, most, terms)
        return Surplus(booking, grants) if grants else None

    def _most(self, group: Group, gpu_class: GpuClass, booking: Booking) -> int:
        """Returns how many nodes more the gang may have, whatever is free; it is counted as held already."""
        shape = group.shape
        most = self.bookings.parts_left(group, gpu_class, booking, (shape.most_nodes or 0) - shape.nodes)
        if most < 1 or booking is Booking.SPOT or self._is_unwanted(group, gpu_class):
            return max(0, most)
        for name in lineage(group.account):
            left = self.standings.target(name, gpu_class) - self.standings.held(name, gpu_class)
            most = min(most, left // shape.gpu_units)
        return max(0, most)

    def _is_unwanted(self, group: Group, gpu_class: GpuClass) -> bool:
        """True where the gang starts in a class that its demand was not counted in, and nobody else's was either."""
        if self.state.supply.feasible_class(group.shape, self.state.closed_pools) == gpu_class:
            return False
        return not any(wanted == gpu_class for _, wanted, _ in self.state.settled_demand().totals)
