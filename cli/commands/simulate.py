"""`admin simulate`: the scheduler's own core, driven by a trace in virtual time."""

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.errors import ExitCode, Problem, Refusal
from cli.layout import Column, View
from cli.render import envelope
from cli.session import Session

if TYPE_CHECKING:
    from scheduler.replay import Replay

SCHEDULE_COLUMNS = ("job_id", "start_seconds", "end_seconds", "nodes", "booking", "end_reason")


def simulate(
    ctx: typer.Context,
    cluster: Annotated[str, typer.Option("--cluster", metavar="FILE.toml", help="[[nodes]] with count, gpus, cpus …")],
    jobs: Annotated[str, typer.Option("--jobs", metavar="FILE.csv", help="A row a job, times in seconds.")],
    schedule: Annotated[
        str | None, typer.Option("--schedule", metavar="FILE.csv", help="Write a row per allocation here.")
    ] = None,
) -> int:
    """Replay jobs on a cluster in virtual time; report waiting, slowdown, utilisation, fairness.

    The same files give the same schedule, byte for byte; only the measured times of the planner differ.

    Examples:
      turnstile admin simulate --cluster park.toml --jobs october.csv
      turnstile admin simulate --cluster park.toml --jobs october.csv -o json --schedule schedule.csv
    """
    from scheduler.core.policy import Policy
    from scheduler.refusal import Refused
    from scheduler.replay import Replay
    from scheduler.scenario import read_cluster, read_jobs

    session: Session = ctx.obj
    try:
        nodes = read_cluster(Path(cluster))
        classes = tuple(sorted({inventory.node.gpu_class for inventory in nodes}))
        trace = read_jobs(Path(jobs), classes)
    except Refused as refused:
        raise _refusal(
            refused.message, refused.tries, [(each.field, each.message) for each in refused.problems]
        ) from None
    replay = Replay(nodes, trace, Policy()).run()
    if schedule is not None:
        try:
            write_schedule(replay, Path(schedule))
        except OSError as problem:
            raise Refusal(f"{schedule} cannot be written: {problem.strerror}") from None
    report = replay.report()
    session.screen.document(envelope("SimulationReport", report), _VIEW, _told(report))
    return ExitCode.DONE


def write_schedule(replay: "Replay", path: Path) -> None:
    """Writes one row per allocation, in order of start, then job. Raises OSError."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(SCHEDULE_COLUMNS)
        for run in sorted(replay.schedule, key=lambda each: (each.start_ms, each.label, each.end_ms)):
            times = (_seconds(run.start_ms), _seconds(run.end_ms))
            writer.writerow([run.label, *times, " ".join(run.nodes), run.booking.value, run.end_reason])


def _refusal(message: str, tries: tuple[str, ...], problems: list[tuple[str | None, str]]) -> Refusal:
    refusal = Refusal(message, *tries)
    refusal.problems = tuple(Problem(field or "", text) for field, text in problems)
    return refusal


def _seconds(at_ms: int) -> str:
    """Returns seconds without a needless point, exactly."""
    whole, rest = divmod(at_ms, 1000)
    return f"{whole}.{rest:03d}".rstrip("0") if rest else str(whole)


def _told(report: dict[str, object]) -> list[str]:
    lines = []
    for name, value in report.items():
        words = name.replace("_", " ")
        if isinstance(value, dict):
            lines.append(f"{words:22} " + "  ".join(f"{key} {_number(each)}" for key, each in value.items()))
        elif not isinstance(value, list):
            lines.append(f"{words:22} {_number(value)}")
    return lines


def _number(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.4f}" if abs(value) < 10 else f"{value:,.0f}"
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


_VIEW = View(
    (
        Column("JOBS", lambda item: str(item.get("jobs"))),
        Column("MAKESPAN", lambda item: str(item.get("makespan_seconds"))),
    ),
    name=lambda item: str(item.get("makespan_seconds")),
    fields=(
        *("jobs", "completed_jobs", "unplaced_jobs", "makespan_seconds", "wait_seconds.mean", "wait_seconds.p99"),
        *("wait_seconds.max", "bounded_slowdown.mean", "utilization_ratio", "fragmentation_ratio", "fairness_error"),
    ),
)
