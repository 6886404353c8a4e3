"""Who waits for which job to end: all long polls of an app together cost one query a change.

While anyone waits, one task follows the controller's count of applied batches; when it moved, one query asks which of
the awaited jobs have ended. Nothing runs while nobody waits.
"""

import asyncio
import logging
from collections.abc import Callable, Collection

from sqlalchemy.engine import Connection

from scheduler.core.model import JobId
from scheduler.refusal import Refused
from scheduler.routes.door import Door
from scheduler.store.database import StoreError

logger = logging.getLogger(__name__)

_BREATH_SECONDS = 0.05
"""Between two queries: at most 20 a second, however many batches there are."""
_LOOK_SECONDS = 1.0
"""Between two queries without a change: a follower hears of none, and a store that was away may be back."""

EndedAmong = Callable[[Connection, Collection[JobId]], Collection[JobId]]


class JobWatch:
    """Wakes those who wait for a job's end. Belongs to one event loop."""

    def __init__(self, door: Door, ended_among: EndedAmong) -> None:
        self._door = door
        self._ended_among = ended_among
        self._waiting: dict[JobId, set[asyncio.Future[None]]] = {}
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def close(self) -> None:
        """Stops following; those who wait are not woken by it."""
        if self._task is not None:
            self._task.cancel()

    async def until_ended(self, job: JobId, timeout_seconds: float) -> bool:
        """Waits for a job's end; False when the time was up first. A job that has ended already returns at once."""
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(job, set()).add(woken)
        self._changed.set()
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._follow())
        try:
            async with asyncio.timeout(timeout_seconds):
                await woken
        except TimeoutError:
            return False
        finally:
            self._leave(job, woken)
        return True

    def _leave(self, job: JobId, woken: asyncio.Future[None]) -> None:
        others = self._waiting.get(job)
        if others is not None:
            others.discard(woken)
            if not others:
                del self._waiting[job]

    async def _follow(self) -> None:
        loop = asyncio.get_running_loop()

        def ring() -> None:
            # Runs on the desk's thread, which must never fail because an app was closed under it.
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._changed.set)

        stop_ringing = self._door.controller.on_change(ring)
        try:
            while self._waiting:
                self._changed.clear()
                await self._wake_ended()
                await asyncio.sleep(_BREATH_SECONDS)
                try:
                    async with asyncio.timeout(_LOOK_SECONDS):
                        await self._changed.wait()
                except TimeoutError:
                    continue
        finally:
            stop_ringing()

    async def _wake_ended(self) -> None:
        wanted = frozenset(self._waiting)
        try:
            ended = await self._door.read(lambda connection: self._ended_among(connection, wanted))
        except (StoreError, Refused) as problem:
            logger.warning("the watch over %d jobs waits: %s", len(wanted), problem)
            return
        for job in ended:
            for woken in self._waiting.pop(job, ()):
                if not woken.done():
                    woken.set_result(None)
