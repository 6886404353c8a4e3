"""Proves what was made of an export's files: its statements, and its Parquet copies where they can be read here."""

import csv
from datetime import datetime
from itertools import zip_longest
from pathlib import Path

from metering.findings import Check, Report
from metering.manifest import Manifest
from metering.parquet import SUFFIX, NoParquet, read_rows, value_of
from metering.statements import PREFIX, statements_of


def is_derived(name: str) -> bool:
    """True for a file that an export's manifest does not name because it is made of those that it names."""
    return (name.startswith(PREFIX) and name.endswith(".html")) or name.endswith(SUFFIX)


def verify_derived(folder: Path, manifest: Manifest, report: Report) -> None:
    """Makes statements again and compares them byte by byte; compares Parquet files with the CSV value by value."""
    present = {path.name for path in folder.iterdir() if is_derived(path.name)}
    if any(name.startswith(PREFIX) for name in present):
        _verify_statements(folder, present, report)
    for file in manifest.files:
        name = Path(file.name).stem + SUFFIX
        if name in present:
            _verify_parquet(folder, file.name, name, report)
    known = {Path(file.name).stem + SUFFIX for file in manifest.files}
    for name in sorted(each for each in present if each.endswith(SUFFIX) and each not in known):
        report.wrong(Check.FILE, name, "a copy of a file of the manifest", "one of none")


def _verify_statements(folder: Path, present: set[str], report: Report) -> None:
    try:
        made = dict(statements_of(folder))
    except (ValueError, KeyError, csv.Error) as error:
        report.wrong(Check.FILE, f"{PREFIX}*", "usage lines that a statement can be made of", str(error))
        return
    for name in sorted(each for each in present if each.startswith(PREFIX)):
        report.count("statements")
        page = made.get(name)
        if page is None:
            report.wrong(Check.FILE, name, "a statement of a tenant of these files", "one of none")
        elif (folder / name).read_bytes() != page.encode():
            report.wrong(Check.FILE, name, "what the usage lines say", "something else")


def _verify_parquet(folder: Path, source: str, name: str, report: Report) -> None:
    try:
        rows = read_rows(folder / name)
        with (folder / source).open(encoding="utf-8-sig", newline="") as stream:
            for number, (row, copy) in enumerate(zip_longest(csv.DictReader(stream, strict=True), rows), start=1):
                if row is None or copy is None:
                    report.wrong(Check.FILE, f"{name} row {number}", "as many rows as the CSV", "another number")
                    return
                for column, cell in row.items():
                    expected, found = value_of(column, cell), copy.get(column)
                    if not _same(expected, found):
                        report.wrong(Check.FILE, f"{name} row {number} {column}", cell, str(found))
                        return
        report.count("parquet_files")
    except NoParquet:
        report.count("parquet_files_not_looked_at")
    except (ValueError, OSError, csv.Error) as error:
        report.wrong(Check.FILE, name, "a Parquet file that can be read", str(error))


def _same(expected: object, found: object) -> bool:
    if isinstance(expected, datetime) and isinstance(found, datetime):
        return expected.timestamp() == found.timestamp()
    return expected == found and isinstance(found, type(expected))
