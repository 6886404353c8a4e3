"""`admin simulate`: the scheduler's own core, driven by a trace in virtual time."""

from pathlib import Path
from typing import Annotated

import typer

from cli.errors import ExitCode, NotFound, Problem, Refusal, UsageProblem
from cli.layout import Column, View
from cli.render import envelope
from cli.session import Session


def simulate(
    ctx: typer.Context,
    cluster: Annotated[
        str | None, typer.Option("--cluster", metavar="FILE.toml", help="[[nodes]] with count, gpus, cpus …")
    ] = None,
    jobs: Annotated[
        str | None, typer.Option("--jobs", metavar="FILE.csv", help="A row a job, times in seconds.")
    ] = None,
    state: Annotated[
        str | None, typer.Option("--state", metavar="FILE.json", help="Begin with what 'admin state dump' wrote.")
    ] = None,
    used: Annotated[
        str, typer.Option("--used", metavar="PERCENT", help="Of their limits, what a state's jobs are taken to need.")
    ] = "100",
    policy: Annotated[str | None, typer.Option("--policy", metavar="FILE.toml", help="Knobs of the policy.")] = None,
    against: Annotated[
        str | None, typer.Option("--against", metavar="FILE.toml", help="A second policy, on the same jobs.")
    ] = None,
    order: Annotated[
        str | None, typer.Option("--order", metavar="WORD", help="fair, fifo, sjf, srtf or finish-time.")
    ] = None,
    backfill: Annotated[
        str | None, typer.Option("--backfill", metavar="WORD", help="none, easy or conservative.")
    ] = None,
    placement: Annotated[
        str | None, typer.Option("--placement", metavar="WORD", help="best-fit, fgd or random.")
    ] = None,
    preemption: Annotated[
        str | None, typer.Option("--preemption", metavar="WORD", help="off, guarantee or fair.")
    ] = None,
    restart_cost: Annotated[
        str, typer.Option("--restart-cost", metavar="SECONDS", help="Lost when a job starts again.")
    ] = "0",
    seed: Annotated[str, typer.Option("--seed", metavar="N", help="For random placement.")] = "0",
    schedule: Annotated[
        str | None, typer.Option("--schedule", metavar="FILE.csv", help="Write a row per allocation here.")
    ] = None,
    plot: Annotated[
        str | None, typer.Option("--plot", metavar="FILE.svg|png", help="Draw what was held and what waited.")
    ] = None,
) -> int:
    """Replay jobs on a cluster in virtual time; report waiting, slowdown, utilisation, fairness.

    The same files give the same schedule, byte for byte; only the measured times of the planner differ.

    Examples:
      turnstile admin simulate --cluster park.toml --jobs october.csv
      turnstile admin simulate --cluster park.toml --jobs october.csv -o json --schedule schedule.csv
      turnstile admin simulate --cluster park.toml --jobs october.csv --order fifo --backfill none
      turnstile admin simulate --state now.json --used 60 --against other-policy.toml
    """
    from scheduler.refusal import Refused
    from scheduler.whatif import Question
    from scheduler.whatif import simulate as answer

    session: Session = ctx.obj
    question = Question(
        _input(cluster),
        _input(jobs),
        policy=_input(policy),
        against=_input(against),
        order=order,
        backfill=backfill,
        placement=placement,
        preemption=preemption,
        restart_cost_seconds=_whole("--restart-cost", restart_cost),
        seed=_whole("--seed", seed),
        schedule=_path(schedule),
        plot=_path(plot),
        state=_input(state),
        used_percent=_percent(used),
    )
    try:
        report = answer(question)
    except Refused as refused:
        problems = [(each.field, each.message) for each in refused.problems]
        raise _refusal(refused.message, refused.tries, problems) from None
    except OSError as problem:
        raise Refusal(f"{problem.filename} cannot be written: {problem.strerror}") from None
    session.screen.document(envelope("SimulationReport", report), _VIEW, _told(report))
    return ExitCode.DONE


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


def _input(text: str | None) -> Path | None:
    if text is not None and not Path(text).exists():
        raise NotFound(f"there is no file {text}")
    return _path(text)


def _whole(flag: str, text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise UsageProblem(f"{flag} {text!r} is not a whole number", f"{flag} 60")
    return int(text)


def _percent(text: str) -> int:
    found = _whole("--used", text)
    if not 1 <= found <= 100:
        raise UsageProblem(f"--used {text} is no percentage of a limit", "--used 60")
    return found


def _refusal(message: str, tries: tuple[str, ...], problems: list[tuple[str | None, str]]) -> Refusal:
    refusal = Refusal(message, *tries)
    refusal.problems = tuple(Problem(field or "", text) for field, text in problems)
    return refusal


def _told(report: dict[str, object]) -> list[str]:
    lines = []
    for name, value in report.items():
        words = name.replace("_", " ")
        if isinstance(value, dict) and name == "against":
            lines += ["", "against the other policy:", *(f"  {line}" for line in _told(value))]
        elif isinstance(value, dict):
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
        *("preemptions", "gpu_seconds_lost"),
        *("wait_seconds.max", "bounded_slowdown.mean", "utilization_ratio", "fragmentation_ratio", "fairness_error"),
    ),
)
