"""What a tenant's statement says: the native lines of one export, folded by project, day and kind.

A statement is a function of an export's files and of nothing else, so that whoever has the files can make it again, to
the byte, and that of a closed period is as fixed as its seal. Memory grows with projects × days, not with lines.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from metering.core.rating import LineType

MOST_SINGLE_LINES = 200
"""Fees, credits and corrections that are listed one by one; the rest is in the sums, and in the CSV."""
USE = frozenset({LineType.USAGE.value, LineType.MINIMUM.value, LineType.ENERGY.value})
"""Lines that are added up by project."""
OF_INVOICE = frozenset({LineType.TAX.value, LineType.ROUNDING.value})
CENTI_PERCENT = 10_000
"""A whole in hundredths of a per cent, which is how the lines tell utilisation."""


@dataclass(slots=True)
class Sums:
    """Lines added up. Amounts are in 10**-6 of the currency, hours in 10**-9 GPU-hours."""

    lines: int = 0
    hours_nano: int = 0
    list_micros: int = 0
    discount_micros: int = 0
    micros: int = 0
    measured_ms: int = 0
    """GPU-milliseconds of lines whose mean utilisation is known."""
    busy_ms_centi: int = 0
    """Of those, milliseconds × hundredths of a per cent in which a kernel ran."""

    @property
    def idle_percent(self) -> int | None:
        """Share of the measured GPU time in which no kernel ran, in whole per cent; None where nothing was measured."""
        if not self.measured_ms:
            return None
        whole = self.measured_ms * CENTI_PERCENT
        return (200 * (whole - self.busy_ms_centi) + whole) // (2 * whole)


@dataclass(frozen=True, slots=True)
class GroupKey:
    """What lines of use are added up by."""

    project: str
    gpu_model: str
    booking: str


@dataclass(slots=True)
class Section:
    """A statement's part in one currency; "" is use without a price, which is on no invoice."""

    currency: str
    kinds: dict[str, Sums] = field(default_factory=lambda: defaultdict(Sums))
    groups: dict[GroupKey, Sums] = field(default_factory=lambda: defaultdict(Sums))
    days: dict[tuple[str, str], Sums] = field(default_factory=lambda: defaultdict(Sums))
    """By day and project; tax and rounding are of no day."""
    projects: dict[str, Sums] = field(default_factory=lambda: defaultdict(Sums))
    singles: list[Mapping[str, str]] = field(default_factory=list)
    singles_left_out: int = 0
    tax_rates: set[str] = field(default_factory=set)

    @property
    def payable_micros(self) -> int:
        """All lines, tax and rounding included."""
        return sum(each.micros for each in self.kinds.values())

    @property
    def subtotal_micros(self) -> int:
        """All lines but tax and rounding."""
        return sum(each.micros for kind, each in self.kinds.items() if kind not in OF_INVOICE)


class StatementFold:
    """Takes the rows of one tenant in the order of the file."""

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant
        self.tenant_name = tenant
        self.names: dict[str, str] = {}
        """What projects were called last."""
        self._sections: dict[str, Section] = {}

    @property
    def sections(self) -> list[Section]:
        """The parts by currency; what has no price comes last."""
        return [self._sections[key] for key in sorted(self._sections, key=lambda each: (not each, each))]

    def add(self, row: Mapping[str, str]) -> None:
        """Counts a row of the usage lines. Raises ValueError for a number that is none."""
        currency, kind, project = row["currency"], row["line_type"], row["project_id"]
        self.tenant_name = row["tenant_name"] or self.tenant_name
        if row["project_name"]:
            self.names[project] = row["project_name"]
        section = self._sections.get(currency)
        if section is None:
            section = self._sections[currency] = Section(currency)
        line = _sums_of(row)
        add(section.kinds[kind], line)
        if kind in OF_INVOICE:
            section.tax_rates |= {row["tax_rate"]} - {""}
            return
        add(section.days[row["start_local"][:10], project], line)
        add(section.projects[project], line)
        if kind in USE:
            add(section.groups[GroupKey(project, row["gpu_model"], row["priority_class"])], line)
        elif len(section.singles) < MOST_SINGLE_LINES:
            section.singles.append(dict(row))
        else:
            section.singles_left_out += 1


def add(sums: Sums, other: Sums) -> None:
    """Adds other sums to some."""
    sums.lines += other.lines
    sums.hours_nano += other.hours_nano
    sums.list_micros += other.list_micros
    sums.discount_micros += other.discount_micros
    sums.micros += other.micros
    sums.measured_ms += other.measured_ms
    sums.busy_ms_centi += other.busy_ms_centi


def _sums_of(row: Mapping[str, str]) -> Sums:
    sums = Sums(
        lines=1,
        # A surcharge is of hours that its usage has told already.
        hours_nano=0 if row["line_type"] == LineType.ENERGY else _digits(row["gpu_hours"]),
        list_micros=_digits(row["list_amount"]),
        discount_micros=_digits(row["discount_amount"]),
        micros=_digits(row["amount"]),
    )
    if row["gpu_util_avg_pct"]:
        sums.measured_ms = int(row["gpu_ms"])
        sums.busy_ms_centi = sums.measured_ms * _digits(row["gpu_util_avg_pct"])
    return sums


def _digits(cell: str) -> int:
    """Returns a cell of fixed decimals as an integer of its last digit; 0 for an empty one."""
    return int(cell.replace(".", "")) if cell else 0
