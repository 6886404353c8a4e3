"""Budgets: what an account may spend, in which period, and how much of it is set aside for a gang that runs.

A budget is a limit of each civil month, a limit of a fixed time, or money paid ahead. What is left of it is

    month, fixed    limit + extra of this period + overdraft − charged in the period − set aside
    prepaid         paid − charged − set aside + overdraft

counted over the account and all below it. A gang needs room at every account above it that has a hard budget; a soft
one only warns. All amounts are integers in 10**-6 of the budget's currency.
"""

from dataclasses import dataclass, replace
from datetime import timedelta, tzinfo
from enum import StrEnum

from metering.core.civil import day_start_ms, local_time
from scheduler.core.model import AccountId

HOLD_AHEAD_MS = 3_600_000
"""What is set aside for a gang at most: an hour of its price, so that a long job does not lock up a month's money."""
EXTEND_BELOW_MS = 900_000
"""More is set aside when less than a quarter of an hour is covered: an operator's outage of so long costs nobody."""
LEAST_LOOK_MS = 10_000
"""The soonest that a gang is looked at again."""
STOP_MARGIN_MS = 60_000
"""A gang is stopped so long before its grace and its money would end together: several looks, and the stop's way."""
CAPTURE_MS = 3_600_000
"""Use of a gang that goes on is charged at least so often."""
WARN_PERCENTS = (80, 100)


class BudgetKind(StrEnum):
    """What a budget is counted by."""

    MONTH = "month"
    FIXED = "fixed"
    PREPAID = "prepaid"


@dataclass(frozen=True, slots=True)
class Period:
    """`[from_ms, to_ms)`; prepaid money has one period that never ends (`to_ms` None)."""

    from_ms: int
    to_ms: int | None

    def holds(self, at_ms: int) -> bool:
        """True when the instant lies in it."""
        return self.from_ms <= at_ms and (self.to_ms is None or at_ms < self.to_ms)


ALWAYS = Period(0, None)


@dataclass(frozen=True, slots=True)
class Budget:
    """The terms of an account's budget."""

    account: AccountId
    kind: BudgetKind
    currency: str
    zone: str
    limit_micros: int = 0
    """Of each period; 0 for prepaid money."""
    overdraft_micros: int = 0
    is_hard: bool = True
    from_ms: int | None = None
    to_ms: int | None = None
    extra_micros: int = 0
    """Topped up in the period that begins at `extra_from_ms`, and gone after it."""
    extra_from_ms: int | None = None

    def period_at(self, at_ms: int, zone: tzinfo) -> Period | None:
        """Returns the period of an instant; None outside of a fixed budget's time. `zone` is the budget's."""
        if self.kind is BudgetKind.PREPAID:
            return ALWAYS
        if self.kind is BudgetKind.MONTH:
            return month_at(at_ms, zone)
        assert self.from_ms is not None, "a fixed budget has a beginning"
        found = Period(self.from_ms, self.to_ms)
        return found if found.holds(at_ms) else None

    def allowed_micros(self, period: Period) -> int:
        """Returns what may be spent in the period, overdraft apart; prepaid money is not counted here."""
        return self.limit_micros + (self.extra_micros if self.extra_from_ms == period.from_ms else 0)

    def topped_up(self, micros: int, period: Period) -> "Budget":
        """Returns the budget with more for the period."""
        extra = self.extra_micros if self.extra_from_ms == period.from_ms else 0
        return replace(self, extra_micros=extra + micros, extra_from_ms=period.from_ms)


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a budget stands at an instant."""

    budget: Budget
    period: Period | None
    paid_micros: int
    """What there is to spend in the period: the limit with its extra, or all that was ever paid ahead."""
    used_micros: int
    held_micros: int

    @property
    def balance_micros(self) -> int:
        """Returns what is left before the overdraft; negative when that is in use."""
        return self.paid_micros - self.used_micros - self.held_micros

    @property
    def left_micros(self) -> int:
        """Returns what may still be set aside; negative when more was spent than allowed. 0 outside of its time."""
        return 0 if self.period is None else self.balance_micros + self.budget.overdraft_micros

    @property
    def used_permille(self) -> int:
        """Returns charged and set aside in thousandths of what there was; 1000 where there was nothing."""
        spent = self.used_micros + self.held_micros
        return 1000 if self.paid_micros <= 0 else max(0, spent * 1000 // self.paid_micros)


def month_at(at_ms: int, zone: tzinfo) -> Period:
    """Returns the civil month of an instant in a zone."""
    first = local_time(at_ms, zone).date().replace(day=1)
    start_ms = day_start_ms(first, zone)
    if at_ms < start_ms:  # an hour that is lived twice around midnight of the first
        first = (first - timedelta(days=1)).replace(day=1)
        start_ms = day_start_ms(first, zone)
    following = (first + timedelta(days=32)).replace(day=1)
    return Period(start_ms, day_start_ms(following, zone))


@dataclass(frozen=True, slots=True)
class Cover:
    """How long what is set aside for a gang lasts."""

    cover_ms: int
    is_enough: bool
    """It lasts to the gang's limit and through its grace."""
    grace_ms: int

    @property
    def must_stop(self) -> bool:
        """True when the gang must be asked to stop now, for its grace to be paid for."""
        return not self.is_enough and self.cover_ms <= self.grace_ms + STOP_MARGIN_MS

    @property
    def look_in_ms(self) -> int:
        """Returns when to look again."""
        if self.is_enough:
            return CAPTURE_MS
        spare_ms = self.cover_ms - max(EXTEND_BELOW_MS, self.grace_ms + 2 * STOP_MARGIN_MS)
        return min(CAPTURE_MS, max(LEAST_LOOK_MS, spare_ms))


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a gang should have set aside: `micros`, at `hour_micros` an hour."""

    micros: int
    hour_micros: int
    is_all: bool
    """It would last to the gang's end."""
    cent_micros: int
    """The least amount that prices are rounded up to: a hold that lacks less lacks nothing."""

    def covered_by(self, held_micros: int, grace_ms: int) -> Cover:
        """Returns how long a hold lasts; one for a gang without a price lasts for ever."""
        if self.hour_micros <= 0:
            return Cover(CAPTURE_MS, is_enough=True, grace_ms=grace_ms)
        cover_ms = max(0, held_micros) * HOLD_AHEAD_MS // self.hour_micros
        is_enough = self.is_all and held_micros + self.cent_micros > self.micros
        return Cover(cover_ms, is_enough, grace_ms)


def ahead_ms(remaining_ms: int, grace_ms: int) -> int:
    """Returns for how long money is set aside: an hour or what is left of the limit, and the grace after it."""
    return min(HOLD_AHEAD_MS, max(0, remaining_ms)) + grace_ms
