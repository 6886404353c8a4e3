"""What stands behind the flags of `submit` and `run`: a command or a script, as the argv that it is."""

import os
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

from cli.errors import Refusal, UsageProblem, unreadable

_LOOKED_AT_BYTES = 256 * 1024
"""Directives stand before a script's first command; an executable of gigabytes is not read whole to find none."""
_TELLING_SHORT_OPTIONS = frozenset({"-g", "-N", "-t"})
"""Short options that are rarely a command's own. Others (-n, -c, -m, -e …) mean something else to most commands."""


@dataclass(frozen=True, slots=True)
class Typed:
    """The words of the command, whether `--` stood before them, and what the person should be told about them."""

    words: tuple[str, ...]
    has_dashes: bool


def typed_command(words: list[str] | None, typed: tuple[str, ...]) -> Typed:
    """Returns the words behind the flags. Raises UsageProblem if there is none."""
    if not words:
        raise UsageProblem(
            "there is nothing to run", "turnstile submit -g H100:8 -t 4h -- ./train.sh", "turnstile submit --help"
        )
    before = typed[: len(typed) - len(words)]
    if words[0] == "-" and not (before and before[-1] == "--"):
        raise UsageProblem("a job is not read from standard input", "turnstile submit train.yaml", "submit -- COMMAND")
    return Typed(tuple(words), bool(before) and before[-1] == "--")


def misplaced(command: Typed, known_options: frozenset[str]) -> list[str]:
    """Returns our own options that stand behind the command, and so go to it, unless `--` says that this is meant."""
    if command.has_dashes:
        return []
    own = command.words[1 : command.words.index("--")] if "--" in command.words else command.words[1:]
    names = (word.partition("=")[0] for word in own)
    telling = {name for name in known_options if name.startswith("--")} | (known_options & _TELLING_SHORT_OPTIONS)
    return [name for name in dict.fromkeys(names) if name in telling]


def script_of(command: Typed) -> Path | None:
    """Returns the file that a command begins with where that is a script to run; None for a command as it stands.

    Raises Refusal for a file that cannot be run.
    """
    first = command.words[0]
    path = Path(first).expanduser()
    if command.has_dashes or not path.is_file():
        return None
    if os.access(path, os.X_OK) or _interpreter(path) is not None:
        return path
    if "/" not in first and shutil.which(first) is not None:
        return None
    raise Refusal(f"{first} is neither executable nor begins with #!", f"chmod +x {first}", f"bash {first}")


def argv_of(command: Typed) -> list[str]:
    """Returns what the job runs. A file that is a script is run as one; anything else is a command as it stands.

    Raises Refusal for files that cannot be run.
    """
    path = script_of(command)
    if path is None:
        return list(command.words)
    whole, rest = str(path.absolute()), command.words[1:]
    if os.access(path, os.X_OK):
        return [whole, *rest]
    interpreter = _interpreter(path)
    assert interpreter is not None  # a file without one is refused as no script
    return [*interpreter, whole, *rest]


def _interpreter(path: Path) -> list[str] | None:
    """The words after `#!` in a file's first line, or None."""
    try:
        with path.open("rb") as opened:
            line = opened.readline(4096)
    except OSError as problem:
        raise unreadable(str(path), problem) from None
    if not line.startswith(b"#!"):
        return None
    try:
        return shlex.split(line[2:].decode()) or None
    except (UnicodeDecodeError, ValueError):
        return None


def mentions_slurm(path: Path) -> bool:
    """True when a file has `#SBATCH` somewhere near its beginning. Raises Refusal if it cannot be read."""
    try:
        with path.open("rb") as opened:
            return b"#SBATCH" in opened.read(_LOOKED_AT_BYTES)
    except OSError as problem:
        raise unreadable(str(path), problem) from None
