"""The kinds of columns that tables are made of, here and in metering.

Times are integer UTC milliseconds (`*_ms`) and 64 bits wide. JSON columns hold core values as `codec` writes them.
"""

from typing import Any

import sqlalchemy as sa
from sqlmodel import Field, SQLModel

BIG_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
"""A 64-bit key that SQLite takes for its rowid."""

JsonObject = dict[str, Any]  # Any: JSON as the driver gives it; codec.py is the only reader


def column(kind: "sa.types.TypeEngine[Any]", *, nullable: bool = False, **named: Any) -> Any:  # as Field() is typed
    """Returns a field of a type that SQLModel does not choose by itself; `named` goes to `Field`."""
    return Field(sa_type=kind, nullable=nullable, **named)


def big(*, nullable: bool = False, primary_key: bool = False) -> Any:
    """Returns a field of 64 bits."""
    return column(sa.BigInteger(), nullable=nullable, primary_key=primary_key)


def json() -> Any:
    """Returns a field that holds a JSON document."""
    return column(sa.JSON())


def table_of(model: type[SQLModel]) -> sa.Table:
    """Returns a model's Core table, which hot paths use."""
    return model.metadata.tables[str(model.__tablename__)]
