"""The files of an export, proved part by part by several processes: only that all of a part holds.

A part is some megabytes of a file from one line's end to another. A file whose cells have line ends in them cannot be
cut so; but then a part ends inside of a quoted cell, which the reader of CSV tells. What holds in no such simple way,
for whatever reason, is left to `verify_files`, which reads the file from its beginning and names every place.
"""

import csv
import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from metering.csv_files import BOM
from metering.findings import Report
from metering.focus_check import FocusChecker, FocusFold, FocusPart, FocusReport
from metering.manifest import Manifest
from metering.usage_columns import USAGE_COLUMNS
from metering.verify_lines import Lines
from scheduler.store.readers import Readers

PART_BYTES = 4 << 20
"""Read at once: a quarter of a second's work."""
Span = tuple[int, int]
"""The first byte of a part and the first after it."""


class _Kind(Enum):
    HASH = "hash"
    USAGE = "usage"
    FOCUS = "focus"


_Task = tuple[_Kind, Span]
_Checked = str | Lines | FocusPart | None


@dataclass(frozen=True, slots=True)
class _File:
    """The work of checking one file of an export."""

    folder: Path
    name: str
    manifest: Manifest

    def begin(self, _: object) -> Callable[[_Task], _Checked]:
        """Returns what hashes the file, or checks a part of it: None where not all of it holds."""
        path = self.folder / self.name
        checker: list[FocusChecker] = []

        def check(task: _Task) -> _Checked:
            kind, span = task
            if kind is _Kind.HASH:
                return sha256_of(path)
            if kind is _Kind.USAGE:
                return _lines_in(path, span, self.manifest)
            if not checker:
                checker.append(FocusChecker(header_of(path)))
            return _focus_in(path, span, checker[0])

        return check


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def header_of(path: Path) -> list[str]:
    """Returns the cells of a file's first line where they are plain: none with quotes, and no byte order mark."""
    with path.open("rb") as stream:
        first = stream.readline()
    is_plain = not first.startswith(BOM) and b'"' not in first and b"\r" not in first
    return first.decode("utf-8", "replace").rstrip("\n").split(",") if is_plain else []


def spans_of(path: Path) -> Iterator[Span]:
    """Yields the parts of a file after its first line, in order."""
    with path.open("rb") as stream:
        stream.readline()
        start = stream.tell()
        stream.seek(0, io.SEEK_END)
        size = stream.tell()
        while start < size:
            stream.seek(min(start + PART_BYTES, size) - 1)
            stream.readline()
            end = stream.tell()
            yield start, end
            start = end


def lines_in_parts(readers: Readers[object], folder: Path, name: str, manifest: Manifest) -> tuple[Lines, str] | None:
    """Returns what the usage lines add up to, and the file's hash; None unless all of it holds."""
    with (folder / name).open("rb") as stream:
        if stream.readline() != BOM + ",".join(USAGE_COLUMNS).encode() + b"\n":
            return None
    total = Lines(name, manifest, Report())
    sha256 = ""
    for checked in readers.each(_File(folder, name, manifest), _tasks(_Kind.USAGE, folder / name)):
        if isinstance(checked, str):
            sha256 = checked
        elif isinstance(checked, Lines):
            total.fold(checked)
        else:
            return None
    return total, sha256


def focus_in_parts(
    readers: Readers[object], folder: Path, name: str, manifest: Manifest
) -> tuple[FocusReport, str] | None:
    """Returns what was checked of the FOCUS file, and its hash; None unless all of it holds."""
    if not FocusChecker(header_of(folder / name)).is_readable:
        return None
    fold = FocusFold()
    sha256 = ""
    for checked in readers.each(_File(folder, name, manifest), _tasks(_Kind.FOCUS, folder / name)):
        if isinstance(checked, str):
            sha256 = checked
        elif isinstance(checked, FocusPart):
            fold.add(checked)
        else:
            return None
    report = fold.finish()
    return (report, sha256) if report.is_sound else None


def _tasks(kind: _Kind, path: Path) -> Iterator[_Task]:
    yield _Kind.HASH, (0, 0)
    for span in spans_of(path):
        yield kind, span


def _rows_in(path: Path, span: Span) -> Iterator[Sequence[str]]:
    start, end = span
    with path.open("rb") as stream:
        stream.seek(start)
        text = stream.read(end - start).decode()
    return csv.reader(io.StringIO(text, newline=""), strict=True)


def _lines_in(path: Path, span: Span, manifest: Manifest) -> Lines | None:
    lines = Lines(path.name, manifest, Report())
    try:
        for number, cells in enumerate(_rows_in(path, span), start=1):
            if len(cells) != len(USAGE_COLUMNS):
                return None
            lines.take(number, cells)
    except (csv.Error, UnicodeDecodeError):
        return None
    return lines if lines.report.is_proved else None


def _focus_in(path: Path, span: Span, checker: FocusChecker) -> FocusPart | None:
    try:
        for cells in _rows_in(path, span):
            checker.row(cells)
    except (csv.Error, UnicodeDecodeError):
        return None
    part = checker.part()
    return part if part.report.is_sound else None
