"""Proves the files of an export: against their manifest, against each other, and, when it is there, the ledger."""

import csv
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import InvalidOperation
from pathlib import Path

from sqlalchemy.engine import Connection

from metering.capacity_rows import CAPACITY_COLUMNS
from metering.csv_files import BOM
from metering.export import (
    CAPACITY_FILE,
    TOTALS_COLUMNS,
    TOTALS_FILE,
    minor_units,
)
from metering.file_parts import focus_in_parts, lines_in_parts, sha256_of
from metering.findings import Check, Report
from metering.focus_check import FocusReport, check_focus
from metering.manifest import MANIFEST, Manifest
from metering.rerating import compare_with_ledger
from metering.usage_columns import USAGE_COLUMNS
from metering.verify_derived import is_derived, verify_derived
from metering.verify_lines import OF_INVOICE, InvoiceKey, InvoiceSums, Lines, micros_of, verify_lines
from scheduler.store.readers import Alone, Readers


def verify_export(
    folder: Path, connection: Connection | None = None, *, readers: Readers[object] | None = None
) -> Report:
    """Proves an export's files. With a connection, exports the same range again from the ledger and compares bytes.

    Without one it proves that the files are whole and add up; that they tell the truth needs the ledger. `readers`
    share the work on the files; what is found is the same.
    """
    report = Report()
    together = Alone(None) if readers is None else readers
    try:
        manifest = Manifest.from_json((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        report.wrong(Check.FILE, MANIFEST, "a manifest that can be read", str(error))
        return report
    proved = _Proved()
    if together.processes > 1:
        _prove_in_parts(together, folder, manifest, proved)
    if not _verify_hashes(folder, manifest, report, proved.hashes):
        return report
    _verify_contents(folder, manifest, report, proved)
    verify_derived(folder, manifest, report)
    if connection is not None:
        compare_with_ledger(folder, manifest, connection, report)
    return report


@dataclass(slots=True)
class _Proved:
    """What several processes found to hold; what is not here is to be looked at from its beginning."""

    hashes: dict[str, str] = field(default_factory=dict)
    lines: Lines | None = None
    focus: FocusReport | None = None


def _prove_in_parts(readers: Readers[object], folder: Path, manifest: Manifest, proved: _Proved) -> None:
    for file in manifest.files:
        if not (folder / file.name).is_file():
            continue
        if file.name.startswith("usage_lines_"):
            lines = lines_in_parts(readers, folder, file.name, manifest)
            if lines is not None:
                proved.lines, proved.hashes[file.name] = lines
        elif file.name.startswith("focus_"):
            focus = focus_in_parts(readers, folder, file.name, manifest)
            if focus is not None:
                proved.focus, proved.hashes[file.name] = focus


def _verify_hashes(folder: Path, manifest: Manifest, report: Report, known: Mapping[str, str]) -> bool:
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
            sha256 = known.get(file.name) or sha256_of(folder / file.name)
            report.expect(Check.FILE, f"{file.name} sha256", file.sha256, sha256)
    return names <= present


def _verify_contents(folder: Path, manifest: Manifest, report: Report, proved: _Proved) -> None:
    usage = next(file for file in manifest.files if file.name.startswith("usage_lines_"))
    reader = _Reader(folder, manifest, report)
    if proved.lines is not None and proved.lines.rows == usage.rows:
        report.count("lines", usage.rows)
        total = Lines(usage.name, manifest, report)
        total.fold(proved.lines)
        invoices = total.finish()
    else:
        invoices = verify_lines(reader.cells(usage.name, USAGE_COLUMNS), usage.name, manifest, report)
    _verify_totals(reader, invoices, manifest, report)
    _verify_focus(folder, invoices, manifest, (report, proved.focus))
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


def _verify_focus(
    folder: Path,
    invoices: Mapping[InvoiceKey, InvoiceSums],
    manifest: Manifest,
    found: tuple[Report, FocusReport | None],
) -> None:
    """Checks the FOCUS file's rules, and that what each tenant is billed there is what it pays."""
    report, sound = found
    file = next(file for file in manifest.files if file.name.startswith("focus_"))
    checked = check_focus(folder / file.name) if sound is None else sound
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
