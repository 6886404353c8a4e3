"""What each account should hold now: its target, per GPU class, at every level of the account tree.

    target = min(guarantee, demand) + its part of the rest,

the rest being divided by effective weight (`fairshare.water_fill`), top down, each group of siblings after its parent's
whole number. Targets of siblings sum to what there is, or to what they want where that is less.

**Over target** means held > target, and `Shares.is_over` is the only place that says so. Held is guaranteed and burst,
with what is starting and stopping, without spot.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain

from scheduler.core.booking import Bookings, guarantees_in_force
from scheduler.core.demand import Demand
from scheduler.core.fairshare import effective_weights, pro_rata, water_fill
from scheduler.core.model import (
    GPU_UNITS,
    ROOT_ACCOUNT,
    Account,
    AccountId,
    Booking,
    BookingWanted,
    GpuClass,
    lineage,
    tenant_of,
)
from scheduler.core.reasons import Reason, ReasonCode
from scheduler.core.state import ClusterState


@dataclass(frozen=True, slots=True)
class Standing:
    """Where an account stands in a class; capacity units, but for the debt."""

    account: AccountId
    gpu_class: GpuClass
    guarantee: int
    """What it bought; less where all guarantees together exceed the capacity that is left."""
    limit: int | None
    held: int
    """Guaranteed and burst."""
    spot: int
    demand: int
    target: int
    debt_microcredits: int
    """Over all classes."""

    @property
    def is_over_target(self) -> bool:
        """True when it holds more than it should: see `Shares.is_over`."""
        return self.held > self.target


@dataclass(slots=True)
class _Need:
    """A node of the tree that the division walks: an account, or an account's own jobs beside those below it."""

    account: AccountId
    weight: int = 1
    owed: int = 0
    guarantee: int = 0
    limit: int | None = None
    firm: int = 0
    """Held, and pending jobs that take any booking; at most the limit."""
    strict: int = 0
    """Pending jobs that accept only the guarantee that is left."""
    below: "list[_Need]" = field(default_factory=list)

    @property
    def demand(self) -> int:
        """What it could use."""
        total = self.firm + self.strict
        return total if self.limit is None else min(total, self.limit)


class Shares:
    """The targets over one version of the state at one time: made for a tick or a question, then thrown away.

    Each class is divided when it is first asked about. Costs what the accounts with demand or use are.
    """

    def __init__(self, state: ClusterState, now_ms: int) -> None:
        self._state = state
        self._now_ms = now_ms
        self._targets: dict[GpuClass, dict[AccountId, int]] = {}
        self._demands: dict[GpuClass, dict[AccountId, int]] = {}
        self._in_force: dict[GpuClass, dict[AccountId, int]] = {}
        self._active: dict[AccountId, list[AccountId]] | None = None

    def target(self, account: AccountId, gpu_class: GpuClass) -> int:
        """Returns the capacity units that the account should hold; 0 for one without demand or use."""
        return self.targets(gpu_class).get(account, 0)

    def targets(self, gpu_class: GpuClass) -> dict[AccountId, int]:
        """Returns the target of every account with demand or use, at every level, in capacity units."""
        found = self._targets.get(gpu_class)
        if found is None:
            self._divide(gpu_class)
            found = self._targets[gpu_class]
        return found

    def demand(self, account: AccountId, gpu_class: GpuClass) -> int:
        """Returns what the account could use: held and eligible pending, capped by limits, in capacity units."""
        self.targets(gpu_class)
        return self._demands[gpu_class].get(account, 0)

    def held(self, account: AccountId, gpu_class: GpuClass) -> int:
        """Returns what counts against a target: guaranteed and burst, whatever its phase, in capacity units."""
        return self._state.held_by(account, gpu_class, Booking.GUARANTEED, Booking.BURST)

    def is_over(self, account: AccountId, gpu_class: GpuClass) -> bool:
        """Tells whether the account is over target: the one definition, for whoever asks."""
        return self.held(account, gpu_class) > self.target(account, gpu_class)

    def effective_weight(self, account: AccountId) -> int | None:
        """Returns the weight that the account divides with now, in steps of 1 / WEIGHT_STEPS; None for one at rest."""
        path = lineage(account)
        siblings = self._active_below().get(path[1] if len(path) > 1 else ROOT_ACCOUNT, [])
        if account not in siblings:
            return None
        debts = self._state.usage.debts
        plain = {each: self._weight(each) for each in siblings}
        return effective_weights(plain, {each: debts.epoch_credits(each, self._now_ms) for each in siblings})[account]

    def standings(self) -> Iterator[Standing]:
        """Yields where every known account stands in every class it has terms, demand or use in; by account, class."""
        state = self._state
        debts = state.usage.debts
        classes = self._classes()
        for account in sorted({*state.accounts, *chain.from_iterable(self._active_below().values())} - {ROOT_ACCOUNT}):
            for gpu_class in classes:
                standing = self._standing(account, gpu_class, debts.credits(account, self._now_ms))
                if standing is not None:
                    yield standing

    def _standing(self, account: AccountId, gpu_class: GpuClass, debt: int) -> Standing | None:
        state = self._state
        terms = state.accounts.get(account)
        guarantee = 0 if terms is None else terms.guarantee.get(gpu_class, 0) * GPU_UNITS
        if account in state.guarantees.get(gpu_class, {}):
            guarantee = self._guarantees(gpu_class)[account]
        limit = None if terms is None else terms.limit.get(gpu_class)
        held, spot = self.held(account, gpu_class), state.held_by(account, gpu_class, Booking.SPOT)
        demand = self.demand(account, gpu_class)
        if not (guarantee or held or spot or demand) and limit is None:
            return None
        return Standing(
            account,
            gpu_class,
            guarantee,
            None if limit is None else limit * GPU_UNITS,
            held,
            spot,
            demand,
            self.target(account, gpu_class),
            debt,
        )

    def _guarantees(self, gpu_class: GpuClass) -> dict[AccountId, int]:
        """Returns each tenant's guarantee in force, cut once for all who ask."""
        found = self._in_force.get(gpu_class)
        if found is None:
            found = self._in_force[gpu_class] = guarantees_in_force(self._state, gpu_class)
        return found

    def _classes(self) -> list[GpuClass]:
        state = self._state
        demanded = {gpu_class for _, gpu_class, _ in state.settled_demand().totals}
        held = {gpu_class for _, gpu_class, _ in state.usage.held_units}
        bought = {each for account in state.accounts.values() for each in (*account.guarantee, *account.limit)}
        return sorted(demanded | held | bought)

    def _active_below(self) -> dict[AccountId, list[AccountId]]:
        """Returns by parent the accounts with demand or use in any class: those whose debts make the mean."""
        if self._active is None:
            state = self._state
            names = {account for account, _, _ in state.settled_demand().totals}
            names.update(account for account, _, booking in state.usage.held_units if booking is not Booking.SPOT)
            self._active = _by_parent(names)
        return self._active

    def _divide(self, gpu_class: GpuClass) -> None:
        root = self._tree(gpu_class)
        self._demands[gpu_class] = demands = {}
        self._targets[gpu_class] = targets = {}
        capacity = self._state.capacity_units(gpu_class)
        waiting: list[tuple[_Need, int]] = [(root, min(capacity, sum(need.demand for need in root.below)))]
        while waiting:
            parent, total = waiting.pop()
            parts = self._parts(parent, total)
            for need in parent.below:
                if need.account != parent.account:
                    targets[need.account] = parts[need.account]
                    demands[need.account] = need.demand
                if need.below:
                    waiting.append((need, parts[need.account]))

    def _parts(self, parent: _Need, total: int) -> dict[AccountId, int]:
        """Returns each sibling's whole target, out of their parent's."""
        needs = {need.account: need for need in parent.below}
        if not needs:
            return {}
        base = pro_rata(total, {key: min(need.guarantee, need.demand) for key, need in needs.items()})
        weights = self._weights(parent)
        caps = {key: need.demand - base[key] for key, need in needs.items()}
        rest = water_fill(total - sum(base.values()), weights, caps).whole()
        return {key: base[key] + rest[key] for key in needs}

    def _weights(self, parent: _Need) -> dict[AccountId, int]:
        """Returns the effective weights of a node's children; siblings active in other classes are part of the mean."""
        debts = self._state.usage.debts
        plain = {need.account: need.weight for need in parent.below}
        owed = {need.account: need.owed for need in parent.below}
        for sibling in self._active_below().get(parent.account, ()):
            if sibling not in plain:
                plain[sibling] = self._weight(sibling)
                owed[sibling] = debts.epoch_credits(sibling, self._now_ms)
        return effective_weights(plain, owed)

    def _weight(self, account: AccountId) -> int:
        terms = self._state.accounts.get(account)
        return 1 if terms is None else terms.weight

    def _tree(self, gpu_class: GpuClass) -> _Need:
        """Returns the centre with every account below it that has demand or use in the class."""
        state = self._state
        totals = state.settled_demand().totals
        names = {account for account, each, _ in totals if each == gpu_class}
        names.update(account for account, each, booking in state.usage.held_units if each == gpu_class)
        below = _by_parent(names)
        root = _Need(ROOT_ACCOUNT)
        in_force = self._guarantees(gpu_class)
        planter = _Planter(state, state.settled_demand(), gpu_class, self._now_ms, below)
        for tenant in below.get(ROOT_ACCOUNT, ()):
            guarantee = in_force.get(tenant, 0)
            root.below.append(planter.plant(tenant, guarantee, guarantee))
        return root


def _by_parent(names: Iterable[AccountId]) -> dict[AccountId, list[AccountId]]:
    below: dict[AccountId, list[AccountId]] = {}
    for name in sorted(names):
        path = lineage(name)
        below.setdefault(path[1] if len(path) > 1 else ROOT_ACCOUNT, []).append(name)
    return below


@dataclass(frozen=True, slots=True)
class _Planter:
    """Adds up what accounts need, from the leaves to the tenants."""

    state: ClusterState
    demand: Demand
    gpu_class: GpuClass
    now_ms: int
    below: dict[AccountId, list[AccountId]]

    def plant(self, account: AccountId, guarantee: int, room: int, *, is_suspended: bool = False) -> _Need:
        """Returns an account with all below it. `room` is what is left of the guarantees that bind above it."""
        state, gpu_class = self.state, self.gpu_class
        terms = state.accounts.get(account)
        is_suspended = is_suspended or (terms is not None and terms.is_suspended)
        if terms is not None and (account == tenant_of(account) or gpu_class in terms.guarantee):
            room = min(room, max(0, guarantee - state.held_by(account, gpu_class, Booking.GUARANTEED)))
        names = self.below.get(account)
        weight, cap = 1 if terms is None else terms.weight, None if terms is None else self._cap(terms)
        if not names:
            own = self._own(account, room, is_suspended=is_suspended)
            return _Need(account, weight, own.owed, guarantee, cap, own.firm, min(room, own.strict))
        children = []
        for name in names:
            known = state.accounts.get(name)
            part = 0 if known is None else known.guarantee.get(gpu_class, 0) * GPU_UNITS
            children.append(self.plant(name, part, room, is_suspended=is_suspended))
        own = self._own(account, room, is_suspended=is_suspended)
        if own.demand:
            children.insert(0, own)
        firm = sum(min(child.firm, child.demand) for child in children)
        return _Need(
            account,
            weight,
            state.usage.debts.epoch_credits(account, self.now_ms),
            guarantee,
            cap,
            firm,
            min(room, sum(child.demand for child in children) - firm),
            children,
        )

    def _cap(self, terms: Account) -> int | None:
        """Returns the most units that the account's limits let it use: on GPUs, on running jobs, on each user."""
        state, key = self.state, (terms.id, self.gpu_class)
        caps = [terms.limit[self.gpu_class] * GPU_UNITS] if self.gpu_class in terms.limit else []
        if terms.running_limit is not None:
            left = max(0, terms.running_limit - state.usage.gangs[terms.id])
            caps.append(self._held(terms.id) + self.demand.largest(*key, left))
        if self.gpu_class in terms.user_limit:
            most = terms.user_limit[self.gpu_class] * GPU_UNITS
            each_wants = state.usage.user_units.get(key, Counter()) + self.demand.user_totals.get(key, Counter())
            caps.append(sum(min(most, units) for units in each_wants.values()))
        return min(caps, default=None)

    def _own(self, account: AccountId, room: int, *, is_suspended: bool) -> _Need:
        """Returns what the account's own jobs need: its sums less those of the accounts below it."""
        state, gpu_class, demand = self.state, self.gpu_class, self.demand
        debts = state.usage.debts
        held, owed = self._held(account), debts.epoch_credits(account, self.now_ms)
        auto, strict = demand.of(account, gpu_class)
        for name in self.below.get(account, ()):
            wanted = demand.of(name, gpu_class)
            held -= self._held(name)
            owed -= debts.epoch_credits(name, self.now_ms)
            auto -= wanted.auto
            strict -= wanted.guaranteed
        if is_suspended:
            return _Need(account, owed=max(0, owed), firm=held)
        if state.headroom.is_limited(account):
            auto -= self._unpayable(account, is_guaranteed_only=False)
            strict -= self._unpayable(account, is_guaranteed_only=True)
        return _Need(account, owed=max(0, owed), firm=held + auto, strict=min(strict, room))

    def _unpayable(self, account: AccountId, *, is_guaranteed_only: bool) -> int:
        """Returns the units of pending jobs that demand counts in the class and no budget lets start."""
        state, bookings = self.state, Bookings(self.state)
        wanted = BookingWanted.GUARANTEED if is_guaranteed_only else BookingWanted.AUTO
        total = 0
        for group, row in state.waiting.groups.get(account, {}).items():
            if group.wanted is not wanted:
                continue
            if state.supply.feasible_class(group.shape, state.closed_pools) != self.gpu_class:
                continue
            found = [bookings.choose(group, each, is_in_turn=False) for each in group.shape.gpu_classes]
            if all(isinstance(each, Reason) and each.code is ReasonCode.BUDGET for each in found):
                total += len(row.line) * group.shape.largest_units
        return total

    def _held(self, account: AccountId) -> int:
        held, gpu_class = self.state.usage.held_units, self.gpu_class
        guaranteed = held.get((account, gpu_class, Booking.GUARANTEED), 0)
        return guaranteed + held.get((account, gpu_class, Booking.BURST), 0)
