"""What a gang can cost at most: the one interface between prices and whoever spends by them."""

from sqlalchemy.engine import Connection

from metering.core.quantity import GpuMs, Money, Rounding, decimal_text, minor_unit
from metering.core.rating import cost
from metering.ledger import current_book
from scheduler.admission import CostQuestion, Quote
from scheduler.admission import Money as AdmissionMoney


class Prices:
    """Tells prices from the book in force."""

    def most_cost(self, connection: Connection, question: CostQuestion, at_ms: int) -> Quote | None:
        """Returns the most that the gang can cost, rounded up to the currency's minor unit; None without a price.

        The price is the account's own by the book in force at `at_ms`, the dearest hour of the week; a later book may
        cost more or less.
        """
        book = current_book(connection, at_ms)
        key = (question.gpu_class, question.booking)
        price = book.most(key, question.account, at_ms) if book else None
        if book is None or price is None:
            return None
        time = GpuMs(question.gpu_eq_units * book.most_time_ms(question.time_limit_ms))
        unit = minor_unit(book.currency)
        most = Money(cost(time, price), book.currency).rounded_to(unit, Rounding.UP)
        decimals = -int(unit.as_tuple().exponent)
        return Quote(
            most=AdmissionMoney(most.text(decimals), book.currency),
            gpu_hours=time.hours_text,
            unit_price=decimal_text(price, decimals),
            price_book=book.version,
        )
