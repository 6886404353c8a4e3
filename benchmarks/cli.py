"""How long a person waits for each command that reads, with a hundred thousand jobs pending.

    python -m benchmarks.cli [--jobs 100000] [--runs 9] [--limit-ms 300]

Starts a daemon with simulated nodes, fills its queue, and types each command as a process of its own, several times.
Prints the median and the slowest of each, and the median of the command's own CPU time, which a busy machine changes
little; beside them the client's own floor, `turnstile version --help`, which asks nobody. Ends with status 1 when a
median is beyond the limit.
"""

import argparse
import asyncio
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.daemon import Connection, Running, daemon, machine, set_up

COMMANDS = (
    ("queue",),
    ("queue", "-o", "json"),
    ("queue", "-u", "me"),
    ("queue", "-s", "running"),
    ("show", "JOB"),
    ("why", "JOB"),
    ("why", "FIRST"),
    ("history", "--since", "1h"),
    ("history", "JOB"),
    ("report", "FIRST"),
    ("gpus",),
    ("nodes",),
    ("quota",),
    ("budget",),
    ("usage",),
    ("whoami",),
    ("quote", "-g", "H100:8", "-t", "1h", "-A", "bench/main"),
)
FLOOR = ("version", "--help")
ARRAY = 5_000
"""Elements of one submission: twenty fill the queue."""


async def fill(running: Running, jobs: int) -> tuple[int, int]:
    """Submits jobs of two minutes to a node that runs few of them; returns the first's and the last's number."""
    connection = await Connection.open(running)
    first = last = 0
    try:
        for begin in range(0, jobs, ARRAY):
            size = min(ARRAY, jobs - begin)
            spec = {
                "command": ["sleep", "3600"],
                "project": "bench/main",
                "gpus_per_node": 8,
                "nodes": 1 + (begin // ARRAY) % 2,
                "time_limit_seconds": 3600,
                "array": f"0-{size - 1}",
            }
            status, answer = await connection.request("POST", "/v1/jobs", spec)
            if status != 201:
                raise SystemExit(f"a submission was refused: {answer}")
            last = int(str(answer["items"][0]["array_id"]))
            first = first or last
    finally:
        connection.close()
    return first, last


def took_ms(words: Sequence[str], environment: dict[str, str]) -> tuple[float, float]:
    """Returns how long one command took as a process of its own, and its CPU time. Raises SystemExit if it failed."""
    began, cpu_began = time.perf_counter(), _children_cpu_seconds()
    done = subprocess.run(
        [sys.executable, "-m", "cli.main", *words], env=environment, capture_output=True, text=True, check=False
    )
    elapsed_ms = (time.perf_counter() - began) * 1000
    if done.returncode:
        raise SystemExit(f"turnstile {' '.join(words)} ended with {done.returncode}: {done.stderr}")
    return elapsed_ms, (_children_cpu_seconds() - cpu_began) * 1000


def _children_cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> int:
    """Measures and prints; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--limit-ms", type=float, default=300.0)
    asked = parser.parse_args()
    print(f"{machine()}; {asked.jobs} jobs pending; {asked.runs} runs each, ms from start to exit of the command")
    with daemon("simulated", "4x8xH100") as running:
        asyncio.run(set_up(running))
        first, last = asyncio.run(fill(running, asked.jobs))
        time.sleep(5.0)  # the planner takes them in
        environment = {
            **os.environ,
            "TURNSTILE_URL": f"http://127.0.0.1:{running.port}",
            "TURNSTILE_TOKEN_FILE": str(Path(running.folder) / "operator.token"),
        }
        named = {"FIRST": f"{first}_0", "JOB": f"{last}_7"}
        is_slow = False
        print(f"{'command':44} {'median':>8} {'slowest':>8} {'CPU':>8}")
        for words in (FLOOR, *COMMANDS):
            typed = [named.get(word, word) for word in words]
            times = [took_ms(typed, environment) for _ in range(asked.runs)]
            median, cpu = (statistics.median(each) for each in zip(*times, strict=True))
            is_over = median > asked.limit_ms
            is_slow |= is_over
            note = "  over the limit" if is_over else ""
            print(f"{' '.join(words):44} {median:8.0f} {max(times)[0]:8.0f} {cpu:8.0f}{note}")
    return 1 if is_slow else 0


if __name__ == "__main__":
    sys.exit(main())
