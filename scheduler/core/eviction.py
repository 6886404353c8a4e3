"""Who may be stopped for whom, and in which order: the rules of preemption, without a look at nodes.

- R0: within a project, what has strictly lower priority; what is guaranteed only where the project yields it, and then
  the guarantee goes over with the place: who takes it is guaranteed in its stead.
- R1: a gang that fits its guarantee may take burst and spot.
- R2: a burst gang may take spot, and burst, if at every level below the lowest common ancestor of both accounts its
  side ends at or below target, and the victim's side is over target before each eviction, by more than one GPU and 5 %.

Spot takes nothing. R0 and R2 leave alone what has not run for the policy's time yet. A gang that was asked to end is
nobody's victim any more, and counts no longer for what its account may lose: else it could lose the same twice.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from scheduler.core.booking import Bookings
from scheduler.core.model import (
    GPU_UNITS,
    AccountId,
    Allocation,
    AllocationId,
    Booking,
    GpuClass,
    Job,
    lineage,
    tenant_of,
)
from scheduler.core.shares import Shares
from scheduler.core.state import ClusterState, Stake


@dataclass(frozen=True, slots=True)
class Preemptor:
    """The job that others may be stopped for, as it would run."""

    job: Job
    gpu_class: GpuClass
    booking: Booking
    takes_guaranteed: bool = False
    """True when guaranteed gangs of lower priority may be stopped for it, too."""
    short_units: int = 0
    """What of its guarantee these must give up."""

    @property
    def units(self) -> int:
        """Capacity units of the whole gang."""
        return self.job.shape.total_units


@dataclass(slots=True)
class Standings:
    """What accounts hold and should hold, with what this tick has started, claimed and evicted so far."""

    state: ClusterState
    bookings: Bookings
    shares: Callable[[], Shares]
    """Made when first asked: targets cost what the accounts with demand are."""
    gone: Mapping[tuple[AccountId, GpuClass], int]
    """Units of burst that this tick has evicted."""

    def held(self, account: AccountId, gpu_class: GpuClass) -> int:
        """Returns what counts against the target, this tick's decisions included."""
        return self.shares().held(account, gpu_class) + self.bookings.taken_beside_spot(account, gpu_class)

    def staying(self, account: AccountId, gpu_class: GpuClass) -> int:
        """Returns the same without what was asked to end: what the account can still lose."""
        return (
            self.held(account, gpu_class) - self.state.leaving_units[account, gpu_class] - self.gone[account, gpu_class]
        )

    def target(self, account: AccountId, gpu_class: GpuClass) -> int:
        """Returns what the account should hold."""
        return self.shares().target(account, gpu_class)


def sides(account: AccountId, other: AccountId) -> tuple[tuple[AccountId, ...], tuple[AccountId, ...]]:
    """Returns the levels of two accounts below their lowest common ancestor, the account's own and the other's."""
    mine, theirs = lineage(account), lineage(other)
    common = {*mine} & {*theirs}
    return tuple(each for each in mine if each not in common), tuple(each for each in theirs if each not in common)


class Rule:
    """What one preemptor may take, with what it has taken so far."""

    def __init__(
        self, standings: Standings, preemptor: Preemptor, is_old: Callable[[Allocation], bool], mode: "Mode"
    ) -> None:
        self._standings = standings
        self._preemptor = preemptor
        self._is_old = is_old
        self._mode = mode
        self._taken: Counter[AccountId] = Counter()
        self._given_up = 0
        """Units of guarantee that the preemptor gets from whom it takes."""
        self._rooms: dict[AccountId, int] = {}
        """How far below its target each of the preemptor's levels would stay if it ran."""
        self._excesses: dict[AccountId, tuple[int, int]] = {}
        """What each account could lose until it is at its target, and that target."""
        self._sides: dict[AccountId, tuple[tuple[AccountId, ...], tuple[AccountId, ...]]] = {}

    def permits(self, gang: Allocation) -> bool:
        """Tells whether the gang may be evicted next."""
        preemptor = self._preemptor
        if gang.booking is Booking.GUARANTEED:
            return (
                preemptor.takes_guaranteed and self._mode.is_fair and self._is_old(gang) and self.is_by_priority(gang)
            )
        if preemptor.booking is Booking.GUARANTEED and (self._mode.is_hasty or self._is_old(gang)):
            return True
        if not self._mode.is_fair or not self._is_old(gang):
            return False
        if self.is_by_priority(gang):
            return True
        if preemptor.booking is not Booking.BURST:
            return False
        return gang.booking is Booking.SPOT or self._is_fair(gang)

    def candidates(self, evictable: Mapping[Stake, Mapping[AllocationId, Allocation]]) -> Iterator[Allocation]:
        """Yields, of all gangs, those that may be evicted at some time of the search: the others never will.

        What is evicted makes an account less over its target, never more. Costs the stakes, and the gangs of those that
        come into question.
        """
        job, jobs, is_old = self._preemptor.job, self._standings.state.jobs, self._is_old
        is_bought = self._preemptor.booking is Booking.GUARANTEED
        is_hasty = is_bought and self._mode.is_hasty
        has_share = self._preemptor.booking is Booking.BURST and self.has_share
        for (account, booking), gangs in evictable.items():
            is_open = is_bought or booking is Booking.SPOT
            if is_open or (has_share and all(self._sides_of(account)) and self._is_over(account)):
                yield from (gang for gang in gangs.values() if is_hasty or is_old(gang))
            elif account == job.account:
                for gang in gangs.values():
                    if jobs[gang.job].priority < job.priority and is_old(gang):
                        yield gang

    @property
    def is_short(self) -> bool:
        """True while the preemptor's guarantee is not free yet."""
        return self._given_up < self._preemptor.short_units

    @property
    def has_share(self) -> bool:
        """True when the preemptor's own account would stay within its target, which no eviction can help."""
        return self._room(self._preemptor.job.account) >= 0

    def is_by_priority(self, gang: Allocation) -> bool:
        """Tells whether R0 holds."""
        job = self._preemptor.job
        return gang.account == job.account and self._standings.state.jobs[gang.job].priority < job.priority

    def take(self, gang: Allocation) -> None:
        """Counts an eviction."""
        self._count(gang, +1)

    def give(self, gang: Allocation) -> None:
        """Undoes `take`."""
        self._count(gang, -1)

    def holds_without(self, gang: Allocation, rest: Iterable[Allocation]) -> bool:
        """Tells whether the rule still holds for the rest if the gang is spared.

        To spare one gang helps all other victims' sides; only the preemptor's own may have counted on it.
        """
        if gang.booking is Booking.GUARANTEED:
            return self._given_up - gang.total_units >= self._preemptor.short_units
        if gang.booking is Booking.SPOT or tenant_of(gang.account) != tenant_of(self._preemptor.job.account):
            return True
        self.give(gang)
        holds = all(self._ends_within(each) for each in rest if self._is_by_share(each))
        self.take(gang)
        return holds

    def holds(self, gangs: Sequence[Allocation]) -> bool:
        """Tells whether the gangs, evicted in this order and no others, are within the rule: the proof of a choice."""
        saved, self._taken, self._given_up = (self._taken, self._given_up), Counter(), 0
        is_permitted = True
        for gang in gangs:
            is_permitted = is_permitted and self.permits_but_for_own_side(gang)
            self.take(gang)
        is_permitted = is_permitted and all(self._ends_within(gang) for gang in gangs if self._is_by_share(gang))
        is_permitted = is_permitted and not self.is_short
        self._taken, self._given_up = saved
        return is_permitted

    def permits_but_for_own_side(self, gang: Allocation) -> bool:
        """Tells whether all of the rule holds for the gang that is not about the preemptor's own levels."""
        if not self._is_by_share(gang):
            return self.permits(gang)
        return self._mode.is_fair and self._is_old(gang) and self._is_over(gang.account)

    def _is_by_share(self, gang: Allocation) -> bool:
        is_share = self._preemptor.booking is Booking.BURST and gang.booking is Booking.BURST
        return is_share and not self.is_by_priority(gang)

    def _is_fair(self, gang: Allocation) -> bool:
        return (
            gang.booking is Booking.BURST and self.has_share and self._ends_within(gang) and self._is_over(gang.account)
        )

    def _ends_within(self, gang: Allocation) -> bool:
        mine, theirs = self._sides_of(gang.account)
        return bool(mine and theirs) and all(self._room(name) + self._taken[name] >= 0 for name in mine)

    def _is_over(self, account: AccountId) -> bool:
        for name in self._sides_of(account)[1]:
            excess, target = self._excess(name)
            over = excess - self._taken[name]
            if over <= GPU_UNITS or 20 * over <= target:
                return False
        return True

    def _sides_of(self, account: AccountId) -> tuple[tuple[AccountId, ...], tuple[AccountId, ...]]:
        found = self._sides.get(account)
        if found is None:
            found = self._sides[account] = sides(self._preemptor.job.account, account)
        return found

    def _room(self, name: AccountId) -> int:
        room = self._rooms.get(name)
        if room is None:
            standings, preemptor = self._standings, self._preemptor
            gpu_class = preemptor.gpu_class
            room = standings.target(name, gpu_class) - standings.held(name, gpu_class) - preemptor.units
            self._rooms[name] = room
        return room

    def _excess(self, name: AccountId) -> tuple[int, int]:
        found = self._excesses.get(name)
        if found is None:
            standings, gpu_class = self._standings, self._preemptor.gpu_class
            target = standings.target(name, gpu_class)
            found = self._excesses[name] = standings.staying(name, gpu_class) - target, target
        return found

    def _count(self, gang: Allocation, sign: int) -> None:
        if gang.booking is Booking.GUARANTEED:
            self._given_up += sign * gang.total_units
        if gang.booking is not Booking.SPOT:
            for name in lineage(gang.account):
                self._taken[name] += sign * gang.total_units


@dataclass(frozen=True, slots=True)
class Mode:
    """Which rules are in force in this tick."""

    is_fair: bool
    """R0 and R2."""
    is_hasty: bool
    """R1 may take what has not run for long."""


def in_order(
    standings: Standings, gangs: Iterable[Allocation], now_ms: int, over: dict[AccountId, int]
) -> list[Allocation]:
    """Returns possible victims of one class, the first to go first. `over` has how far tenants are over their targets.

    Surplus nodes of elastic gangs before whole gangs; spot before burst, burst of the tenant most over its target
    first; then lowest priority, least work lost since the last reported checkpoint, newest.
    """
    jobs = standings.state.jobs

    def place(gang: Allocation) -> tuple[bool, bool, int, int, int, int, AllocationId]:
        is_burst = gang.booking is not Booking.SPOT
        return (
            gang.surplus_of is None,
            is_burst,
            -over[tenant_of(gang.account)] if is_burst else 0,
            jobs[gang.job].priority,
            lost_unit_ms(gang, now_ms),
            -gang.decided_ms,
            gang.id,
        )

    return sorted(gangs, key=place)


def over_target(standings: Standings, accounts: Iterable[AccountId], gpu_class: GpuClass) -> dict[AccountId, int]:
    """Returns by how many units of a class the tenants of some accounts are over their targets; negative below."""
    tenants = {tenant_of(account) for account in accounts}
    return {each: standings.held(each, gpu_class) - standings.target(each, gpu_class) for each in sorted(tenants)}


def lost_unit_ms(gang: Allocation, now_ms: int) -> int:
    """Returns the work that would be done again if the gang were stopped now, in unit-milliseconds."""
    began_ms = now_ms if gang.started_ms is None else gang.started_ms
    saved_ms = began_ms if gang.checkpointed_ms is None else max(began_ms, gang.checkpointed_ms)
    return max(0, now_ms - saved_ms) * gang.total_units
