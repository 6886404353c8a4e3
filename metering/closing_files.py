"""The files of a period that is being closed: those of all and of each tenant, rated apart and held side by side.

The files of all and those of the tenants come from two ratings of the same snapshot. What the first say of a tenant
must be what the second say, byte by byte: so the period is rated twice, and no tenant is told anything else than the
centre's billing department.
"""

import csv
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol
from zoneinfo import ZoneInfo

from sqlalchemy.engine import Connection

from metering.core.period import Period, PeriodStatus
from metering.correction_rows import corrected_tenants
from metering.csv_files import WrittenFile, harmless
from metering.export import export_usage
from metering.fee_lines import fee_tenants
from metering.findings import Report
from metering.focus import FocusTerms
from metering.manifest import Manifest
from metering.periods import KnownPeriod
from metering.sealed import folder_of
from metering.timelines import Timelines, load_prices
from metering.verify_files import verify_export
from scheduler.core.model import AccountId
from scheduler.refusal import RefusalCode, Refused
from scheduler.store.ledger_allocations import tenants_between
from scheduler.store.readers import Readers

MOST_NAMED = 3
"""Findings and stretches that a refusal names; the verbs list them all."""


def write_period(readers: Readers[Connection], root: Path, known: KnownPeriod, focus: FocusTerms) -> None:
    """Writes the files of all and of each tenant below `root`, and proves them. Raises Refused when they disagree."""
    period, zone = known.period, ZoneInfo(known.zone)
    tenants = _tenants(readers.source, period, zone)
    made: dict[AccountId | None, Manifest] = {}
    for tenant in (None, *tenants):
        made[tenant] = export_usage(
            readers.source,
            root / folder_of(tenant),
            period.from_ms,
            period.to_ms,
            zone,
            tenant,
            known_until_ms=period.to_ms,
            focus=focus,
            status=PeriodStatus.CLOSED,
            readers=readers,
        )
    for prefix, column in (("usage_lines_", "tenant_id"), ("focus_", "BillingAccountId")):
        whole = root / folder_of(None) / _file_of(made[None], prefix).name
        found = tenant_digests(whole, column, [harmless(tenant) for tenant in tenants])
        for tenant in tenants:
            if found[harmless(tenant)] != _file_of(made[tenant], prefix).sha256:
                raise Refused(
                    RefusalCode.CONFLICT,
                    f"the ledger gives other lines of {tenant} the second time; run its verification",
                    tries=("turnstile admin ledger verify",),
                )
    for tenant in made:
        refuse_unsound(
            verify_export(root / folder_of(tenant), readers=readers), f"the files of {tenant or 'all tenants'}"
        )


def refuse_unsound(report: Report, what: str) -> None:
    """Raises Refused when something does not hold, with the first of it."""
    if not report.is_proved:
        named = "; ".join(str(finding) for finding in report.findings[:MOST_NAMED])
        raise Refused(
            RefusalCode.WRONG_STATE,
            f"{what} cannot be proved: {named}",
            tries=("turnstile admin ledger verify lists all findings",),
        )


def _file_of(manifest: Manifest, prefix: str) -> WrittenFile:
    return next(file for file in manifest.files if file.name.startswith(prefix))


class _Digest(Protocol):
    def update(self, data: bytes, /) -> None: ...

    def hexdigest(self) -> str: ...


def tenant_digests(path: Path, column: str, tenants: Sequence[str]) -> dict[str, str]:
    """Returns the SHA-256 of what a file would be with one tenant's rows only, by what `column` calls the tenant."""
    digests: dict[str, _Digest] = {}
    with path.open("rb") as stream:
        first = stream.readline()
        names = next(csv.reader([first.decode("utf-8-sig")]))
        place = names.index(column)
        for tenant in tenants:
            digests[tenant] = hashlib.sha256(first)
        for line, tenant in _with_tenant(stream, place):
            digest = digests.get(tenant)
            if digest is not None:
                digest.update(line)
    return {tenant: digest.hexdigest() for tenant, digest in digests.items()}


def _with_tenant(stream: Iterator[bytes], place: int) -> Iterator[tuple[bytes, str]]:
    """Yields the lines of a file, each a row: no cell has a line's end in it; and what one of their cells says."""
    for line in stream:
        before = line.split(b",", place + 1)
        if any(b'"' in cell for cell in before[: place + 1]):
            yield line, next(csv.reader([line.decode()]))[place]
        else:
            yield line, before[place].decode()


def _tenants(connection: Connection, period: Period, zone: ZoneInfo) -> list[AccountId]:
    span = period.from_ms, period.to_ms
    charged = fee_tenants(Timelines(*span, zone, load_prices(connection)))
    return sorted(tenants_between(connection, *span) | corrected_tenants(connection, *span) | charged)
