"""Reads the `#SBATCH` lines of a script: the options that mean the same here, in Slurm's own units.

What Slurm reads by its own rules is kept right: `--gpus` is the total of the job where ours is per node, a bare time is
minutes, a bare size is MiB, CPUs are per task. Whatever is translated is printed back as our flags; whatever is not is
named with its line and its reason. The rules are those of sbatch(1), Slurm 22.05.
"""

import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cli import phrases
from cli.errors import CliError, ExitCode, Problem, UsageProblem
from cli.jobflags import JobFlags
from cli.moments import ahead, current

_MOST_LINES = 1000
"""Comment lines before a script's first command; sbatch stops at the first command too."""
_LONG_OF = {
    "-J": "--job-name", "-N": "--nodes", "-t": "--time", "-p": "--partition", "-A": "--account", "-a": "--array",
    "-d": "--dependency", "-c": "--cpus-per-task", "-G": "--gpus", "-o": "--output", "-b": "--begin", "-H": "--hold",
}  # fmt: skip
_WITHOUT_VALUE = frozenset({"--hold", "--requeue"})
_TIME = re.compile(r"(?:([0-9]{1,5})-)?([0-9]{1,7})(?::([0-9]{1,4}))?(?::([0-9]{1,4}))?", re.ASCII)
_SIZE = re.compile(r"([0-9]{1,12})([KMGT]?)B?", re.ASCII | re.IGNORECASE)
_GPUS = re.compile(r"(?:([A-Za-z][A-Za-z0-9._-]*):)?([0-9]{1,6})", re.ASCII)
_SHIFT = re.compile(r"now(?:\+([0-9]{1,9})(second|minute|hour|day|week)?s?)?", re.ASCII | re.IGNORECASE)
_SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400, "week": 604_800}
_PATTERNS = frozenset("jxan%")
"""What `%` may be followed by in an output file's name, with the same meaning as in Slurm."""


class NotSupported(CliError):
    """A script has `#SBATCH` options that cannot be kept; `problems` has them all."""

    exit_code = ExitCode.REFUSED

    def __init__(self, name: str, problems: tuple[Problem, ...]) -> None:
        many = "an #SBATCH option that is" if len(problems) == 1 else f"{len(problems)} #SBATCH options that are"
        super().__init__(
            f"{name} has {many} not supported",
            code="unsupported",
            tries=("--lenient", "the same as flags"),
            problems=problems,
        )


@dataclass(frozen=True, slots=True)
class Directives:
    """What a script's lines ask for: our flags, the same as one would type them, notes, and what is not supported."""

    flags: JobFlags = field(default_factory=JobFlags)
    typed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    unsupported: tuple[Problem, ...] = ()

    @property
    def is_empty(self) -> bool:
        """True where a script says nothing to Slurm."""
        return not (self.typed or self.notes or self.unsupported)


class _Unsupported(Exception):
    """An option means nothing here; its text says why."""


@dataclass(slots=True)
class _Found:
    """What has been read so far, by the fields of JobFlags; a later line wins."""

    flags: dict[str, str | bool] = field(default_factory=dict)
    tasks: int = 1
    cpus_per_task: int | None = None
    notes: dict[str, str] = field(default_factory=dict)


def directives(path: Path) -> Directives:
    """Returns what the `#SBATCH` lines of a script ask for. Raises OSError."""
    with path.open("rb") as opened:
        lines = [line.decode("utf-8", "replace") for _, line in zip(range(_MOST_LINES), opened, strict=False)]
    return read(lines)


def read(lines: list[str]) -> Directives:
    """Returns what lines of a script ask for; those behind its first command are comments, as for sbatch."""
    found, unsupported = _Found(), []
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.startswith("#"):
            break
        if re.match(r"#SBATCH(\s|$)", line):
            for option, value, problem in _options(line.removeprefix("#SBATCH")):
                try:
                    if problem is not None:
                        raise _Unsupported(problem)  # noqa: TRY301  (one way for all that is not kept)
                    _READERS.get(option, _unknown)(found, value)
                except _Unsupported as why:
                    said = f"{option}={value}" if value else option
                    unsupported.append(Problem(f"line {number}", f"{said}: {why}"))
    if found.cpus_per_task is not None:
        found.flags["cpus"] = str(found.cpus_per_task * found.tasks)
    if "gpus" in found.flags and "total_gpus" in found.flags:
        # Slurm takes the total as a bound on how the per-node count may be met; the per-node count says it all.
        del found.flags["total_gpus"]
        found.notes["total"] = "--gpus beside a count per node: the count per node holds"
    typed = tuple(_typed(found.flags))
    several = {"after": [str(found.flags["after"])]} if "after" in found.flags else {}
    flags = JobFlags(**(found.flags | several))  # type: ignore[arg-type]  # the readers keep to the fields' types
    return Directives(flags, typed, tuple(found.notes.values()), tuple(unsupported))


_TYPED_AS = {
    "checkpoint_signal": "--checkpoint-signal",
    "grace": "--grace",
    "name": "-n", "nodes": "-N", "time": "-t", "pool": "-p", "project": "-A", "array": "-a", "cpus": "-c",
    "gpus": "-g", "total_gpus": "--total-gpus", "mem": "-m", "output": "--output", "begin": "--begin", "hold": "--hold",
    "after": "--after",
}  # fmt: skip


def _typed(flags: dict[str, str | bool]) -> Iterator[str]:
    for name, value in flags.items():
        yield _TYPED_AS[name] if value is True else f"{_TYPED_AS[name]} {shlex.quote(str(value))}"


def _options(text: str) -> Iterator[tuple[str, str, str | None]]:
    """Yields (long option, value, what is wrong with how it is written)."""
    try:
        words = shlex.split(text, comments=True)
    except ValueError:
        yield text.strip(), "", "has a quote without its other half"
        return
    while words:
        word = words.pop(0)
        if not word.startswith("-"):
            yield word, "", "is no option"
            continue
        option, equals, value = word.partition("=")
        if not word.startswith("--"):
            option, value, equals = _LONG_OF.get(word[:2], word[:2]), word[2:], word[2:]
        if option in _WITHOUT_VALUE:
            yield option, value, "takes no value" if value else None
        elif option not in _READERS and not equals:
            # Unknown here, so nobody knows whether the next word is its value or a new option begins with "-".
            yield option, words.pop(0) if words and not words[0].startswith("-") else "", None
        elif not equals and not words:
            yield option, "", "has no value"
        else:
            yield option, value if equals else words.pop(0), None


def _unknown(_: _Found, value: str) -> None:
    del value
    raise _Unsupported("not supported here")


def _kept(name: str) -> Callable[[_Found, str], None]:
    def keep(found: _Found, value: str) -> None:
        found.flags[name] = value

    return keep


def _nodes(found: _Found, value: str) -> None:
    low, dash, high = value.partition("-")
    if not low.isdigit() or int(low) < 1 or (dash and (not high.isdigit() or int(high) < int(low))):
        raise _Unsupported("is neither a number of nodes nor a range such as 2-8")
    found.flags["nodes"] = value if dash and high != low else low


def _time(found: _Found, value: str) -> None:
    seconds = seconds_of(value)
    if seconds is None:
        raise _Unsupported("is not a time; Slurm reads minutes, min:sec, h:min:sec, days-h, days-h:min, days-h:min:sec")
    if seconds == 0:
        raise _Unsupported("no limit at all; every job has one here")
    found.flags["time"] = phrases.compact(seconds)


def seconds_of(text: str) -> int | None:
    """Returns a time limit of Slurm in seconds: `90` is minutes, `1:30` min:sec, `1-2` days-hours; 0 is unlimited."""
    if text.upper() in {"UNLIMITED", "INFINITE"}:
        return 0
    parts = _TIME.fullmatch(text)
    if parts is None:
        return None
    days, first, second, third = (None if part is None else int(part) for part in parts.groups())
    if days is not None:
        return days * 86_400 + (first or 0) * 3600 + (second or 0) * 60 + (third or 0)
    if third is not None:
        return (first or 0) * 3600 + (second or 0) * 60 + third
    return (first or 0) * 60 + (second or 0)


def _memory(found: _Found, value: str) -> None:
    parts = _SIZE.fullmatch(value)
    if parts is None:
        raise _Unsupported("is not a size; Slurm reads 4000 (MiB), 64G")
    if int(parts[1]) == 0:
        raise _Unsupported("all of a node's memory has no word here; write the size")
    found.flags["mem"] = f"{int(parts[1])}{parts[2].upper() or 'M'}"


def _gpu_text(value: str) -> str:
    parts = _GPUS.fullmatch(value)
    if parts is None or int(parts[2]) == 0:
        raise _Unsupported("is not a count of GPUs such as 8 or h100:8")
    # Slurm's GPU types are usually written small, the classes here as NVIDIA writes its models.
    kind = parts[1].upper() if parts[1] and parts[1].islower() else parts[1]
    return f"{kind}:{int(parts[2])}" if kind else str(int(parts[2]))


def _total_gpus(found: _Found, value: str) -> None:
    found.flags["total_gpus"] = _gpu_text(value)


def _node_gpus(found: _Found, value: str) -> None:
    found.flags["gpus"] = _gpu_text(value)


def _gres(found: _Found, value: str) -> None:
    what, _, rest = value.partition(":")
    if what != "gpu" or "," in value:
        raise _Unsupported("of generic resources, GPUs alone are known: gpu:8, gpu:h100:8")
    count = rest or "1"
    _node_gpus(found, count if count[-1].isdigit() and _GPUS.fullmatch(count) else f"{count}:1")


def _cpus(found: _Found, value: str) -> None:
    found.cpus_per_task = _whole(value)


def _tasks(found: _Found, value: str) -> None:
    found.tasks = _whole(value)
    found.notes["tasks"] = (
        "--ntasks-per-node counts for --cpus-per-task alone: the command starts once on each node, as torchrun wants"
    )


def _whole(value: str) -> int:
    if not re.fullmatch(r"[0-9]{1,6}", value, re.ASCII) or int(value) < 1:
        raise _Unsupported("is not a whole number of at least 1")
    return int(value)


def _output(found: _Found, value: str) -> None:
    whole = value.replace("%A_%a", "%j_%a")
    if unknown := sorted(set(re.findall(r"%(.|$)", whole)) - _PATTERNS):
        raise _Unsupported(f"%{unknown[0]} is not known; %j, %x, %a, %n and %A_%a are")
    found.flags["output"] = whole


def _begin(found: _Found, value: str) -> None:
    named = {"midnight": "00:00", "noon": "12:00", "teatime": "16:00"}.get(value.lower(), value)
    if shift := _SHIFT.fullmatch(named):
        seconds = int(shift[1] or 0) * _SECONDS[(shift[2] or "second").lower()]
        if seconds:
            found.flags["begin"] = f"now+{seconds}s"
        return
    try:
        ahead(named, "--begin", current())
    except UsageProblem:
        raise _Unsupported("is not a time that is read here; write 2026-11-24T08:00, 20:00 or now+2hours") from None
    found.flags["begin"] = named


def _hold(found: _Found, _: str) -> None:
    found.flags["hold"] = True


def _requeue(found: _Found, _: str) -> None:
    found.notes["requeue"] = "--requeue: a job that loses its node is always queued again"


def _signal(found: _Found, value: str) -> None:
    match = re.fullmatch(r"(?:[RB]+:)?(?:SIG)?([A-Z0-9]+)(?:@([0-9]{1,5}))?", value, re.ASCII)
    name = "" if match is None else _SIGNALS.get(match[1], match[1])
    if match is None or name not in _SIGNALS.values():
        raise _Unsupported(f"of signals, {', '.join(_SIGNALS.values())} are offered")
    seconds = match[2] or "60"
    found.flags |= {"checkpoint_signal": name, "grace": f"{seconds}s"}
    found.notes["signal"] = f"--signal: SIG{name} comes at the time limit, and SIGKILL {seconds} s after it"


def _dependency(found: _Found, value: str) -> None:
    if "?" in value:
        raise _Unsupported("one of several is not offered; all that are named must happen")
    asked: list[str] = []
    for part in value.split(","):
        word, colon, jobs = part.partition(":")
        if part == "singleton":
            asked.append(part)
        elif word in {"after", "afterok", "afterany", "afternotok"} and colon:
            asked += [f"{word}:{job}" for job in jobs.split(":")]
        else:
            raise _Unsupported("of dependencies, after, afterok, afterany, afternotok and singleton are known")
    for each in asked:
        if each != "singleton" and not re.fullmatch(r"[a-z]+:[0-9]{1,18}(_[0-9]{1,9})?", each, re.ASCII):
            raise _Unsupported(f"{each} does not name a job by its number")
    found.flags["after"] = ",".join([*filter(None, [str(found.flags.get("after", ""))]), *asked])


_SIGNALS = {"1": "HUP", "2": "INT", "10": "USR1", "12": "USR2", "15": "TERM"}
"""By their numbers on Linux."""
_READERS: dict[str, Callable[[_Found, str], None]] = {
    "--job-name": _kept("name"),
    "--nodes": _nodes,
    "--time": _time,
    "--partition": _kept("pool"),
    "--account": _kept("project"),
    "--array": _kept("array"),
    "--dependency": _dependency,
    "--cpus-per-task": _cpus,
    "--gpus": _total_gpus,
    "--gpus-per-node": _node_gpus,
    "--gres": _gres,
    "--mem": _memory,
    "--ntasks-per-node": _tasks,
    "--output": _output,
    "--begin": _begin,
    "--hold": _hold,
    "--signal": _signal,
    "--requeue": _requeue,
}
