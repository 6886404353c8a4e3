"""What is true of jobs however often their daemon died, told by witnesses that are not the daemon.

The jobs of these tests write a line into one book, the file `book.txt`, when they start and when they end: one append,
so lines never mix, and the order of the lines is the order in which things happened. `Witness` reads the book, the
database and the exported files, and says what contradicts what.
"""

import csv
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

START, END = "start", "end"
_FACTS = "$TURNSTILE_JOB_ID $TURNSTILE_ATTEMPT $TURNSTILE_NODE_RANK $CUDA_VISIBLE_DEVICES $(date +%s%3N)"
_SAY = f'echo "{{}} {_FACTS}" >> "$BOOK"'
GPU_UNITS = 12_600
"""Capacity units of a whole GPU (docs/ledger.md)."""


def short_job(book: Path, seconds: float, code: int = 0, **spec: object) -> dict[str, object]:
    """A job that says when it starts, lasts so long, says that it ends, and ends with `code`."""
    return _spec(book, f"{_SAY.format(START)}; sleep {seconds:g}; {_SAY.format(END)}; exit {code}", **spec)


def long_job(book: Path, **spec: object) -> dict[str, object]:
    """A job that says when it starts and goes on until it is stopped."""
    return _spec(book, f"{_SAY.format(START)}; exec sleep 600", **spec)


def _spec(book: Path, script: str, **spec: object) -> dict[str, object]:
    small = {"gpus_per_node": 1, "time_limit_seconds": 120, "grace_seconds": 5}
    return {"command": ["/bin/sh", "-c", script], "env": {"BOOK": str(book)}, **small, **spec}


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the book."""

    word: str
    job: int
    attempt: int
    rank: int
    devices: tuple[str, ...]
    at_ms: int


def read_book(book: Path) -> list[Line]:
    """Returns the book's lines; each must be whole."""
    lines = []
    for text in book.read_text(encoding="ascii").splitlines() if book.exists() else ():
        word, job, attempt, rank, devices, at_ms = text.split(" ")
        lines.append(Line(word, _id_of(job), int(attempt), int(rank), tuple(devices.split(",")), int(at_ms)))
    return lines


class Witness:
    """Reads a database that nobody writes any more, and a book."""

    def __init__(self, database: Path, book: Path) -> None:
        self.book = read_book(book)
        with closing(sqlite3.connect(database)) as connection:
            connection.row_factory = sqlite3.Row
            self.jobs: dict[int, Mapping[str, Any]] = {
                row["id"]: dict(row) for row in connection.execute("SELECT * FROM job")
            }
            self.allocations = [dict(row) for row in connection.execute("SELECT * FROM allocation ORDER BY id")]
            self.held = [
                dict(row)
                for row in connection.execute(
                    "SELECT device, lane, from_ms, to_ms, allocation_id, phase FROM occupancy WHERE state = 'allocated'"
                    " ORDER BY device, from_ms"
                )
            ]
            self.open = [dict(row) for row in connection.execute("SELECT * FROM device_cursor")]

    def double_starts(self) -> list[tuple[int, int, int]]:
        """Returns (job, attempt, rank) of every process that was started more than once."""
        started = Counter((line.job, line.attempt, line.rank) for line in self.book if line.word == START)
        return [each for each, times in started.items() if times > 1]

    def incomplete_runs(self, jobs: Collection[int]) -> list[tuple[int, int]]:
        """Returns those of (job, node rank) that did not say once that they start and once that they end."""
        said: dict[tuple[int, int], list[str]] = defaultdict(list)
        for line in self.book:
            said[line.job, line.rank].append(line.word)
        return [
            (job, rank) for job in jobs for rank in range(self.jobs[job]["nodes"]) if said[job, rank] != [START, END]
        ]

    def devices_shared_by_processes(self, ended_by_themselves: Collection[int]) -> list[tuple[str, int, int]]:
        """Returns (device, job, other job) where the other's process began on a device before the job's had ended.

        Only jobs that end by themselves say when; those that are killed say nothing.
        """
        holder: dict[str, int] = {}
        found = []
        for line in self.book:
            for device in line.devices:
                if line.word == END:
                    del holder[device]
                elif device in holder:
                    found.append((device, holder[device], line.job))
                elif line.job in ended_by_themselves:
                    holder[device] = line.job
        return found

    def devices_shared_in_ledger(self) -> list[tuple[str, str, str]]:
        """Returns (device, allocation, other allocation) where the ledger has two holders of a GPU at one time."""
        found = []
        for before, after in zip(self.held, self.held[1:], strict=False):
            is_same = before["device"] == after["device"]
            if is_same and after["from_ms"] < before["to_ms"] and before["allocation_id"] != after["allocation_id"]:
                found.append((before["device"], before["allocation_id"], after["allocation_id"]))
        return found

    def gpu_ms_running(self) -> int:
        """Returns whole GPUs × milliseconds from start to end, by the ledger's intervals.

        What was stopped before it started never ran: its devices were held, and nobody pays for that.
        """
        began = {row["id"] for row in self.allocations if row["started_ms"] is not None}
        return sum(
            row["to_ms"] - row["from_ms"]
            for row in self.held
            if row["phase"] in {"running", "stopping"} and row["allocation_id"] in began
        )


def exported(folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields (file, row) of an export's CSV files."""
    for path in sorted(folder.glob("*.csv")):
        with path.open(encoding="utf-8-sig", newline="") as file:
            for row in csv.DictReader(file):
                yield path.name.partition("_20")[0], row


def assert_export_adds_up(folder: Path, gpu_ms: int) -> None:
    """Capacity is wholly accounted for, device by device and day by day; usage is what was held, all three ways."""
    parts: dict[tuple[str, str], int] = defaultdict(int)
    whole: dict[tuple[str, str], int] = {}
    billed_unit_ms = usage_gpu_ms = 0
    for name, row in exported(folder):
        if name == "capacity.csv":
            place = (row["device_id"], row["day"])
            parts[place] += int(row["state_unit_ms"])
            whole[place] = int(row["capacity_unit_ms"])
            billed_unit_ms += int(row["billed_unit_ms"])
        elif name == "usage_lines" and row["line_type"] == "usage":
            usage_gpu_ms += int(row["gpu_ms"])
    assert whole, "the export has devices"
    assert dict(parts) == whole
    assert usage_gpu_ms == gpu_ms
    assert billed_unit_ms == gpu_ms * GPU_UNITS


def _id_of(reference: str) -> int:
    """The id of a job's number; the elements of our arrays count from 0, and their ids are consecutive."""
    array, _, index = reference.partition("_")
    return int(array) + int(index or 0)
