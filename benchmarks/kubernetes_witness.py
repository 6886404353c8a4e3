"""What is true of a run on a cluster, told by witnesses that are not the daemon: the pods, the kubelets, the database.

The pods are watched from outside; the driver of the nodes writes down which pod holds which GPU; the database is read
once nobody writes it any more.
"""

import json
import sqlite3
import threading
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from k8s import names
from k8s.api import Api, Json
from k8s.mirror import Mirror

GPU = "nvidia.com/gpu"
SENT_BACK = frozenset({"node_lost", "requeued"})


@dataclass(frozen=True, slots=True)
class Facts:
    """Rows of the daemon's database."""

    jobs: Mapping[int, Mapping[str, Any]]
    allocations: Sequence[Mapping[str, Any]]
    doubly_held: Sequence[tuple[str, str, str]]
    """(device, allocation, other allocation) where the ledger has two holders at one time."""


def from_database(path: Path) -> Facts:
    """Reads what is judged."""
    with closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        jobs = {row["id"]: dict(row) for row in connection.execute("SELECT * FROM job")}
        allocations = [dict(row) for row in connection.execute("SELECT * FROM allocation ORDER BY id")]
        held = connection.execute(
            "SELECT device, from_ms, to_ms, allocation_id FROM occupancy WHERE state = 'allocated'"
            " ORDER BY device, from_ms"
        ).fetchall()
    doubled = [
        (before["device"], before["allocation_id"], after["allocation_id"])
        for before, after in pairwise(held)
        if before["device"] == after["device"]
        and after["from_ms"] < before["to_ms"]
        and before["allocation_id"] != after["allocation_id"]
    ]
    return Facts(jobs, allocations, doubled)


UNKNOWN_END = "9999-12-31T00:00:00Z"


class PodWitness:
    """Watches pods of one installation, and the file that says who holds which GPU."""

    def __init__(self, api: Api, installation: str, state: Path) -> None:
        self._state = state
        self._lock = threading.Lock()
        self.spans: dict[tuple[str, str], dict[str, tuple[str, str]]] = defaultdict(dict)
        """Of every pod that ever ran, by allocation, rank and uid: from when to when at most. A Job's controller makes
        another for one that is evicted from a silent node, or whose making an outage hid from it."""
        self.asked: dict[str, int] = {}
        """GPUs that a pod asked for, by namespace/name."""
        self.wrongly_held: list[str] = []
        self.rejected = 0
        self.snapshots = 0
        query = {"labelSelector": names.selector(installation)}
        self._pods: Mirror[str] = Mirror(api, "/api/v1/pods", self._take, lambda: None, query)
        self._pods.start()
        self._pods.wait_until_synced(30)
        self._must_end = threading.Event()
        self._thread = threading.Thread(target=self._watch_gpus, name="witness", daemon=True)
        self._thread.start()

    def _take(self, item: Json) -> str:
        metadata, labels = item["metadata"], item["metadata"].get("labels") or {}
        index = (metadata.get("annotations") or {}).get(names.COMPLETION_INDEX, labels.get(names.RANK, "0"))
        gpus = sum(int(each["resources"]["limits"].get(GPU, 0)) for each in item["spec"]["containers"])
        states = [each.get("state") or {} for each in (item.get("status") or {}).get("containerStatuses") or ()]
        ran = [found for state in states if (found := state.get("running") or state.get("terminated"))]
        with self._lock:
            if ran:
                until = ran[0].get("finishedAt") or metadata.get("deletionTimestamp") or UNKNOWN_END
                self.spans[labels[names.ALLOCATION], str(index)][metadata["uid"]] = (ran[0]["startedAt"], until)
            self.asked[f"{metadata['namespace']}/{metadata['name']}"] = gpus
        return str(metadata["uid"])

    def _watch_gpus(self) -> None:
        while not self._must_end.wait(0.5):
            self.look()

    def look(self) -> None:
        """Takes in one snapshot of the kubelets."""
        with suppress(OSError, ValueError):
            seen = json.loads(self._state.read_text(encoding="utf-8"))
            self.snapshots += 1
            self.rejected = max(self.rejected, int(seen["counters"].get("rejected", 0)))
            counts = Counter(pod for held in seen["held"].values() for pod in held.values())
            with self._lock:
                wrong = [f"{pod} holds {n}" for pod, n in counts.items() if n != self.asked.get(pod, n)]
            self.wrongly_held += wrong

    def stop(self) -> None:
        """Ends the watching."""
        self._must_end.set()
        self._pods.stop()
        self._thread.join(10)


@dataclass
class Verdicts:
    """What is to be said of a run."""

    are_bad: bool = field(default=False)

    def say(self, promise: str, is_kept: bool, else_what: object = "") -> None:
        """Prints one promise, and what broke it."""
        print(f"{'yes' if is_kept else 'NO '} {promise}" + ("" if is_kept else f": {else_what}"))
        self.are_bad = self.are_bad or not is_kept

    def judge(self, jobs: Sequence[int], facts: Facts, witness: PodWitness, lost_node: str | None) -> None:
        """Compares what was promised with what the witnesses saw."""
        states = Counter(facts.jobs[job]["state"] if job in facts.jobs else "missing" for job in jobs)
        self.say(f"all {len(jobs)} jobs completed", states == {"completed": len(jobs)}, dict(states))
        for job in jobs:
            row = facts.jobs.get(job, {})
            if row.get("state") != "completed":
                print(f"    job {job}: {row.get('state')}, {row.get('reason')}, {row.get('detail')}")
        by_job: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
        for each in facts.allocations:
            by_job[each["job_id"]].append(each)
        wrong = [job for job in jobs if not _ended_once(by_job[job])]
        self.say("each job ended once", not wrong, [(job, _ends(by_job[job])) for job in wrong[:5]])
        back = [each for each in facts.allocations if each["end_reason"] in SENT_BACK]
        strays = [each for each in back if lost_node is None or f'"{lost_node}"' not in each["grants"]]
        words = f"runs were sent back only from the silent node ({len(back)})"
        self.say(words, not strays, [(each["job_id"], each["detail"]) for each in strays[:5]])
        doubled = [(key, spans) for key, spans in witness.spans.items() if _meet(spans.values())]
        self.say(f"no rank ran twice at a time ({len(witness.spans)} ran)", not doubled, doubled[:5])
        self.say("the ledger has one holder a GPU", not facts.doubly_held, facts.doubly_held[:5])
        words = f"no kubelet refused a pod for want of a GPU, in {witness.snapshots} looks at all GPUs"
        is_right = witness.snapshots > 0 and not witness.rejected and not witness.wrongly_held
        self.say(words, is_right, (witness.rejected, witness.wrongly_held[:5]))


def _meet(spans: Iterable[tuple[str, str]]) -> bool:
    # The API's times are of one form, in UTC, and whole seconds: as texts they are in order.
    return any(after[0] < before[1] for before, after in pairwise(sorted(spans)))


def _ended_once(allocations: Sequence[Mapping[str, Any]]) -> bool:
    final = [each for each in allocations if each["end_reason"] not in SENT_BACK]
    return len(final) == 1 and all(each["ended_ms"] is not None for each in allocations)


def _ends(allocations: Sequence[Mapping[str, Any]]) -> list[object]:
    return [(each["attempt"], each["end_reason"], each["ended_ms"] is not None) for each in allocations]


def figures(facts: Facts, requests: Mapping[str, int], seconds: float) -> Iterator[str]:
    """Yields the lines of the result."""
    decided = sorted(each["decided_ms"] for each in facts.allocations)
    busiest = max(sum(1 for ms in decided if at <= ms < at + 10_000) for at in decided[:: max(1, len(decided) // 200)])
    waits = sorted(
        (each["started_ms"] - each["decided_ms"]) / 1000 for each in facts.allocations if each["started_ms"] is not None
    )
    many = Counter(requests)
    yield f"{len(decided)} allocations in {seconds:.0f} s: {len(decided) / seconds:.1f} decisions/s"
    yield f"busiest 10 s: {busiest / 10:.1f} decisions/s"
    yield f"from decision to running pods: median {median(waits):.1f} s, 95 % {waits[len(waits) * 95 // 100]:.1f} s"
    by_method = ", ".join(f"{method} {count / len(facts.jobs):.2f}" for method, count in sorted(many.items()))
    yield f"API requests a job: {many.total() / len(facts.jobs):.2f} ({by_method})"
