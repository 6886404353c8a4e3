"""Watches for running jobs that leave their GPUs idle: tells their owners, and ends those that asked for it.

Spells are counted in memory. A daemon that begins to lead finds them again in the stored windows, so that a restart
makes no idle job last longer, and none is ended for idleness that nobody measured.
"""

from collections.abc import Sequence

from cli.daemon.settings import Metering
from metering.idle import IdleSpells
from metering.idle_recall import recall
from metering.windows import SampleWindow
from scheduler.clock import iso_utc
from scheduler.core.model import AllocationId
from scheduler.routes.needs import Controller
from scheduler.store.history import NoteOnJob
from scheduler.store.idle import IDLE, RunningGang, StopIdle, idle_told, running_gangs

ANSWER_SECONDS = 30.0
_WINDOWS_OF_PATIENCE = 2.5
"""How late a window may be before a GPU's idleness is unknown: agents deliver a window behind."""


def idle_watch(settings: Metering) -> "IdleWatch":
    """Returns the watch that the settings describe."""
    gap_ms = int(settings.window_seconds * 1000 * _WINDOWS_OF_PATIENCE)
    spells = IdleSpells(idle_percent=settings.idle_percent, gap_ms=gap_ms)
    return IdleWatch(spells, int(settings.idle_notice_minutes * 60_000))


class IdleWatch:
    """One daemon's eye on idleness. `notice_ms`: how long a job's GPUs are idle before its history says so."""

    def __init__(self, spells: IdleSpells, notice_ms: int) -> None:
        self._spells = spells
        self._notice_ms = notice_ms
        self._has_recalled = False
        self._told: dict[AllocationId, int] = {}
        """When the history of each last said so: a spell is told once."""

    def look(self, controller: Controller, windows: Sequence[SampleWindow]) -> None:
        """Takes windows in, and acts on what follows. Raises StoreError, Refused."""
        now_ms = controller.clock.now_ms()
        with controller.database.read() as connection:
            gangs = list(running_gangs(connection))
            if not self._has_recalled:
                started_ms = {device: gang.started_ms for gang in gangs for device in gang.devices}
                recall(connection, self._spells, started_ms, now_ms)
                self._told = idle_told(connection, [gang.allocation for gang in gangs])
                self._has_recalled = True
        self._spells.take_in(windows)
        due: list[AllocationId] = []
        self._told = {gang.allocation: self._told[gang.allocation] for gang in gangs if gang.allocation in self._told}
        for gang in gangs:
            since_ms = self._spells.idle_since_ms(gang.devices, gang.started_ms, now_ms)
            if since_ms is None:
                self._told.pop(gang.allocation, None)
                continue
            if gang.idle_stop_seconds is not None and now_ms - since_ms >= gang.idle_stop_seconds * 1000:
                due.append(gang.allocation)
            elif now_ms - since_ms >= self._notice_ms and self._told.get(gang.allocation, -1) < since_ms:
                self._tell(controller, gang, now_ms, since_ms)
        if due:
            controller.carry_out(StopIdle(tuple(due))).result(timeout=ANSWER_SECONDS)

    def forget(self) -> None:
        """Knows nothing until the next look: this daemon does not lead."""
        self._spells.forget()
        self._has_recalled = False
        self._told.clear()

    def _tell(self, controller: Controller, gang: RunningGang, now_ms: int, since_ms: int) -> None:
        detail: dict[str, str | int | None] = {"since": iso_utc(since_ms), "gpus": len(gang.devices)}
        controller.carry_out(NoteOnJob(gang.job, IDLE, detail)).result(timeout=ANSWER_SECONDS)
        self._told[gang.allocation] = now_ms
