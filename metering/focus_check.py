"""Checks a FOCUS 1.2 or 1.3 file in pure Python: the gate of the export, and `admin ledger check-focus`.

`FocusChecker` takes a header and rows and tells which rules each breaks; `check_focus` reads a file. The rules of one
row stand in `metering.focus_rules`; here are those of the file: its bytes, its header, and what rows say together
(one parent per SKU price, one category per service, one currency per price, no charge twice).

Time is a few microseconds a row where rows resemble each other; memory is eight bytes a row, for finding a charge that
stands twice.
"""

import csv
import io
from array import array
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from hashlib import blake2b
from operator import itemgetter
from pathlib import Path

from metering.core.quantity import AMOUNT_DECIMALS
from metering.csv_files import BOM
from metering.focus_columns import VERSIONS
from metering.focus_rules import REPEATING_RULES, VARYING, VARYING_RULES, Cells, cell_breaks, cell_rule_says
from metering.focus_shapes import Shapes

MOST_BREAKS = 1_000
"""Breaks that are kept; beyond them they are only counted."""
_MOST_KNOWN = 4_096
"""Cells of a column that are remembered as sound; forgotten together when full."""
_MOST_COMBINATIONS = 65_536
"""Combinations of a row's repeating cells that are remembered as sound, at a hash each: a large centre's month."""
_CELL = 200  # characters of a cell that a break shows
_BUCKETS = 64
ONE_PARENT = (
    ("SkuPriceId", "SkuId", "SkuPriceId.parent", "a SKU price has one SKU"),
    ("SkuPriceId", "BillingCurrency", "BillingCurrency.price", "a price is in one currency"),
    ("SkuPriceId", "SkuPriceDetails", "SkuPriceDetails.same", "a SKU price has the same details everywhere"),
    ("ServiceName", "ServiceCategory", "ServiceName.category", "a service belongs to one category"),
    ("SubAccountId", "BillingAccountId", "SubAccountId.parent", "a sub-account has one billing account"),
)
"""Child column, parent column, rule and what it says: a value of the first has one value of the second."""


@dataclass(frozen=True, slots=True)
class Break:
    """A rule that does not hold. `where` is `header`, `row 17` (the header is not counted) or `file`."""

    rule: str
    where: str
    says: str
    found: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.where}: {self.says}; found {self.found}"


@dataclass(slots=True)
class FocusReport:
    """What was checked, and what does not hold."""

    breaks: list[Break] = field(default_factory=list)
    failures: int = 0
    rows: int = 0
    billed_micros: dict[tuple[str, str], int] = field(default_factory=partial(defaultdict, int))
    """Σ BilledCost by billing account and currency, in 10**-6; rows whose cost is no such number are left out."""

    @property
    def is_sound(self) -> bool:
        """True when every rule holds."""
        return self.failures == 0

    def add(self, rule: str, where: str, says: str, found: str) -> None:
        """Notes a break."""
        self.failures += 1
        if len(self.breaks) < MOST_BREAKS:
            shown = found if len(found) <= _CELL else f"{found[:_CELL]}…"
            self.breaks.append(Break(rule, where, says, shown or "nothing"))


@dataclass(frozen=True, slots=True)
class FocusPart:
    """Consecutive rows of a file: what they break by themselves, and what other rows must agree with."""

    report: FocusReport
    """Of these rows, counted from 1."""
    parents: dict[tuple[str, str], tuple[str, str, int]]
    """Of a rule and a child, seen here first: its parent, what the rule says, and the row."""
    entries: bytes
    """The fingerprints of the rows' entries, eight bytes each."""


class FocusFold:
    """Puts the parts of a file together again, in their order. Memory is eight bytes a row."""

    def __init__(self) -> None:
        self.report = FocusReport()
        self._parents: dict[tuple[str, str], str] = {}
        self._entries = [array("q") for _ in range(_BUCKETS)]

    def add(self, part: FocusPart) -> None:
        """Takes the part that comes next."""
        found = [(self._row_of(each), each) for each in part.report.breaks]
        before = self.report.rows
        for (rule, child), (parent, says, row) in part.parents.items():
            first = self._parents.setdefault((rule, child), parent)
            if first != parent:
                found.append((row, Break(rule, "", f"{says}, {first} before", parent)))
        unkept = part.report.failures - len(part.report.breaks)
        for row, broken in sorted(found, key=lambda each: each[0]):
            where = f"row {before + row}" if row else broken.where
            self.report.add(broken.rule, where, broken.says, broken.found)
        self.report.failures += unkept
        self.report.rows += part.report.rows
        for key, micros in part.report.billed_micros.items():
            self.report.billed_micros[key] += micros
        _spread(part.entries, self._entries)

    def finish(self) -> FocusReport:
        """Returns the report, with what needs all rows."""
        _note_repeated(self.report, self._entries)
        return self.report

    @staticmethod
    def _row_of(broken: Break) -> int:
        """Returns the row that a break is in; 0 for one of the header or of the file."""
        what, _, number = broken.where.partition(" ")
        return int(number) if what == "row" else 0


class FocusChecker:
    """Checks rows of one file as they come. `report` grows; `finish` adds what only the whole file can tell.

    Or `part` gives what is known of the rows since it was last asked, for a `FocusFold` of parts from several checkers.
    """

    def __init__(self, header: Sequence[str], report: FocusReport | None = None) -> None:
        self.report = FocusReport() if report is None else report
        self._header = tuple(header)
        version = "1.3" if "ServiceProviderName" in header else "1.2"
        self._columns = VERSIONS[version]
        self.is_readable = self._check_header(version)
        self._known: list[set[str]] = [set() for _ in self._columns]
        self._combinations: set[int] = set()
        self._parents: dict[tuple[str, str], str] = {}
        self._new_parents: dict[tuple[str, str], tuple[str, str, int]] = {}
        self._entries = bytearray()
        if self.is_readable:
            place = {name: at for at, name in enumerate(self._header)}
            self._cells = itemgetter(*(place[column.name] for column in self._columns))
            self._shapes = Shapes(self._columns, place)
            self._repeating = itemgetter(*(place[c.name] for c in self._columns if c.name not in VARYING))
            self._entry = place.get("x_LedgerEntryId")
            self._cost = itemgetter(*(place[name] for name in ("BillingAccountId", "BillingCurrency", "BilledCost")))
            # Varying cells never repeat enough to be worth remembering.
            self._remembers = [column.name not in VARYING for column in self._columns]
            self._varying = [at for at, remembered in enumerate(self._remembers) if not remembered]

    def row(self, cells: Sequence[str]) -> None:
        """Checks the next row, in the order of the header."""
        report = self.report
        report.rows += 1
        if len(cells) != len(self._header):
            report.add("file.cells", self._where, f"a row has {len(self._header)} cells", f"{len(cells)} cells")
            return
        if not self._shapes.holds(cells):
            before = report.failures
            self._check(cells)
            if report.failures == before:
                self._shapes.learn(cells)
        self._count(cells)

    def _check(self, cells: Sequence[str]) -> None:
        """Asks every rule of one row about a row."""
        report = self.report
        wanted = self._cells(cells)
        for at in self._varying:
            self._check_cell(at, wanted[at], self._known[at])
        values: Cells = dict(zip(self._names, wanted, strict=True))
        key = hash(self._repeating(cells))
        # What repeats is proved once a combination: each cell by itself, and what they say together.
        if key not in self._combinations and self._check_repeating(wanted, values):
            if len(self._combinations) >= _MOST_COMBINATIONS:
                self._combinations.clear()
            self._combinations.add(key)
        for rule in VARYING_RULES:
            if not rule.holds(values):
                report.add(rule.id, self._where, rule.says, values.get(rule.id.partition(".")[0], ""))

    def finish(self) -> FocusReport:
        """Returns the report, with what needs all rows."""
        buckets = [array("q") for _ in range(_BUCKETS)]
        _spread(bytes(self._entries), buckets)
        _note_repeated(self.report, buckets)
        return self.report

    def part(self) -> FocusPart:
        """Returns what is known of the rows since the last part, and forgets it, but not what was proved once."""
        made = FocusPart(self.report, self._new_parents, bytes(self._entries))
        self.report, self._new_parents, self._entries = FocusReport(), {}, bytearray()
        return made

    @property
    def _where(self) -> str:
        return f"row {self.report.rows}"

    @property
    def _names(self) -> tuple[str, ...]:
        return _NAMES[len(self._columns)]

    def _check_header(self, version: str) -> bool:
        report, header = self.report, self._header
        wanted = [column.name for column in self._columns]
        for name in sorted(set(wanted) - set(header)):
            report.add("header.missing", "header", f"FOCUS {version} has the column {name}", "none")
        for name in sorted({name for name in header if header.count(name) > 1}):
            report.add("header.unique", "header", "a column stands once", name)
        standard = [name for name in header if name in set(wanted)]
        custom = [name for name in header if name not in set(wanted)]
        for name in custom:
            if not name.startswith("x_"):
                report.add("header.custom", "header", "a column of our own begins with x_", name)
        if list(header) != standard + custom:
            report.add("header.custom_last", "header", "columns of our own follow the specification's", custom[0])
        if standard != wanted and set(standard) == set(wanted):
            report.add("header.order", "header", "columns stand in the specification's order", ",".join(standard))
        return set(wanted) <= set(header)

    def _check_cell(self, at: int, cell: str, known: set[str]) -> None:
        broken = cell_breaks(self._columns[at], cell)
        for rule in broken:
            self.report.add(rule, self._where, f"{rule.partition('.')[0]} {cell_rule_says(rule)}", cell)
        if not broken and self._remembers[at]:
            if len(known) >= _MOST_KNOWN:
                known.clear()
            known.add(cell)

    def _check_repeating(self, wanted: Sequence[str], values: Cells) -> bool:
        before = self.report.failures
        for at, cell in enumerate(wanted):
            if self._remembers[at] and cell not in self._known[at]:
                self._check_cell(at, cell, self._known[at])
        for rule in REPEATING_RULES:
            if not rule.holds(values):
                self.report.add(rule.id, self._where, rule.says, values.get(rule.id.partition(".")[0], ""))
        for child, parent, rule_id, says in ONE_PARENT:
            if values[child]:
                key = (rule_id, values[child])
                first = self._parents.get(key)
                if first is None:
                    first = self._parents[key] = values[parent]
                    self._new_parents[key] = values[parent], says, self.report.rows
                if first != values[parent]:
                    self.report.add(rule_id, self._where, f"{says}, {first} before", values[parent])
        return self.report.failures == before

    def _count(self, cells: Sequence[str]) -> None:
        account, currency, cost = self._cost(cells)
        whole, point, part = cost.partition(".")
        if point and len(part) <= AMOUNT_DECIMALS and whole.lstrip("-").isdigit() and part.isdigit():
            self.report.billed_micros[account, currency] += int(whole + part.ljust(AMOUNT_DECIMALS, "0"))
        elif not cell_breaks(_BILLED_COST, cost):
            self._count_long(account, currency, Decimal(cost))
        if self._entry is not None and cells[self._entry]:
            self._entries += blake2b(cells[self._entry].encode(), digest_size=8).digest()

    def _count_long(self, account: str, currency: str, cost: Decimal) -> None:
        scaled = cost.scaleb(AMOUNT_DECIMALS)
        if scaled == scaled.to_integral_value():
            self.report.billed_micros[account, currency] += int(scaled)


_BILLED_COST = next(column for column in VERSIONS["1.2"] if column.name == "BilledCost")
_NAMES = {len(columns): tuple(column.name for column in columns) for columns in VERSIONS.values()}


def _spread(entries: bytes, buckets: Sequence["array[int]"]) -> None:
    every = array("q")
    every.frombytes(entries)
    for entry in every:
        buckets[entry % _BUCKETS].append(entry)


def _note_repeated(report: FocusReport, buckets: Sequence["array[int]"]) -> None:
    twice = sum(len(bucket) - len(set(bucket)) for bucket in buckets)
    if twice:
        report.add("x_LedgerEntryId.unique", "file", "a charge stands once (ours)", f"{twice} that repeat")


def check_focus(path: Path) -> FocusReport:
    """Returns what a file breaks. Raises OSError when it cannot be read; a file that is no CSV breaks `file.csv`."""
    report = FocusReport()
    with path.open("rb") as raw:
        if raw.read(len(BOM)) == BOM:
            report.add("file.bom", "file", "a file is UTF-8 without byte order mark", "one")
        else:
            raw.seek(0)
        reader = csv.reader(io.TextIOWrapper(raw, encoding="utf-8", newline=""), strict=True)
        try:
            checker = FocusChecker(next(reader, []), report)
            if not checker.is_readable:
                return report
            for cells in reader:
                checker.row(cells)
        except (csv.Error, UnicodeDecodeError) as error:
            report.add("file.csv", f"row {report.rows + 1}", "a file is CSV in UTF-8", str(error))
            return report
    return checker.finish()
