"""A job's log as server-sent events: every byte once, in order, resumable by offset."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from scheduler.core.model import AllocationId
from scheduler.executor import LogChunk
from scheduler.routes.limits import Slots

_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 1.0
"""Between looks at a quiet log: what a person does not notice, at a cost of one look a second."""
_HEARTBEAT_SECONDS = 15.0
"""Between comments on a quiet stream: below the idle timeouts of common proxies (60 s)."""


@dataclass(frozen=True, slots=True)
class LogPlace:
    """Which log a stream reads: of this allocation (None before the first start), and whether it will ever grow."""

    allocation: AllocationId | None
    attempt: int
    is_over: bool
    """The job has ended: what is not there now never comes."""


Find = Callable[[], Awaitable[LogPlace]]
Look = Callable[[AllocationId, int], Awaitable[LogChunk | None]]


def event(data: dict[str, object], *, name: str | None = None, id_: int | None = None) -> bytes:
    """Returns one server-sent event."""
    lines = [] if name is None else [f"event: {name}"]
    if id_ is not None:
        lines.append(f"id: {id_}")
    lines.append(f"data: {json.dumps(data, separators=(',', ':'))}")
    return ("\n".join(lines) + "\n\n").encode()


async def follow(find: Find, look: Look, offset: int, slots: Slots, key: str) -> AsyncIterator[bytes]:
    """Yields the log of one attempt from `offset` until it is complete."""
    with slots.counted(key):
        place = await find()
        quiet_seconds, pause = 0.0, _FIRST_PAUSE_SECONDS
        while True:
            chunk = None if place.allocation is None else await look(place.allocation, offset)
            if chunk is not None and chunk.data:
                data = base64.b64encode(chunk.data).decode()
                yield event({"offset": offset, "data_base64": data}, id_=chunk.next_offset)
                offset, quiet_seconds, pause = chunk.next_offset, 0.0, _FIRST_PAUSE_SECONDS
                continue
            if (chunk is not None and chunk.is_complete) or (chunk is None and place.is_over):
                yield event({"offset": offset, "attempt": place.attempt}, name="end", id_=offset)
                return
            await asyncio.sleep(pause)
            quiet_seconds += pause
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
            if quiet_seconds >= _HEARTBEAT_SECONDS:
                yield b": still here\n\n"
                quiet_seconds = 0.0
            if chunk is None:
                place = await find()
