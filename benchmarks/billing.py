"""How long a month takes to bill: rate, export and prove the ledger of a centre of 3,000 GPUs.

    python -m benchmarks.billing [--gpus 3000] [--intervals 2200000] [--processes N] [--database FILE]

Writes a ledger as the daemon would have, hashes and all, straight into a new SQLite file (or takes the one named, if
it is there), then measures in turn: the export of the month (usage lines, FOCUS, totals, capacity), the proof of the
ledger, the proof of the export's files, closing the month (files of all and of each tenant, made, proved and sealed)
and the proof of the ledger with its closed month. Each is a process that starts others (`--processes`), and is told
with the largest one's peak of resident memory.
"""

import argparse
import json
import multiprocessing
import os
import platform
import resource
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from heapq import merge
from itertools import islice, pairwise
from pathlib import Path
from random import Random
from typing import TypeVar
from zoneinfo import ZoneInfo

from ulid import ULID

from cli.daemon.migrate import upgrade
from metering.closing import PeriodTerms, close_period
from metering.core.tariff import PriceBook, parse_price_book
from metering.export import export_usage
from metering.focus import FocusTerms
from metering.ledger import publish
from metering.together import reading_ledger
from metering.verify import verify, verify_export
from scheduler.clock import ManualClock
from scheduler.core.model import GPU_UNITS, AccountId, AllocationId, Booking, DeviceId, GpuClass, JobId, Phase
from scheduler.core.occupancy import GENESIS_HASH, Evidence, Interval, OccupancyState, Occupant, interval_hash
from scheduler.core.policy import Policy
from scheduler.store.database import Database
from scheduler.store.readers import usable_processes, working
from scheduler.store.write import Command, Writer

T = TypeVar("T")

ZONE = ZoneInfo("Asia/Shanghai")
START_MS = 1_793_462_400_000  # 2026-11-01 00:00 in Shanghai
MONTH_MS = 30 * 86_400_000
WINDOW_MS = 72 * 3_600_000
GPUS_A_NODE = 8
GANGS = (1, 2, 4, 8)  # each on a quarter of the nodes
TENANTS, PROJECTS = 20, 5
BATCH = 20_000
CLASS = GpuClass("H100")
PRICES = """
version = "2026-11"
currency = "CNY"
effective = "2026-10-01T00:00:00+08:00"
tax_rate = 0.06
[prices.H100]
guaranteed = 12.50
burst = 10.00
spot = 6.00
"""


@dataclass(frozen=True, slots=True)
class Piece:
    """A closed interval before it has its place in the chain."""

    to_ms: int
    device: DeviceId
    from_ms: int
    occupant: Occupant


def devices_of(node: int) -> list[DeviceId]:
    """Returns a node's GPUs."""
    return [DeviceId(f"GPU-{node:04x}0000-0000-4000-8000-{place:012x}") for place in range(GPUS_A_NODE)]


def jobs_of(group: int, devices: list[DeviceId], cycle_ms: int, made: list[tuple[object, ...]]) -> Iterator[Piece]:
    """Yields the month of a group of GPUs that always run gangs together, by end; notes the allocations in `made`."""
    chance = Random(group)
    at_ms, number = START_MS, 0
    idle = Occupant(OccupancyState.IDLE, GPU_UNITS)
    while True:
        gap_ms, lasts_ms = chance.randrange(1_000, 600_000), int(cycle_ms * chance.uniform(0.3, 1.7))
        edges = [at_ms, at_ms + gap_ms]
        edges += [edges[1] + 20_000, edges[1] + 20_000 + lasts_ms, edges[1] + 25_000 + lasts_ms]
        if edges[-1] >= START_MS + MONTH_MS:
            return
        account = AccountId(f"tenant-{chance.randrange(TENANTS):02d}/project-{chance.randrange(PROJECTS)}")
        allocation = allocation_of(edges[1], group, number)
        job = JobId(group * 10_000 + number + 1)
        booking = chance.choice(tuple(Booking))
        made.append((allocation, job, account, booking.value, json.dumps(grant(devices)), *edges[1:3], edges[4]))
        phases = (None, Phase.STARTING, Phase.RUNNING, Phase.STOPPING)
        for phase, (from_ms, to_ms) in zip(phases, pairwise(edges), strict=True):
            occupant = idle
            if phase is not None:
                occupant = Occupant(
                    OccupancyState.ALLOCATED, GPU_UNITS, None, phase, account, job, allocation, 1, booking, GPU_UNITS
                )
            for device in devices:
                yield Piece(to_ms, device, from_ms, occupant)
        at_ms, number = edges[-1], number + 1


def allocation_of(decided_ms: int, group: int, number: int) -> AllocationId:
    """Returns an id as the daemon gives them, in the order of decisions; where it takes chance, the group's number."""
    return AllocationId(
        str(ULID.from_bytes(decided_ms.to_bytes(6, "big") + (group << 32 | number).to_bytes(10, "big")))
    )


def grant(devices: list[DeviceId]) -> list[dict[str, object]]:
    """Returns the JSON of a gang's grant on its one node."""
    node = f"node-{int(devices[0][4:8], 16):04d}"
    return [
        {"node": node, "devices": list(devices), "units": GPU_UNITS, "cpu_millicores": 1000, "memory_bytes": 1 << 30}
    ]


def write_ledger(path: Path, gpus: int, intervals: int) -> None:
    """Writes the month's ledger into a new database."""
    upgrade(f"sqlite:///{path}")
    nodes = gpus // GPUS_A_NODE
    cycle_ms = MONTH_MS * 4 * gpus // intervals - 325_000
    with sqlite3.connect(path) as connection:
        triggers = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for name, _ in triggers:
            connection.execute(f'DROP TRIGGER "{name}"')  # each row is proved below; row by row it takes an hour
        _write_centre(connection, nodes)
        made: list[tuple[object, ...]] = []
        groups = [
            [devices[place : place + size] for place in range(0, GPUS_A_NODE, size)]
            for node in range(nodes)
            for devices in [devices_of(node)]
            for size in [GANGS[node % len(GANGS)]]
        ]
        flat = [group for each in groups for group in each]
        streams = [jobs_of(number, group, cycle_ms, made) for number, group in enumerate(flat)]
        ends = _write_chain(connection, merge(*streams, key=lambda piece: (piece.to_ms, piece.device)))
        made.sort()  # by id, which is by time: as they were decided
        _write_allocations(connection, made)
        idle = "INSERT INTO device_cursor (device, lane, gpu_class, since_ms, version, state, units, gpu_eq_units)"
        rows = [
            (device, CLASS, ends.get(device, START_MS), 10**9, GPU_UNITS)
            for node in range(nodes)
            for device in devices_of(node)
        ]
        connection.executemany(f"{idle} VALUES (?, 0, ?, ?, ?, 'idle', ?, 0)", rows)
        for _, sql in triggers:
            connection.execute(sql)
    connection.close()
    database = Database.open(f"sqlite:///{path}")
    with database.write() as opened:
        publish(opened, book(), START_MS)
    database.dispose()


def book() -> PriceBook:
    """Returns the month's prices."""
    return parse_price_book(PRICES)


def _write_centre(connection: sqlite3.Connection, nodes: int) -> None:
    for tenant in range(TENANTS):
        for name in (f"tenant-{tenant:02d}", *(f"tenant-{tenant:02d}/project-{each}" for each in range(PROJECTS))):
            connection.execute(
                'INSERT INTO account (id, display_name, weight, guarantee, "limit", is_suspended, created_ms, terms,'
                " changed_ms) VALUES (?, ?, 1, '{}', '{}', 0, 0, '{}', 0)",
                (name, name.title()),
            )
    for node in range(nodes):
        connection.execute(
            "INSERT INTO node (name, gpu_class, pool, cpu_millicores, memory_bytes, labels, availability, seen_ms)"
            " VALUES (?, ?, 'main', 128000, ?, '{}', 'up', 0)",
            (f"node-{node:04d}", CLASS, 2 << 40),
        )
        for place, device in enumerate(devices_of(node)):
            connection.execute(
                "INSERT INTO device (id, node, position, gpu_class, units, health, is_foreign, first_seen_ms)"
                " VALUES (?, ?, ?, ?, ?, 'ok', 0, ?)",
                (device, f"node-{node:04d}", place, CLASS, GPU_UNITS, START_MS),
            )


def _write_chain(connection: sqlite3.Connection, pieces: Iterator[Piece]) -> dict[DeviceId, int]:
    sequence, previous, ends = 0, GENESIS_HASH, {}
    while batch := list(islice(pieces, BATCH)):
        rows = []
        for piece in batch:
            sequence += 1
            what = piece.occupant
            key = f"{piece.device}/0/{sequence}"
            interval = Interval(
                sequence, piece.device, 0, CLASS, piece.from_ms, piece.to_ms, what, Evidence.NODE, piece.to_ms, key,
                previous, "",
            )  # fmt: skip
            made = interval_hash(previous, interval)
            rows.append(
                (
                    *(sequence, piece.device, 0, CLASS, piece.from_ms, piece.to_ms, what.state.value, what.units, None),
                    *(what.phase and what.phase.value, what.holder, what.job, what.allocation, what.segment),
                    *(what.booking and what.booking.value, what.gpu_eq_units, "node", piece.to_ms, key, previous, made),
                )
            )
            previous, ends[piece.device] = made, piece.to_ms
        connection.executemany("INSERT INTO occupancy VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)", rows)
    connection.execute("DELETE FROM ledger_head")
    connection.execute("INSERT INTO ledger_head VALUES (1, ?, ?)", (sequence, previous))
    return ends


def _write_allocations(connection: sqlite3.Connection, made: list[tuple[object, ...]]) -> None:
    connection.executemany(
        "INSERT INTO allocation (id, job_id, account, user, gpu_class, booking, phase, segment, grants, time_limit_ms,"
        " attempt, decided_ms, started_ms, ended_ms, exit_code)"
        " VALUES (?1, ?2, ?3, 'mei', 'H100', ?4, 'stopping', 1, ?5, 86400000, 1, ?6, ?7, ?8, 0)",
        made,
    )
    connection.executemany(
        "INSERT INTO job (id, account, tenant, user, name, state, gpu_class, nodes, gpu_units, shape, wanted, priority,"
        " time_limit_ms, submitted_ms, is_backing_off, attempt, retries_left, launch, labels, started_ms, ended_ms)"
        " VALUES (?2, ?3, substr(?3, 1, 9), 'mei', 'train-' || ?2, 'completed', 'H100', 1, 12600, '{}', 'auto', 0,"
        " 86400000, ?6, 0, 1, 0, '{}', '{\"team\": \"vision\"}', ?7, ?8)",
        made,
    )


def export_month(url: str, folder: str, processes: int) -> str:
    """Exports the month; returns what it holds."""
    span = (START_MS, START_MS + MONTH_MS)
    with reading_ledger(Database.open(url), processes) as readers:
        manifest = export_usage(
            readers.source, Path(folder), *span, ZONE, known_until_ms=START_MS + MONTH_MS, readers=readers
        )
    return f"{manifest.sums['usage_lines']} lines, {sum(file.rows for file in manifest.files)} rows of CSV"


def prove_ledger(url: str, _: str, processes: int) -> str:
    """Proves the ledger."""
    with reading_ledger(Database.open(url), processes) as readers:
        report = verify(readers.source, START_MS + MONTH_MS, readers=readers)
    assert report.is_proved, report.findings[:5]
    return f"{report.counted['rows']} intervals, {report.counted['allocations']} allocations"


def prove_export(_: str, folder: str, processes: int) -> str:
    """Proves the export's files by themselves."""
    with working(processes) as readers:
        report = verify_export(Path(folder), readers=readers)
    assert report.is_proved, report.findings[:5]
    return f"{report.counted['lines']} rows of CSV"


class Desk:
    """Carries out what closing writes, without a daemon."""

    def __init__(self, url: str) -> None:
        self.database = Database.open(url)
        self.clock = ManualClock(START_MS + MONTH_MS + WINDOW_MS)
        self._writer = Writer(self.database, self.clock, Policy(), None)

    def carry_out(self, command: Command[T]) -> Future[T]:
        """Carries out a command at once."""
        done: Future[T] = Future()
        done.set_result(self._writer.run(command)[0])
        return done


def close_month(url: str, _: str, processes: int) -> str:
    """Closes the month."""
    terms = PeriodTerms(ZONE.key, WINDOW_MS, FocusTerms(), processes)
    closed = close_period(Desk(url), terms, "2026-11", "benchmark")
    assert closed.seal is not None, "a closed period is sealed"
    return f"{len(closed.seal.files)} sealed files"


def prove_closed(url: str, _: str, processes: int) -> str:
    """Proves the ledger with its closed month, which is rated again and held against what is sealed."""
    with reading_ledger(Database.open(url), processes) as readers:
        report = verify(readers.source, START_MS + MONTH_MS + WINDOW_MS, readers=readers)
    assert report.is_proved, report.findings[:5]
    return f"{report.counted['sealed_files']} sealed files"


STEPS = {
    "export": export_month,
    "prove ledger": prove_ledger,
    "prove export": prove_export,
    "close": close_month,
    "prove closed": prove_closed,
}
RATED = ("export", "prove ledger", "prove export")
"""The steps that are promised to take 60 s of a month of 2.2 million intervals."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What a step did and took: wall time, the processor's time of its processes, and the largest's peak of memory."""

    said: str
    wall_seconds: float
    processor_seconds: float
    peak_mib: int


def measured(step: str, url: str, folder: str, processes: int) -> Measured:
    """Runs a step in this process, and in those that it starts."""
    began, used = time.perf_counter(), _processor_seconds()
    said = STEPS[step](url, folder, processes)
    peak_mib = max(resource.getrusage(who).ru_maxrss for who in _WHO) // 1024
    return Measured(said, time.perf_counter() - began, _processor_seconds() - used, peak_mib)


_WHO = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)


def _processor_seconds() -> float:
    usages = [resource.getrusage(who) for who in _WHO]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def told(name: str, wall_seconds: float, processor_seconds: float, rest: str = "") -> None:
    """Prints a line."""
    print(f"{name:24}  {wall_seconds:7.1f} s  {processor_seconds:7.1f} s of processor  {rest}".rstrip(), flush=True)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=3_000)
    parser.add_argument("--intervals", type=int, default=2_200_000)
    parser.add_argument("--processes", type=int, default=usable_processes(), help="that work at once: one a core")
    parser.add_argument("--database", type=Path, help="kept; written if it is not there")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        path = wanted.database or Path(scratch) / "month.db"
        if not path.exists():
            began = time.perf_counter()
            write_ledger(path, wanted.gpus, wanted.intervals)
            print(f"written in {time.perf_counter() - began:.1f} s")
        url, folder = f"sqlite:///{path}", str(Path(scratch) / "export")
        # A process each, so that each has its own peak of memory.
        fresh = multiprocessing.get_context("spawn")
        found: dict[str, Measured] = {}
        on = f"{wanted.processes} processes on {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
        print(f"{on}, CPython {platform.python_version()}")
        for step in STEPS:
            with fresh.Pool(1) as pool:
                each = found[step] = pool.apply(measured, (step, url, folder, wanted.processes))
            told(step, each.wall_seconds, each.processor_seconds, f"peak {each.peak_mib:4} MiB  {each.said}")
        for name, steps in (("rate, export and verify", RATED), ("together", tuple(STEPS))):
            of = [found[step] for step in steps]
            told(name, sum(each.wall_seconds for each in of), sum(each.processor_seconds for each in of))
        print(f"load {os.getloadavg()[0]:.1f} at the end")


if __name__ == "__main__":
    main()
