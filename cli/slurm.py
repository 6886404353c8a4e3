"""Reads the `#SBATCH` lines of a script: the options that mean the same here, in Slurm's own units.

What Slurm reads by its own rules is kept right: `--gpus` is the total of the job where ours is per node, a bare time is
minutes, a bare size is MiB, CPUs are per task. Whatever is translated is printed back as our flags; whatever is not is
named with its line and its reason. `slurmwords` reads the values, `slurmsums` what several lines say together. The
rules are those of sbatch(1), Slurm 22.05.
"""

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cli.errors import CliError, ExitCode, Problem
from cli.jobflags import JobFlags
from cli.slurmsums import summed
from cli.slurmwords import READERS, Found, Unsupported

_MOST_LINES = 1000
"""Comment lines before a script's first command; sbatch stops at the first command too."""
_LONG_OF = {
    "-J": "--job-name", "-N": "--nodes", "-t": "--time", "-p": "--partition", "-A": "--account", "-a": "--array",
    "-d": "--dependency", "-c": "--cpus-per-task", "-G": "--gpus", "-o": "--output", "-b": "--begin", "-H": "--hold",
    "-n": "--ntasks", "-e": "--error", "-D": "--chdir", "-x": "--exclude", "-w": "--nodelist", "-C": "--constraint",
    "-Q": "--quiet", "-v": "--verbose", "--tasks-per-node": "--ntasks-per-node",
}  # fmt: skip
_WITHOUT_VALUE = frozenset({"--hold", "--requeue", "--parsable", "--quiet", "--verbose"})
_VALUE_BEHIND_EQUALS = frozenset({"--exclusive", "--kill-on-invalid-dep"})
"""Options whose value may be missing: the word behind them is another option."""


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


def directives(path: Path) -> Directives:
    """Returns what the `#SBATCH` lines of a script ask for. Raises OSError."""
    with path.open("rb") as opened:
        lines = [line.decode("utf-8", "replace") for _, line in zip(range(_MOST_LINES), opened, strict=False)]
    return read(lines)


def read(lines: list[str]) -> Directives:
    """Returns what lines of a script ask for; those behind its first command are comments, as for sbatch."""
    found, unsupported, stands_at = Found(), [], dict[str, str]()
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.startswith("#"):
            break
        if re.match(r"#SBATCH(\s|$)", line):
            for option, value, problem in _options(line.removeprefix("#SBATCH")):
                stands_at[option] = f"line {number}"
                why = problem or _why_not(found, option, value)
                if why is not None:
                    said = f"{option}={value}" if value else option
                    unsupported.append(Problem(f"line {number}", f"{said}: {why}"))
    unsupported += [Problem(stands_at[option], f"{option}: {why}") for option, why in summed(found)]
    typed = tuple(_typed(found.flags))
    flags = JobFlags(**found.flags)  # type: ignore[arg-type]  # the readers keep to the fields' types
    return Directives(flags, typed, tuple(found.notes.values()), tuple(unsupported))


def _why_not(found: Found, option: str, value: str) -> str | None:
    reader = READERS.get(option)
    if reader is None:
        return "not supported here"
    try:
        reader(found, value)
    except Unsupported as why:
        return str(why)
    return None


_TYPED_AS = {
    "checkpoint_signal": "--checkpoint-signal",
    "grace": "--grace",
    "name": "-n", "nodes": "-N", "time": "-t", "pool": "-p", "project": "-A", "array": "-a", "cpus": "-c",
    "gpus": "-g", "total_gpus": "--total-gpus", "mem": "-m", "output": "--output", "begin": "--begin", "hold": "--hold",
    "after": "--after", "exclusive": "--exclusive", "exclude": "--exclude", "node": "--node", "workdir": "-w",
    "env": "-e", "notify": "--notify", "notify_when": "--notify-when", "deadline": "--deadline",
}  # fmt: skip


def _typed(flags: Mapping[str, str | bool | list[str]]) -> Iterator[str]:
    for name, value in flags.items():
        if value is True:
            yield _TYPED_AS[name]
        elif name == "env" and isinstance(value, list):
            yield from (f"{_TYPED_AS[name]} {shlex.quote(each)}" for each in value)
        else:
            yield f"{_TYPED_AS[name]} {shlex.quote(','.join(value) if isinstance(value, list) else str(value))}"


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
        option = _LONG_OF.get(option, option)
        if not word.startswith("--"):
            option, value, equals = _LONG_OF.get(word[:2], word[:2]), word[2:], word[2:]
        if option in _WITHOUT_VALUE:
            yield option, value, "takes no value" if value else None
        elif option in _VALUE_BEHIND_EQUALS:
            yield option, value, None
        elif option not in READERS and not equals:
            # Unknown here, so nobody knows whether the next word is its value or a new option begins with "-".
            yield option, words.pop(0) if words and not words[0].startswith("-") else "", None
        elif not equals and not words:
            yield option, "", "has no value"
        else:
            yield option, value if equals else words.pop(0), None
