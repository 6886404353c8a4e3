"""One tick: `plan(state, policy, now)` decides what starts, and records why the rest does not.

The planner walks the order, and for each job asks in this way: is its account suspended; does a limit stand in the way;
which booking does it get; where does it fit. What it grants it takes from the capacity at once, so that the next job
sees it, and gives all of it back before it returns: the state after is the state before, and the plan is the only
outcome. A shape that did not fit is not tried again until something becomes free in its class.

The cost follows the starts and the groups of like jobs that wait, not the jobs.
"""

from scheduler.core.booking import Bookings
from scheduler.core.model import GpuClass, Grant, JobId, Shape
from scheduler.core.order import FairLine
from scheduler.core.placement import place, verdict
from scheduler.core.plan import Plan, ShapeVerdict, Start
from scheduler.core.policy import Policy
from scheduler.core.reasons import Reason
from scheduler.core.state import ClusterState, Group


def plan(state: ClusterState, policy: Policy, now_ms: int, decision: int = 0) -> Plan:
    """Returns what to do now. The state is as before, but for jobs whose begin time came and memos of what failed."""
    state.release_due(now_ms)
    assert policy.debt_half_life_ms == state.usage.debts.half_life_ms, "debts are kept under the policy's half-life"
    tick = _Tick(state)
    versions = state.capacity.versions()
    line = FairLine(state, tick.bookings, now_ms, tick.is_hopeless)
    is_partial = False
    while (candidate := line.next()) is not None:
        if len(tick.starts) == policy.most_starts_per_tick:
            is_partial = True
            break
        if tick.try_start(*candidate):
            line.started()
        elif tick.is_hopeless(candidate[1]):
            line.fail()
        else:
            line.drop()
    tick.settle_reasons()
    for start in reversed(tick.starts):
        for grant in start.grants:
            state.capacity.give_back(grant)
    state.capacity.restore_versions(versions)
    return Plan(
        decision=decision,
        now_ms=now_ms,
        starts=tuple(tick.starts),
        promotions=tuple(tick.bookings.promotions),
        verdicts=tick.verdicts,
        blocks=tick.blocks,
        is_partial=is_partial,
        wake_at_ms=state.next_due_ms(),
    )


class _Tick:
    """What one walk of the order has decided so far."""

    def __init__(self, state: ClusterState) -> None:
        self._state = state
        self.bookings = Bookings(state)
        self._failed: set[tuple[Shape, GpuClass]] = set()
        self._classes_taken: set[GpuClass] = set()
        self.starts: list[Start] = []
        self._versions: dict[GpuClass, int] = {}
        self._unfit: set[Shape] = set()
        self.verdicts: dict[Shape, ShapeVerdict] = {}
        self.blocks: dict[Group, Reason] = {}

    def try_start(self, job_id: JobId, group: Group) -> bool:
        """Starts the job, or records why no job of its group can start in this tick."""
        state, shape = self._state, group.shape
        blocked = self.bookings.suspension(group.account)
        has_failed = False
        for gpu_class in shape.gpu_classes if blocked is None else ():
            # What forbids a start goes before want of room, whoever of the same shape was looked at before.
            booking = self.bookings.choose(group, gpu_class)
            if isinstance(booking, Reason):
                blocked = blocked or booking
                continue
            grants = None if self._has_failed(shape, gpu_class) else self._place(shape, gpu_class)
            if grants is None:
                has_failed = True
                continue
            for grant in grants:
                state.capacity.take(grant)
            self.bookings.take(group, gpu_class, booking)
            self.starts.append(Start(job_id, gpu_class, booking, grants))
            return True
        assert has_failed or blocked is not None, "a job that does not start has a reason"
        if has_failed:
            self._unfit.add(shape)
        return False

    def settle_reasons(self) -> None:
        """Says what stops those that wait, beside all that started; what was not looked at is explained alike."""
        state = self._state
        for shape in sorted(self._unfit, key=repr):
            self.verdicts[shape] = verdict(state.capacity, shape, state.closed_pools, state.structures)
        self.blocks = self.bookings.blocks()

    def is_hopeless(self, group: Group) -> bool:
        """Tells whether the group's shape is known to fit in none of its classes now."""
        shape = group.shape
        if not all(self._has_failed(shape, gpu_class) for gpu_class in shape.gpu_classes):
            return False
        self._unfit.add(shape)
        return True

    def _has_failed(self, shape: Shape, gpu_class: GpuClass) -> bool:
        version = self._version(gpu_class)
        return (shape, gpu_class) in self._failed or self._state.failed.get((shape, gpu_class)) == version

    def _version(self, gpu_class: GpuClass) -> int:
        """Returns the capacity's version; a tick takes and gives nothing back, so it stays."""
        version = self._versions.get(gpu_class)
        if version is None:
            version = self._versions[gpu_class] = self._state.capacity.version(gpu_class)
        return version

    def _place(self, shape: Shape, gpu_class: GpuClass) -> tuple[Grant, ...] | None:
        state = self._state
        grants = place(state.capacity, shape, gpu_class, state.closed_pools)
        if grants is not None:
            self._classes_taken.add(gpu_class)
        elif gpu_class in self._classes_taken:
            # It failed beside what this tick took, which the store may yet refuse: true for this tick only.
            self._failed.add((shape, gpu_class))
        else:
            state.failed[shape, gpu_class] = self._version(gpu_class)
        return grants
