"""On which line of a TOML file a problem stands, by the field that a server names: `contracts[1].prices.H100.burst`.

Of what has no line of its own (a value inside an inline table or an array), the nearest part around it has one.
"""

from cli.tomllines import Path, lines_of


class Places:
    """The lines of a document's fields, counted from 1."""

    def __init__(self, text: str) -> None:
        self._lines: dict[str, int] = {}
        for path, line in lines_of(text).items():
            field = _field(path)
            self._lines.setdefault(field, line)
            if field.endswith("]"):  # an array of tables begins where its first table does
                self._lines.setdefault(field[: field.rfind("[")], line)

    def line(self, field: str) -> int | None:
        """Returns the line of a field, or of the nearest part around it; None where the file has no part of it."""
        while field:
            if field in self._lines:
                return self._lines[field]
            field = field[: max(field.rfind("."), field.rfind("["), 0)]
        return None


def _field(path: Path) -> str:
    field = ""
    for step in path:
        field += f"[{step}]" if isinstance(step, int) else f".{step}" if field else step
    return field
