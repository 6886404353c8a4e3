"""What stands behind the flags of `submit` and `run`: a command, a script, or a job file."""

import os
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

from cli.errors import Refusal, UsageProblem

_DIRECTIVE_LINES = 200
"""`#SBATCH` lines stand before the first command; nobody writes so many lines of comment before it."""
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
    return Typed(tuple(words), bool(before) and before[-1] == "--")


def misplaced(command: Typed, known_options: frozenset[str]) -> list[str]:
    """Returns our own options that stand behind the command, and so go to it, unless `--` says that this is meant."""
    if command.has_dashes:
        return []
    own = command.words[1 : command.words.index("--")] if "--" in command.words else command.words[1:]
    names = (word.partition("=")[0] for word in own)
    telling = {name for name in known_options if name.startswith("--")} | (known_options & _TELLING_SHORT_OPTIONS)
    return [name for name in dict.fromkeys(names) if name in telling]


def argv_of(command: Typed, *, is_lenient: bool) -> list[str]:
    """Returns what the job runs. A file that is a script is run as one; anything else is a command as it stands.

    Raises Refusal for job files and for files that cannot be run.
    """
    first, rest = command.words[0], list(command.words[1:])
    path = Path(first).expanduser()
    if command.has_dashes or not path.is_file():
        if not command.has_dashes and path.suffix in {".yaml", ".yml"}:
            raise Refusal(f"there is no file {first}")
        return [first, *rest]
    if path.suffix in {".yaml", ".yml"}:
        raise Refusal(
            f"{first} is a job file, and this version reads none; the flags of the same names say the same",
            "turnstile submit -g H100:8 -t 4h -- COMMAND",
            code="unsupported",
        )
    interpreter = _interpreter(path)
    if interpreter is None and not os.access(path, os.X_OK):
        if "/" not in first and shutil.which(first) is not None:
            return [first, *rest]
        raise Refusal(f"{first} is neither executable nor begins with #!", f"chmod +x {first}", f"bash {first}")
    _refuse_directives(path, first, is_lenient=is_lenient)
    whole = str(path.absolute())
    if os.access(path, os.X_OK):
        return [whole, *rest]
    assert interpreter is not None  # a file without one was refused above
    return [*interpreter, whole, *rest]


def _interpreter(path: Path) -> list[str] | None:
    """The words after `#!` in a file's first line, or None."""
    try:
        with path.open("rb") as opened:
            line = opened.readline(4096)
    except OSError as problem:
        raise Refusal(f"{path} cannot be read: {problem.strerror}") from None
    if not line.startswith(b"#!"):
        return None
    try:
        return shlex.split(line[2:].decode()) or None
    except (UnicodeDecodeError, ValueError):
        return None


def _refuse_directives(path: Path, typed: str, *, is_lenient: bool) -> None:
    found = []
    with path.open("rb") as opened:
        for number, line in enumerate(opened, 1):
            if number > _DIRECTIVE_LINES:
                break
            if line.startswith(b"#SBATCH"):
                found.append(f"line {number}: {line.decode('utf-8', 'replace').strip()}")
    if found and not is_lenient:
        raise Refusal(
            f"{typed} has #SBATCH lines, which this version does not read ({found[0]})",
            "the same as flags, and --lenient",
            code="unsupported",
        )
