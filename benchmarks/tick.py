"""Measures the planner's tick on a full cluster: what a tick costs as jobs end and others take their place.

    python -m benchmarks.tick [--nodes 1250] [--tenants 200] [--pending 100000] [--ticks 200] [--grow 4]

Each tick ends a part of what runs (`--turnover`), submits as many new jobs, applies the events, plans, and applies the
plan. Timed are the plan alone and the events; `CPU` is what the plan took of a core, whatever else the machine did.
With `--grow N` it goes on with N times the pending jobs of the same shapes, to show what waiting jobs cost. After the
set-up the garbage collector is told to leave alone what lives long (`gc.freeze`), unless `--no-freeze`: a full
collection over 100,000 jobs takes longer than a tick. As in the daemon, it does not run inside a plan. Everything is
drawn from one seed.
"""

import argparse
import gc
import platform
import random
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass

from scheduler.core.cycle import plan
from scheduler.core.events import (
    AccountChanged,
    AllocationEnded,
    AllocationMade,
    AllocationPromoted,
    AllocationStarted,
    AllocationStopping,
    ClaimEnded,
    ClaimMade,
    JobSubmitted,
    NodeChanged,
    PreemptionWeighed,
    ReservationsPlanned,
)
from scheduler.core.model import (
    GPU_UNITS,
    Account,
    AccountId,
    Allocation,
    AllocationId,
    BookingWanted,
    Device,
    DeviceId,
    EndReason,
    GpuClass,
    Job,
    JobId,
    Node,
    NodeName,
    PoolName,
    Shape,
    UserName,
)
from scheduler.core.outcome import after_end
from scheduler.core.plan import Plan
from scheduler.core.policy import Policy
from scheduler.core.state import ClusterState
from scheduler.planner import collector_paused

CLASS = GpuClass("H100")
GPUS_PER_NODE = 8
TICK_MS = 1000
SIZES = (
    *((1, gpus) for gpus in (1, 1, 1, 1, 1, 2, 2, 3, 4, 4, 5, 6, 7, 8, 8)),
    *((2, 8), (4, 8), (8, 8), (2, 4), (4, 2)),
)


@dataclass(frozen=True, slots=True)
class Set:
    """The sizes of one run."""

    nodes: int
    tenants: int
    projects: int
    shapes: int
    pending: int
    turnover: float
    guaranteed: float
    seed: int


class Centre:
    """A full cluster with a backlog."""

    def __init__(self, size: Set) -> None:
        self.size = size
        self.policy = Policy()
        self.state = ClusterState(self.policy.debt_half_life_ms)
        self.now_ms = 1_790_000_000_000
        self._random = random.Random(size.seed)
        self._next_job = 1
        self._live: list[AllocationId] = []
        self._leaving: list[AllocationId] = []
        self.event_seconds = 0.0
        self._shapes = [
            Shape((CLASS,), nodes, gpus * GPU_UNITS, constraints=(("rack", "any"),) if index >= len(SIZES) else ())
            for index in range(size.shapes)
            for nodes, gpus in (SIZES[index % len(SIZES)],)
        ]
        self._projects = [
            AccountId(f"tenant{tenant:03}/project{project}")
            for tenant in range(size.tenants)
            for project in range(size.projects)
        ]
        self._build()
        self.submit(size.pending)

    def _build(self) -> None:
        for index in range(self.size.nodes):
            name = NodeName(f"node{index:05}")
            devices = tuple(Device(DeviceId(f"GPU-{index}-{slot}"), name, CLASS) for slot in range(GPUS_PER_NODE))
            node = Node(name, CLASS, PoolName("main"), 96_000, 1 << 40, {"rack": "any"})
            self.state.apply(NodeChanged(self.now_ms, node, devices))
        bought = int(self.size.nodes * GPUS_PER_NODE * self.size.guaranteed / self.size.tenants)
        for tenant in range(self.size.tenants):
            terms = {CLASS: bought} if bought else {}
            account = Account(AccountId(f"tenant{tenant:03}"), 1 + tenant % 4, terms)
            self.state.apply(AccountChanged(self.now_ms, account))

    def submit(self, count: int) -> None:
        """Adds pending jobs, over all projects and shapes alike."""
        for _ in range(count):
            job = Job(
                JobId(self._next_job),
                self._random.choice(self._projects),
                UserName("mei"),
                self._random.choice(self._shapes),
                time_limit_ms=3_600_000,
                submitted_ms=self.now_ms - self._random.randrange(3_600_000),
                wanted=BookingWanted.SPOT if self._random.random() < 0.05 else BookingWanted.AUTO,
            )
            self._next_job += 1
            self.state.apply(JobSubmitted(self.now_ms, job))

    def turn_over(self) -> None:
        """Ends some gangs, until the part of all GPUs is free that the turnover says, and submits as many jobs."""
        self.now_ms += TICK_MS
        freed, ended = 0, 0
        wanted = self.size.nodes * GPUS_PER_NODE * self.size.turnover * GPU_UNITS
        began = time.perf_counter()
        for allocation_id in self._leaving:
            leaving = self.state.allocations.get(allocation_id)
            if leaving is not None:
                again, _ = after_end(self.state.jobs[leaving.job], EndReason.PREEMPTED, self.now_ms, self.policy)
                self.state.apply(AllocationEnded(self.now_ms, allocation_id, EndReason.PREEMPTED, again))
        self._leaving.clear()
        while freed < wanted and self._live:
            place = self._random.randrange(len(self._live))
            self._live[place], self._live[-1] = self._live[-1], self._live[place]
            picked = self.state.allocations.get(self._live.pop())
            if picked is None:
                continue  # it made room for another
            allocation = picked
            after, _ = after_end(self.state.jobs[allocation.job], None, self.now_ms, self.policy)
            self.state.apply(AllocationEnded(self.now_ms, allocation.id, None, after))
            freed += allocation.total_units
            ended += 1
        self.submit(ended)
        self.event_seconds = time.perf_counter() - began

    def apply(self, made: Plan) -> None:
        """Takes in all that the plan decided; what it stops ends before the next tick."""
        self.state.apply(PreemptionWeighed(self.now_ms, made.weighed))
        for lapse in made.lapses:
            self.state.apply(ClaimEnded(self.now_ms, lapse.job))
        for stop in made.stops:
            self.state.apply(AllocationStopping(self.now_ms, stop.allocation, stop.reason))
            self._leaving.append(stop.allocation)
        for claim in made.claims:
            self.state.apply(ClaimMade(self.now_ms, claim))
        self.state.apply(ReservationsPlanned(self.now_ms, made.reservations, not made.is_partial))
        for promotion in made.promotions:
            segment = self.state.allocations[promotion.allocation].segment + 1
            event = AllocationPromoted(self.now_ms, promotion.allocation, promotion.booking, segment)
            self.state.apply(event)
        for start in made.starts:
            job = self.state.jobs[start.job]
            allocation = Allocation(
                AllocationId(f"{job.id}.{job.attempt + 1}"),
                job.id,
                job.account,
                job.user,
                start.gpu_class,
                start.booking,
                start.grants,
                self.now_ms,
                job.attempt + 1,
                job.time_limit_ms,
            )
            self.state.apply(AllocationMade(self.now_ms, allocation))
            self.state.apply(AllocationStarted(self.now_ms, allocation.id))
            self._live.append(allocation.id)

    def fill(self) -> int:
        """Plans until nothing more starts; returns how many jobs started."""
        count = 0
        while True:
            made = plan(self.state, self.policy, self.now_ms)
            self.apply(made)
            count += len(made.starts)
            if made.is_idle or not made.starts:
                return count


def milliseconds(seconds: Sequence[float]) -> str:
    """Returns median, 99th percentile (nearest rank) and maximum."""
    ranked = sorted(seconds)
    p99 = ranked[max(0, -(-len(ranked) * 99 // 100) - 1)]
    return f"p50 {ranked[len(ranked) // 2] * 1000:7.2f} ms  p99 {p99 * 1000:7.2f} ms  max {ranked[-1] * 1000:7.2f} ms"


def measure(centre: Centre, ticks: int) -> None:
    """Prints what ticks cost as the cluster turns over."""
    plans: list[float] = []
    cpu: list[float] = []
    events: list[float] = []
    starts = promotions = stops = 0
    for _ in range(ticks):
        centre.turn_over()
        began, began_cpu = time.perf_counter(), time.process_time()
        with collector_paused():
            made = plan(centre.state, centre.policy, centre.now_ms)
        plans.append(time.perf_counter() - began)
        cpu.append(time.process_time() - began_cpu)
        centre.apply(made)
        events.append(centre.event_seconds)
        starts += len(made.starts)
        stops += len(made.stops)
        promotions += len(made.promotions)
    waiting = sum(len(line) for _, line in centre.state.pending_groups())
    groups = sum(1 for _ in centre.state.pending_groups())
    memory_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{waiting:>9} pending in {groups} groups")
    print(
        f"          a tick: {starts / ticks:.1f} starts, {promotions / ticks:.1f} promotions, {stops / ticks:.1f} stops"
    )
    print(f"          plan    {milliseconds(plans)}")
    print(f"          CPU     {milliseconds(cpu)}")
    print(f"          events  {milliseconds(events)}   memory {memory_mib:.0f} MiB")


def main() -> None:
    """Builds the centre, fills it, and measures at each backlog."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=1250, help="nodes of 8 GPUs")
    parser.add_argument("--tenants", type=int, default=200)
    parser.add_argument("--projects", type=int, default=2, help="a tenant")
    parser.add_argument("--shapes", type=int, default=20)
    parser.add_argument("--pending", type=int, default=100_000)
    parser.add_argument("--turnover", type=float, default=0.01, help="part of the GPUs that changes hands in a tick")
    parser.add_argument("--guaranteed", type=float, default=0.5, help="part of the GPUs that tenants have bought")
    parser.add_argument("--ticks", type=int, default=200)
    parser.add_argument("--grow", type=int, default=1, help="goes on with so many times the pending jobs")
    parser.add_argument("--no-freeze", action="store_true", help="leave the garbage collector as it is")
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    size = Set(
        args.nodes,
        args.tenants,
        args.projects,
        args.shapes,
        args.pending,
        args.turnover,
        args.guaranteed,
        args.seed,
    )
    print(f"{size}\n{platform.python_implementation()} {platform.python_version()}, {platform.machine()}")
    began = time.perf_counter()
    centre = Centre(size)
    print(f"built in {time.perf_counter() - began:.1f} s")
    began = time.perf_counter()
    started = centre.fill()
    print(f"filled with {started} jobs in {time.perf_counter() - began:.2f} s")
    for round_number in range(args.grow):
        if round_number:
            centre.submit(args.pending)
        if not args.no_freeze:
            gc.collect()
            gc.freeze()
        measure(centre, args.ticks)


if __name__ == "__main__":
    main()
