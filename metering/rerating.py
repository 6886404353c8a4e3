"""Exports a range again from the ledger and holds the files of an earlier export against it, byte by byte."""

import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from sqlalchemy.engine import Connection

from metering.core.period import PeriodStatus
from metering.core.who_pays import WHO_PAYS_VERSIONS
from metering.export import export_usage
from metering.findings import Check, Report
from metering.focus import FocusTerms
from metering.ledger import price_book_rows
from metering.manifest import MANIFEST, Manifest
from metering.packages import stored_hashes
from metering.sealed import closed_period, folder_of
from metering.verify_derived import is_derived
from scheduler.core.model import AccountId
from scheduler.refusal import Refused
from scheduler.store.database import StoreError
from scheduler.store.read import latest_known_ms

_BLOCK_BYTES = 1 << 20


def compare_with_ledger(folder: Path, manifest: Manifest, connection: Connection, report: Report) -> None:
    """Notes each file and fact that the ledger would tell otherwise now, a file with the first line that differs."""
    if manifest.period_status == PeriodStatus.CLOSED:
        _compare_with_seal(folder, manifest, connection, report)
        return
    hashes = {row.version: row.sha256 for row in price_book_rows(connection)}
    for version, sha256 in manifest.price_books.items():
        report.expect(Check.RERATING, f"{MANIFEST} price book {version}", hashes.get(version), sha256)
    sold = stored_hashes(connection)
    for package, sha256 in manifest.packages.items():
        report.expect(Check.RERATING, f"{MANIFEST} package {package}", sold.get(package), sha256)
    try:
        zone = ZoneInfo(manifest.zone)
    except (ZoneInfoNotFoundError, ValueError) as error:
        report.wrong(Check.RERATING, f"{MANIFEST} zone", "a time zone of this machine", str(error))
        return
    table = WHO_PAYS_VERSIONS.get(manifest.who_pays)
    if table is None:
        report.wrong(Check.RERATING, f"{MANIFEST} who_pays", " or ".join(WHO_PAYS_VERSIONS), manifest.who_pays)
        return
    with tempfile.TemporaryDirectory() as scratch:
        again_in = Path(scratch) / "export"
        try:
            again = export_usage(
                connection,
                again_in,
                manifest.from_ms,
                manifest.to_ms,
                zone,
                AccountId(manifest.tenant) if manifest.tenant is not None else None,
                known_until_ms=max(manifest.to_ms, latest_known_ms(connection)),
                revision=manifest.revision,
                focus=FocusTerms(manifest.focus_version, manifest.invoice_issuer),
                who_pays=table,
            )
        except (Refused, StoreError, ValueError) as error:
            report.wrong(Check.RERATING, MANIFEST, "a range that the ledger can export", str(error))
            return
        for file in again.files:
            if not (folder / file.name).is_file():
                report.wrong(Check.RERATING, file.name, "the file", "none")
            else:
                _compare(folder / file.name, again_in / file.name, report)
    for name in (
        "sums",
        "price_books",
        "packages",
        "first_sequence",
        "last_sequence",
        "chain_head",
        "period",
        "who_pays",
    ):
        report.expect(Check.RERATING, f"{MANIFEST} {name}", getattr(again, name), getattr(manifest, name))


def _compare(found: Path, expected: Path, report: Report) -> None:
    """Names the first line in which two files differ; the first line is the header."""
    with found.open("rb") as ours, expected.open("rb") as theirs:
        for number, (one, other) in enumerate(_pairs(ours, theirs)):
            where = f"{found.name} row {number}" if number else f"{found.name} header"
            if not report.expect(Check.RERATING, where, _shown(other), _shown(one)):
                return


def _pairs(one: BinaryIO, other: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    while True:
        lines = one.readline(_BLOCK_BYTES), other.readline(_BLOCK_BYTES)
        if lines == (b"", b""):
            return
        yield lines


def _shown(line: bytes) -> str:
    return line.decode("utf-8", "replace").rstrip("\n") if line else "the end of the file"


def _compare_with_seal(folder: Path, manifest: Manifest, connection: Connection, report: Report) -> None:
    """Notes where the files of a closed period's export are not those that were sealed."""
    closed = closed_period(connection, (manifest.from_ms, manifest.to_ms), manifest.zone)
    if closed is None or closed.seal is None:
        report.wrong(Check.SEAL, f"{MANIFEST} period {manifest.period}", "a closed period of this ledger", "none")
        return
    inside = folder_of(AccountId(manifest.tenant) if manifest.tenant is not None else None)
    sealed = {path.rpartition("/")[2]: sha for path, sha in closed.seal.files.items() if path.startswith(f"{inside}/")}
    found = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if path.is_file() and not is_derived(path.name)
    }
    for name in sorted({*sealed, *found}):
        report.expect(Check.SEAL, f"{name} sha256", sealed.get(name), found.get(name))
