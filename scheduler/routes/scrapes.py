"""The body of `/metrics`, whoever asks how often, and whatever the planner does.

One rendering at a time, shared by all who ask meanwhile; a rendering that took long is shared for as long again, so
that scrapes cannot take more than half of the interpreter from the planner. A planner that hangs does not take the
metrics with it: what it last said is shown, and its counter of ticks, which stands still, tells of it.
"""

import asyncio

from scheduler.gauges import Photograph, centre_of, families, known_names, queue_of, standings_of
from scheduler.refusal import Refused
from scheduler.routes.door import Door
from scheduler.telemetry import Telemetry

PATIENCE_SECONDS = 2.0
"""How long a scrape waits for the planner: four of the longest ticks promised, and a fifth of Prometheus's usual
timeout of 10 s."""
COSTLY_SECONDS = 0.1
"""A rendering that took longer is shared for as long again."""


class Scrapes:
    """Renders the metrics of one app. Belongs to one event loop."""

    def __init__(self, door: Door, telemetry: Telemetry) -> None:
        self._door = door
        self._telemetry = telemetry
        self._rendering: asyncio.Task[bytes] | None = None
        self._shared_until = 0.0
        self._photographing: asyncio.Task[Photograph] | None = None
        self._photo: Photograph | None = None

    async def body(self) -> bytes:
        """Returns all metrics; a follower, which holds no state, tells only of itself."""
        task = self._rendering
        if task is None or (task.done() and (task.exception() or self._now >= self._shared_until)):
            task = self._rendering = asyncio.get_running_loop().create_task(self._render())
        return await asyncio.shield(task)

    @property
    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    async def _render(self) -> bytes:
        photo = await self._last_photo()
        began = self._now
        body = await self._door.aside(_rendered, self._telemetry, photo, self._door.now_ms)
        took = self._now - began
        self._shared_until = self._now + took if took > COSTLY_SECONDS else 0.0
        return body

    async def _photograph(self) -> Photograph:
        """Asks for one part after the other: what waits for the planner goes between them, and so does a tick."""
        ask = self._door.ask
        return Photograph(await ask(centre_of), await ask(queue_of), await ask(standings_of))

    async def _last_photo(self) -> Photograph | None:
        """Returns the state as it is, or as it last was when the planner does not answer; None on a follower."""
        if not self._door.controller.is_leading:
            self._photo = None
            return None
        if self._photographing is None:
            self._photographing = asyncio.get_running_loop().create_task(self._photograph())
        await asyncio.wait([self._photographing], timeout=PATIENCE_SECONDS)
        if self._photographing.done():
            task, self._photographing = self._photographing, None
            try:
                self._photo = task.result()
            except Refused:
                self._photo = None  # it has stopped leading in between
        return self._photo


def _rendered(telemetry: Telemetry, photo: Photograph | None, now_ms: int) -> bytes:
    if photo is None:
        return telemetry.render(())
    telemetry.begin(*known_names(photo))
    return telemetry.render(families(photo, now_ms))
