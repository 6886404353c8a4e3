"""How jobs, and what keeps them, are shown to people. Pure: items of answers in, text out.

The words for reasons are here and nowhere else in the client; the codes are the server's closed list.
"""

from collections.abc import Mapping
from datetime import datetime

from cli import phrases
from cli.answers import Json, items, number, sub, text, texts, whole
from cli.layout import Column, View

_STATE_COLOURS = {
    "running": "green",
    "starting": "green",
    "pending": "yellow",
    "held": "yellow",
    "failed": "red",
    "timeout": "red",
    "cancelled": "dim",
}
_REASON_WORDS: Mapping[str, str] = {
    "order": "others are before it",
    "capacity": "waits for GPUs",
    "fragmentation": "enough GPUs are free, but not together",
    "quota_tenant": "the tenant is at its limit",
    "quota_project": "the project is at its limit",
    "quota_user": "you are at your limit",
    "guarantee": "waits for guaranteed GPUs",
    "budget": "the budget does not cover it",
    "dependency": "waits for another job",
    "begin_time": "not before its begin time",
    "held_user": "held by its owner",
    "held_admin": "held by an admin",
    "array_limit": "its array is at its limit",
    "constraint": "no node is as it asks",
    "pool_closed": "the pool is closed",
    "nodes_down": "nodes are down or drained",
    "reservation": "keeps a reserved start free",
    "preempting": "others are being stopped for it",
    "suspended": "the account is suspended",
    "backoff": "starts again after a pause",
}


def reason_words(reason: Json) -> str:
    """Returns one reason with its numbers: `24 more H100 needed`-like where the server counts, else a phrase."""
    code = text(reason, "code") or "unknown"
    need, free, detail = whole(reason, "need"), whole(reason, "free"), text(reason, "detail")
    words = _REASON_WORDS.get(code, code)
    if need is not None and free is not None:
        unit = " jobs" if text(reason, "unit") == "jobs" else ""
        words = f"{words} (needs {need}, {free} free{unit})"
    return f"{words}: {detail}" if detail else words


def why(job: Json, now: datetime) -> str | None:
    """Returns where a job runs, or what keeps it, or how it ended."""
    state = text(job, "state")
    if state in {"running", "starting", "stopping"}:
        return phrases.nodes(texts(job, "node_names")) or None
    if state in {"pending", "held"}:
        start = sub(job, "start_estimate")
        expected = phrases.clock(text(start, "p50"), now) if start is not None else None
        reasons = items(job, "reasons")
        parts = [f"~{expected}" if expected else "", reason_words(reasons[0]) if reasons else ""]
        return "  ".join(part for part in parts if part) or text(job, "detail")
    return ending(job)


def ending(job: Json) -> str | None:
    """Returns how a job ended: `exit 3`, `walltime`, `node_lost: gpu-014 went silent`."""
    reason, code, detail = text(job, "reason"), whole(job, "exit_code"), text(job, "detail")
    if reason is None or reason == "exit_nonzero":
        return None if code is None else f"exit {code}"
    return f"{reason}: {detail}" if detail else reason


def used(job: Json, now: datetime) -> str:
    """Returns time used and limit: `3:12/12h`, `-/12h` before the start."""
    seconds = whole(job, "elapsed_seconds")
    if seconds is None and text(job, "state") in {"running", "stopping"}:
        seconds = phrases.since(text(job, "started_at"), now)
    limit = whole(job, "time_limit_seconds")
    spent = "-" if seconds is None or text(job, "started_at") is None else phrases.elapsed(seconds)
    return f"{spent}/{phrases.compact(limit) if limit is not None else '-'}"


def totals(answer: Json) -> str | None:
    """Returns the line under a job list: how many, and what the tenant holds of each class."""
    found = sub(answer, "totals")
    shown = len(items(answer))
    parts = [phrases.plural(shown, "job") + (" shown, there are more" if answer.get("next_page") else "")]
    if found is not None:
        states = sub(found, "jobs") or {}
        counted = [f"{number(states, state)} {state}" for state in states if states[state]]
        held = sub(found, "gpus_held") or {}
        holds = [f"{number(held, each)} {each}" for each in held if held[each]]
        parts += [", ".join(counted)] if counted else []
        parts += [f"holding {', '.join(holds)}"] if holds else []
    return " · ".join(parts)


def ended_as(job: Json) -> str:
    """Returns the state that a job is in, and what more there is to say of its end: `failed (exit 3)`, `cancelled`."""
    state, how = text(job, "state") or "?", ending(job)
    return f"{state} ({how})" if how and how != state else state


_JOB_FIELDS = (
    "id", "array_id", "array_index", "name", "tenant", "project", "user", "state", "reason", "exit_code",
    "gpus_per_node", "nodes", "gpus_total", "gpu_model", "pool", "booking", "priority", "time_limit_seconds",
    "elapsed_seconds", "submitted_at", "started_at", "ended_at", "attempt", "node_names", "reasons.0.code",
    "start_estimate.p50", "max_cost.amount", "max_cost.currency", "nodes_min", "nodes_max",
)  # fmt: skip


def _slurm(job: Json) -> str | None:
    reasons = items(job, "reasons")
    return text(reasons[0], "slurm") if reasons else None


def _colour(job: Json) -> str | None:
    return _STATE_COLOURS.get(text(job, "state") or "")


_WHICH = (
    Column("ID", phrases.job_id, is_right=True),
    Column("NAME", lambda job: text(job, "name")),
    Column("USER", lambda job: text(job, "user")),
    Column("PROJECT", lambda job: text(job, "project"), is_wide=True),
    Column("STATE", lambda job: text(job, "state"), paint=_colour),
)
"""What every list of jobs begins with."""


def job_view(now: datetime) -> View:
    """Returns how jobs are listed at a time: `queue` and `history`."""
    return View(
        columns=(
            *_WHICH,
            Column("GPUS", phrases.gpus, is_right=True),
            Column("TIME/LIMIT", lambda job: used(job, now), is_right=True),
            Column("POOL", lambda job: text(job, "pool"), is_wide=True),
            Column("BOOKING", lambda job: text(job, "booking"), is_wide=True),
            Column("SUBMITTED", lambda job: phrases.clock(text(job, "submitted_at"), now), is_wide=True),
            Column("SLURM", _slurm, is_wide=True),
            Column("WHERE / WHY", lambda job: why(job, now)),
        ),
        name=phrases.job_id,
        fields=_JOB_FIELDS,
        empty="no jobs",
        footer=totals,
    )


def history_view(now: datetime) -> View:
    """Returns how jobs that have ended are listed."""
    return View(
        columns=(
            *_WHICH,
            Column("HOW", ending),
            Column("GPUS", phrases.gpus, is_right=True),
            Column("TIME/LIMIT", lambda job: used(job, now), is_right=True),
            Column("STARTED", lambda job: phrases.clock(text(job, "started_at"), now), is_wide=True),
            Column("ENDED", lambda job: phrases.clock(text(job, "ended_at"), now)),
        ),
        name=phrases.job_id,
        fields=_JOB_FIELDS,
        empty="no jobs",
        footer=lambda answer: totals({k: v for k, v in answer.items() if k != "totals"}),
    )
