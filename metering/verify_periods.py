"""The part of verification that asks about closed periods: order, seals, files, and what their lines say now."""

import hashlib
import tempfile
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from metering.core.period import PeriodStatus
from metering.corrections import differences
from metering.findings import Check, Report
from metering.ledger import price_book_rows
from metering.periods import KnownPeriod, Seal, lost_heads, periods
from metering.sealed import sealed_bytes, write_sealed
from metering.tables import PERIOD_FILE
from metering.verify_files import verify_export
from metering.verify_invoices import verify_invoices
from scheduler.refusal import Refused
from scheduler.store.database import StoreError


def verify_periods(connection: Connection, report: Report, only: str | None = None) -> None:
    """Checks every closed period, or one: its seal against the chains, its files against the seal and each other.

    What is charged for it must be what is known now: sealed lines and corrections add up to the period rated again.
    """
    try:
        known = periods(connection, "UTC", 0)
    except ValueError as error:
        report.wrong(Check.SEAL, "period_event", "seals that can be read", str(error))
        return
    _verify_order(known, report)
    is_whole = True
    books = {row.version: row.sha256 for row in price_book_rows(connection)}
    for each in known:
        if each.seal is None or only not in {None, each.period.name}:
            continue
        report.count("closed_periods")
        for where, sealed, found in lost_heads(connection, each.seal):
            report.expect(Check.SEAL, f"{each.period.name} head of {where}", sealed, found)
        for version, sha256 in each.seal.price_books.items():
            report.expect(Check.SEAL, f"{each.period.name} price book {version}", sha256, books.get(version))
        if _verify_files(connection, report, each.period.name, each.seal):
            is_whole &= _verify_charged(connection, report, each)
        else:
            is_whole = False
    if is_whole:  # else the findings so far say why the sums cannot be the same
        verify_invoices(connection, report, only)


def _verify_order(known: list[KnownPeriod], report: Report) -> None:
    for number, each in enumerate(known):
        if number and each.period.from_ms != known[number - 1].period.to_ms:
            expected, found = known[number - 1].period.to_ms, each.period.from_ms
            report.wrong(Check.SEAL, f"{each.period.name} begins", str(expected), str(found))
        earlier_open = number and known[number - 1].status is not PeriodStatus.CLOSED
        if each.status is PeriodStatus.CLOSED and earlier_open:
            report.wrong(Check.SEAL, f"{known[number - 1].period.name} status", "closed, as the next is", "not closed")


def _verify_files(connection: Connection, report: Report, name: str, seal: Seal) -> bool:
    """Checks the bytes of each sealed file and what the files say; returns whether the usage lines can be read."""
    joined = "\n".join(f"{sha256} {path}" for path, sha256 in seal.files.items())
    report.expect(Check.SEAL, f"{name} attempt", hashlib.sha256(joined.encode()).hexdigest(), seal.attempt)
    stored = sa.select(PERIOD_FILE.c.path).where(PERIOD_FILE.c.attempt == seal.attempt).distinct()
    for path in sorted(set(connection.execute(stored).scalars()) - set(seal.files)):
        report.wrong(Check.SEAL, f"{name} {path}", "a file of the seal", "one that it does not name")
    is_whole = True
    for path, sha256 in seal.files.items():
        report.count("sealed_files")
        digest = hashlib.sha256()
        try:
            for data in sealed_bytes(connection, seal.attempt, path):
                digest.update(data)
        except StoreError as error:
            is_whole = False
            report.wrong(Check.SEAL, f"{name} {path}", "bytes that can be read", str(error))
            continue
        is_whole &= report.expect(Check.SEAL, f"{name} {path} sha256", sha256, digest.hexdigest())
    if not is_whole:
        return False
    for folder in sorted({path.rpartition("/")[0] for path in seal.files}):
        with tempfile.TemporaryDirectory(prefix="turnstile-sealed-") as scratch:
            write_sealed(connection, seal, folder, Path(scratch))
            found = verify_export(Path(scratch))
        for finding in found.findings:
            report.wrong(finding.check, f"{name} {folder}/{finding.where}", finding.expected, finding.found)
    return True


def _verify_charged(connection: Connection, report: Report, known: KnownPeriod) -> bool:
    """Checks that no correction is missing; returns whether none is."""
    try:
        missing = differences(connection, known)
    except (Refused, StoreError, ValueError, LookupError) as error:
        report.wrong(Check.SEAL, known.period.name, "a period that can be rated again", str(error))
        return False
    for each in missing:
        report.wrong(
            Check.SEAL,
            f"{known.period.name} line {each.target_line_id}",
            f"corrections of {each.amount_micros} micro-units and {each.gpu_ms} gpu_ms more",
            "none; the daemon writes them, or: turnstile admin ledger correct --period " + known.period.name,
        )
    return not missing
