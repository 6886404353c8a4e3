"""What accounts hold and what that costs them: units by booking, charges, debt, and burst gangs that could be promoted.

A gang is charged from the decision that gave it its devices to their release, whatever its phase: that is how long
others cannot have them. Only `burst` makes debt.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from sortedcontainers import SortedList

from scheduler.core.debt import Debts, RateBook, RateKey
from scheduler.core.model import AccountId, Allocation, AllocationId, Booking, GpuClass, JobId, UserName, tenant_of
from scheduler.core.stretch import Claim
from scheduler.core.tally import add, add_nested

GangKey = tuple[
    AccountId, GpuClass, int
]  # account, class, capacity units: burst gangs that promotion cannot tell apart
GangPlace = tuple[int, JobId, AllocationId]  # submitted_ms, job, allocation


class Usage:
    """The accounts' side of live allocations, for each account and all above it."""

    def __init__(self, half_life_ms: int) -> None:
        self.held_units: Counter[tuple[AccountId, GpuClass, Booking]] = Counter()
        self.gangs: Counter[AccountId] = Counter()
        """Live gangs, of an account and all below it."""
        self.user_units: dict[tuple[AccountId, GpuClass], Counter[UserName]] = {}
        """Capacity units that each user holds in an account and all below it, whatever the booking."""
        self.debts = Debts(half_life_ms)
        self.rates = RateBook()
        self.spot_charge: Counter[AccountId] = Counter()
        """What the spot gangs cost now: micro-credits per second, times GPU_UNITS. Orders spot jobs, makes no debt."""
        self.promotable: dict[AccountId, dict[GangKey, SortedList[GangPlace]]] = {}
        """Each tenant's burst gangs that would rather be guaranteed, by submit time."""
        self.surplus: dict[AllocationId, AllocationId] = {}
        """By gang, its surplus nodes, while it has any."""
        self.guaranteed: dict[tuple[AccountId, GpuClass], dict[AllocationId, Allocation]] = {}
        """Each project's guaranteed gangs, not asked to end yet."""
        self._charged: dict[AllocationId, int] = {}

    def take(self, allocation: Allocation, charged_units: int, path: Sequence[AccountId]) -> None:
        """Counts a gang from its decision on. `path` is its account and all above it."""
        self._charged[allocation.id] = charged_units
        if allocation.surplus_of is not None:
            self.surplus[allocation.surplus_of] = allocation.id
        self._hold(allocation, path, +1)
        self._count(allocation, path, +1)
        if allocation.booking is Booking.BURST:
            self._step(path, (), self._steps(allocation, None))
        self._charge_spot(allocation, path, +1)

    def release(self, allocation: Allocation, at_ms: int, path: Sequence[AccountId]) -> None:
        """Counts a gang no more that ended at an instant, which may lie before what is known of others."""
        self._hold(allocation, path, -1)
        self._count(allocation, path, -1)
        if allocation.booking is Booking.BURST:
            self._step(path, self._steps(allocation, None), self._steps(allocation, at_ms))
        self._charge_spot(allocation, path, -1)
        del self._charged[allocation.id]
        if allocation.surplus_of is not None:
            del self.surplus[allocation.surplus_of]

    def rebook(self, old: Allocation, new: Allocation, at_ms: int, path: Sequence[AccountId]) -> None:
        """Counts a burst gang as guaranteed from an instant on."""
        assert (old.booking, new.booking) == (Booking.BURST, Booking.GUARANTEED), (
            "promotion is from burst to guaranteed"
        )
        self._hold(old, path, -1)
        self._hold(new, path, +1)
        self._step(path, self._steps(old, None), self._steps(old, at_ms))

    def change_rates(
        self, at_ms: int, rates: Mapping[RateKey, int], live: Iterable[tuple[Allocation, Sequence[AccountId]]]
    ) -> None:
        """Puts new rates in force, for live gangs too. Linear in those."""
        gangs = list(live)
        before = [self._steps(allocation, None) for allocation, _ in gangs]
        for allocation, path in gangs:
            self._charge_spot(allocation, path, -1)
        self.rates.change(at_ms, rates)
        for (allocation, path), steps in zip(gangs, before, strict=True):
            if allocation.booking is Booking.BURST:
                self._step(path, steps, self._steps(allocation, None))
            self._charge_spot(allocation, path, +1)

    def charge_of(self, allocation: Allocation) -> int:
        """Returns what a live gang costs now: micro-credits per second, times GPU_UNITS."""
        return self.rates.rate(allocation.gpu_class, allocation.booking) * self._charged[allocation.id]

    def file_promotable(self, allocation: Allocation, submitted_ms: int) -> None:
        """Remembers a burst gang for promotion."""
        gangs = self.promotable.setdefault(tenant_of(allocation.account), {})
        gangs.setdefault(_gang_key(allocation), SortedList()).add((submitted_ms, allocation.job, allocation.id))

    def drop_promotable(self, allocation: Allocation, submitted_ms: int) -> None:
        """Undoes `file_promotable`; does nothing for a gang that is not filed."""
        gangs = self.promotable.get(tenant_of(allocation.account), {})
        places = gangs.get(_gang_key(allocation))
        place = (submitted_ms, allocation.job, allocation.id)
        if places is None or place not in places:
            return
        places.remove(place)
        if not places:
            del gangs[_gang_key(allocation)]
            if not gangs:
                del self.promotable[tenant_of(allocation.account)]

    def hold_claim(self, claim: Claim, path: Sequence[AccountId], sign: int) -> None:
        """Counts a claim as the gang that it is kept for, or no more. It costs nothing until that starts."""
        self._hold(claim, path, sign)
        self._count(claim, path, sign)

    def facts(self) -> dict[str, object]:
        """Returns what the ledger must give back: debts and the rates in force."""
        return {"debts": dict(self.debts.values), "rates": self.rates.in_force()}

    def restore_burst_use(
        self, path: Sequence[AccountId], gpu_class: GpuClass, charged_units: int, span_ms: tuple[int, int]
    ) -> None:
        """Adds burst use that is over to what live gangs make."""
        for at_ms, change in self.rates.steps(gpu_class, Booking.BURST, charged_units, *span_ms):
            self.debts.step(path, at_ms, change)

    def _steps(self, allocation: Allocation, to_ms: int | None) -> Sequence[tuple[int, int]]:
        units = self._charged[allocation.id]
        return self.rates.steps(allocation.gpu_class, Booking.BURST, units, allocation.decided_ms, to_ms)

    def _step(self, path: Sequence[AccountId], old: Sequence[tuple[int, int]], new: Sequence[tuple[int, int]]) -> None:
        """Replaces steps by others; those that both have stay as they are."""
        same = 0
        while same < min(len(old), len(new)) and old[same] == new[same]:
            same += 1
        for at_ms, change in old[same:]:
            self.debts.step(path, at_ms, -change)
        for at_ms, change in new[same:]:
            self.debts.step(path, at_ms, change)

    def _charge_spot(self, allocation: Allocation, path: Sequence[AccountId], sign: int) -> None:
        if allocation.booking is not Booking.SPOT:
            return
        charge = sign * self.charge_of(allocation)
        for account in path:
            self.spot_charge[account] += charge
            if not self.spot_charge[account]:
                del self.spot_charge[account]

    def _count(self, held: Allocation | Claim, path: Sequence[AccountId], sign: int) -> None:
        units = sign * held.total_units
        is_surplus = isinstance(held, Allocation) and held.surplus_of is not None
        for account in path:
            if not is_surplus:
                add(self.gangs, account, sign)
            add_nested(self.user_units, (account, held.gpu_class), held.user, units)

    def _hold(self, held: Allocation | Claim, path: Sequence[AccountId], sign: int) -> None:
        units = sign * held.total_units
        for account in path:
            add(self.held_units, (account, held.gpu_class, held.booking), units)


def _gang_key(allocation: Allocation) -> GangKey:
    return allocation.account, allocation.gpu_class, allocation.total_units
