"""One tick: `plan(state, policy, now)` decides what starts, and records why the rest does not.

First the jobs for which others were stopped: each starts when those are gone. Then the jobs that are promised a start:
each starts if its time has come, or is promised an earlier one where something became free. Then the planner walks the
order, and for each job asks in this way: is its account suspended; does a limit stand in the way; which booking does it
get; where does it fit; can those nodes be spared until its time limit; whose place may it take. The first that fit
nowhere are promised a start, and what comes behind them fills the holes. What is left then goes to elastic gangs that
start in this tick.

What it grants it takes from the capacity and the shadow schedule at once, so that the next job sees it, and gives all
of it back before it returns: the state after is the state before, and the plan is the only outcome. A shape that did
not fit is not tried again until something becomes free in its class, and its groups are not even looked at.

The cost follows the starts, the promises and the groups that could start, not the jobs that wait.
"""

from collections import Counter
from collections.abc import Iterable
from enum import Enum, auto

from scheduler.core.booking import Bookings
from scheduler.core.claiming import preempting, why_lost
from scheduler.core.finishing import ranks_of
from scheduler.core.future import NEVER_MS, Asker
from scheduler.core.model import (
    Account,
    AccountId,
    Allocation,
    Booking,
    BookingWanted,
    EndReason,
    GpuClass,
    Grant,
    Job,
    JobId,
    Shape,
    lineage,
)
from scheduler.core.order import FairLine
from scheduler.core.placement import (
    Chooser,
    Spares,
    at_random,
    crowded,
    open_pools,
    place,
    place_by,
    place_near,
    verdict,
)
from scheduler.core.plainorder import Line, PlainLine
from scheduler.core.plan import Lapse, Plan, ShapeVerdict, Start, Stop
from scheduler.core.policy import Backfill, Placement, Policy, QueueOrder
from scheduler.core.preemption import Preemption
from scheduler.core.reasons import Reason, ReasonCode
from scheduler.core.reservation import Options, Promises, rank_of
from scheduler.core.state import ClusterState, Group
from scheduler.core.stretch import Claim, Reservation
from scheduler.core.surplus import Giving, surplus_booking
from scheduler.core.waiting import Row


def plan(state: ClusterState, policy: Policy, now_ms: int, decision: int = 0, *, is_bare: bool = False) -> Plan:
    """Returns what to do now. The state is as before, but for jobs whose begin time came and memos of what failed.

    A bare plan is for a replay, which asks no reasons and commits to no store: it has no verdicts, blocks or terms.
    """
    assert policy.debt_half_life_ms == state.usage.debts.half_life_ms, "debts are kept under the policy's half-life"
    state.release_due(now_ms)
    state.planned_version = state.promises_version
    if not state.waiting.of_shape and not state.claims.by_job and not (state.guarantees and state.usage.promotable):
        return Plan(decision, now_ms, crowds=state.throttle.crowds(), wake_at_ms=state.next_due_ms())
    versions = state.capacity.versions()
    tick = _Tick(state, policy, now_ms)
    tick.keep_claims()
    tick.keep_promises()
    tick.promise_old_jobs()
    line = tick.line()
    while not tick.is_full and (candidate := (line := tick.switched(line)).next()) is not None:
        if tick.goes_on_after(*candidate):
            line.started()
        else:
            line.drop()
    tick.add_surplus()
    if not is_bare:
        tick.explain()
    tick.undo()
    state.capacity.restore_versions(versions)
    return Plan(
        decision=decision,
        now_ms=now_ms,
        starts=tuple(tick.starts),
        stops=tuple(tick.stops),
        claims=tuple(tick.claims),
        lapses=tuple(tick.lapses),
        weighed=tick.preemption.weighed,
        preempting=tick.preempting,
        promotions=tuple(tick.bookings.promotions),
        verdicts=tick.verdicts,
        blocks=tick.blocks,
        kept=tick.bookings.kept,
        terms={} if is_bare else tick.terms(),
        crowds=state.throttle.crowds(),
        by_user=frozenset(state.waiting.by_user),
        reservations=tick.reservations,
        is_partial=tick.is_full,
        wake_at_ms=tick.wake_at_ms(),
    )


class _Hope(Enum):
    """What is known of jobs before they are looked at."""

    SOME = auto()
    BY_GUARANTEE = auto()
    """They would delay a promise, which binds all but guaranteed starts and an admin's guests."""
    NONE = auto()


class _Tick:
    """What one tick has decided so far."""

    def __init__(self, state: ClusterState, policy: Policy, now_ms: int) -> None:
        self._state = state
        self._policy = policy
        self._is_strict = policy.backfill is Backfill.NONE
        self._now_ms = now_ms
        self.bookings = Bookings(state)
        self._failed: set[tuple[Shape, GpuClass]] = set()
        self._crowded_out: dict[tuple[Shape, GpuClass], int] = {}
        """By shape and class, the shortest limit that would have delayed a promise in this tick."""
        self._withheld: set[Shape] = set()
        """Shapes of which a job fitted what is free, and could not be spared the nodes: strong ones leave no memory."""
        self._classes_taken: set[GpuClass] = set()
        self._classes_closed: set[GpuClass] = set()
        """Without backfill: classes in which a job waits that all others wait behind."""
        self._started: set[JobId] = set()
        self._is_switched = False
        self._hopes: dict[tuple[Shape, int], _Hope] = {}
        self._promises = Promises(state, policy, now_ms)
        self.preemption = Preemption(state, policy, self.bookings, now_ms)
        self._taken: list[tuple[str, Grant]] = []
        """What this tick took of the capacity, by the name under which the shadow schedule has it."""
        self._claimed: list[tuple[JobId, list[tuple[Allocation, Grant, int]]]] = []
        """The claims of this tick, with when their victims would have ended."""
        self.claims: list[Claim] = []
        self.stops: list[Stop] = []
        self.lapses: list[Lapse] = []
        self.preempting: dict[JobId, Reason] = {}
        self._waited_with_claim = frozenset(state.claims.by_job)
        self.starts: list[Start] = []
        self.verdicts: dict[Shape, ShapeVerdict] = {}
        self.blocks: dict[Group, Reason] = {}

    @property
    def is_full(self) -> bool:
        """True when the plan has as many starts as one transaction should commit."""
        return len(self.starts) >= self._policy.most_starts_per_tick

    @property
    def reservations(self) -> tuple[Reservation, ...]:
        """Returns every promise as it stands now, in order of start."""
        return tuple(self._promises.in_order())

    def terms(self) -> dict[AccountId, Account]:
        """Returns the accounts on the paths of what starts and claims, as they are known here."""
        jobs, accounts = self._state.jobs, self._state.accounts
        off = [each.job for each in self.starts] + [each.job for each in self.claims]
        projects = {jobs[each].account for each in off}
        names = {name for project in projects for name in lineage(project)}
        return {name: accounts[name] for name in sorted(names) if name in accounts}

    def keep_claims(self) -> None:
        """Starts the jobs whose victims are gone, on what was kept for them; gives up claims that came to nothing."""
        for claim in list(self._state.claims.by_job.values()):
            job = self._state.jobs.get(claim.job)
            self._started.add(claim.job)
            group = None if job is None else self._state.group_of(job)
            why = why_lost(self._state, self.bookings, claim, self._now_ms)
            if why is not None or group is None:
                self.lapses.append(Lapse(claim.job, why or "the job is gone"))
            elif any(victim in self._state.allocations for victim in claim.victims):
                self.bookings.weigh(group, claim.gpu_class, claim.booking)
                self.preempting[claim.job] = preempting(claim, self._state.allocations)
            elif self.is_full:
                self.preempting[claim.job] = preempting(claim, self._state.allocations)
            else:
                self.bookings.weigh(group, claim.gpu_class, claim.booking)
                of = (claim.job, claim.gpu_class, claim.booking, claim.grants)
                self.starts.append(Start(*of, group.account, group.time_limit_ms))

    def keep_promises(self) -> None:
        """Starts the jobs whose promised time has come, and moves promises to earlier times that became possible."""
        for reservation in self._promises.in_order():
            if self.is_full:
                return
            if self._promises.kept.get(reservation.job) is not reservation:
                continue  # a start within a guarantee has just disturbed it, and it was sought anew
            job = self._state.jobs[reservation.job]
            if not self._promises.is_kept(job):
                self._promises.lift(reservation)
                continue
            group = self._state.group_of(job)
            is_settled = self._promises.is_settled(reservation, job.shape)
            is_stuck = is_settled and self._is_hopeless(group) and not self.bookings.is_known(job.account)
            if is_stuck and not self._may_preempt(group):
                continue
            self._promises.lift(reservation)
            options = self._options(group)
            is_off = self._try_start(job.id, group, options, is_promised=True)
            if not is_off and not self._try_claim(job, group, options, is_promised=True):
                self._promises.seek_again(reservation, job, options, is_settled=is_settled)

    def promise_old_jobs(self) -> None:
        """Starts the jobs that waited too long, or promises them a start, the oldest first."""
        promised = self._policy.promised_old_jobs
        for job in self._promises.old_jobs():
            if promised == 0 or self.is_full:
                return
            if job.id in self._started:
                continue
            if job.id in self._promises.kept:
                self._promises.empty_for(job.id)
                promised -= 1
            elif self._start_or_promise(job):
                promised -= 1

    def line(self) -> Line:
        """Returns the waiting jobs in the order that the policy chose."""
        for job_id in sorted(self._promises.kept):
            self.bookings.promise(self._state.group_of(self._state.jobs[job_id]))
        order = self._policy.order
        if order is QueueOrder.FAIR:
            return FairLine(self._state, self.bookings, self._now_ms, self)
        return self._plain_line(order)

    def switched(self, line: Line) -> Line:
        """Returns the line to go on with: under `easy-before`, first come first once a start is promised."""
        if self._policy.backfill is not Backfill.EASY_BEFORE or self._is_switched or not self._promises.kept:
            return line
        self._is_switched = True
        return self._plain_line(QueueOrder.FIFO)

    def _plain_line(self, order: QueueOrder) -> Line:
        lines = (entry for entry in self._state.pending_groups() if not self.is_hopeless(entry[0]))
        if order is not QueueOrder.FINISH_TIME:
            return PlainLine(lines, order)
        jobs, ranks = self._state.jobs, ranks_of(self._state, self._policy, self._now_ms)
        return PlainLine(lines, order, lambda job_id, left_ms: ranks.rank(jobs[job_id], left_ms))

    def is_hopeless(self, group: Group) -> bool:
        """Tells whether memory alone says that no job of the group can start now, be promised a start or take one."""
        kind = (group.shape, group.time_limit_ms)
        hope = self._hopes.get(kind) or self._hope(*kind)
        if hope is _Hope.SOME or self._may_preempt(group):
            return False
        if hope is _Hope.BY_GUARANTEE:
            return not self.bookings.may_be_guaranteed(group) and not self._promises.is_host(group.account)
        return hope is _Hope.NONE

    def is_dead(self, group: Group) -> bool:
        """Tells whether what makes a group hopeless does so for all jobs of its shape and time limit."""
        if self.preemption.may_any_yield(group.shape):
            return False  # those of another project may have guaranteed gangs to take the place of
        if self._hope(group.shape, group.time_limit_ms) is _Hope.NONE:
            return True
        is_late = group.wanted is not BookingWanted.GUARANTEED and not self.bookings.is_guarantee_turn
        return is_late and len(group.shape.gpu_classes) == 1 and not self._state.advance

    def _hope(self, shape: Shape, limit_ms: int) -> "_Hope":
        """Returns what memory says of jobs of a shape and a time limit; remembered until memory changes."""
        hope = self._hopes.get((shape, limit_ms))
        if hope is None:
            bound_ms = max((self._bound_ms(shape, gpu_class) for gpu_class in shape.gpu_classes), default=0)
            if self._is_strict or self._promises.has_slot(shape) or limit_ms < bound_ms:
                hope = _Hope.SOME
            else:
                hope = _Hope.BY_GUARANTEE if bound_ms else _Hope.NONE
            self._hopes[shape, limit_ms] = hope
        return hope

    def goes_on_after(self, job_id: JobId, group: Group) -> bool:
        """Starts the job or promises it a start; False if no other job of its group needs to be looked at."""
        if job_id in self._started or job_id in self._promises.kept:
            return True
        if not self._classes_closed.isdisjoint(group.shape.gpu_classes):
            return False
        options = self._options(group)
        if self._try_start(job_id, group, options):
            return True
        may_claim = options or self.preemption.may_yield(group)
        if may_claim and self._try_claim(self._state.jobs[job_id], group, options):
            return True
        if options and self._is_strict and self._is_only_waiting(group.shape):
            self._classes_closed.update(group.shape.gpu_classes)
        # A job that another class may hold beyond its guarantee has its turn there before it is promised a start.
        is_last_turn = not self.bookings.is_guarantee_turn or len(options) == len(group.shape.gpu_classes)
        if options and is_last_turn and self._promises.make_if_slot(self._state.jobs[job_id], options):
            self.bookings.promise(group)
            self._hopes.clear()
            return True
        self.bookings.keep_guarantee(group)
        return False

    def add_surplus(self) -> None:
        """Gives elastic gangs that start now what nobody else could use.

        Not in a tick that was cut short: who comes next may be able to use it.
        """
        if self.starts and not self.is_full:
            standings = self.preemption.standings
            giving = Giving(self._state, self._policy, self.bookings, standings, self._promises, self._give)
            off = {start.job for start in self.starts} | {claim.job for claim in self.claims}
            off -= self._waited_with_claim
            giving.out(self.starts, off, self._classes_closed)

    def _give(self, start: Start, grants: tuple[Grant, ...]) -> None:
        group = self._state.group_of(self._state.jobs[start.job])
        self._take(f"surplus of {start.job}", grants, group)
        self.bookings.take_parts(group, start.gpu_class, surplus_booking(start), len(grants))
        self._classes_taken.add(start.gpu_class)

    def explain(self) -> None:
        """Records why the shapes that wait do not fit, and what forbids a start to groups, whatever was looked at."""
        state = self._state
        off = [start.job for start in self.starts] + [claim.job for claim in self.claims]
        started = Counter(state.jobs[job].shape for job in off if job not in self._waited_with_claim)
        for shape, groups in sorted(
            state.waiting.of_shape.items(), key=lambda entry: state.waiting.number_of(entry[0])
        ):
            if started[shape] and not _has_more(groups.values(), started[shape]):
                continue
            if not any(self._fits(shape, gpu_class) for gpu_class in shape.gpu_classes):
                self.verdicts[shape] = verdict(state.capacity, shape, state.closed_pools, state.structures)
            elif shape in self._withheld or any(self._bound_ms(shape, each) < NEVER_MS for each in shape.gpu_classes):
                until_ms = self._promises.first_start_ms(shape)
                self.verdicts[shape] = crowded(state.capacity, shape, state.closed_pools, state.structures, until_ms)
        self.blocks = self.bookings.blocks()

    def undo(self) -> None:
        """Gives back all that was taken and booked: what was decided stays in the plan only."""
        self._promises.restore()
        state = self._state
        for job_id, ends in reversed(self._claimed):
            state.claims.forget(job_id, ends)
        for owner, grant in reversed(self._taken):
            state.future.drop(owner, grant)
            state.capacity.give_back(grant)

    def wake_at_ms(self) -> int | None:
        """Returns when time alone would change what this tick decided: a begin time, an admin's reservation."""
        moments = [self._state.next_due_ms(), self._promises.next_advance_ms()]
        moments += [claim.until_ms for claim in self._state.claims.by_job.values()]
        moments += [claim.until_ms for claim in self.claims]
        return min((moment for moment in moments if moment is not None), default=None)

    def _start_or_promise(self, job: Job) -> bool:
        group = self._state.group_of(job)
        options = self._options(group)
        if self._try_start(job.id, group, options) or self._try_claim(job, group, options):
            return True
        return self._promises.make(job, options) is not None

    def _is_hopeless(self, group: Group) -> bool:
        """True when memory alone says that no job of the group can start now."""
        return not self._is_privileged(group.account) and all(
            group.time_limit_ms >= self._bound_ms(group.shape, gpu_class) for gpu_class in group.shape.gpu_classes
        )

    def _is_privileged(self, account: AccountId) -> bool:
        """True when promises may not bind jobs of the account, so that what stops others says nothing of it."""
        return self.bookings.has_guarantee(account) or self._promises.is_host(account)

    def _is_only_waiting(self, shape: Shape) -> bool:
        """True when what the shape lacks is free GPUs and not nodes that could hold it."""
        found = verdict(self._state.capacity, shape, self._state.closed_pools, self._state.structures)
        return found.reasons[0].code in {ReasonCode.CAPACITY, ReasonCode.FRAGMENTATION}

    def _options(self, group: Group, *, is_in_turn: bool = True) -> Options:
        """Returns the classes that the group's account permits, with the booking in each."""
        if self.bookings.suspension(group.account) is not None:
            return []
        chosen = (
            (gpu_class, self.bookings.choose(group, gpu_class, is_in_turn=is_in_turn))
            for gpu_class in group.shape.gpu_classes
        )
        return [(gpu_class, booking) for gpu_class, booking in chosen if isinstance(booking, Booking)]

    def _try_start(self, job_id: JobId, group: Group, options: Options, *, is_promised: bool = False) -> bool:
        for gpu_class, booking in options:
            grants = self._place(group, gpu_class, booking, is_promised=is_promised)
            if grants is not None:
                start = Start(job_id, gpu_class, booking, grants, group.account, group.time_limit_ms)
                self._start(start, group)
                return True
        return False

    def _start(self, start: Start, group: Group) -> None:
        self._take(f"start of {start.job}", start.grants, group)
        self.bookings.take(group, start.gpu_class, start.booking)
        self._classes_taken.add(start.gpu_class)
        self._started.add(start.job)
        self.starts.append(start)
        if start.booking is Booking.GUARANTEED:
            self._move_disturbed(start.grants)

    def _take(self, owner: str, grants: Iterable[Grant], group: Group) -> None:
        for grant in grants:
            self._state.capacity.take(grant)
            self._state.future.add(owner, grant, self._now_ms + group.time_limit_ms)
            self._taken.append((owner, grant))

    def _may_preempt(self, group: Group) -> bool:
        is_guarantee = self.bookings.is_guarantee_turn or group.wanted is BookingWanted.GUARANTEED
        return self.preemption.has_hope(group, is_guarantee=is_guarantee) or self.preemption.may_yield(group)

    def _try_claim(self, job: Job, group: Group, options: Options, *, is_promised: bool = False) -> bool:
        """Stops others for the job where that makes it fit, and keeps for it what they leave."""
        for gpu_class, booking in options:
            asker = Asker(rank_of(job.account, booking), is_promised)
            limit_ms = self._policy.default_grace_ms + group.time_limit_ms
            spares = self._promises.spares(group.shape, limit_ms, asker)
            claim = self.preemption.seek(job, group, (gpu_class, booking), spares)
            if claim is not None:
                self._claim(claim, group)
                return True
        return self.preemption.may_yield(group) and self._try_guarantee(job, group, is_promised=is_promised)

    def _try_guarantee(self, job: Job, group: Group, *, is_promised: bool) -> bool:
        """Has the job take over the guarantee of others of its project that have lower priority, where that is said."""
        for gpu_class in group.shape.gpu_classes:
            short_units = self.bookings.short_of_guarantee(group, gpu_class)
            if short_units is None:
                continue
            asker = Asker(rank_of(job.account, Booking.GUARANTEED), is_promised)
            limit_ms = self._policy.default_grace_ms + group.time_limit_ms
            spares = self._promises.spares(group.shape, limit_ms, asker)
            claim = self.preemption.seek_guaranteed(job, group, (gpu_class, short_units), spares)
            if claim is not None:
                self._claim(claim, group)
                return True
        return False

    def _claim(self, claim: Claim, group: Group) -> None:
        state = self._state
        live = [state.allocations[victim] for victim in claim.victims]
        self._claimed.append((claim.job, state.claims.add(claim, live)))
        self.bookings.take(group, claim.gpu_class, claim.booking)
        self._started.add(claim.job)
        self.claims.append(claim)
        self.stops += [Stop(victim, EndReason.PREEMPTED, claim.job) for victim in claim.victims]
        self.preempting[claim.job] = preempting(claim, state.allocations)
        self._classes_taken.add(claim.gpu_class)
        if claim.booking is Booking.GUARANTEED:
            self._move_disturbed(claim.grants)

    def _move_disturbed(self, grants: tuple[Grant, ...]) -> None:
        """A start within a guarantee may take what was promised to others: they are promised what is left."""
        for reservation in self._promises.disturbed_by(grants):
            job = self._state.jobs[reservation.job]
            self._promises.lift(reservation)
            self._promises.make(job, self._options(self._state.group_of(job), is_in_turn=False))
            self._crowded_out.clear()
            self._hopes.clear()

    def _place(
        self, group: Group, gpu_class: GpuClass, booking: Booking, *, is_promised: bool
    ) -> tuple[Grant, ...] | None:
        """Returns where the gang fits now without delay to a promise, and remembers what did not."""
        shape = group.shape
        if self._has_failed(shape, gpu_class):
            return None
        is_strong = is_promised or booking is Booking.GUARANTEED or self._promises.is_host(group.account)
        if not is_strong and group.time_limit_ms >= self._bound_ms(shape, gpu_class):
            return None
        grants = self._choose(shape, gpu_class, None)
        if grants is None:
            self._remember_failed(shape, gpu_class)
            return None
        if not is_promised and self._promises.forbids(shape, self._now_ms + group.time_limit_ms):
            self._remember_crowded(group, gpu_class)
            return None
        asker = Asker(rank_of(group.account, booking), is_promised)
        spares = self._promises.spares(shape, group.time_limit_ms, asker)
        if self._promises.are_spare(grants, spares):
            return grants
        grants = self._choose(shape, gpu_class, spares)
        if grants is None:
            self._withheld.add(shape)
            if not is_strong:
                self._remember_crowded(group, gpu_class)
        return grants

    def _choose(self, shape: Shape, gpu_class: GpuClass, spares: Spares | None) -> tuple[Grant, ...] | None:
        state, rule, labels = self._state, self._policy.placement, self._policy.topology_labels
        if shape.nodes > 1 and not shape.is_share and (labels or shape.topology is not None):
            pools = open_pools(state.capacity, shape, gpu_class, state.closed_pools)
            near = place_near(state.domains, labels, shape, (gpu_class, pools), spares)
            if near is not None or shape.required_level is not None:
                return near
        if rule is Placement.BEST_FIT:
            return place(state.capacity, shape, gpu_class, state.closed_pools, spares)
        is_random = rule is Placement.RANDOM
        salt = f"{self._policy.seed}/{self._now_ms}/{len(self.starts)}"
        chooser: Chooser = at_random(state.capacity, salt) if is_random else state.fragments.cheapest
        pools = open_pools(state.capacity, shape, gpu_class, state.closed_pools)
        return place_by(chooser, state.capacity, shape, (gpu_class, pools), spares)

    def _fits(self, shape: Shape, gpu_class: GpuClass) -> bool:
        if self._has_failed(shape, gpu_class):
            return False
        if self._crowded_out.get((shape, gpu_class)) is not None and not self.starts:
            return True
        if self._choose(shape, gpu_class, None) is not None:
            return True
        self._remember_failed(shape, gpu_class)
        return False

    def _remember_failed(self, shape: Shape, gpu_class: GpuClass) -> None:
        state = self._state
        self._hopes.clear()
        if gpu_class in self._classes_taken:
            # It failed beside what this tick took, which the store may yet refuse: true for this tick only.
            self._failed.add((shape, gpu_class))
        else:
            state.failed[shape, gpu_class] = state.capacity.version(gpu_class)

    def _remember_crowded(self, group: Group, gpu_class: GpuClass) -> None:
        state, key = self._state, (group.shape, gpu_class)
        self._hopes.clear()
        self._crowded_out[key] = min(group.time_limit_ms, self._crowded_out.get(key, NEVER_MS))
        if not self.starts and not self.claims and not self._promises.has_changed:
            versions = (state.capacity.version(gpu_class), state.promises_version)
            state.crowded_out[key] = (*versions, min(group.time_limit_ms, self._bound_ms(*key)))

    def _has_failed(self, shape: Shape, gpu_class: GpuClass) -> bool:
        version = self._state.capacity.version(gpu_class)
        return (shape, gpu_class) in self._failed or self._state.failed.get((shape, gpu_class)) == version

    def _bound_ms(self, shape: Shape, gpu_class: GpuClass) -> int:
        """Returns the time limit from which on no job of the shape can start in the class; 0 if none fits at all."""
        if self._has_failed(shape, gpu_class):
            return 0
        state = self._state
        bound_ms = self._crowded_out.get((shape, gpu_class), NEVER_MS)
        known = state.crowded_out.get((shape, gpu_class))
        if known is not None and known[:2] == (state.capacity.version(gpu_class), state.promises_version):
            bound_ms = min(bound_ms, known[2])
        return bound_ms


def _has_more(rows: Iterable[Row], count: int) -> bool:
    """Tells whether more jobs than `count` stand in the lines; looks at no more lines than it must."""
    for row in rows:
        count -= len(row.line)
        if count < 0:
            return True
    return False
