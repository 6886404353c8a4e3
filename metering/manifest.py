"""What an export says about itself: `manifest.json`, the file that the others are verified against."""

import json
import zoneinfo
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from metering.csv_files import WrittenFile

MANIFEST = "manifest.json"
FORMAT = 3
"""Version of the files' layout. A reader refuses one that it does not know."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """An export. Times are UTC milliseconds; `sums` are integers and decimal strings, see docs/ledger.md."""

    from_ms: int
    to_ms: int
    zone: str
    tzdata_version: str
    period: str
    period_status: str
    tenant: str | None
    revision: int
    files: tuple[WrittenFile, ...]
    sums: Mapping[str, Any]
    price_books: Mapping[str, str]
    """Version to SHA-256, of every book that was in force in the range."""
    packages: Mapping[str, str]
    """Id to SHA-256, of every package that may have paid for something in the range."""
    who_pays: str
    first_sequence: int | None
    last_sequence: int | None
    chain_head: str | None
    """Hash of the ledger row `last_sequence`: of those that ended in the range, the last one written."""
    focus_version: str
    invoice_issuer: str
    tool_version: str = ""
    format: int = FORMAT

    @property
    def unpriced_lines(self) -> int:
        """Usage lines for which no price book named a price; they are on no invoice."""
        return int(self.sums["unpriced_lines"])

    def to_json(self) -> str:
        """Returns the file's text: sorted keys, so that the same export is the same bytes."""
        document = {
            "format": self.format,
            "tool": {"name": "turnstile", "version": self.tool_version},
            "range": {"from_ms": self.from_ms, "to_ms": self.to_ms},
            "zone": self.zone,
            "tzdata_version": self.tzdata_version,
            "period": self.period,
            "period_status": self.period_status,
            "tenant": self.tenant,
            "revision": self.revision,
            "supersedes": self.revision - 1 if self.revision > 0 else None,
            "focus": {"version": self.focus_version, "issuer": self.invoice_issuer},
            "files": {file.name: {"rows": file.rows, "sha256": file.sha256} for file in self.files},
            "sums": dict(self.sums),
            "price_books": dict(self.price_books),
            "packages": dict(self.packages),
            "who_pays": self.who_pays,
            "ledger": {
                "first_sequence": self.first_sequence,
                "last_sequence": self.last_sequence,
                "chain_head": self.chain_head,
            },
        }
        return json.dumps(document, sort_keys=True, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """Returns the manifest of a text. Raises ValueError when it is none, or of a layout that is not known."""
        try:
            document = json.loads(text)
            if document["format"] != FORMAT:
                raise ValueError(f"the manifest has format {document['format']}; this version reads format {FORMAT}")
            return cls._of(document)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"the manifest lacks what it must say: {error}") from error

    @classmethod
    def _of(cls, document: Mapping[str, Any]) -> "Manifest":
        ledger = document["ledger"]
        return cls(
            from_ms=int(document["range"]["from_ms"]),
            to_ms=int(document["range"]["to_ms"]),
            zone=str(document["zone"]),
            tzdata_version=str(document["tzdata_version"]),
            period=str(document["period"]),
            period_status=str(document["period_status"]),
            tenant=document["tenant"],
            revision=int(document["revision"]),
            files=tuple(
                WrittenFile(name, int(file["rows"]), str(file["sha256"]))
                for name, file in sorted(document["files"].items())
            ),
            sums=dict(document["sums"]),
            price_books=dict(document["price_books"]),
            packages=dict(document["packages"]),
            who_pays=str(document["who_pays"]),
            first_sequence=ledger["first_sequence"],
            last_sequence=ledger["last_sequence"],
            chain_head=ledger["chain_head"],
            focus_version=str(document["focus"]["version"]),
            invoice_issuer=str(document["focus"]["issuer"]),
            tool_version=str(document["tool"]["version"]),
        )


def tool_version() -> str:
    """Returns the version of the installed program."""
    return version("gpu-turnstile")


def tzdata_version(zone: str, search: Sequence[str] = zoneinfo.TZPATH) -> str:
    """Returns which release of the time zone database a zone's rules come from: `2026a`, or `unknown`.

    The system's database comes before the Python package, which is how zoneinfo looks for it.
    """
    for folder in map(Path, search):
        if (folder / zone).is_file():
            return _release_of(folder / "tzdata.zi")
    return str(import_module("tzdata").IANA_VERSION)


def _release_of(listing: Path) -> str:
    if not listing.is_file():
        return "unknown"
    with listing.open(encoding="utf-8") as stream:
        first = stream.readline()
    return first.removeprefix("# version ").strip() if first.startswith("# version ") else "unknown"
