"""Measures a scrape of `/metrics` on a real daemon: how long it takes, how large it is, and what it does to the ticks.

    python -m benchmarks.scrape [--nodes 1250] [--tenants 200] [--scrapes 10] [--seconds 20]

A daemon with simulated GPUs and jobs; every tenant has an array of one-GPU jobs, so that the centre is full and
`--pending` jobs wait. While jobs are submitted, fifty a second, ticks are read off the daemon's own
histogram over two equal times: without scrapes, and with one each second, beside requests of `GET /healthz` timed the
same way. Prometheus scrapes each 15 s; once a second is far more than it would.
"""

import argparse
import asyncio
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

from benchmarks.daemon import Connection, Running, daemon, machine

PROMISE_SECONDS = 1.0
APART_SECONDS = 10.0
"""Between two scrapes that are timed: a rendering that took long is shared for as long again, and none may be."""
_BUCKET = re.compile(r'^turnstile_schedule_cycle_seconds_bucket\{le="([^"]+)"\} ([0-9.e+]+)$', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Scrape:
    """One scrape: seconds, bytes and series."""

    seconds: float
    body: str

    @property
    def series(self) -> int:
        """Lines that are no comments."""
        return sum(1 for line in self.body.splitlines() if line and not line.startswith("#"))


def scrape(running: Running) -> Scrape:
    """Asks once, as Prometheus does."""
    began = time.perf_counter()
    with urlopen(f"http://127.0.0.1:{running.port}/metrics", timeout=60) as answer:
        body = answer.read().decode()
    return Scrape(time.perf_counter() - began, body)


def cpu_seconds(running: Running) -> float:
    """Returns what the daemon has used of the cores so far: what a scrape costs, whatever else the machine does."""
    fields = Path(f"/proc/{running.process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def until_said(running: Running, text: str, what: str) -> None:
    """Waits until `/metrics` says so. Raises SystemExit when it does not."""
    until = time.monotonic() + 300
    while text not in scrape(running).body:
        if time.monotonic() > until:
            raise SystemExit(f"not within five minutes: {what}")
        time.sleep(1)


async def fill(running: Running, tenants: int, gpus: int, pending: int) -> None:
    """Makes tenants that fill the centre with arrays, and `pending` more jobs that wait."""
    connection = await Connection.open(running)
    each = -(-gpus // tenants)
    waiting = -(-pending // tenants)
    for number in range(tenants):
        tenant = f"tenant{number:03}"
        for path in (tenant, f"{tenant}/main"):
            status, answer = await connection.request("PUT", f"/v1/admin/accounts/{path}", {"display_name": path})
            assert status in {200, 201}, answer
        for count, command in ((each, ["sleep", "86400"]), (waiting, ["sleep", "1"])):
            if count:
                body = {
                    "project": f"{tenant}/main", "command": command, "gpus_per_node": 1, "array": f"0-{count - 1}",
                    "time_limit_seconds": 90000,
                }  # fmt: skip
                status, answer = await connection.request("POST", "/v1/jobs", body)
                assert status == 201, answer
    connection.close()


async def churn(running: Running, tenants: int, until: float) -> int:
    """Submits jobs, each of which makes the planner look again; returns how many."""
    connection = await Connection.open(running)
    turns = 0
    while time.monotonic() < until:
        tenant = f"tenant{turns % tenants:03}/main"
        body = {"project": tenant, "command": ["sleep", "1"], "gpus_per_node": 1, "time_limit_seconds": 60}
        await connection.request("POST", "/v1/jobs", body)
        turns += 1
        await asyncio.sleep(0.02)
    connection.close()
    return turns


def ticks(before: str, after: str) -> tuple[int, dict[str, int]]:
    """Returns how many ticks there were between two scrapes, and how many of them within each bound."""
    then, now = dict(_BUCKET.findall(before)), dict(_BUCKET.findall(after))
    within = {edge: round(float(count) - float(then.get(edge, 0))) for edge, count in now.items()}
    return within["+Inf"], within


def told(name: str, before: str, after: str, waits: Sequence[float]) -> None:
    """Prints what a time was like."""
    count, within = ticks(before, after)
    slow = 100 * (count - within["0.05"]) / max(1, count)
    p99 = next((edge for edge, number in within.items() if number >= 0.99 * count), "+Inf")
    ranked = sorted(waits)
    wait = f"/healthz p50 {1000 * ranked[len(ranked) // 2]:.0f} ms, max {1000 * ranked[-1]:.0f} ms"
    print(f"{name:18}{count:6} ticks, p99 ≤ {p99} s, {slow:.1f} % above 50 ms; {wait}")


async def measured(running: Running, tenants: int, seconds: float, every: float | None) -> list[float]:
    """Lets the centre work for so long, scraped or not; returns how long other requests took meanwhile."""
    until = time.monotonic() + seconds
    waits: list[float] = []

    async def ask() -> None:
        connection = await Connection.open(running)
        while time.monotonic() < until:
            began = time.perf_counter()
            await connection.request("GET", "/healthz")
            waits.append(time.perf_counter() - began)
            await asyncio.sleep(0.05)
        connection.close()

    async def scraping() -> None:
        while every is not None and time.monotonic() < until:
            await asyncio.to_thread(scrape, running)
            await asyncio.sleep(every)

    await asyncio.gather(churn(running, tenants, until), ask(), scraping())
    return waits


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=1250)
    parser.add_argument("--tenants", type=int, default=200)
    parser.add_argument("--pending", type=int, default=10_000)
    parser.add_argument("--scrapes", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=20.0)
    given = parser.parse_args()
    gpus = given.nodes * 8
    print(f"set-up: {machine()}; {given.nodes} nodes, {gpus} GPUs, {given.tenants} tenants, {given.pending} pending")
    with daemon("simulated", f"{given.nodes}x8xH100") as running:
        until_said(running, f'state="free"}} {float(gpus)}', "every GPU is known")
        asyncio.run(fill(running, given.tenants, gpus, given.pending))
        until_said(running, f'state="allocated"}} {float(gpus)}', "the centre is full")
        found: list[Scrape] = []
        cpu: list[float] = []
        for _ in range(given.scrapes):
            time.sleep(APART_SECONDS)
            before_cpu = cpu_seconds(running)
            found.append(scrape(running))
            cpu.append(cpu_seconds(running) - before_cpu)
        ranked = sorted(each.seconds for each in found)
        size = len(found[-1].body.encode())
        print(
            f"scrape            p50 {ranked[len(ranked) // 2]:.3f} s, p99 {ranked[-1]:.3f} s of {len(ranked)}, "
            f"{size / 2**20:.1f} MiB, {found[-1].series} series, "
            f"{sorted(cpu)[len(cpu) // 2]:.2f} s of CPU   (promise: under {PROMISE_SECONDS:g} s)"
        )
        for name, every in (("not scraped", None), ("scraped each 1 s", 1.0)):
            before = scrape(running).body
            waits = asyncio.run(measured(running, given.tenants, given.seconds, every))
            told(name, before, scrape(running).body, waits)


if __name__ == "__main__":
    main()
