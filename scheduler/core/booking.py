"""How a gang would be held: its booking, or the limit, guarantee or suspension that forbids it.

`Bookings` is the accounts' half of a tick: it knows what accounts hold, with what this tick has added, and nothing of
nodes. A gang is wholly `guaranteed` while it fits what is left of its tenant's guarantee, and of its project's part
where the tenant divided it, `burst` beyond, `spot` if it asked for that.

Guarantees that exceed the capacity that is left shrink in proportion, for new starts only. What is free of a guarantee
is kept for the first waiting job that accepts nothing else, up to its size.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence, Set

from scheduler.core.fairshare import pro_rata
from scheduler.core.model import (
    GPU_UNITS,
    Account,
    AccountId,
    Allocation,
    AllocationId,
    Booking,
    BookingWanted,
    GpuClass,
    Shape,
    UserName,
    lineage,
    tenant_of,
)
from scheduler.core.plan import Promotion
from scheduler.core.reasons import Reason, ReasonCode
from scheduler.core.state import ClusterState
from scheduler.core.waiting import Group

_ALL_BOOKINGS = tuple(Booking)


class Bookings:
    """What each account holds and is charged, with what the tick has decided so far."""

    def __init__(self, state: ClusterState) -> None:
        self._state = state
        self._taken: defaultdict[tuple[AccountId, GpuClass, Booking], int] = defaultdict(int)
        self._kept: defaultdict[tuple[AccountId, GpuClass], int] = defaultdict(int)
        self._keeps_for: dict[tuple[AccountId, GpuClass], Group] = {}
        self._bought: dict[GpuClass, dict[AccountId, int]] = {}
        self._charges: dict[tuple[Shape, GpuClass, Booking], int] = {}
        self._spent: defaultdict[AccountId, int] = defaultdict(int)
        self._gangs: defaultdict[AccountId, int] = defaultdict(int)
        self._user_units: defaultdict[tuple[AccountId, GpuClass, UserName], int] = defaultdict(int)
        self.promotions: list[Promotion] = []
        self.burst_charge: defaultdict[AccountId, int] = defaultdict(int)
        """What this tick's burst starts and promises cost, less its promotions: micro-credits/s times GPU_UNITS."""
        self.spot_charge: defaultdict[AccountId, int] = defaultdict(int)
        """The same of spot."""
        self.is_guarantee_turn = False
        """While jobs that fit a guarantee have their turn, none may start beyond it."""

    def take(self, group: Group, gpu_class: GpuClass, booking: Booking) -> None:
        """Counts a gang of the group that starts in this tick."""
        self._count(group, gpu_class, booking, +1)
        if self._state.headroom.is_limited(group.account):
            need = self._state.headroom.need(group, gpu_class, booking)
            for account in self._state.headroom.binding(group.account):
                self._spent[account] += need
        self._charge(group, gpu_class, booking)

    def promise(self, group: Group) -> None:
        """Lets a job that is promised a start weigh in the order as if it ran: the next promise is another's."""
        if group.wanted is BookingWanted.GUARANTEED:
            self.keep_guarantee(group)
            return
        booking = Booking.SPOT if group.wanted is BookingWanted.SPOT else Booking.BURST
        self._charge(group, group.shape.gpu_classes[0], booking)

    def _charge(self, group: Group, gpu_class: GpuClass, booking: Booking) -> None:
        if booking is Booking.GUARANTEED:
            return
        charges = self.burst_charge if booking is Booking.BURST else self.spot_charge
        charge = self.charge_of(group.shape, gpu_class, booking)
        for account in lineage(group.account):
            charges[account] += charge

    def choose_anew(
        self, group: Group, held: tuple[GpuClass, Booking], leaving: Sequence[Allocation]
    ) -> Booking | Reason:
        """Returns how a gang that is held as claimed would be held now, or what forbids it, were others gone.

        `held` are the class and the booking of the claim, `leaving` those of its victims that have not ended.
        """
        gpu_class, booking = held
        self._count(group, gpu_class, booking, -1)
        for gang in leaving:
            self._count_gang(gang, -1)
        chosen = self.choose(group, gpu_class, is_in_turn=False)
        for gang in leaving:
            self._count_gang(gang, +1)
        self._count(group, gpu_class, booking, +1)
        return chosen

    def _count_gang(self, gang: Allocation, sign: int) -> None:
        for account in lineage(gang.account):
            self._gangs[account] += sign if gang.surplus_of is None else 0
            self._taken[account, gang.gpu_class, gang.booking] += sign * gang.total_units
            self._user_units[account, gang.gpu_class, gang.user] += sign * gang.total_units

    def _count(self, group: Group, gpu_class: GpuClass, booking: Booking, sign: int) -> None:
        for account in lineage(group.account):
            self._gangs[account] += sign
        self._count_units(group, gpu_class, booking, sign * group.shape.total_units)

    def _count_units(self, group: Group, gpu_class: GpuClass, booking: Booking, units: int) -> None:
        for account in lineage(group.account):
            self._taken[account, gpu_class, booking] += units
            if group.user is not None:
                self._user_units[account, gpu_class, group.user] += units

    def parts_left(self, group: Group, gpu_class: GpuClass, booking: Booking, most: int) -> int:
        """Returns how many more nodes, at most so many, limits and budgets let a gang have that is counted already."""
        each, parts = group.shape.gpu_units, most
        for limiting in self._limits(group.account):
            for left in self._units_left(limiting, gpu_class, group.user):
                parts = min(parts, left // each)
        cost = self._cost_of_part(group, gpu_class, booking)
        if cost:
            headroom = self._state.headroom
            for name in headroom.binding(group.account):
                parts = min(parts, (headroom.left[name] - self._spent[name]) // cost)
        return max(0, parts)

    def take_parts(self, group: Group, gpu_class: GpuClass, booking: Booking, parts: int) -> None:
        """Counts so many surplus nodes of a gang that starts in this tick."""
        self._count_units(group, gpu_class, booking, parts * group.shape.gpu_units)
        cost = parts * self._cost_of_part(group, gpu_class, booking)
        for name in self._state.headroom.binding(group.account) if cost else ():
            self._spent[name] += cost

    def _cost_of_part(self, group: Group, gpu_class: GpuClass, booking: Booking) -> int:
        """Returns what the hold of one node of a gang costs, rounded up, as far as is known."""
        return -(-self._state.headroom.need(group, gpu_class, booking) // group.shape.nodes)

    def weigh(self, group: Group, gpu_class: GpuClass, booking: Booking) -> None:
        """Lets a job with a claim weigh in the order as if it ran: it is counted as held already."""
        self._charge(group, gpu_class, booking)

    def taken_beside_spot(self, account: AccountId, gpu_class: GpuClass) -> int:
        """Returns the capacity units, spot apart, that this tick has added to what the account holds."""
        taken = self._taken
        if not taken:
            return 0
        guaranteed = taken.get((account, gpu_class, Booking.GUARANTEED), 0)
        return guaranteed + taken.get((account, gpu_class, Booking.BURST), 0)

    def promote(self, allocation_id: AllocationId) -> None:
        """Counts a burst gang as guaranteed from now on."""
        allocation = self._state.allocations[allocation_id]
        assert allocation.booking is Booking.BURST, "only burst gangs are promoted"
        units, charge = allocation.total_units, self._state.usage.charge_of(allocation)
        for account in lineage(allocation.account):
            self._taken[account, allocation.gpu_class, Booking.BURST] -= units
            self._taken[account, allocation.gpu_class, Booking.GUARANTEED] += units
            self.burst_charge[account] -= charge
        self.promotions.append(Promotion(allocation_id, Booking.GUARANTEED))

    def keep_guarantee(self, group: Group) -> None:
        """Keeps guarantee free for a job that waits for it, if it is its tenant's first, and could ever fit it."""
        tenant, units = tenant_of(group.account), group.shape.total_units
        if group.wanted is not BookingWanted.GUARANTEED or self.suspension(group.account) is not None:
            return
        for gpu_class in group.shape.gpu_classes:
            if (tenant, gpu_class) in self._keeps_for:
                return
            levels = self._guarantees(group.account, gpu_class)
            if (
                min((bought for _, bought in levels), default=0) < units
                or self._over_limit(group, gpu_class) is not None
                or self._over_budget(group, gpu_class, Booking.GUARANTEED) is not None
                or not self._state.supply.could_hold(group.shape, gpu_class, self._state.closed_pools)
            ):
                continue
            self._keeps_for[tenant, gpu_class] = group
            for account, _ in levels:
                self._kept[account, gpu_class] += units
            return

    @property
    def kept(self) -> dict[tuple[AccountId, GpuClass], Group]:
        """Returns for whom guarantee is kept free, by tenant and class."""
        return dict(self._keeps_for)

    def tenants_with_guarantee_left(self) -> set[AccountId]:
        """Returns the tenants that could start a share of a GPU within their guarantee in some class."""
        held, found = self._state.usage.held_units, set()
        for gpu_class in self._state.guarantees:
            for tenant, bought in self._in_force(gpu_class).items():
                key = (tenant, gpu_class, Booking.GUARANTEED)
                if bought - held.get(key, 0) - self._taken.get(key, 0) - self._kept.get((tenant, gpu_class), 0) > 0:
                    found.add(tenant)
        return found

    def has_guarantee(self, account: AccountId) -> bool:
        """Tells whether the account's tenant bought a guarantee of any class."""
        known = self._state.accounts.get(tenant_of(account))
        return known is not None and bool(known.guarantee)

    def may_be_guaranteed(self, group: Group) -> bool:
        """Tells whether a job of the group that is looked at now may get its guarantee.

        Those that prefer one class above all others had their turn; after it, none of them fits its guarantee.
        """
        if self.is_guarantee_turn or group.wanted is BookingWanted.GUARANTEED:
            return True
        if group.wanted is BookingWanted.SPOT or len(group.shape.gpu_classes) == 1:
            return False
        units = group.shape.total_units
        return any(units <= self.guarantee_left(group.account, gpu_class) for gpu_class in group.shape.gpu_classes)

    def is_known(self, account: AccountId) -> bool:
        """Tells whether the account or one above it has terms that could stop a job; strangers have none."""
        return any(name in self._state.accounts for name in lineage(account))

    def suspension(self, account: AccountId) -> Reason | None:
        """Returns why nothing of the account may start; None when something may."""
        path, binding = lineage(account), self._state.waiting.binding
        if binding.isdisjoint(path):
            return None
        for name in path:
            if name in binding and self._state.accounts[name].is_suspended:
                return Reason(ReasonCode.SUSPENDED, detail=name)
        return None

    def choose(self, group: Group, gpu_class: GpuClass, *, is_in_turn: bool = True) -> Booking | Reason:
        """Returns how a gang of the group would be held in the class, or what forbids it.

        With `is_in_turn`, in the turn of what fits a guarantee, to go beyond it is forbidden.
        """
        units = group.shape.total_units
        booking = self._booking(group, gpu_class, units, is_in_turn=is_in_turn)
        if isinstance(booking, Reason):
            return booking
        return self._over_budget(group, gpu_class, booking) or booking

    def short_of_guarantee(self, group: Group, gpu_class: GpuClass) -> int | None:
        """Returns the units of guarantee that others must give up for a gang of the group to be guaranteed.

        0 for a gang that fits what is left. None where more than that is in the way, or no guarantee is large enough:
        what gives up its guarantee leaves room under limits too, so a limit counts where it is shorter still.
        """
        units, tenant = group.shape.total_units, tenant_of(group.account)
        bought = min((each for _, each in self._guarantees(group.account, gpu_class)), default=0)
        if group.wanted is BookingWanted.SPOT or units > bought or self.suspension(group.account) is not None:
            return None
        left = self.guarantee_left(group.account, gpu_class)
        if self._keeps_for.get((tenant, gpu_class)) == group:
            left += units
        short = max(0, units - left)
        for each in self._limits(group.account):
            if each.running_limit is not None and self._jobs_left(each) < 1:
                return None
            if any(units - room > short for room in self._units_left(each, gpu_class, group.user)):
                return None
        return None if self._over_budget(group, gpu_class, Booking.GUARANTEED) is not None else short

    def obstacles(self, group: Group, gpu_class: GpuClass) -> tuple[Booking, list[Reason]]:
        """Returns how a gang of the group would be held in the class, and every limit and budget in its way.

        For a question about one job, not for a tick: `choose` stops at the first.
        """
        found = list(self._limits_over(group, gpu_class))
        booking = Booking.SPOT
        if group.wanted is not BookingWanted.SPOT:
            units, left = group.shape.total_units, self.guarantee_left(group.account, gpu_class)
            is_bought = group.wanted is BookingWanted.GUARANTEED or units <= left
            booking = Booking.GUARANTEED if is_bought else Booking.BURST
            if is_bought and units > left:
                found.append(_no_guarantee(units, left))
        return booking, found + list(self._budgets_over(group, gpu_class, booking))

    def suspensions(self, account: AccountId) -> list[Reason]:
        """Returns every account of the path that is suspended, the nearest first."""
        known = (self._state.accounts.get(name) for name in lineage(account))
        return [Reason(ReasonCode.SUSPENDED, detail=each.id) for each in known if each and each.is_suspended]

    def _booking(self, group: Group, gpu_class: GpuClass, units: int, *, is_in_turn: bool) -> Booking | Reason:
        """Returns what limits and guarantees say."""
        over = self._over_limit(group, gpu_class)
        if over is not None:
            return over
        if group.wanted is BookingWanted.SPOT:
            return Booking.SPOT
        left = self.guarantee_left(group.account, gpu_class)
        if self._keeps_for.get((tenant_of(group.account), gpu_class)) == group:
            left += units  # it is kept for this very group
        if units <= left:
            return Booking.GUARANTEED
        if group.wanted is BookingWanted.GUARANTEED or (is_in_turn and self.is_guarantee_turn):
            return _no_guarantee(units, left)
        return Booking.BURST

    def blocks(self) -> dict[Group, Reason]:
        """Returns what forbids a start to each group that could not start whatever is free, beside what did start."""
        found: dict[Group, Reason] = {}
        self.is_guarantee_turn = False  # it may not be over where a tick was cut short
        heads, binding = self._state.waiting.heads[BookingWanted.GUARANTEED], self._state.waiting.binding
        is_free = not binding and not self._state.headroom.left
        for account, groups in self._state.waiting.groups.items():
            if account not in heads and (is_free or not self._is_bound(account, binding)):
                continue
            suspended = self.suspension(account)
            if suspended is not None:
                found.update(dict.fromkeys(groups, suspended))
                continue
            limits = self._limits(account)
            has_budget = self._state.headroom.is_limited(account)
            if not limits and not has_budget and account not in heads:
                continue
            rooms: dict[tuple[UserName | None, GpuClass], int | None] = {}
            for group in groups:
                is_strict = group.wanted is BookingWanted.GUARANTEED
                if not has_budget and not is_strict and self._is_within(group, limits, rooms):
                    continue
                forbidden = self._forbidden(group)
                if forbidden is not None:
                    found[group] = forbidden
        return found

    def _is_bound(self, account: AccountId, binding: Set[AccountId]) -> bool:
        """Tells whether a limit, a suspension or a budget on the account's path could stop a job."""
        return not binding.isdisjoint(lineage(account)) or self._state.headroom.is_limited(account)

    def _limits(self, account: AccountId) -> list[Account]:
        """Returns the accounts of the path that limit what may start, nearest first."""
        path, binding, accounts = lineage(account), self._state.waiting.binding, self._state.accounts
        if binding.isdisjoint(path):
            return []
        return [accounts[name] for name in path if name in binding and accounts[name].is_limited]

    def _is_within(
        self, group: Group, limits: list[Account], rooms: dict[tuple[UserName | None, GpuClass], int | None]
    ) -> bool:
        """Tells whether limits leave room for the group in a class. `rooms` remembers it, for one account."""
        if any(each.running_limit is not None and self._jobs_left(each) < 1 for each in limits):
            return False
        for gpu_class in group.shape.gpu_classes:
            key = (group.user, gpu_class)
            if key not in rooms:
                lefts = [left for each in limits for left in self._units_left(each, gpu_class, group.user)]
                rooms[key] = min(lefts, default=None)
            room = rooms[key]
            if room is None or group.shape.total_units <= room:
                return True
        return False

    def _forbidden(self, group: Group) -> Reason | None:
        first: Reason | None = None
        for gpu_class in group.shape.gpu_classes:
            chosen = self.choose(group, gpu_class)
            if not isinstance(chosen, Reason):
                return None
            first = first or chosen
        return first

    def guarantee_left(self, account: AccountId, gpu_class: GpuClass) -> int:
        """Returns the units of its guarantee that the account may still start in; 0 or less if there are none."""
        levels = self._guarantees(account, gpu_class)
        return min(
            (
                bought - self._held(name, gpu_class, (Booking.GUARANTEED,)) - self._kept[name, gpu_class]
                for name, bought in levels
            ),
            default=0,
        )

    def charge_of(self, shape: Shape, gpu_class: GpuClass, booking: Booking) -> int:
        """Returns what a gang of the shape would cost: micro-credits per second, times GPU_UNITS."""
        key = (shape, gpu_class, booking)
        charge = self._charges.get(key)
        if charge is None:
            state = self._state
            charge = state.usage.rates.rate(gpu_class, booking) * state.supply.charged_units(shape, gpu_class)
            self._charges[key] = charge
        return charge

    def guarantee_of(self, tenant: AccountId, gpu_class: GpuClass) -> int:
        """Returns the units of its guarantee that the tenant can count on now, with the capacity that is left."""
        return self._in_force(gpu_class).get(tenant, 0)

    def _in_force(self, gpu_class: GpuClass) -> dict[AccountId, int]:
        """Returns what tenants can count on now; worked out once a tick."""
        bought = self._bought.get(gpu_class)
        if bought is None:
            bought = self._bought[gpu_class] = guarantees_in_force(self._state, gpu_class)
        return bought

    def _guarantees(self, account: AccountId, gpu_class: GpuClass) -> list[tuple[AccountId, int]]:
        """Returns the accounts of the path whose guarantee binds, with its units; none without a tenant's guarantee."""
        tenant = tenant_of(account)
        bought = self.guarantee_of(tenant, gpu_class)
        if not bought:
            return []
        levels = [(tenant, bought)]
        for name in lineage(account)[:-1]:
            known = self._state.accounts.get(name)
            part = None if known is None else known.guarantee.get(gpu_class)
            if part is not None:
                levels.append((name, part * GPU_UNITS))
        return levels

    def _over_limit(self, group: Group, gpu_class: GpuClass) -> Reason | None:
        """Returns the nearest limit that a gang of the group would break in the class, with its numbers."""
        return next(self._limits_over(group, gpu_class), None)

    def _limits_over(self, group: Group, gpu_class: GpuClass) -> Iterator[Reason]:
        """Yields the limits that a gang of the group would break in the class, the nearest first."""
        tenant, units = tenant_of(group.account), group.shape.total_units
        need = -(-units // GPU_UNITS)
        for each in self._limits(group.account):
            code = ReasonCode.QUOTA_TENANT if each.id == tenant else ReasonCode.QUOTA_PROJECT
            if gpu_class in each.limit and units > (left := self._account_left(each, gpu_class)):
                yield Reason(code, need=need, free=max(0, left) // GPU_UNITS, detail=each.id)
            if each.running_limit is not None and (jobs_left := self._jobs_left(each)) < 1:
                yield Reason(code, need=1, free=max(0, jobs_left), unit="jobs", detail=each.id)
            if gpu_class in each.user_limit and group.user is not None:
                left = self._user_left(each, gpu_class, group.user)
                if units > left:
                    whose = f"{group.user} in {each.id}"
                    yield Reason(ReasonCode.QUOTA_USER, need=need, free=max(0, left) // GPU_UNITS, detail=whose)

    def _over_budget(self, group: Group, gpu_class: GpuClass, booking: Booking) -> Reason | None:
        """Returns which account has too little money left for the hold of a job of the group."""
        if not self._state.headroom.is_limited(group.account):
            return None
        return next(self._budgets_over(group, gpu_class, booking), None)

    def _budgets_over(self, group: Group, gpu_class: GpuClass, booking: Booking) -> Iterator[Reason]:
        headroom = self._state.headroom
        need = headroom.need(group, gpu_class, booking)
        for name in headroom.binding(group.account) if need > 0 else ():
            if headroom.left[name] - self._spent[name] < need:
                yield Reason(ReasonCode.BUDGET, detail=name)

    def _units_left(self, limiting: Account, gpu_class: GpuClass, user: UserName | None) -> Iterator[int]:
        """Yields what each limit on GPUs of the class leaves, in capacity units."""
        if gpu_class in limiting.limit:
            yield self._account_left(limiting, gpu_class)
        if gpu_class in limiting.user_limit and user is not None:
            yield self._user_left(limiting, gpu_class, user)

    def _account_left(self, limiting: Account, gpu_class: GpuClass) -> int:
        return limiting.limit[gpu_class] * GPU_UNITS - self._held(limiting.id, gpu_class, _ALL_BOOKINGS)

    def _user_left(self, limiting: Account, gpu_class: GpuClass, user: UserName) -> int:
        held = self._state.usage.user_units.get((limiting.id, gpu_class), Counter())[user]
        in_tick = self._user_units[limiting.id, gpu_class, user]
        return limiting.user_limit[gpu_class] * GPU_UNITS - held - in_tick

    def _jobs_left(self, limiting: Account) -> int:
        assert limiting.running_limit is not None, "only asked where running jobs are limited"
        return limiting.running_limit - self._state.usage.gangs[limiting.id] - self._gangs[limiting.id]

    def _held(self, account: AccountId, gpu_class: GpuClass, bookings: tuple[Booking, ...]) -> int:
        held, taken, total = self._state.usage.held_units, self._taken, 0
        for booking in bookings:
            key = (account, gpu_class, booking)
            total += held.get(key, 0) + taken.get(key, 0)
        return total


def _no_guarantee(units: int, left: int) -> Reason:
    return Reason(ReasonCode.GUARANTEE, need=-(-units // GPU_UNITS), free=max(0, left) // GPU_UNITS)


def guarantees_in_force(state: ClusterState, gpu_class: GpuClass) -> dict[AccountId, int]:
    """Returns each tenant's guarantee in capacity units, cut in proportion where they exceed the capacity left."""
    bought = state.guarantees.get(gpu_class)
    return pro_rata(state.capacity_units(gpu_class), bought) if bought else {}
