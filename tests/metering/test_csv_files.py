"""Rows of CSV that are joined are what the csv module writes."""

import csv
import io
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from metering.csv_files import CsvRows

CELLS = st.text(st.sampled_from("ab,\"'\n\r é\x00"), max_size=4)
TABLES = st.integers(1, 5).flatmap(lambda width: st.lists(st.lists(CELLS, min_size=width, max_size=width), min_size=1))


def written(rows: Sequence[Sequence[str]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def joined(rows: Sequence[Sequence[str]]) -> bytes:
    lines = CsvRows(rows[0])
    for row in rows:
        lines.row(row)
    return lines.take().data


@given(TABLES)
def test_joined_rows_are_those_of_the_csv_module_whatever_came_before_them(rows: list[list[str]]) -> None:
    assert joined(rows) == written(rows)


def test_cells_that_need_quotes_in_some_rows_have_them_in_those_only() -> None:
    rows = [["a", "b"], ["a,b", "c"], ['{"a": 1, "b": 2}', ""], ["plain", 'a "b"'], ["x\ry", "z"], ["", ""]]
    assert joined(rows) == written(rows)
