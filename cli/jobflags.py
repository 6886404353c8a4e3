"""The flags of `submit` and `run`, and the job that they ask for (JobSpec of docs/api.md)."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from decimal import Decimal
from pathlib import Path
from typing import Annotated

import typer

from cli import moments, values
from cli.errors import UsageProblem, unreadable

FLAGS_OF_FIELDS = {
    "after": "--after",
    "array": "-a",
    "begin_at": "--begin",
    "booking": "--booking",
    "checkpoint_signal": "--checkpoint-signal",
    "command": "the command",
    "compat": "--compat",
    "constraints": "--constraint",
    "cpus_per_node": "-c",
    "deadline_at": "--deadline",
    "env": "-e",
    "exclude_nodes": "--exclude",
    "exclusive": "--exclusive",
    "gpu_classes": "-g",
    "gpu_memory_bytes": "-g",
    "gpus_per_node": "-g",
    "grace_seconds": "--grace",
    "idle_stop_seconds": "--idle-stop",
    "image": "-i",
    "labels": "-l",
    "max_cost": "--max-cost",
    "memory_bytes_per_node": "-m",
    "name": "-n",
    "nodes": "-N",
    "nodes_max": "-N",
    "notify": "--notify",
    "notify_when": "--notify-when",
    "only_nodes": "--node",
    "output": "--output",
    "pool": "-p",
    "priority": "--priority",
    "project": "-A",
    "retries": "--retries",
    "retry_on": "--retry-on",
    "secrets": "--secret",
    "shm_bytes": "--shm",
    "terminal": "--pty",
    "time_limit_seconds": "-t",
    "topology": "--topology",
    "total_gpus": "--total-gpus",
    "volumes": "--volume",
    "workdir": "-w",
}
"""The flag that stands for each field of JobSpec."""


@dataclass(frozen=True, slots=True)
class JobFlags:
    """What a job may be asked for, one flag each; None where nothing was typed."""

    gpus: Annotated[
        str | None, typer.Option("-g", "--gpus", metavar="GPUS", help="Per node: H100:8, 8, H200,H100:8, 80GB:2.")
    ] = None
    nodes: Annotated[
        str | None, typer.Option("-N", "--nodes", metavar="N[-M]", help="Nodes; 2-8: at least 2, up to 8 where free.")
    ] = None
    total_gpus: Annotated[
        str | None, typer.Option("--total-gpus", metavar="GPUS", help="In all, instead of per node: 64, H100:64.")
    ] = None
    exclusive: Annotated[
        bool, typer.Option("--exclusive", help="Whole nodes, all their GPUs; -g names the class alone: -g H100.")
    ] = False
    cpus: Annotated[str | None, typer.Option("-c", "--cpus", metavar="N", help="CPU cores per node.")] = None
    mem: Annotated[str | None, typer.Option("-m", "--mem", metavar="SIZE", help="Memory per node: 64G, 1.5TiB.")] = None
    pool: Annotated[str | None, typer.Option("-p", "--pool", metavar="NAME", help="Nodes of this pool only.")] = None
    time: Annotated[
        str | None, typer.Option("-t", "--time", metavar="DUR", help="Limit: 90m, 12h, 2d, 1-12:00:00, 04:00:00.")
    ] = None
    booking: Annotated[str | None, typer.Option("--booking", metavar="HOW", help="auto, guaranteed or spot.")] = None
    spot: Annotated[bool, typer.Option("--spot", help="Short for --booking spot.")] = False
    node: Annotated[list[str] | None, typer.Option("--node", metavar="NODE", help="Only this node; repeatable.")] = None
    exclude: Annotated[
        list[str] | None, typer.Option("--exclude", metavar="NODE", help="Not this node; repeatable.")
    ] = None
    constraint: Annotated[
        list[str] | None, typer.Option("--constraint", metavar="K=V", help="Nodes with this label; repeatable.")
    ] = None
    topology: Annotated[
        str | None,
        typer.Option("--topology", metavar="HOW:LABEL", help="required:rack, preferred:rack: nodes near each other."),
    ] = None
    image: Annotated[str | None, typer.Option("-i", "--image", metavar="REF", help="Container image.")] = None
    volume: Annotated[
        list[str] | None, typer.Option("--volume", metavar="NAME", help="Mount what the centre offers; repeatable.")
    ] = None
    shm: Annotated[str | None, typer.Option("--shm", metavar="SIZE", help="Size of the container's /dev/shm.")] = None
    name: Annotated[str | None, typer.Option("-n", "--name", "-J", metavar="TEXT", help="Name of the job.")] = None
    project: Annotated[str | None, typer.Option("-A", "--project", metavar="NAME", help="Who it is for.")] = None
    workdir: Annotated[
        str | None, typer.Option("-w", "--workdir", metavar="DIR", help="Where it runs; here unless --image is given.")
    ] = None
    env: Annotated[
        list[str] | None, typer.Option("-e", "--env", metavar="K[=V]", help="Environment; K alone passes yours on.")
    ] = None
    env_file: Annotated[
        str | None, typer.Option("--env-file", metavar="F", help="A file of K=V lines, no quoting.")
    ] = None
    secrets: Annotated[
        list[str] | None, typer.Option("--secret", metavar="NAME", help="A secret, as a variable; repeatable.")
    ] = None
    output: Annotated[
        str | None, typer.Option("--output", metavar="PATTERN", help="A file for its output, besides the kept log.")
    ] = None
    label: Annotated[list[str] | None, typer.Option("-l", "--label", metavar="K=V", help="Label; repeatable.")] = None
    after: Annotated[
        list[str] | None,
        typer.Option("--after", metavar="[WORD:]JOB", help="17, any:17, fail:17_3, start:17, singleton; repeatable."),
    ] = None
    begin: Annotated[
        str | None, typer.Option("--begin", metavar="TIME", help="Not before: now+2h, 20:00, 2026-11-24T08:00.")
    ] = None
    deadline: Annotated[str | None, typer.Option("--deadline", metavar="TIME", help="Of no use after this time.")] = (
        None
    )
    priority: Annotated[
        str | None, typer.Option("--priority", metavar="WORD", help="low, normal or high, in its project.")
    ] = None
    hold: Annotated[bool, typer.Option("--hold", help="Wait until it is released.")] = False
    array: Annotated[
        str | None, typer.Option("-a", "--array", metavar="RANGE", help="0-99%8: a hundred, at most eight at once.")
    ] = None
    retries: Annotated[str | None, typer.Option("--retries", metavar="N", help="Start again after a failure.")] = None
    retry_on: Annotated[
        str | None,
        typer.Option("--retry-on", metavar="WHY,WHY", help="Only after these: exit_nonzero, oom, launch_failed …"),
    ] = None
    grace: Annotated[str | None, typer.Option("--grace", metavar="DUR", help="Between SIGTERM and SIGKILL: 120s.")] = (
        None
    )
    checkpoint_signal: Annotated[
        str | None, typer.Option("--checkpoint-signal", metavar="NAME", help="Instead of TERM: INT, HUP, USR1, USR2.")
    ] = None
    idle_stop: Annotated[
        str | None, typer.Option("--idle-stop", metavar="DUR", help="End it when its GPUs were idle for: 30m.")
    ] = None
    compat: Annotated[
        str | None, typer.Option("--compat", metavar="WHAT", help="slurm: the job sees SLURM_* variables too.")
    ] = None
    sweep: Annotated[
        list[str] | None, typer.Option("--sweep", metavar="K=V,V", help="A job for each value; repeat: for each pair.")
    ] = None
    notify: Annotated[
        list[str] | None, typer.Option("--notify", metavar="EVENT[,EVENT]", help="Be told: end, fail, preempt, idle …")
    ] = None
    notify_when: Annotated[
        str | None, typer.Option("--notify-when", metavar="WORD", help="Of an array: each element, or the last.")
    ] = None
    max_cost: Annotated[
        str | None, typer.Option("--max-cost", metavar="AMOUNT", help="Refuse what may cost more than this.")
    ] = None
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would happen, and submit nothing.")] = False
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Don't ask; submitting never does.")] = False
    lenient: Annotated[bool, typer.Option("--lenient", help="Leave out what is not supported.")] = False


_ADDED_UP = ("env", "secrets", "label", "constraint", "sweep")
"""Flags whose values are added to those below them, a later one of the same key winning; others replace them."""
_INSTEAD = {"gpus": ("total_gpus",), "total_gpus": ("gpus",), "spot": ("booking",), "booking": ("spot",)}
"""Flags that say the same thing in other ways: typing one takes the others' words back."""


def layered(above: JobFlags, below: JobFlags) -> JobFlags:
    """Returns what holds where two things ask: flags `above` a job file or the lines of a script `below`."""
    found = {field.name: getattr(below, field.name) for field in fields(JobFlags)}
    said = {field.name: value for field in fields(JobFlags) if (value := getattr(above, field.name)) != field.default}
    defaults = {field.name: field.default for field in fields(JobFlags)}
    for name in said:
        found.update({other: defaults[other] for other in _INSTEAD.get(name, ())})
    for name, value in said.items():
        found[name] = [*(found[name] or []), *value] if name in _ADDED_UP else value
    return JobFlags(**found)


def spec_of(
    flags: JobFlags, work: Mapping[str, object], project: str | None, environment: Mapping[str, str]
) -> dict[str, object]:
    """Returns the job that the flags ask for. Raises UsageProblem for what cannot be meant.

    `work` is what it runs: `command`, or `script`. Only what was asked for is named, so that the server's defaults hold
    for the rest.
    """
    now = moments.current()
    spec: dict[str, object] = {**work, "project": flags.project or project, **_resources(flags)}
    spec |= {
        "name": flags.name,
        "image": flags.image,
        "volumes": list(_several(flags.volume)),
        "shm_bytes": None if flags.shm is None else values.size(flags.shm, "--shm"),
        "workdir": _workdir(flags),
        "output": flags.output,
        "env": _environment(flags, environment),
        "labels": _pairs(flags.label, "-l"),
        "secrets": list(dict.fromkeys(name for each in flags.secrets or () for name in each.split(","))),
        "priority": _chosen(flags.priority, "--priority", ("low", "normal", "high")),
        "booking": _booking(flags),
        "begin_at": None if flags.begin is None else moments.write(moments.ahead(flags.begin, "--begin", now)),
        "deadline_at": None
        if flags.deadline is None
        else moments.write(moments.ahead(flags.deadline, "--deadline", now)),
        "hold": flags.hold or None,
        "array": None if flags.array is None else values.array(flags.array),
        "retry_on": [] if flags.retry_on is None else values.retry_on(flags.retry_on),
        "after": [":".join(filter(None, values.after(each))) for each in _several(flags.after)],
        "retries": None if flags.retries is None else values.count(flags.retries, "--retries", least=0),
        "notify": [event for each in flags.notify or () for event in values.notice_events(each)],
        "notify_when": _chosen(flags.notify_when, "--notify-when", ("each", "last")),
        "checkpoint_signal": None
        if flags.checkpoint_signal is None
        else values.checkpoint_signal(flags.checkpoint_signal),
        "idle_stop_seconds": None if flags.idle_stop is None else values.duration(flags.idle_stop, "--idle-stop"),
        "compat": _chosen(flags.compat, "--compat", ("slurm",)),
        "grace_seconds": None if flags.grace is None else values.duration(flags.grace, "--grace"),
    }
    return {name: value for name, value in spec.items() if value not in (None, {}, [])}


def _resources(flags: JobFlags) -> dict[str, object]:
    if flags.gpus is not None and flags.total_gpus is not None:
        raise UsageProblem(
            "-g and --total-gpus both say how many GPUs", f"-g {flags.gpus}", f"--total-gpus {flags.total_gpus}"
        )
    if flags.exclusive and flags.total_gpus is not None:
        raise UsageProblem("--exclusive takes all GPUs of a node, and --total-gpus counts them", "--exclusive -N 2")
    read = values.gpu_kind if flags.exclusive else values.gpus
    each = None if flags.gpus is None else read(flags.gpus)
    total = None if flags.total_gpus is None else values.total_gpus(flags.total_gpus)
    asked, count = each or total, None if each is None or flags.exclusive else each.count
    least, most = (None, None) if flags.nodes is None else values.nodes(flags.nodes)
    return {
        # A share is a JSON number like any other; up to four decimals it is written as it was typed.
        "gpus_per_node": float(count) if isinstance(count, Decimal) else count,
        "gpu_classes": [] if asked is None else list(asked.classes),
        "gpu_memory_bytes": None if asked is None else asked.memory_bytes,
        "exclusive": flags.exclusive or None,
        "total_gpus": None if total is None else total.count,
        "nodes": least,
        "nodes_max": most,
        "cpus_per_node": None if flags.cpus is None else values.count(flags.cpus, "-c"),
        "memory_bytes_per_node": None if flags.mem is None else values.size(flags.mem, "-m"),
        "time_limit_seconds": None if flags.time is None else values.duration(flags.time, "-t"),
        "pool": flags.pool,
        "only_nodes": [name for each in flags.node or () for name in each.split(",")],
        "exclude_nodes": [name for each in flags.exclude or () for name in each.split(",")],
        "constraints": _pairs(flags.constraint, "--constraint"),
        "topology": None if flags.topology is None else values.topology(flags.topology),
    }


def _several(texts: list[str] | None) -> list[str]:
    return [each for text in texts or () for each in text.split(",")]


def _booking(flags: JobFlags) -> str | None:
    chosen = _chosen(flags.booking, "--booking", ("auto", "guaranteed", "spot"))
    if flags.spot and chosen not in (None, "spot"):
        raise UsageProblem(f"--spot and --booking {chosen} contradict each other", "--spot", f"--booking {chosen}")
    return "spot" if flags.spot else chosen


def _chosen(typed: str | None, flag: str, allowed: tuple[str, ...]) -> str | None:
    return None if typed is None else values.choice(typed, flag, allowed)


def _pairs(texts: list[str] | None, flag: str) -> dict[str, str]:
    return dict(values.pair(each, flag) for each in texts or ())


def _workdir(flags: JobFlags) -> str | None:
    if flags.workdir is not None:
        return flags.workdir if flags.image is not None else str(Path(flags.workdir).expanduser().absolute())
    # An image has directories of its own; a job without one runs where it was submitted, as with sbatch.
    return None if flags.image is not None else str(Path.cwd())


def _environment(flags: JobFlags, caller: Mapping[str, str]) -> dict[str, str]:
    lines: list[str] = []
    if flags.env_file is not None:
        try:
            lines = values.environment_lines(Path(flags.env_file).read_text(encoding="utf-8"))
        except OSError as problem:
            raise unreadable(flags.env_file, problem) from None
        except UnicodeDecodeError:
            raise UsageProblem(f"--env-file {flags.env_file} is not text in UTF-8") from None
    return {
        **values.environment(lines, caller, f"--env-file {flags.env_file}"),
        **values.environment(flags.env or (), caller, "-e"),
    }
