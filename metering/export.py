"""Writes what billing departments read: usage lines, invoice totals, capacity, and the manifest that seals them.

Files are made in a directory beside the wanted one and appear by one rename, so nobody ever sees half of an export.
Rows stream from the ledger's indexes to the files; memory does not grow with their number. Exporting a range again
gives the same bytes as long as no late fact about it came in: nothing in the files depends on when they were written.
"""

import os
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

from sqlalchemy.engine import Connection

from metering.capacity import capacity_of
from metering.core.civil import civil_days, day_start_ms, local_time, utc_text
from metering.core.fees import Fee, UsedKey
from metering.core.period import PeriodStatus, period_at
from metering.core.pricebook import PriceBook
from metering.core.quantity import AMOUNT_DECIMALS, divide, fixed, minor_unit
from metering.core.rating import MICROS, Invoice, Line, LineType, Totals
from metering.core.stretches import Stretch
from metering.core.volume import Package
from metering.core.who_pays import WHO_PAYS, WhoPays
from metering.correction_rows import correction_cells
from metering.credit_lines import credit_cells, credit_of
from metering.csv_files import CsvFile, WrittenFile, harmless, harmless_name
from metering.fee_lines import fees_of, note_reserved
from metering.focus import FocusRows, FocusTerms
from metering.focus_check import FocusChecker, FocusReport
from metering.ledger import has_windows
from metering.manifest import MANIFEST, Manifest, tool_version, tzdata_version
from metering.packages import package_sha256
from metering.timelines import Timelines, load_prices, timelines
from metering.usage_lines import USAGE_COLUMNS, LineContext, RatedLine, UsageRows, rated_lines
from scheduler.core.model import AccountId, tenant_of
from scheduler.refusal import RefusalCode, Refused
from scheduler.store.account_names import load_account_names
from scheduler.store.database import StoreCorrupt
from scheduler.store.ledger_rows import ended_between, hash_at
from scheduler.store.read import latest_known_ms

TOTALS_FILE = "invoice_totals.csv"
TOTALS_COLUMNS = (
    *("tenant_id", "tenant_name", "period", "currency", "tax_rates", "line_count"),
    *("subtotal", "tax", "rounding", "payable", "payable_minor_units"),
)
STATUS_PLACE, TENANT_PLACE, CURRENCY_PLACE, BOOK_PLACE = (
    USAGE_COLUMNS.index(name) for name in ("period_status", "tenant_id", "currency", "price_book")
)
CAPACITY_FILE = "capacity.csv"
CAPACITY_COLUMNS = (
    *("device_id", "node", "gpu_model", "gpu_units", "day", "state"),
    *("state_unit_ms", "billed_unit_ms", "state_ms", "capacity_unit_ms", "capacity_ms"),
)


@dataclass(frozen=True, slots=True)
class _Request:
    from_ms: int
    to_ms: int
    zone: ZoneInfo
    tenant: AccountId | None
    revision: int
    focus: FocusTerms
    status: PeriodStatus
    who_pays: WhoPays


@dataclass(slots=True)
class _Sums:
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

    def add(self, line: Line) -> None:
        """Counts a line of usage; a surcharge holds nothing that its usage does not."""
        piece = line.slice
        self.usage_lines += 1
        self.unpriced_lines += line.amount_micros is None
        if line.type is not LineType.ENERGY:
            self.gpu_ms += piece.gpu_ms
            self.held_unit_ms += piece.segment.units * (piece.to_ms - piece.from_ms)
            self.charged_unit_ms += piece.charged_unit_ms


def export_usage(  # noqa: PLR0913 - a request in words: what, where, which time, whose
    connection: Connection,
    out_dir: Path,
    from_ms: int,
    to_ms: int,
    zone: ZoneInfo,
    tenant: AccountId | None = None,
    *,
    known_until_ms: int | None = None,
    revision: int = 0,
    focus: FocusTerms = FocusTerms(),  # noqa: B008 - a frozen value
    status: PeriodStatus = PeriodStatus.OPEN,
    who_pays: WhoPays = WHO_PAYS,
) -> Manifest:
    """Writes the export of `[from_ms, to_ms)` to `out_dir`, which must be empty or not there, and returns its manifest.

    `connection` reads one snapshot. Running jobs are cut at `to_ms`, or at `known_until_ms` if that is earlier: what
    the caller's clock says, or by default the latest time in the ledger itself. The manifest says where it ended. A
    tenant's export has no capacity.csv, which is the centre's. Raises Refused for a range or directory that will not
    do, StoreCorrupt when the ledger does not add up, OSError when the files cannot be written.
    """
    known_ms = latest_known_ms(connection) if known_until_ms is None else known_until_ms
    if not 0 <= from_ms < to_ms:
        raise Refused(RefusalCode.INVALID, f"the range {from_ms} to {to_ms} is empty; its end must be after its start")
    if from_ms >= known_ms:
        raise Refused(
            RefusalCode.INVALID,
            f"the range begins at {utc_text(from_ms)}, but nothing is known yet after {utc_text(known_ms)}",
            tries=(f"begin before {utc_text(known_ms)}",),
        )
    to_ms = min(to_ms, known_ms)
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise Refused(RefusalCode.CONFLICT, f"{out_dir} is there and not empty", tries=("choose a new directory",))
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out_dir.name}.", suffix=".partial", dir=out_dir.parent))
    try:
        manifest = _write(
            connection, partial, _Request(from_ms, to_ms, zone, tenant, revision, focus, status, who_pays)
        )
        partial.rename(out_dir)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _sync_directory(out_dir.parent)
    return manifest


def usage_file_name(period: str, tenant: AccountId | None, revision: int) -> str:
    """Returns the name of the usage lines' file; a tenant's name keeps its letters and digits only."""
    return _file_name("usage_lines", period, tenant, revision)


def focus_file_name(period: str, tenant: AccountId | None, revision: int) -> str:
    """Returns the name of the FOCUS file."""
    return _file_name("focus", period, tenant, revision)


def _file_name(what: str, period: str, tenant: AccountId | None, revision: int) -> str:
    whose = "all"
    if tenant is not None:
        whose = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in tenant)
    return f"{what}_{period}_{whose}_r{revision}.csv"


def period_of(from_ms: int, to_ms: int, zone: ZoneInfo) -> str:
    """Returns a range's name: its civil month if it is the whole of one, else its first and last day.

    A month so far has its days in its name: a file of it must not pass for the month's.
    """
    first = local_time(from_ms, zone).date()
    last = (local_time(to_ms, zone) - timedelta(milliseconds=1)).date()
    following = (first.replace(day=1) + timedelta(days=31)).replace(day=1)
    if (from_ms, to_ms) == (day_start_ms(first.replace(day=1), zone), day_start_ms(following, zone)):
        return f"{first:%Y-%m}"
    return f"{first.isoformat()}_{last.isoformat()}"


def _write(connection: Connection, folder: Path, request: _Request) -> Manifest:
    prices = load_prices(connection)
    span = (request.from_ms, request.to_ms)
    lines_of = timelines(connection, span, request.zone, prices, request.tenant)
    context = LineContext(
        request.zone,
        load_account_names(connection, request.to_ms),
        has_windows(connection, request.from_ms, request.to_ms),
    )
    period = period_of(request.from_ms, request.to_ms, request.zone)
    sums = _Sums()
    lines, invoices = _write_lines(connection, folder, (request, context, lines_of, period), sums)
    if request.tenant is not None and request.tenant not in context.names and not sums.usage_lines + sums.fee_lines:
        raise Refused(RefusalCode.NOT_FOUND, f"there is no tenant {request.tenant!r}, and none has any use on record")
    files = [*lines, _write_totals(folder, invoices, context, period)]
    if request.tenant is None:
        files.append(_write_capacity(connection, folder, request, sums))
    first, last = ended_between(connection, request.from_ms, request.to_ms)
    manifest = Manifest(
        from_ms=request.from_ms,
        to_ms=request.to_ms,
        zone=request.zone.key,
        tzdata_version=tzdata_version(request.zone.key),
        period=period,
        period_status=request.status.value,
        tenant=request.tenant,
        revision=request.revision,
        files=tuple(sorted(files, key=lambda file: file.name)),
        sums=_sums_document(sums, invoices, is_whole=request.tenant is None),
        price_books=_books_in_range(prices.books, lines_of.plain_days),
        packages=_packages_in_range(prices.packages, request),
        who_pays=request.who_pays.version,
        first_sequence=first,
        last_sequence=last,
        chain_head=hash_at(connection, last) if last is not None else None,
        focus_version=request.focus.version,
        invoice_issuer=request.focus.issuer,
        tool_version=tool_version(),
    )
    _write_text(folder / MANIFEST, manifest.to_json())
    return manifest


def _write_lines(
    connection: Connection,
    folder: Path,
    terms: tuple[_Request, LineContext, Timelines, str],
    sums: _Sums,
) -> tuple[list[WrittenFile], list[Invoice]]:
    """Writes the native and the FOCUS file side by side, from the same lines."""
    request, context, lines_of, period = terms
    focus = FocusRows(request.focus, request.zone)
    names = [name(period, request.tenant, request.revision) for name in (usage_file_name, focus_file_name)]
    native_file = CsvFile(folder / names[0], USAGE_COLUMNS)
    focus_file = CsvFile(folder / names[1], focus.columns, has_bom=False)
    checker = FocusChecker(focus.columns)
    put = _Put((native_file, focus_file), checker, focus.columns, request.status, period)
    with native_file, focus_file:
        charges = _Charges(put, UsageRows(connection, context), focus, request, sums)
        reserved_use: dict[UsedKey, int] = defaultdict(int)
        for rated in rated_lines(connection, lines_of, request.tenant):
            charges.usage(rated)
            note_reserved(reserved_use, rated.line)
        for fee in fees_of(lines_of, reserved_use, request.tenant):
            charges.fee(fee)
        books = {book.version: book for book in lines_of.prices.books}
        for amount_micros, cells in correction_cells(connection, request.from_ms, request.to_ms, request.tenant):
            charges.correction(cells, amount_micros, books)
        invoices = charges.totals.invoices()
        for invoice in invoices:
            charges.invoice(invoice, period)
    _refuse_broken(checker.finish(), invoices)
    return [native_file.finished, focus_file.finished], invoices


class _Charges:
    """Writes each charge to both files, and counts it."""

    def __init__(self, put: "_Put", native: UsageRows, focus: FocusRows, request: _Request, sums: _Sums) -> None:
        self.totals = Totals()
        self._put = put
        self._native = native
        self._focus = focus
        self._request = request
        self._sums = sums

    def usage(self, rated: RatedLine) -> None:
        """Writes a line of usage, and beside it what is given back of it."""
        cells = self._native.usage(rated)
        self._put.native(cells)
        self._put.charge(self._focus.usage(rated, cells), cells)
        self.totals.add(rated.line)
        self._sums.add(rated.line)
        credit = credit_of(rated, self._request.who_pays)
        if credit is None or rated.line.book is None:
            return
        cells = credit_cells(credit, cells, self._request.zone)
        self._put.native(cells)
        self._put.charge(self._focus.of_credit(cells, rated.line.slice.stretch.day), cells)
        self.totals.count(tenant_of(rated.line.slice.segment.holder), rated.line.book, -credit.amount_micros)
        self._sums.credit_lines += 1

    def fee(self, fee: Fee) -> None:
        """Writes a package, a monthly fee, or what of them was unused."""
        cells = self._native.fee(fee)
        self._put.native(cells)
        self._put.charge(self._focus.of_fee(fee, cells), cells)
        self.totals.count(tenant_of(fee.account), fee.book, fee.amount_micros)
        self._sums.fee_lines += 1

    def correction(self, cells: list[str], amount_micros: int, books: Mapping[str, PriceBook]) -> None:
        """Writes a correction of a closed period that is charged in this range."""
        charged_in = period_at(self._request.to_ms - 1, self._request.zone)
        self._put.native(cells)
        self._put.charge(self._focus.of_correction(cells, charged_in), cells)
        if cells[CURRENCY_PLACE]:
            self.totals.count(AccountId(cells[TENANT_PLACE]), books[cells[BOOK_PLACE]], amount_micros)
        self._sums.correction_lines += 1

    def invoice(self, invoice: Invoice, period: str) -> None:
        """Writes an invoice's tax and rounding."""
        range_ms = (self._request.from_ms, self._request.to_ms)
        for cells in self._native.invoice(invoice, range_ms, period):
            self._put.native(cells)
            self._put.charge(self._focus.of_invoice(invoice, cells, range_ms), cells)


class _Put:
    """Writes rows to both files: marks what is final, and refuses what breaks a rule before it leaves."""

    def __init__(
        self,
        files: tuple[CsvFile, CsvFile],
        checker: FocusChecker,
        columns: Sequence[str],
        status: PeriodStatus,
        period: str,
    ) -> None:
        self._files = files
        self._checker = checker
        self._status = status
        self._period = period
        self._invoice_place = columns.index("InvoiceId")

    def native(self, cells: list[str]) -> None:
        """Writes a native row; it is final when its period is closed."""
        cells[STATUS_PLACE] = self._status.value
        self._files[0].row(cells)

    def charge(self, charge: list[str] | None, cells: Sequence[str]) -> None:
        """Writes the FOCUS row of a native one; on the invoice of its tenant when its period is closed."""
        if charge is None:
            return
        if self._status is PeriodStatus.CLOSED:
            charge[self._invoice_place] = f"{self._period}/{cells[TENANT_PLACE]}/{cells[CURRENCY_PLACE]}"
        self._checker.row(charge)
        if self._checker.report.failures:
            _refuse_broken(self._checker.report, ())
        self._files[1].row(charge)


def _refuse_broken(report: FocusReport, invoices: Sequence[Invoice]) -> None:
    if report.breaks:
        raise Refused(RefusalCode.INVALID, f"the FOCUS file would break a rule: {report.breaks[0]}")
    for invoice in invoices:
        billed = report.billed_micros[harmless(invoice.tenant), invoice.currency]
        if billed != invoice.payable_micros:
            raise StoreCorrupt(
                f"charges of {invoice.tenant} add up to {fixed(billed, AMOUNT_DECIMALS)} {invoice.currency}, but"
                f" {fixed(invoice.payable_micros, AMOUNT_DECIMALS)} is payable; run the ledger's verification"
            )


def _write_totals(folder: Path, invoices: Sequence[Invoice], context: LineContext, period: str) -> WrittenFile:
    with CsvFile(folder / TOTALS_FILE, TOTALS_COLUMNS) as file:
        for invoice in invoices:
            amounts = (
                invoice.subtotal_micros,
                invoice.tax_micros,
                invoice.rounding_micros,
                invoice.payable_micros,
            )
            file.row(
                [
                    harmless(invoice.tenant),
                    harmless(context.names.last(invoice.tenant)),
                    period,
                    invoice.currency,
                    " ".join(format(rate, "f") for rate in invoice.tax_rates),
                    str(invoice.lines),
                    *(fixed(micros, AMOUNT_DECIMALS) for micros in amounts),
                    str(minor_units(invoice.payable_micros, invoice.currency)),
                ]
            )
    return file.finished


def minor_units(micros: int, currency: str) -> int:
    """Returns an amount in the currency's minor unit (fen, cents); a payable is a whole number of them."""
    return divide(micros, int(minor_unit(currency) * MICROS))


def _write_capacity(connection: Connection, folder: Path, request: _Request, sums: _Sums) -> WrittenFile:
    days = civil_days(request.from_ms, request.to_ms, request.zone)
    with CsvFile(folder / CAPACITY_FILE, CAPACITY_COLUMNS) as file:
        for state in capacity_of(connection, days):
            device = state.device
            numbers = (
                state.unit_ms,
                state.billed_unit_ms,
                state.state_ms,
                state.capacity_unit_ms,
                state.capacity_ms,
            )
            names = (device.id, device.node, device.gpu_class)
            file.row(
                [
                    *map(harmless_name, names),
                    str(device.units),
                    state.day.isoformat(),
                    state.state.value,
                    *map(str, numbers),
                ]
            )
            sums.capacity_unit_ms += state.unit_ms
            sums.billed_unit_ms += state.billed_unit_ms
    if sums.billed_unit_ms != sums.held_unit_ms:
        raise StoreCorrupt(
            f"devices were held for {sums.billed_unit_ms} billed unit-milliseconds, but the usage lines hold"
            f" {sums.held_unit_ms}; run the ledger's verification"
        )
    return file.finished


def _sums_document(sums: _Sums, invoices: Sequence[Invoice], *, is_whole: bool) -> dict[str, object]:
    payable: dict[str, int] = {}
    for invoice in invoices:
        payable[invoice.currency] = payable.get(invoice.currency, 0) + invoice.payable_micros
    document: dict[str, object] = {
        "usage_lines": sums.usage_lines,
        "fee_lines": sums.fee_lines,
        "unpriced_lines": sums.unpriced_lines,
        "correction_lines": sums.correction_lines,
        "credit_lines": sums.credit_lines,
        "gpu_ms": sums.gpu_ms,
        "held_unit_ms": sums.held_unit_ms,
        "charged_unit_ms": sums.charged_unit_ms,
        "payable": {currency: fixed(micros, AMOUNT_DECIMALS) for currency, micros in sorted(payable.items())},
    }
    if is_whole:
        document["capacity_unit_ms"] = sums.capacity_unit_ms
    return document


def _books_in_range(books: Sequence[PriceBook], stretches: Sequence[Stretch]) -> dict[str, str]:
    used = {stretch.book.version for stretch in stretches if stretch.book is not None}
    return {book.version: book.sha256 for book in books if book.version in used}


def _packages_in_range(packages: Sequence[Package], request: _Request) -> dict[str, str]:
    """Returns the hashes of the packages that may pay for something in the range, or whose purchase or end it has."""
    return {
        package.id: package_sha256(package)
        for package in packages
        if package.from_ms < request.to_ms
        and package.to_ms >= request.from_ms
        and (request.tenant is None or package.tenant == tenant_of(request.tenant))
    }


def _write_text(path: Path, text: str) -> None:
    with path.open("x", encoding="utf-8", newline="\n") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def _sync_directory(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
