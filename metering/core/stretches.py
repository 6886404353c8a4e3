"""Stretches: time cut wherever prices may change, so that inside each of them a GPU-hour has one price.

`stretches_of` cuts a range at the midnights of the centre's zone, where a price book or a contract of the tenant begins
or ends, and where the band of the week changes. `metered` cuts stretches further where a tenant's month passes into the
next tier or a package is used up, which depends on what the tenant used (`metering.core.volume`).

Edges never depend on the range that is asked for, only which of them are seen; so a stretch has the same `mark`, and a
line the same name, in every export.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta, tzinfo
from itertools import pairwise

from metering.core.civil import civil_days, day_start_ms
from metering.core.pricebook import ALWAYS, Contract, PriceBook, book_in_force
from metering.core.timetable import BandSpan, band_spans, week_of
from metering.core.volume import Meter, Package
from scheduler.core.model import AccountId


@dataclass(frozen=True, slots=True)
class Stretch:
    """A part of a civil day in which prices are the same: one book (none before the first), contract, band and tier."""

    day: date
    book: PriceBook | None
    from_ms: int
    to_ms: int
    contract: Contract | None = None
    band: str = ALWAYS
    volume_hours: int = 0
    """The threshold of the month's volume that was passed last."""
    package: Package | None = None
    """What pays for the use of its class, spot excepted."""
    mark: str = ""
    """What tells it from other parts of its day under its book."""

    def part(self, from_ms: int, to_ms: int) -> "Stretch":
        """Returns the part of it inside a range; itself where that is all of it."""
        if from_ms <= self.from_ms and self.to_ms <= to_ms:
            return self
        return replace(self, from_ms=max(self.from_ms, from_ms), to_ms=min(self.to_ms, to_ms))


def stretches_of(
    from_ms: int, to_ms: int, zone: tzinfo, books: Sequence[PriceBook], tenant: AccountId | None = None
) -> tuple[Stretch, ...]:
    """Returns `[from_ms, to_ms)` cut at midnights, books, the tenant's contracts and bands, in order."""
    book_edges = sorted({book.effective_ms for book in books})
    stretches: list[Stretch] = []
    for day in civil_days(from_ms, to_ms, zone):
        start_ms, end_ms = day_start_ms(day.date, zone), day_start_ms(day.date + timedelta(days=1), zone)
        cuts = [start_ms, *(edge for edge in book_edges if start_ms < edge < end_ms), end_ms]
        for first_ms, last_ms in pairwise(cuts):
            book = book_in_force(books, first_ms)
            parts = _parts(Stretch(day.date, book, first_ms, last_ms), start_ms, tenant)
            stretches += [part.part(from_ms, to_ms) for part in parts if part.to_ms > from_ms and part.from_ms < to_ms]
    return tuple(stretches)


def _parts(whole: Stretch, day_start: int, tenant: AccountId | None) -> list[Stretch]:
    """Returns a day's stretch of one book cut at the edges of bands and contracts."""
    book = whole.book
    if book is None or not (book.bands or book.contracts):
        return [whole]
    edges = {whole.from_ms, whole.to_ms}
    for contract in book.contracts:
        if contract.tenant == tenant:
            edges |= {at for at in (contract.from_ms, contract.to_ms) if at and whole.from_ms < at < whole.to_ms}
    parts = []
    for first_ms, last_ms in pairwise(sorted(edges)):
        contract_now = None if tenant is None else book.contract(tenant, first_ms)
        for span in _spans(book, first_ms, last_ms):
            mark = f"/{span.name}" if span.name else ""
            if span.from_ms > whole.from_ms:
                mark += f"@{span.from_ms - day_start}"
            parts.append(
                replace(whole, from_ms=span.from_ms, to_ms=span.to_ms, contract=contract_now, band=span.name, mark=mark)
            )
    return parts


def _spans(book: PriceBook, from_ms: int, to_ms: int) -> list[BandSpan]:
    zone = book.tzinfo
    if not book.bands or zone is None:
        return [BandSpan(ALWAYS, from_ms, to_ms)]
    return band_spans(week_of(book.bands), from_ms, to_ms, zone)


def metered(stretches: Sequence[Stretch], meter: Meter, day_start_of: tzinfo) -> tuple[Stretch, ...]:
    """Returns stretches cut where a meter passes into a tier or a package; `day_start_of` is the zone of their days."""
    starts = [edge.from_ms for edge in meter.edges]
    made: list[Stretch] = []
    for stretch in stretches:
        inside = [at for at in starts if stretch.from_ms < at < stretch.to_ms]
        for first_ms, last_ms in pairwise([stretch.from_ms, *inside, stretch.to_ms]):
            edge = meter.edges[max(0, bisect_right(starts, first_ms) - 1)]
            mark = stretch.mark
            if edge.volume_hours:
                mark += f"/{edge.volume_hours}h"
            if edge.package is not None:
                mark += f"/{edge.package.id}"
            if first_ms > stretch.from_ms:
                mark += f"@{first_ms - day_start_ms(stretch.day, day_start_of)}"
            made.append(
                replace(
                    stretch,
                    from_ms=first_ms,
                    to_ms=last_ms,
                    volume_hours=edge.volume_hours,
                    package=edge.package,
                    mark=mark,
                )
            )
    return tuple(made)
