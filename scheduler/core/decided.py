"""What a plan decided, one value a decision, with what it was about: the raw material of the decision log. Pure."""

from dataclasses import dataclass
from enum import StrEnum

from scheduler.core.model import AccountId, AllocationId, JobId, Shape
from scheduler.core.plan import Plan
from scheduler.core.reasons import Reason
from scheduler.core.state import ClusterState, Group


class Kind(StrEnum):
    """The closed list of what is decided."""

    START = "start"
    STOP = "stop"
    CLAIM = "claim"
    """Devices are kept for a job, and those who hold them are stopped."""
    LAPSE = "lapse"
    """A claim was given up."""
    PROMOTE = "promote"
    """A running gang is held within a guarantee from now on."""
    WAIT = "wait"
    """A group or a shape does not start, for other reasons than before; without reasons: no more."""
    TERM = "term"
    """A daemon began to lead, and knows nothing of earlier ticks."""
    ESTIMATE = "estimate"
    """A job started whose start had been estimated: how long a wait was foretold, and which one came."""


@dataclass(frozen=True, slots=True)
class Decision:
    """One decision about one job. `words` says the rest: booking and nodes, the reason, for whom."""

    kind: Kind
    job: JobId
    account: AccountId
    allocation: AllocationId | None
    words: str


def decisions(state: ClusterState, plan: Plan) -> tuple[Decision, ...]:
    """Returns what the plan does, job by job, in its own order. `state` is the one that it was made from.

    A start has no allocation yet: the store gives it one, or finds that events overtook it.
    """
    found: list[Decision] = []
    for start in plan.starts:
        nodes = ", ".join(grant.node for grant in start.grants)
        account = state.jobs[start.job].account
        found.append(Decision(Kind.START, start.job, account, None, f"{start.booking.value} on {nodes}"))
    for stop in plan.stops:
        gang = state.allocations[stop.allocation]
        words = stop.reason.value if stop.preemptor is None else f"{stop.reason.value} for job {stop.preemptor}"
        found.append(Decision(Kind.STOP, gang.job, gang.account, gang.id, words))
    for claim in plan.claims:
        nodes = ", ".join(grant.node for grant in claim.grants)
        words = f"{len(claim.victims)} stop for it on {nodes}"
        found.append(Decision(Kind.CLAIM, claim.job, claim.account, None, words))
    for lapse in plan.lapses:
        job = state.jobs.get(lapse.job)
        if job is not None:
            found.append(Decision(Kind.LAPSE, lapse.job, job.account, None, lapse.why))
    for promotion in plan.promotions:
        gang = state.allocations[promotion.allocation]
        found.append(Decision(Kind.PROMOTE, gang.job, gang.account, gang.id, promotion.booking.value))
    return tuple(found)


def waits(plan: Plan) -> dict[Group | Shape, tuple[Reason, ...]]:
    """Returns why groups and shapes do not start, the dominating reason first. What is not here waits for its turn."""
    found: dict[Group | Shape, tuple[Reason, ...]] = {shape: each.reasons for shape, each in plan.verdicts.items()}
    found.update((group, (reason,)) for group, reason in plan.blocks.items())
    return found
