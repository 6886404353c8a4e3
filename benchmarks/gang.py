"""How long it takes to place one gang, by cluster size and rule.

    python -m benchmarks.gang [--nodes 2500] [--rounds 200]

A cluster of 8-GPU nodes is filled to nine tenths with jobs of 1 to 8 GPUs, then a gang is placed and taken, and given
back, again and again, so that every round meets indexes that have changed. Times are of the processor.
"""

import argparse
import os
import random
import resource
import time
from collections.abc import Callable

from benchmarks.tick import milliseconds
from scheduler.core.capacity import Capacity
from scheduler.core.fragmentation import Fragments, Mix
from scheduler.core.model import GPU_UNITS, Device, DeviceId, GpuClass, Grant, Node, NodeName, PoolName, Shape
from scheduler.core.placement import place, place_by, place_near
from scheduler.core.topology import Domains

CLASS, POOL = GpuClass("H100"), PoolName("main")
Placed = tuple[Grant, ...] | None


def build(nodes: int) -> Capacity:
    """Returns a cluster of nodes in racks of 16, nine tenths full."""
    capacity, generator = Capacity(), random.Random(1)
    for index in range(nodes):
        name = NodeName(f"node-{index:05d}")
        labels = {"rack": f"r{index // 16:04d}", "spine": f"s{index // 256:03d}"}
        node = Node(name, CLASS, POOL, 96_000, 8 * 128 << 30, labels)
        capacity.set_node(node, tuple(Device(DeviceId(f"{name}/{slot}"), name, CLASS) for slot in range(8)))
    while capacity.pools[CLASS, POOL].free_gpus > nodes * 8 // 10:
        for grant in place(capacity, Shape((CLASS,), 1, generator.randint(1, 8) * GPU_UNITS), CLASS, {}) or ():
            capacity.take(grant)
    return capacity


def measure(capacity: Capacity, rounds: int, put: Callable[[], Placed]) -> list[float]:
    """Returns how long each placement took, in seconds of processor time."""
    times: list[float] = []
    for _ in range(rounds):
        began = time.process_time()
        grants = put()
        times.append(time.process_time() - began)
        assert grants is not None, "the gang fits"
        for grant in grants:
            capacity.take(grant)
        for grant in reversed(grants):
            capacity.give_back(grant)
    return times


def table(nodes: int, rounds: int) -> None:
    """Prints the times on one size of cluster."""
    capacity, mix = build(nodes), Mix()
    one, many = Shape((CLASS,), 1, 8 * GPU_UNITS), Shape((CLASS,), 8, 8 * GPU_UNITS)
    for _ in range(16):
        mix.add(one)
        mix.add(Shape((CLASS,), 1, GPU_UNITS))
    fragments, domains = Fragments(capacity, mix), Domains(capacity)
    where = (CLASS, [POOL])
    cases: list[tuple[str, Callable[[], Placed]]] = [
        ("best fit, 1 node", lambda: place(capacity, one, CLASS, {})),
        ("best fit, 8 nodes", lambda: place(capacity, many, CLASS, {})),
        ("near, 8 nodes", lambda: place_near(domains, ("rack", "spine"), many, where)),
        ("fgd, 1 node", lambda: place_by(fragments.cheapest, capacity, one, where)),
        ("fgd, 8 nodes", lambda: place_by(fragments.cheapest, capacity, many, where)),
    ]
    for name, put in cases:
        print(f"  {nodes:6,} nodes, {name:<20} {milliseconds(measure(capacity, rounds, put))}")
    print(f"  {nodes:6,} nodes, memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MiB")


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[250, 2500])
    parser.add_argument("--rounds", type=int, default=200)
    given = parser.parse_args()
    print(f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}; {given.rounds} gangs a line")
    for nodes in given.nodes:
        table(nodes, given.rounds)


if __name__ == "__main__":
    main()
