"""How a job's report is told: how busy its GPUs were, what they cost, what to do otherwise. Pure: answers in, text out.

What the server does not know has no line, and never a 0.
"""

from decimal import Decimal

from cli import phrases
from cli.answers import Json, items, number, sub, text, truth, whole
from cli.layout import View

BAR_CELLS = 20
SEEN_WHOLE = 0.95
"""From this coverage on, what was measured speaks for all of it; below, the coverage is told."""

VIEW = View(
    columns=(),
    name=lambda answer: text(answer, "job_id"),
    fields=(
        "job_id", "name", "account", "user", "state", "reason", "exit_code", "waited_seconds", "ran_seconds",
        "time_limit_seconds", "gpu.held_gpu_hours", "gpu.measured_gpu_hours", "gpu.busy_percent",
        "gpu.idle_gpu_hours", "gpu.idle_percent", "gpu.memory_max_bytes", "energy.kwh", "costs.0.amount",
        "costs.0.currency", "advice.0.code",
    ),
)  # fmt: skip


def reported(answer: Json) -> list[str]:
    """Returns the lines of a report: a heading, then one fact a line."""
    gpu = sub(answer, "gpu") or {}
    facts = [("GPU", _busy(gpu)), ("", _coverage(gpu)), ("energy", _energy(answer))]
    facts += [("cost", _cost(cost)) for cost in items(answer, "costs")]
    facts += [("advice", text(each, "message")) for each in items(answer, "advice")]
    return [_heading(answer), *(f"  {name:<8}{fact}" for name, fact in facts if fact is not None)]


def bar(percent: int, cells: int = BAR_CELLS) -> str:
    """Returns a bar of so many cells, filled by a percentage."""
    filled = min(max(round(percent * cells / 100), 0), cells)
    return "█" * filled + "░" * (cells - filled)


def _heading(answer: Json) -> str:
    state, reason, code = text(answer, "state") or "?", text(answer, "reason"), whole(answer, "exit_code")
    how = reason if reason not in {None, "exit_nonzero"} else None if code is None else f"exit {code}"
    ran, limit = whole(answer, "ran_seconds"), whole(answer, "time_limit_seconds")
    waited = whole(answer, "waited_seconds")
    parts = [
        f"{text(answer, 'job_id') or '?'} {text(answer, 'name') or ''}",
        text(answer, "user"),
        text(answer, "account"),
        state + (f" ({how})" if how else ""),
    ]
    times = []
    if ran is not None:
        times.append(f"ran {phrases.spoken(ran)}" + (f" of {phrases.compact(limit)}" if limit is not None else ""))
    times.append(f"waited {phrases.spoken(waited)}" if waited is not None else "has not started yet")
    return "  ".join([*(part for part in parts if part), ", ".join(times)])


def _busy(gpu: Json) -> str | None:
    hours = _tenths(gpu, "held_gpu_hours")
    if hours is None or Decimal(text(gpu, "held_gpu_hours") or 0) == 0:
        return None
    busy = whole(gpu, "busy_percent")
    if busy is None:
        return f"{hours} GPU-h; how busy was not measured"
    parts = [f"{busy} % busy", bar(busy)]
    memory = _memory(gpu)
    parts += [memory] if memory is not None else []
    idle = _tenths(gpu, "idle_gpu_hours")
    parts.append(f"{hours} GPU-h, {idle} idle ({number(gpu, 'idle_percent')} %)")
    return "   ".join(parts)


def _coverage(gpu: Json) -> str | None:
    covered = gpu.get("coverage_ratio")
    if whole(gpu, "busy_percent") is None or not isinstance(covered, int | float) or covered >= SEEN_WHOLE:
        return None
    return f"measured for {covered:.0%} of the time"


def _memory(gpu: Json) -> str | None:
    most, total = whole(gpu, "memory_max_bytes"), whole(gpu, "memory_bytes")
    if most is None:
        return None
    return f"mem {phrases.size(most)}" + (f" of {phrases.size(total)}" if total is not None else "")


def _energy(answer: Json) -> str | None:
    energy = sub(answer, "energy")
    kwh = None if energy is None else text(energy, "kwh")
    if energy is None or kwh is None:
        return None
    told = f"{phrases.quantity(Decimal(kwh), 1 if Decimal(kwh) >= 1 else 3)} kWh"
    covered = energy.get("coverage_ratio")
    part = f" of {covered:.0%} of the time" if isinstance(covered, int | float) and covered < SEEN_WHOLE else ""
    restarts = whole(energy, "counter_restarts") or 0
    notes = ["an estimate by the GPUs' sensors"] if truth(energy, "is_estimate") else []
    # What was used between the last reading and the restart is not in it.
    notes += [f"energy counters restarted {restarts} times"] if restarts > 1 else []
    notes += ["an energy counter restarted once"] if restarts == 1 else []
    return f"{told}{part}" + (f" ({'; '.join(notes)})" if notes else "")


def _cost(cost: Json) -> str | None:
    amount, hours = text(cost, "amount"), text(cost, "gpu_hours")
    product = f"{phrases.quantity(Decimal(hours), 2)} GPU-h" if hours is not None else ""
    if amount is None:
        return f"{product} without a price" if product else None
    price, book = text(cost, "price_per_gpu_hour"), text(cost, "price_book")
    if price is not None:
        product += f" × {price}, price list {book}"
    preempted = Decimal(text(cost, "preempted_gpu_hours") or 0)
    lost = f"; {phrases.quantity(preempted, 2)} GPU-h ended by preemption" if preempted else ""
    shown = phrases.quantity(Decimal(amount), 2)
    return f"{shown} {text(cost, 'currency') or ''}   ({product}{lost}; before tax)"


def _tenths(item: Json, key: str) -> str | None:
    found = text(item, key)
    return None if found is None else phrases.quantity(Decimal(found), 1)
