"""Answers that stay open: waiting for a job's end, and its log as bytes or as a stream."""

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.engine import Connection

from scheduler.auth import READS_JOBS, READS_LOGS, Rights
from scheduler.core.lifecycle import ENDS
from scheduler.core.model import AllocationId
from scheduler.executor import ExecutorError, LogChunk
from scheduler.refusal import Problem, RefusalCode, Refused
from scheduler.routes.door import Door, answer
from scheduler.routes.finding import found_job, no_job
from scheduler.routes.limits import Slots
from scheduler.routes.shown import Shown
from scheduler.routes.streams import LogPlace, follow
from scheduler.routes.watch import JobWatch
from scheduler.store import queries
from scheduler.wire.requests import not_found
from scheduler.wire.spec import invalid
from scheduler.wire.text import MOST_INTEGER

_USUAL_WAIT_SECONDS = 30.0
_MOST_LOG_BYTES = 4 << 20
_USUAL_LOG_BYTES = 1 << 20
_STREAM_BYTES = 256 << 10
"""Of one event: a chunk in base64 stays below common proxies' buffers of a megabyte."""

Ref = Annotated[str, Path(max_length=128)]


class LogQuery(BaseModel):
    """Which part of a log."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    offset: Annotated[int, Field(ge=0, le=MOST_INTEGER)] = 0
    limit_bytes: Annotated[int, Field(ge=1, le=_MOST_LOG_BYTES)] = _USUAL_LOG_BYTES
    attempt: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(None, description="Default: the latest.")


def follow_routes(door: Door, shown: Shown, watch: JobWatch) -> APIRouter:
    """Returns the routes of waiting and of logs."""
    router = APIRouter(tags=["jobs"])
    settings = door.settings
    longest_seconds = float(settings.longest_wait_seconds)
    waits = Slots(settings.most_waits, settings.most_waits_per_token, "waiting requests")
    streams = Slots(settings.most_streams, settings.most_streams_per_token, "log streams")
    reader = door.allow(READS_JOBS)
    log_reader = door.allow(READS_LOGS)

    @router.get("/v1/jobs/{ref}/wait", summary="Wait for the job's end")
    async def wait(
        ref: Ref,
        rights: Annotated[Rights, Depends(reader)],
        timeout_seconds: Annotated[float, Query(ge=0, le=longest_seconds)] = min(_USUAL_WAIT_SECONDS, longest_seconds),
    ) -> Response:
        waits.check(rights.caller.token_id)
        with waits.counted(rights.caller.token_id):
            job = await door.read(lambda connection: found_job(connection, rights, ref))
            if job.job.state not in ENDS and timeout_seconds > 0:
                await watch.until_ended(job.job.id, timeout_seconds)
                job = await door.read(lambda connection: found_job(connection, rights, str(job.job.id)))
        return answer(await shown.job("Job", job, rights))

    @router.get("/v1/jobs/{ref}/logs", summary="The job's log: bytes, or a stream of events")
    async def logs(
        request: Request,
        ref: Ref,
        rights: Annotated[Rights, Depends(log_reader)],
        asked: Annotated[LogQuery, Query()],
        last_event_id: Annotated[str | None, Header()] = None,
    ) -> Response:
        find = partial(_place, door, rights, ref, asked.attempt)
        look = partial(_look, door, asked.rank)
        place = await find()
        if "text/event-stream" in request.headers.get("accept", ""):
            streams.check(rights.caller.token_id)
            start = _resumed(last_event_id, asked.offset)
            body = follow(find, partial(look, _STREAM_BYTES), start, streams, rights.caller.token_id)
            headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no", "Turnstile-Attempt": str(place.attempt)}
            return StreamingResponse(body, media_type="text/event-stream", headers=headers)
        chunk = None if place.allocation is None else await look(asked.limit_bytes, place.allocation, asked.offset)
        if chunk is None:
            if place.is_over and place.attempt:
                raise not_found(f"the log of job {ref}, rank {asked.rank}, is not there (any more)")
            chunk = LogChunk(b"", asked.offset, is_complete=place.is_over)
        return _bytes(chunk, place)

    return router


async def _place(door: Door, rights: Rights, ref: str, attempt: int | None) -> LogPlace:
    """Finds the allocation whose log is meant. Raises Refused: an attempt that has not been is not found."""

    def look_up(connection: Connection) -> LogPlace:
        job = found_job(connection, rights, ref)
        if not rights.may_read_logs(job.job.account):
            raise no_job(ref, rights)
        if attempt is None:
            return LogPlace(job.last_allocation, job.job.attempt, job.job.state in ENDS)
        for each in queries.allocations_of(connection, job.job.id):
            if each.allocation.attempt == attempt and each.allocation.surplus_of is None:
                return LogPlace(each.allocation.id, attempt, each.ended_ms is not None)
        raise not_found(f"job {ref} has had no attempt {attempt}; its latest is {job.job.attempt}")

    return await door.read(look_up)


async def _look(door: Door, rank: int, limit_bytes: int, allocation: AllocationId, offset: int) -> LogChunk | None:
    """Returns a piece of a log; None where the executor knows of none. Raises Refused (`unavailable`)."""
    try:
        return await door.aside(door.controller.logs, allocation, rank, offset, limit_bytes)
    except KeyError:
        return None
    except ExecutorError as problem:
        raise Refused(RefusalCode.UNAVAILABLE, f"the log cannot be read now: {problem}") from problem


def _resumed(last_event_id: str | None, offset: int) -> int:
    if last_event_id is None:
        return offset
    if not (last_event_id.isascii() and last_event_id.isdigit() and len(last_event_id) <= 15):
        raise invalid((Problem("is the id of an event of this stream: a number of bytes", "Last-Event-ID"),))
    return int(last_event_id)


def _bytes(chunk: LogChunk, place: LogPlace) -> Response:
    headers = {
        "Turnstile-Next-Offset": str(chunk.next_offset),
        "Turnstile-Log-Complete": "true" if chunk.is_complete else "false",
        "Turnstile-Attempt": str(place.attempt),
        "Cache-Control": "no-store",
        # The bytes are a tenant's: no browser may take them for a page.
        "X-Content-Type-Options": "nosniff",
    }
    return Response(chunk.data, headers=headers, media_type="application/octet-stream")
