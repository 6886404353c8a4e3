"""What a price book is: one immutable version of all prices, and the one spelling whose SHA-256 is its identity.

A `Price` is a decimal per GPU-hour, or a `Scale`: a price per band of the week and tier of a month's volume. A book has
list prices, and contracts that give tenants other ones for a time; `PriceBook.offer` says what a tenant is asked. Books
are read by `metering.core.tariff`; what they make of an interval is said in `metering.core.rating`.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

from metering.core.quantity import Rounding, decimal_text
from metering.core.timetable import DAYS, Band, minute_text
from scheduler.core.model import AccountId, Booking, GpuClass, tenant_of

Key = tuple[GpuClass, Booking]
ALWAYS = ""
"""The band of a price that is the same all week."""


@dataclass(frozen=True, slots=True)
class Tier:
    """A price from so many GPU-hours of the month on."""

    from_hours: int
    price: Decimal


@dataclass(frozen=True, slots=True)
class Scale:
    """Prices by band, each with its tiers: the first from 0, ascending."""

    bands: Mapping[str, tuple[Tier, ...]]

    def at(self, band: str, volume_hours: int) -> Decimal:
        """Returns the price in a band to who has used so many GPU-hours in the month."""
        tiers = self.bands[band] if band in self.bands else self.bands[ALWAYS]
        return next(tier.price for tier in reversed(tiers) if tier.from_hours <= volume_hours)


Price = Decimal | Scale


def price_at(price: Price, band: str, volume_hours: int) -> Decimal:
    """Returns what a price is in a band and at a volume."""
    return price.at(band, volume_hours) if isinstance(price, Scale) else price


def thresholds_of(price: Price) -> set[int]:
    """Returns the volumes in GPU-hours at which a price changes."""
    if not isinstance(price, Scale):
        return set()
    return {tier.from_hours for tiers in price.bands.values() for tier in tiers if tier.from_hours}


@dataclass(frozen=True, slots=True)
class Contract:
    """What a tenant is asked in place of the list, from `from_ms` to `to_ms` (None: as long as the book is in force).

    A price of the contract counts as it stands; where it has none, the list price less `discount` does.
    """

    tenant: AccountId
    from_ms: int | None
    to_ms: int | None
    prices: Mapping[Key, Price] = field(default_factory=dict)
    discount: Decimal = Decimal(0)
    """A share of the list price: 0.10 is 10 % off."""

    def holds_at(self, at_ms: int) -> bool:
        """Says whether it holds at an instant."""
        return (self.from_ms is None or self.from_ms <= at_ms) and (self.to_ms is None or at_ms < self.to_ms)


@dataclass(frozen=True, slots=True)
class ReservedFee:
    """A monthly fee for a guarantee: it pays for all guaranteed use of a class by an account and what is below it."""

    account: AccountId
    gpu_class: GpuClass
    gpus: int
    monthly: Decimal

    @property
    def id(self) -> str:
        """Its name on lines, the same in every book that has the fee."""
        return f"reserved/{self.account}/{self.gpu_class}"


@dataclass(frozen=True, slots=True)
class Offer:
    """The prices of a GPU-hour: by the list, and as asked of a tenant."""

    list_price: Decimal
    price: Decimal


@dataclass(frozen=True, slots=True)
class PriceBook:
    """One version of all prices. In force from `effective_ms` until the next book's."""

    version: str
    currency: str
    effective_ms: int
    prices: Mapping[Key, Price]
    """Per GPU-hour, before tax."""
    tax_rate: Decimal = Decimal(0)
    rounding: Rounding = Rounding.HALF_EVEN
    rounding_unit: Decimal = Decimal("0.01")
    """What an invoice's payable is a multiple of."""
    zone: str | None = None
    """The civil zone of bands and months; never None in a book that has either."""
    bands: tuple[Band, ...] = ()
    contracts: tuple[Contract, ...] = ()
    reserved: tuple[ReservedFee, ...] = ()
    energy: Mapping[GpuClass, Decimal] = field(default_factory=dict)
    """A surcharge per GPU-hour for what power costs; not by what sensors say, which never makes money."""
    minimum_ms: int = 0
    """What an allocation that ran is charged for at least."""
    increment_ms: int = 0
    """What its charged time is a multiple of; 0 for none."""

    def price(self, gpu_class: GpuClass, booking: Booking) -> Decimal | None:
        """Returns the dearest list price of a GPU-hour; None where the book names none, which is not free."""
        found = self.prices.get((gpu_class, booking))
        return None if found is None else _dearest(found)

    def contract(self, tenant: AccountId, at_ms: int) -> Contract | None:
        """Returns the contract of a tenant that holds at an instant; None where the list does."""
        return next((each for each in self.contracts if each.tenant == tenant and each.holds_at(at_ms)), None)

    def offer(self, key: Key, contract: Contract | None, band: str = ALWAYS, volume_hours: int = 0) -> Offer | None:
        """Returns what is asked in a band at a volume; None where the book has no price.

        What a contract prices and the list does not has its contract price as list price.
        """
        listed = self.prices.get(key)
        agreed = None if contract is None else contract.prices.get(key)
        if agreed is not None:
            price = price_at(agreed, band, volume_hours)
            return Offer(price if listed is None else price_at(listed, band, volume_hours), price)
        if listed is None:
            return None
        list_price = price_at(listed, band, volume_hours)
        discount = Decimal(0) if contract is None else contract.discount
        return Offer(list_price, list_price if not discount else list_price * (1 - discount))

    def dearest(self, key: Key, tenant: AccountId, at_ms: int) -> Decimal | None:
        """Returns the most that a tenant may be asked for a GPU-hour by this book from an instant on; None without one.

        Whatever the hour of the week and the volume of the month, and when a contract ends, until another book's.
        """
        running = [each for each in self.contracts if each.tenant == tenant and (each.to_ms or at_ms + 1) > at_ms]
        # Between, before and after contracts that end, the list counts.
        is_for_good = any(each.holds_at(at_ms) and each.to_ms is None for each in running)
        terms: list[Contract | None] = [*running] if is_for_good else [*running, None]
        found = [price for each in terms if (price := self._dearest_by(key, each)) is not None]
        energy = self.energy.get(key[0], Decimal(0))
        return max(found) + energy if found else None

    def most(self, key: Key, account: AccountId, at_ms: int) -> Decimal | None:
        """Returns the most that an account may have to pay for a GPU-hour from an instant on; None without a price.

        What a monthly fee pays for costs nothing more; packages are not looked at, which may run out meanwhile.
        """
        if key[1] is Booking.GUARANTEED and self.reserved_for(account, key[0]) is not None:
            return self.energy.get(key[0], Decimal(0))
        return self.dearest(key, tenant_of(account), at_ms)

    def most_time_ms(self, runs_ms: int) -> int:
        """Returns what an allocation that runs so long is charged for, by the minimum and the increment."""
        charged = max(runs_ms, self.minimum_ms)
        return -(-charged // self.increment_ms) * self.increment_ms if self.increment_ms else charged

    def _dearest_by(self, key: Key, contract: Contract | None) -> Decimal | None:
        agreed = None if contract is None else contract.prices.get(key)
        if agreed is not None:
            return _dearest(agreed)
        listed = self.prices.get(key)
        if listed is None:
            return None
        return _dearest(listed) * (1 - (Decimal(0) if contract is None else contract.discount))

    def reserved_for(self, account: AccountId, gpu_class: GpuClass) -> ReservedFee | None:
        """Returns the fee that pays for guaranteed use of an account: its own, or that of the nearest one above it."""
        fitting = [
            fee
            for fee in self.reserved
            if fee.gpu_class == gpu_class and (account == fee.account or account.startswith(f"{fee.account}/"))
        ]
        return max(fitting, key=lambda fee: len(fee.account), default=None)

    @property
    def tzinfo(self) -> ZoneInfo | None:
        """The zone of bands and months."""
        return None if self.zone is None else ZoneInfo(self.zone)

    @property
    def sha256(self) -> str:
        """The book's identity: SHA-256 (hex) of its canonical JSON in UTF-8."""
        return hashlib.sha256(canonical_json(self).encode()).hexdigest()


def _dearest(price: Price) -> Decimal:
    if not isinstance(price, Scale):
        return price
    return max(tier.price for tiers in price.bands.values() for tier in tiers)


def book_in_force(books: Sequence[PriceBook], at_ms: int) -> PriceBook | None:
    """Returns the book with the latest effective time at or before `at_ms`; None before the first."""
    begun = [book for book in books if book.effective_ms <= at_ms]
    return max(begun, key=lambda book: (book.effective_ms, book.version), default=None)


def body_of(book: PriceBook) -> dict[str, Any]:
    """Returns the book as JSON values, numbers as decimal strings without trailing zeros.

    What a book does not have is left out, so that a book of plain prices has the hash that it always had.
    """
    body: dict[str, Any] = {
        "version": book.version,
        "currency": book.currency,
        "effective_ms": book.effective_ms,
        "tax_rate": decimal_text(book.tax_rate),
        "rounding": {"mode": book.rounding.value, "unit": decimal_text(book.rounding_unit)},
        "prices": _prices_body(book.prices),
    }
    more: dict[str, Any] = {
        "zone": book.zone,
        "bands": [_band_body(band) for band in book.bands],
        "contracts": [_contract_body(contract) for contract in book.contracts],
        "reserved": [
            {"account": fee.account, "class": fee.gpu_class, "gpus": fee.gpus, "monthly": decimal_text(fee.monthly)}
            for fee in book.reserved
        ],
        "energy": {str(gpu_class): decimal_text(price) for gpu_class, price in book.energy.items()},
        "minimum_seconds": book.minimum_ms // 1000,
        "increment_seconds": book.increment_ms // 1000,
    }
    return body | {key: value for key, value in more.items() if value}


def canonical_json(book: PriceBook) -> str:
    """Returns the one spelling of a book: sorted keys, no blanks, unescaped Unicode."""
    return json.dumps(body_of(book), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _prices_body(prices: Mapping[Key, Price]) -> dict[str, dict[str, Any]]:
    body: dict[str, dict[str, Any]] = {}
    for (gpu_class, booking), price in prices.items():
        body.setdefault(str(gpu_class), {})[booking.value] = _price_body(price)
    return body


def _price_body(price: Price) -> Any:  # Any: a text, a list of tiers, or either of them by band
    if not isinstance(price, Scale):
        return decimal_text(price)
    by_band = {band: _tiers_body(tiers) for band, tiers in price.bands.items()}
    return by_band.get(ALWAYS, by_band)


def _tiers_body(tiers: Sequence[Tier]) -> Any:  # Any: as above
    if len(tiers) == 1:
        return decimal_text(tiers[0].price)
    return [{"from_hours": tier.from_hours, "price": decimal_text(tier.price)} for tier in tiers]


def _band_body(band: Band) -> dict[str, Any]:
    return {
        "name": band.name,
        "days": ",".join(DAYS[day] for day in band.days),
        "from": minute_text(band.from_minute),
        "to": minute_text(band.to_minute),
    }


def _contract_body(contract: Contract) -> dict[str, Any]:
    body: dict[str, Any] = {"tenant": contract.tenant}
    more = {
        "from_ms": contract.from_ms,
        "to_ms": contract.to_ms,
        "discount": decimal_text(contract.discount) if contract.discount else None,
        "prices": _prices_body(contract.prices) or None,
    }
    return body | {key: value for key, value in more.items() if value is not None}
