"""The native usage lines: the ledger's allocations, rated and written as rows of text.

One row a segment × stretch of one price, then fees, then a tax and a rounding row per invoice, so that the amounts of a
file add up to what is payable. The columns are a contract with billing departments: docs/ledger.md says what each one
means.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import tzinfo
from fractions import Fraction
from functools import lru_cache

from sqlalchemy.engine import Connection

from metering.core.civil import local_text, month_edges, utc_text
from metering.core.fees import Fee, fee_price, micros, package_price
from metering.core.pricebook import PriceBook
from metering.core.quantity import AMOUNT_DECIMALS, GPU_HOURS_DECIMALS, decimal_text, divide, fixed, hours_text
from metering.core.rating import Invoice, Line, LineType, Terms, energy_line, rate
from metering.core.usage import Slice, slices_of, topping_of
from metering.csv_files import harmless, harmless_name
from metering.ledger import sum_windows
from metering.segments import segments_in
from metering.timelines import Timelines
from metering.usage_columns import USAGE_COLUMNS
from metering.witness import has_witnesses, seen_devices
from scheduler.core.model import GPU_UNITS, AccountId, DeviceId, tenant_of
from scheduler.store.account_names import AccountNames
from scheduler.store.ledger_allocations import ALL_IDS, IdRange, LedgerAllocation, allocations

PERIOD_STATUS = "open"
"""Of lines until they are sealed with their period: the export writes what they are."""
ENERGY_COVERAGE_PERCENT = 95
"""Energy is told only when windows cover this much of a line's GPU time: a sum with holes would read as a saving."""
_NO_SKU = re.compile(r"[^a-z0-9.-]+")
_ZERO = fixed(0, AMOUNT_DECIMALS)


@dataclass(frozen=True, slots=True)
class RatedLine:
    """A line with the names that go beside it."""

    line: Line
    allocation: LedgerAllocation
    end_word: str
    seen: tuple[DeviceId, ...] = ()
    """The GPUs that agents saw in its hands, where the platform chose them."""

    @property
    def gpus(self) -> tuple[DeviceId, ...]:
        """The GPUs that it is known to have held; slots of nodes where no agent said which GPUs those were."""
        return self.seen or self.line.slice.segment.devices


@dataclass(frozen=True, slots=True)
class LineContext:
    """What all lines of an export share."""

    zone: tzinfo
    names: AccountNames
    """Lines carry the names of their own time, so that renaming an account changes no past export."""
    has_windows: bool
    """GPU windows exist in the range; without any, none is looked for."""


def rated_lines(
    connection: Connection, timelines: Timelines, account: AccountId | None = None, ids: IdRange = ALL_IDS
) -> Iterator[RatedLine]:
    """Yields the lines of the timelines' range by allocation, segment and time; of those with some `ids`, or of all.

    Memory does not grow with their number. Raises StoreCorrupt when the ledger contradicts itself.
    """
    is_seen = has_witnesses(connection, timelines.from_ms, timelines.to_ms)
    for allocation in allocations(connection, timelines.from_ms, timelines.to_ms, account, ids=ids):
        yield from lines_of(allocation, timelines, connection if is_seen else None)


def lines_of(
    allocation: LedgerAllocation, timelines: Timelines, witnesses: Connection | None = None
) -> Iterator[RatedLine]:
    """Yields the lines of one allocation; where there are `witnesses`, with the devices that it was seen on."""
    segments = segments_in(allocation, timelines.to_ms)
    seen: tuple[DeviceId, ...] = ()
    for segment in segments:
        if witnesses is not None:
            seen = seen_devices(witnesses, segment.allocation, segment.from_ms, segment.to_ms)
        stretches = timelines.stretches(tenant_of(segment.holder), segment.gpu_class)
        for piece in slices_of(segment, stretches):
            yield from _lines_of(piece, allocation, seen, timelines)
    if segments and allocation.ended_ms is not None:
        last = segments[-1]
        topping = topping_of(segments, timelines.stretches(tenant_of(last.holder), last.gpu_class))
        if topping is not None:
            yield from _lines_of(topping, allocation, seen, timelines)


def _lines_of(
    piece: Slice, allocation: LedgerAllocation, seen: tuple[DeviceId, ...], timelines: Timelines
) -> Iterator[RatedLine]:
    terms = timelines.terms(piece.stretch, piece.segment)
    line = rate(piece, terms)
    word = piece.end_word(allocation.ended_ms, allocation.end_reason)
    yield RatedLine(line, allocation, word, seen)
    if terms.surcharge is not None:
        surcharge = energy_line(line)
        if surcharge is not None:
            yield RatedLine(surcharge, allocation, word, seen)


@dataclass(frozen=True, slots=True)
class _TermCells:
    """The cells of a line that follow from its terms alone."""

    book: str
    price: str
    currency: str
    tax_rate: str
    list_price: str
    committed: Fraction | None
    """What a unit-millisecond cost of what paid for it before."""


class UsageRows:
    """Turns lines into rows of text in the order of USAGE_COLUMNS. Memory grows with terms, not with lines."""

    def __init__(self, connection: Connection, context: LineContext) -> None:
        self._connection = connection
        self._context = context
        self._terms: dict[int, tuple[Terms, _TermCells]] = {}

    def usage(self, rated: RatedLine) -> list[str]:
        """Returns the row of a line of usage."""
        line, piece, segment = rated.line, rated.line.slice, rated.line.slice.segment
        names, zone, from_ms = self._context.names, self._context.zone, piece.from_ms
        tenant = tenant_of(segment.holder)
        cells = self._cells(line.terms, from_ms)
        micros_, listed = line.amount_micros, line.list_micros
        amount = "" if micros_ is None else fixed(micros_, AMOUNT_DECIMALS)
        has_list = listed is not None and micros_ is not None and listed != micros_
        is_surcharge = line.type is LineType.ENERGY
        use, energy = ("", "") if is_surcharge else self._measured(rated)
        return [
            harmless(line.line_id),
            f"{piece.stretch.day:%Y-%m}",
            PERIOD_STATUS,
            harmless_name(tenant),
            harmless_name(names.at(tenant, from_ms)),
            harmless_name(segment.holder),
            harmless_name(names.at(segment.holder, from_ms)),
            harmless_name(rated.allocation.user),
            rated.allocation.job_label,
            harmless(rated.allocation.job_name or ""),
            str(segment.number),
            rated.end_word,
            harmless_name(segment.gpu_class),
            gpu_share(segment.units, len(segment.devices)),
            str(len(segment.devices)),
            segment.booking.value,
            local_text(from_ms, zone),
            local_text(piece.to_ms, zone),
            utc_text(from_ms),
            str(piece.to_ms - from_ms),
            "0" if is_surcharge else str(piece.gpu_ms),
            hours_text(piece.charged_unit_ms),
            sku(segment.gpu_class, is_share=segment.is_share) if not is_surcharge else energy_sku(segment.gpu_class),
            cells.book if line.book else "",
            cells.price,
            fixed(listed or 0, AMOUNT_DECIMALS) if has_list else amount,
            (fixed((listed or 0) - (micros_ or 0), AMOUNT_DECIMALS) if has_list else _ZERO) if amount else "",
            amount,
            cells.currency if line.book else "",
            cells.tax_rate if line.book else "",
            line.type.value,
            "",
            line.terms.commitment and harmless_name(line.terms.commitment),
            use,
            energy,
            piece.evidence(rated.end_word).value,
            cells.list_price,
            piece.stretch.band,
            amount if cells.committed is None else self._effective(cells.committed, line),
            "",
        ]

    def fee(self, fee: Fee) -> list[str]:
        """Returns the row of a package, a monthly fee, or what of them was unused."""
        tenant = tenant_of(fee.account)
        is_hours = fee.type in {LineType.PACKAGE_UNUSED, LineType.RESERVED_UNUSED}
        return self._row(
            {
                "line_id": harmless(fee.line_id),
                "period": local_text(fee.from_ms, self._context.zone)[:7],
                "tenant_id": harmless(tenant),
                "tenant_name": harmless(self._context.names.at(tenant, fee.from_ms)),
                "project_id": harmless(fee.account),
                "project_name": harmless(self._context.names.at(fee.account, fee.from_ms)),
                "gpu_model": harmless(fee.gpu_class),
                "start_local": local_text(fee.from_ms, self._context.zone),
                "end_local": local_text(fee.to_ms, self._context.zone),
                "start_utc": utc_text(fee.from_ms),
                "duration_ms": str(fee.to_ms - fee.from_ms),
                "gpu_hours": fixed(fee.quantity_nano, GPU_HOURS_DECIMALS) if is_hours else "",
                "sku": fee_sku(fee),
                "price_book": harmless(fee.book.version),
                "unit_price": decimal_text(fee.unit_price, 2),
                "list_amount": fixed(fee.list_micros, AMOUNT_DECIMALS),
                "discount_amount": fixed(fee.list_micros - fee.amount_micros, AMOUNT_DECIMALS),
                "amount": fixed(fee.amount_micros, AMOUNT_DECIMALS),
                "currency": fee.book.currency,
                "tax_rate": tax_text(fee.book),
                "line_type": fee.type.value,
                "package_id": harmless(fee.commitment),
                "list_price": decimal_text(fee.unit_price, 2),
                "effective_amount": fixed(fee.effective_micros, AMOUNT_DECIMALS),
            }
        )

    def invoice(self, invoice: Invoice, range_ms: tuple[int, int], period: str) -> list[list[str]]:
        """Returns the tax row and the rounding row of an invoice; a row of nothing is left out."""
        rates = invoice.tax_rates
        rate_text = decimal_text(rates[0], 2) if len(rates) == 1 else ""
        rows = []
        for kind, amount_micros, tax_rate in (
            (LineType.TAX, invoice.tax_micros, rate_text),
            (LineType.ROUNDING, invoice.rounding_micros, ""),
        ):
            if amount_micros == 0:
                continue
            amount = fixed(amount_micros, AMOUNT_DECIMALS)
            cells = {
                "line_id": harmless(f"{kind}/{invoice.tenant}/{invoice.currency}/{range_ms[0]}-{range_ms[1]}"),
                "period": period,
                "tenant_id": harmless(invoice.tenant),
                "tenant_name": harmless(self._context.names.last(invoice.tenant)),
                "start_local": local_text(range_ms[0], self._context.zone),
                "end_local": local_text(range_ms[1], self._context.zone),
                "start_utc": utc_text(range_ms[0]),
                "list_amount": amount,
                "discount_amount": _ZERO,
                "amount": amount,
                "currency": invoice.currency,
                "tax_rate": tax_rate,
                "line_type": kind.value,
                "effective_amount": amount,
            }
            rows.append(self._row(cells))
        return rows

    def _row(self, cells: dict[str, str]) -> list[str]:
        every = {"period_status": PERIOD_STATUS, "evidence": "controller"} | cells
        return [every.get(column, "") for column in USAGE_COLUMNS]

    def _cells(self, terms: Terms, at_ms: int) -> _TermCells:
        # By identity, which costs nothing: the terms are kept beside their cells, so that no other takes their place.
        found = self._terms.get(id(terms))
        if found is None:
            found = self._terms[id(terms)] = (terms, _term_cells(terms, committed_price(terms, at_ms)))
            if len(self._terms) > _MOST_TERMS:
                self._terms = {id(terms): found}
        return found[1]

    def _effective(self, committed: Fraction, line: Line) -> str:
        book = line.book
        assert book is not None, "what paid before is known by its book"
        return fixed(micros(committed * line.slice.charged_unit_ms, book.currency), AMOUNT_DECIMALS)

    def _measured(self, rated: RatedLine) -> tuple[str, str]:
        """Returns mean utilisation in per cent and energy in kWh as text; empty where they are not known."""
        piece = rated.line.slice
        # What several tenants did on one GPU cannot be told apart by its counters.
        if not self._context.has_windows or piece.segment.is_share:
            return "", ""
        sums = sum_windows(self._connection, rated.gpus, piece.from_ms, piece.to_ms)
        use = fixed(divide(sums.utilization_ppm_ms, sums.utilization_ms * 100), 2) if sums.utilization_ms else ""
        needed_ms = (piece.to_ms - piece.from_ms) * len(piece.segment.devices) * ENERGY_COVERAGE_PERCENT
        is_known = sums.energy_ms > 0 and sums.energy_ms * 100 >= needed_ms
        return use, fixed(divide(sums.energy_millijoules, 3600), AMOUNT_DECIMALS) if is_known else ""


_MOST_TERMS = 65_536
"""Terms whose cells are remembered: stretches of a month × projects × bookings of a large centre."""


def _term_cells(terms: Terms, committed: Fraction | None) -> _TermCells:
    book = terms.book
    if book is None or terms.price is None or terms.list_price is None:
        book_cells = ("", "", "") if book is None else (harmless(book.version), book.currency, tax_text(book))
        return _TermCells(book_cells[0], "", book_cells[1], book_cells[2], "", None)
    return _TermCells(
        harmless(book.version),
        decimal_text(terms.price, 2),
        book.currency,
        tax_text(book),
        decimal_text(terms.list_price, 2),
        committed,
    )


def tax_text(book: PriceBook) -> str:
    """Returns a book's tax rate as its cell."""
    return decimal_text(book.tax_rate, 2)


def sku(gpu_class: str, *, is_share: bool) -> str:
    """Returns what is sold, as in `gpu.h100-80gb.whole`; the same whatever it costs and whoever buys it."""
    return f"gpu.{_name(gpu_class)}.{'share' if is_share else 'whole'}"


def energy_sku(gpu_class: str) -> str:
    """Returns what the surcharge for power is sold as."""
    return f"energy.{_name(gpu_class)}"


def fee_sku(fee: Fee) -> str:
    """Returns what a package or a guarantee is sold as."""
    kind = "pkg" if fee.type in {LineType.PACKAGE, LineType.PACKAGE_UNUSED} else "reserved"
    return f"{kind}.{_name(fee.gpu_class)}"


@lru_cache(maxsize=1024)
def _name(gpu_class: str) -> str:
    return _NO_SKU.sub("-", gpu_class.lower()).strip("-")


def gpu_share(units: int, devices: int) -> str:
    """Returns the part of a GPU that is held of each device: 1, 0.5, or nine decimals where it has no end."""
    if units == GPU_UNITS * devices:
        return "1"
    scaled = divide(units * 10**9, GPU_UNITS * devices)
    digits = fixed(scaled, 9).rstrip("0")
    return digits.rstrip(".")


def committed_price(terms: Terms, at_ms: int) -> Fraction | None:
    """Returns what a unit-millisecond cost of what paid for it before; None where nothing did."""
    if terms.package is not None:
        return package_price(terms.package)
    zone = None if terms.book is None else terms.book.tzinfo
    if terms.reserved is None or zone is None:
        return None
    first_ms, next_ms = month_edges(at_ms, at_ms + 1, zone)[:2]
    return fee_price(terms.reserved, next_ms - first_ms)
