"""Statements of an export's tenants, made of its files: written beside them, and made again to check them."""

import csv
import hashlib
from collections.abc import Iterator
from pathlib import Path

from metering.manifest import MANIFEST, Manifest
from metering.statement import StatementFold
from metering.statement_page import Source, statement_page

PREFIX = "statement_"


def write_statements(folder: Path) -> list[str]:
    """Writes a statement for each tenant of an export into its folder and returns their names.

    A tenant's own export has one even where nothing was used. Raises ValueError for a folder that is no export.
    """
    names = []
    for name, page in statements_of(folder):
        (folder / name).write_text(page, encoding="utf-8", newline="\n")
        names.append(name)
    return names


def statements_of(folder: Path) -> Iterator[tuple[str, str]]:
    """Yields name and page of each tenant's statement, by tenant. Reads the usage lines once."""
    manifest = Manifest.from_json((folder / MANIFEST).read_text(encoding="utf-8"))
    source = next((file for file in manifest.files if file.name.startswith("usage_lines_")), None)
    if source is None:
        raise ValueError(f"{folder} has no usage lines")
    folds: dict[str, StatementFold] = {}
    if manifest.tenant is not None:
        folds[manifest.tenant] = StatementFold(manifest.tenant)
    with (folder / source.name).open(encoding="utf-8-sig", newline="") as stream:
        for row in csv.DictReader(stream, strict=True):
            tenant = row["tenant_id"]
            fold = folds.get(tenant)
            if fold is None:
                fold = folds[tenant] = StatementFold(tenant)
            fold.add(row)
    for tenant in sorted(folds):
        page = statement_page(folds[tenant], manifest, Source(source.name, source.sha256))
        yield statement_name(manifest.period, tenant, manifest.revision), page


def statement_name(period: str, tenant: str, revision: int) -> str:
    """Returns a statement's file name; names that lose letters in it keep apart by a hash."""
    whose = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in tenant)
    if whose != tenant:
        whose += f"-{hashlib.sha256(tenant.encode()).hexdigest()[:8]}"
    return f"{PREFIX}{period}_{whose}_r{revision}.html"
