"""The list rates that fairness uses: the price book in force, in credits. One number serves both it and the bill."""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from metering.core.tariff import PriceBook
from metering.ledger import current_book
from scheduler.core.debt import CREDIT, RateKey
from scheduler.store.rates import ChangeRates
from scheduler.store.transaction import Transaction

SECONDS_PER_HOUR = 3600


def rates_of(book: PriceBook | None) -> Mapping[RateKey, int]:
    """Returns micro-credits per GPU-second for each price per GPU-hour, to the nearest; a credit is a unit of money.

    Of a price by bands or tiers it is the dearest: fairness knows no hour of the day.

    What a book leaves out, or all when there is no book, is left out: it counts one credit a GPU-second.
    """
    if book is None:
        return {}
    dearest = ((key, book.price(*key)) for key in sorted(book.prices))
    return {key: round(Fraction(price) * CREDIT / SECONDS_PER_HOUR) for key, price in dearest if price is not None}


@dataclass(frozen=True, slots=True)
class AnnounceRates:
    """Tells the scheduler the prices in force now; does nothing when it knows them."""

    def execute(self, tx: Transaction) -> bool:
        """Returns whether they were other than before."""
        return ChangeRates(rates_of(current_book(tx.connection, tx.now_ms))).execute(tx)
