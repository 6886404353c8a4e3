"""Which prices hold when, for each tenant and GPU class of a range: the stretches that lines are cut by.

Most need nothing but the books. Where a class is sold in tiers, or a tenant has packages of it, what the tenant used
since the month or the package began is read first, and its stretches are cut where a tier is passed and where a package
is used up. Memory grows with the uses of those tenants and classes only, at a few dozen bytes each.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

from sqlalchemy.engine import Connection

from metering.core.civil import day_start_ms, local_time, month_edges
from metering.core.pricebook import PriceBook, book_in_force, thresholds_of
from metering.core.rating import Terms, draws_packages, terms_of
from metering.core.stretches import Stretch, metered, stretches_of
from metering.core.usage import Segment
from metering.core.volume import Meter, Package, Use, meter_of
from metering.ledger import price_books
from metering.packages import packages_of
from metering.segments import segments_in
from scheduler.core.model import AccountId, Booking, GpuClass, tenant_of
from scheduler.store.ledger_allocations import allocations

MeterKey = tuple[AccountId, GpuClass]
MOST_MS = 2**62
"""After all time that is told."""


@dataclass(frozen=True, slots=True)
class Prices:
    """All that a range's lines are rated by: books by effective time, packages by id."""

    books: tuple[PriceBook, ...]
    packages: tuple[Package, ...] = ()


def load_prices(connection: Connection, published_until_ms: int | None = None) -> Prices:
    """Returns the books and packages as they are known, or as they were known at an instant."""
    books = [
        row.book
        for row in price_books(connection)
        if published_until_ms is None or row.published_ms <= published_until_ms
    ]
    return Prices(tuple(books), tuple(packages_of(connection, published_until_ms)))


class Timelines:
    """The stretches of `[from_ms, to_ms)` by tenant and class, each made when it is asked for first."""

    def __init__(self, from_ms: int, to_ms: int, zone: ZoneInfo, prices: Prices) -> None:
        self.from_ms, self.to_ms, self.zone, self.prices = from_ms, to_ms, zone, prices
        self.meters: dict[MeterKey, Meter] = {}
        self._base = stretches_of(from_ms, to_ms, zone, prices.books)
        self._with_contract = {contract.tenant for book in prices.books for contract in book.contracts}
        self._of_tenant: dict[AccountId, tuple[Stretch, ...]] = {}
        self._of: dict[MeterKey, tuple[Stretch, ...]] = {}
        self._terms: dict[tuple[int, GpuClass, Booking, AccountId], Terms] = {}

    def stretches(self, tenant: AccountId, gpu_class: GpuClass) -> tuple[Stretch, ...]:
        """Returns the range cut for a tenant and class, in order."""
        key = (tenant, gpu_class)
        found = self._of.get(key)
        if found is None:
            meter = self.meters.get(key)
            found = self._of[key] = self._plain(tenant) if meter is None else self._metered(tenant, meter)
        return found

    def terms(self, stretch: Stretch, segment: Segment) -> Terms:
        """Returns what a segment's GPU-hours cost during one of its stretches; made once for all that share them."""
        key = (id(stretch), segment.gpu_class, segment.booking, segment.holder)
        found = self._terms.get(key)
        if found is None:
            found = self._terms[key] = terms_of(stretch, segment.gpu_class, segment.booking, segment.holder)
        return found

    def _plain(self, tenant: AccountId) -> tuple[Stretch, ...]:
        if tenant not in self._with_contract:
            return self._base
        if tenant not in self._of_tenant:
            self._of_tenant[tenant] = stretches_of(self.from_ms, self.to_ms, self.zone, self.prices.books, tenant)
        return self._of_tenant[tenant]

    def _metered(self, tenant: AccountId, meter: Meter) -> tuple[Stretch, ...]:
        # Whole days are cut by the meter before the range is cut out: marks do not depend on where a range begins.
        first = day_start_ms(local_time(self.from_ms, self.zone).date() - timedelta(days=1), self.zone)
        last = day_start_ms(local_time(self.to_ms, self.zone).date() + timedelta(days=1), self.zone)
        whole = stretches_of(first, last, self.zone, self.prices.books, tenant)
        return tuple(
            stretch.part(self.from_ms, self.to_ms)
            for stretch in metered(whole, meter, self.zone)
            if stretch.from_ms < self.to_ms and stretch.to_ms > self.from_ms
        )

    @property
    def plain_days(self) -> tuple[Stretch, ...]:
        """The range cut at days and books only: what unused guarantees are told by."""
        plain = [replace(book, bands=(), contracts=()) for book in self.prices.books]
        return stretches_of(self.from_ms, self.to_ms, self.zone, plain)


def timelines(
    connection: Connection, span: tuple[int, int], zone: ZoneInfo, prices: Prices, account: AccountId | None = None
) -> Timelines:
    """Returns the timelines of a range; of one account, only its tenant's uses are read.

    Raises StoreCorrupt when the ledger contradicts itself.
    """
    made = Timelines(*span, zone, prices)
    tenant = None if account is None else tenant_of(account)
    thresholds = _thresholds(prices.books, span)
    packages = _by_key(package for package in prices.packages if tenant in (None, package.tenant))
    if thresholds or packages:
        made.meters.update(_meters(connection, made, thresholds, packages, tenant))
    return made


class DayTimelines:
    """Timelines of whole civil days, which allocations that are over share: making one costs more than rating a job.

    Lines are named and priced by the day, whatever part of it is asked for, unless what others use changes a price.
    """

    def __init__(self, prices: Prices) -> None:
        self.prices = prices
        self._is_plain = not prices.packages and not _thresholds(prices.books, (0, MOST_MS))
        self._known: dict[tuple[str, date, date], Timelines] = {}

    def of(self, span: tuple[int, int], zone: ZoneInfo) -> Timelines | None:
        """Returns a timeline that has a span; None where it must be made by itself."""
        if not self._is_plain:
            return None
        first, last = (local_time(at_ms, zone).date() for at_ms in (span[0], span[1] - 1))
        key = (zone.key, first, last)
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= _MOST_DAYS:
                self._known.clear()
            days = day_start_ms(first, zone), day_start_ms(last + timedelta(days=1), zone)
            found = self._known[key] = Timelines(*days, zone, self.prices)
        # Where a clock is set back over midnight, a day's name may begin before the day.
        return found if found.from_ms <= span[0] and span[1] <= found.to_ms else None


_MOST_DAYS = 1_024


def is_metered(prices: Prices, tenant: AccountId, gpu_class: GpuClass) -> bool:
    """Says whether what one job of a tenant uses of a class may change what another one costs."""
    thresholds = _thresholds(prices.books, (0, MOST_MS))
    key = (tenant, gpu_class)
    return key in thresholds or (None, gpu_class) in thresholds or key in _by_key(prices.packages)


Thresholds = Mapping[tuple[AccountId | None, GpuClass], set[int]]
"""Volumes at which prices change, by class: of the list under None, of contracts under their tenant."""


def _thresholds(books: Sequence[PriceBook], span: tuple[int, int]) -> Thresholds:
    found: dict[tuple[AccountId | None, GpuClass], set[int]] = defaultdict(set)
    for book in books:
        if book.effective_ms >= span[1]:
            continue
        for (gpu_class, _), price in book.prices.items():
            found[None, gpu_class] |= thresholds_of(price)
        for contract in book.contracts:
            for (gpu_class, _), price in contract.prices.items():
                found[contract.tenant, gpu_class] |= thresholds_of(price)
    return {key: hours for key, hours in found.items() if hours}


def _by_key(packages: Iterable[Package]) -> dict[MeterKey, list[Package]]:
    found: dict[MeterKey, list[Package]] = defaultdict(list)
    for package in packages:
        found[package.tenant, package.gpu_class].append(package)
    return found


def _meters(
    connection: Connection,
    made: Timelines,
    thresholds: Thresholds,
    packages: Mapping[MeterKey, Sequence[Package]],
    tenant: AccountId | None,
) -> Iterator[tuple[MeterKey, Meter]]:
    months = _months(made)
    # Packages that expired before the range pay for nothing in it, but drew before those that came after.
    begun = [package.from_ms for sold in packages.values() for package in sold]
    since_ms = min([made.from_ms, *months[:1], *begun])
    uses: dict[MeterKey, list[Use]] = defaultdict(list)
    for segment in _segments(connection, (since_ms, made.to_ms), tenant):
        key = (tenant_of(segment.holder), segment.gpu_class)
        if key in packages or (None, key[1]) in thresholds or key in thresholds:
            uses[key].extend(_uses(segment, made.prices.books, (since_ms, made.to_ms)))
    for key in sorted({*uses, *packages}):
        hours = thresholds.get((None, key[1]), set()) | thresholds.get(key, set())
        yield key, meter_of(uses.pop(key, []), hours, packages.get(key, ()), months)


def _months(made: Timelines) -> list[int]:
    zone = next((book.tzinfo for book in reversed(made.prices.books) if book.zone is not None), None)
    return [] if zone is None else month_edges(made.from_ms, made.to_ms, zone)


def _segments(connection: Connection, span: tuple[int, int], tenant: AccountId | None) -> Iterator[Segment]:
    for allocation in allocations(connection, *span, tenant):
        yield from segments_in(allocation, span[1])


def _uses(segment: Segment, books: Sequence[PriceBook], span: tuple[int, int]) -> Iterator[Use]:
    first_ms, last_ms = max(segment.from_ms, span[0]), min(segment.to_ms, span[1])
    if first_ms >= last_ms:
        return
    if segment.booking is not Booking.GUARANTEED:
        yield Use(first_ms, last_ms, segment.charged_units, draws_packages(segment.booking))
        return
    # Whether a reserved fee pays for guaranteed use is said by the book in force.
    inside = sorted({book.effective_ms for book in books if first_ms < book.effective_ms < last_ms})
    for from_ms, to_ms in pairwise([first_ms, *inside, last_ms]):
        book = book_in_force(books, from_ms)
        is_paid = book is not None and book.reserved_for(segment.holder, segment.gpu_class) is not None
        yield Use(from_ms, to_ms, segment.charged_units, not is_paid)
