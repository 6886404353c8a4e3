"""The values of `#SBATCH` options, each read by Slurm's own rules into the flag that says the same here.

A reader puts what it read into `Found`, or raises `Unsupported` with the reason. What only several lines together say
(CPUs per task times tasks) is put aside there for `slurmsums`. The rules are those of sbatch(1), Slurm 22.05.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from cli import phrases
from cli.errors import UsageProblem
from cli.moments import ahead, current

_TIME = re.compile(r"(?:([0-9]{1,5})-)?([0-9]{1,7})(?::([0-9]{1,4}))?(?::([0-9]{1,4}))?", re.ASCII)
_SIZE = re.compile(r"([0-9]{1,12})([KMGT]?)B?", re.ASCII | re.IGNORECASE)
_GPUS = re.compile(r"(?:([A-Za-z][A-Za-z0-9._-]*):)?([0-9]{1,6})", re.ASCII)
_SHIFT = re.compile(r"now(?:\+([0-9]{1,9})(second|minute|hour|day|week)?s?)?", re.ASCII | re.IGNORECASE)
_SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400, "week": 604_800}
_PATTERNS = frozenset("jxan%")
"""What `%` may be followed by in an output file's name, with the same meaning as in Slurm."""
_MOST_HOSTS = 1000
"""Hosts that one list may name: no job is larger, and a range like n[0-999999999] is a slip."""
_RANGE = re.compile(r"([0-9]+)(?:-([0-9]+))?", re.ASCII)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(=.*)?", re.ASCII | re.DOTALL)
_MAILS = {
    "BEGIN": ("start",),
    "END": ("end",),
    "FAIL": ("fail",),
    "REQUEUE": ("requeue",),
    "TIME_LIMIT": ("timeout",),
    "INVALID_DEPEND": ("fail",),
    "ALL": ("start", "end", "fail", "requeue"),
    "ARRAY_TASKS": (),
}


class Unsupported(Exception):
    """An option means nothing here; its text says why."""


@dataclass(slots=True)
class Found:
    """What has been read so far, by the fields of JobFlags; a later line wins. The rest waits for `slurmsums`."""

    flags: dict[str, str | bool | list[str]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    """Counts that stand for themselves only together, by their options: tasks, CPUs and GPUs for each of them."""
    sizes: dict[str, str] = field(default_factory=dict)
    """Memory for each CPU or GPU, by its option."""
    error: str | None = None
    notes: dict[str, str] = field(default_factory=dict)


def _kept(name: str) -> Callable[[Found, str], None]:
    def keep(found: Found, value: str) -> None:
        found.flags[name] = value

    return keep


def _nodes(found: Found, value: str) -> None:
    low, dash, high = value.partition("-")
    if not low.isdigit() or int(low) < 1 or (dash and (not high.isdigit() or int(high) < int(low))):
        raise Unsupported("is neither a number of nodes nor a range such as 2-8")
    found.flags["nodes"] = value if dash and high != low else low


def _time(found: Found, value: str) -> None:
    seconds = seconds_of(value)
    if seconds is None:
        raise Unsupported("is not a time; Slurm reads minutes, min:sec, h:min:sec, days-h, days-h:min, days-h:min:sec")
    if seconds == 0:
        raise Unsupported("no limit at all; every job has one here")
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


def _memory(found: Found, value: str) -> None:
    found.flags["mem"] = _size(value)


def _size(value: str) -> str:
    parts = _SIZE.fullmatch(value)
    if parts is None:
        raise Unsupported("is not a size; Slurm reads 4000 (MiB), 64G")
    if int(parts[1]) == 0:
        raise Unsupported("all of a node's memory has no word here; write the size")
    return f"{int(parts[1])}{parts[2].upper() or 'M'}"


def _gpu_text(value: str) -> str:
    parts = _GPUS.fullmatch(value)
    if parts is None or int(parts[2]) == 0:
        raise Unsupported("is not a count of GPUs such as 8 or h100:8")
    # Slurm's GPU types are usually written small, the classes here as NVIDIA writes its models.
    kind = parts[1].upper() if parts[1] and parts[1].islower() else parts[1]
    return f"{kind}:{int(parts[2])}" if kind else str(int(parts[2]))


def _total_gpus(found: Found, value: str) -> None:
    found.flags["total_gpus"] = _gpu_text(value)


def _node_gpus(found: Found, value: str) -> None:
    found.flags["gpus"] = _gpu_text(value)


def _gres(found: Found, value: str) -> None:
    what, _, rest = value.partition(":")
    if what != "gpu" or "," in value:
        raise Unsupported("of generic resources, GPUs alone are known: gpu:8, gpu:h100:8")
    count = rest or "1"
    _node_gpus(found, count if count[-1].isdigit() and _GPUS.fullmatch(count) else f"{count}:1")


def _counted(option: str) -> Callable[[Found, str], None]:
    def count(found: Found, value: str) -> None:
        found.counts[option] = _whole(value)

    return count


def _sized(option: str) -> Callable[[Found, str], None]:
    def size(found: Found, value: str) -> None:
        found.sizes[option] = _size(value)

    return size


def _task_gpus(found: Found, value: str) -> None:
    kind, _, count = _gpu_text(value).rpartition(":")
    found.counts["--gpus-per-task"] = int(count)
    if kind:
        found.flags["gpu_kind"] = kind


def _whole(value: str) -> int:
    if not re.fullmatch(r"[0-9]{1,6}", value, re.ASCII) or int(value) < 1:
        raise Unsupported("is not a whole number of at least 1")
    return int(value)


def _output(found: Found, value: str) -> None:
    whole = value.replace("%A_%a", "%j_%a")
    if unknown := sorted(set(re.findall(r"%(.|$)", whole)) - _PATTERNS):
        raise Unsupported(f"%{unknown[0]} is not known; %j, %x, %a, %n and %A_%a are")
    found.flags["output"] = whole


def _error(found: Found, value: str) -> None:
    found.error = value.replace("%A_%a", "%j_%a")


def _exclusive(found: Found, value: str) -> None:
    if value:
        raise Unsupported("nodes for one user or account are not offered; --exclusive alone is")
    found.flags["exclusive"] = True


def _hosts(flag: str) -> Callable[[Found, str], None]:
    def hosts(found: Found, value: str) -> None:
        found.flags[flag] = hosts_of(value)

    return hosts


def hosts_of(text: str) -> list[str]:
    """Returns the hosts of a list such as `gpu-[011-013,020],login1`. Raises Unsupported where it is none."""
    found: list[str] = []
    for part in re.findall(r"(?:[^,\[\]]|\[[^\]]*\])+", text):
        name = re.fullmatch(r"([A-Za-z0-9._-]*)(?:\[([0-9,-]+)\]([A-Za-z0-9._-]*))?", part, re.ASCII)
        spans = [] if name is None else [_RANGE.fullmatch(each) for each in (name[2] or "").split(",")]
        if name is None or (name[2] is not None and None in spans):
            raise Unsupported(f"{part} is no host or range of hosts such as gpu-[011-014]")
        if name[2] is None:
            found.append(name[1])
        for span in filter(None, spans):
            first, last = int(span[1]), int(span[2] or span[1])
            if not 0 <= last - first < _MOST_HOSTS:
                raise Unsupported(f"{part} is no range of at most {_MOST_HOSTS} hosts")
            found += [f"{name[1]}{number:0{len(span[1])}}{name[3]}" for number in range(first, last + 1)]
    if not found or len(found) > _MOST_HOSTS or text.count("[") != text.count("]") or text.startswith("/"):
        raise Unsupported("is no list of hosts such as gpu-[011-014],gpu-020")
    return list(dict.fromkeys(found))


def _export(found: Found, value: str) -> None:
    if value == "NONE":
        return  # as it is here unless variables are named
    names = value.split(",")
    if "ALL" in names:
        raise Unsupported("your whole environment is not passed on; name what the job needs: --export=HOME,TOKEN")
    if wrong := next((each for each in names if not _VARIABLE.fullmatch(each)), None):
        raise Unsupported(f"{wrong!r} is no variable")
    found.flags["env"] = names


def _mail(found: Found, value: str) -> None:
    words = value.upper().split(",")
    if words == ["NONE"]:
        found.flags.pop("notify", None)
        return
    if unknown := next((each for each in words if each not in _MAILS), None):
        raise Unsupported(f"of events, {', '.join(_MAILS)} are known, not {unknown}")
    found.flags["notify"] = list(dict.fromkeys(event for word in words for event in _MAILS[word]))
    found.counts["ARRAY_TASKS"] = int("ARRAY_TASKS" in words)


def _invalid_dependency(found: Found, value: str) -> None:
    if value != "yes":
        raise Unsupported("a job whose dependency can never be met always ends here, as cancelled")
    found.notes["invalid"] = "--kill-on-invalid-dep: a job whose dependency can never be met always ends as cancelled"


def _refused(why: str) -> Callable[[Found, str], None]:
    def refuse(_: Found, value: str) -> None:
        del value
        raise Unsupported(why)

    return refuse


def _nothing(_: Found, value: str) -> None:
    """It changes what sbatch says and nothing of the job."""
    del value


def _begin(found: Found, value: str) -> None:
    if (moment := _moment(value, "--begin")) is not None:
        found.flags["begin"] = moment


def _deadline(found: Found, value: str) -> None:
    if (moment := _moment(value, "--deadline")) is None:
        raise Unsupported("is now")
    found.flags["deadline"] = moment


def _moment(value: str, flag: str) -> str | None:
    """Returns a time as our flags read it; None for now."""
    named = {"midnight": "00:00", "noon": "12:00", "teatime": "16:00"}.get(value.lower(), value)
    if shift := _SHIFT.fullmatch(named):
        seconds = int(shift[1] or 0) * _SECONDS[(shift[2] or "second").lower()]
        return f"now+{seconds}s" if seconds else None
    try:
        ahead(named, flag, current())
    except UsageProblem:
        raise Unsupported("is not a time that is read here; write 2026-11-24T08:00, 20:00 or now+2hours") from None
    return named


def _hold(found: Found, _: str) -> None:
    found.flags["hold"] = True


def _requeue(found: Found, _: str) -> None:
    found.notes["requeue"] = "--requeue: a job that loses its node is always queued again"


def _signal(found: Found, value: str) -> None:
    match = re.fullmatch(r"(?:[RB]+:)?(?:SIG)?([A-Z0-9]+)(?:@([0-9]{1,5}))?", value, re.ASCII)
    name = "" if match is None else _SIGNALS.get(match[1], match[1])
    if match is None or name not in _SIGNALS.values():
        raise Unsupported(f"of signals, {', '.join(_SIGNALS.values())} are offered")
    seconds = match[2] or "60"
    found.flags |= {"checkpoint_signal": name, "grace": f"{seconds}s"}
    found.notes["signal"] = f"--signal: SIG{name} comes at the time limit, and SIGKILL {seconds} s after it"


def _dependency(found: Found, value: str) -> None:
    if "?" in value:
        raise Unsupported("one of several is not offered; all that are named must happen")
    asked: list[str] = []
    for part in value.split(","):
        word, colon, jobs = part.partition(":")
        if part == "singleton":
            asked.append(part)
        elif word in {"after", "afterok", "afterany", "afternotok"} and colon:
            asked += [f"{word}:{job}" for job in jobs.split(":")]
        else:
            raise Unsupported("of dependencies, after, afterok, afterany, afternotok and singleton are known")
    for each in asked:
        if each != "singleton" and not re.fullmatch(r"[a-z]+:[0-9]{1,18}(_[0-9]{1,9})?", each, re.ASCII):
            raise Unsupported(f"{each} does not name a job by its number")
    before = found.flags.get("after", [])
    assert isinstance(before, list), "nothing else writes it"
    found.flags["after"] = [",".join([*before, *asked])]


_SIGNALS = {"1": "HUP", "2": "INT", "10": "USR1", "12": "USR2", "15": "TERM"}
"""By their numbers on Linux."""
READERS: dict[str, Callable[[Found, str], None]] = {
    "--job-name": _kept("name"),
    "--nodes": _nodes,
    "--time": _time,
    "--partition": _kept("pool"),
    "--account": _kept("project"),
    "--array": _kept("array"),
    "--dependency": _dependency,
    "--cpus-per-task": _counted("--cpus-per-task"),
    "--cpus-per-gpu": _counted("--cpus-per-gpu"),
    "--gpus": _total_gpus,
    "--gpus-per-node": _node_gpus,
    "--gres": _gres,
    "--gpus-per-task": _task_gpus,
    "--mem": _memory,
    "--mem-per-cpu": _sized("--mem-per-cpu"),
    "--mem-per-gpu": _sized("--mem-per-gpu"),
    "--ntasks": _counted("--ntasks"),
    "--ntasks-per-node": _counted("--ntasks-per-node"),
    "--output": _output,
    "--error": _error,
    "--exclusive": _exclusive,
    "--exclude": _hosts("exclude"),
    "--nodelist": _hosts("node"),
    "--chdir": _kept("workdir"),
    "--export": _export,
    "--mail-type": _mail,
    "--mail-user": _refused("the address is your own to set, once: turnstile notify set --email"),
    "--constraint": _refused("features have other names here; write --constraint LABEL=VALUE"),
    "--deadline": _deadline,
    "--kill-on-invalid-dep": _invalid_dependency,
    "--parsable": _nothing,
    "--quiet": _nothing,
    "--verbose": _nothing,
    "--begin": _begin,
    "--hold": _hold,
    "--signal": _signal,
    "--requeue": _requeue,
}
