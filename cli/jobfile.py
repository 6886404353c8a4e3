"""Job files: `turnstile submit train.yaml`. Everything that is wrong in one is said at once, each with its line."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from cli import values
from cli.errors import CliError, ExitCode, Problem, UsageProblem, unreadable
from cli.jobflags import JobFlags
from cli.jobkeys import EITHER, KEYS, Key, Shape
from cli.values import closest
from cli.yamlread import LARGEST_BYTES, BrokenFile, Listed, Mapped, Scalar, Value, read

_KEYS = {key.name: key for key in KEYS}
_KIND = replace(_KEYS["gpus"], check=values.gpu_kind)
"""What `gpus` is read as where whole nodes are asked for."""


class FileProblems(CliError):
    """A job file has problems; `problems` has them all, in the order of their lines."""

    exit_code = ExitCode.REFUSED

    def __init__(self, name: str, problems: tuple[Problem, ...]) -> None:
        many = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__(f"{name} has {many}", code="invalid", problems=problems)


@dataclass(frozen=True, slots=True)
class JobFile:
    """What a file asks for. `work` is `command` or `script`, or empty where the command line is to say it."""

    flags: JobFlags
    work: dict[str, object]


def load(name: str) -> JobFile:
    """Returns what a file asks for. Raises CliError if it cannot be opened, FileProblems with all that is wrong."""
    path = Path(name).expanduser()
    try:
        with path.open("rb") as opened:
            data = opened.read(LARGEST_BYTES + 1)
    except OSError as problem:
        raise unreadable(name, problem) from None
    try:
        content = read(data, is_json=path.suffix.lower() == ".json")
    except BrokenFile as broken:
        raise FileProblems(name, (broken.problem,)) from None
    return _Reading(name).of(content)


class _Wrong(Exception):
    """One problem, found while a value is read."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


class _Reading:
    """Reads one file's keys and keeps what is wrong with them."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._wrong: list[tuple[int, str]] = []

    def of(self, content: Mapped) -> JobFile:
        lines: dict[str, int] = {}
        found: dict[str, object] = {}
        keys = _KEYS | {"gpus": _KIND} if _takes_nodes(content) else _KEYS
        for word, value in content.pairs:
            key = keys.get(word.text)
            if key is None:
                self._unknown(word)
            elif word.text in lines:
                self._wrong.append((word.line, f"{word.text}: is there twice, first in line {lines[word.text]}"))
            else:
                self._take(key, value, found)
            lines.setdefault(word.text, word.line)
        for first, second in EITHER:
            if first in lines and second in lines:
                self._wrong.append((lines[second], f"{second}: stands beside {first}, and they say the same; keep one"))
        if self._wrong:
            problems = tuple(Problem(f"line {line}", said) for line, said in sorted(self._wrong))
            raise FileProblems(self._name, problems)
        work = {name: found.pop(name) for name in ("command", "script") if name in found}
        flags = {_KEYS[name].flag: value for name, value in found.items()}
        return JobFile(JobFlags(**flags), work)  # type: ignore[arg-type]  # shapes are the fields'

    def _unknown(self, word: Scalar) -> None:
        near = closest(word.text.replace("_", "-"), _KEYS)
        hint = f", did you mean '{near[0]}'?" if near else "; 'turnstile schema job' lists the keys"
        self._wrong.append((word.line, f"{_short(word.text)}: unknown key{hint}"))

    def _take(self, key: Key, value: Value, found: dict[str, object]) -> None:
        try:
            found[key.name] = _read_shape(key, value)
        except _Wrong as wrong:
            self._wrong.append((wrong.line, f"{key.name}: {wrong}"))


def _takes_nodes(content: Mapped) -> bool:
    return any(word.text == "exclusive" and isinstance(value, Scalar) and value.truth for word, value in content.pairs)


def _read_shape(key: Key, value: Value) -> object:
    if isinstance(value, Scalar) and value.is_absent:
        raise _Wrong(value.line, f"has no value; write {key.shape}")
    match key.shape:
        case Shape.TEXT:
            return _text(key, value)
        case Shape.TRUTH:
            if not isinstance(value, Scalar) or value.truth is None:
                raise _Wrong(value.line, f"is {key.shape}")
            return value.truth
        case Shape.WORDS:
            words = [_word(value)] if isinstance(value, Scalar) else _texts(key, value)
            for word in words:
                _check(key, word, value.line)
            return words
        case Shape.ARGV:
            return _argv(value)
        case Shape.PAIRS | Shape.CHOICES:
            return list(_pairs(key, value))


def _text(key: Key, value: Value) -> str:
    if not isinstance(value, Scalar):
        raise _Wrong(value.line, f"is {key.shape}, not {_what(value)}")
    if not value.text.strip():
        raise _Wrong(value.line, "is empty")
    _check(key, value.text, value.line)
    return value.text


def _texts(key: Key, value: Value) -> list[str]:
    if not isinstance(value, Listed) or not value.items:
        raise _Wrong(value.line, f"is {key.shape}")
    return [_word(each) for each in value.items]


def _argv(value: Value) -> list[str]:
    if isinstance(value, Scalar):
        raise _Wrong(value.line, f"is {Shape.ARGV}; a text for the shell is a script: instead")
    if not isinstance(value, Listed) or not value.items:
        raise _Wrong(value.line, f"is {Shape.ARGV}")
    return [_word(each, may_be_empty=True) for each in value.items]


def _word(value: Value, *, may_be_empty: bool = False) -> str:
    if not isinstance(value, Scalar):
        raise _Wrong(value.line, f"a word is {_what(value)}")
    if value.is_absent or not (value.text or may_be_empty):
        meant = '; write "" if that is meant' if may_be_empty else ""
        raise _Wrong(value.line, f"a word is empty{meant}")
    return value.text


def _pairs(key: Key, value: Value) -> Iterator[str]:
    if not isinstance(value, Mapped):
        raise _Wrong(value.line, f"is {key.shape}, not {_what(value)}")
    seen: set[str] = set()
    for name, content in value.pairs:
        if name.text in seen:
            raise _Wrong(name.line, f"{_short(name.text)} is there twice")
        seen.add(name.text)
        said = _pair(key, name.text, content)
        _check(key, said, name.line, shown=name.text)
        yield said


def _pair(key: Key, name: str, content: Value) -> str:
    if key.shape is Shape.CHOICES:
        several = _texts(key, content)
        if any("," in each for each in several):
            raise _Wrong(content.line, f"a value of {_short(name)} holds a comma, which parts values")
        return f"{name}={','.join(several)}"
    if not isinstance(content, Scalar):
        raise _Wrong(content.line, f"{_short(name)} is {_what(content)}, not a text")
    return name if content.is_absent else f"{name}={content.text}"


def _check(key: Key, text: str, line: int, *, shown: str | None = None) -> None:
    """Has the flag's own reader look at a text. Of what may be a secret, the name alone is repeated."""
    if key.check is None:
        return
    try:
        key.check(text, key.name)
    except UsageProblem as problem:
        if shown is not None:
            raise _Wrong(line, f"{_short(shown)!r} cannot be a name here") from None
        said = problem.message.removeprefix(key.name).lstrip(" :")
        proposals = " or ".join(each.removeprefix(key.name).strip() for each in problem.tries[:2])
        raise _Wrong(line, f"{said}; write {proposals}" if proposals else said) from None


def _what(value: Value) -> str:
    return {Scalar: "a text", Listed: "a list", Mapped: "keys with values"}[type(value)]


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:39] + "…"
