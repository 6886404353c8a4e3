"""Going into a running job: programs beside it, its terminal, its ports. WebSockets, one for each.

    /v1/jobs/{ref}/exec      first text {"command": […], "rank": 0, "terminal": {"rows", "columns"} | null, "term": "…"}
    /v1/jobs/{ref}/attach    first text {"rank": 0, "terminal": {"rows", "columns"}}
    /v1/jobs/{ref}/port      first text {"port": 8888, "rank": 0}

Who may not is answered before the WebSocket opens, as over plain HTTP. After the first text comes {"started": true} or
{"error": problem}; then binary messages are bytes. Of a program: the first byte is 1 for its output, 2 for its errors
and to it 0 for its input, which an empty piece ends; texts are {"resize": [rows, columns]}, {"signal": "INT"} and at
last {"exit_code": n}. Of a port: nothing but bytes, and {"eof": true} for half a close.
"""

import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.engine import Connection

from scheduler.auth import ENTERS_JOBS, Rights
from scheduler.core.model import AllocationId, JobId, JobState
from scheduler.executor import CannotRun, Enterable, Entered, EntryRefused, Program
from scheduler.refusal import RefusalCode, Refused
from scheduler.routes.door import Door
from scheduler.routes.edge import DENIALS, denial_of, request_id_of
from scheduler.routes.finding import found_job, no_job
from scheduler.routes.limits import Slots
from scheduler.routes.pumps import serve_port, serve_program
from scheduler.store.history import NoteOnJob
from scheduler.wire.problems import problem
from scheduler.wire.requests import parse
from scheduler.wire.text import Argument, Name

logger = logging.getLogger(__name__)
_STRICT = ConfigDict(extra="forbid", strict=True, frozen=True)


class Size(BaseModel):
    """Of a terminal."""

    model_config = _STRICT

    rows: Annotated[int, Field(ge=1, le=10_000)] = 24
    columns: Annotated[int, Field(ge=1, le=10_000)] = 80


class ExecAsked(BaseModel):
    """What to run inside a job."""

    model_config = _STRICT

    command: tuple[Argument, ...] = Field(min_length=1, max_length=4096)
    rank: int = Field(0, ge=0, le=1_000_000)
    terminal: Size | None = None
    term: Name | None = None


class AttachAsked(BaseModel):
    """The seat at a job's terminal."""

    model_config = _STRICT

    rank: int = Field(0, ge=0, le=1_000_000)
    terminal: Size = Size()


class PortAsked(BaseModel):
    """A port of a job."""

    model_config = _STRICT

    port: int = Field(ge=1, le=65_535)
    rank: int = Field(0, ge=0, le=1_000_000)


@dataclass(frozen=True, slots=True)
class _Running:
    """A job that its caller may enter, and by whom."""

    ref: str
    job: JobId
    allocation: AllocationId
    ranks: int
    rights: Rights
    way: Enterable

    def check_rank(self, rank: int) -> None:
        """Raises Refused for a node that the job does not have."""
        if rank >= self.ranks:
            raise Refused(
                RefusalCode.NOT_FOUND, f"job {self.ref} has {self.ranks} nodes; the last is --rank {self.ranks - 1}"
            )


Work = Callable[[WebSocket, _Running, bytes], Awaitable[None]]


def inside_routes(door: Door) -> APIRouter:
    """Returns the routes into running jobs."""
    router = APIRouter(tags=["jobs"])
    settings = door.settings
    guests = Slots(settings.most_guests, settings.most_guests_per_token, "programs inside jobs")
    tunnels = Slots(settings.most_tunnels, settings.most_tunnels_per_token, "connections to jobs' ports")

    @router.websocket("/v1/jobs/{ref}/exec")
    async def exec_(websocket: WebSocket, ref: str) -> None:
        await _receive(door, websocket, ref, guests, work_of(_exec))

    @router.websocket("/v1/jobs/{ref}/attach")
    async def attach(websocket: WebSocket, ref: str) -> None:
        await _receive(door, websocket, ref, guests, work_of(_attach))

    @router.websocket("/v1/jobs/{ref}/port")
    async def port(websocket: WebSocket, ref: str) -> None:
        await _receive(door, websocket, ref, tunnels, work_of(_port))

    def work_of(work: Callable[[Door, WebSocket, _Running, bytes], Awaitable[None]]) -> Work:
        return lambda websocket, running, first: work(door, websocket, running, first)

    return router


async def _receive(door: Door, websocket: WebSocket, ref: str, slots: Slots, work: Work) -> None:
    """Lets a caller in who may, and answers whoever may not."""
    try:
        rights = await door.rights_to_change(websocket, ENTERS_JOBS)
        running = await _find(door, rights, ref[:128])
        slots.check(rights.caller.token_id)
    except DENIALS as error:
        await websocket.send_denial_response(await denial_of(websocket, error))
        return
    with slots.counted(rights.caller.token_id):
        await websocket.accept()
        try:
            await work(websocket, running, (await websocket.receive_text()).encode())
        except Refused as refused:
            await _refuse(websocket, refused)
        except CannotRun as refused:
            await _refuse(websocket, Refused(RefusalCode.INVALID, str(refused)), exit_code=refused.exit_code)
        except EntryRefused as refused:
            await _refuse(websocket, Refused(RefusalCode.WRONG_STATE, f"job {running.ref}: {refused}"))
        except (WebSocketDisconnect, KeyError):
            return  # it went away, or sent bytes where words are due


async def _refuse(websocket: WebSocket, refused: Refused, *, exit_code: int | None = None) -> None:
    document = {"error": problem(refused, request_id_of(websocket)), "exit_code": exit_code}
    await websocket.send_text(json.dumps(document))
    await websocket.close(1000)


async def _find(door: Door, rights: Rights, ref: str) -> _Running:
    """Returns the job that the caller wants to enter. Raises Refused."""

    def look_up(connection: Connection) -> tuple[JobId, AllocationId | None, int, JobState]:
        found = found_job(connection, rights, ref)
        if not rights.may_enter_job(found.job.account, found.job.user):
            if not rights.may_see_account(found.job.account):
                raise no_job(ref, rights)
            raise Refused(
                RefusalCode.NOT_ALLOWED,
                f"job {ref} is {found.job.user}'s: who runs it and the tenant's admins may enter",
            )
        return found.job.id, found.last_allocation, len(found.grants), found.job.state

    job, allocation, ranks, state = await door.read(look_up)
    if state not in {JobState.RUNNING, JobState.STOPPING} or allocation is None:
        raise Refused(RefusalCode.WRONG_STATE, f"job {ref} is {state}; only a running job can be entered")
    way = door.controller.entrance
    if way is None:
        raise Refused(
            RefusalCode.POLICY,
            "there is no way into running jobs here: simulated jobs have no inside",
            tries=(f"turnstile logs -f {ref}",),
        )
    return _Running(ref, job, allocation, ranks, rights, way)


async def _exec(door: Door, websocket: WebSocket, running: _Running, first: bytes) -> None:
    asked = parse(ExecAsked, first)
    running.check_rank(asked.rank)
    size = None if asked.terminal is None else (asked.terminal.rows, asked.terminal.columns)
    more = {"TERM": asked.term} if size is not None and asked.term is not None else {}
    program = Program(asked.command, more, size)
    entered = await door.aside(running.way.enter, running.allocation, asked.rank, program)
    await _stay(door, websocket, running, entered, "exec")


async def _attach(door: Door, websocket: WebSocket, running: _Running, first: bytes) -> None:
    asked = parse(AttachAsked, first)
    running.check_rank(asked.rank)
    size = (asked.terminal.rows, asked.terminal.columns)
    entered = await door.aside(running.way.attach, running.allocation, asked.rank, size)
    await _stay(door, websocket, running, entered, "attach")


async def _stay(door: Door, websocket: WebSocket, running: _Running, entered: Entered, how: str) -> None:
    by = running.rights.caller.user
    try:
        logger.info("user %s entered a job (%s)", by, how, extra={"job": running.ref})
        await door.carry_out(NoteOnJob(running.job, "entered", {"by": by, "how": how}))
        await websocket.send_text('{"started": true}')
    except BaseException:
        entered.close()
        raise
    await serve_program(websocket, entered)


async def _port(door: Door, websocket: WebSocket, running: _Running, first: bytes) -> None:
    asked = parse(PortAsked, first)
    running.check_rank(asked.rank)
    connection = await door.aside(running.way.reach, running.allocation, asked.rank, asked.port)
    try:
        await websocket.send_text('{"started": true}')
    except BaseException:
        connection.close()
        raise
    await serve_port(websocket, connection)
