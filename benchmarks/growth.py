"""How a tick's cost grows: with the jobs that wait, with the nodes, and with what changes hands; one of them at a time.

    python -m benchmarks.growth [--ticks 50] [--nodes 400] [--pending 20000]

The centre is that of benchmarks/tick.py, with 50 tenants of two projects. Times are of the processor, for the plan
alone; `a start` is the median divided by the starts of a tick.
"""

import argparse
import gc
import os
import time
from dataclasses import replace

from benchmarks.tick import Centre, Set, milliseconds
from scheduler.core.cycle import plan
from scheduler.planner import collector_paused


def measure(size: Set, ticks: int) -> None:
    """Prints a line for one centre."""
    centre = Centre(size)
    centre.fill()
    gc.collect()
    gc.freeze()
    cpu: list[float] = []
    starts = 0
    for _ in range(ticks):
        centre.turn_over()
        began = time.process_time()
        with collector_paused():
            made = plan(centre.state, centre.policy, centre.now_ms)
        cpu.append(time.process_time() - began)
        centre.apply(made)
        starts += len(made.starts)
    gc.unfreeze()
    a_start = 1_000_000 * sorted(cpu)[ticks // 2] / max(1, starts / ticks)
    print(
        f"  {size.nodes:6,} nodes {size.pending:9,} pending {100 * size.turnover:5.1f} %  {milliseconds(cpu)}"
        f"  {starts / ticks:6.1f} starts  {a_start:6.0f} µs a start",
        flush=True,
    )


def main() -> None:
    """Prints three tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ticks", type=int, default=50)
    parser.add_argument("--nodes", type=int, default=400, help="nodes of 8 GPUs, for the smallest centre")
    parser.add_argument("--pending", type=int, default=20_000)
    given = parser.parse_args()
    base = Set(given.nodes, 50, 2, 20, given.pending, 0.01, 0.5, 7)
    print(f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}")
    for name, sizes in (
        ("pending jobs", [replace(base, pending=base.pending * times) for times in (1, 2, 4)]),
        ("nodes", [replace(base, nodes=base.nodes * times) for times in (1, 2, 4)]),
        ("turnover", [replace(base, turnover=base.turnover * times) for times in (1, 2, 4)]),
    ):
        print(f"growing with {name}:")
        for size in sizes:
            measure(size, given.ticks)


if __name__ == "__main__":
    main()
