"""How long a tick takes that stops others for a large gang on a full cluster.

    python -m benchmarks.preemption [--nodes 1000] [--gang 200] [--gangs-a-node 1] [--rounds 50]

A cluster of 8-GPU nodes is full of burst gangs of ten tenants that have run for an hour. Then a gang of `--gang` nodes
that fits its tenant's guarantee is planned for, again and again from the same state: the plan stops as many gangs and
keeps their GPUs. Beside it, the same tick with preemption off. Times are of the processor. The garbage collector is
kept out as the daemon keeps it: what lives long is frozen, and it waits while a plan is made (one full collection
would cost as much as the plan).
"""

import argparse
import gc
import os
import platform
import time
from collections.abc import Callable
from dataclasses import replace

from scheduler.core.cycle import plan
from scheduler.core.events import AccountChanged, AllocationMade, AllocationStarted, JobSubmitted, NodeChanged
from scheduler.core.model import (
    GPU_UNITS,
    Account,
    AccountId,
    Allocation,
    AllocationId,
    Booking,
    Device,
    DeviceId,
    GpuClass,
    Grant,
    Job,
    JobId,
    Node,
    NodeName,
    PoolName,
    Shape,
    UserName,
)
from scheduler.core.plan import Plan
from scheduler.core.policy import Policy, Preemption
from scheduler.core.state import ClusterState
from scheduler.planner import collector_paused

CLASS = GpuClass("H100")
NOW_MS = 1_790_000_000_000
HOUR_MS = 3_600_000


def build(nodes: int, gangs: int, gang: int) -> ClusterState:
    """Returns a full cluster with the large gang waiting; `gangs` run on each node."""
    state = ClusterState()
    state.apply(AccountChanged(NOW_MS, Account(AccountId("vip"), guarantee={CLASS: gang * 8})))
    size = 8 // gangs
    shape = Shape((CLASS,), 1, size * GPU_UNITS)
    for index in range(nodes):
        name = NodeName(f"node-{index:05d}")
        devices = tuple(Device(DeviceId(f"{name}/{slot}"), name, CLASS) for slot in range(8))
        state.apply(NodeChanged(NOW_MS, Node(name, CLASS, PoolName("main"), 96_000, 1 << 40), devices))
        for part in range(gangs):
            number = JobId(index * gangs + part + 1)
            account = AccountId(f"tenant{number % 10}/project")
            job = Job(number, account, UserName("mei"), shape, 24 * HOUR_MS, NOW_MS - 2 * HOUR_MS)
            state.apply(JobSubmitted(NOW_MS, job))
            held = tuple(device.id for device in devices[part * size : (part + 1) * size])
            grant = Grant(name, held, GPU_UNITS, 12_000 * size, (1 << 37) * size)
            made = Allocation(
                AllocationId(f"{number:08d}"),
                number,
                account,
                UserName("mei"),
                CLASS,
                Booking.BURST,
                (grant,),
                NOW_MS - HOUR_MS - number,
                1,
                24 * HOUR_MS,
            )
            state.apply(AllocationMade(made.decided_ms, made))
            state.apply(AllocationStarted(made.decided_ms, made.id))
    wanted = Shape((CLASS,), gang, 8 * GPU_UNITS)
    asking = Job(JobId(nodes * 8 + 1), AccountId("vip/p"), UserName("ana"), wanted, HOUR_MS, NOW_MS)
    state.apply(JobSubmitted(NOW_MS, asking))
    return state


def measure(rounds: int, tick: Callable[[], Plan]) -> tuple[str, Plan]:
    """Returns median, nearest-rank 99th percentile and maximum in milliseconds of processor time, and the last plan."""
    times: list[float] = []
    made = tick()
    for _ in range(rounds):
        with collector_paused():
            began = time.process_time()
            made = tick()
            seconds = time.process_time() - began
        times.append(1000 * seconds)
    times.sort()
    p99 = times[max(0, -(-len(times) * 99 // 100) - 1)]
    return f"p50 {times[len(times) // 2]:7.2f} ms  p99 {p99:7.2f} ms  max {times[-1]:7.2f} ms", made


def main() -> None:
    """Prints the set-up and the times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--gang", type=int, default=200, help="nodes of the large gang")
    parser.add_argument("--gangs-a-node", type=int, default=1, choices=(1, 2, 4, 8))
    parser.add_argument("--rounds", type=int, default=50)
    args = parser.parse_args()
    state = build(args.nodes, args.gangs_a_node, args.gang)
    print(f"CPython {platform.python_version()}, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}")
    running = args.nodes * args.gangs_a_node
    print(f"{args.nodes:,} nodes of 8 GPUs, full of {running:,} burst gangs; {args.gang} nodes wanted")
    policy = Policy()
    gc.collect()
    gc.freeze()
    said, made = measure(args.rounds, lambda: plan(state, policy, NOW_MS))
    assert len(made.claims) == 1, "the gang gets its guarantee"
    assert len(made.stops) == args.gang * args.gangs_a_node, "and no more are stopped than must be"
    print(f"  stops {len(made.stops):5,} gangs for it   {said}")
    off = replace(policy, preemption=Preemption.OFF)
    print(f"  preemption off            {measure(args.rounds, lambda: plan(state, off, NOW_MS))[0]}")


if __name__ == "__main__":
    main()
