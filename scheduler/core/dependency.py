"""What becomes of a job that waits for others: a pure rule over how those others stand.

Dependencies point at jobs that were there before, so none can wait for itself in a circle. Whoever keeps the jobs
(`store.dependencies`) counts how they stand and asks here.
"""

from enum import StrEnum
from typing import NamedTuple

from scheduler.core.model import DependencyKind


class Standing(StrEnum):
    """Whether a dependency still keeps a job from starting."""

    WAITS = "waits"
    MET = "met"
    NEVER = "never"
    """It cannot be met any more."""


class Tally(NamedTuple):
    """How many of the jobs that a dependency is on stand how; of a whole array all of its elements."""

    waiting: int = 0
    """Not ended, and never begun."""
    begun: int = 0
    """Not ended, and begun at least once."""
    completed: int = 0
    failed: int = 0
    """Ended in any other way than completed."""

    @property
    def live(self) -> int:
        """Jobs that have not ended."""
        return self.waiting + self.begun


def standing(kind: DependencyKind, tally: Tally) -> Standing:
    """Returns how a dependency stands that is on jobs that stand so."""
    if kind is DependencyKind.AFTER:
        return Standing.WAITS if tally.waiting else Standing.MET
    if kind is DependencyKind.AFTEROK and tally.failed:
        return Standing.NEVER
    if tally.live:
        return Standing.WAITS
    if kind is DependencyKind.AFTERNOTOK and not tally.failed:
        return Standing.NEVER
    return Standing.MET
