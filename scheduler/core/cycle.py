"""One tick: `plan(state, policy, now)` decides what starts, and records why the rest does not.

The planner walks the order, and for each job asks in this way: is its account suspended; does a limit stand in the way;
which booking does it get; where does it fit. What it grants it takes from the capacity at once, so that the next job
sees it, and gives all of it back before it returns: the state after is the state before, and the plan is the only
outcome. A shape that did not fit is not tried again until something becomes free in its class.

The cost follows the starts and the groups of like jobs that wait, not the jobs.
"""

from scheduler.core.booking import Bookings
from scheduler.core.model import GpuClass, Grant, JobId, Shape
from scheduler.core.order import Line
from scheduler.core.placement import place, verdict
from scheduler.core.plan import Plan, ShapeVerdict, Start
from scheduler.core.policy import Policy
from scheduler.core.reasons import Reason, ReasonCode
from scheduler.core.state import ClusterState, Group


def plan(state: ClusterState, policy: Policy, now_ms: int, decision: int = 0) -> Plan:
    """Returns what to do now. The state is as before, but for jobs whose begin time came and memos of what failed."""
    state.release_due(now_ms)
    tick = _Tick(state)
    versions = state.capacity.versions()
    line = Line(state)
    is_partial = False
    while (candidate := line.next()) is not None:
        if len(tick.starts) == policy.most_starts_per_tick:
            is_partial = True
            break
        if tick.try_start(*candidate):
            line.started()
        else:
            line.drop()
    for start in reversed(tick.starts):
        for grant in start.grants:
            state.capacity.give_back(grant)
    state.capacity.restore_versions(versions)
    return Plan(
        decision=decision,
        now_ms=now_ms,
        starts=tuple(tick.starts),
        verdicts=tick.verdicts,
        blocks=tick.blocks,
        is_partial=is_partial,
        wake_at_ms=state.next_due_ms(),
    )


class _Tick:
    """What one walk of the order has decided so far."""

    def __init__(self, state: ClusterState) -> None:
        self._state = state
        self._bookings = Bookings(state)
        self._failed: set[tuple[Shape, GpuClass]] = set()
        self._classes_taken: set[GpuClass] = set()
        self.starts: list[Start] = []
        self.verdicts: dict[Shape, ShapeVerdict] = {}
        self.blocks: dict[Group, Reason] = {}

    def try_start(self, job_id: JobId, group: Group) -> bool:
        """Starts the job, or records why no job of its group can start in this tick."""
        state, shape = self._state, group.shape
        blocked = self._bookings.suspension(group.account)
        has_failed = False
        for gpu_class in shape.gpu_classes if blocked is None else ():
            if self._has_failed(shape, gpu_class):
                has_failed = True
                continue
            booking = self._bookings.choose(group, gpu_class)
            if isinstance(booking, Reason):
                blocked = blocked or booking
                continue
            grants = self._place(shape, gpu_class)
            if grants is None:
                has_failed = True
                continue
            for grant in grants:
                state.capacity.take(grant)
            self._bookings.take(group.account, gpu_class, booking, shape.total_units)
            self.starts.append(Start(job_id, gpu_class, booking, grants))
            return True
        if has_failed:
            if shape not in self.verdicts:
                self.verdicts[shape] = verdict(state.capacity, shape, state.closed_pools, state.structures)
        else:
            assert blocked is not None, "a job that does not start has a reason"
            self.blocks[group] = blocked
        return False

    def _has_failed(self, shape: Shape, gpu_class: GpuClass) -> bool:
        version = self._state.capacity.version(gpu_class)
        return (shape, gpu_class) in self._failed or self._state.failed.get((shape, gpu_class)) == version

    def _place(self, shape: Shape, gpu_class: GpuClass) -> tuple[Grant, ...] | None:
        state = self._state
        grants = place(state.capacity, shape, gpu_class, state.closed_pools)
        if grants is not None:
            self._classes_taken.add(gpu_class)
        elif gpu_class in self._classes_taken:
            # It failed beside what this tick took, which the store may yet refuse: true for this tick only.
            self._failed.add((shape, gpu_class))
        else:
            state.failed[shape, gpu_class] = state.capacity.version(gpu_class)
        return grants
