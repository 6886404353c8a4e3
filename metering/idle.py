"""How long GPUs have done nothing, from the windows that samples were folded into. Pure arithmetic.

A GPU is idle over a window whose highest sample is at most the threshold and that was measured nearly whole. A window
that is missing, late or half measured ends the spell: what is unknown is never called idle.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Protocol

COVERED_RATIO = 0.8
"""Part of a window that must be measured: one sample in five may be lost to a slow driver, a silent minute may not."""


class Measured(Protocol):
    """What idleness asks of a window, fresh or stored."""

    @property
    def uuid(self) -> str:
        """The GPU."""
        ...

    @property
    def from_ms(self) -> int:
        """When it began."""
        ...

    @property
    def to_ms(self) -> int:
        """When it ended."""
        ...

    @property
    def utilization_max_percent(self) -> int | None:
        """The highest sample; None: not measured."""
        ...

    @property
    def coverage_ratio(self) -> float:
        """The measured share of it."""
        ...


@dataclass(frozen=True, slots=True)
class _Spell:
    since_ms: int
    until_ms: int


class IdleSpells:
    """The present idle spell of each device. `gap_ms`: the longest hole between two windows, and their latest age."""

    def __init__(self, *, idle_percent: int, gap_ms: int) -> None:
        self._idle_percent = idle_percent
        self.gap_ms = gap_ms
        self._spells: dict[str, _Spell] = {}

    def take_in(self, windows: Iterable[Measured]) -> None:
        """Goes on with what was measured, each device's windows in order of time."""
        for window in windows:
            known = self._spells.pop(window.uuid, None)
            if known is not None and window.to_ms <= known.until_ms:
                self._spells[window.uuid] = known  # told before
            elif self._is_idle(window):
                goes_on = known is not None and window.from_ms - known.until_ms <= self.gap_ms
                since_ms = known.since_ms if known is not None and goes_on else window.from_ms
                self._spells[window.uuid] = _Spell(since_ms, window.to_ms)

    def look_back(self, window: Measured) -> bool:
        """Goes back to a window before all that are known of its device; returns whether one before it may matter."""
        known = self._spells.get(window.uuid)
        is_apart = known is not None and known.since_ms - window.to_ms > self.gap_ms
        if is_apart or not self._is_idle(window):
            return False
        began = _Spell(window.from_ms, window.to_ms) if known is None else replace(known, since_ms=window.from_ms)
        self._spells[window.uuid] = began
        return True

    def began_ms(self, device: str, now_ms: int) -> int:
        """Returns when the spell of a device began; now, where it has none."""
        known = self._spells.get(device)
        return now_ms if known is None else known.since_ms

    def idle_since_ms(self, devices: Collection[str], started_ms: int, now_ms: int) -> int | None:
        """Returns since when all of these have been idle, at the earliest since `started_ms`; None unless all are."""
        spells = [self._spells.get(device) for device in devices]
        if not spells:
            return None
        since_ms = started_ms
        for spell in spells:
            if spell is None or now_ms - spell.until_ms > self.gap_ms:
                return None
            since_ms = max(since_ms, spell.since_ms)
        return since_ms

    def forget(self) -> None:
        """Knows nothing any more: somebody else watched in the meantime."""
        self._spells.clear()

    def _is_idle(self, window: Measured) -> bool:
        highest = window.utilization_max_percent
        return highest is not None and highest <= self._idle_percent and window.coverage_ratio >= COVERED_RATIO
