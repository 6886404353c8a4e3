"""Where things stand in a TOML file: the line of each key and table, which the standard reader does not tell.

For files that `tomllib` has read: what is not valid TOML may be placed anywhere. Keys inside an inline table stand
where their table begins.
"""

import tomllib
from collections.abc import Mapping

Path = tuple[str | int, ...]
"""Keys from the top; a number counts the tables of an array of tables."""


def lines_of(text: str) -> dict[Path, int]:
    """Returns the line, from 1, of every table and key."""
    found: dict[Path, int] = {}
    counts: dict[Path, int] = {}
    table: Path = ()
    value = _Value()
    for number, line in enumerate(text.splitlines(), 1):
        typed = line.strip()
        if value.is_open:
            value.read(line)
        elif typed.startswith("["):
            is_array = typed.startswith("[[")
            header = _within_arrays(_keys(_up_to(typed[2:] if is_array else typed[1:], "]")), counts)
            if is_array:
                counts[header] = counts.get(header, -1) + 1
                header = (*header, counts[header])
            table = header
            found.setdefault(table, number)
        elif typed and not typed.startswith("#"):
            key = _up_to(typed, "=")
            found.setdefault((*table, *_keys(key)), number)
            value.read(typed[len(key) + 1 :])
    return found


def line_of(lines: Mapping[Path, int], path: Path) -> int:
    """Returns the line of what stands at a path, or of the nearest thing around it; 1 where nothing does."""
    for length in range(len(path), 0, -1):
        if path[:length] in lines:
            return lines[path[:length]]
    return 1


class _Value:
    """A value that may go on over several lines: arrays, and strings in three quotes."""

    def __init__(self) -> None:
        self._depth = 0
        self._quote = ""

    @property
    def is_open(self) -> bool:
        return self._depth > 0 or bool(self._quote)

    def read(self, text: str) -> None:
        """Goes on with a line of the value."""
        at = 0
        while at < len(text):
            if self._quote:
                at = self._in_string(text, at)
                continue
            character = text[at]
            if character == "#":
                return
            if character in "\"'":
                self._quote = character * 3 if text.startswith(character * 3, at) else character
                at += len(self._quote)
                continue
            self._depth += (character in "[{") - (character in "]}")
            at += 1
        if len(self._quote) == 1:
            self._quote = ""  # a string in one quote ends with its line

    def _in_string(self, text: str, at: int) -> int:
        if text[at] == "\\" and self._quote[0] == '"':
            return at + 2
        if text.startswith(self._quote, at):
            at += len(self._quote)
            self._quote = ""
            return at
        return at + 1


def _up_to(text: str, end: str) -> str:
    """Returns what stands before a character that is not inside quotes."""
    quote = ""
    for at, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character == end:
            return text[:at]
    return text


def _keys(dotted: str) -> Path:
    """Returns the steps of a dotted key, as the standard reader understands quotes and dots."""
    try:
        found: object = tomllib.loads(f"{dotted} = 0")
    except tomllib.TOMLDecodeError:
        return (dotted.strip(),)
    steps: list[str | int] = []
    while isinstance(found, dict):
        step, found = next(iter(found.items()))
        steps.append(step)
    return tuple(steps)


def _within_arrays(keys: Path, counts: Mapping[Path, int]) -> Path:
    """Returns a header's path with the number of the table that it stands in, for `[users.x]` below `[[users]]`."""
    path: Path = ()
    for place, step in enumerate(keys):
        path = (*path, step)
        if path in counts and place < len(keys) - 1:
            path = (*path, counts[path])
    return path
