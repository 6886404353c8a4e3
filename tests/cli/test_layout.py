"""Columns, CSV cells, durations and node lists, as text."""

import csv
import io
import re
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from cli import layout, phrases
from cli.layout import Column

COLUMNS = (
    Column("ID", lambda row: str(row["id"]), is_right=True),
    Column("NAME", lambda row: str(row["name"])),
    Column("END", lambda row: None),
)


def test_columns_line_up_with_wide_characters_and_nothing_is_cut() -> None:
    rows = [{"id": 1, "name": "评测-sweep"}, {"id": 10482, "name": "x" * 300}]
    lines = layout.lines(COLUMNS, rows, has_header=True, is_coloured=False)
    assert {layout.width(line[: line.rindex("-")]) for line in lines[1:]} == {7 + 300 + 2}
    assert "x" * 300 in lines[2]


def test_no_line_ends_in_a_space_and_a_list_without_header_is_rows_alone() -> None:
    rows = [{"id": 1, "name": "a"}, {"id": 22, "name": "bb"}]
    assert layout.lines(COLUMNS[:2], rows, has_header=False, is_coloured=False) == [" 1  a", "22  bb"]


@given(st.text(max_size=60))
def test_what_a_terminal_would_obey_never_reaches_it(name: str) -> None:
    (line,) = layout.lines(COLUMNS, [{"id": 1, "name": name}], has_header=False, is_coloured=False)
    assert line.isprintable()


@given(st.text(max_size=30) | st.integers() | st.none() | st.booleans() | st.lists(st.integers(), max_size=3))
def test_a_csv_cell_is_never_a_formula_and_reads_back(value: object) -> None:
    cell = layout.csv_cell(value)
    if isinstance(value, str):
        assert cell[:1] not in {"=", "+", "-", "@", "\t", "\r"}
        assert layout.visible(value) in {cell, cell.removeprefix("'")}
    page = io.StringIO()
    csv.writer(page, lineterminator="\n").writerow([cell])
    assert next(csv.reader(io.StringIO(page.getvalue(), newline=""))) in ([cell], [])


def test_nodes_are_folded_as_slurm_writes_them() -> None:
    names = ["gpu-014", "gpu-011", "gpu-012", "gpu-013", "gpu-020", "login", "gpu-9"]
    assert phrases.nodes(names) == "gpu-9,gpu-[011-014,020],login"


@given(st.sets(st.integers(0, 120), max_size=40), st.sampled_from(["gpu-", "n", ""]))
def test_folded_nodes_unfold_to_the_same_names(numbers: set[int], prefix: str) -> None:
    names = {f"{prefix}{n:03d}" for n in numbers}
    assert _unfolded(phrases.nodes(names)) == names


def _unfolded(text: str) -> set[str]:
    found = set()
    for part in re.findall(r"[^,\[]+(?:\[[^\]]*\])?|\[[^\]]*\]", text):
        prefix, _, inside = part.partition("[")
        if not inside:
            found.add(part)
        for run in inside.rstrip("]").split(",") if inside else []:
            first, _, last = run.partition("-")
            found |= {f"{prefix}{n:0{len(first)}d}" for n in range(int(first), int(last or first) + 1)}
    return found


def test_durations_are_told_in_two_units_and_time_used_in_hours_and_minutes() -> None:
    assert [phrases.spoken(s) for s in (8, 725, 3840, 93_600)] == ["8s", "12m 05s", "1h 04m", "1d 02h"]
    assert [phrases.elapsed(s) for s in (41, 2280, 11_527)] == ["0:00:41", "0:38", "3:12"]
    assert [phrases.compact(s) for s in (0, 43_200, 5400, 90_061)] == ["0s", "12h", "1h30m", "1d1h1m1s"]


def test_money_keeps_the_digits_of_the_server() -> None:
    assert phrases.money({"amount": "1920.00", "currency": "USD"}) == "1,920.00 USD"
    assert phrases.money({"amount": "-0.123456", "currency": "CNY"}) == "-0.123456 CNY"
    assert phrases.money(None) is None


def test_what_is_used_or_costs_something_is_never_told_as_nothing() -> None:
    shown = {
        "1812.412": "1,812.4",
        "0": "0.0",
        "0.06": "0.1",
        "0.04": "0.04",
        "0.000123456": "0.00012",
        "-0.02": "-0.02",
    }
    assert {digits: phrases.quantity(Decimal(digits), 1) for digits in shown} == shown
    assert phrases.quantity(Decimal("0.004999"), 2) == "0.005"
    for exponent in range(10):
        for digit in range(1, 10):
            told = phrases.quantity(Decimal(digit).scaleb(-exponent), 1)
            assert Decimal(told), told
