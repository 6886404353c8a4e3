"""When an allocation ended, from all that was ever said about it: a fold over a set, so order and doubles don't matter.

An end that a node or the controller told is certain: only an earlier word of a node moves it. An allocation whose node
went silent ended at its last evidence, and what followed until the silence was noticed is unknown: a later word of the
node settles it, signs of life move it forward, and both only inside the unknown stretch. An operator's word outranks
all others, the last one the earlier ones. A tenant never pays for what cannot be proved.
"""

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

from scheduler.core.model import AllocationId, EndReason
from scheduler.core.occupancy import Evidence


class EvidenceKind(StrEnum):
    """What a piece of evidence says of an allocation."""

    ENDED = "ended"  # it was gone at that time
    ALIVE = "alive"  # it still ran at that time
    SILENT = "silent"  # nothing was heard of it after that time


COMPLETED = "completed"
"""The word for an end without a reason, which is a good one."""


@dataclass(frozen=True, slots=True)
class EndEvidence:
    """One thing that was said about the end of an allocation, as kept in the inbox; `sequence` is its place there."""

    sequence: int
    allocation: AllocationId
    kind: EvidenceKind
    at_ms: int
    source: Evidence
    end_reason: str | None = None
    """How it ended, for `ended` only: COMPLETED or an EndReason; None where that was not told."""


@dataclass(frozen=True, slots=True)
class RecordedEnd:
    """How the partition has the end. `ceiling_ms` is where what is unknown ends; `end_ms` itself if nothing is."""

    from_ms: int
    end_ms: int
    ceiling_ms: int
    reason: EndReason | None

    @property
    def is_lost(self) -> bool:
        """True when the end is a last sign of life and not an end that was seen."""
        return self.reason is EndReason.NODE_LOST


@dataclass(frozen=True, slots=True)
class SettledEnd:
    """When the allocation ended by all evidence. `is_proved` when somebody saw the end, or knows it."""

    end_ms: int
    is_proved: bool
    reason: str
    """COMPLETED or an EndReason."""


def settled_end(recorded: RecordedEnd, said: Collection[EndEvidence]) -> SettledEnd:
    """Returns the end that the evidence gives, inside what the partition leaves open."""
    ends = [each for each in said if each.kind is EvidenceKind.ENDED]
    reason = recorded.reason.value if recorded.reason is not None else COMPLETED
    operators = [each for each in ends if each.source is Evidence.OPERATOR]
    if operators:
        word = max(operators, key=lambda each: each.sequence)
        return SettledEnd(_clamped(word.at_ms, recorded, recorded.ceiling_ms), True, word.end_reason or reason)
    if not recorded.is_lost:
        first_ms = min([recorded.end_ms, *(each.at_ms for each in ends)])
        return SettledEnd(_clamped(first_ms, recorded, recorded.end_ms), True, reason)
    if ends:
        word = min(ends, key=lambda each: (each.at_ms, each.end_reason or "", each.sequence))
        return SettledEnd(_clamped(word.at_ms, recorded, recorded.ceiling_ms), True, word.end_reason or reason)
    silent = [each.at_ms for each in said if each.kind is EvidenceKind.SILENT]
    alive = [each.at_ms for each in said if each.kind is EvidenceKind.ALIVE]
    last_ms = max([min([recorded.end_ms, *silent]), *alive])
    return SettledEnd(_clamped(last_ms, recorded, recorded.ceiling_ms), False, reason)


def _clamped(at_ms: int, recorded: RecordedEnd, latest_ms: int) -> int:
    return min(max(at_ms, recorded.from_ms), latest_ms)
