"""Proves the usage lines of an export by themselves: times, products, sums. In integers, for there are many of them."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from functools import partial

from metering.core.quantity import AMOUNT_DECIMALS, GPU_HOURS_DECIMALS, Money
from metering.core.rating import LineType
from metering.findings import Check, Report
from metering.manifest import Manifest
from metering.usage_columns import USAGE_COLUMNS
from scheduler.clock import parse_utc_ms

USAGE_TYPES = frozenset({LineType.USAGE.value, LineType.MINIMUM.value, LineType.ENERGY.value})
OF_INVOICE = (LineType.TAX.value, LineType.ROUNDING.value)
_GIVEN = frozenset({LineType.CREDIT.value, LineType.CORRECTION.value})
_FEES = frozenset(kind.value for kind in LineType) - USAGE_TYPES - _GIVEN - frozenset(OF_INVOICE)
_MICROS = 10**AMOUNT_DECIMALS
_AT = {name: place for place, name in enumerate(USAGE_COLUMNS)}
_TYPE, _STATUS, _TENANT, _CURRENCY, _CORRECTS, _INCIDENT = (
    _AT[name] for name in ("line_type", "period_status", "tenant_id", "currency", "corrects_line_id", "incident_id")
)
_START, _END, _START_UTC, _DURATION, _GPU_MS, _HOURS = (
    _AT[name] for name in ("start_local", "end_local", "start_utc", "duration_ms", "gpu_ms", "gpu_hours")
)
_PRICE, _LIST_PRICE, _AMOUNT, _LISTED, _DISCOUNT, _COMMITMENT = (
    _AT[name] for name in ("unit_price", "list_price", "amount", "list_amount", "discount_amount", "package_id")
)
_PLAIN = re.compile(r"-?[0-9]+\.[0-9]+")
_IN_MICROS = re.compile(rf"-?[0-9]+\.[0-9]{{{AMOUNT_DECIMALS}}}")
InvoiceKey = tuple[str, str]  # tenant and currency


@dataclass(slots=True)
class InvoiceSums:
    """What the usage lines of a tenant in a currency add up to, by line type."""

    micros: dict[str, int] = field(default_factory=partial(defaultdict, int))
    lines: int = 0


def verify_lines(
    rows: Iterable[tuple[int, Sequence[str]]], name: str, manifest: Manifest, report: Report
) -> Mapping[InvoiceKey, InvoiceSums]:
    """Checks each row (its number and cells) of the file `name`, and their sums against the manifest's.

    Returns what they add up to. Memory grows with tenants.
    """
    lines = Lines(name, manifest, report)
    for number, cells in rows:
        lines.take(number, cells)
    return lines.finish()


class Lines:
    """The rows of one file, as they come, or a part of them."""

    def __init__(self, name: str, manifest: Manifest, report: Report) -> None:
        self._name = name
        self._manifest = manifest
        self.report = report
        self._status = manifest.period_status
        self.invoices: dict[InvoiceKey, InvoiceSums] = defaultdict(InvoiceSums)
        self.rows = 0
        self.counts = dict.fromkeys(("usage", "fees", "unpriced", "corrections", "credits", "gpu_ms"), 0)

    def take(self, number: int, cells: Sequence[str]) -> None:
        """Checks the next row."""
        report, kind, amount = self.report, cells[_TYPE], cells[_AMOUNT]
        self.rows += 1
        try:
            if kind in USAGE_TYPES:
                self.counts["usage"] += 1
                self.counts["gpu_ms"] += int(cells[_GPU_MS])
                self._usage(number, cells)
            elif kind in _FEES:
                self.counts["fees"] += 1
                self._amounts(number, cells)
            elif kind == LineType.CREDIT:
                self.counts["credits"] += 1
                report.expect(Check.ARITHMETIC, f"{self._where(number)} amount", True, micros_of(amount) < 0)
                report.expect(Check.FILE, f"{self._where(number)} incident_id", True, bool(cells[_INCIDENT]))
            elif kind == LineType.CORRECTION:
                self.counts["corrections"] += 1
                report.expect(Check.FILE, f"{self._where(number)} corrects_line_id", True, bool(cells[_CORRECTS]))
            elif kind not in OF_INVOICE:
                report.wrong(Check.FILE, f"{self._where(number)} line_type", ", ".join(LineType), kind)
            if cells[_STATUS] != self._status:
                report.wrong(Check.FILE, f"{self._where(number)} period_status", self._status, cells[_STATUS])
            if not amount:
                self.counts["unpriced"] += kind in USAGE_TYPES
                return
            invoice = self.invoices[cells[_TENANT], cells[_CURRENCY]]
            invoice.micros[kind] += micros_of(amount)
            invoice.lines += kind not in OF_INVOICE
        except (ValueError, InvalidOperation) as error:
            report.wrong(Check.FILE, self._where(number), "numbers and times that can be read", str(error))

    def fold(self, part: "Lines") -> None:
        """Takes what another one added up of rows that all hold."""
        self.rows += part.rows
        for what, count in part.counts.items():
            self.counts[what] += count
        for key, sums in part.invoices.items():
            mine = self.invoices[key]
            mine.lines += sums.lines
            for kind, micros in sums.micros.items():
                mine.micros[kind] += micros

    def finish(self) -> Mapping[InvoiceKey, InvoiceSums]:
        """Holds the sums against the manifest's, and returns those by invoice."""
        sums, counts, name = self._manifest.sums, self.counts, self._name
        for what, expected, found in (
            ("usage lines", sums.get("usage_lines"), counts["usage"]),
            ("fee lines", sums.get("fee_lines"), counts["fees"]),
            ("unpriced lines", sums.get("unpriced_lines"), counts["unpriced"]),
            ("corrections", sums.get("correction_lines", 0), counts["corrections"]),
            ("credits", sums.get("credit_lines", 0), counts["credits"]),
            ("sum of gpu_ms", sums.get("gpu_ms"), counts["gpu_ms"]),
        ):
            self.report.expect(Check.ARITHMETIC, f"{name} {what}", expected, found)
        return self.invoices

    def _where(self, number: int) -> str:
        return f"{self._name} row {number}"

    def _usage(self, number: int, cells: Sequence[str]) -> None:
        report = self.report
        start_ms, end_ms = parse_utc_ms(cells[_START]), parse_utc_ms(cells[_END])
        told_ms, duration_ms = parse_utc_ms(cells[_START_UTC]), int(cells[_DURATION])
        if told_ms != start_ms:
            report.wrong(Check.ARITHMETIC, f"{self._where(number)} start_utc", str(start_ms), str(told_ms))
        if duration_ms != end_ms - start_ms:
            where = f"{self._where(number)} duration_ms"
            report.wrong(Check.ARITHMETIC, where, str(end_ms - start_ms), str(duration_ms))
        if not cells[_AMOUNT]:
            report.expect(Check.ARITHMETIC, f"{self._where(number)} unit_price", "", cells[_PRICE])
            return
        self._amounts(number, cells)
        self._product(number, cells, ("list_amount", "list_price"))
        if not cells[_COMMITMENT]:
            self._product(number, cells, ("amount", "unit_price"))
        elif micros_of(cells[_AMOUNT]) != 0:
            where = f"{self._where(number)} amount"
            report.wrong(Check.ARITHMETIC, where, "0", str(micros_of(cells[_AMOUNT])))

    def _amounts(self, number: int, cells: Sequence[str]) -> None:
        amount = micros_of(cells[_AMOUNT])
        less = micros_of(cells[_LISTED]) - micros_of(cells[_DISCOUNT])
        if amount != less:
            expected, found = f"{less} (list less discount)", f"{amount} (list less discount)"
            self.report.wrong(Check.ARITHMETIC, f"{self._where(number)} amount", expected, found)

    def _product(self, number: int, cells: Sequence[str], columns: tuple[str, str]) -> None:
        """Holds an amount against its price and hours.

        gpu_hours is shown in nine decimals; the amount comes from the exact hours: each may be half of one off.
        """
        column, priced = columns
        price, price_decimals = exact_of(cells[_AT[priced]])
        hours, hours_decimals = exact_of(cells[_HOURS])
        amount = micros_of(cells[_AT[column]])
        # |amount - price × hours| ≤ price / (2 × 10**9) + 1 / (2 × 10**6), times all denominators.
        scale = 10 ** (price_decimals + hours_decimals)
        apart = 2 * 10 ** (GPU_HOURS_DECIMALS - AMOUNT_DECIMALS) * abs(amount * scale - price * hours * _MICROS)
        if apart > price * 10**hours_decimals + scale * 10 ** (GPU_HOURS_DECIMALS - AMOUNT_DECIMALS):
            about = Money(Fraction(price * hours, scale), cells[_CURRENCY]).text()
            where = f"{self._where(number)} {column}"
            self.report.wrong(Check.ARITHMETIC, where, f"about {about}", cells[_AT[column]])


def micros_of(text: str) -> int:
    """Returns an amount in 10**-6. Raises ValueError or InvalidOperation when it has more decimals, or is no number."""
    if _IN_MICROS.fullmatch(text):
        return int(text.replace(".", ""))
    digits, decimals = exact_of(text)
    scale: int = 10 ** abs(AMOUNT_DECIMALS - decimals)
    if decimals <= AMOUNT_DECIMALS:
        return digits * scale
    micros, rest = divmod(digits, scale)
    if rest:
        raise ValueError(f"{text} has more than {AMOUNT_DECIMALS} decimals")
    return micros


def exact_of(text: str) -> tuple[int, int]:
    """Returns a decimal number as an integer and how many of its digits are decimals.

    Raises ValueError or InvalidOperation when it is no finite number.
    """
    if _PLAIN.fullmatch(text):
        whole, _, part = text.partition(".")
        return int(whole + part), len(part)
    number = Decimal(text)
    if not number.is_finite():
        raise ValueError(f"{text} is not a number")
    numerator, denominator = number.as_integer_ratio()
    decimals = max(0, -int(number.as_tuple().exponent))
    scale: int = 10**decimals
    return numerator * (scale // denominator), decimals
