"""How a gang would be held: its booking, or the limit, guarantee or suspension that forbids it.

`Bookings` is the accounts' half of a tick: it knows what accounts hold and what this tick has added, and nothing of
nodes. A gang is wholly `guaranteed` while it fits what is left of its tenant's guarantee, `burst` beyond, `spot` if it
asked for that.
"""

from collections import Counter

from scheduler.core.model import GPU_UNITS, AccountId, Booking, BookingWanted, GpuClass, tenant_of
from scheduler.core.reasons import Reason, ReasonCode
from scheduler.core.state import ClusterState, Group, lineage

_ALL_BOOKINGS = tuple(Booking)


class Bookings:
    """What each account holds, with what the tick has started so far."""

    def __init__(self, state: ClusterState) -> None:
        self._state = state
        self._taken: Counter[tuple[AccountId, GpuClass, Booking]] = Counter()

    def take(self, account: AccountId, gpu_class: GpuClass, booking: Booking, units: int) -> None:
        """Counts a gang that starts in this tick."""
        for name in lineage(account):
            self._taken[name, gpu_class, booking] += units

    def has_guarantee(self, account: AccountId) -> bool:
        """Tells whether the account's tenant bought a guarantee of any class."""
        known = self._state.accounts.get(tenant_of(account))
        return known is not None and bool(known.guarantee)

    def is_known(self, account: AccountId) -> bool:
        """Tells whether the account or one above it has terms that could stop a job; strangers have none."""
        return any(name in self._state.accounts for name in lineage(account))

    def suspension(self, account: AccountId) -> Reason | None:
        """Returns why nothing of the account may start; None when something may."""
        for name in lineage(account):
            known = self._state.accounts.get(name)
            if known is not None and known.is_suspended:
                return Reason(ReasonCode.SUSPENDED, detail=name)
        return None

    def choose(self, group: Group, gpu_class: GpuClass) -> Booking | Reason:
        """Returns how a gang of the group would be held in the class, or what forbids it."""
        units = group.shape.total_units
        over = self._over_limit(group.account, gpu_class, units)
        if over is not None:
            return over
        if group.wanted is BookingWanted.SPOT:
            return Booking.SPOT
        left = self._guarantee_left(group.account, gpu_class)
        if units <= left:
            return Booking.GUARANTEED
        if group.wanted is BookingWanted.GUARANTEED:
            return Reason(ReasonCode.GUARANTEE, need=-(-units // GPU_UNITS), free=max(0, left) // GPU_UNITS)
        return Booking.BURST

    def _over_limit(self, account: AccountId, gpu_class: GpuClass, units: int) -> Reason | None:
        tenant = tenant_of(account)
        for name in lineage(account):
            known = self._state.accounts.get(name)
            limit = None if known is None else known.limit.get(gpu_class)
            if limit is None:
                continue
            left = limit * GPU_UNITS - self._held(name, gpu_class, _ALL_BOOKINGS)
            if units > left:
                code = ReasonCode.QUOTA_TENANT if name == tenant else ReasonCode.QUOTA_PROJECT
                return Reason(code, need=-(-units // GPU_UNITS), free=max(0, left) // GPU_UNITS, detail=name)
        return None

    def _guarantee_left(self, account: AccountId, gpu_class: GpuClass) -> int:
        """Returns the units of the tenant's guarantee left to the account; a project's own part binds too."""
        tenant = tenant_of(account)
        left: int | None = None
        for name in lineage(account):
            known = self._state.accounts.get(name)
            bought = None if known is None else known.guarantee.get(gpu_class)
            if bought is None and name != tenant:
                continue
            here = (bought or 0) * GPU_UNITS - self._held(name, gpu_class, (Booking.GUARANTEED,))
            left = here if left is None else min(left, here)
        return left or 0

    def _held(self, account: AccountId, gpu_class: GpuClass, bookings: tuple[Booking, ...]) -> int:
        in_tick = sum(self._taken[account, gpu_class, booking] for booking in bookings)
        return self._state.held_by(account, gpu_class, *bookings) + in_tick
