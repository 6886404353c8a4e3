"""What the controller tells whoever counts: one small protocol, implemented by `telemetry`, injected by the daemon.

Every method is cheap, never blocks and never raises; it may be called from any thread. Labels come from closed or
admin-made sets (tenants, pools, size classes), never from what a user typed.
"""

from typing import Literal, Protocol, get_args

from scheduler.core.model import AccountId, JobState, PoolName
from scheduler.core.plan import Plan


def size_class(gpus: int) -> str:
    """Returns the class of a gang's size, for a metric label: `1`, `2-7`, `8`, `9-63`, `64+` whole GPUs.

    The edges are one GPU, one usual node (8), and eight of them: what places differently, waits differently.
    """
    if gpus <= 1:
        return "1"
    if gpus < 8:
        return "2-7"
    if gpus == 8:
        return "8"
    return "9-63" if gpus < 64 else "64+"


PreemptionReason = Literal["fair_share", "guarantee", "priority", "spot"]
"""Why a gang is stopped for another job, as a metric's label."""
PREEMPTION_REASONS: tuple[PreemptionReason, ...] = get_args(PreemptionReason)


class Observer(Protocol):
    """Is told what the controller did. Durations are seconds."""

    def job_started(self, pool: PoolName, tenant: AccountId, gpus: int, wait_seconds: float) -> None:
        """A job of `gpus` whole GPUs in all got its first or next start, having waited so long for it."""
        ...

    def job_finished(self, tenant: AccountId, result: JobState) -> None:
        """A job reached one of its ends."""
        ...

    def jobs_preempted(self, victim: AccountId, preemptor: AccountId, reason: PreemptionReason) -> None:
        """An allocation of one tenant was stopped for a job of another, or of its own."""
        ...

    def start_estimated(self, pool: PoolName, error_seconds: float) -> None:
        """A job started whose start had been estimated, this far (either way) from when it was likely to."""
        ...

    def cycle(self, seconds: float, made: Plan) -> None:
        """A tick was planned, and this was decided."""
        ...

    def ledger_posted(self, at_ms: int) -> None:
        """The ledger's latest write became durable, at this UTC time in milliseconds."""
        ...


class Unobserved:
    """An observer for tools that report nothing (replay, state dumps): takes every call and does nothing."""

    def job_started(self, pool: PoolName, tenant: AccountId, gpus: int, wait_seconds: float) -> None:
        """Takes note of nothing."""

    def job_finished(self, tenant: AccountId, result: JobState) -> None:
        """Takes note of nothing."""

    def jobs_preempted(self, victim: AccountId, preemptor: AccountId, reason: PreemptionReason) -> None:
        """Takes note of nothing."""

    def start_estimated(self, pool: PoolName, error_seconds: float) -> None:
        """Takes note of nothing."""

    def cycle(self, seconds: float, made: Plan) -> None:
        """Takes note of nothing."""

    def ledger_posted(self, at_ms: int) -> None:
        """Takes note of nothing."""
