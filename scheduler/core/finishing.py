"""Who has to run now if all are to end in time: the ranks of the order `finish-time`, over what runs and what waits.

What remains of a job is its time limit less what it has run, for that is all that a scheduler can know.
"""

from dataclasses import dataclass

from scheduler.core.model import Job
from scheduler.core.policy import Policy
from scheduler.core.state import ClusterState

_LATER = 1 << 62
"""Keeps the ranks of those that may wait behind all others."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """Ranks at one instant, the lowest first."""

    backlog_ms: int
    """How long all that runs and waits would take if it could be spread over the whole capacity."""
    stretch: int
    """See `Policy.finish_stretch`."""

    def rank(self, job: Job, left_ms: int) -> int:
        """Returns the rank of a job: those with as much left as the backlog takes go first, the longest of them.

        The others go by their deadlines; who has none is given one, as if what is left of it were all of it.
        """
        if left_ms >= self.backlog_ms:
            return -left_ms
        if job.deadline_ms is not None:
            return _LATER + job.deadline_ms
        return _LATER + job.submitted_ms + self.stretch * left_ms


def ranks_of(state: ClusterState, policy: Policy, now_ms: int) -> Ranks:
    """Returns the ranks of this instant. Linear in what runs, and in the groups that wait."""
    unit_ms = sum(
        max(0, each.decided_ms + each.time_limit_ms - now_ms) * each.total_units for each in state.allocations.values()
    )
    unit_ms += sum(group.time_limit_ms * group.shape.total_units * len(line) for group, line in state.pending_groups())
    capacity = sum(state.capacity_units(gpu_class) for gpu_class in state.capacity.classes())
    return Ranks(unit_ms // max(1, capacity), policy.finish_stretch)
