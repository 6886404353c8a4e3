"""Runs a trace through the scheduler's core and takes the figures of the run: what the yardsticks share."""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from statistics import fmean

from benchmarks import traces
from scheduler.core.model import Account, OrderWeights
from scheduler.core.policy import Policy
from scheduler.executor import NodeInventory
from scheduler.replay import Replay
from scheduler.scenario import TraceJob, read_cluster, read_jobs


def load(kind: str, trace: Path, nodes: int = 160) -> tuple[tuple[NodeInventory, ...], tuple[TraceJob, ...]]:
    """Returns a trace as the simulation's own files have it."""
    with tempfile.TemporaryDirectory() as folder:
        traces.write(*traces.convert(kind, trace, nodes, None), Path(folder))
        inventory = read_cluster(Path(folder) / "cluster.toml")
        return inventory, read_jobs(Path(folder) / "jobs.csv", [inventory[0].node.gpu_class])


def play(
    inventory: Sequence[NodeInventory],
    jobs: Sequence[TraceJob],
    policy: Policy,
    restart_cost_ms: int = 0,
    accounts: Sequence[Account] = (),
) -> Replay:
    """Returns a finished run, and prints its policy and how fast it was in processor time."""
    print(f"  policy: {described(policy)}")
    began = time.process_time()
    replay = Replay(inventory, jobs, policy, restart_cost_ms, accounts).run()
    seconds = time.process_time() - began
    found = waits_of(replay)
    waits = f"waits {found.mean:,.0f} / {found.p99:,.0f} / {found.longest:,.0f} s"
    speed = f"{len(jobs) / seconds:,.0f} jobs/s of processor time, {len(replay.tick_seconds):,} ticks"
    print(f"          {waits}, {replay.totals.preemptions:,} stops; {speed}", flush=True)
    return replay


def described(policy: Policy) -> str:
    """Returns the options that differ from the default policy."""
    plain = Policy()
    changed = [each.name for each in fields(Policy) if getattr(policy, each.name) != getattr(plain, each.name)]
    return ", ".join(f"{name} {getattr(policy, name)}" for name in changed) or "default"


@dataclass(frozen=True, slots=True)
class Waits:
    """How long jobs waited in seconds, and their bounded slowdown."""

    mean: float
    p99: float
    longest: float
    slowdown: float
    worst: float
    """The worst tenant's mean bounded slowdown."""


def waits_of(replay: Replay) -> Waits:
    """Returns the figures of a run."""
    report = replay.report()
    waits, slowdowns, tenants = report["wait_seconds"], report["bounded_slowdown"], report["per_tenant"]
    assert isinstance(waits, dict)
    assert isinstance(slowdowns, dict)
    assert isinstance(tenants, list)
    worst = max(tenant["mean_bounded_slowdown"] for tenant in tenants)
    return Waits(waits["mean"], waits["p99"], waits["max"], slowdowns["mean"], worst)


def delay_of(replay: Replay) -> float:
    """Returns the mean of what jobs took beyond their work, in seconds: waiting, time stopped, and starting again."""
    done = [(run, run.end_ms) for run in replay.runs if run.end_ms is not None]
    return fmean((end_ms - run.trace.submit_ms - run.trace.duration_ms) / 1000 for run, end_ms in done)


def ordered(jobs: Sequence[TraceJob], weights: OrderWeights) -> tuple[Account, ...]:
    """Returns the projects of a trace with an order of their own."""
    limit, service, slowdown = weights
    return tuple(
        Account(each, limit_weight=limit, service_weight=service, slowdown_weight=slowdown)
        for each in sorted({job.account for job in jobs})
    )


def goes_on(jobs: Sequence[TraceJob]) -> list[TraceJob]:
    """Returns the jobs as they are if each goes on where it was stopped."""
    return [replace(job, checkpoint_ms=0) for job in jobs]
