"""What the clock alone brings about, looked for again and again while this daemon leads.

Each looks first, on a snapshot, and writes only where there is something to do: nothing wakes anybody for nothing.
"""

from collections.abc import Callable
from typing import Any

from sqlalchemy.engine import Connection

from metering.rates import AnnounceRates
from scheduler.loop import Controller
from scheduler.store.actions import EndOverdue, overdue_jobs
from scheduler.store.reservations import TurnReservations, due_reservations
from scheduler.store.write import Command

ANSWER_SECONDS = 30.0
"""For one such write. What did not come through is found again at the next look."""


class Turns:
    """The looks of one daemon."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller

    def announce_rates(self) -> None:
        """Tells the scheduler the prices in force."""
        if self._controller.is_leading:
            self._carry_out(AnnounceRates())

    def end_overdue(self) -> None:
        """Ends the jobs whose deadline has passed."""
        self._if_due(lambda connection: bool(overdue_jobs(connection, self._now_ms())), EndOverdue())

    def turn_reservations(self) -> None:
        """Puts reservations in force whose time has come, and ends those that are over."""
        self._if_due(lambda connection: bool(due_reservations(connection, self._now_ms())), TurnReservations())

    def _if_due(self, is_due: Callable[[Connection], bool], command: Command[Any]) -> None:
        if not self._controller.is_leading:
            return
        with self._controller.database.read() as connection:
            has_work = is_due(connection)
        if has_work:
            self._carry_out(command)

    def _carry_out(self, command: Command[Any]) -> None:
        self._controller.carry_out(command).result(timeout=ANSWER_SECONDS)

    def _now_ms(self) -> int:
        return self._controller.clock.now_ms()
