"""Reads what people type: durations, sizes, GPUs, counts, arrays, job references, environment, labels.

Pure: text in, value out. Each reader takes the flag's name, so that the refusal can repeat what was typed and say what
would be right; each raises UsageProblem and nothing else, on any text. Times are in `cli.moments`.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal

from cli.errors import UsageProblem

_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_DURATION_WORD = re.compile(r"(?:[0-9]{1,9}(?:\.[0-9]{1,4})?[smhdw])+", re.ASCII)
_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)([smhdw])", re.ASCII)
_CLOCK = re.compile(r"([0-9]{1,4}):([0-5]?[0-9]):([0-5]?[0-9])", re.ASCII)
_DAYS = re.compile(r"([0-9]{1,5})-([0-9]{1,2})(?::([0-5]?[0-9]))?(?::([0-5]?[0-9]))?", re.ASCII)
_BARE = re.compile(r"[0-9]+(?:\.[0-9]+)?", re.ASCII)
_SIZE = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)\s?([KMGTP]?)(i?B|B?)", re.ASCII | re.IGNORECASE)
_ARRAY = re.compile(r"([0-9,:-]+)(?:%([0-9]{1,9}))?", re.ASCII)
_ARRAY_PART = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9})(?::([0-9]{1,9}))?)?", re.ASCII)
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_LABEL_KEY = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/-]*[A-Za-z0-9])?", re.ASCII)
_GPU_CLASS = re.compile(r"[A-Za-z][A-Za-z0-9._-]*", re.ASCII)
_MONEY = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)\s?([A-Za-z]{3})?", re.ASCII)
_GPU_COUNT = re.compile(r"[0-9]{1,6}|0?\.[0-9]{1,4}", re.ASCII)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}


def duration(text: str, flag: str) -> int:
    """Returns whole seconds, at least 1, of `90m`, `12h`, `1h30m`, `2d`, `1-12:00:00`, `04:00:00`.

    A bare number is refused, because Slurm reads minutes and other tools seconds; `4:00` likewise.
    """
    typed = text.strip()
    if _BARE.fullmatch(typed):
        raise UsageProblem(
            f"{flag} {typed} is ambiguous: Slurm reads minutes, other tools seconds",
            f"{flag} {typed}m",
            f"{flag} {typed}s",
        )
    seconds = _duration_seconds(typed.lower())
    if seconds is None:
        if re.fullmatch(r"[0-9]+:[0-9]+", typed, re.ASCII):
            first, _, second = typed.partition(":")
            raise UsageProblem(
                f"{flag} {typed} is ambiguous: Slurm reads minutes and seconds, people read hours and minutes",
                f"{flag} {first}:{second:0>2}:00",
                f"{flag} 00:{first:0>2}:{second:0>2}",
            )
        raise UsageProblem(f"{flag} {typed!r} is not a duration", f"{flag} 90m", f"{flag} 12h", f"{flag} 1-12:00:00")
    if seconds < 1:
        raise UsageProblem(f"{flag} {typed} is no time at all", f"{flag} 90m")
    return seconds


def _duration_seconds(typed: str) -> int | None:
    if _DURATION_WORD.fullmatch(typed):
        exact = sum((Decimal(n) * _UNIT_SECONDS[unit] for n, unit in _DURATION_PART.findall(typed)), Decimal(0))
        return int(exact) if exact == int(exact) else None
    if clock := _CLOCK.fullmatch(typed):
        hours, minutes, seconds = (int(part) for part in clock.groups())
        return hours * 3600 + minutes * 60 + seconds
    if days := _DAYS.fullmatch(typed):
        day, hours, minutes, seconds = (int(part or 0) for part in days.groups())
        return day * 86_400 + hours * 3600 + minutes * 60 + seconds if hours < 24 else None
    return None


def size(text: str, flag: str) -> int:
    """Returns bytes of `64G`, `64GiB` (both 1024-based, as Slurm reads them) or `64GB` (1000-based)."""
    typed = text.strip()
    found = _SIZE.fullmatch(typed)
    if found is None:
        raise UsageProblem(f"{flag} {typed!r} is not a size", f"{flag} 64G", f"{flag} 1.5TiB")
    amount, prefix, suffix = found[1], found[2].upper(), found[3].upper()
    if not prefix and not suffix:
        raise UsageProblem(
            f"{flag} {typed} is ambiguous: Slurm reads megabytes, other tools bytes",
            f"{flag} {typed}G",
            f"{flag} {typed}M",
        )
    base = 1000 if suffix == "B" else 1024
    exact = Decimal(amount) * base ** _POWERS[prefix]
    if exact < 1 or exact != int(exact):
        raise UsageProblem(f"{flag} {typed} is not a whole number of bytes", f"{flag} 64G")
    return int(exact)


@dataclass(frozen=True, slots=True)
class GpuRequest:
    """GPUs per node: a whole count or a share of one; of these classes, or of any with so much memory, or of any."""

    count: int | Decimal
    classes: tuple[str, ...] = ()
    memory_bytes: int | None = None

    def __str__(self) -> str:
        """Returns the text that `gpus` reads as this value."""
        if self.memory_bytes is not None:
            return f"{self.memory_bytes}B:{self.count}"
        return f"{','.join(self.classes)}:{self.count}" if self.classes else str(self.count)


def gpus(text: str, flag: str = "-g") -> GpuRequest:
    """Reads `8`, `H100:8`, `H200,H100:8` (in order of preference), `80GB:2` (by memory), `H200:0.5` (a share)."""
    typed = text.strip()
    what, colon, count_text = typed.rpartition(":")
    if not colon and not _GPU_COUNT.fullmatch(typed):
        if _GPU_CLASS.fullmatch(typed):
            raise UsageProblem(f"{flag} {typed} has no count", f"{flag} {typed}:1")
        raise UsageProblem(f"{flag} {typed!r} is not a number of GPUs", f"{flag} 8", f"{flag} H100:8")
    if not _GPU_COUNT.fullmatch(count_text):
        raise UsageProblem(f"{flag} {typed!r} is not a count", f"{flag} {what or 'H100'}:8")
    count: int | Decimal = Decimal(count_text) if "." in count_text else int(count_text)
    if count == 0:
        raise UsageProblem(f"{flag} {typed} asks for no GPU at all", f"{flag} {what + ':' if what else ''}1")
    if not colon:
        return GpuRequest(count)
    if what[:1].isdigit():
        # GPUs are sold by decimal gigabytes: an "80 GB" H100 has 79.6 GiB, which 80 binary ones would leave out.
        sold = re.sub(r"(?<=[KMGTPkmgtp])$", "B", what)
        return GpuRequest(count, memory_bytes=_gpu_memory(sold, flag))
    classes = tuple(name.strip() for name in what.split(","))
    for name in classes:
        if not _GPU_CLASS.fullmatch(name):
            raise UsageProblem(
                f"{flag} {typed!r}: {name!r} is not the name of a GPU class", f"{flag} H100:{count_text}"
            )
    return GpuRequest(count, classes=classes)


def gpu_kind(text: str, flag: str = "-g") -> GpuRequest:
    """Reads what stands before the colon alone, where whole nodes are asked for: `H100`, `H200,H100`, `80GB`."""
    typed = text.strip()
    what, colon, _ = typed.rpartition(":")
    if colon or _GPU_COUNT.fullmatch(typed):
        kept = f"{flag} {what} --exclusive" if what else "--exclusive"
        raise UsageProblem(f"{flag} {typed} counts GPUs, and --exclusive takes all of a node", kept, f"{flag} {typed}")
    return gpus(f"{typed}:1", flag)


def total_gpus(text: str, flag: str = "--total-gpus") -> GpuRequest:
    """Reads `64` and `H100:64`: whole GPUs in all, of these classes or of any."""
    found = gpus(text, flag)
    if isinstance(found.count, Decimal):
        raise UsageProblem(f"{flag} {text.strip()}: shares of a GPU are asked for per node", f"-g {text.strip()}")
    return found


def money(text: str, flag: str) -> tuple[Decimal, str | None]:
    """Reads `500`, `1250.50`, `500USD`, `500 USD`: an amount of at least 0, and its currency where one was typed."""
    typed = text.strip()
    found = _MONEY.fullmatch(typed)
    if found is None:
        raise UsageProblem(f"{flag} {typed!r} is not an amount of money", f"{flag} 500", f"{flag} 1250.50")
    return Decimal(found[1]), found[2].upper() if found[2] else None


def sweep(text: str, flag: str = "--sweep") -> tuple[str, tuple[str, ...]]:
    """Reads `lr=1e-5,2e-5`: a variable's name and the values that it takes, each once, in order."""
    name, equals, values = text.partition("=")
    found = tuple(dict.fromkeys(each.strip() for each in values.split(",")))
    if not equals or not _KEY.fullmatch(name):
        raise UsageProblem(f"{flag} {text!r} is not NAME=VALUE,VALUE", f"{flag} lr=1e-5,2e-5")
    if not all(found):
        raise UsageProblem(f"{flag} {text!r} has an empty value", f"{flag} lr=1e-5,2e-5")
    return name, found


def _gpu_memory(text: str, flag: str) -> int:
    try:
        return size(text, flag)
    except UsageProblem as problem:
        raise UsageProblem(f"{problem.message} of GPU memory", f"{flag} 80GB:2") from None


def count(text: str, flag: str, *, least: int = 1) -> int:
    """Returns a whole number of at least `least`."""
    typed = text.strip()
    if not re.fullmatch(r"[0-9]{1,9}", typed, re.ASCII) or int(typed) < least:
        if re.fullmatch(r"[0-9]+-[0-9]+", typed, re.ASCII):
            raise UsageProblem(f"{flag} {typed}: a range is not offered here", f"{flag} {typed.partition('-')[0]}")
        raise UsageProblem(f"{flag} {typed!r} is not a whole number of at least {least}", f"{flag} {max(least, 1)}")
    return int(typed)


def nodes(text: str, flag: str = "-N") -> tuple[int, int | None]:
    """Returns the nodes asked for, and of an elastic range the most: `4`, `2-8`; of `4-4` there is none."""
    typed = text.strip()
    low, dash, high = typed.partition("-")
    if not dash:
        return count(typed, flag), None
    if not all(re.fullmatch(r"[0-9]{1,9}", each, re.ASCII) for each in (low, high)) or int(low) < 1:
        raise UsageProblem(
            f"{flag} {typed!r} is neither a number of nodes nor a range of them", f"{flag} 4", f"{flag} 2-8"
        )
    least, most = int(low), int(high)
    if most < least:
        raise UsageProblem(f"{flag} {typed} is upside down: the least comes first", f"{flag} {most}-{least}")
    return least, most if most > least else None


def array(text: str, flag: str = "-a") -> str:
    """Returns a checked array: ranges with steps, `%` at most so many at once: `0-99%8`, `1,4,10-20:2`."""
    typed = text.strip()
    found = _ARRAY.fullmatch(typed)
    if found is None:
        raise UsageProblem(f"{flag} {typed!r} is not an array", f"{flag} 0-99", f"{flag} 0-99%8")
    for part in found[1].split(","):
        piece = _ARRAY_PART.fullmatch(part)
        if piece is None:
            raise UsageProblem(f"{flag} {typed!r}: {part!r} is not an index or a range", f"{flag} 0-99%8")
        first, last, step = int(piece[1]), int(piece[2] or piece[1]), int(piece[3] or 1)
        if last < first or step < 1:
            raise UsageProblem(f"{flag} {typed!r}: {part!r} holds no index", f"{flag} {last}-{first}")
    if found[2] is not None and int(found[2]) < 1:
        raise UsageProblem(f"{flag} {typed!r} lets no element run", f"{flag} {found[1]}%1")
    return typed


AFTER_WORDS = {
    "ok": "afterok", "any": "afterany", "fail": "afternotok", "start": "after",
    "afterok": "afterok", "afterany": "afterany", "afternotok": "afternotok", "after": "after",
}  # fmt: skip
"""What may stand before the job that is waited for, and Slurm's word for it."""


def after(text: str, flag: str = "--after") -> tuple[str, str]:
    """Reads `17`, `any:17_3`, `fail:17`, `start:17` (or Slurm's words) and `singleton`: Slurm's word and the job.

    The job is as it was typed: a number, a name, `@`; empty for a singleton.
    """
    typed = text.strip()
    if typed == "singleton":
        return typed, ""
    word, colon, job = typed.partition(":")
    if not colon:
        word, job = "ok", typed
    if word not in AFTER_WORDS:
        raise UsageProblem(
            f"{flag} {typed!r}: {word!r} is not ok, any, fail or start", *closest(word, AFTER_WORDS, f"{flag} ")
        )
    job_reference(job)
    return AFTER_WORDS[word], job


@dataclass(frozen=True, slots=True)
class Numbered:
    """A job by its number, or an element of an array: `10482`, `10482_7`."""

    number: int
    index: int | None = None

    def __str__(self) -> str:
        return str(self.number) if self.index is None else f"{self.number}_{self.index}"


@dataclass(frozen=True, slots=True)
class Last:
    """The caller's newest job, or the one `back` submissions before it: `@`, `@~1`."""

    back: int = 0

    def __str__(self) -> str:
        return f"@~{self.back}" if self.back else "@"


@dataclass(frozen=True, slots=True)
class Named:
    """The caller's newest job with this name."""

    name: str

    def __str__(self) -> str:
        return self.name


def job_reference(text: str) -> Numbered | Last | Named:
    """Reads how a job is named on the command line; `-` (ids on standard input) is the caller's to handle."""
    typed = text.strip()
    if numbered := re.fullmatch(r"([0-9]{1,18})(?:_([0-9]{1,9}))?", typed, re.ASCII):
        return Numbered(int(numbered[1]), None if numbered[2] is None else int(numbered[2]))
    if last := re.fullmatch(r"@(?:~([0-9]{1,4}))?", typed, re.ASCII):
        return Last(int(last[1] or 0))
    if not typed or typed.startswith(("-", "@")) or not typed.isprintable():
        raise UsageProblem(f"{typed!r} does not name a job", "10482", "10482_7", "@", "a job's name")
    return Named(typed)


def pair(text: str, flag: str) -> tuple[str, str]:
    """Reads `K=V` of a label or a constraint; the value may be empty."""
    key, equals, value = text.partition("=")
    if not equals or not _LABEL_KEY.fullmatch(key):
        raise UsageProblem(f"{flag} {text!r} is not KEY=VALUE", f"{flag} team=vision")
    return key, value


def environment(texts: Iterable[str], caller: Mapping[str, str], flag: str = "-e") -> dict[str, str]:
    """Reads `K=V`, and `K` alone with the value that it has in the caller's environment; later ones win.

    A refusal names the key only: values may be secrets.
    """
    found: dict[str, str] = {}
    for each in texts:
        key, equals, value = each.partition("=")
        if not _KEY.fullmatch(key):
            raise UsageProblem(f"{flag}: not the name of an environment variable before '='", f"{flag} NAME=value")
        if not equals and key not in caller:
            raise UsageProblem(f"{flag} {key}: {key} is not set in your environment", f"{flag} {key}=value")
        found[key] = value if equals else caller[key]
        if "\0" in found[key]:
            raise UsageProblem(f"{flag} {key}: a value cannot hold a NUL character", f"{flag} {key}=value")
    return found


def environment_lines(content: str) -> list[str]:
    """Returns the `K=V` and `K` lines of an environment file: no quoting, `#` comments and blank lines left out."""
    lines = (line.strip() for line in content.splitlines())
    return [line.removeprefix("export ").strip() for line in lines if line and not line.startswith("#")]


def gpu_counts(texts: Iterable[str], flag: str) -> dict[str, int]:
    """Reads `CLASS=N[,CLASS=N]`, repeatable: whole GPUs by class."""
    found: dict[str, int] = {}
    for part in (part for each in texts for part in each.split(",")):
        name, equals, amount = part.strip().partition("=")
        if not equals or not _GPU_CLASS.fullmatch(name):
            raise UsageProblem(f"{flag} {part!r} is not CLASS=GPUS", f"{flag} H100=32")
        found[name] = count(amount, f"{flag} {name}=", least=0)
    return found


def topology(text: str, flag: str = "--topology") -> str:
    """Returns a checked `required:LABEL` or `preferred:LABEL`."""
    how, colon, label = text.strip().partition(":")
    if how not in {"required", "preferred"} or not colon or not _LABEL_KEY.fullmatch(label):
        raise UsageProblem(
            f"{flag} {text!r} is not required:LABEL or preferred:LABEL", f"{flag} required:{label or 'rack'}"
        )
    return f"{how}:{label}"


RETRIED = ("exit_nonzero", "image_pull", "launch_failed", "oom")
"""The failures that a job may be started again after."""


def retry_on(text: str, flag: str = "--retry-on") -> list[str]:
    """Reads `oom,exit_nonzero`: failures after which a job is started again."""
    return [choice(each, flag, RETRIED) for each in text.split(",")]


def checkpoint_signal(text: str, flag: str = "--checkpoint-signal") -> str:
    """Reads `USR1` or `SIGUSR1`. Raises UsageProblem for a signal that no program can save its work at."""
    return choice(text.lower().removeprefix("sig"), flag, ("term", "int", "hup", "usr1", "usr2")).upper()


NOTICES = (
    *("submit", "start", "end", "fail", "timeout", "preempt", "requeue", "idle", "budget80", "budget100", "node"),
)
"""What one may be told of; `end` is every end, `fail` and `timeout` are the bad ones."""


def notice_events(text: str, flag: str = "--notify") -> tuple[str, ...]:
    """Reads `end,preempt`. Raises UsageProblem for a word that is no event."""
    return tuple(dict.fromkeys(choice(word.strip(), flag, NOTICES) for word in text.split(",") if word.strip()))


def choice(text: str, flag: str, allowed: tuple[str, ...]) -> str:
    """Returns the one of `allowed` that was typed, whatever its case."""
    typed = text.strip().lower()
    if typed not in allowed:
        raise UsageProblem(f"{flag} {text!r} is not one of {', '.join(allowed)}", *closest(typed, allowed, f"{flag} "))
    return typed


def closest(typed: str, known: Iterable[str], prefix: str = "") -> tuple[str, ...]:
    """Returns the known word most like what was typed, as a proposal; empty when none is like it."""
    import difflib

    return tuple(f"{prefix}{match}" for match in difflib.get_close_matches(typed, list(known), n=1))
