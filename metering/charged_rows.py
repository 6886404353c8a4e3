"""The charges of an export as rows of both files: what they say, their sums, and what the FOCUS rules say of them.

`Charges` turns charges into rows, one after the other, and gives them part by part. The parts of an export may come
from several processes (`ChargedLines` is their work: the lines of a range of allocations); put together in their order
they are the same bytes as if one had made all.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from zoneinfo import ZoneInfo

from sqlalchemy.engine import Connection

from metering.core.fees import Fee, UsedKey
from metering.core.period import PeriodStatus, period_at
from metering.core.pricebook import PriceBook
from metering.core.rating import Invoice, Line, LineType, Totals
from metering.core.volume import Meter
from metering.core.who_pays import WhoPays
from metering.credit_lines import credit_cells, credit_of
from metering.csv_files import CsvRows, Rows
from metering.fee_lines import note_reserved
from metering.focus import FocusRows, FocusTerms
from metering.focus_check import FocusChecker, FocusPart
from metering.ledger import has_windows
from metering.timelines import MeterKey, Timelines, load_prices
from metering.usage_columns import USAGE_COLUMNS
from metering.usage_lines import LineContext, RatedLine, UsageRows, rated_lines
from scheduler.core.model import AccountId, tenant_of
from scheduler.store.account_names import load_account_names
from scheduler.store.ledger_allocations import IdRange

STATUS_PLACE, TENANT_PLACE, CURRENCY_PLACE, BOOK_PLACE = (
    USAGE_COLUMNS.index(name) for name in ("period_status", "tenant_id", "currency", "price_book")
)
ALLOCATIONS_AT_ONCE = 1_024
"""Allocations whose lines are made at once: some megabytes of text, a quarter of a second's work."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is exported: which time, whose, how often before, and as what."""

    from_ms: int
    to_ms: int
    zone: ZoneInfo
    tenant: AccountId | None
    revision: int
    focus: FocusTerms
    status: PeriodStatus
    who_pays: WhoPays


@dataclass(slots=True)
class Sums:
    """What an export's lines and capacity add up to."""

    usage_lines: int = 0
    """Lines of usage, least charges and surcharges."""
    fee_lines: int = 0
    unpriced_lines: int = 0
    correction_lines: int = 0
    credit_lines: int = 0
    gpu_ms: int = 0
    held_unit_ms: int = 0
    charged_unit_ms: int = 0
    capacity_unit_ms: int = 0
    billed_unit_ms: int = 0

    def count(self, line: Line) -> None:
        """Counts a line of usage; a surcharge holds nothing that its usage does not."""
        piece = line.slice
        self.usage_lines += 1
        self.unpriced_lines += line.amount_micros is None
        if line.type is not LineType.ENERGY:
            self.gpu_ms += piece.gpu_ms
            self.held_unit_ms += piece.segment.units * (piece.to_ms - piece.from_ms)
            self.charged_unit_ms += piece.charged_unit_ms

    def add(self, other: "Sums") -> None:
        """Adds what another one counted."""
        for name in (field.name for field in fields(self)):
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass(frozen=True, slots=True)
class ChargedPart:
    """Consecutive charges: their rows, what they add up to, and what was checked of them."""

    native: Rows
    focus: Rows
    checked: FocusPart
    totals: Totals
    sums: Sums
    reserved_use: dict[UsedKey, int]
    """What the lines used of guarantees that a fee pays for, in unit-milliseconds."""


@dataclass(frozen=True, slots=True)
class ChargedLines:
    """The work of making the lines of allocations, by ranges of their ids."""

    request: Request
    period: str
    meters: Mapping[MeterKey, Meter]

    def begin(self, connection: Connection) -> Callable[[IdRange], ChargedPart]:
        """Returns what makes the lines of a range. Raises StoreCorrupt when the ledger contradicts itself."""
        request = self.request
        lines_of = Timelines(request.from_ms, request.to_ms, request.zone, load_prices(connection))
        lines_of.meters.update(self.meters)
        charges = Charges(connection, request, self.period)

        def make(ids: IdRange) -> ChargedPart:
            for rated in rated_lines(connection, lines_of, request.tenant, ids):
                charges.usage(rated)
            return charges.part()

        return make


class Charges:
    """Turns each charge into its rows, and counts it. What breaks a rule of FOCUS is said by the part."""

    def __init__(self, connection: Connection, request: Request, period: str) -> None:
        context = LineContext(
            request.zone,
            load_account_names(connection, request.to_ms),
            has_windows(connection, request.from_ms, request.to_ms),
        )
        self._native = UsageRows(connection, context)
        self._focus = FocusRows(request.focus, request.zone)
        self._put = _Put(self._focus.columns, request.status, period)
        self._request = request
        self._period = period
        self._begin()

    def _begin(self) -> None:
        self._totals, self._sums = Totals(), Sums()
        self._reserved_use: dict[UsedKey, int] = defaultdict(int)

    def part(self) -> ChargedPart:
        """Returns the charges since this was last asked, and begins anew."""
        put = self._put
        part = ChargedPart(
            put.native_rows.take(),
            put.focus_rows.take(),
            put.checker.part(),
            self._totals,
            self._sums,
            dict(self._reserved_use),
        )
        self._begin()
        return part

    def usage(self, rated: RatedLine) -> None:
        """Writes a line of usage, and beside it what is given back of it."""
        cells = self._native.usage(rated)
        self._put.native(cells)
        self._put.charge(self._focus.usage(rated, cells), cells)
        self._totals.add(rated.line)
        self._sums.count(rated.line)
        note_reserved(self._reserved_use, rated.line)
        credit = credit_of(rated, self._request.who_pays)
        if credit is None or rated.line.book is None:
            return
        cells = credit_cells(credit, cells, self._request.zone)
        self._put.native(cells)
        self._put.charge(self._focus.of_credit(cells, rated.line.slice.stretch.day), cells)
        self._totals.count(tenant_of(rated.line.slice.segment.holder), rated.line.book, -credit.amount_micros)
        self._sums.credit_lines += 1

    def fee(self, fee: Fee) -> None:
        """Writes a package, a monthly fee, or what of them was unused."""
        cells = self._native.fee(fee)
        self._put.native(cells)
        self._put.charge(self._focus.of_fee(fee, cells), cells)
        self._totals.count(tenant_of(fee.account), fee.book, fee.amount_micros)
        self._sums.fee_lines += 1

    def correction(self, cells: list[str], amount_micros: int, books: Mapping[str, PriceBook]) -> None:
        """Writes a correction of a closed period that is charged in this range."""
        charged_in = period_at(self._request.to_ms - 1, self._request.zone)
        self._put.native(cells)
        self._put.charge(self._focus.of_correction(cells, charged_in), cells)
        if cells[CURRENCY_PLACE]:
            self._totals.count(AccountId(cells[TENANT_PLACE]), books[cells[BOOK_PLACE]], amount_micros)
        self._sums.correction_lines += 1

    def invoice(self, invoice: Invoice) -> None:
        """Writes an invoice's tax and rounding."""
        range_ms = (self._request.from_ms, self._request.to_ms)
        for cells in self._native.invoice(invoice, range_ms, self._period):
            self._put.native(cells)
            self._put.charge(self._focus.of_invoice(invoice, cells, range_ms), cells)


class _Put:
    """Makes rows of both files: marks what is final, and has each charge checked before it leaves."""

    def __init__(self, columns: Sequence[str], status: PeriodStatus, period: str) -> None:
        self.native_rows = CsvRows(USAGE_COLUMNS)
        self.focus_rows = CsvRows(columns)
        self.checker = FocusChecker(columns)
        self._status = status
        self._period = period
        self._invoice_place = columns.index("InvoiceId")

    def native(self, cells: list[str]) -> None:
        """Writes a native row; it is final when its period is closed."""
        cells[STATUS_PLACE] = self._status.value
        self.native_rows.row(cells)

    def charge(self, charge: list[str] | None, cells: Sequence[str]) -> None:
        """Writes the FOCUS row of a native one; on the invoice of its tenant when its period is closed."""
        if charge is None:
            return
        if self._status is PeriodStatus.CLOSED:
            charge[self._invoice_place] = f"{self._period}/{cells[TENANT_PLACE]}/{cells[CURRENCY_PLACE]}"
        self.checker.row(charge)
        self.focus_rows.row(charge)
