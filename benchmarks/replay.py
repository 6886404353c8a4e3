"""How many jobs a second a replay of public traces plays, under the default policy and under textbooks'.

    python -m benchmarks.replay [philly|hpc2n|lublin …] [--traces DIR] [--first N] [--schedules DIR]

Prints, for each trace and policy, jobs per second of processor time (the aim is 20,000), ticks, what share of the time
the planner took, the mean wait and the memory. `--schedules` writes each run's schedule with its SHA-256: two versions
that decide alike have the same. The exit status is 1 where the aim is missed.
"""

import argparse
import hashlib
import os
import platform
import resource
import sys
import time
from functools import partial
from pathlib import Path

from benchmarks.playing import load, waits_of
from scheduler.core.policy import Backfill, Policy, Preemption, QueueOrder
from scheduler.replay import Replay
from scheduler.whatif import write_schedule

AIM_JOBS_PER_SECOND = 20_000
FILES = {
    "philly": "philly-2017-10.csv.gz",
    "hpc2n": "HPC2N-2002-first3k.swf.gz",
    "lublin": "lublin-256.swf.gz",
}
STILL = partial(Policy, preemption=Preemption.OFF)
POLICIES = {
    "default": Policy(),
    "fair, nothing stopped": STILL(),
    "fifo, easy": STILL(order=QueueOrder.FIFO, backfill=Backfill.EASY_BEFORE),
    "fifo, no backfill": STILL(order=QueueOrder.FIFO, backfill=Backfill.NONE),
}


def measure(name: str, trace: Path, first: int | None, schedules: Path | None) -> int:
    """Plays a trace under every policy; prints a line for each, and returns how many miss the aim."""
    inventory, jobs = load(name, trace)
    jobs = jobs[:first]
    gpus = sum(len(each.devices) for each in inventory)
    print(f"{name}: {len(jobs):,} jobs on {len(inventory)} nodes, {gpus:,} GPUs or processors")
    missed = 0
    for words, policy in POLICIES.items():
        began = time.process_time()
        replay = Replay(inventory, jobs, policy).run()
        seconds = time.process_time() - began
        rate = len(jobs) / seconds
        missed += rate < AIM_JOBS_PER_SECOND
        planner = sum(replay.tick_seconds) / replay.wall_seconds
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"  {words:22} {rate:7,.0f} jobs/s  {seconds:7.2f} s  {len(replay.tick_seconds):7,} ticks, {planner:4.0%}"
            f" of the time  mean wait {waits_of(replay).mean:9,.1f} s  {memory:6,.0f} MiB at most so far",
            flush=True,
        )
        if schedules is not None:
            schedules.mkdir(parents=True, exist_ok=True)
            path = schedules / f"{name}-{words.replace(', ', '-').replace(' ', '-')}.csv"
            write_schedule(replay, path)
            print(f"    {hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}")
    return missed


def main() -> None:
    """Plays the traces named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*FILES, []])
    parser.add_argument("--traces", type=Path, default=Path("traces"), help="the folder with the traces' files")
    parser.add_argument("--first", type=int, help="only so many jobs of each")
    parser.add_argument("--schedules", type=Path, help="a folder for the schedules")
    given = parser.parse_args()
    print(f"CPython {platform.python_version()}, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}")
    missed = sum(
        measure(name, given.traces / FILES[name], given.first, given.schedules) for name in given.names or FILES
    )
    print(f"aim: {AIM_JOBS_PER_SECOND:,} jobs/s; missed by {missed}")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
