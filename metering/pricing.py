"""What admission knows of money so far: prices. Implements `scheduler.admission.Admission`."""

# ruff: noqa: ARG002 - the protocol's arguments, of which a class without budgets needs none

from sqlalchemy.engine import Connection

from metering.core.quantity import GpuMs, Money, Rounding, decimal_text, minor_unit
from metering.core.rating import cost
from metering.ledger import current_book
from scheduler.admission import CostQuestion, OverBudget, Quote
from scheduler.admission import Money as AdmissionMoney
from scheduler.core.model import JobId


class PricesWithoutBudgets:
    """Tells prices from the book in force. Accounts have no budgets yet, so every hold succeeds and sets nothing aside.

    That is what this class says, not a fallback: an installation that must stop spending needs the class with budgets.
    """

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

    def hold(
        self,
        connection: Connection,
        job: JobId,
        question: CostQuestion,
        at_ms: int,
    ) -> OverBudget | None:
        """Returns None: no account has a budget, so there is nothing to set aside."""
        return None

    def extend(
        self,
        connection: Connection,
        job: JobId,
        question: CostQuestion,
        at_ms: int,
    ) -> OverBudget | None:
        """Returns None: no account has a budget, so there is nothing to set aside."""
        return None

    def release(self, connection: Connection, job: JobId, at_ms: int) -> None:
        """Does nothing: nothing is ever set aside."""
