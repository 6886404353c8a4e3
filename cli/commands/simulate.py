"""`turnstile admin simulate`: the scheduler's own core, driven by a trace in virtual time."""

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from scheduler.replay import Replay


def simulate(
    cluster: Annotated[Path, typer.Option(help="TOML file with [[nodes]]")],
    jobs: Annotated[Path, typer.Option(help="CSV file of jobs")],
    schedule: Annotated[Path | None, typer.Option(help="write a row per allocation to this CSV file")] = None,
) -> None:
    """Replays jobs on a cluster and reports waiting, slowdown, utilisation and fairness."""
    raise NotImplementedError


def write_schedule(replay: "Replay", path: Path) -> None:
    """Writes one row per allocation in order of start, then job."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["job_id", "start_seconds", "end_seconds", "nodes", "booking", "end_reason"])
        for run in sorted(replay.schedule, key=lambda each: (each.start_ms, each.label, each.end_ms)):
            writer.writerow(
                [
                    run.label,
                    _seconds(run.start_ms),
                    _seconds(run.end_ms),
                    " ".join(run.nodes),
                    run.booking.value,
                    run.end_reason,
                ]
            )


def _seconds(at_ms: int) -> str:
    return f"{at_ms // 1000}" if at_ms % 1000 == 0 else f"{at_ms // 1000}.{at_ms % 1000:03d}"
