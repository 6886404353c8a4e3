"""Core statements compiled once: the hot paths' way to the driver.

SQLAlchemy prepares parameters name by name for each row, which costs more than SQLite's insert. A `Prepared` asks the
compiler once for the SQL and the order of its parameters, and hands the driver whole rows. Values are what drivers take
as they are: strings, integers, booleans, None, and JSON as text (`json_text`).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

Values = Mapping[str, object]

json_text: Callable[[object], str] = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
"""Returns a JSON value as the text that a JSON column takes."""


class Prepared:
    """A statement whose parameters are `names`: columns to write, and the bind names of its WHERE."""

    def __init__(self, statement: "sa.Insert | sa.Update | sa.Delete | sa.Select[Any]", names: Sequence[str]) -> None:
        self._statement = statement
        self._names = tuple(names)
        self._compiled: dict[str, tuple[str, Callable[[Values], Any] | None]] = {}

    def many(self, connection: Connection, rows: Sequence[Values]) -> int:
        """Runs once for each row, each naming every parameter; returns how many table rows it touched."""
        if not rows:
            return 0
        sql, order = self._compile(connection)
        parameters = list(rows) if order is None else [order(row) for row in rows]
        return connection.exec_driver_sql(sql, parameters).rowcount

    def first(self, connection: Connection, values: Values) -> Any:  # Any: a driver's row
        """Returns the first row of a query as the driver gives it, None if there is none."""
        sql, order = self._compile(connection)
        return connection.exec_driver_sql(sql, dict(values) if order is None else order(values)).first()

    def _compile(self, connection: Connection) -> tuple[str, Callable[[Values], Any] | None]:
        dialect = connection.dialect
        found = self._compiled.get(dialect.name)
        if found is None:
            keys = None if isinstance(self._statement, sa.Select) else [*self._columns()]
            compiled = self._statement.compile(dialect=dialect, column_keys=keys)
            positions = getattr(compiled, "positiontup", None)
            wanted = self._names if positions is None else positions
            assert set(wanted) == set(self._names), f"the statement takes {sorted(wanted)}, not {sorted(self._names)}"
            found = (str(compiled), None if positions is None else _getter(positions))
            self._compiled[dialect.name] = found
        return found

    def _columns(self) -> list[str]:
        assert isinstance(self._statement, sa.Insert | sa.Update | sa.Delete), "queries set no columns"
        return [name for name in self._names if name in self._statement.table.c]


def _getter(names: Sequence[str]) -> Callable[[Values], Any]:
    if len(names) == 1:
        return lambda values: (values[names[0]],)
    return itemgetter(*names)
