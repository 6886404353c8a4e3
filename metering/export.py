"""Writes what billing departments read: usage lines, invoice totals, capacity, and the manifest that seals them.

Files are made in a directory beside the wanted one and appear by one rename, so nobody ever sees half of an export.
Rows stream from the ledger's indexes to the files; memory does not grow with their number. Exporting a range again
gives the same bytes as long as no late fact about it came in: nothing in the files depends on when they were written.
"""

import os
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

from sqlalchemy.engine import Connection

from metering.capacity import lives_of
from metering.capacity_rows import CAPACITY_COLUMNS, DEVICES_AT_ONCE, CapacityRows
from metering.charged_rows import ALLOCATIONS_AT_ONCE, ChargedLines, ChargedPart, Charges, Request, Sums
from metering.core.civil import civil_days, day_start_ms, local_time, utc_text
from metering.core.fees import UsedKey
from metering.core.period import PeriodStatus
from metering.core.pricebook import PriceBook
from metering.core.quantity import AMOUNT_DECIMALS, divide, fixed, minor_unit
from metering.core.rating import MICROS, Invoice, Totals
from metering.core.stretches import Stretch
from metering.core.volume import Package
from metering.core.who_pays import WHO_PAYS, WhoPays
from metering.correction_rows import correction_cells
from metering.csv_files import CsvFile, WrittenFile, harmless
from metering.fee_lines import fees_of
from metering.focus import FocusTerms
from metering.focus_check import FocusFold, FocusReport
from metering.focus_columns import columns_of
from metering.manifest import MANIFEST, Manifest, tool_version, tzdata_version
from metering.packages import package_sha256
from metering.timelines import Timelines, load_prices, timelines
from metering.usage_columns import USAGE_COLUMNS
from scheduler.core.model import AccountId, tenant_of
from scheduler.refusal import RefusalCode, Refused
from scheduler.rundir import sync_directory
from scheduler.store.account_names import AccountNames, load_account_names
from scheduler.store.database import StoreCorrupt, chunks
from scheduler.store.ledger_allocations import id_ranges
from scheduler.store.ledger_rows import ended_between, hash_at
from scheduler.store.read import latest_known_ms
from scheduler.store.readers import Alone, Readers

TOTALS_FILE = "invoice_totals.csv"
TOTALS_COLUMNS = (
    *("tenant_id", "tenant_name", "period", "currency", "tax_rates", "line_count"),
    *("subtotal", "tax", "rounding", "payable", "payable_minor_units"),
)
CAPACITY_FILE = "capacity.csv"


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
    readers: Readers[Connection] | None = None,
) -> Manifest:
    """Writes the export of `[from_ms, to_ms)` to `out_dir`, which must be empty or not there, and returns its manifest.

    `connection` reads one snapshot. Running jobs are cut at `to_ms`, or at `known_until_ms` if that is earlier: what
    the caller's clock says, or by default the latest time in the ledger itself. The manifest says where it ended. A
    tenant's export has no capacity.csv, which is the centre's. `readers` of the same snapshot share the work: the bytes
    are the same however many they are. Raises Refused for a range or directory that will not
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
        request = Request(from_ms, to_ms, zone, tenant, revision, focus, status, who_pays)
        manifest = _write(Alone(connection) if readers is None else readers, partial, request)
        partial.rename(out_dir)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    sync_directory(out_dir.parent)
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


def _write(readers: Readers[Connection], folder: Path, request: Request) -> Manifest:
    connection = readers.source
    prices = load_prices(connection)
    span = (request.from_ms, request.to_ms)
    lines_of = timelines(connection, span, request.zone, prices, request.tenant)
    names = load_account_names(connection, request.to_ms)
    period = period_of(request.from_ms, request.to_ms, request.zone)
    sums = Sums()
    lines, invoices = _write_lines(readers, folder, (request, lines_of, period), sums)
    if request.tenant is not None and request.tenant not in names and not sums.usage_lines + sums.fee_lines:
        raise Refused(RefusalCode.NOT_FOUND, f"there is no tenant {request.tenant!r}, and none has any use on record")
    files = [*lines, _write_totals(folder, invoices, names, period)]
    if request.tenant is None:
        files.append(_write_capacity(readers, folder, request, sums))
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
    readers: Readers[Connection],
    folder: Path,
    terms: tuple[Request, Timelines, str],
    sums: Sums,
) -> tuple[list[WrittenFile], list[Invoice]]:
    """Writes the native and the FOCUS file side by side, from the same lines."""
    request, lines_of, period = terms
    columns = columns_of(request.focus.version)
    names = [name(period, request.tenant, request.revision) for name in (usage_file_name, focus_file_name)]
    native_file = CsvFile(folder / names[0], USAGE_COLUMNS)
    focus_file = CsvFile(folder / names[1], columns, has_bom=False)
    checked, totals = FocusFold(), Totals()

    def put(part: ChargedPart) -> None:
        checked.add(part.checked)
        if checked.report.failures:
            _refuse_broken(checked.report, ())
        native_file.put(part.native)
        focus_file.put(part.focus)
        totals.fold(part.totals)
        sums.add(part.sums)

    with native_file, focus_file:
        reserved_use: dict[UsedKey, int] = defaultdict(int)
        ranges = id_ranges(readers.source, request.from_ms, request.to_ms, request.tenant, ALLOCATIONS_AT_ONCE)
        for part in readers.each(ChargedLines(request, period, lines_of.meters), ranges):
            put(part)
            for key, unit_ms in part.reserved_use.items():
                reserved_use[key] += unit_ms
        charges = Charges(readers.source, request, period)
        for fee in fees_of(lines_of, reserved_use, request.tenant):
            charges.fee(fee)
        books = {book.version: book for book in lines_of.prices.books}
        for amount_micros, cells in correction_cells(readers.source, request.from_ms, request.to_ms, request.tenant):
            charges.correction(cells, amount_micros, books)
        put(charges.part())
        invoices = totals.invoices()
        for invoice in invoices:
            charges.invoice(invoice)
        put(charges.part())
    _refuse_broken(checked.finish(), invoices)
    return [native_file.finished, focus_file.finished], invoices


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


def _write_totals(folder: Path, invoices: Sequence[Invoice], names: AccountNames, period: str) -> WrittenFile:
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
                    harmless(names.last(invoice.tenant)),
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


def _write_capacity(readers: Readers[Connection], folder: Path, request: Request, sums: Sums) -> WrittenFile:
    days = civil_days(request.from_ms, request.to_ms, request.zone)
    with CsvFile(folder / CAPACITY_FILE, CAPACITY_COLUMNS) as file:
        devices = lives_of(readers, days)
        for told in readers.each(CapacityRows(days), chunks(devices, DEVICES_AT_ONCE)):
            file.put(told.rows)
            sums.capacity_unit_ms += told.unit_ms
            sums.billed_unit_ms += told.billed_unit_ms
    if sums.billed_unit_ms != sums.held_unit_ms:
        raise StoreCorrupt(
            f"devices were held for {sums.billed_unit_ms} billed unit-milliseconds, but the usage lines hold"
            f" {sums.held_unit_ms}; run the ledger's verification"
        )
    return file.finished


def _sums_document(sums: Sums, invoices: Sequence[Invoice], *, is_whole: bool) -> dict[str, object]:
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


def _packages_in_range(packages: Sequence[Package], request: Request) -> dict[str, str]:
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
