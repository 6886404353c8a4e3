"""What the scheduler needs of money: one small protocol, implemented by `metering`, injected by the daemon.

Every call happens inside the caller's database transaction, so that two submissions together can never spend more than
there is. Amounts for people are `Money`, a decimal string with a currency, because the scheduler only carries them;
the planner sees headroom and what holds cost as integers in 10**-6, by events.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from sqlalchemy.engine import Connection

from scheduler.core.events import HeadroomChanged, HoldPriced
from scheduler.core.model import AccountId, AllocationId, Booking, GpuClass, JobId

HoldEvent = HeadroomChanged | HoldPriced


@dataclass(frozen=True, slots=True)
class Money:
    """An amount for people: decimal digits without exponent, and an ISO 4217 code."""

    amount: str
    currency: str


@dataclass(frozen=True, slots=True)
class CostQuestion:
    """A gang whose greatest cost is asked for. `gpu_eq_units` is per gang, `time_limit_ms` the most it may run."""

    account: AccountId
    gpu_class: GpuClass
    booking: Booking
    gpu_eq_units: int
    time_limit_ms: int


@dataclass(frozen=True, slots=True)
class Quote:
    """The most that a gang can cost, and how: `gpu_hours` × `unit_price` (per GPU-hour, decimal strings)."""

    most: Money
    gpu_hours: str
    unit_price: str
    price_book: str


@dataclass(frozen=True, slots=True)
class OverBudget:
    """A refusal: the account named is out of money."""

    account: AccountId
    needed: Money
    left: Money


@dataclass(frozen=True, slots=True)
class Submission:
    """Jobs that are asked for: `count` gangs, each as dear as the dearest of `questions` (one for each class)."""

    questions: tuple[CostQuestion, ...]
    count: int
    most: Money | None = None
    """What its owner lets all of them together cost at most; an empty currency is that of the prices."""


@dataclass(frozen=True, slots=True)
class BudgetLeft:
    """The budget nearest to an account: what is left of it now, and when its period ends."""

    account: AccountId
    kind: str
    is_hard: bool
    left: Money
    ends_ms: int | None
    zone: str


@dataclass(frozen=True, slots=True)
class HoldAsk:
    """A gang that is about to start. The question's limit is the job's whole limit."""

    allocation: AllocationId
    job: JobId
    question: CostQuestion
    grace_ms: int
    is_surplus: bool = False
    """These are nodes that an elastic gang gets besides: what they cost says nothing of other jobs' starts."""


class Holds(Protocol):
    """The holds of one command: each counts at once for those after it."""

    def take(self, ask: HoldAsk) -> OverBudget | None:
        """Sets money aside for a start; None when there was enough, or when nothing limits the account."""
        ...

    def events(self) -> Sequence[HoldEvent]:
        """Returns what the planner must learn, refusals included; the command emits it at its end."""
        ...


class Admission(Protocol):
    """Prices and budgets as the scheduler sees them."""

    def most_cost(self, connection: Connection, question: CostQuestion, at_ms: int) -> Quote | None:
        """Returns the most that the gang can cost at the price book in force; None where the class has no price."""
        ...

    def admit(self, connection: Connection, asked: Submission, at_ms: int) -> Sequence[str]:
        """Returns warnings of soft budgets. Raises Refused (over_budget) when it may cost more than there is."""
        ...

    def budget_left(self, connection: Connection, account: AccountId, at_ms: int) -> BudgetLeft | None:
        """Returns where the budget nearest to an account stands; None where neither it nor one above has one."""
        ...

    def cap(self, connection: Connection, jobs: Sequence[JobId], asked: Submission, at_ms: int) -> None:
        """Remembers the most that each of the jobs of an admitted submission may cost."""
        ...

    def holds(self, connection: Connection, at_ms: int) -> Holds:
        """Returns where one command's starts take their holds."""
        ...

    def extend(self, connection: Connection, ask: HoldAsk, at_ms: int) -> None:
        """Has more set aside for a gang that is to run longer: the question's limit is all that it may run yet.

        Raises Refused (over_budget) when that may cost more than there is, what is held for it already included.
        """
        ...

    def release(self, connection: Connection, allocations: Sequence[AllocationId], at_ms: int) -> None:
        """Has what is set aside for gangs that ended settled soon, and the rest let go of."""
        ...

    def headroom(self, connection: Connection, at_ms: int) -> Sequence[HoldEvent]:
        """Returns what a planner that starts anew must learn."""
        ...


class FreeOfCharge:
    """Admission where nothing has a price: replays, benchmarks, and tests of what is not money."""

    def most_cost(self, connection: Connection, question: CostQuestion, at_ms: int) -> Quote | None:  # noqa: ARG002
        """Returns None: nothing has a price."""
        return None

    def admit(self, connection: Connection, asked: Submission, at_ms: int) -> Sequence[str]:  # noqa: ARG002
        """Returns no warnings."""
        return ()

    def budget_left(self, connection: Connection, account: AccountId, at_ms: int) -> BudgetLeft | None:  # noqa: ARG002
        """Returns None: nobody has a budget."""
        return None

    def cap(self, connection: Connection, jobs: Sequence[JobId], asked: Submission, at_ms: int) -> None:
        """Does nothing: nothing costs anything."""

    def holds(self, connection: Connection, at_ms: int) -> "FreeOfCharge":  # noqa: ARG002
        """Returns itself."""
        return self

    def take(self, ask: HoldAsk) -> OverBudget | None:  # noqa: ARG002
        """Returns None: nothing is set aside."""
        return None

    def events(self) -> Sequence[HoldEvent]:
        """Returns nothing."""
        return ()

    def extend(self, connection: Connection, ask: HoldAsk, at_ms: int) -> None:
        """Does nothing: nothing is set aside."""

    def release(self, connection: Connection, allocations: Sequence[AllocationId], at_ms: int) -> None:
        """Does nothing: nothing is set aside."""

    def headroom(self, connection: Connection, at_ms: int) -> Sequence[HoldEvent]:  # noqa: ARG002
        """Returns nothing."""
        return ()
