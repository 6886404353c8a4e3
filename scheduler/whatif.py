"""What if: the files and options of `turnstile admin simulate`, one run or two side by side, the schedule and the plot.

`simulate` is the whole command but for its flags and its screen. A policy file is TOML with the knobs of
`core.policy.Policy`, at the top or in a table `[policy]`; all its problems are reported together.
"""

import csv
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

from scheduler.core.policy import Backfill, Placement, Policy, Preemption, QueueOrder
from scheduler.knobs import choice, policy_from
from scheduler.plot import draw, draw_png
from scheduler.refusal import RefusalCode, Refused
from scheduler.replay import Replay
from scheduler.scenario import read_accounts, read_cluster, read_jobs
from scheduler.shortest import STOPPING_ORDERS
from scheduler.snapshot import LARGEST_BYTES, Snapshot, decode

SCHEDULE_COLUMNS = ("job_id", "start_seconds", "end_seconds", "nodes", "booking", "end_reason")
_COMPARED = ("makespan_seconds", "wait_seconds", "completion_seconds", "bounded_slowdown", "utilization_ratio")


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of a simulation. What is None is left as the policy has it."""

    cluster: Path | None
    """The nodes; None where a state has them."""
    jobs: Path | None
    """The trace; None where a state has jobs enough."""
    policy: Path | None = None
    against: Path | None = None
    """A second policy, run on the same jobs: the report has its figures under `against`."""
    order: str | None = None
    backfill: str | None = None
    placement: str | None = None
    preemption: str | None = None
    restart_cost_seconds: int = 0
    seed: int = 0
    """For placement at random only; all else has no chance in it."""
    schedule: Path | None = None
    """Where to write a row per allocation, as CSV."""
    plot: Path | None = None
    """Where to draw what was held and what waited over time, as SVG."""
    state: Path | None = None
    """A live state to begin with, instead of an empty cluster; its own policy unless `policy` says otherwise."""
    used_percent: int = 100
    """How much of their time limits the live jobs of a state are taken to need."""


def simulate(question: Question) -> dict[str, object]:
    """Returns the figures of the run, and of the policy it is compared with. Raises Refused with every problem."""
    if question.restart_cost_seconds < 0:
        raise Refused(RefusalCode.INVALID, f"--restart-cost must be 0 or more, not {question.restart_cost_seconds}")
    if question.plot is not None and question.plot.suffix not in {".svg", ".png"}:
        tries = (f"{question.plot.with_suffix('.svg')}", f"{question.plot.with_suffix('.png')}")
        raise Refused(RefusalCode.INVALID, f"{question.plot}: plots are drawn as SVG or PNG", tries)
    if (question.state is None) == (question.cluster is None):
        tries = ("--cluster FILE.toml --jobs FILE.csv", "--state FILE.json")
        raise Refused(RefusalCode.INVALID, "give a cluster, or a state that has one", tries)
    if question.state is None and question.jobs is None:
        raise Refused(RefusalCode.INVALID, "a cluster without jobs shows nothing", ("--jobs FILE",))
    policy = with_options(_policy_of(question), question)
    replay = _run(question, policy)
    report = replay.report()
    if question.against is not None:
        other = _run(question, with_options(read_policy(question.against), question)).report()
        report["against"] = other
        report["changes"] = {name: _change(report[name], other[name]) for name in _COMPARED}
    if question.schedule is not None:
        _write(question.schedule, lambda path: write_schedule(replay, path))
    if question.plot is not None:
        drawn = draw_png if question.plot.suffix == ".png" else draw
        drawing = drawn(replay.samples, replay.totals.capacity_gpus)
        _write(question.plot, lambda path: path.write_bytes(drawing))
    return report


def with_options(policy: Policy, question: Question) -> Policy:
    """Returns the policy with what the flags override. Raises Refused for a choice that does not exist."""
    changes: dict[str, Any] = {"seed": question.seed}
    chosen: tuple[tuple[str, str | None, type[Enum]], ...] = (
        ("order", question.order, QueueOrder),
        ("backfill", question.backfill, Backfill),
        ("placement", question.placement, Placement),
        ("preemption", question.preemption, Preemption),
    )
    for name, value, choices in chosen:
        if value is not None:
            changes[name] = choice(f"--{name}", value, choices)
    is_textbook = question.order not in {None, QueueOrder.FAIR.value, *STOPPING_ORDERS}
    if is_textbook and question.preemption is None and question.policy is None:
        changes["preemption"] = Preemption.OFF  # nor do they stop what runs
    if question.order in {"fifo", "sjf"} and question.backfill == "easy" and question.policy is None:
        # The literature's orders mean the literature's backfill, or its figures could not be met again.
        changes["backfill"] = Backfill.EASY_BEFORE
    return replace(policy, **changes)


def read_policy(path: Path) -> Policy:
    """Returns the policy of a file. Raises Refused with every problem."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Refused(RefusalCode.INVALID, f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Refused(RefusalCode.INVALID, f"{path}: not valid TOML: {error}") from error
    table = raw.get("policy", raw)
    if not isinstance(table, dict):
        raise Refused(RefusalCode.INVALID, f"{path}: policy must be a table")
    policy, problems = policy_from(table)
    if problems:
        raise Refused(RefusalCode.INVALID, f"{path} has {len(problems)} problems", problems=problems)
    return policy


def write_schedule(replay: Replay, path: Path) -> None:
    """Writes one row per allocation in order of start, then job."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(SCHEDULE_COLUMNS)
        for run in sorted(replay.schedule, key=lambda each: (each.start_ms, each.label, each.end_ms)):
            nodes = " ".join(run.nodes)
            start, end = _seconds(run.start_ms - replay.origin_ms), _seconds(run.end_ms - replay.origin_ms)
            writer.writerow([_harmless(run.label), start, end, _harmless(nodes), run.booking.value, run.end_reason])


def read_state(path: Path) -> Snapshot:
    """Returns the state of a file that `admin state dump` wrote. Raises Refused with what is wrong."""
    try:
        if path.stat().st_size > LARGEST_BYTES:
            raise Refused(RefusalCode.INVALID, f"{path} is larger than any state: {LARGEST_BYTES} bytes are the most")
        return decode(path.read_bytes(), str(path))
    except OSError as error:
        raise Refused(RefusalCode.INVALID, f"{path}: {error.strerror}") from error


def _policy_of(question: Question) -> Policy:
    if question.policy is not None:
        return read_policy(question.policy)
    return Policy() if question.state is None else read_state(question.state).policy


def _run(question: Question, policy: Policy) -> Replay:
    restart_ms = 1000 * question.restart_cost_seconds
    if question.state is not None:
        snapshot = read_state(question.state)
        classes = tuple(sorted({node.gpu_class for node, _ in snapshot.parts.nodes}))
        trace = () if question.jobs is None else read_jobs(question.jobs, classes)
        return Replay.of_state(snapshot, trace, policy, restart_ms, question.used_percent).run()
    assert question.cluster is not None, "checked before"
    assert question.jobs is not None, "checked before"
    nodes = read_cluster(question.cluster)
    classes = tuple(sorted({inventory.node.gpu_class for inventory in nodes}))
    return Replay(nodes, read_jobs(question.jobs, classes), policy, restart_ms, read_accounts(question.cluster)).run()


def _change(mine: object, other: object) -> object:
    """Returns ours less theirs, figure by figure; None where either has none."""
    if isinstance(mine, Mapping) and isinstance(other, Mapping):
        return {key: _change(mine[key], other[key]) for key in mine}
    if isinstance(mine, int | float) and isinstance(other, int | float):
        return mine - other
    return None


def _write(path: Path, write: Any) -> None:
    try:
        write(path)
    except OSError as error:
        raise Refused(RefusalCode.INVALID, f"{path} cannot be written: {error.strerror}") from error


def _harmless(cell: str) -> str:
    """A label comes from a file: no spreadsheet may take it for a formula."""
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell


def _seconds(at_ms: int) -> str:
    if at_ms < 0:
        return f"-{_seconds(-at_ms)}"  # before the instant of the state that it began with
    return f"{at_ms // 1000}" if at_ms % 1000 == 0 else f"{at_ms // 1000}.{at_ms % 1000:03d}"
