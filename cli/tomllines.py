"""On which line of a TOML file a value stands: what problems with a file are told by.

`tomllib` keeps no places, so the lines are read once more, for their keys only. `Places.line` answers by the path that
a reader of the document names (`prices.H100.burst[1].price`); of what has no line of its own, the nearest part around
it has one. The text is known to be TOML: this never has to say what is wrong with it.
"""

import re

_PART = re.compile(r'"(?P<basic>[^"]*)"|\'(?P<literal>[^\']*)\'|(?P<bare>[A-Za-z0-9_-]+)')
_KEY = re.compile(r"""\s*(?P<path>(?:"[^"]*"|'[^']*'|[A-Za-z0-9_-]+|\s*\.\s*)+)\s*=""")
_TABLE = re.compile(r"\s*\[(?P<path>[^\[\]].*?)\]\s*(#.*)?$")
_ARRAY = re.compile(r"\s*\[\[(?P<path>.+?)\]\]\s*(#.*)?$")


class Places:
    """The lines of a document's keys, counted from 1."""

    def __init__(self, text: str) -> None:
        self._lines: dict[str, int] = {}
        self._counts: dict[str, int] = {}  # how many tables of an array there were so far
        prefix = ""
        open_key: tuple[str, int, int] | None = None  # a value that goes on: its path, its depth, its next element
        for number, line in enumerate(text.splitlines(), 1):
            if open_key is not None:
                open_key = self._go_on(open_key, line, number)
            elif header := _ARRAY.match(line):
                prefix = self._array(header["path"], number)
            elif header := _TABLE.match(line):
                prefix = self._resolved(header["path"])
                self._lines.setdefault(prefix, number)
            elif key := _KEY.match(line):
                path = ".".join(part for part in (prefix, _joined(key["path"])) if part)
                self._lines.setdefault(path, number)
                depth = _depth(line[key.end() :])
                open_key = (path, depth, 0) if depth > 0 else None

    def line(self, field: str) -> int | None:
        """Returns the line of a path, or of the nearest part around it; None where the file has no part of it."""
        while field:
            if field in self._lines:
                return self._lines[field]
            field = field[: max(field.rfind("."), field.rfind("["), 0)]
        return None

    def _array(self, written: str, number: int) -> str:
        parts = _parts(written)
        parent = self._resolved_parts(parts[:-1])
        name = ".".join(part for part in (parent, parts[-1]) if part)
        place = self._counts.get(name, -1) + 1
        self._counts[name] = place
        self._lines.setdefault(name, number)
        self._lines.setdefault(f"{name}[{place}]", number)
        return f"{name}[{place}]"

    def _resolved(self, written: str) -> str:
        return self._resolved_parts(_parts(written))

    def _resolved_parts(self, parts: list[str]) -> str:
        """Returns a path in which each array of tables is the table of it that was begun last."""
        path = ""
        for part in parts:
            path = f"{path}.{part}" if path else part
            if path in self._counts:
                path = f"{path}[{self._counts[path]}]"
        return path

    def _go_on(self, open_key: tuple[str, int, int], line: str, number: int) -> tuple[str, int, int] | None:
        path, depth, element = open_key
        if depth == 1 and line.lstrip()[:1] not in {"", "#", "]", "}"}:
            self._lines.setdefault(f"{path}[{element}]", number)
            element += 1
        depth += _depth(line)
        return (path, depth, element) if depth > 0 else None


def _parts(written: str) -> list[str]:
    return [found["basic"] or found["literal"] or found["bare"] or "" for found in _PART.finditer(written)]


def _joined(written: str) -> str:
    return ".".join(_parts(written))


def _depth(text: str) -> int:
    """Returns how many brackets more are opened than closed, outside of texts and comments."""
    bare = re.sub(r'"(?:[^"\\]|\\.)*"|\'[^\']*\'', "", text).partition("#")[0]
    return sum(bare.count(each) for each in "[{") - sum(bare.count(each) for each in "]}")
