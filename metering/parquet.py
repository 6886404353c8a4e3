"""An export's CSV files as Parquet, for those who read them with a data frame. The CSV stays what is billed by.

Cells keep their value: whole numbers are int64, amounts and quantities exact decimals (never a float), UTC times
timestamps, everything else the text that the CSV has; an empty cell is null. Row groups are written one after the
other, so memory does not grow with the file. The library, `pyarrow`, is an extra (docs/decisions/0008-parquet.md) and
is imported here only.

    Exception
      NoParquet     the extra is not installed
"""

import csv
from collections.abc import Iterator, Sequence
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from metering.focus_columns import VERSIONS, Kind
from metering.manifest import MANIFEST, Manifest

GROUP_ROWS = 50_000
"""Rows in memory at a time: some tens of megabytes of usage lines."""
SUFFIX = ".parquet"
_WHOLE = frozenset(
    (
        *("segment_no", "gpu_count", "duration_ms", "gpu_ms", "line_count", "payable_minor_units"),
        *("gpu_units", "state_unit_ms", "billed_unit_ms", "state_ms", "capacity_unit_ms", "capacity_ms"),
        *("x_SegmentNo", "x_GpuCount", "x_NodeCount"),
    )
)
_EXACT = frozenset(
    (
        *("gpu_share", "gpu_hours", "unit_price", "list_amount", "discount_amount", "amount", "tax_rate"),
        *("gpu_util_avg_pct", "energy_kwh", "list_price", "effective_amount"),
        *("subtotal", "tax", "rounding", "payable", "x_GpuUtilAvg", "x_EnergyKwh"),
    )
)
_INSTANT = frozenset({"start_utc", "x_SegmentStart", "x_SegmentEnd"})
_FOCUS_KINDS = {column.name: column.kind for columns in VERSIONS.values() for column in columns}
DECIMAL_DIGITS, DECIMAL_PLACES = 38, 21
"""Of decimals: FOCUS's list cost is an exact product of 12 places and 9; 17 digits before the point hold any amount."""


class NoParquet(Exception):
    """Parquet was asked for, and what writes it is not installed."""


def require_parquet() -> None:
    """Raises NoParquet where nothing can write it: to be asked before an export is made."""
    _library()


def write_parquet(folder: Path) -> list[str]:
    """Writes each CSV file of an export as Parquet beside it and returns the new names, in order.

    Raises NoParquet, and ValueError for a folder that is no export or a cell that is not what its column says.
    """
    arrow, parquet = _library()
    manifest = Manifest.from_json((folder / MANIFEST).read_text(encoding="utf-8"))
    names = []
    for file in manifest.files:
        name = Path(file.name).stem + SUFFIX
        _convert(folder / file.name, folder / name, arrow, parquet)
        names.append(name)
    return names


def read_rows(path: Path) -> Iterator[dict[str, object]]:
    """Yields the rows of a Parquet file by column, a row group at a time. Raises NoParquet."""
    _, parquet = _library()
    file = parquet.ParquetFile(path)
    for group in range(file.num_row_groups):
        yield from file.read_row_group(group).to_pylist()


def value_of(column: str, cell: str) -> object:
    """Returns what a cell of a column is in Parquet. Raises ValueError for a cell that is not what its column says."""
    if not cell:
        return None
    match kind_of(column):
        case Kind.DECIMAL:
            return _decimal(cell)
        case Kind.DATETIME:
            return datetime.fromisoformat(cell)
        case None:
            return int(cell)
    return cell


def kind_of(column: str) -> Kind | None:
    """Returns what a column holds: a decimal, a time, text; None for whole numbers."""
    if column in _WHOLE:
        return None
    if column in _EXACT:
        return Kind.DECIMAL
    if column in _INSTANT:
        return Kind.DATETIME
    kind = _FOCUS_KINDS.get(column, Kind.TEXT)
    return kind if kind in {Kind.DECIMAL, Kind.DATETIME} else Kind.TEXT


def _decimal(cell: str) -> Decimal:
    try:
        return Decimal(cell)
    except ArithmeticError:
        raise ValueError(f"{cell!r} is no decimal") from None


def _convert(source: Path, target: Path, arrow: Any, parquet: Any) -> None:
    with source.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, strict=True)
        columns = next(reader, [])
        schema = arrow.schema([arrow.field(column, _type_of(column, arrow)) for column in columns])
        with parquet.ParquetWriter(target, schema, compression="zstd") as writer:
            for rows in _groups(reader):
                arrays = [
                    arrow.array([value_of(column, row[place]) for row in rows], schema.field(column).type)
                    for place, column in enumerate(columns)
                ]
                writer.write_table(arrow.Table.from_arrays(arrays, schema=schema))


def _groups(reader: Iterator[list[str]]) -> Iterator[Sequence[list[str]]]:
    rows: list[list[str]] = []
    for row in reader:
        rows.append(row)
        if len(rows) == GROUP_ROWS:
            yield rows
            rows = []
    if rows:
        yield rows


def _type_of(column: str, arrow: Any) -> Any:  # Any: the library has no types
    match kind_of(column):
        case None:
            return arrow.int64()
        case Kind.DECIMAL:
            return arrow.decimal128(DECIMAL_DIGITS, DECIMAL_PLACES)
        case Kind.DATETIME:
            return arrow.timestamp("ms", tz="UTC")
    return arrow.string()


def _library() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise NoParquet(f"Parquet needs the extra `parquet`, which is not installed here: {error}") from error
    return pyarrow, pyarrow.parquet
