"""How many jobs a second one daemon takes and completes: durable SQLite, HTTP, the simulated executor.

    python -m benchmarks.throughput [--jobs 2000] [--connections 16] [--pending 10000]

Prints its set-up, then: submissions/s over HTTP, submit to complete for no-op jobs, and the time of `turnstile queue`
with many jobs pending. The peer's figures beside ours were measured once on the same kind of machine (Slurm 22.05 on
two cores: 215 to 390 submissions/s, 48 to 66 jobs/s from submit to complete).
"""

import argparse
import asyncio
import os
import subprocess
import sys
import time
from statistics import median

from benchmarks.daemon import Connection, Running, daemon, machine, set_up

SIM = "64x8xH200"
FULL_SIM = "1x1xH200"
ON_THEIR_WAY = "state=pending&state=starting&state=running&state=stopping"
LONGEST_SECONDS = 300.0


def job(seconds: int = 60) -> dict[str, object]:
    """Returns a one-GPU job that does nothing."""
    return {
        "project": "bench/main",
        "name": "no-op",
        "command": ["true"],
        "gpu_classes": ["H200"],
        "gpus_per_node": 1,
        "time_limit_seconds": seconds,
    }


async def submit(running: Running, jobs: int, connections: int, hold: bool = False) -> float:
    """Submits `jobs` over so many connections at once; returns the seconds until the last was answered."""
    opened = [await Connection.open(running) for _ in range(connections)]
    left = iter(range(jobs))

    async def work(connection: Connection) -> None:
        for _ in left:
            status, answer = await connection.request("POST", "/v1/jobs", {**job(), "hold": hold})
            assert status == 201, answer

    began = time.perf_counter()
    await asyncio.gather(*(work(connection) for connection in opened))
    elapsed = time.perf_counter() - began
    for connection in opened:
        connection.close()
    return elapsed


async def complete(running: Running, jobs: int, connections: int) -> tuple[float, float]:
    """Submits and waits for the last end; returns both times in seconds."""
    began = time.perf_counter()
    submitted = await submit(running, jobs, connections)
    connection = await Connection.open(running)
    while True:
        _, answer = await connection.request("GET", f"/v1/jobs?{ON_THEIR_WAY}&limit=1")
        if not answer["items"]:
            break
        if time.perf_counter() - began > LONGEST_SECONDS:
            raise SystemExit(f"the jobs did not end in {LONGEST_SECONDS:.0f} s")
        await asyncio.sleep(0.01)
    connection.close()
    return submitted, time.perf_counter() - began


def queue_seconds(running: Running, arguments: list[str]) -> tuple[float, float]:
    """Returns the median wall time and CPU time, in seconds, of `turnstile queue` with these arguments."""
    environment = {
        **os.environ,
        "TURNSTILE_URL": f"http://127.0.0.1:{running.port}",
        "TURNSTILE_TOKEN_FILE": str(running.folder / "operator.token"),
    }
    walls, cpus = [], []
    for _ in range(7):
        before = os.times()
        began = time.perf_counter()
        command = [sys.executable, "-m", "cli.main", "queue", *arguments]
        subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
        walls.append(time.perf_counter() - began)
        after = os.times()
        cpus.append(after.children_user + after.children_system - before.children_user - before.children_system)
    return median(walls), median(cpus)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--pending", type=int, default=10_000)
    given = parser.parse_args()
    print(f"set-up: {machine()}; SQLite (WAL, synchronous=FULL)")
    print(f"        {given.connections} connections; the client runs on the same cores")
    with daemon("simulated", SIM) as running:
        asyncio.run(set_up(running))
        asyncio.run(complete(running, 50, given.connections))
        submitted, completed = asyncio.run(complete(running, given.jobs, given.connections))
        print(f"submit over HTTP            {given.jobs / submitted:8.0f} jobs/s   (Slurm 22.05: 215 to 390)")
        print(f"submit to complete, no-op   {given.jobs / completed:8.0f} jobs/s   (Slurm 22.05: 48 to 66)")
        held = asyncio.run(submit(running, given.pending, given.connections, hold=True))
        print(f"submit, held                {given.pending / held:8.0f} jobs/s")
    with daemon("simulated", FULL_SIM) as running:
        asyncio.run(set_up(running))
        asyncio.run(submit(running, given.pending, given.connections, hold=True))
        for arguments in ([], ["-o", "json"]):
            wall, cpu = queue_seconds(running, arguments)
            words = " ".join(["turnstile queue", *arguments])
            note = f"with {given.pending} pending; {cpu * 1000:.0f} ms of client CPU"
            print(f"{words:27} {wall * 1000:8.0f} ms       {note}")


if __name__ == "__main__":
    main()
