"""Who bears which part of an allocation's time, and the words for how it ended: tables, as data."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from scheduler.core.model import EndReason, Phase


class Payer(StrEnum):
    """Who bears a stretch of time."""

    TENANT = "tenant"
    PROVIDER = "provider"


@dataclass(frozen=True, slots=True)
class WhoPays:
    """The table that says who bears each phase of an allocation. A change of it is a new version."""

    version: str
    by_phase: Mapping[Phase, Payer]


WHO_PAYS = WhoPays(
    "1",
    {
        Phase.STARTING: Payer.PROVIDER,  # nothing of the tenant's runs yet
        Phase.RUNNING: Payer.TENANT,
        Phase.STOPPING: Payer.TENANT,  # to its exit; only if it ran, because rating starts at `running`
    },
)

END_WORDS: Mapping[EndReason | None, str] = {
    None: "completed",
    EndReason.EXIT_NONZERO: "failed",
    EndReason.OOM: "failed",
    EndReason.IMAGE_PULL: "failed",
    EndReason.LAUNCH_FAILED: "failed",
    EndReason.IDLE_STOP: "failed",
    EndReason.BUDGET_STOP: "failed",
    EndReason.WALLTIME: "timeout",
    EndReason.DEADLINE: "timeout",
    EndReason.CANCELLED: "cancelled",
    EndReason.DEPENDENCY: "cancelled",
    EndReason.REQUEUED: "requeued",
    EndReason.PREEMPTED: "preempted",
    EndReason.NODE_LOST: "node_lost",
    EndReason.GPU_ERROR: "gpu_error",
}
"""The export's word for how an allocation ended."""
PERIOD_SPLIT = "period_split"
SEGMENT_SPLIT = "segment_split"
