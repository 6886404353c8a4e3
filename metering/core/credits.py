"""What the centre gives back when it was at fault: a part of a line's amount, on a line of its own, with the incident.

The time is that of the who-pays table: before the allocation's end, since its last checkpoint where that counts, and
not more than the table's limit. The amount is the line's by time, half to even, so what is given back of an allocation
never exceeds what it is charged.
"""

from dataclasses import dataclass

from metering.core.quantity import divide
from metering.core.who_pays import WhoPays
from scheduler.core.model import AllocationId, EndReason


@dataclass(frozen=True, slots=True)
class Fault:
    """How an allocation ended, and what of it counts. `reason` is None for a good end."""

    allocation: AllocationId
    reason: EndReason | None
    started_ms: int
    ended_ms: int
    checkpointed_ms: int | None = None
    incident_id: str | None = None
    """The machine's incident that hit it, if one is on record: `reason/node/time`."""

    @property
    def incident(self) -> str:
        """The incident's id: the machine's, or where there is none, what happened and to which allocation."""
        if self.incident_id is not None and self.incident_id.startswith(f"{self.reason}/"):
            return self.incident_id
        return f"{self.reason}/{self.allocation}"  # a preemption, or an end that only an operator tells of


def credited_span(fault: Fault, table: WhoPays) -> tuple[int, int] | None:
    """Returns the time `[from, to)` that is given back; None for nothing."""
    rule = table.credits.get(fault.reason) if fault.reason is not None else None
    if rule is None:
        return None
    if rule.below_run_ms is not None and fault.ended_ms - fault.started_ms >= rule.below_run_ms:
        return None
    from_ms = max(fault.started_ms, fault.ended_ms - rule.most_ms)
    if rule.since_checkpoint and fault.checkpointed_ms is not None:
        from_ms = max(from_ms, fault.checkpointed_ms)
    return (from_ms, fault.ended_ms) if from_ms < fault.ended_ms else None


def credit_micros(amount_micros: int, line_ms: tuple[int, int], span_ms: tuple[int, int]) -> int:
    """Returns the part of a line's amount that falls into a span: 0 to the amount."""
    inside = min(line_ms[1], span_ms[1]) - max(line_ms[0], span_ms[0])
    return divide(amount_micros * inside, line_ms[1] - line_ms[0]) if inside > 0 else 0
