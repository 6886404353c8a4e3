"""What the scheduler needs of money: one small protocol, implemented by `metering`, injected by the daemon.

Every call happens inside the caller's database transaction, so that two submissions together can never spend more than
there is. Amounts are `Money`: a decimal string with a currency, because the scheduler only carries them to people.
"""

from dataclasses import dataclass
from typing import Protocol

from sqlalchemy.engine import Connection

from scheduler.core.model import AccountId, Booking, GpuClass, JobId


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


class Admission(Protocol):
    """Prices and budgets as the scheduler sees them."""

    def most_cost(self, connection: Connection, question: CostQuestion, at_ms: int) -> Quote | None:
        """Returns the most that the gang can cost at the price book in force; None where the class has no price."""
        ...

    def hold(self, connection: Connection, job: JobId, question: CostQuestion, at_ms: int) -> OverBudget | None:
        """Sets money aside for a start; None when there was enough, or when the account has no budget."""
        ...

    def extend(self, connection: Connection, job: JobId, question: CostQuestion, at_ms: int) -> OverBudget | None:
        """Sets more aside for a job that goes on."""
        ...

    def release(self, connection: Connection, job: JobId, at_ms: int) -> None:
        """Lets go of what is set aside for a job."""
        ...
