"""What an export charges beside usage: purchases of packages, monthly fees, and what of both nobody used."""

from collections.abc import Iterator, MutableMapping

from metering.core.fees import Fee, UsedKey, expired, monthly_fees, purchases, unused_reserved
from metering.core.rating import Line, LineType
from metering.timelines import Timelines
from scheduler.auth import is_within
from scheduler.core.model import AccountId, tenant_of


def note_reserved(used_unit_ms: MutableMapping[UsedKey, int], line: Line) -> None:
    """Adds what a line used of a guarantee that a fee pays for."""
    reserved, piece = line.terms.reserved, line.slice
    if reserved is not None and line.type is LineType.USAGE and line.book is not None:
        used_unit_ms[reserved.id, piece.stretch.day, line.book.version] += piece.charged.unit_ms


def fee_tenants(timelines: Timelines) -> set[AccountId]:
    """Returns the tenants that a range may have fees of, whether or not they used anything; without meters."""
    return {tenant_of(fee.account) for fee in fees_of(timelines, {}, None)}


def fees_of(
    timelines: Timelines, used_unit_ms: MutableMapping[UsedKey, int], account: AccountId | None
) -> Iterator[Fee]:
    """Yields the fees of a range by kind, time and id; of one account, those of it and what is below it.

    `used_unit_ms` has what all lines of the range used of guarantees.
    """
    books, span = timelines.prices.books, (timelines.from_ms, timelines.to_ms)
    packages = [
        package for package in timelines.prices.packages if account is None or package.tenant == tenant_of(account)
    ]
    left = {name: unit_ms for meter in timelines.meters.values() for name, unit_ms in meter.left_unit_ms.items()}
    every = (
        *purchases(packages, books, *span),
        *expired(packages, left, books, span),
        *monthly_fees(books, *span),
        *unused_reserved(timelines.plain_days, used_unit_ms),
    )
    for fee in every:
        if account is None or is_within(fee.account, account):
            yield fee
