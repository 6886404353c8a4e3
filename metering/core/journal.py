"""Double entry as values: a journal entry is a set of legs in one currency that add up to zero.

A debit is positive, a credit negative, in 10**-6 of the currency. The ledgers and what moves them:

    topup     receivable +   prepaid −      money paid ahead, or to be paid
    hold      payer +        hold −         set aside for a gang that runs; the payer is prepaid or receivable
    charge    hold + payer + revenue −      use of a line: out of what was set aside, the rest from the payer
    release   hold +         payer −        what was set aside and not used
    credit    sla_expense +  receivable −   what the centre gives back
    tax, rounding                           when an invoice is made
    purchase  receivable +   deferred −     a package: sold, and not used yet
              receivable +   fees −         a monthly fee
    draw      deferred +     fees −         what was used of a package
    expiry    deferred +     fees −         what nobody used of it

So what a tenant owes is its receivable less what is set aside out of it, and what it has left is minus its prepaid.
"""

from dataclasses import dataclass
from enum import StrEnum

from metering.core.quantity import is_currency
from scheduler.core.model import AccountId, AllocationId, JobId

MOST_TEXT = 256
MOST_MICROS = 2**62
"""A leg is a 64-bit integer in the database; sums are Python's."""


class Unbalanced(ValueError):
    """An entry does not add up to zero, or has no legs."""


class Ledger(StrEnum):
    """The accounts of double entry; each is kept per account of the tree."""

    RECEIVABLE = "receivable"
    PREPAID = "prepaid"
    HOLD = "hold"
    REVENUE = "revenue"
    SLA_EXPENSE = "sla_expense"
    TAX = "tax"
    ROUNDING = "rounding"
    DEFERRED = "deferred"
    FEES = "fees"


class EntryKind(StrEnum):
    """What an entry is for."""

    TOPUP = "topup"
    HOLD = "hold"
    CHARGE = "charge"
    RELEASE = "release"
    CREDIT = "credit"
    CORRECTION = "correction"
    PURCHASE = "purchase"
    DRAW = "draw"
    EXPIRY = "expiry"
    TAX = "tax"
    ROUNDING = "rounding"


@dataclass(frozen=True, slots=True)
class Leg:
    """One side of an entry: `micros` more (debit) or less (credit) on one ledger of one account."""

    ledger: Ledger
    account: AccountId
    micros: int
    line_id: str | None = None
    """The usage line that it is for; a line's legs on `revenue` add up to minus its amount."""
    for_ms: int | None = None
    """When the use was, if not when it is posted: the period that it counts in."""

    def __post_init__(self) -> None:
        """Raises TypeError for anything but an integer, ValueError for one that is 0 or too large."""
        if type(self.micros) is not int:
            raise TypeError(f"a leg is a whole number of micro-units, not {type(self.micros).__name__}")
        if not 0 < abs(self.micros) < MOST_MICROS:
            raise ValueError(f"a leg of {self.micros} micro-units is none, or beyond all money")


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """What is posted at once, whole or not at all. `key` names it for ever: the same key is posted once."""

    key: str
    kind: EntryKind
    currency: str
    at_ms: int
    legs: tuple[Leg, ...]
    allocation: AllocationId | None = None
    job: JobId | None = None
    actor: str | None = None
    reason: str | None = None
    zone: str | None = None
    """The time zone whose days cut the lines that are charged."""

    def __post_init__(self) -> None:
        """Raises Unbalanced, ValueError for a text that is no key or no currency."""
        total = sum(leg.micros for leg in self.legs)
        if total or len(self.legs) < 2:
            raise Unbalanced(f"entry {self.key}: {len(self.legs)} legs add up to {total} micro-units, not to 0")
        if not self.key or len(self.key) > MOST_TEXT:
            raise ValueError(f"a key has 1 to {MOST_TEXT} characters")
        if not is_currency(self.currency):
            raise ValueError(f"{self.currency!r} is not a currency code of three capital letters, such as CNY")


def transfer(from_: tuple[Ledger, AccountId], to: tuple[Ledger, AccountId], micros: int) -> tuple[Leg, Leg]:
    """Returns the legs that debit `from_` and credit `to`."""
    return Leg(*from_, micros), Leg(*to, -micros)
