"""What money lets start: the headroom of accounts with a hard budget, and what the holds of groups cost.

Both come as events from whoever keeps the money; the planner computes no price. A group whose hold was never asked for
counts as free, so that its first start is tried; the refusal says what it costs, and it is not tried again until there
is so much. Amounts are 10**-6 of the budget's currency.
"""

from collections.abc import Iterator

from scheduler.core.model import AccountId, Booking, GpuClass, lineage
from scheduler.core.waiting import Group

MOST_NEEDS = 50_000
"""Groups whose hold is remembered; beyond them all are forgotten and learned again, at a refused start each."""


class Headroom:
    """Changes by events only."""

    def __init__(self) -> None:
        self.left: dict[AccountId, int] = {}
        """What may still be set aside, by account with a hard budget; negative when more was spent."""
        self._prepaid: set[AccountId] = set()
        """Accounts with money paid ahead: the nearest one pays, and those above it are not asked."""
        self._needs: dict[tuple[Group, GpuClass, Booking], int] = {}

    def change(self, account: AccountId, left_micros: int | None, *, is_prepaid: bool = False) -> None:
        """Takes in an account's headroom; None: it has no hard budget any more."""
        (self._prepaid.add if is_prepaid else self._prepaid.discard)(account)
        if left_micros is None:
            self.left.pop(account, None)
        else:
            self.left[account] = left_micros

    def learn(self, group: Group, gpu_class: GpuClass, booking: Booking, micros: int) -> None:
        """Takes in what the hold of a job of the group costs."""
        if len(self._needs) >= MOST_NEEDS:
            self._needs.clear()
        self._needs[group, gpu_class, booking] = micros

    def forget_needs(self) -> None:
        """Forgets what holds cost: prices changed."""
        self._needs.clear()

    def need(self, group: Group, gpu_class: GpuClass, booking: Booking) -> int:
        """Returns what the hold of a job of the group costs, as far as is known."""
        return self._needs.get((group, gpu_class, booking), 0)

    def binding(self, account: AccountId) -> Iterator[AccountId]:
        """Yields the accounts whose headroom a start of the account must fit, nearest first."""
        is_paid = False
        for step in lineage(account) if self.left else ():
            pays = step in self._prepaid
            if step in self.left and not (pays and is_paid):
                yield step
            is_paid |= pays

    def is_limited(self, account: AccountId) -> bool:
        """Tells whether a hard budget binds what the account starts."""
        return bool(self.left) and any(True for _ in self.binding(account))
