"""A job as it is asked for over HTTP: `JobSpec`, strict, its unknown keys refused by name, all problems at once."""

import re
from collections.abc import Iterator
from decimal import ROUND_FLOOR, Decimal
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from scheduler.core.model import BookingWanted, DependencyKind, EndReason, JobId
from scheduler.core.outcome import RETRIED
from scheduler.notices import NoticeEvent, NoticeWhen
from scheduler.refusal import Problem, RefusalCode, Refused
from scheduler.wire.text import (
    MOST_INTEGER,
    AccountPath,
    Argument,
    EnvironmentName,
    Name,
    Path,
    SecretName,
    Words,
    problems_of,
    shown,
)

MOST_NODES = 100_000
MOST_ARRAY_ELEMENTS = 100_000
MOST_COMMAND_BYTES = 128 * 1024
"""Of argv and environment together: Linux' MAX_ARG_STRLEN, the limit of one argument, is the same."""
_MOST_ARRAY_INDEX = 4_194_303  # Slurm's own upper bound of MaxArraySize (slurm.conf)
_AFTER = re.compile(r"(?:([a-z]+):)?(\d{1,15})(?:_(\d{1,7}))?\Z", re.ASCII)
_AFTER_WORDS = {
    "ok": DependencyKind.AFTEROK,
    "any": DependencyKind.AFTERANY,
    "fail": DependencyKind.AFTERNOTOK,
    "start": DependencyKind.AFTER,
    **{kind.value: kind for kind in DependencyKind if kind is not DependencyKind.SINGLETON},
}
_ARRAY_PART = re.compile(r"(\d{1,12})(?:-(\d{1,12})(?::(\d{1,12}))?)?\Z")

Count = Annotated[int, Field(ge=1, le=MOST_NODES)]
Size = Annotated[int, Field(ge=1, le=MOST_INTEGER)]

MOST_PROBLEMS = 20
"""Told of one request: a page of a terminal. A list of a thousand wrong names has one cause."""


class PriorityWord(StrEnum):
    """A job's place inside its project."""

    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"


class CheckpointSignal(StrEnum):
    """What may ask a program to save its work: signals that it can handle."""

    TERM = "TERM"
    INT = "INT"
    HUP = "HUP"
    USR1 = "USR1"
    USR2 = "USR2"


class Compat(StrEnum):
    """Another scheduler whose variables a job may ask for."""

    SLURM = "slurm"


PRIORITIES = {PriorityWord.LOW: -1, PriorityWord.NORMAL: 0, PriorityWord.HIGH: 1}
PRIORITY_WORDS = {number: word.value for word, number in PRIORITIES.items()}


class MoneySpec(BaseModel):
    """An amount: decimal digits, and the currency, by default that of the prices."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    amount: Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,11})(\.[0-9]{1,6})?$")]
    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")] | None = None


class JobSpec(BaseModel):
    """One job, or an array of them. Durations in seconds, sizes in bytes, GPUs and CPUs per node unless named total."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: Name | None = Field(None, description="Default: the command's own name.")
    project: AccountPath | None = Field(None, description="Path from the token's account; default: that account.")
    command: tuple[Argument, ...] | None = Field(None, min_length=1, max_length=4096, description="argv, no shell.")
    script: Argument | None = Field(None, min_length=1, description="Run by /bin/sh -c; instead of `command`.")
    env: dict[EnvironmentName, Argument] = Field(default_factory=dict, max_length=1024)
    secrets: tuple[SecretName, ...] = Field((), max_length=64, description="Given as variables of these names.")
    workdir: Path | None = None
    image: Path | None = None
    volumes: tuple[Name, ...] = Field((), max_length=32, description="What the centre offers to mount, by name.")
    shm_bytes: Size | None = Field(None, description="Size of the container's /dev/shm.")
    output: Path | None = Field(None, description="A file for the output besides the kept log.")
    nodes: Count | None = Field(None, description="Default 1, or what `total_gpus` needs.")
    nodes_max: Count | None = Field(
        None, description="Of an elastic gang: it starts on `nodes` nodes at least, and on so many at most."
    )
    gpus_per_node: Annotated[float, Field(gt=0, le=MOST_NODES, allow_inf_nan=False)] | None = Field(
        None, description="A whole number; or a share of one GPU, in hundredths: 0.5."
    )
    total_gpus: Annotated[int, Field(ge=1, le=10_000_000)] | None = Field(None, description="Instead of gpus_per_node.")
    exclusive: bool = Field(False, description="Whole nodes: all GPUs of each, instead of a count of them.")
    gpu_classes: tuple[Name, ...] = Field(
        (), max_length=16, description="In order of preference; empty: any that fits, the least asked for first."
    )
    gpu_memory_bytes: Size | None = Field(None, description="Only classes whose GPUs have at least so much memory.")
    pool: Name | None = None
    only_nodes: tuple[Name, ...] = Field((), max_length=1024)
    exclude_nodes: tuple[Name, ...] = Field((), max_length=1024)
    constraints: dict[Name, Words] = Field(default_factory=dict, max_length=32)
    cpus_per_node: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    memory_bytes_per_node: Size | None = None
    time_limit_seconds: Annotated[int, Field(ge=1, le=MOST_INTEGER)]
    booking: BookingWanted = BookingWanted.AUTO
    priority: PriorityWord = PriorityWord.NORMAL
    begin_at: AwareDatetime | None = None
    deadline_at: AwareDatetime | None = None
    hold: bool = False
    terminal: bool = Field(False, description="It gets a terminal, at which somebody is to sit: run --pty.")
    retries: Annotated[int, Field(ge=0, le=100)] = 0
    retry_on: tuple[Name, ...] = Field((), max_length=8, description="The failures that are retried; empty: all.")
    array: Annotated[str, Field(min_length=1, max_length=4096)] | None = Field(
        None, description="As in 0-99, 1,3,5-7, or 0-99%8: eight at once at most."
    )
    after: tuple[Annotated[str, Field(max_length=64)], ...] = Field(
        (), max_length=256, description="afterok:17, afterany:17_3, afternotok:17, after:17, singleton."
    )
    topology: Name | None = Field(None, description="required:LABEL or preferred:LABEL: nodes that share its value.")
    grace_seconds: Annotated[int, Field(ge=0, le=3600)] | None = Field(None, description="Between SIGTERM and SIGKILL.")
    checkpoint_signal: CheckpointSignal | None = Field(
        None, description="Instead of SIGTERM, before the grace: what the program saves its work at."
    )
    idle_stop_seconds: Annotated[int, Field(ge=60, le=MOST_INTEGER)] | None = Field(
        None, description="It is ended, reason idle_stop, when all its GPUs were idle for so long."
    )
    compat: Compat | None = Field(None, description="slurm: its environment has SLURM_* variables too.")
    labels: dict[Name, Words] = Field(default_factory=dict, max_length=32)
    max_cost: MoneySpec | None = Field(None, description="The most that it may cost, all starts and elements together.")
    notify: tuple[NoticeEvent, ...] | None = Field(None, max_length=32, description="Default: what its user asked for.")
    notify_when: NoticeWhen = Field(NoticeWhen.EACH, description="Of an array: for each element, or when all ended.")


SPEC_FIELDS = tuple(JobSpec.model_fields)


def parse_spec(body: bytes) -> JobSpec:
    """Returns the job asked for. Raises Refused (`invalid`) with all that is wrong in the body itself."""
    try:
        spec = JobSpec.model_validate_json(body)
    except ValidationError as error:
        raise invalid(problems_of(error, SPEC_FIELDS)) from None
    problems = tuple(_contradictions(spec))
    if problems:
        raise invalid(problems)
    return spec


def invalid(problems: tuple[Problem, ...]) -> Refused:
    """Returns the refusal that names the problems, the first MOST_PROBLEMS of them; the first stands in its message."""
    first = problems[0]
    sentence = f"{first.field}: {first.message}" if first.field else first.message
    if len(problems) > 1:
        sentence = f"the request has {len(problems)} problems; first: {sentence}"
    if len(problems) > MOST_PROBLEMS:
        problems = (*problems[:MOST_PROBLEMS], Problem(f"and {len(problems) - MOST_PROBLEMS} more"))
    return Refused(RefusalCode.INVALID, sentence, problems=problems)


def _contradictions(spec: JobSpec) -> Iterator[Problem]:
    if (spec.command is None) == (spec.script is None):
        yield Problem("give a command or a script, one of them", "command")
    if spec.command is not None and not spec.command[0]:
        yield Problem("its first word is the program to run and must not be empty", "command")
    if spec.workdir is not None and not PurePosixPath(spec.workdir).is_absolute():
        yield Problem("must begin with '/': a job has no directory that this could be relative to", "workdir")
    yield from _counts(spec)
    texts = [*(spec.command or ()), spec.script or "", *spec.env, *spec.env.values()]
    size = sum(len(text.encode()) + 1 for text in texts)
    if size > MOST_COMMAND_BYTES:
        yield Problem(
            f"the command and its environment are {size} bytes; {MOST_COMMAND_BYTES} is the most. "
            "Put the text into a file and name the file",
            "command",
        )
    if spec.only_nodes and set(spec.only_nodes) <= set(spec.exclude_nodes):
        yield Problem("every node of only_nodes is excluded", "exclude_nodes")
    if spec.array and "%" in spec.array and not re.search(r"%[1-9]\d{0,6}\Z", spec.array, re.ASCII):
        yield Problem("what stands behind '%' is how many run at once: 0-99%8", "array")
    yield from _bad_words(spec)
    if spec.begin_at and spec.deadline_at and spec.deadline_at <= spec.begin_at:
        yield Problem("is not after begin_at", "deadline_at")
    if spec.notify_when is NoticeWhen.LAST and spec.array is None:
        yield Problem("last is of an array", "notify_when")


def _bad_range(spec: JobSpec) -> Iterator[Problem]:
    """Yields what is wrong with an elastic range of nodes."""
    if spec.nodes_max is None:
        return
    least, most = spec.nodes, spec.nodes_max
    if least is None:
        yield Problem(f"say also how many nodes it needs at least: nodes, of which it may have {most}", "nodes")
    elif most < least:
        yield Problem(f"is the most and less than the least: {least}-{most} is written {most}-{least}", "nodes_max")
    elif most == least:
        return
    if spec.total_gpus is not None:
        yield Problem(
            "an elastic gang says its GPUs per node: how many there are in all depends on its nodes", "total_gpus"
        )
    if spec.gpus_per_node is not None and spec.gpus_per_node < 1:
        yield Problem("an elastic gang has whole GPUs, not a share of one on each node", "gpus_per_node")
    if spec.booking is BookingWanted.GUARANTEED:
        yield Problem(
            f"surplus nodes are burst, never guaranteed: ask for {least or 1} nodes, or leave the booking out, and the "
            "least nodes are guaranteed where the guarantee has room",
            "booking",
        )


def _counts(spec: JobSpec) -> Iterator[Problem]:
    """Yields what is wrong with how many GPUs are asked for."""
    if spec.exclusive and (spec.gpus_per_node is not None or spec.total_gpus is not None):
        yield Problem("takes all GPUs of a node, and a count of GPUs is named too; leave one of them out", "exclusive")
    elif not spec.exclusive and (spec.gpus_per_node is None) == (spec.total_gpus is None):
        yield Problem("say how many GPUs: gpus_per_node or total_gpus, one of them", "gpus_per_node")
    if spec.gpus_per_node is not None and (words := _uneven(Decimal(repr(spec.gpus_per_node)))):
        yield Problem(words, "gpus_per_node")
    yield from _bad_range(spec)
    if spec.total_gpus is not None and spec.nodes is not None and spec.total_gpus % spec.nodes:
        yield Problem(f"{spec.total_gpus} GPUs do not divide evenly over {spec.nodes} nodes", "total_gpus")


def _uneven(gpus: Decimal) -> str | None:
    """Returns what is wrong with a count of GPUs that is neither whole nor a share in hundredths."""
    if gpus == gpus.to_integral_value():
        return None
    if gpus > 1:
        return f"must be a whole number, or a share of one GPU such as 0.5; {gpus} is neither"
    if gpus * 100 == (gpus * 100).to_integral_value():
        return None
    low = gpus.quantize(Decimal("0.01"), ROUND_FLOOR)
    near = " or ".join(str(each) for each in (low, low + Decimal("0.01")) if 0 < each < 1)
    return f"a share is told in hundredths of a GPU, so that it adds up exactly: {near}, not {gpus}"


def _bad_words(spec: JobSpec) -> Iterator[Problem]:
    if spec.terminal and (spec.array is not None or max(spec.nodes or 1, spec.nodes_max or 1) > 1):
        yield Problem("one sits at one terminal: of one job, on one node", "terminal")
    for text in spec.after:
        if parse_after(text) is None:
            yield Problem(
                f"{shown(text)!r} is not afterok:17, afterany:17_3, afternotok:17, after:17, singleton", "after"
            )
    retried = sorted(reason.value for reason in RETRIED)
    for word in spec.retry_on:
        if word not in retried:
            yield Problem(f"{shown(word)!r} is no failure that is retried: {', '.join(retried)}", "retry_on")
    if spec.topology is not None and parse_topology(spec.topology) is None:
        yield Problem("is written required:LABEL or preferred:LABEL", "topology")


def parse_after(text: str) -> tuple[DependencyKind, tuple[JobId, int | None] | None] | None:
    """Returns what is waited for and the job, with its element, of `any:17_3`; a bare number means its success.

    None for what is no such text. The words are ours (`ok any fail start`) or Slurm's; `singleton` names no job.
    """
    if text == DependencyKind.SINGLETON:
        return DependencyKind.SINGLETON, None
    match = _AFTER.match(text)
    kind = None if match is None else _AFTER_WORDS.get(match[1] or "ok")
    if match is None or kind is None:
        return None
    return kind, (JobId(int(match[2])), None if match[3] is None else int(match[3]))


def parse_topology(text: str) -> tuple[str, bool] | None:
    """Returns (label, whether it is required) of `required:rack`; None for what is no such text."""
    how, colon, label = text.partition(":")
    if how not in {"required", "preferred"} or not colon or not label:
        return None
    return label, how == "required"


def retried_reasons(spec: JobSpec) -> tuple[EndReason, ...]:
    """Returns the failures that the job is started again after, in order and each once; empty for all."""
    return tuple(sorted({EndReason(word) for word in spec.retry_on}))


def parse_cap(text: str) -> int | None:
    """Returns how many elements of an array may run at once, 8 of `0-99%8`; None where it does not say."""
    _, percent, cap = text.partition("%")
    return int(cap) if percent else None


def parse_array(text: str) -> tuple[int, ...]:
    """Returns the indexes of an array in order, each once: `0-99`, `1,3,5-7`, `0-15:4`, `0-99%8`.

    Raises Refused (`invalid`) for what is no such text or has more than MOST_ARRAY_ELEMENTS elements.
    """
    body = text.partition("%")[0]
    ranges = [_array_range(part.strip()) for part in body.split(",")]
    if sum(len(part) for part in ranges) > MOST_ARRAY_ELEMENTS:
        raise invalid((Problem(_too_many(ranges), "array"),))
    return tuple(sorted({index for part in ranges for index in part}))


def _too_many(ranges: list[range]) -> str:
    asked = sum(len(part) for part in ranges)
    return f"{asked:,} elements are too many for one array; at most {MOST_ARRAY_ELEMENTS:,}, so submit several"


def _array_range(part: str) -> range:
    match = _ARRAY_PART.match(part)
    if match is None or not part.isascii():
        raise invalid((Problem("is written 0-99, 1,3,5-7 or 0-15:4", "array"),))
    first = int(match[1])
    last = first if match[2] is None else int(match[2])
    step = 1 if match[3] is None else int(match[3])
    if last < first or step < 1:
        raise invalid((Problem(f"a range goes up, by at least 1: {last}-{first}", "array"),))
    if last > _MOST_ARRAY_INDEX:
        raise invalid((Problem(f"index {last} is too large; the largest is {_MOST_ARRAY_INDEX}", "array"),))
    return range(first, last + 1, step)
