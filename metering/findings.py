"""What verification says: each thing that does not hold, where it is, what was expected and what was found."""

from dataclasses import dataclass, field
from enum import StrEnum

MOST_FINDINGS = 1_000
"""Findings that are kept; beyond them they are only counted. One broken row can break all that follow."""


class Check(StrEnum):
    """The checks, each of which proves one promise of the ledger or of an export."""

    CHAIN = "chain"  # each row carries its own hash and the hash of the row before; of every chained table
    SEQUENCE = "sequence"  # without holes, and as long as ledger_head says
    PARTITION = "partition"  # a device's lanes cover it at every instant, once
    CONSERVATION = "conservation"  # states add up to the life of the device, and to the capacity in total
    CURSOR = "cursor"  # open intervals continue the closed ones and say what the allocations say
    HOLDER = "holder"  # who held what agrees with the allocation
    GANG = "gang"  # devices of a segment share its billed interval
    RECLASSIFICATION = "reclassification"  # what is laid over the partition fits it, and follows from the evidence
    SEAL = "seal"  # a closed period is as it was sealed, and charged with its corrections as it is known now
    JOURNAL = "journal"  # postings add up to zero, balances are their fold, charges follow from occupancy
    PRICE_BOOK = "price_book"  # a book is what its hash says
    PACKAGE = "package"  # a package is what its hash says
    FILE = "file"  # an export's files are those of its manifest
    ARITHMETIC = "arithmetic"  # lines, totals and capacity add up
    FOCUS = "focus"  # the FOCUS file keeps the rules of its specification
    RERATING = "rerating"  # the ledger gives the same export again


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that does not hold. `where` names it: `sequence 17`, `device GPU-… lane 0`, `capacity.csv row 3`."""

    check: Check
    where: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.check}: {self.where}: expected {self.expected}, found {self.found}"


@dataclass(slots=True)
class Report:
    """What was verified, and what does not hold."""

    findings: list[Finding] = field(default_factory=list)
    failures: int = 0
    """All that did not hold, those beyond MOST_FINDINGS included."""
    counted: dict[str, int] = field(default_factory=dict)
    """How much was looked at: rows, devices, allocations, price books, files; unit-milliseconds by state."""

    @property
    def is_proved(self) -> bool:
        """True when everything holds."""
        return self.failures == 0

    def expect(self, check: Check, where: str, expected: object, found: object) -> bool:
        """Notes a finding unless both are equal; returns whether they are."""
        if expected == found:
            return True
        self.wrong(check, where, str(expected), str(found))
        return False

    def wrong(self, check: Check, where: str, expected: str, found: str) -> None:
        """Notes a finding."""
        self.failures += 1
        if len(self.findings) < MOST_FINDINGS:
            self.findings.append(Finding(check, where, expected, found))

    def count(self, what: str, more: int = 1) -> None:
        """Adds to what was looked at."""
        self.counted[what] = self.counted.get(what, 0) + more

    def add(self, other: "Report") -> None:
        """Takes what another one noted and counted, after what is here."""
        self.findings += other.findings[: max(0, MOST_FINDINGS - len(self.findings))]
        self.failures += other.failures
        for what, more in other.counted.items():
            self.count(what, more)
