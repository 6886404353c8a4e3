"""`admin job explain`: why a job waits, or waited at a time gone by, and the proof: the tick planned once more."""

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from cli import moments, phrases
from cli.answers import Json, items, number, sub, text, whole
from cli.client import step
from cli.commands import jobs
from cli.errors import Refusal, UsageProblem
from cli.layout import Column, View
from cli.render import envelope
from cli.session import Session
from cli.views import reason_words

if TYPE_CHECKING:
    from scheduler.recording import Replayed, Ticked

_DOING = {
    "not_submitted": "not submitted yet",
    "waiting": "waiting",
    "held": "held",
    "running": "running, or being started or stopped",
    "ended": "ended already",
}


@dataclass(frozen=True, slots=True)
class _Proof:
    """A tick that was planned once more."""

    tick: "Ticked"
    replayed: "Replayed"
    reasons: tuple[str, ...]
    """Why the job waited, with the numbers of that tick."""


def explain(
    ctx: typer.Context,
    job: Annotated[str, typer.Argument(metavar="JOB", help="10482, 10482_7, a name, @")],
    at: Annotated[
        str | None, typer.Option("--at", metavar="TIME", help="Then, not now: 2h (ago), 2026-11-23T12:31:07+08:00.")
    ] = None,
    replay: Annotated[
        bool, typer.Option("--replay", help="Plan the tick of then once more, here, from what was recorded.")
    ] = False,
) -> None:
    """Tell why a job waits; with --at, what was decided about it and why it waited at a time gone by.

    The log has a line for each decision, and one whenever the reasons change. With --replay the last tick before that
    time is planned once more from the recorded state and events, and must decide the same.

    Examples:
      turnstile admin job explain 4711
      turnstile admin job explain 4711 --at 2026-11-23T12:31:07+08:00
      turnstile admin job explain 4711 --at 10m --replay
    """
    if at is None and not replay:
        jobs.why(ctx, job)
        return
    session: Session = ctx.obj
    if at is None:
        raise UsageProblem("--replay needs the time whose tick is meant", "--at 10m --replay")
    when = moments.ago(at, "--at", moments.current()).isoformat()
    ref = session.reference(job)
    found = dict(session.client.get(f"/v1/admin/jobs/{step(ref)}/decisions", {"at": when}))
    lines = _told(found)
    if replay:
        answer = session.client.get("/v1/admin/decisions/tape", {"at": when})
        proof = _replayed(answer, text(found, "at") or when, text(found, "job_id") or ref)
        found["replay"] = {
            "decision": proof.tick.decision,
            "is_same": proof.replayed.is_same,
            "recorded": proof.replayed.recorded,
            "found": proof.replayed.found,
            "reasons": list(proof.reasons),
        }
        lines += _proved(proof)
    session.screen.document(envelope("DecisionList", found), _VIEW, lines)


def _told(found: Json) -> list[str]:
    now = phrases.answered_at(found)
    doing = _DOING.get(text(found, "doing") or "", text(found, "doing") or "?")
    lines = [f"{text(found, 'job_id')} of {text(found, 'tenant')}: {doing} at {text(found, 'at')}", ""]
    for place, reason in enumerate(items(found, "reasons")):
        lines.append(f"{'' if place else 'BLOCKED':<9}{text(reason, 'code') or '?':<15}{reason_words(reason)}")
    since = sub(found, "since")
    if since is not None:
        lines.append(f"{'since':<9}{phrases.clock(text(since, 'at'), now, has_seconds=True)}, {_decision(since)}")
    tick = sub(found, "tick")
    if tick is None:
        lines.append(f"{'log':<9}does not reach back so far; decisions.log_days says how long it is kept")
    else:
        last = f"{_decision(tick)}, from input version {whole(tick, 'input_version')}, policy {text(tick, 'policy')}"
        lines.append(f"{'log':<9}{last}")
    for each in reversed(items(found, "items")):
        at = phrases.clock(text(each, "at"), now, has_seconds=True) or ""
        lines.append(f"{text(each, 'kind') or '':<9}{at}, {_decision(each)}: {text(each, 'words') or ''}")
    return lines


def _decision(line: Json) -> str:
    return f"decision {whole(line, 'decision')} of epoch {whole(line, 'epoch')}"


def _replayed(answer: Json, at: str, job: str) -> _Proof:
    """Plans the last tick up to an instant once more. Raises Refusal when the tape cannot show it."""
    from scheduler.clock import parse_utc_ms
    from scheduler.core.explain import reasons_of
    from scheduler.recording import NotRecorded, Ticked, replay, unpack_entries, unpack_state
    from scheduler.refusal import Refused

    begin, *rest = [base64.b64decode(text(piece, "body") or "") for piece in items(answer, "items")]
    entries = [entry for body in rest for entry in unpack_entries(body)]
    at_ms = parse_utc_ms(at)
    ticks = [entry for entry in entries if isinstance(entry, Ticked) and entry.now_ms <= at_ms]
    if not ticks:
        raise Refusal("no tick between the recorded state and that time is on the tape", "a time some seconds later")
    try:
        snapshot, told = unpack_state(begin)
        state = snapshot.state()
        for event in told:
            state.apply(event)
        replayed = replay(state, snapshot, entries, ticks[-1].decision)
    except Refused as refused:
        raise Refusal(refused.message, *refused.tries) from None
    except NotRecorded as missing:
        raise Refusal(str(missing)) from None
    number_of, _, index = job.partition("_")
    waiting = [
        each
        for each in state.jobs.values()
        if str(each.id) == job or (index and (str(each.array), str(each.array_index)) == (number_of, index))
    ]
    reasons = [reason for each in waiting for reason in reasons_of(replayed.plan, each)]
    words = tuple(f"{each.code.value} (need {each.need}, free {each.free})" for each in reasons)
    return _Proof(ticks[-1], replayed, words)


def _proved(proof: _Proof) -> list[str]:
    verdict = "decides the same" if proof.replayed.is_same else "DIFFERS from what was decided then; report a defect"
    lines = [f"{'replay':<9}decision {proof.tick.decision} planned once more: {verdict}"]
    return [*lines, *(f"{'':<9}{words}" for words in proof.reasons)]


_VIEW = View(
    columns=(
        Column("AT", lambda each: text(each, "at")),
        Column("DECISION", lambda each: number(each, "decision"), is_right=True),
        Column("KIND", lambda each: text(each, "kind")),
        Column("WORDS", lambda each: text(each, "words")),
    ),
    name=lambda each: text(each, "job_id"),
    fields=("job_id", "at", "doing", "reasons.0.code", "reasons.0.need", "reasons.0.free", "replay.is_same"),
)
