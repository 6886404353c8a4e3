"""Runs public traces through the scheduler and prints our figures beside published ones.

    python -m benchmarks.yardsticks philly|lublin|hpc2n|shockwave|openb [--traces DIR]

The references are those of the traces' own papers or of textbook policies run on the same files; each line names its
source. Reference policies count GPUs; ours places gangs on named nodes and keeps every promise that it makes.
"""

import argparse
import hashlib
import os
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks import traces
from scheduler.core.capacity import Capacity
from scheduler.core.fragmentation import Fragments, Mix
from scheduler.core.model import GPU_UNITS, Device, DeviceId, GpuClass, Grant, Node, NodeName, PoolName, Shape
from scheduler.core.placement import place_by
from scheduler.core.policy import Backfill, Policy, Preemption, QueueOrder
from scheduler.executor import NodeInventory
from scheduler.replay import Replay
from scheduler.scenario import TraceJob, read_cluster, read_jobs

HOUR_MS = 3_600_000
STILL = partial(Policy, preemption=Preemption.OFF)
"""The references stop nothing that runs."""
PROMPT = STILL(order=QueueOrder.LEAST_SERVICE, promised_jobs=1, promise_after_ms=36 * HOUR_MS)
"""Least GPU time first by limits, one promise, and nodes emptied for what waited a day and a half."""
LIGHT = replace(PROMPT, promise_after_ms=3 * HOUR_MS)
"""The same where little waits: then a wait of three hours is too long."""
RESTART_COST_MS = 60_000
"""What a job that was stopped for another runs longer for it: loading its checkpoint."""
_WINDOW = 1024


def load(kind: str, trace: Path, nodes: int = 160) -> tuple[tuple[NodeInventory, ...], tuple[TraceJob, ...]]:
    """Returns a trace as the simulation's own files have it."""
    with tempfile.TemporaryDirectory() as folder:
        traces.write(*traces.convert(kind, trace, nodes, None), Path(folder))
        inventory = read_cluster(Path(folder) / "cluster.toml")
        return inventory, read_jobs(Path(folder) / "jobs.csv", [inventory[0].node.gpu_class])


def play(
    inventory: Sequence[NodeInventory], jobs: Sequence[TraceJob], policy: Policy, restart_cost_ms: int = 0
) -> Replay:
    """Returns a finished run, and prints how fast it was in processor time."""
    began = time.process_time()
    replay = Replay(inventory, jobs, policy, restart_cost_ms).run()
    seconds = time.process_time() - began
    print(f"    {len(jobs) / seconds:,.0f} jobs/s of processor time, {len(replay.tick_seconds):,} ticks")
    return replay


def _figures(replay: Replay) -> tuple[float, float, float, float, float]:
    """Returns mean, p99 and longest wait in seconds, mean bounded slowdown, and that of the worst tenant."""
    report = replay.report()
    waits, slowdowns, tenants = report["wait_seconds"], report["bounded_slowdown"], report["per_tenant"]
    assert isinstance(waits, dict)
    assert isinstance(slowdowns, dict)
    assert isinstance(tenants, list)
    worst = max(tenant["mean_bounded_slowdown"] for tenant in tenants)
    return waits["mean"], waits["p99"], waits["max"], slowdowns["mean"], worst


def philly(folder: Path) -> None:
    """October 2017, with limits from the column `estimate_s`."""
    for nodes, references in (
        (
            160,
            (
                "first come                  55,078 / 152,133 / 211,038   283.00   1,008.0",
                "what fits, no promise        3,516 /  39,371 / 850,599    14.20     176.0",
                "EASY                         2,932 /  39,234 / 874,758     7.40     107.0",
                "shortest limit + EASY        1,392 /  17,661 / 902,987     2.10      30.0",
            ),
        ),
        (
            192,
            (
                "EASY                           187 /   3,289 /  26,663     1.21       1.8",
                "shortest limit + EASY          127 /   2,422 /  70,591     1.09       1.5",
            ),
        ),
    ):
        print(f"Philly, {nodes} nodes of 8: wait mean / p99 / max in seconds, slowdown, worst tenant's")
        for line in references:
            print(f"  [textbook] {line}")
        inventory, jobs = load("philly", folder / "philly-2017-10.csv.gz", nodes)
        for name, policy in (
            ("ours, least service", PROMPT if nodes == 160 else LIGHT),
            ("ours, default policy", STILL()),
        ):
            mean, p99, most, slowdown, worst = _figures(play(inventory, jobs, policy))
            print(f"  {name:<28} {mean:9,.0f} / {p99:7,.0f} / {most:7,.0f} {slowdown:8.2f} {worst:9.1f}")
        for name, policy in (
            ("least service, stopping", replace(PROMPT, preemption=Preemption.FAIR)),
            ("default, stopping", Policy()),
        ):
            replay = play(inventory, jobs, policy, RESTART_COST_MS)
            mean, p99, most, slowdown, worst = _figures(replay)
            stopped = f"{replay.totals.preemptions:,} stopped at {RESTART_COST_MS // 1000} s each"
            print(f"  {name:<28} {mean:9,.0f} / {p99:7,.0f} / {most:7,.0f} {slowdown:8.2f} {worst:9.1f}   {stopped}")


def window_starts(jobs: int, count: int = 10) -> list[int]:
    """Returns where the windows of RLScheduler (Zhang et al., SC 2020) begin: gym's seeded generator, seed 1.

    gym hashes the seed with SHA-512, takes eight bytes, and seeds MT19937 with its 32-bit words; Python's `random`
    seeds the same generator in the same way. numpy then draws by masked rejection.
    """
    digest = hashlib.sha512(b"1").digest()[:8]
    generator = random.Random(int.from_bytes(digest, "little"))
    low, high = _WINDOW, jobs - _WINDOW - 1
    span = high - 1 - low
    mask = (1 << span.bit_length()) - 1
    starts: list[int] = []
    while len(starts) < count:
        drawn = generator.getrandbits(32) & mask
        if drawn <= span:
            starts.append(low + drawn)
    return starts


def lublin(folder: Path) -> None:
    """Ten windows of 1,024 jobs on 256 processors; mean bounded slowdown."""
    print("Lublin-1: mean bounded slowdown over ten windows of 1,024 jobs")
    print("  [RLScheduler] plain FCFS 7273.77; with backfilling FCFS 235.82, SJF 73.31, learned 58.64")
    print("  [textbook] least service + EASY 34.8")
    inventory, jobs = load("lublin", folder / "lublin-256.swf.gz")
    easy = STILL(promised_jobs=1, promise_after_ms=None)
    for name, policy in (
        ("fifo, none", replace(easy, order=QueueOrder.FIFO, backfill=Backfill.NONE)),
        ("fifo, easy as theirs", replace(easy, order=QueueOrder.FIFO, backfill=Backfill.EASY_BEFORE)),
        ("sjf, easy as theirs", replace(easy, order=QueueOrder.SJF, backfill=Backfill.EASY_BEFORE)),
        ("sjf, easy", replace(easy, order=QueueOrder.SJF)),
        ("sjf, easy anew", replace(easy, order=QueueOrder.SJF, keeps_first_promises=False)),
        ("least service, easy anew", replace(easy, order=QueueOrder.LEAST_SERVICE, keeps_first_promises=False)),
    ):
        slowdowns = []
        for start in window_starts(len(jobs)):
            replay = Replay(inventory, jobs[start : start + _WINDOW], policy).run()
            slowdowns.append(_figures(replay)[3])
        listed = " ".join(f"{each:.1f}" for each in slowdowns)
        print(f"  ours, {name:<24} {sum(slowdowns) / len(slowdowns):8.2f}   ({listed})")


def hpc2n(folder: Path) -> None:
    """The first weeks of a real log with its users' limits."""
    print("HPC2N, 240 processors: mean wait in seconds / mean bounded slowdown")
    print("  [textbook] first come 5,627.9 / 47.41, shortest limit 3,494.8 / 31.49, EASY 3,560 / 17.1,")
    print("             shortest limit + EASY 2,316 / 12.2, with perfect knowledge 2,221 / 8.4")
    inventory, jobs = load("hpc2n", folder / "HPC2N-2002-first3k.swf.gz")
    for name, policy in (
        ("fifo, no backfill", STILL(order=QueueOrder.FIFO, backfill=Backfill.NONE)),
        ("fifo + easy", STILL(order=QueueOrder.FIFO, promised_jobs=1, promise_after_ms=None)),
        ("sjf + easy", STILL(order=QueueOrder.SJF, promised_jobs=1, promise_after_ms=None)),
        ("least service, as Philly", PROMPT),
        ("least service, 2 anew", replace(PROMPT, promised_jobs=2, keeps_first_promises=False)),
        ("default policy", STILL()),
    ):
        mean, _, _, slowdown, _ = _figures(play(inventory, jobs, policy))
        print(f"  ours, {name:<26} {mean:9,.1f} / {slowdown:6.2f}")


def shockwave(folder: Path) -> None:
    """The canonical trace of 120 jobs on 32 GPUs: without preemption, rounds or resizing."""
    print("Shockwave-120, 32 GPUs: makespan / mean completion in seconds")
    print("  [paper, 120 s rounds] Shockwave 24,197 / 9,958, Themis 31,929 / 11,302, Gavel 33,208 / 11,274")
    inventory, jobs = load("shockwave", folder / "shockwave-120.csv.gz")
    for name, policy in (("default policy", STILL()), ("least service", PROMPT)):
        report = play(inventory, jobs, policy).report()
        completions = report["completion_seconds"]
        assert isinstance(completions, dict)
        print(f"  ours, {name:<16} {report['makespan_seconds']:9,.0f} / {completions['mean']:8,.0f}")


OPENB_REFERENCES = {
    "default": "BestFit 92.86/93.08, FGD 95.23/95.39",
    "multigpu50": "BestFit 95.62/95.74, FGD 97.09/97.18",
    "gpushare100": "BestFit 84.62/85.01, FGD 86.64/86.90",
    "cpu200": "BestFit 92.15/92.40, FGD 94.82/95.05",
}


def openb(folder: Path) -> None:
    """FGD's own experiment: pods drawn at random until 130 % is asked for, placed one by one, misfits dropped."""
    print("openb: % of GPUs allocated when 100 % / 130 % have arrived, mean of seeds; nodes renamed at random in each")
    nodes = list(traces.read_csv(folder / "openb" / "openb_node_list_gpu_node.csv.gz"))
    for name, reference in OPENB_REFERENCES.items():
        print(f"  {name}: [paper] {reference}")
        pods = list(traces.read_csv(folder / "openb" / f"openb_pod_list_{name}.csv.gz"))
        results = [_fill(nodes, pods, seed) for seed in range(10 if name == "default" else 2)]
        first, last = (sum(result[index] for result in results) / len(results) for index in (0, 1))
        spread = max(result[1] for result in results) - min(result[1] for result in results)
        millis = 1000 * sum(result[2] for result in results) / len(results)
        print(f"    ours, fgd: {first:.2f} / {last:.2f} (spread {spread:.2f}), {millis:.2f} ms of processor time a pod")


def _fill(nodes: Sequence[dict[str, str]], pods: Sequence[dict[str, str]], seed: int) -> tuple[float, float, float]:
    """Returns the percentages of GPUs allocated, and processor seconds a pod."""
    generator = random.Random(seed)
    capacity, mix = Capacity(), Mix()
    names = [f"node-{index:04d}" for index in range(len(nodes))]
    generator.shuffle(names)
    for name, row in zip(names, nodes, strict=True):
        gpu_class = GpuClass(row["model"])
        node = Node(NodeName(name), gpu_class, PoolName("main"), int(row["cpu_milli"]), int(row["memory_mib"]) << 20)
        devices = (Device(DeviceId(f"{name}/{slot}"), node.name, gpu_class) for slot in range(int(row["gpu"])))
        capacity.set_node(node, tuple(devices))
    total = GPU_UNITS * sum(int(row["gpu"]) for row in nodes)
    shapes = [_pod_shape(pod) for pod in pods]
    arrivals, asked = [], 0
    while asked < 1.3 * total:
        arrivals.append(generator.choice(shapes))
        asked += arrivals[-1].gpu_units
    generator.shuffle(arrivals)
    fragments, classes = Fragments(capacity, mix), capacity.classes()
    began, held, asked, at_full = time.process_time(), 0, 0, 0
    for shape in arrivals:
        asked += shape.gpu_units
        mix.add(shape)
        held += _place_pod(capacity, fragments, shape, classes)
        if asked >= total and not at_full:
            at_full = held
    seconds = (time.process_time() - began) / len(arrivals)
    return 100 * at_full / total, 100 * held / total, seconds


def _place_pod(capacity: Capacity, fragments: Fragments, shape: Shape, classes: Sequence[GpuClass]) -> int:
    """Takes the cheapest place among all classes; returns the units taken, 0 for a pod that is dropped."""
    firsts = [(next(fragments.cheapest((each, PoolName("main")), shape), None), each) for each in classes]
    found = min(((first, each) for first, each in firsts if first is not None), default=None)
    if found is None:
        return 0
    (_, name, _), gpu_class = found
    if shape.gpu_units == 0:
        grants: tuple[Grant, ...] | None = (Grant(name, (), 0, shape.cpu_millicores or 0, shape.memory_bytes or 0),)
    else:
        grants = place_by(fragments.cheapest, capacity, shape, (gpu_class, [PoolName("main")]))
    assert grants is not None, "the cheapest place holds the pod"
    for grant in grants:
        capacity.take(grant)
    return shape.gpu_units


def _pod_shape(pod: dict[str, str]) -> Shape:
    gpus = int(pod["num_gpu"])
    units = gpus * GPU_UNITS * int(pod["gpu_milli"]) // 1000
    return Shape((GpuClass("any"),), 1, units, int(pod["cpu_milli"]), int(pod["memory_mib"]) << 20)


YARDSTICKS: dict[str, Callable[[Path], None]] = {
    "philly": philly,
    "lublin": lublin,
    "hpc2n": hpc2n,
    "shockwave": shockwave,
    "openb": openb,
}


def main() -> None:
    """Runs the yardsticks named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*YARDSTICKS, []])
    parser.add_argument("--traces", type=Path, default=Path("traces"), help="the folder with the traces' files")
    given = parser.parse_args()
    print(f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}")
    for name in given.names or YARDSTICKS:
        YARDSTICKS[name](given.traces)


if __name__ == "__main__":
    main()
