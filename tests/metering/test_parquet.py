"""Parquet copies hold what the CSV holds, value by value; the CSV stays what is billed by."""

import builtins
import csv
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from metering import parquet
from metering.manifest import MANIFEST
from metering.parquet import NoParquet, read_rows, value_of, write_parquet
from metering.statements import write_statements
from metering.verify_files import verify_export
from scheduler.core.model import GPU_UNITS, Booking, DeviceId, EndReason
from tests.metering.builders import book
from tests.metering.centre import Centre

A0, A1, B0 = (DeviceId(f"GPU-{place}") for place in ("a-0", "a-1", "b-0"))


@pytest.fixture
def folder(centre: Centre, tmp_path: Path) -> Path:
    """An export with tax, a share, Chinese names, use without a price, and a name that a spreadsheet would run."""
    centre.publish(book("v1", 0, prices={"burst": "17.333333", "spot": "5.999999"}, tax="0.06"))
    centre.run(A0, B0, hours=2, name="=1+1")
    centre.run(A0, hours=15, reason=EndReason.PREEMPTED, booking=Booking.SPOT, units=GPU_UNITS // 7)
    centre.run(A1, hours=1, account="globex/nlp", booking=Booking.GUARANTEED)
    centre.export(tmp_path / "out")
    return tmp_path / "out"


def text_of(value: object, cell: str) -> str:
    """A value as the CSV would write it, with the decimals that the cell has."""
    match value:
        case None:
            return ""
        case Decimal():
            _, _, places = cell.partition(".")
            return f"{value:.{len(places)}f}"
        case datetime():
            told = value.astimezone(UTC)
            has_millis = "." in cell
            return f"{told:%Y-%m-%dT%H:%M:%S}{f'.{told.microsecond // 1000:03d}' if has_millis else ''}Z"
    return str(value)


def test_every_cell_of_every_file_is_in_its_parquet_copy(folder: Path) -> None:
    names = write_parquet(folder)
    assert len(names) == 4
    cells = 0
    for path in sorted(folder.glob("*.csv")):
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.DictReader(stream))
        copies = list(read_rows(path.with_suffix(".parquet")))
        assert [list(copy) for copy in copies] == [list(row) for row in rows]
        for row, copy in zip(rows, copies, strict=True):
            assert {column: text_of(copy[column], cell) for column, cell in row.items()} == row
            cells += len(row)
    assert cells > 500


def test_amounts_are_exact_decimals_and_times_are_times(folder: Path) -> None:
    write_parquet(folder)
    (path,) = folder.glob("usage_lines_*.parquet")
    schema = pyarrow.parquet.read_schema(path)
    assert schema.field("amount").type == pyarrow.decimal128(38, 21)
    assert schema.field("gpu_ms").type == pyarrow.int64()
    assert schema.field("start_utc").type == pyarrow.timestamp("ms", tz="UTC")
    assert not any(pyarrow.types.is_floating(field.type) for field in schema)


def test_an_export_is_copied_to_the_same_bytes_twice(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "twin")
    for name in write_parquet(folder):
        write_parquet(tmp_path / "twin") if not (tmp_path / "twin" / name).exists() else None
        assert (folder / name).read_bytes() == (tmp_path / "twin" / name).read_bytes()


def test_memory_holds_one_row_group_however_long_the_file_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "GROUP_ROWS", 2)
    write_parquet(folder)
    (path,) = folder.glob("usage_lines_*.parquet")
    file = pyarrow.parquet.ParquetFile(path)
    assert file.num_row_groups == -(-file.metadata.num_rows // 2) > 1
    assert all(file.metadata.row_group(i).num_rows <= 2 for i in range(file.num_row_groups))


def test_verification_knows_copies_and_statements_and_finds_what_was_changed(folder: Path) -> None:
    names = write_parquet(folder)
    statements = write_statements(folder)
    report = verify_export(folder)
    assert report.is_proved, report.findings
    assert (report.counted["parquet_files"], report.counted["statements"]) == (4, 2)
    for name, change in (
        (statements[0], lambda data: data.replace(b"acme", b"ACME", 1)),
        (names[0], lambda data: data[:-20]),
        ("statement_2026-10_nobody_r0.html", lambda _: b"hello"),
        ("else.parquet", lambda _: b"hello"),
        ("notes.txt", lambda _: b"hello"),
    ):
        _with(folder / name, change)
        found = verify_export(folder).findings
        assert [finding.where for finding in found] == [name], found
        _with(folder / name, None)


def test_a_value_that_differs_from_its_cell_is_found_by_row_and_column(folder: Path) -> None:
    write_parquet(folder)
    (path,) = folder.glob("usage_lines_*.parquet")
    table = pyarrow.parquet.read_table(path)
    place = table.schema.get_field_index("amount")
    amounts = table.column("amount").to_pylist()
    changed = [*amounts[:1], (amounts[1] or Decimal(0)) + Decimal("0.000001"), *amounts[2:]]
    table = table.set_column(place, "amount", pyarrow.array(changed, table.schema.field("amount").type))
    pyarrow.parquet.write_table(table, path)
    (finding,) = verify_export(folder).findings
    assert finding.where == f"{path.name} row 2 amount"


def test_without_the_library_it_is_said_what_to_install_and_nothing_is_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError("No module named 'pyarrow'")
        return real(name, *rest)

    before = sorted(path.name for path in folder.iterdir())
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(NoParquet, match="extra `parquet`"):
        write_parquet(folder)
    assert sorted(path.name for path in folder.iterdir()) == before


@pytest.mark.parametrize(("column", "cell"), [("amount", "twelve"), ("gpu_ms", "1.5"), ("start_utc", "noon")])
def test_a_cell_that_is_not_what_its_column_says_is_refused(column: str, cell: str) -> None:
    with pytest.raises(ValueError, match=cell.replace(".", r"\.")):
        value_of(column, cell)


_KEPT: dict[Path, bytes | None] = {}


def _with(path: Path, change: Callable[[bytes], bytes] | None) -> None:
    """Changes a file; None puts it back as it was."""
    assert path.name != MANIFEST
    if change is not None:
        _KEPT[path] = path.read_bytes() if path.exists() else None
        path.write_bytes(change(_KEPT[path] or b""))
        return
    before = _KEPT.pop(path)
    path.unlink() if before is None else path.write_bytes(before)
