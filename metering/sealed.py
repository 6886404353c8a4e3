"""The files of closed periods, as they were sealed: kept in the ledger's own database, compressed, for ever.

In the database and not beside it, because the seal and the files must come to be in one transaction, a copy of the
database must prove both, and the daemon that leads tomorrow may be on another machine.
"""

import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from zoneinfo import ZoneInfo

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from metering.core.period import PeriodStatus
from metering.export import export_usage
from metering.focus import FocusTerms
from metering.manifest import MANIFEST, Manifest
from metering.periods import KnownPeriod, Seal, periods
from metering.tables import PERIOD_FILE
from scheduler.core.model import AccountId
from scheduler.refusal import RefusalCode, Refused
from scheduler.store.database import StoreCorrupt
from scheduler.store.read import latest_known_ms
from scheduler.store.readers import Readers
from scheduler.store.transaction import Transaction

WHOLE = "all"
"""The folder of the files of all tenants; those of one are in `tenant/<name>`."""
PART_BYTES = 1 << 20
PARTS_AT_ONCE = 16
"""Parts in one transaction: the desk is not kept from jobs for more than some tenths of a second."""
_LEVEL = 6


def folder_of(tenant: AccountId | None) -> str:
    """Returns the folder of a tenant's sealed files, or of all."""
    return WHOLE if tenant is None else f"tenant/{tenant}"


@dataclass(frozen=True, slots=True)
class FilePart:
    """Up to PART_BYTES of a file, compressed: beside the desk, which has other work."""

    path: str
    number: int
    data: bytes


@dataclass(frozen=True, slots=True)
class KeepParts:
    """Keeps parts of files that are to be sealed; those that are there already stay as they are."""

    attempt: str
    parts: tuple[FilePart, ...]

    def execute(self, tx: Transaction) -> None:
        """Writes what is not there yet."""
        for part in self.parts:
            place = (PERIOD_FILE.c.path == part.path, PERIOD_FILE.c.part == part.number)
            there = sa.select(PERIOD_FILE.c.part).where(PERIOD_FILE.c.attempt == self.attempt, *place)
            if tx.connection.execute(there).first() is None:
                values = {"attempt": self.attempt, "path": part.path, "part": part.number}
                tx.connection.execute(sa.insert(PERIOD_FILE).values(**values, data=part.data))


def parts_of(root: Path) -> Iterator[FilePart]:
    """Yields the parts of all files below a folder, by path and number."""
    for path in sorted(each for each in root.rglob("*") if each.is_file()):
        name = path.relative_to(root).as_posix()
        with path.open("rb") as stream:
            number = 0
            while data := stream.read(PART_BYTES):
                yield FilePart(name, number, zlib.compress(data, _LEVEL))
                number += 1


def sealed_bytes(connection: Connection, attempt: str, path: str) -> Iterator[bytes]:
    """Yields a sealed file's bytes. Raises StoreCorrupt when a part of it cannot be read."""
    query = (
        sa.select(PERIOD_FILE.c.part, PERIOD_FILE.c.data)
        .where(PERIOD_FILE.c.attempt == attempt, PERIOD_FILE.c.path == path)
        .order_by(PERIOD_FILE.c.part)
        .execution_options(yield_per=1)
    )
    for row in connection.execute(query):
        try:
            yield zlib.decompress(row.data)
        except zlib.error as error:
            raise StoreCorrupt(f"sealed file {path}, part {row.part}: {error}") from error


def write_sealed(connection: Connection, seal: Seal, folder: str, out_dir: Path) -> None:
    """Writes the sealed files of a folder, and proves their hashes. Raises StoreCorrupt when they do not hold."""
    out_dir.mkdir(parents=True, exist_ok=True)
    for path, sha256 in seal.files.items():
        inside, _, name = path.rpartition("/")
        if inside != folder:
            continue
        digest = hashlib.sha256()
        with (out_dir / name).open("xb") as stream:
            for data in sealed_bytes(connection, seal.attempt, path):
                digest.update(data)
                stream.write(data)
        if digest.hexdigest() != sha256:
            raise StoreCorrupt(f"sealed file {path} is not what was sealed; restore a backup")


def sealed_manifest(connection: Connection, seal: Seal, folder: str = WHOLE) -> Manifest:
    """Returns the manifest of a folder's sealed files."""
    data = b"".join(sealed_bytes(connection, seal.attempt, f"{folder}/{MANIFEST}"))
    try:
        return Manifest.from_json(data.decode())
    except ValueError as error:
        raise StoreCorrupt(f"the sealed {folder}/{MANIFEST}: {error}") from error


def closed_period(connection: Connection, span: tuple[int, int], zone: str) -> KnownPeriod | None:
    """Returns the closed period that a range is exactly; None for any other range."""
    for each in periods(connection, zone, span[0]):
        is_it = (each.period.from_ms, each.period.to_ms, each.zone) == (*span, zone)
        if is_it and each.status is PeriodStatus.CLOSED:
            return each
    return None


def export_known(  # noqa: PLR0913 - a request in words, as `export_usage` has it
    connection: Connection,
    out_dir: Path,
    span: tuple[int, int],
    zone: ZoneInfo,
    tenant: AccountId | None = None,
    *,
    known_until_ms: int | None = None,
    focus: FocusTerms | None = None,
    unasked: FocusTerms = FocusTerms(),  # noqa: B008 - a frozen value
    readers: Readers[Connection] | None = None,
) -> None:
    """Writes the export of a range: of a closed period the sealed files, byte by byte, else what is known now.

    `focus` None is the sealed one's, or where nothing is sealed `unasked`. Raises what `export_usage` raises, and
    Refused for a closed period whose files were not written as asked.
    """
    closed = closed_period(connection, span, zone.key)
    if closed is None or closed.seal is None:
        known_ms = latest_known_ms(connection) if known_until_ms is None else known_until_ms
        terms = focus or unasked
        export_usage(connection, out_dir, *span, zone, tenant, known_until_ms=known_ms, focus=terms, readers=readers)
        return
    folder, name = folder_of(tenant), closed.period.name
    if f"{folder}/{MANIFEST}" not in closed.seal.files:
        raise Refused(RefusalCode.NOT_FOUND, f"{name} is closed, and has no charge of {tenant!r}")
    sealed = sealed_manifest(connection, closed.seal, folder)
    if focus is not None and (focus.version, focus.issuer) != (sealed.focus_version, sealed.invoice_issuer):
        raise Refused(
            RefusalCode.CONFLICT,
            f"{name} is closed with FOCUS {sealed.focus_version} of {sealed.invoice_issuer!r}; its files never change",
            tries=(f"--focus {sealed.focus_version} --issuer '{sealed.invoice_issuer}'",),
        )
    write_sealed(connection, closed.seal, folder, out_dir)
