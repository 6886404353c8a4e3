"""What was decided about a job, and why it waited, at a time gone by; and the tape from which that is planned again.

For the centre's operators: a decision log tells of every tenant.
"""

import base64
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response
from fastapi import Path as PathPart
from sqlalchemy.engine import Connection

from scheduler.auth import OPERATES, Rights
from scheduler.clock import iso_utc
from scheduler.core.decided import Kind
from scheduler.core.model import AccountId, HoldKind
from scheduler.core.reasons import SLURM_WORDS, ReasonCode
from scheduler.core.waiting import group_of
from scheduler.recording import subject_of
from scheduler.refusal import RefusalCode, Refused
from scheduler.routes.door import Door, answer
from scheduler.routes.finding import found_job
from scheduler.store import queries
from scheduler.store.decisions import Logged, TapePiece, last_tick, of_job, tape, wait_of
from scheduler.wire.answers import job_answer_id
from scheduler.wire.problems import Json, envelope
from scheduler.wire.requests import parse_time

MOST_LINES = 50
"""Decisions about one job in one answer, the latest."""
_AT = Query(max_length=64, description="RFC 3339; the present when it is left out.")


@dataclass(frozen=True, slots=True)
class _Then:
    """What a job did at an instant, and why; `line` is the decision that said so, where one did."""

    doing: str
    reasons: tuple[Json, ...] = ()
    line: Logged | None = None


def decision_routes(door: Door) -> APIRouter:
    """Returns the routes of the decision log."""
    router = APIRouter(tags=["decisions"])
    operator = door.allow(OPERATES)

    @router.get("/v1/admin/jobs/{ref}/decisions", summary="What was decided about a job, up to a time")
    async def decisions(
        ref: Annotated[str, PathPart(max_length=256)],
        rights: Annotated[Rights, Depends(operator)],
        at: Annotated[str | None, _AT] = None,
    ) -> Response:
        at_ms = door.now_ms if at is None else parse_time(at, "at")

        def look(connection: Connection) -> Json:
            job = found_job(connection, rights, ref)
            last = last_tick(connection, at_ms)
            then = _then(connection, job, at_ms, last)
            lines = of_job(connection, job.job.id, at_ms, MOST_LINES)
            shown_id = job_answer_id(job.job.id, job.job.array, job.job.array_index)
            return {
                "job_id": shown_id,
                "tenant": job.tenant,
                "at": iso_utc(at_ms),
                "doing": then.doing,
                "reasons": list(then.reasons),
                "since": None if then.line is None else _line(then.line),
                "tick": None if last is None else _line(last),
                "items": [_line(each) for each in lines],
                "next_page": None,
            }

        return answer(envelope("DecisionList", door.now_ms, **await door.read(look)))

    @router.get("/v1/admin/decisions/tape", summary="A recorded state and what came after it, to plan a tick again")
    async def recorded(rights: Annotated[Rights, Depends(operator)], at: Annotated[str | None, _AT] = None) -> Response:
        rights.require_centre()
        at_ms = door.now_ms if at is None else parse_time(at, "at")
        pieces = await door.read(lambda connection: tape(connection, at_ms))
        if not pieces:
            raise Refused(
                RefusalCode.NOT_FOUND,
                f"no state from before {iso_utc(at_ms)} is recorded any more",
                ("a later time; decisions.tape_hours says how long the tape is kept",),
            )
        items = [_piece(each) for each in pieces]
        return answer(envelope("DecisionTape", door.now_ms, at=iso_utc(at_ms), items=items, next_page=None))

    return router


def _piece(each: TapePiece) -> Json:
    return {
        "kind": each.kind,
        "epoch": each.epoch,
        "at": iso_utc(each.at_ms),
        "last_decision": each.last_decision,
        "body": base64.b64encode(each.body).decode("ascii"),
    }


def _line(each: Logged) -> Json:
    return {
        "at": iso_utc(each.at_ms),
        "decision": each.decision,
        "epoch": each.epoch,
        "input_version": each.version,
        "policy": each.policy,
        "kind": each.kind.value,
        "allocation_id": each.allocation,
        "words": each.words,
    }


def _then(connection: Connection, record: queries.JobRecord, at_ms: int, last: Logged | None) -> _Then:
    job = record.job
    if at_ms < job.submitted_ms:
        return _Then("not_submitted")
    for start in queries.allocations_of(connection, job.id):
        if start.allocation.decided_ms <= at_ms and (start.ended_ms is None or at_ms < start.ended_ms):
            return _Then("running")
    if record.ended_ms is not None and at_ms >= record.ended_ms:
        return _Then("ended")
    held = _held(connection, record, at_ms)
    if held is not None:
        return _Then("held", (_reason({"code": held.value}),))
    if last is None:
        return _Then("waiting")
    return _waiting(connection, record, at_ms, last)


def _waiting(connection: Connection, record: queries.JobRecord, at_ms: int, last: Logged) -> _Then:
    """Returns what the log says of a job in line: its own claim, what keeps its group back, what its shape lacks."""
    job = record.job
    if job.begin_ms is not None and job.begin_ms > at_ms:
        code = ReasonCode.BACKOFF if job.is_backing_off else ReasonCode.BEGIN_TIME
        return _Then("waiting", (_reason({"code": code.value}),))
    own = of_job(connection, job.id, at_ms, 1)
    if own and own[0].kind is Kind.CLAIM and own[0].epoch == last.epoch:
        return _Then("waiting", (_reason({"code": ReasonCode.PREEMPTING.value, "detail": own[0].words}),), own[0])
    everybody: frozenset[AccountId] = frozenset()
    for waiting in (group_of(job, {job.account}), group_of(job, everybody), job.shape):
        line = wait_of(connection, subject_of(waiting), last.epoch, at_ms)
        if line is not None and line.reasons:
            return _Then("waiting", tuple(map(_reason, line.reasons)), line)
    return _Then("waiting", (_reason({"code": ReasonCode.ORDER.value}),))


def _held(connection: Connection, record: queries.JobRecord, at_ms: int) -> ReasonCode | None:
    """Returns who held the job at an instant; None when nobody did. A job that was submitted held says so first."""
    words = {HoldKind.USER.value: ReasonCode.HELD_USER, HoldKind.ADMIN.value: ReasonCode.HELD_ADMIN}
    held: ReasonCode | None = None
    for line in queries.history_of(connection, record.job.id):
        if line.at_ms > at_ms:
            break
        if line.kind in {"submitted", "held"} and line.detail.get("hold") is not None:
            held = words.get(str(line.detail["hold"]))
        elif line.kind == "released":
            held = None
    return held


def _reason(values: Json) -> Json:
    code = ReasonCode(values["code"])
    until_ms = values.get("until_ms")
    return {
        "code": code.value,
        "need": values.get("need"),
        "free": values.get("free"),
        "unit": values.get("unit") or "gpus",
        "until": None if until_ms is None else iso_utc(until_ms),
        "slurm": SLURM_WORDS[code],
        "detail": values.get("detail"),
    }
