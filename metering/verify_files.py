"""Proves the files of an export: against their manifest, against each other, and, when it is there, the ledger."""

import csv
import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from pathlib import Path

from sqlalchemy.engine import Connection

from metering.core.quantity import AMOUNT_DECIMALS, GPU_HOURS_DECIMALS, Money
from metering.core.rating import LineType
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
from scheduler.clock import parse_utc_ms

_MICROS = 10**AMOUNT_DECIMALS
_USAGE = frozenset({LineType.USAGE, LineType.MINIMUM, LineType.ENERGY})
_OF_INVOICE = (LineType.TAX, LineType.ROUNDING)
_GIVEN = frozenset({LineType.CREDIT, LineType.CORRECTION})
_FEES = frozenset(LineType) - _USAGE - _GIVEN - frozenset(_OF_INVOICE)
InvoiceKey = tuple[str, str]  # tenant and currency


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


@dataclass(slots=True)
class _Invoice:
    """What the usage lines of a tenant in a currency add up to, by line type."""

    micros: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    lines: int = 0


def _verify_contents(folder: Path, manifest: Manifest, report: Report) -> None:
    usage = next(file.name for file in manifest.files if file.name.startswith("usage_lines_"))
    reader = _Reader(folder, manifest, report)
    invoices = _verify_usage(reader, usage, manifest, report)
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
                    self._report.count("lines")
                    if len(cells) != len(columns):
                        self._report.wrong(
                            Check.FILE, f"{name} row {count}", f"{len(columns)} cells", f"{len(cells)} cells"
                        )
                        continue
                    yield f"{name} row {count}", dict(zip(columns, cells, strict=True))
            except (csv.Error, UnicodeDecodeError) as error:
                self._report.wrong(Check.FILE, f"{name} row {count + 1}", "CSV in UTF-8", str(error))
                return
        self._report.expect(Check.FILE, f"{name} rows", self._rows[name], count)


def _verify_usage(reader: _Reader, name: str, manifest: Manifest, report: Report) -> dict[InvoiceKey, _Invoice]:
    invoices: dict[InvoiceKey, _Invoice] = defaultdict(_Invoice)
    gpu_ms = lines = fees = unpriced = corrections = credits_ = 0
    for where, row in reader.rows(name, USAGE_COLUMNS):
        try:
            kind = row["line_type"]
            if kind in _USAGE:
                lines += 1
                gpu_ms += int(row["gpu_ms"])
                _verify_usage_row(where, row, report)
            elif kind in _FEES:
                fees += 1
                _verify_amounts(where, row, report)
            elif kind == LineType.CREDIT:
                credits_ += 1
                _verify_credit(where, row, report)
            elif kind == LineType.CORRECTION:
                corrections += 1
                report.expect(Check.FILE, f"{where} corrects_line_id", True, bool(row["corrects_line_id"]))
            elif kind not in _OF_INVOICE:
                report.wrong(Check.FILE, f"{where} line_type", ", ".join(LineType), kind)
            report.expect(Check.FILE, f"{where} period_status", manifest.period_status, row["period_status"])
            if not row["amount"]:
                unpriced += kind in _USAGE
                continue
            invoice = invoices[row["tenant_id"], row["currency"]]
            invoice.micros[kind] += _micros(row["amount"])
            invoice.lines += kind not in _OF_INVOICE
        except (ValueError, InvalidOperation) as error:
            report.wrong(Check.FILE, where, "numbers and times that can be read", str(error))
    report.expect(Check.ARITHMETIC, f"{name} usage lines", manifest.sums.get("usage_lines"), lines)
    report.expect(Check.ARITHMETIC, f"{name} fee lines", manifest.sums.get("fee_lines"), fees)
    report.expect(Check.ARITHMETIC, f"{name} unpriced lines", manifest.sums.get("unpriced_lines"), unpriced)
    report.expect(Check.ARITHMETIC, f"{name} corrections", manifest.sums.get("correction_lines", 0), corrections)
    report.expect(Check.ARITHMETIC, f"{name} credits", manifest.sums.get("credit_lines", 0), credits_)
    report.expect(Check.ARITHMETIC, f"{name} sum of gpu_ms", manifest.sums.get("gpu_ms"), gpu_ms)
    return invoices


def _verify_credit(where: str, row: Mapping[str, str], report: Report) -> None:
    report.expect(Check.ARITHMETIC, f"{where} amount", True, _micros(row["amount"]) < 0)
    report.expect(Check.FILE, f"{where} incident_id", True, bool(row["incident_id"]))


def _verify_usage_row(where: str, row: Mapping[str, str], report: Report) -> None:
    start_ms, end_ms = parse_utc_ms(row["start_local"]), parse_utc_ms(row["end_local"])
    report.expect(Check.ARITHMETIC, f"{where} start_utc", start_ms, parse_utc_ms(row["start_utc"]))
    report.expect(Check.ARITHMETIC, f"{where} duration_ms", end_ms - start_ms, int(row["duration_ms"]))
    if not row["amount"]:
        report.expect(Check.ARITHMETIC, f"{where} unit_price", "", row["unit_price"])
        return
    _verify_amounts(where, row, report)
    _verify_product(where, row, ("list_amount", "list_price"), report)
    if row["package_id"]:
        report.expect(Check.ARITHMETIC, f"{where} amount", 0, _micros(row["amount"]))
    else:
        _verify_product(where, row, ("amount", "unit_price"), report)


def _verify_amounts(where: str, row: Mapping[str, str], report: Report) -> None:
    amount = _micros(row["amount"])
    less = _micros(row["list_amount"]) - _micros(row["discount_amount"])
    report.expect(Check.ARITHMETIC, f"{where} amount", f"{less} (list less discount)", f"{amount} (list less discount)")


def _verify_product(where: str, row: Mapping[str, str], columns: tuple[str, str], report: Report) -> None:
    """Holds an amount against its price and hours.

    gpu_hours is shown in nine decimals; the amount comes from the exact hours, so it may differ by half of one each.
    """
    amount, price = columns
    unit_price, hours = Fraction(_decimal(row[price])), Fraction(_decimal(row["gpu_hours"]))
    slack = unit_price / (2 * 10**GPU_HOURS_DECIMALS) + Fraction(1, 2 * _MICROS)
    if abs(Fraction(_micros(row[amount]), _MICROS) - unit_price * hours) > slack:
        about = Money(unit_price * hours, row["currency"]).text()
        report.wrong(Check.ARITHMETIC, f"{where} {amount}", f"about {about}", row[amount])


def _verify_totals(
    reader: _Reader, invoices: Mapping[InvoiceKey, _Invoice], manifest: Manifest, report: Report
) -> None:
    payable: dict[str, int] = defaultdict(int)
    seen: set[InvoiceKey] = set()
    for where, row in reader.rows(TOTALS_FILE, TOTALS_COLUMNS):
        key = (row["tenant_id"], row["currency"])
        seen.add(key)
        invoice = invoices.get(key, _Invoice())
        try:
            amounts = {column: _micros(row[column]) for column in ("subtotal", "tax", "rounding", "payable")}
            found = (int(row["line_count"]), int(row["payable_minor_units"]))
        except (ValueError, InvalidOperation) as error:
            report.wrong(Check.FILE, where, "numbers that can be read", str(error))
            continue
        told = {kind.value: invoice.micros.get(kind, 0) for kind in _OF_INVOICE}
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
        sums = {currency: _micros(text) for currency, text in manifest.sums.get("payable", {}).items()}
    except (ValueError, InvalidOperation, AttributeError) as error:
        report.wrong(Check.FILE, f"{MANIFEST} sums payable", "amounts by currency", str(error))
        return
    report.expect(Check.ARITHMETIC, f"{TOTALS_FILE} payable", sums, dict(payable))


def _verify_focus(folder: Path, invoices: Mapping[InvoiceKey, _Invoice], manifest: Manifest, report: Report) -> None:
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


def _decimal(text: str) -> Decimal:
    number = Decimal(text)
    if not number.is_finite():
        raise ValueError(f"{text} is not a number")
    return number


def _micros(text: str) -> int:
    """Returns an amount in 10**-6. Raises ValueError when it has more decimals, or is no number."""
    scaled = _decimal(text) * _MICROS
    if scaled != scaled.to_integral_value():
        raise ValueError(f"{text} has more than {AMOUNT_DECIMALS} decimals")
    return int(scaled)
