"""Windows that agents delivered, waiting for the ledger's watch to count them: busy and idle time by tenant.

The ledger counts per device of its own. Where these are slots, a window of a GPU is counted for a slot of the
allocation that was seen with it; which of the allocation's slots does not matter, for all are one tenant's.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from metering.windows import SampleWindow
from scheduler.core.model import NodeName

MOST_WINDOWS = 200_000
"""Kept between two looks: what 100,000 GPUs send in two minutes. More is dropped: the counters are a view."""


class WindowInbox:
    """Takes windows from the routes and gives them to the watch. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._windows: list[tuple[NodeName, SampleWindow]] = []

    def put(self, node: NodeName, windows: Sequence[SampleWindow]) -> None:
        """Adds windows of a node's GPUs."""
        with self._lock:
            room = MOST_WINDOWS - len(self._windows)
            self._windows += [(node, window) for window in windows[:room]]

    def drain(self, device_of: Callable[[Sequence[tuple[NodeName, str]]], Mapping[str, str]]) -> list[SampleWindow]:
        """Returns one window for each of the ledger's devices: adjacent ones added up, of others the latest.

        `device_of` returns what the ledger calls the GPUs (node, UUID); those that it leaves out are dropped.
        """
        with self._lock:
            taken, self._windows = self._windows, []
        names = device_of(sorted({(node, window.uuid) for node, window in taken}))
        merged: dict[str, SampleWindow] = {}
        for _, window in sorted(taken, key=lambda each: (each[1].uuid, each[1].from_ms)):
            device = names.get(window.uuid)
            if device is None:
                continue
            named = replace(window, uuid=device)
            before = merged.get(device)
            merged[device] = named if before is None or before.to_ms != window.from_ms else _sum(before, named)
        return [merged[device] for device in sorted(merged)]


def _sum(first: SampleWindow, second: SampleWindow) -> SampleWindow:
    """Returns two adjacent windows as one, as far as the watch reads it."""
    highest = (first.utilization_max_percent, second.utilization_max_percent)
    return replace(
        second,
        from_ms=first.from_ms,
        samples=first.samples + second.samples,
        measured_ms=first.measured_ms + second.measured_ms,
        utilization_percent_ms=first.utilization_percent_ms + second.utilization_percent_ms,
        idle_ms=first.idle_ms + second.idle_ms,
        utilization_max_percent=None if None in highest else max(filter(None, highest), default=0),
    )
