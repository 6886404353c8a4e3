"""Says when guarantees are cut because nodes are gone, and when they are whole again: once each, in the log.

The metric `turnstile_guarantee_shortfall_gpus` and its alert say the same to machines.
"""

import logging

from scheduler.core.booking import guarantees_in_force
from scheduler.core.model import GPU_UNITS, GpuClass
from scheduler.core.plan import Plan
from scheduler.core.state import ClusterState
from scheduler.loop import Controller

logger = logging.getLogger(__name__)


class GuaranteeWatch:
    """Remembers by how much guarantees were cut when it last looked. For one thread."""

    def __init__(self) -> None:
        self._missing: dict[GpuClass, int] = {}

    def look(self, controller: Controller) -> None:
        """Compares with the last look; does nothing on a daemon that does not lead. Raises Refused, TimeoutError."""
        if controller.is_leading:
            self.note(controller.ask(missing_units).result(timeout=5.0))

    def note(self, missing: dict[GpuClass, int]) -> None:
        """Logs what changed since the last time."""
        for gpu_class in sorted({*missing, *self._missing}):
            units = missing.get(gpu_class, 0)
            if units == self._missing.get(gpu_class, 0):
                continue
            if units:
                logger.warning(
                    "guarantees shrunk: %d %s are guaranteed beyond what is left; cut pro rata for new starts",
                    -(-units // GPU_UNITS),
                    gpu_class,
                )
            else:
                logger.info("guarantees of %s are whole again", gpu_class)
        self._missing = missing


def missing_units(state: ClusterState, _: Plan) -> dict[GpuClass, int]:
    """Returns the capacity units by which guarantees exceed what is left, of each class where they do."""
    found = {
        gpu_class: sum(bought.values()) - sum(guarantees_in_force(state, gpu_class).values())
        for gpu_class, bought in state.guarantees.items()
    }
    return {gpu_class: units for gpu_class, units in found.items() if units > 0}
