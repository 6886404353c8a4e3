"""Rows of a FOCUS file that are like one that was proved: what is the same needs no second look, numbers do.

The rules of a row ask three things: what its repeating cells say, which of its varying cells are empty or zero, and
whether its numbers fit each other. The first two are a row's *shape*; no rule asks about a row's periods and its
accounts, or either and anything else, so that these are proved apart, or every day of every project would be a shape.
A row whose shape was proved by the rules themselves (`metering.focus_rules`) is sound when its texts are and its
numbers fit, which integers tell. A row that is not plainly sound is not broken for that: whoever checks asks the rules
about it, and they say what is wrong.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import NamedTuple

from metering.focus_columns import FocusColumn
from metering.focus_rules import VARYING, cell_breaks

PERIODS = frozenset(("BillingPeriodEnd", "BillingPeriodStart", "ChargePeriodEnd", "ChargePeriodStart"))
"""Columns that rules hold against each other and ChargeClass alone."""
ACCOUNTS = frozenset(
    (
        *("BillingAccountId", "BillingAccountName", "BillingAccountType", "InvoiceId"),
        *("SubAccountId", "SubAccountName", "SubAccountType"),
    )
)
"""Columns that rules hold against each other alone."""
CLASS = "ChargeClass"
_NUMBERS = (
    *("BilledCost", "CommitmentDiscountQuantity", "ConsumedQuantity", "ContractedCost", "EffectiveCost", "ListCost"),
    *("PricingCurrencyEffectiveCost", "PricingQuantity"),
)
_TEXTS = ("ChargeDescription", "ResourceId", "ResourceName")
_TAGS = "Tags"
_PLAIN = re.compile(r"(0|[1-9][0-9]*)\.([0-9]+)")
"""A decimal without sign and exponent; others are the rules' to look at."""
_MOST_SHAPES = 16_384
_MOST_CELLS = 4_096
_MOST_NUMBERS = 128
"""Numbers that are remembered: the cells of a row repeat each other, rows seldom do."""
_SLACK_MILLISECONDS = 2
"""What seconds and hours may differ by: the 0.002 of `ConsumedQuantity.hours`."""


class _Number(NamedTuple):  # a tuple is made in a tenth of the time: there are several in each row
    """A plain decimal as an integer of its last digit; `kind` is what a shape says of it."""

    digits: int
    decimals: int
    kind: str


_EMPTY = _Number(0, 0, " ")


@dataclass(frozen=True, slots=True)
class _Proved:
    """What the numbers of a shape must fit; None where nothing is asked."""

    list_price: _Number | None
    price: _Number | None
    is_in_hours: bool
    is_one_currency: bool

    def fits(self, numbers: Sequence[_Number]) -> bool:
        """Says whether the numbers of a row, in the order of _NUMBERS, fit each other."""
        _, _, seconds, contracted, effective, listed, in_currency, hours = numbers
        if self.list_price is not None and not _is_product(listed, self.list_price, hours):
            return False
        if self.price is not None and not _is_product(contracted, self.price, hours):
            return False
        if self.is_in_hours and not _are_same_time(seconds, hours):
            return False
        # The rule compares the texts: the same number of the same decimals is the same text.
        return not self.is_one_currency or in_currency == effective or in_currency is _EMPTY


class Shapes:
    """The shapes that were proved. Memory is bounded: they are forgotten together when they are too many."""

    def __init__(self, columns: Sequence[FocusColumn], place: Mapping[str, int]) -> None:
        names = [column.name for column in columns]
        self._periods = itemgetter(*(place[name] for name in names if name in PERIODS), place[CLASS])
        self._accounts = itemgetter(*(place[name] for name in names if name in ACCOUNTS))
        self._rest = itemgetter(*(place[name] for name in names if name not in PERIODS | ACCOUNTS | VARYING))
        self._numbers = itemgetter(*(place[name] for name in _NUMBERS))
        self._place = place
        by_name = {column.name: column for column in columns}
        self._texts = [(place[name], by_name[name]) for name in _TEXTS]
        self._tags = place[_TAGS], by_name[_TAGS]
        self._proved: dict[tuple[tuple[str, ...], str], _Proved] = {}
        self._sound: set[tuple[str, ...]] = set()
        """Periods and accounts that were proved; they are of different lengths."""
        self._known_numbers: dict[str, _Number] = {"": _EMPTY}
        self._sound_tags: set[str] = set()

    def holds(self, cells: Sequence[str]) -> bool:
        """Says whether a row of the header's length is plainly sound; False leaves it to the rules."""
        numbers = self._read(cells)
        if numbers is None:
            return False
        proved = self._proved.get((self._rest(cells), self._shape(cells, numbers)))
        if proved is None or self._periods(cells) not in self._sound or self._accounts(cells) not in self._sound:
            return False
        return self._are_sound(cells) and proved.fits(numbers)

    def learn(self, cells: Sequence[str]) -> None:
        """Takes a row that keeps every rule as the proof of its shape."""
        numbers = self._read(cells)
        if numbers is None:
            return
        list_price, price, corrects, consumed_in, priced_in, currency, billing_currency = (
            cells[self._place[name]]
            for name in (
                *("ListUnitPrice", "ContractedUnitPrice", CLASS, "ConsumedUnit", "PricingUnit"),
                *("PricingCurrency", "BillingCurrency"),
            )
        )
        seconds, hours = numbers[2], numbers[7]
        is_priced = not corrects and hours is not _EMPTY
        prices = [self._number(text) if text and is_priced else None for text in (list_price, price)]
        if is_priced and ((list_price and prices[0] is None) or (price and prices[1] is None)):
            return
        is_in_hours = (consumed_in, priced_in) == ("GPU-Seconds", "GPU-Hours")
        has_both = seconds is not _EMPTY and hours is not _EMPTY
        if len(self._proved) + len(self._sound) >= _MOST_SHAPES:
            self._proved.clear()
            self._sound.clear()
        self._sound |= {self._periods(cells), self._accounts(cells)}
        key = self._rest(cells), self._shape(cells, numbers)
        self._proved[key] = _Proved(prices[0], prices[1], is_in_hours and has_both, currency == billing_currency)

    def _read(self, cells: Sequence[str]) -> list[_Number] | None:
        """Returns a row's varying numbers in the order of _NUMBERS; None where one of them is not plain."""
        known, numbers = self._known_numbers, []
        for cell in self._numbers(cells):
            number = known.get(cell)
            if number is None:
                number = self._number(cell)
                if number is None:
                    return None
            numbers.append(number)
        return numbers

    def _number(self, cell: str) -> _Number | None:
        found = _PLAIN.fullmatch(cell)
        if found is None:
            return None
        whole, part = found.groups()
        digits = int(whole + part)
        number = _Number(digits, len(part), "+" if digits else "0")
        if len(self._known_numbers) >= _MOST_NUMBERS:
            self._known_numbers = {"": _EMPTY}
        self._known_numbers[cell] = number
        return number

    def _shape(self, cells: Sequence[str], numbers: Sequence[_Number]) -> str:
        """Returns which varying cells are empty, which numbers zero."""
        kinds = "".join([number.kind for number in numbers])
        texts = "".join(["t" if cells[at] else " " for at, _ in self._texts])
        return f"{kinds}{texts}{'t' if cells[self._tags[0]] else ' '}"

    def _are_sound(self, cells: Sequence[str]) -> bool:
        for at, column in self._texts:
            if cells[at] and cell_breaks(column, cells[at]):
                return False
        at, column = self._tags
        tags = cells[at]
        if tags and tags not in self._sound_tags:
            if cell_breaks(column, tags):
                return False
            if len(self._sound_tags) >= _MOST_CELLS:
                self._sound_tags.clear()
            self._sound_tags.add(tags)
        return True


def _is_product(cost: _Number, price: _Number, hours: _Number) -> bool:
    """Says whether cost = price × hours, exactly."""
    exact, decimals = price.digits * hours.digits, price.decimals + hours.decimals
    told = cost.digits
    if cost.decimals <= decimals:
        told *= 10 ** (decimals - cost.decimals)
    else:
        exact *= 10 ** (cost.decimals - decimals)
    return told == exact


def _are_same_time(seconds: _Number, hours: _Number) -> bool:
    """Says whether seconds are the hours, but for what both are rounded by."""
    apart: int = 1_000 * abs(seconds.digits * 10**hours.decimals - 3600 * hours.digits * 10**seconds.decimals)
    most: int = _SLACK_MILLISECONDS * 10 ** (seconds.decimals + hours.decimals)
    return apart <= most
