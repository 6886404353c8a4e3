"""CSV as billing departments open it: UTF-8 with BOM, `\\n`, RFC 4180, and no text that a spreadsheet would run.

A file is written row by row and hashed on the way, so its size does not matter to memory.
"""

import csv
import hashlib
import io
import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

BOM = b"\xef\xbb\xbf"
_RUN_AS_FORMULA = frozenset("=+-@\t\r＝＋－＠")
"""First characters at which spreadsheets evaluate a cell (OWASP, CSV injection), full-width forms included."""
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode categories that control, hide or reorder text, or are no characters: never part of a name one can read."""
_LINES_AT_ONCE = 32
"""Lines that are hashed and written together."""
_KEPT_FORMATS = frozenset("\u200c\u200d")  # joiners that scripts and emoji are spelled with


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """A finished file: rows without the header, SHA-256 (hex) of its bytes."""

    name: str
    rows: int
    sha256: str


@lru_cache(maxsize=16_384)
def harmless_name(text: str) -> str:
    """Returns `harmless` of a text that many lines share: a tenant, a project, a user, a class of GPUs."""
    return harmless(text)


def harmless(text: str) -> str:
    """Returns a person's text as a cell that shows and does nothing else.

    A leading `'` keeps a formula from running; control characters become their visible pictures (␀ for NUL) or U+FFFD.
    """
    shown = text if text.isascii() and text.isprintable() else "".join(map(_visible, text))
    return f"'{shown}" if text[:1] in _RUN_AS_FORMULA and text else shown


def _visible(character: str) -> str:
    if unicodedata.category(character) not in _UNSEEN or character in _KEPT_FORMATS:
        return character
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else "\ufffd"


class CsvRows:
    """Turns rows into the bytes of a CSV file, to be put into it at their place."""

    def __init__(self, columns: Sequence[str]) -> None:
        self.columns = columns
        self.count = 0
        self._text = io.StringIO(newline="")
        self._write_row = csv.writer(self._text, lineterminator="\n").writerow

    def row(self, cells: Sequence[str]) -> None:
        """Takes a row. Cells that carry a person's text must have been through `harmless`."""
        assert len(cells) == len(self.columns), "a row has a cell for each column"
        self._write_row(cells)
        self.count += 1

    def take(self) -> "Rows":
        """Returns the rows since this was last asked, and forgets them."""
        taken = Rows(self._text.getvalue().encode(), self.count)
        self._text.seek(0)
        self._text.truncate()
        self.count = 0
        return taken


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of a CSV file as its bytes, and how many they are."""

    data: bytes
    count: int


class CsvFile:
    """Writes one CSV file; a context manager. `finished` tells what was written once it is closed.

    Spreadsheets want the BOM; FOCUS forbids it.
    """

    def __init__(self, path: Path, columns: Sequence[str], *, has_bom: bool = True) -> None:
        self._path = path
        self._has_bom = has_bom
        self._rows = 0
        self._digest = hashlib.sha256()
        self._stream: BinaryIO | None = None
        self._pending = CsvRows(columns)

    def __enter__(self) -> Self:
        self._stream = self._path.open("xb")
        if self._has_bom:
            self._put(BOM)
        self._pending.row(self._pending.columns)
        self._put(self._pending.take().data)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._stream is not None, "entered before it is left"
        if kind is None:
            self.put(self._pending.take())
            self._stream.flush()
            os.fsync(self._stream.fileno())
        self._stream.close()
        self._stream = None

    def row(self, cells: Sequence[str]) -> None:
        """Writes a row. Cells that carry a person's text must have been through `harmless`."""
        self._pending.row(cells)
        if self._pending.count >= _LINES_AT_ONCE:
            self.put(self._pending.take())

    def put(self, rows: Rows) -> None:
        """Writes rows that were made elsewhere, of the same columns."""
        if self._pending.count:
            waiting = self._pending.take()
            self._rows += waiting.count
            self._put(waiting.data)
        self._rows += rows.count
        self._put(rows.data)

    @property
    def finished(self) -> WrittenFile:
        """What was written."""
        return WrittenFile(self._path.name, self._rows, self._digest.hexdigest())

    def _put(self, data: bytes) -> None:
        assert self._stream is not None, "entered before it is written"
        self._digest.update(data)
        self._stream.write(data)
