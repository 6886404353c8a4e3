"""A second opinion of a FOCUS file: the FinOps Foundation's `focus-validator`, if it is installed, read with care.

It is a program of its own environment (660 MB, Python 3.12), never a dependency. What was learnt of version 2.2.1, in
which 1.2 is the newest version whose rules it brings (measured 2026-11-23):

- its exit status is 0 whatever fails, so its words are read;
- it opens a file of its own by a path relative to the folder that it is installed in, so it is started there;
- it asks for ASCII where the specification asks for Unicode, so it is given a copy with `?` for each other letter;
- some of its rules contradict the specification or each other (KNOWN), and a third of them it never looks at.

Our own checker (`focus_check`) is the gate; this says whether somebody else's reading of the rules agrees.
"""

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

VERSION = "2.2.1"
INSTALL = (
    "python3.12 -m venv focus-validator",
    f"focus-validator/bin/pip install focus-validator=={VERSION} 'pyarrow<21'",
)
TIMEOUT_SECONDS = 1_200
"""100,000 rows take it a minute; a large centre's month is better checked tenant by tenant."""
CRITERIA = (
    *("ACCOUNT_NAMING_SUPPORTED", "CAPACITY_RESERVATION_SUPPORTED", "COMMITMENT_DISCOUNT_SUPPORTED"),
    *("MULTIPLE_PRICING_CATEGORIES_SUPPORTED", "NEGOTIATED_PRICING_SUPPORTED", "PUBLIC_PRICE_LIST_SUPPORTED"),
    *("USAGE_MEASUREMENT_SUPPORTED", "UNIT_PRICING_SUPPORTED", "SUB_ACCOUNT_SUPPORTED"),
    *("BILLING_BASED_ON_PROVISIONED_RESOURCES_SUPPORTED", "RESOURCE_TYPE_ASSIGNMENT_SUPPORTED", "TAGGING_SUPPORTED"),
)
"""What a centre like ours does, in the validator's words: without them it looks at a quarter of its rules."""
KNOWN = {
    "InvoiceId-C-003-C": "an OR whose two sides are also demanded each by itself",
    "InvoiceId-C-004-C": "without a condition: null on every row, although an invoice was issued",
    "InvoiceId-C-005-C": "without a condition: not null on any row, although no invoice was issued yet",
    "InvoiceId-C-000-C": "holds only if all of these do",
    "CapacityReservationStatus-C-003-C": "its condition is malformed and hits every row",
    "CapacityReservationStatus-C-004-C": "its condition is malformed and hits every row",
    "CapacityReservationStatus-C-002-C": "holds only if these do",
    "CapacityReservationStatus-C-000-C": "holds only if these do",
    "CommitmentDiscountStatus-C-004-C": "its condition is inverted: usage without a commitment is to have a status",
    "CommitmentDiscountStatus-C-002-C": "holds only if this does",
    "CommitmentDiscountStatus-C-000-C": "holds only if this does",
}
"""Rules that sound files fail, and why: by the validator's ids."""
_TOTAL = re.compile(r"^Total: \d+ \| Pass: (\d+) \| Fail: (\d+) \| Skipped: (\d+)", re.MULTILINE)
_FAILURE = re.compile(r"^- ([A-Za-z]+-[A-Z]-\d{3}-[A-Z]): violations=(\d+); (.*)$", re.MULTILINE)


class NoOpinion(Exception):
    """The validator is not there, or did not come to an answer; `tries` is what may help."""

    def __init__(self, says: str, *tries: str) -> None:
        super().__init__(says)
        self.tries = tries


@dataclass(frozen=True, slots=True)
class OfficialFailure:
    """A rule that the validator says does not hold, in its words."""

    rule: str
    violations: int
    says: str


@dataclass(frozen=True, slots=True)
class Opinion:
    """What the validator says of a file. `failures` are those that are not among its known contradictions."""

    passed: int
    skipped: int
    known: tuple[str, ...]
    failures: tuple[OfficialFailure, ...]


def second_opinion(path: Path, command: str) -> Opinion:
    """Returns what the official validator says of a FOCUS file. Raises NoOpinion, OSError when it cannot be read."""
    program = shutil.which(str(Path(command).expanduser()))
    if program is None:
        raise NoOpinion(f"there is no program {command}; the validator has an environment of its own", *INSTALL)
    with tempfile.TemporaryDirectory(prefix="turnstile-focus-") as scratch:
        copy = Path(scratch) / "focus.csv"
        with path.open(encoding="utf-8", newline="") as ours, copy.open("wb") as theirs:
            for line in ours:
                theirs.write(line.encode("ascii", "replace"))
        return read_opinion(_run(program, copy))


def read_opinion(told: str) -> Opinion:
    """Returns the opinion that the validator's words are. Raises NoOpinion for words that are none."""
    total = _TOTAL.search(told)
    found = tuple(OfficialFailure(each[1], int(each[2]), each[3]) for each in _FAILURE.finditer(told))
    if total is None or int(total[2]) != len(found):
        last = next((line.strip() for line in reversed(told.splitlines()) if line.strip()), "nothing")
        raise NoOpinion(f"the validator's answer cannot be read; it ends with: {last[:200]}", *INSTALL)
    known = tuple(each.rule for each in found if each.rule in KNOWN)
    return Opinion(int(total[1]), int(total[3]), known, tuple(each for each in found if each.rule not in KNOWN))


def _run(program: str, file: Path) -> str:
    flags = ("--validate-version", "1.2", "--focus-dataset", "CostAndUsage", "--block-download")
    asked = (program, "--data-file", str(file), *flags, "--applicability-criteria", ",".join(CRITERIA))
    try:
        done = subprocess.run(
            asked,
            cwd=_home_of(program),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise NoOpinion(f"the validator had no answer after {TIMEOUT_SECONDS // 60} minutes") from None
    except OSError as problem:
        raise NoOpinion(f"{program} cannot be started: {problem.strerror}", *INSTALL) from None
    return f"{done.stderr}\n{done.stdout}"


def _home_of(program: str) -> Path | None:
    """Returns the folder that the validator's package lies in; None where it is not a virtual environment's."""
    found = sorted((Path(program).parent.parent / "lib").glob("python3*/site-packages/focus_validator"))
    return found[0].parent if found else None
