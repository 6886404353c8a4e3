"""Numbers as people read them: durations, sizes, GPUs, money, times, lists of nodes. Pure text; nothing prints."""

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cli import moments
from cli.answers import Json, number, text, truth, whole


def compact(seconds: int) -> str:
    """Returns a limit as it would be typed: `12h`, `1h30m`, `2d`, `45s`."""
    if seconds == 0:
        return "0s"
    parts = []
    for unit, length in (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)):
        amount, seconds = divmod(seconds, length)
        if amount:
            parts.append(f"{amount}{unit}")
    return "".join(parts)


def spoken(seconds: int) -> str:
    """Returns a duration in its two largest units: `1h 04m`, `3d 02h`, `12m 05s`, `8s`."""
    for large, small, length, part in (("d", "h", 86_400, 3600), ("h", "m", 3600, 60), ("m", "s", 60, 1)):
        if seconds >= length:
            return f"{seconds // length}{large} {seconds % length // part:02d}{small}"
    return f"{max(seconds, 0)}s"


def elapsed(seconds: int) -> str:
    """Returns time used so far, in hours and minutes: `3:12`; `0:00:41` in the first ten minutes."""
    hours, rest = divmod(max(seconds, 0), 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours}:{minutes:02d}" if seconds >= 600 else f"{hours}:{minutes:02d}:{left:02d}"


def size(amount_bytes: int) -> str:
    """Returns a size in decimal units as hardware is sold: `80 GB`, `1.5 TB`."""
    value, unit = float(amount_bytes), "B"
    for unit in ("B", "kB", "MB", "GB", "TB", "PB"):
        if value < 1000 or unit == "PB":
            break
        value /= 1000
    return f"{value:.1f}".removesuffix(".0") + f" {unit}" if value < 10 else f"{value:.0f} {unit}"


def money(amount: Json | None) -> str | None:
    """Returns `1,920.00 USD` of {amount, currency}; the digits are the server's, not rounded here."""
    if amount is None:
        return None
    digits, currency = text(amount, "amount"), text(amount, "currency")
    if digits is None:
        return None
    sign, digits = ("-", digits[1:]) if digits.startswith("-") else ("", digits)
    before, point, after = digits.partition(".")
    grouped = f"{int(before):,}" if before.isdigit() else before
    return f"{sign}{grouped}{point}{after}" + (f" {currency}" if currency else "")


def quantity(amount: Decimal, decimals: int) -> str:
    """Returns `1,812.4` of an amount and its decimals; `0.0042` of one that these would show as nothing."""
    told = f"{amount:,.{decimals}f}"
    if not amount or Decimal(told.replace(",", "")):
        return told
    # Two digits that say something: what costs, however little, is never told as 0.
    return f"{amount:.{1 - amount.adjusted()}f}".rstrip("0")


def gpus(job: Json) -> str:
    """Returns what a job holds or asks for: `32×H100`, `8×H100|H200`, `64`; of a range that waits `16-64×H100`."""
    total = number(job, "gpus_total") or "?"
    most = most_gpus(job)
    if most is not None and text(job, "state") in {"pending", "held"}:
        total = f"{total}-{most}"
    classes = job.get("gpu_classes")
    asked = "|".join(str(each) for each in classes) if isinstance(classes, list) else ""
    model = text(job, "gpu_model") or asked
    return f"{total}×{model}" if model else total


def most_gpus(job: Json) -> int | None:
    """Returns the GPUs of an elastic job on the most nodes that it may have; None for others."""
    most, each = whole(job, "nodes_max"), whole(job, "gpus_per_node")
    return None if most is None or each is None else most * each


def clock(moment: str | None, now: datetime, *, has_seconds: bool = False) -> str | None:
    """Returns `14:20`, `Tue 14:20` within a week, else the date too, in the reader's zone."""
    if moment is None:
        return None
    try:
        local, today = moments.parse(moment).astimezone(), now.astimezone()
    except ValueError:
        return moment
    days = abs((local.date() - today.date()).days)
    day = "" if days == 0 else "%a " if days < 7 else "%Y-%m-%d "
    return local.strftime(f"{day}%H:%M:%S" if has_seconds else f"{day}%H:%M")


def day(moment: str, zone: str | None) -> str:
    """Returns the day of an instant in a zone, as in `1 December 2026`; in UTC where the zone is not known here."""
    found = local(moment, zone)
    return f"{found.day} {found:%B %Y}"


def local(moment: str, zone: str | None) -> datetime:
    """Returns an instant in a zone; in UTC where this machine does not know the zone."""
    try:
        where = ZoneInfo(zone or "UTC")
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return moments.parse(moment).astimezone(UTC)
    return moments.parse(moment).astimezone(where)


def since(moment: str | None, now: datetime) -> int | None:
    """Returns the seconds gone by since a moment; None if it is absent or not a time."""
    if moment is None:
        return None
    try:
        return max(int((now - moments.parse(moment)).total_seconds()), 0)
    except ValueError:
        return None


def answered_at(answer: Json) -> datetime:
    """Returns when the server made an answer: the `now` of all that is said about it."""
    said = text(answer, "generated_at")
    try:
        return moments.parse(said) if said is not None else moments.current()
    except ValueError:
        return datetime.fromtimestamp(0, UTC)


def nodes(names: Iterable[str]) -> str:
    """Returns node names folded as Slurm writes them, in order: `gpu-[011-014,020]`."""
    groups: dict[tuple[str, int], list[int]] = {}
    plain = []
    for name in sorted(set(names)):
        if found := re.fullmatch(r"(.*?)([0-9]+)", name, re.ASCII):
            groups.setdefault((found[1], len(found[2])), []).append(int(found[2]))
        else:
            plain.append(name)
    folded = [_fold(prefix, width, numbers) for (prefix, width), numbers in groups.items()]
    return ",".join(sorted(plain + folded))


def _fold(prefix: str, width: int, numbers: list[int]) -> str:
    if len(numbers) == 1:
        return f"{prefix}{numbers[0]:0{width}d}"
    runs: list[list[int]] = []
    for each in numbers:
        if runs and each == runs[-1][-1] + 1:
            runs[-1].append(each)
        else:
            runs.append([each])
    shown = [f"{run[0]:0{width}d}" if len(run) == 1 else f"{run[0]:0{width}d}-{run[-1]:0{width}d}" for run in runs]
    return f"{prefix}[{','.join(shown)}]"


def plural(amount: int, noun: str) -> str:
    """Returns `1 job`, `5 jobs`."""
    return f"{amount:,} {noun}" if amount == 1 else f"{amount:,} {noun}s"


def plural_of(amount: str, noun: str) -> str:
    """Returns `1 GPU`, `32 GPUs`, `0.5 GPUs` of an amount that is text already."""
    return f"{amount} {noun}" if amount == "1" else f"{amount} {noun}s"


def project_order(terms: Json) -> str | None:
    """Returns what a project's own order goes by, in words; None for submit time alone."""
    words = ["fair-user: who holds least first"] if truth(terms, "takes_turns") else []
    for key, size in (("limit", "hour of limit"), ("service", "GPU hour"), ("slowdown", "hour of limit times √GPUs")):
        if weight := whole(terms, f"{key}_weight"):
            article = "an" if size.startswith("hour") else "a"
            words.append(f"{article} {size} counts as {plural(weight, 'hour')} of waiting")
    return ", then ".join(words) or None


def files(folder: object, names: Sequence[str]) -> list[str]:
    """Returns the lines that tell which files were written: how many and where, then one a line."""
    return [f"{folder}: {plural(len(names), 'file')}", *(f"  {name}" for name in names)]


def job_id(job: Json) -> str:
    """Returns a job's number as it is typed: `10482`, and `10490_7` for an element of an array."""
    array, index = whole(job, "array_id"), whole(job, "array_index")
    if array is not None and index is not None:
        return f"{array}_{index}"
    return text(job, "id") or "?"
