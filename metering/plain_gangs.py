"""Allocations that ended as nearly all do, read straight from rows: one segment, one size, all devices in step.

`plain_gang` gives exactly what `metering.core.usage.segments_of` gives for the same rows, or None where an allocation
is anything else than plain (live, promoted, resized, uneven, or not as it should be); then the caller goes the long
way, which also says what is wrong. A property test holds both against each other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import itemgetter
from typing import Any

from metering.core.usage import Segment
from metering.core.who_pays import WHO_PAYS, Payer
from scheduler.core.model import AccountId, AllocationId, Booking, DeviceId, GpuClass, JobId, Phase
from scheduler.core.occupancy import Evidence, OccupancyState
from scheduler.store.ledger_allocations import LedgerAllocation

_PHASES = {phase.value: phase for phase in Phase}
_BOOKINGS = {booking.value: booking for booking in Booking}
_EVIDENCE = {evidence.value: evidence for evidence in Evidence}
_RUNNING, _ALLOCATED = Phase.RUNNING.value, OccupancyState.ALLOCATED.value
_DEVICE, _FROM, _TO, _PHASE, _GPU_EQ, _WHO = 1, 4, 5, 9, 15, 16
"""Places in a row of `codec.INTERVAL_COLUMNS`; `_WHO` is the evidence."""
# What is asked of each row is asked by the interpreter's own C: there are millions.
_terms = itemgetter(2, 3, 6, 7, 10, 11, 12, 13, 14)
"""Lane and class, state and units, holder, job, allocation, segment and booking."""
_charge, _span, _place = itemgetter(_DEVICE, _GPU_EQ), itemgetter(_FROM, _TO, _PHASE), itemgetter(_DEVICE, _FROM)


@dataclass(frozen=True, slots=True)
class PlainGang:
    """What a plain allocation held: one span after the other, each on all its devices."""

    segments: list[Segment]
    """The billed segment; empty when it never ran."""
    from_ms: int
    to_ms: int
    running_ms: int | None
    """When it began to run; None when it never did."""
    devices: tuple[DeviceId, ...]
    terms: tuple[Any, ...]
    """Lane, class, state, units, holder, job, allocation, segment and booking, the same in all its rows."""
    least_charged_units: int


def plain_gang(allocation: LedgerAllocation) -> PlainGang | None:
    """Returns what an allocation held if it is plain, else None. Time grows with its rows, at a microsecond each."""
    rows = allocation.rows
    if allocation.cursors or not rows:
        return None
    terms = _terms(rows[0])
    charges = set(map(_charge, rows))
    charged: dict[str, int] = dict(charges)
    if set(map(_terms, rows)) != {terms} or len(charges) != len(charged):
        return None
    spans = set(map(_span, rows))
    # As many places as rows, and as many as there are spans and devices together: every device has every span.
    is_even = len(set(map(_place, rows))) == len(rows) == len(spans) * len(charged)
    if not is_even or terms[2] != _ALLOCATED:
        return None
    ordered = sorted(spans)
    for (_, to_ms, _), (from_ms, _, _) in pairwise(ordered):
        if to_ms != from_ms:
            return None
    billed = _billed(ordered)
    if billed is None:
        return None
    devices = tuple(sorted(map(DeviceId, charged)))
    running_ms = min((span[0] for span in ordered if span[2] == _RUNNING), default=None)
    segments = [_segment(rows, terms, (devices, sum(charged.values())), billed)] if billed else []
    return PlainGang(segments, ordered[0][0], ordered[-1][1], running_ms, devices, terms, min(charged.values()))


def _billed(ordered: Sequence[tuple[int, int, str]]) -> list[tuple[int, int, str]] | None:
    """Returns the spans that the tenant bears; None where another lies between them."""
    billed: list[tuple[int, int, str]] = []
    has_run = False
    for span in ordered:
        has_run = has_run or span[2] == _RUNNING
        if not has_run or WHO_PAYS.by_phase[_PHASES[span[2]]] is not Payer.TENANT:
            continue
        if billed and billed[-1][1] != span[0]:
            return None
        billed.append(span)
    return billed


def _segment(
    rows: Sequence[Any],
    terms: tuple[Any, ...],
    held: tuple[tuple[DeviceId, ...], int],
    billed: Sequence[tuple[int, int, str]],
) -> Segment:
    lane, gpu_class, _, units, holder, job, allocation, number, booking = terms
    devices, charged_units = held
    last_from_ms = billed[-1][0]
    last = next(row for row in rows if row[_DEVICE] == devices[0] and row[_FROM] == last_from_ms)
    return Segment(
        allocation=AllocationId(allocation),
        number=number,
        job=JobId(job),
        holder=AccountId(holder),
        gpu_class=GpuClass(gpu_class),
        booking=_BOOKINGS[booking],
        from_ms=billed[0][0],
        to_ms=billed[-1][1],
        units=units * len(devices),
        charged_units=charged_units,
        devices=devices,
        is_share=lane > 0,
        evidence=_EVIDENCE[last[_WHO]],
    )
