"""How one job is told: `show`, `why`, `report` and its history. Pure: answers in, text out."""

from datetime import datetime
from decimal import Decimal

from cli import phrases
from cli.answers import Json, items, number, sub, text, texts, truth, whole
from cli.layout import Column, View
from cli.views import ended_as, reason_words, used, why

MOST_AHEAD = 3
"""Jobs ahead that a line names; `-o json` has more."""


def event_view(now: datetime) -> View:
    """Returns how what happened to one job is listed."""
    return View(
        columns=(
            Column("AT", lambda event: phrases.clock(text(event, "at"), now, has_seconds=True)),
            Column("WHAT", lambda event: text(event, "kind")),
            Column("DETAIL", _detail),
        ),
        name=lambda event: text(event, "kind"),
        fields=("sequence", "at", "kind", "detail"),
        empty="nothing has happened yet",
    )


def _detail(event: Json) -> str | None:
    value = event.get("detail")
    if isinstance(value, dict):
        return " ".join(f"{key}={each}" for key, each in value.items() if each is not None) or None
    return None if value is None else str(value)


def told(job: Json, now: datetime) -> list[str]:
    """Returns a job as `show` tells it: a heading, then one fact a line."""
    state = text(job, "state") or "?"
    owner = "/".join(part for part in (text(job, "tenant"), text(job, "project")) if part)
    facts = {
        "owner": f"{text(job, 'user') or '?'}  {owner}",
        "gpus": f"{phrases.gpus(job)} ({_nodes(job)} × {number(job, 'gpus_per_node') or '?'})",
        "time": f"{used(job, now)} (used/limit)",
        "pool": text(job, "pool"),
        "booking": text(job, "booking"),
        "priority": text(job, "priority"),
        "submitted": phrases.clock(text(job, "submitted_at"), now),
        "started": phrases.clock(text(job, "started_at"), now),
        "ended": phrases.clock(text(job, "ended_at"), now),
        "nodes": phrases.nodes(texts(job, "node_names")) or None,
        "topology": text(job, "topology"),
        "after": ", ".join(texts(job, "waits_for")) or None,
        "at once": f"{number(job, 'array_cap')} of its array at most" if whole(job, "array_cap") else None,
        "attempt": number(job, "attempt") if text(job, "started_at") else None,
        "cost": _at_most(job),
        "labels": _detail({"detail": sub(job, "labels")}),
        "command": " ".join(texts(job, "command")) or None,
    }
    if state in {"pending", "held"}:
        facts["waits"] = why(job, now)
    heading = f"{phrases.job_id(job)} {text(job, 'name') or ''}: {ended_as(job)}"
    return [heading, *(f"  {name:<10}{value}" for name, value in facts.items() if value)]


def _nodes(job: Json) -> str:
    """Returns how many nodes a job asks for or has: `4 nodes`, `2-8 nodes`, `5 of 2-8 nodes`."""
    now, least, most = (number(job, name) for name in ("nodes", "nodes_min", "nodes_max"))
    if most is None:
        return phrases.plural_of(now or "?", "node")
    return f"{least}-{most} nodes" if text(job, "state") in {"pending", "held"} else f"{now} of {least}-{most} nodes"


def _at_most(job: Json) -> str | None:
    cost, least = phrases.money(sub(job, "max_cost")), phrases.money(sub(job, "max_cost_at_nodes_min"))
    on = f", {least} on {number(job, 'nodes_min')} nodes" if least else ""
    return f"at most {cost}{on}" if cost else None


def explained(answer: Json, job: Json, now: datetime) -> list[str]:
    """Returns an Explanation as `why` tells it: what blocks first, then what does not."""
    waited = phrases.since(text(job, "submitted_at"), now)
    heading = f"{phrases.job_id(job)} {text(job, 'name') or ''}: {text(job, 'state') or '?'}"
    if waited is not None and text(job, "state") in {"pending", "held"}:
        heading += f" for {phrases.spoken(waited)}"
    position = whole(answer, "position") or whole(job, "position")
    if position is not None:
        heading += f", number {position} in its queue"
    lines = [heading, ""]
    reasons = items(answer, "reasons")
    for place, reason in enumerate(reasons):
        mark = "also" if place else "BLOCKS"
        lines.append(f"{mark:<8}{text(reason, 'code') or '?':<15}{reason_words(reason)}")
    if not reasons:
        lines.append(_no_reason(job, now))
    ahead, gpus_ahead = whole(answer, "ahead_jobs"), number(answer, "ahead_gpus")
    if ahead:
        lines.append(f"{'ahead':<8}{phrases.plural(ahead, 'job')}, {gpus_ahead or '?'} GPUs{_first(answer)}")
    ordered = sub(answer, "project_order")
    if ordered is not None and (words := phrases.project_order(ordered)):
        lines.append(f"{'order':<8}in {text(ordered, 'account')} {words}")
    considered, fitting = whole(answer, "nodes_considered"), whole(answer, "nodes_fit")
    if considered and fitting is not None:
        lines.append(f"{'nodes':<8}{fitting} of {considered} could take its part now")
    lines += [f"{'share' if place == 0 else '':<8}{_share(each)}" for place, each in enumerate(items(answer, "shares"))]
    start = sub(answer, "start_estimate") or sub(job, "start_estimate")
    if start is not None and text(start, "p50") is not None:
        lines.append(f"{'start':<8}{_start(start, now)}")
    lines += [f"{'sooner':<8}{' '.join(texts(change, 'flags'))} → now" for change in items(answer, "sooner")]
    lines.append(f"{'as of':<8}{now.astimezone():%H:%M:%S}")
    return lines


def _first(answer: Json) -> str:
    """Returns the jobs ahead that the asker may know, as far as they are named."""
    named = [f"{phrases.job_id(each)} {text(each, 'name') or ''} of {text(each, 'account')}" for each in _ahead(answer)]
    return f": {', '.join(named)}" if named else ""


def _ahead(answer: Json) -> list[Json]:
    return items(answer, "ahead")[:MOST_AHEAD]


def _share(item: Json) -> str:
    """Returns what an account of the job's path holds beside what it has bought and what it should hold."""
    held, model = number(item, "held"), text(item, "gpu_model")
    guarantee, target = number(item, "guarantee"), number(item, "target")
    over = " (over)" if truth(item, "is_over_target") else ""
    limit = number(item, "limit")
    most = "" if limit is None else f", limit {limit}"
    debt = text(item, "debt_credits") or "0"
    return (
        f"{text(item, 'account')} holds {held} {model}: guarantee {guarantee}{most}, target {target}{over}, "
        f"debt {debt.rstrip('0').rstrip('.') or '0'} credits"
    )


def _start(start: Json, now: datetime) -> str:
    """Returns when it is likely to start, by when at the latest, and what such estimates were worth."""
    said, late = f"~{phrases.clock(text(start, 'p50'), now)}", phrases.clock(text(start, "p90"), now)
    if late is not None and truth(start, "is_measured"):
        said += f", 90 % by {late}"
    elif late is not None:
        said += f", {late} if everything takes its whole limit"
    count, error = whole(start, "past_estimates"), whole(start, "past_median_error_seconds")
    if not count or error is None:
        return said
    return f"{said} (last {phrases.plural(count, 'estimate')} in this pool: median error {phrases.spoken(error)})"


def _no_reason(job: Json, now: datetime) -> str:
    """What is said of a job that nothing keeps from starting."""
    state, place = text(job, "state"), why(job, now)
    if state in {"pending", "held"}:
        return "nothing blocks it: it starts at the next decision"
    return f"it does not wait: its state is {state}" + (f" ({place})" if place and place != state else "")


def why_view() -> View:
    """Returns how an Explanation is named and what of it CSV holds."""
    return View(
        columns=(),
        name=lambda answer: text(items(answer, "reasons")[0], "code") if items(answer, "reasons") else None,
        fields=("job_id", "state", "reasons.0.code", "reasons.0.need", "reasons.0.free", "position", "ahead_jobs"),
    )


def allocation_view(now: datetime) -> View:
    """Returns how the starts of a job are listed."""
    return View(
        columns=(
            Column("START", lambda each: number(each, "attempt"), is_right=True),
            Column("GPUS", _held_gpus, is_right=True),
            Column("BOOKING", lambda each: text(each, "booking")),
            Column("FROM", lambda each: phrases.clock(_begun(each), now, has_seconds=True)),
            Column("TO", lambda each: phrases.clock(text(each, "ended_at"), now, has_seconds=True)),
            Column("GPU-HOURS", lambda each: f"{gpu_hours(each, now):.2f}", is_right=True),
            Column("ENDED BY", lambda each: text(each, "end_reason") or text(each, "phase")),
            Column("NODES", lambda each: phrases.nodes(_node_names(each)) or None),
        ),
        name=lambda each: text(each, "id"),
        fields=(
            "id", "job_id", "attempt", "gpu_model", "booking", "phase", "decided_at", "started_at", "ended_at",
            "end_reason", "exit_code",
        ),
        empty="it has not started yet",
    )  # fmt: skip


def gpu_hours(allocation: Json, now: datetime) -> Decimal:
    """Returns the GPU-hours that a start has held so far, starting and stopping included."""
    begun = phrases.since(text(allocation, "decided_at") or text(allocation, "started_at"), now) or 0
    over = phrases.since(text(allocation, "ended_at"), now) or 0
    return _gpus(allocation) * (begun - over) / 3600


def _begun(allocation: Json) -> str | None:
    return text(allocation, "started_at") or text(allocation, "decided_at")


def _gpus(allocation: Json) -> Decimal:
    return sum((Decimal(number(node, "gpus") or 0) for node in items(allocation, "nodes")), Decimal(0))


def _held_gpus(allocation: Json) -> str:
    model = text(allocation, "gpu_model")
    return f"{_gpus(allocation)}×{model}" if model else str(_gpus(allocation))


def _node_names(allocation: Json) -> list[str]:
    return [name for node in items(allocation, "nodes") if (name := text(node, "name")) is not None]


def quoted(quote: Json, now: datetime) -> list[str]:
    """Returns the line of `quote`: what it may cost, how that comes about, when it could start."""
    cost, hours = phrases.money(sub(quote, "max_cost")), text(quote, "gpu_hours")
    rate = sub(quote, "price_per_gpu_hour")
    product = f"{hours} GPU-h" + (f" × {text(rate, 'amount')}" if rate is not None else "")
    start = sub(quote, "start_estimate")
    expected = phrases.clock(text(start, "p50"), now) if start is not None else None
    blocking = next(iter(items(quote, "reasons")), None)
    least = phrases.money(sub(quote, "max_cost_at_nodes_min"))
    on = f", {least} on {number(quote, 'nodes_min')} nodes" if least is not None else ""
    parts = [f"at most {cost} ({product}){on}" if cost is not None else f"{product}; no price is known for these GPUs"]
    parts += [f"starts ~{expected}"] if expected is not None else []
    parts += [f"would wait: {reason_words(blocking)}"] if blocking is not None else []
    # A dry run is refused as the submission would be, but for money, which it answers for.
    fits = quote.get("fits_budget")
    parts += [f"could be submitted: {'no' if fits is False else 'yes'}"]
    if fits is not None:
        parts += [f"fits budget: {'yes' if fits else 'no'}"]
    problem = text(quote, "budget_problem")
    return ["   ".join(parts), *([problem] if problem is not None else [])]
