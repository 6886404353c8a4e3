"""Runs public traces through the scheduler; prints our figures beside references and aims, and says which are missed.

    python -m benchmarks.yardsticks [NAME …] [--traces DIR]

    philly            October 2017 on 160 nodes of 8 GPUs, nothing is stopped
    philly-stopping   the same, where a job that is stopped for another goes on later and runs 60 s longer for it
    philly-fair-stopping  the same under the default policy
    philly-orders     no stops; the fair order, and in each tenant's project each of the orders that it may choose
    philly-192        the same on 192 nodes, where little waits
    lublin            256 processors, ten windows of 1,024 jobs
    hpc2n             240 processors and real users' limits
    shockwave         120 jobs on 32 GPUs
    openb             placement: pods of known sizes until the cluster is full (benchmarks/openb.py); `--lists` and
                      `--seeds` say which and how many
    openb-nodes       the same of one seed's pods in five orders of the nodes

The references are those of the traces' own papers or of textbook policies run on the same files; each line names its
source. Reference policies count GPUs; ours places gangs on named nodes and keeps every promise that it makes. Every
option that differs from the default policy is printed. Times are of the processor.
"""

import argparse
import hashlib
import os
import random
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean

from benchmarks import openb
from benchmarks.aims import Figure, show
from benchmarks.playing import delay_of, described, goes_on, load, ordered, play, waits_of
from scheduler.core.model import AccountId, OrderWeights
from scheduler.core.policy import Backfill, Policy, Preemption, QueueOrder
from scheduler.replay import Replay

HOUR_MS = 3_600_000
STILL = partial(Policy, preemption=Preemption.OFF)
"""The references stop nothing that runs."""
PROMPT = STILL(order=QueueOrder.LEAST_SERVICE, promised_jobs=1, promise_after_ms=36 * HOUR_MS)
"""Least GPU time first by limits, one promise, and nodes emptied for what waited a day and a half."""
LIGHT = replace(PROMPT, promise_after_ms=3 * HOUR_MS)
"""The same where little waits: then a wait of three hours is too long."""
RESTART_COST_MS = 60_000
"""What a job that was stopped for another runs longer for it: loading its checkpoint."""
STOPPING = Policy(order=QueueOrder.SRTF, promised_jobs=0, promise_after_ms=None)
"""Whoever has least left takes the place of whoever has most."""
LEAST = STILL(order=QueueOrder.LEAST_SERVICE, promise_after_ms=None, keeps_first_promises=False)
HPC2N = STILL(order=QueueOrder.LEAST_SERVICE, promised_jobs=2, keeps_first_promises=False)
PLAIN = OrderWeights()
ORDERS = (
    ("submit-time", PLAIN),
    ("shortest", OrderWeights(limit=24)),
    ("least-service", OrderWeights(service=24)),
    ("least-slowdown", OrderWeights(slowdown=24)),
)
"""A project's own orders by what `--order` calls them, with the weights that it gives them unasked."""
FRICTION = 1.052
"""What a replay has to multiply work by that is compared with Shockwave's measured runs."""
_WINDOW = 1024


def philly(folder: Path) -> list[Figure]:
    """Where much waits."""
    print("Philly, October 2017, 58,368 jobs on 160 nodes of 8 GPUs, limits from estimate_s, equal weights, no stops")
    print("  [textbook] mean / p99 / longest wait in seconds, slowdown, worst tenant's; GPUs are counted, not placed")
    print("    first come              55,078 / 152,133 / 211,038   283.0   1,008")
    print("    what fits, no promise    3,516 /  39,371 / 850,599    14.2     176")
    print("    EASY                     2,932 /  39,234 / 874,758     7.4     107")
    print("    shortest limit + EASY    1,392 /  17,661 / 902,987     2.1      30")
    inventory, jobs = load("philly", folder / "philly-2017-10.csv.gz", 160)
    ours = waits_of(play(inventory, jobs, PROMPT))
    return [
        Figure("mean wait, s", ours.mean, "1,392 shortest limit + EASY", 1_400),
        Figure("p99, s", ours.p99, "17,661 likewise", 18_000),
        Figure("longest, s", ours.longest, "902,987 likewise", 200_000),
        Figure("mean slowdown", ours.slowdown, "2.1 likewise"),
        Figure("worst tenant's", ours.worst, "30 likewise", 10),
    ]


def philly_stopping(folder: Path) -> list[Figure]:
    """The same with preemption."""
    print("Philly, 160 nodes; who is stopped goes on later, 60 s longer")
    print("  [textbook] oracle that knows run times, counts GPUs and stops at no cost: 472 / 0 / 618,392")
    inventory, jobs = load("philly", folder / "philly-2017-10.csv.gz", 160)
    stopping = play(inventory, goes_on(jobs), STOPPING, RESTART_COST_MS)
    ours = waits_of(stopping)
    return [
        Figure("mean delay: all but work, s", delay_of(stopping), "472 oracle, at no cost", 700),
        Figure("mean wait to the first start, s", ours.mean, "likewise"),
        Figure("p99, s", ours.p99, "0 likewise"),
        Figure("longest, s", ours.longest, "618,392 likewise"),
        Figure("worst tenant's slowdown", ours.worst, "1.0 likewise"),
        Figure("stops", stopping.totals.preemptions, ""),
    ]


def philly_fair_stopping(folder: Path) -> list[Figure]:
    """The default policy, which stops jobs for others' shares."""
    print("Philly, 160 nodes, the default policy: the fair order with stops; who is stopped goes on later, 60 s longer")
    inventory, jobs = load("philly", folder / "philly-2017-10.csv.gz", 160)
    fair = play(inventory, goes_on(jobs), Policy(), RESTART_COST_MS)
    plain = waits_of(fair)
    return [
        Figure("mean delay: all but work, s", delay_of(fair), "2,932 EASY, no stops"),
        Figure("mean wait to the first start, s", plain.mean, "likewise"),
        Figure("p99, s", plain.p99, "39,234 likewise"),
        Figure("longest, s", plain.longest, "874,758 likewise"),
        Figure("worst tenant's slowdown", plain.worst, "107 likewise"),
        Figure("stops", fair.totals.preemptions, ""),
    ]


def philly_orders(folder: Path) -> list[Figure]:
    """Where much waits, under the fair order: what a tenant's project may do for its own jobs."""
    print("Philly, 160 nodes, no stops; across tenants the fair order, within each the order named")
    inventory, jobs = load("philly", folder / "philly-2017-10.csv.gz", 160)
    figures: list[Figure] = []
    for name, weights in ORDERS:
        print(f"  within each: {name}, {weights}")
        found = waits_of(play(inventory, jobs, STILL(), accounts=ordered(jobs, weights)))
        figures += [
            Figure(f"{name}: mean wait, s", found.mean, "2,932 EASY, 1,392 shortest limit + EASY"),
            Figure("p99, s", found.p99, "39,234, 17,661 likewise"),
            Figure("longest, s", found.longest, "874,758, 902,987 likewise"),
            Figure("mean slowdown", found.slowdown, "7.4, 2.1 likewise"),
            Figure("worst tenant's", found.worst, "107, 30 likewise"),
        ]
    return figures


def philly_192(folder: Path) -> list[Figure]:
    """Where little waits."""
    print("Philly on 192 nodes of 8 GPUs, no stops")
    print("  [textbook] EASY 187 / 3,289 / 26,663, slowdown 1.21, worst tenant's 1.8")
    print("             shortest limit + EASY 127 / 2,422 / 70,591, slowdown 1.09, worst tenant's 1.5")
    inventory, jobs = load("philly", folder / "philly-2017-10.csv.gz", 192)
    ours = waits_of(play(inventory, jobs, LIGHT))
    return [
        Figure("mean wait, s", ours.mean, "127 shortest limit + EASY", 130),
        Figure("p99, s", ours.p99, "2,422 likewise"),
        Figure("longest, s", ours.longest, "70,591 likewise; 26,663 EASY", 27_000),
        Figure("worst tenant's slowdown", ours.worst, "1.5 likewise"),
    ]


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


def lublin(folder: Path) -> list[Figure]:
    """Ten windows of 1,024 jobs on 256 processors."""
    print("Lublin-1, 256 processors, mean bounded slowdown over ten windows of 1,024 jobs; limits are the run times")
    inventory, jobs = load("lublin", folder / "lublin-256.swf.gz")
    windows = [jobs[start : start + _WINDOW] for start in window_starts(len(jobs))]

    def slowdown(policy: Policy, weights: OrderWeights = PLAIN) -> float:
        print(f"  policy: {described(policy)}{f', its project {weights}' if any(weights) else ''}", flush=True)
        accounts = ordered(jobs, weights)
        runs = [waits_of(Replay(inventory, window, policy, 0, accounts).run()) for window in windows]
        print(f"          waits {fmean(run.mean for run in runs):,.0f} / {max(run.longest for run in runs):,.0f} s")
        return fmean(run.slowdown for run in runs)

    first = STILL(promised_jobs=1, promise_after_ms=None, order=QueueOrder.FIFO)
    theirs = replace(first, backfill=Backfill.EASY_BEFORE)
    return [
        Figure("first come, no backfill", slowdown(replace(first, backfill=Backfill.NONE)), "7273.77 RLScheduler"),
        Figure("first come + theirs", slowdown(theirs), "235.82 RLScheduler", equal=235.82),
        Figure("shortest + theirs", slowdown(replace(theirs, order=QueueOrder.SJF)), "73.31 RLScheduler", equal=73.31),
        Figure("least service, promised anew", slowdown(LEAST), "34.8 textbook, 58.64 learned"),
        *(
            Figure(
                f"fair, {name}{', promises kept' if keeps else ''}",
                slowdown(replace(LEAST, order=QueueOrder.FAIR, keeps_first_promises=keeps), weights),
                "likewise",
                34 if (name, keeps) == ("least-slowdown", False) else None,
            )
            for name, weights, keeps in (*((*each, False) for each in ORDERS), (*ORDERS[-1], True))
        ),
    ]


def hpc2n(folder: Path) -> list[Figure]:
    """The first weeks of a real log with its users' limits."""
    print(
        "HPC2N 2002, 240 processors, 3,145 jobs with their users' limits: mean wait in seconds, mean bounded slowdown"
    )
    print("  tenants are its users; in the last lines it is one project of all of them")
    print("  [textbook] first come 5,627.9 / 47.41, shortest limit 3,494.8 / 31.49, EASY 3,560 / 17.1,")
    print("             shortest limit + EASY 2,316 / 12.2, with perfect knowledge 2,221 / 8.4")
    inventory, jobs = load("hpc2n", folder / "HPC2N-2002-first3k.swf.gz")
    plain = waits_of(play(inventory, jobs, STILL()))
    ours = waits_of(play(inventory, jobs, HPC2N))
    stopping = waits_of(play(inventory, goes_on(jobs), STOPPING, RESTART_COST_MS))
    print("  the product's default, where users' jobs are stopped for others' shares: they go on later, or begin anew")
    fair, anew = (play(inventory, each, Policy(), RESTART_COST_MS) for each in (goes_on(jobs), jobs))
    one = [replace(job, account=AccountId("hpc2n/main")) for job in jobs]
    together: list[Figure] = []
    for name, weights in ORDERS:
        print(f"  one project: {name}, {weights}")
        found = waits_of(play(inventory, one, replace(HPC2N, order=QueueOrder.FAIR), accounts=ordered(one, weights)))
        together += [
            Figure(f"one project, {name}: mean wait, s", found.mean, "2,316 shortest limit + EASY"),
            Figure("mean slowdown", found.slowdown, "12.2 likewise"),
        ]
    return [
        Figure("mean wait, s", ours.mean, "2,316 shortest limit + EASY", 2_250),
        Figure("mean slowdown", ours.slowdown, "12.2 likewise; 8.4 perfect knowledge", 9),
        Figure("the fair order, no stops: mean wait, s", plain.mean, "3,560 EASY"),
        Figure("mean slowdown", plain.slowdown, "17.1 EASY"),
        Figure("the default, stops at 60 s: wait, s", waits_of(fair).mean, "2,316 shortest limit + EASY", 2_250),
        Figure("mean delay, time stopped too, s", delay_of(fair), "likewise", 2_250),
        Figure("mean slowdown, to the end", waits_of(fair).slowdown, "12.2 likewise", 9),
        Figure("where the stopped begin anew: wait, s", waits_of(anew).mean, "2,316 shortest limit + EASY"),
        Figure("mean delay, time stopped too, s", delay_of(anew), "likewise"),
        Figure("mean slowdown, to the end", waits_of(anew).slowdown, "12.2 likewise"),
        Figure("srtf, stops at 60 s: mean wait, s", stopping.mean, "2,221 perfect knowledge, no stops"),
        Figure("mean slowdown", stopping.slowdown, "8.4 likewise"),
        *together,
    ]


def shockwave(folder: Path) -> list[Figure]:
    """The canonical trace of 120 jobs."""
    print(f"Shockwave-120, 8 nodes of 4 GPUs, work times {FRICTION}; who is stopped goes on later")
    print("  [paper] makespan / mean completion in seconds, worst finish-time ratio, share of jobs above 1.05")
    print("    Shockwave 24,197 /  9,958  1.78   5.0 %        Themis 31,929 / 11,302  3.44  22.5 %")
    print("    Gavel     33,208 / 11,274  2.95  25.0 %        AlloX  32,489 /  9,926  4.96  27.5 %")
    inventory, alone = load("shockwave", folder / "shockwave-120.csv.gz")
    jobs = [
        replace(job, duration_ms=round(job.duration_ms * FRICTION), time_limit_ms=round(job.time_limit_ms * FRICTION))
        for job in goes_on(alone)
    ]
    figures: list[Figure] = []
    for cost_ms in (0, RESTART_COST_MS):
        replay = play(inventory, jobs, STILL(order=QueueOrder.FINISH_TIME, preemption=Preemption.FAIR), cost_ms)
        report, extra = replay.report(), f", {cost_ms // 1000} s a stop"
        completions = report["completion_seconds"]
        assert isinstance(completions, dict)
        share = len(alone) / 32
        ratios = [
            ((run.end_ms or 0) - job.submit_ms) / (job.duration_ms * share)
            for run, job in zip(replay.runs, alone, strict=True)
        ]
        unfair = 100 * sum(ratio > 1.05 for ratio in ratios) / len(ratios)
        figures += [
            Figure(f"makespan, s{extra}", float(str(report["makespan_seconds"])), "24,197 Shockwave", 24_197),
            Figure("mean completion, s", completions["mean"], "9,958 Shockwave", 8_500),
            Figure("worst finish-time ratio", max(ratios), "1.78 Shockwave", 1.05),
            Figure("unfair jobs, %", unfair, "5.0 Shockwave", 0),
            Figure("stops", replay.totals.preemptions, ""),
        ]
    return figures


YARDSTICKS: dict[str, Callable[[Path], list[Figure]]] = {
    "philly": philly,
    "philly-stopping": philly_stopping,
    "philly-fair-stopping": philly_fair_stopping,
    "philly-orders": philly_orders,
    "philly-192": philly_192,
    "lublin": lublin,
    "hpc2n": hpc2n,
    "shockwave": shockwave,
    "openb": openb.openb,
    "openb-nodes": openb.node_orders,
}


def main() -> None:
    """Runs the yardsticks named, or all; the exit status is 1 where an aim is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*YARDSTICKS, []])
    parser.add_argument("--traces", type=Path, default=Path("traces"), help="the folder with the traces' files")
    parser.add_argument("--lists", nargs="+", choices=[*openb.LISTS], default=[*openb.REFERENCES], help="of openb")
    parser.add_argument(
        "--seeds", type=int, nargs=2, default=(0, openb.SEEDS), help="of openb: the first, and how many"
    )
    given = parser.parse_args()
    first, count = given.seeds
    placing = partial(openb.openb, lists=given.lists, seeds=range(first, first + count))
    yardsticks: dict[str, Callable[[Path], list[Figure]]] = {**YARDSTICKS, "openb": placing}
    print(f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}")
    missed = 0
    for name in given.names or YARDSTICKS:
        began = time.process_time()
        missed += show(yardsticks[name](given.traces))
        print(f"  {time.process_time() - began:,.0f} s of processor time\n", flush=True)
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
