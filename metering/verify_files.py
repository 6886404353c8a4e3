"""Proves the files of an export: against their manifest, against each other, and, when it is there, the ledger."""

import csv
import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from decimal import InvalidOperation
from pathlib import Path

from sqlalchemy.engine import Connection

from metering.csv_files import BOM
from metering.export import (
    CAPACITY_COLUMNS,
    CAPACITY_FILE,
    TOTALS_COLUMNS,
    TOTALS_FILE,
    minor_units,
)
from metering.findings import Check, Report
from metering.focus_check import check_focus
from metering.manifest import MANIFEST, Manifest
from metering.rerating import compare_with_ledger
from metering.usage_lines import USAGE_COLUMNS
from metering.verify_derived import is_derived, verify_derived
from metering.verify_lines import OF_INVOICE, InvoiceKey, InvoiceSums, micros_of, verify_lines


def verify_export(folder: Path, connection: Connection | None = None) -> Report:
    """Proves an export's files. With a connection, exports the same range again from the ledger and compares bytes.

    Without one it proves that the files are whole and add up; that they tell the truth needs the ledger.
    """
    report = Report()
    try:
        manifest = Manifest.from_json((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        report.wrong(Check.FILE, MANIFEST, "a manifest that can be read", str(error))
        return report
    if not _verify_hashes(folder, manifest, report):
        return report
    _verify_contents(folder, manifest, report)
    verify_derived(folder, manifest, report)
    if connection is not None:
        compare_with_ledger(folder, manifest, connection, report)
    return report


def _verify_hashes(folder: Path, manifest: Manifest, report: Report) -> bool:
    """Checks which files there are and their bytes; returns whether all of them can be read."""
    names = {file.name for file in manifest.files}
    present = {path.name for path in folder.iterdir() if not is_derived(path.name)}
    for name in sorted(present - names - {MANIFEST}):
        report.wrong(Check.FILE, name, "a file of the manifest", "one that it does not name")
    wanted = {TOTALS_FILE, *([CAPACITY_FILE] if manifest.tenant is None else [])}
    wanted |= {name for name in names if name.startswith(("usage_lines_", "focus_"))}
    report.expect(Check.FILE, f"{MANIFEST} files", sorted(wanted), sorted(names))
    for prefix in ("usage_lines_", "focus_"):
        if sum(name.startswith(prefix) for name in names) != 1:
            report.wrong(Check.FILE, f"{MANIFEST} files", f"one file {prefix}*", str(sorted(names)))
            return False
    for file in manifest.files:
        report.count("files")
        if file.name not in present:
            report.wrong(Check.FILE, file.name, "the file", "none")
        else:
            report.expect(Check.FILE, f"{file.name} sha256", file.sha256, _sha256(folder / file.name))
    return names <= present


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _verify_contents(folder: Path, manifest: Manifest, report: Report) -> None:
    usage = next(file.name for file in manifest.files if file.name.startswith("usage_lines_"))
    reader = _Reader(folder, manifest, report)
    invoices = verify_lines(reader.cells(usage, USAGE_COLUMNS), usage, manifest, report)
    _verify_totals(reader, invoices, manifest, report)
    _verify_focus(folder, invoices, manifest, report)
    if manifest.tenant is None:
        _verify_capacity(reader, manifest, report)


class _Reader:
    """Reads files of an export row by row; what cannot be read is a finding and ends the file."""

    def __init__(self, folder: Path, manifest: Manifest, report: Report) -> None:
        self._folder = folder
        self._rows = {file.name: file.rows for file in manifest.files}
        self._report = report

    def rows(self, name: str, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
        """Yields where a row is and its cells by column."""
        for number, cells in self.cells(name, columns):
            yield f"{name} row {number}", dict(zip(columns, cells, strict=True))

    def cells(self, name: str, columns: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
        """Yields a row's number, from 1, and its cells in the order of `columns`, which are the header."""
        path, count = self._folder / name, 0
        with path.open("rb") as raw:
            self._report.expect(Check.FILE, f"{name} first bytes", BOM, raw.read(len(BOM)))
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            try:
                header = next(reader, [])
                if not self._report.expect(Check.FILE, f"{name} header", list(columns), header):
                    return
                for cells in reader:
                    count += 1
                    if len(cells) != len(columns):
                        self._report.wrong(
                            Check.FILE, f"{name} row {count}", f"{len(columns)} cells", f"{len(cells)} cells"
                        )
                        continue
                    yield count, cells
            except (csv.Error, UnicodeDecodeError) as error:
                self._report.wrong(Check.FILE, f"{name} row {count + 1}", "CSV in UTF-8", str(error))
                return
            finally:
                self._report.count("lines", count)
        self._report.expect(Check.FILE, f"{name} rows", self._rows[name], count)


def _verify_totals(
    reader: _Reader, invoices: Mapping[InvoiceKey, InvoiceSums], manifest: Manifest, report: Report
) -> None:
    payable: dict[str, int] = defaultdict(int)
    seen: set[InvoiceKey] = set()
    for where, row in reader.rows(TOTALS_FILE, TOTALS_COLUMNS):
        key = (row["tenant_id"], row["currency"])
        seen.add(key)
        invoice = invoices.get(key, InvoiceSums())
        try:
            amounts = {column: micros_of(row[column]) for column in ("subtotal", "tax", "rounding", "payable")}
            found = (int(row["line_count"]), int(row["payable_minor_units"]))
        except (ValueError, InvalidOperation) as error:
            report.wrong(Check.FILE, where, "numbers that can be read", str(error))
            continue
        told = {kind: invoice.micros.get(kind, 0) for kind in OF_INVOICE}
        told["subtotal"] = sum(invoice.micros.values()) - sum(told.values())
        for column, micros in told.items():
            report.expect(Check.ARITHMETIC, f"{where} {column}", micros, amounts[column])
        report.expect(Check.ARITHMETIC, f"{where} payable", sum(invoice.micros.values()), amounts["payable"])
        report.expect(
            Check.ARITHMETIC, f"{where} counts", (invoice.lines, minor_units(amounts["payable"], key[1])), found
        )
        payable[key[1]] += amounts["payable"]
    report.expect(Check.ARITHMETIC, f"{TOTALS_FILE} invoices", sorted(invoices), sorted(seen))
    try:
        sums = {currency: micros_of(text) for currency, text in manifest.sums.get("payable", {}).items()}
    except (ValueError, InvalidOperation, AttributeError) as error:
        report.wrong(Check.FILE, f"{MANIFEST} sums payable", "amounts by currency", str(error))
        return
    report.expect(Check.ARITHMETIC, f"{TOTALS_FILE} payable", sums, dict(payable))


def _verify_focus(folder: Path, invoices: Mapping[InvoiceKey, InvoiceSums], manifest: Manifest, report: Report) -> None:
    """Checks the FOCUS file's rules, and that what each tenant is billed there is what it pays."""
    file = next(file for file in manifest.files if file.name.startswith("focus_"))
    checked = check_focus(folder / file.name)
    report.count("lines", checked.rows)
    for broken in checked.breaks:
        report.wrong(Check.FOCUS, f"{file.name} {broken.where} {broken.rule}", broken.says, broken.found)
    report.expect(Check.FILE, f"{file.name} rows", file.rows, checked.rows)
    payable = {key: sum(invoice.micros.values()) for key, invoice in invoices.items()}
    for tenant, currency in sorted({*payable, *checked.billed_micros}):
        billed = checked.billed_micros.get((tenant, currency))
        report.expect(
            Check.ARITHMETIC, f"{file.name} billed to {tenant} in {currency}", payable.get((tenant, currency)), billed
        )


def _verify_capacity(reader: _Reader, manifest: Manifest, report: Report) -> None:
    day: tuple[str, str] | None = None
    left_unit_ms = left_ms = 0
    total = billed = 0
    where = CAPACITY_FILE

    def close(at: str) -> None:
        report.expect(Check.CONSERVATION, f"{at}, end of {day}: unit-ms not told", 0, left_unit_ms)
        report.expect(Check.CONSERVATION, f"{at}, end of {day}: ms not told", 0, left_ms)

    for where, row in reader.rows(CAPACITY_FILE, CAPACITY_COLUMNS):
        try:
            numbers = {column: int(row[column]) for column in CAPACITY_COLUMNS[6:]}
            units = int(row["gpu_units"])
        except ValueError as error:
            report.wrong(Check.FILE, where, "numbers that can be read", str(error))
            continue
        if (row["device_id"], row["day"]) != day:
            if day is not None:
                close(where)
            day = (row["device_id"], row["day"])
            left_unit_ms, left_ms = numbers["capacity_unit_ms"], numbers["capacity_ms"]
            report.expect(Check.CONSERVATION, f"{where} capacity", units * left_ms, left_unit_ms)
        left_unit_ms -= numbers["state_unit_ms"]
        left_ms -= numbers["state_ms"]
        total += numbers["state_unit_ms"]
        billed += numbers["billed_unit_ms"]
    if day is not None:
        close(where)
    report.expect(Check.CONSERVATION, f"{CAPACITY_FILE} total", manifest.sums.get("capacity_unit_ms"), total)
    report.expect(Check.CONSERVATION, f"{CAPACITY_FILE} billed", manifest.sums.get("held_unit_ms"), billed)
