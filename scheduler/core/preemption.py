"""Whom to stop so that a gang fits, at least cost: the search over nodes, under the rules of `eviction`.

Victims are added in their order until the gang fits, then spared again, the last first, as far as it still fits: what
is left is a set of which no part would do. It is the cheapest by its worst victim. Where the rule runs out before a
node is open (what an account may lose is spread over many nodes), nodes are opened one after the other instead.

`Preemption` is a tick's view: how many attempts are left, what was evicted, what could not be helped.
"""

from collections import defaultdict
from collections.abc import Sequence

from scheduler.core.booking import Bookings
from scheduler.core.eviction import Mode, Preemptor, Rule, Standings, in_order, over_target
from scheduler.core.model import (
    AccountId,
    Allocation,
    AllocationId,
    Booking,
    BookingWanted,
    GpuClass,
    Job,
    NodeName,
    Shape,
    lineage,
    tenant_of,
)
from scheduler.core.openings import Openings
from scheduler.core.placement import Spares
from scheduler.core.policy import Policy
from scheduler.core.policy import Preemption as Rules
from scheduler.core.shares import Shares
from scheduler.core.state import ClusterState
from scheduler.core.stretch import Claim
from scheduler.core.waiting import Group


class Preemption:
    """What one tick may stop for others, and has decided to."""

    def __init__(self, state: ClusterState, policy: Policy, bookings: Bookings, now_ms: int) -> None:
        self._state = state
        self._policy = policy
        self._now_ms = now_ms
        self._attempts = 0 if policy.preemption is Rules.OFF else policy.preemption_attempts
        self._shares: Shares | None = None
        self._gone: defaultdict[tuple[AccountId, GpuClass], int] = defaultdict(int)
        self._standings = Standings(state, bookings, self._made_shares, self._gone)
        self._evicted: set[AllocationId] = set()
        self._guarded: defaultdict[GpuClass, int] = defaultdict(int)
        self._tried: set[tuple[Group, int]] = set()
        self._tried_guaranteed: set[tuple[Group, int]] = set()
        self._unyielding: set[tuple[Shape, GpuClass, int]] = set()
        """What not even a guarantee can make room for."""
        self._over: dict[GpuClass, dict[AccountId, int]] = {}
        """How far tenants were over their targets when this was first asked after the last claim."""
        self._lately: dict[GpuClass, int | None] = {}
        """By class, how many gangs were stopped lately by rules that bind; None where it is not time to look."""
        self._weighed: set[GpuClass] = set()

    @property
    def weighed(self) -> tuple[GpuClass, ...]:
        """The classes in which it was considered who, without a guarantee, may take whose place."""
        return tuple(sorted(self._weighed))

    @property
    def standings(self) -> Standings:
        """What accounts hold and should hold, with what the tick has decided."""
        return self._standings

    def has_hope(self, group: Group, *, is_guarantee: bool) -> bool:
        """Tells whether it is worth an attempt for jobs of the group, as far as can be told at once."""
        if self._attempts == 0 or group.wanted is BookingWanted.SPOT:
            return False
        evictable = self._state.evictable
        for gpu_class in group.shape.gpu_classes:
            if gpu_class in evictable and (is_guarantee or self._is_fair_turn(gpu_class)):
                return True
        return False

    def seek(self, job: Job, group: Group, option: tuple[GpuClass, Booking], spares: Spares) -> Claim | None:
        """Returns the claim with the gangs to stop so that the job fits, or None; counts as an attempt."""
        gpu_class, booking = option
        is_guaranteed = booking is Booking.GUARANTEED
        is_fair = self._is_fair_turn(gpu_class)
        if self._attempts == 0 or booking is Booking.SPOT or (group, job.priority) in self._tried:
            return None
        if gpu_class not in self._state.evictable or not (is_guaranteed or is_fair):
            return None
        if (group.shape, gpu_class, group.time_limit_ms) in self._unyielding:
            return None
        if is_fair and not is_guaranteed:
            self._weighed.add(gpu_class)
        self._attempts -= 1
        victims = self._victims(Preemptor(job, gpu_class, booking), is_fair=is_fair, spares=spares)
        if victims is None:
            self._tried.add((group, job.priority))
            if is_guaranteed and self._policy.guarantee_overrides_min_run and not self._state.advance:
                self._unyielding.add((group.shape, gpu_class, group.time_limit_ms))
            return None
        gangs, openings = victims
        return self._claim(job, option, gangs, openings)

    def may_any_yield(self, shape: Shape) -> bool:
        """Tells whether there may be guaranteed gangs anywhere that give way to some job of the shape."""
        return bool(self._state.waiting.yielding and self._attempts) and any(map(self._is_fair_turn, shape.gpu_classes))

    def may_yield(self, group: Group) -> bool:
        """Tells whether guaranteed gangs of the group's own project may give way, as far as can be told at once."""
        state = self._state
        if not self.may_any_yield(group.shape) or group.wanted is BookingWanted.SPOT:
            return False
        return not state.waiting.yielding.isdisjoint(lineage(group.account)) and any(
            (group.account, gpu_class) in state.usage.guaranteed for gpu_class in group.shape.gpu_classes
        )

    def seek_guaranteed(self, job: Job, group: Group, short: tuple[GpuClass, int], spares: Spares) -> Claim | None:
        """Returns the claim with the gangs to stop so that the job takes over their guarantee; counts as an attempt.

        `short` is the class, and how many units of guarantee must be given up: what the job lacks.
        """
        gpu_class, units = short
        gangs = self._state.usage.guaranteed.get((job.account, gpu_class), {})
        if self._attempts == 0 or not gangs or not self._is_fair_turn(gpu_class):
            return None
        if (group, job.priority) in self._tried_guaranteed:
            return None
        self._weighed.add(gpu_class)
        self._attempts -= 1
        preemptor = Preemptor(job, gpu_class, Booking.GUARANTEED, takes_guaranteed=True, short_units=units)
        rule = self._rule(preemptor, is_fair=True)
        allowed = [gang for gang in gangs.values() if gang.id not in self._evicted and rule.permits(gang)]
        yielding = in_order(self._standings, allowed, self._now_ms, {tenant_of(job.account): 0})
        victims = None
        if yielding and sum(gang.total_units for gang in yielding) >= units:
            victims = self._victims(preemptor, is_fair=True, spares=spares, yielding=yielding)
        if victims is None:
            self._tried_guaranteed.add((group, job.priority))
            return None
        return self._claim(job, (gpu_class, Booking.GUARANTEED), *victims)

    def _claim(self, job: Job, option: tuple[GpuClass, Booking], gangs: list[Allocation], openings: Openings) -> Claim:
        gpu_class, booking = option
        is_bought = booking is Booking.GUARANTEED
        guarded = sum(not is_bought or gang.booking is Booking.GUARANTEED for gang in gangs)
        self._guarded[gpu_class] += guarded
        leaving = [each for gang in gangs for each in self._with_surplus(gang, gangs)]
        for gang in leaving:
            self._evicted.add(gang.id)
            if gang.booking is not Booking.SPOT:
                for name in lineage(gang.account):
                    self._gone[name, gpu_class] += gang.total_units
        self._over.pop(gpu_class, None)
        now_ms = self._now_ms
        return Claim(
            job.id,
            job.account,
            job.user,
            gpu_class,
            booking,
            openings.grants(),
            tuple(gang.id for gang in leaving),
            guarded,
            now_ms,
            now_ms + self._policy.default_grace_ms,
            now_ms + self._policy.default_grace_ms + job.time_limit_ms,
            now_ms + self._policy.claim_timeout_ms,
        )

    def _with_surplus(self, gang: Allocation, chosen: Sequence[Allocation]) -> list[Allocation]:
        """Returns what leaves with a gang: itself, and its surplus nodes, unless those are chosen by themselves."""
        surplus = self._state.usage.surplus.get(gang.id)
        if surplus is None or surplus in self._evicted or any(each.id == surplus for each in chosen):
            return [gang]
        return [gang, self._state.allocations[surplus]]

    def _rule(self, preemptor: Preemptor, *, is_fair: bool) -> Rule:
        mode = Mode(is_fair=is_fair, is_hasty=self._policy.guarantee_overrides_min_run)
        return Rule(self._standings, preemptor, self._is_old, mode)

    def _victims(
        self, preemptor: Preemptor, *, is_fair: bool, spares: Spares, yielding: Sequence[Allocation] = ()
    ) -> tuple[list[Allocation], Openings] | None:
        gpu_class, rule = preemptor.gpu_class, self._rule(preemptor, is_fair=is_fair)
        openings = Openings(self._state, preemptor.job.shape, gpu_class, spares)
        evictable = self._state.evictable.get(gpu_class, {})
        over = self._over.get(gpu_class)
        if over is None:
            accounts = (account for account, _ in evictable)
            over = self._over[gpu_class] = over_target(self._standings, accounts, gpu_class)
        gangs = [gang for gang in rule.candidates(evictable) if gang.id not in self._evicted]
        ordered = in_order(self._standings, gangs, self._now_ms, over)
        if yielding:
            ordered = _with_yielding(ordered, yielding, preemptor.short_units)
        chosen = cheapest(openings, rule, ordered)
        if chosen is None and preemptor.booking is Booking.BURST and rule.has_share:
            chosen = node_by_node(openings, rule, [gang for gang in ordered if rule.permits(gang)])
        openings.restore()
        return None if chosen is None else (chosen, openings)

    def _is_old(self, gang: Allocation) -> bool:
        return gang.started_ms is not None and self._now_ms - gang.started_ms >= self._policy.min_run_ms

    def _is_fair_turn(self, gpu_class: GpuClass) -> bool:
        """True when it is time to look who may take whose place in a class, and not too many were stopped lately."""
        if gpu_class not in self._lately:
            self._lately[gpu_class] = self._stopped_lately(gpu_class)
        lately = self._lately[gpu_class]
        return lately is not None and lately + self._guarded[gpu_class] < self._policy.most_evictions

    def _stopped_lately(self, gpu_class: GpuClass) -> int | None:
        policy, state, now_ms = self._policy, self._state, self._now_ms
        if policy.preemption is not Rules.FAIR:
            return None
        weighed_ms = state.weighed_ms.get(gpu_class)
        if weighed_ms is not None and weighed_ms <= now_ms < weighed_ms + policy.weigh_every_ms:
            return None
        return state.claims.evicted_since(gpu_class, now_ms - policy.eviction_window_ms)

    def _made_shares(self) -> Shares:
        if self._shares is None:
            self._shares = Shares(self._state, self._now_ms)
        return self._shares


def cheapest(openings: Openings, rule: Rule, ordered: Sequence[Allocation]) -> list[Allocation] | None:
    """Evicts gangs in order until there is room, then spares what can be spared; None when there never is.

    `openings` has the victims evicted afterwards, or nothing when the answer is None.
    """
    chosen: list[Allocation] = []
    for gang in ordered if rule.is_short or not openings.has_room() else ():
        if rule.permits(gang) and (rule.is_short or openings.would_help(gang)):
            openings.evict(gang)
            rule.take(gang)
            chosen.append(gang)
            if not rule.is_short and openings.has_room():
                break
    return _settled(openings, rule, chosen)


def _with_yielding(ordered: Sequence[Allocation], yielding: Sequence[Allocation], short_units: int) -> list[Allocation]:
    """Returns possible victims with guaranteed gangs: as many as must give it up first, the others last."""
    count = 0
    while short_units > 0:
        short_units -= yielding[count].total_units
        count += 1
    return [*yielding[:count], *ordered, *yielding[count:]]


def node_by_node(openings: Openings, rule: Rule, ordered: Sequence[Allocation]) -> list[Allocation] | None:
    """Opens nodes one after the other, those first whose last victim comes first in the order; as `cheapest`."""
    on_node: dict[NodeName, list[Allocation]] = {}
    for gang in ordered:
        for grant in gang.grants:
            on_node.setdefault(grant.node, []).append(gang)
    places = {gang.id: place for place, gang in enumerate(ordered)}
    bottlenecks = [(places[last], name) for name, row in on_node.items() if (last := _last(openings, name, row))]
    chosen: dict[AllocationId, Allocation] = {}
    for _, name in sorted(bottlenecks):
        if openings.has_room():
            break
        trial: list[Allocation] = []
        for gang in on_node[name]:
            if not openings.is_open(name) and gang.id not in chosen and rule.permits(gang):
                openings.evict(gang)
                rule.take(gang)
                trial.append(gang)
        if openings.is_open(name):
            chosen.update((gang.id, gang) for gang in trial)
        else:
            _spare(openings, rule, trial)
    return _settled(openings, rule, list(chosen.values()))


def _last(openings: Openings, name: NodeName, gangs: Sequence[Allocation]) -> AllocationId | None:
    """Returns the gang whose eviction opens the node if they go in order; None if that never does."""
    gone: list[Allocation] = []
    for gang in gangs:
        openings.evict(gang)
        gone.append(gang)
        if openings.is_open(name):
            break
    is_open = openings.is_open(name)
    for gang in gone:
        openings.put_back(gang)
    return gone[-1].id if is_open and gone else None


def _settled(openings: Openings, rule: Rule, chosen: list[Allocation]) -> list[Allocation] | None:
    """Spares what is not needed, the last first, until nothing can be spared; checks the rule on what is left."""
    if not openings.has_room():
        _spare(openings, rule, chosen)
        return None
    spared: set[AllocationId] = set()
    is_changed = True
    while is_changed:
        is_changed = False
        for gang in reversed(chosen):
            if gang.id in spared or openings.needs_gone(gang):
                continue
            openings.put_back(gang)
            spared.add(gang.id)
            if openings.has_room() and rule.holds_without(gang, (each for each in chosen if each.id not in spared)):
                rule.give(gang)
                is_changed = True
            else:
                spared.remove(gang.id)
                openings.evict(gang)
    chosen = [gang for gang in chosen if gang.id not in spared]
    if not rule.holds(chosen):
        _spare(openings, rule, chosen)
        return None
    return chosen


def _spare(openings: Openings, rule: Rule, gangs: Sequence[Allocation]) -> None:
    for gang in gangs:
        openings.put_back(gang)
        rule.give(gang)
