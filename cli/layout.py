"""How lists are laid out in plain text: columns that are never cut, whatever they hold. Pure; nothing prints.

Not Rich: its tables fall back to 80 columns in a pipe and cut the data, and importing them costs 0.06 s.
"""

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cli.answers import Json

Cell = Callable[[Json], str | None]

PAINT = {"red": "31", "green": "32", "yellow": "33", "cyan": "36", "dim": "2", "bold": "1"}


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its title, what stands in it, and whether only `-o wide` shows it. None is shown as `-`."""

    title: str
    cell: Cell
    is_right: bool = False
    is_wide: bool = False
    paint: Cell | None = None
    """The colour of an item's cell, a key of PAINT."""


@dataclass(frozen=True, slots=True)
class View:
    """How items of one kind are shown: as columns, as names (`-q`), and as CSV by the paths of their fields."""

    columns: tuple[Column, ...]
    name: Cell
    fields: tuple[str, ...]
    empty: str = "nothing"
    """What a list without items is said to have."""
    footer: Callable[[Json], str | None] = field(default=lambda _: None)
    """Lines under the table, from the whole answer."""


def visible(text: str) -> str:
    """Returns text without what a terminal would obey: control and direction characters become escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def width(text: str) -> int:
    """Returns how many terminal cells a text takes: East Asian wide characters take two, combining ones none."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def lines(columns: Sequence[Column], rows: Sequence[Json], *, has_header: bool, is_coloured: bool) -> list[str]:
    """Returns the lines of a table: two spaces between columns, no trailing space, nothing cut."""
    cells = [[visible(column.cell(row) or "-") for column in columns] for row in rows]
    titles = [[column.title for column in columns]] if has_header else []
    widths = [max((width(line[i]) for line in titles + cells), default=0) for i in range(len(columns))]
    shown = [_line(columns, line, widths, {}) for line in titles]
    for row, line in zip(rows, cells, strict=True):
        colours = {i: c.paint(row) for i, c in enumerate(columns) if c.paint is not None} if is_coloured else {}
        shown.append(_line(columns, line, widths, colours))
    return shown


def painted(text: str, colour: str | None) -> str:
    """Returns text in a colour of PAINT; as it is for None."""
    return f"\x1b[{PAINT[colour]}m{text}\x1b[0m" if colour is not None else text


def _line(
    columns: Sequence[Column], cells: Sequence[str], widths: Sequence[int], colours: dict[int, str | None]
) -> str:
    padded = []
    for i, (column, cell) in enumerate(zip(columns, cells, strict=True)):
        gap = " " * (widths[i] - width(cell))
        shown = painted(cell, colours.get(i))
        padded.append(gap + shown if column.is_right else shown + gap)
    return "  ".join(padded).rstrip()


def csv_cell(value: object) -> str:
    """Returns a field as one CSV cell.

    Text that a spreadsheet would run as a formula gets an apostrophe before it; control characters become escapes.
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return csv_cell(" ".join(str(each) for each in value))
    text = visible(str(value))
    return f"'{text}" if isinstance(value, str) and text[:1] in {"=", "+", "-", "@"} else text
