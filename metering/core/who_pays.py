"""Who bears which part of an allocation's time, what is given back, and the words for how it ended: tables, as data."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from scheduler.core.model import EndReason, Phase


class Payer(StrEnum):
    """Who bears a stretch of time."""

    TENANT = "tenant"
    PROVIDER = "provider"


@dataclass(frozen=True, slots=True)
class CreditRule:
    """What is given back of an allocation that the centre ended: the time before its end, up to a limit."""

    most_ms: int
    """The most time that is given back."""
    since_checkpoint: bool = False
    """Only what its job had not saved; else all that it ran."""
    below_run_ms: int | None = None
    """Only of an allocation that ran for less; None: of any."""


@dataclass(frozen=True, slots=True)
class WhoPays:
    """The table that says who bears what of an allocation's time. A change of it is a new version; none is removed."""

    version: str
    by_phase: Mapping[Phase, Payer]
    credits: Mapping[EndReason, CreditRule]
    """The centre's faults: the tenant pays to the last good evidence, and is given back what it lost."""


_BY_PHASE = {
    Phase.STARTING: Payer.PROVIDER,  # nothing of the tenant's runs yet
    Phase.RUNNING: Payer.TENANT,
    Phase.STOPPING: Payer.TENANT,  # to its exit; only if it ran, because rating starts at `running`
}
_DAY_MS = 86_400_000
MIN_RUN_MS = 600_000
"""What a gang is promised to run before it is preempted: the scheduler's guard, ten minutes."""
WHO_PAYS_VERSIONS = {
    table.version: table
    for table in (
        WhoPays("1", _BY_PHASE, {}),
        WhoPays(
            "2",
            _BY_PHASE,
            {
                # A day at most: whoever saves less often bears the rest.
                EndReason.NODE_LOST: CreditRule(_DAY_MS, since_checkpoint=True),
                EndReason.GPU_ERROR: CreditRule(_DAY_MS, since_checkpoint=True),  # a lost GPU, a fatal XID
                EndReason.PREEMPTED: CreditRule(MIN_RUN_MS, below_run_ms=MIN_RUN_MS),
            },
        ),
    )
}
"""Every version there was: an export names its own, and is proved by it for ever."""
WHO_PAYS = WHO_PAYS_VERSIONS["2"]
"""The version in force."""

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
