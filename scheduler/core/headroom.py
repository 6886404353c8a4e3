"""What money lets start: the headroom of accounts with a hard budget, and what the holds of groups cost.

Both come as events from whoever keeps the money; the planner computes no price. A group whose hold was never asked for
counts as free, so that its first start is tried; the refusal says what it costs, and it is not tried again until there
is so much. Amounts are 10**-6 of the budget's currency.
"""

from scheduler.core.model import AccountId, Booking, GpuClass, lineage
from scheduler.core.waiting import Group

MOST_NEEDS = 50_000
"""Groups whose hold is remembered; beyond them all are forgotten and learned again, at a refused start each."""


class Headroom:
    """Changes by events only."""

    def __init__(self) -> None:
        self.left: dict[AccountId, int] = {}
        """What may still be set aside, by account with a hard budget; negative when more was spent."""
        self._needs: dict[tuple[Group, GpuClass, Booking], int] = {}

    def change(self, account: AccountId, left_micros: int | None) -> None:
        """Takes in an account's headroom; None: it has no hard budget any more."""
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

    def is_limited(self, account: AccountId) -> bool:
        """Tells whether the account or one above it has a hard budget."""
        return bool(self.left) and any(step in self.left for step in lineage(account))
