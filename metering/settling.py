"""What the daemon does about periods by its clock: it begins to close what is over, and corrects what is closed."""

import threading
from dataclasses import dataclass, replace

from metering.closing import Desk
from metering.core.period import PeriodStatus
from metering.corrections import PostCorrections, differences, fingerprint, touched_since
from metering.periods import CLOSING_HOURS, AdvancePeriods, KnownPeriod, known_period, lost_heads, periods
from metering.tables import CORRECTION
from scheduler.store.chained import head_of

_CLOSING_MS = CLOSING_HOURS * 3_600_000


def correct_period(desk: Desk, zone: str, name: str) -> int:
    """Writes the corrections that a closed period lacks; returns how many. Raises Refused for one that is not closed.

    Rates the whole period again: call it beside the event loop.
    """
    with desk.database.read() as connection:
        seen = head_of(connection, CORRECTION).sequence
        found = differences(connection, known_period(connection, name, zone, desk.clock.now_ms()))
    if not found:
        return 0
    return desk.carry_out(PostCorrections(tuple(found), seen, zone)).result()


@dataclass(frozen=True, slots=True)
class PeriodStanding:
    """How many periods there are in each trouble that somebody should know of."""

    closing: int
    overdue: int
    """Closing, and late facts are waited for no longer."""
    uncorrected: int
    """Closed, with late facts whose corrections are not written yet."""
    broken: int
    """Closed, with a chain that no longer has the row that was its head."""


class PeriodKeeper:
    """Looks at the periods now and then; what has not moved since the last look costs a few small queries."""

    def __init__(self, desk: Desk, zone: str, window_ms: int = _CLOSING_MS) -> None:
        self._desk = desk
        self._zone = zone
        self._window_ms = window_ms
        self._seen: tuple[int, int] | None = None
        self._lock = threading.Lock()
        self._standing: PeriodStanding | None = None

    @property
    def standing(self) -> PeriodStanding | None:
        """What the last look found; None before it, and while another daemon leads. From any thread."""
        with self._lock:
            return self._standing

    def forget(self) -> None:
        """Says nothing until the next look: this daemon does not lead."""
        self._stand(None)

    def look(self) -> int:
        """Advances periods and corrects closed ones; returns the number of corrections. Raises Refused, StoreError."""
        now_ms = self._desk.clock.now_ms()
        with self._desk.database.read() as connection:
            known = periods(connection, self._zone, now_ms)
            closed = [each for each in known if each.status is PeriodStatus.CLOSED]
            mark = fingerprint(connection)
            stale = [] if mark == self._seen else closed
            touched = [each.period.name for each in stale if touched_since(connection, each)]
            broken = sum(1 for each in closed if each.seal is not None and lost_heads(connection, each.seal))
        if any(each.closing_ms is None and each.period.to_ms <= now_ms for each in known):
            self._desk.carry_out(AdvancePeriods(self._zone)).result()
        # Before they are written, so that what cannot be written stays told.
        standing = self._of(known, now_ms, len(touched), broken)
        self._stand(standing)
        written = sum(correct_period(self._desk, self._zone, name) for name in touched)
        self._seen = mark
        self._stand(replace(standing, uncorrected=0))
        return written

    def _of(self, known: list[KnownPeriod], now_ms: int, uncorrected: int, broken: int) -> PeriodStanding:
        over = [each for each in known if each.status is not PeriodStatus.CLOSED and each.period.to_ms <= now_ms]
        overdue = sum(1 for each in over if each.period.to_ms + self._window_ms <= now_ms)
        return PeriodStanding(len(over), overdue, uncorrected, broken)

    def _stand(self, standing: PeriodStanding | None) -> None:
        with self._lock:
            self._standing = standing
