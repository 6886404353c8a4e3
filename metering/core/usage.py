"""Who held what becomes what is charged for: occupancy intervals to segments, segments to slices.

A `Holding` is one lane of one device held by an allocation for a while: an occupancy interval in state `allocated`, or
the open one, cut. A `Segment` is a stretch of an allocation with one booking and one size; its devices share the
billed interval, which begins when the gang runs. A `Slice` is the part of a segment inside one `Stretch` of time, in
which prices are the same. Slices of a segment share their edges, so what they hold adds up to the segment, exactly.

Nothing here depends on the order in which holdings are given.

    ValueError
      UnevenSegment     holdings contradict each other; `metering.verify` says where
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from metering.core.quantity import GpuMs, gpu_ms_between
from metering.core.stretches import Stretch, stretches_of
from metering.core.who_pays import END_WORDS, PERIOD_SPLIT, SEGMENT_SPLIT, WHO_PAYS, Payer, WhoPays
from scheduler.core.model import AccountId, AllocationId, Booking, DeviceId, EndReason, GpuClass, JobId, Phase
from scheduler.core.occupancy import Cursor, Evidence, Interval, OccupancyState

__all__ = ["Stretch", "stretches_of"]


class UnevenSegment(ValueError):
    """The devices of a segment do not share its billed interval, or a lane changed inside it."""


@dataclass(frozen=True, slots=True)
class Holding:
    """One lane of one device in the hands of an allocation over `[from_ms, to_ms)`."""

    device: DeviceId
    lane: int
    gpu_class: GpuClass
    from_ms: int
    to_ms: int
    units: int
    gpu_eq_units: int
    phase: Phase
    holder: AccountId
    job: JobId
    allocation: AllocationId
    segment: int
    booking: Booking
    evidence: Evidence | None = None
    """Who says that it ended; None while it is open and `to_ms` is a cut."""


def holding_of(interval: Interval) -> Holding | None:
    """Returns what an interval of the ledger says about its holder; None where nobody of ours held the lane."""
    return _holding(interval, interval.from_ms, interval.to_ms, interval.evidence)


def open_holding_of(cursor: Cursor, until_ms: int) -> Holding | None:
    """Returns what an open interval holds up to `until_ms`; None where nobody of ours does, or not before then."""
    return _holding(cursor, cursor.since_ms, until_ms, None) if cursor.since_ms < until_ms else None


def _holding(row: Interval | Cursor, from_ms: int, to_ms: int, evidence: Evidence | None) -> Holding | None:
    what = row.occupant
    if what.state is not OccupancyState.ALLOCATED:
        return None
    # `Occupant` has all holder fields or none of them; the type checker does not know.
    phase, holder, job = what.phase, what.holder, what.job
    allocation, segment, booking = what.allocation, what.segment, what.booking
    assert phase is not None, "an allocated lane has a phase"
    assert holder is not None, "an allocated lane has a holder"
    assert job is not None, "an allocated lane has a job"
    assert allocation is not None, "an allocated lane has an allocation"
    assert segment is not None, "an allocated lane has a segment"
    assert booking is not None, "an allocated lane has a booking"
    return Holding(
        row.device,
        row.lane,
        row.gpu_class,
        from_ms,
        to_ms,
        what.units,
        what.gpu_eq_units,
        phase,
        holder,
        job,
        allocation,
        segment,
        booking,
        evidence,
    )


@dataclass(frozen=True, slots=True)
class Segment:
    """What a tenant is charged for: these lanes, over one billed interval, with one booking."""

    allocation: AllocationId
    number: int
    job: JobId
    holder: AccountId
    gpu_class: GpuClass
    booking: Booking
    from_ms: int
    to_ms: int
    units: int
    """Capacity units held over all devices: what is conserved."""
    charged_units: int
    """GPU equivalents over all devices (`gpu_eq`): what is priced."""
    devices: tuple[DeviceId, ...]
    is_share: bool
    """It holds lanes beside others on its devices, not the devices themselves."""
    evidence: Evidence | None

    @property
    def held(self) -> GpuMs:
        """GPU time held."""
        return GpuMs.held(self.units, self.from_ms, self.to_ms)


def segments_of(holdings: Iterable[Holding], who_pays: WhoPays = WHO_PAYS) -> list[Segment]:
    """Returns the billed segments of whole allocations, by allocation and number; holdings come in any order.

    Everything that an allocation held must be among them, or what happened after it ran is taken for before. Raises
    UnevenSegment when lanes of a segment disagree.
    """
    groups: dict[AllocationId, dict[int, list[Holding]]] = {}
    for holding in holdings:
        groups.setdefault(holding.allocation, {}).setdefault(holding.segment, []).append(holding)
    billed: list[Segment] = []
    for allocation in sorted(groups):
        has_run = False
        for number in sorted(groups[allocation]):
            group = groups[allocation][number]
            segment = segment_of(group, who_pays, has_run=has_run)
            has_run = has_run or any(holding.phase is Phase.RUNNING for holding in group)
            if segment is not None:
                billed.append(segment)
    return billed


def segment_of(group: Sequence[Holding], who_pays: WhoPays = WHO_PAYS, *, has_run: bool = False) -> Segment | None:
    """Returns the billed part of the holdings of one segment, in any order; None when nothing of it is billed.

    `has_run` says that the allocation ran in an earlier segment. Raises UnevenSegment when lanes disagree.
    """
    lanes: dict[tuple[DeviceId, int], list[Holding]] = {}
    for holding in group:
        lanes.setdefault((holding.device, holding.lane), []).append(holding)
    billed = {lane: _billed_of_lane(rows, who_pays, has_run) for lane, rows in lanes.items()}
    stretches = {(rows[0].from_ms, rows[-1].to_ms) if rows else None for rows in billed.values()}
    first = min(group, key=lambda holding: (holding.device, holding.lane, holding.from_ms))
    if len(stretches) != 1:
        shown = sorted(f"[{stretch[0]}, {stretch[1]})" if stretch else "none" for stretch in stretches)
        raise UnevenSegment(f"{_name(first)}: its devices were held over different billed intervals: {shown}")
    stretch = stretches.pop()
    if stretch is None:
        return None
    ends = [billed[lane] for lane in sorted(billed)]
    return Segment(
        allocation=first.allocation,
        number=first.segment,
        job=first.job,
        holder=first.holder,
        gpu_class=first.gpu_class,
        booking=first.booking,
        from_ms=stretch[0],
        to_ms=stretch[1],
        units=sum(rows[0].units for rows in ends),
        charged_units=sum(rows[0].gpu_eq_units for rows in ends),
        devices=tuple(rows[0].device for rows in ends),
        is_share=any(rows[0].lane > 0 for rows in ends),
        evidence=ends[0][-1].evidence,
    )


def _billed_of_lane(rows: list[Holding], who_pays: WhoPays, has_run: bool) -> list[Holding]:
    """Returns the rows of a lane that the tenant bears, contiguous and alike."""
    billed: list[Holding] = []
    for row in sorted(rows, key=lambda row: row.from_ms):
        ran = has_run or row.phase is Phase.RUNNING
        if who_pays.by_phase[row.phase] is Payer.TENANT and ran:
            billed.append(row)
        has_run = ran
    for earlier, later in pairwise(billed):
        if earlier.to_ms != later.from_ms:
            raise UnevenSegment(
                f"{_name(later)}: {later.device} lane {later.lane} was held to {earlier.to_ms} and again from"
                f" {later.from_ms}; a segment has one billed interval"
            )
        if _terms(earlier) != _terms(later):
            raise UnevenSegment(
                f"{_name(later)}: {later.device} lane {later.lane} changed its terms at {later.from_ms}; a segment has"
                " one holder, booking and size"
            )
    return billed


def _terms(row: Holding) -> tuple[object, ...]:
    return row.units, row.gpu_eq_units, row.holder, row.job, row.booking, row.gpu_class


def _name(row: Holding) -> str:
    return f"allocation {row.allocation} segment {row.segment}"


@dataclass(frozen=True, slots=True)
class Slice:
    """What a segment held during one stretch: the content of one usage line.

    With `topped_ms` it is what an allocation is charged for beyond what it held, at its end: it holds nothing itself.
    """

    segment: Segment
    stretch: Stretch
    from_ms: int
    to_ms: int
    topped_ms: int = 0

    @property
    def held(self) -> GpuMs:
        """GPU time held, exact."""
        return GpuMs.held(self.segment.units, self.from_ms, self.to_ms)

    @property
    def charged(self) -> GpuMs:
        """GPU time that is priced, exact; at least what is held."""
        return GpuMs(self.charged_unit_ms)

    @property
    def charged_unit_ms(self) -> int:
        """The same as a bare number."""
        return self.segment.charged_units * (self.to_ms - self.from_ms + self.topped_ms)

    @property
    def gpu_ms(self) -> int:
        """GPU-milliseconds held, as an integer that splitting conserves."""
        return gpu_ms_between(self.segment.units, self.from_ms, self.to_ms)

    @property
    def line_id(self) -> str:
        """The line's name, the same in every export for ever."""
        stretch = self.stretch
        book = stretch.book.version if stretch.book else "unpriced"
        kind = "/minimum" if self.topped_ms else ""
        return f"{self.segment.allocation}/{self.segment.number}/{stretch.day.isoformat()}/{book}{stretch.mark}{kind}"

    def end_word(self, ended_ms: int | None, end_reason: EndReason | None) -> str:
        """Returns why the slice ends, given when and why its allocation ended (None while it has not)."""
        if ended_ms == self.to_ms:
            return END_WORDS[end_reason]
        return PERIOD_SPLIT if self.to_ms == self.stretch.to_ms or self.segment.evidence is None else SEGMENT_SPLIT

    def evidence(self, end_word: str) -> Evidence:
        """Returns who says that the slice ends when it does: the ledger itself where it is only cut."""
        if end_word == PERIOD_SPLIT or self.segment.evidence is None:
            return Evidence.CONTROLLER
        return self.segment.evidence


def slices_of(segment: Segment, stretches: Sequence[Stretch]) -> list[Slice]:
    """Returns the parts of a segment inside contiguous, ordered stretches; what lies outside of them is left out."""
    slices: list[Slice] = []
    if not stretches:
        return slices
    index = max(0, bisect_right(stretches, segment.from_ms, key=lambda stretch: stretch.from_ms) - 1)
    while index < len(stretches) and stretches[index].from_ms < segment.to_ms:
        stretch = stretches[index]
        first_ms, last_ms = max(segment.from_ms, stretch.from_ms), min(segment.to_ms, stretch.to_ms)
        if first_ms < last_ms:
            slices.append(Slice(segment, stretch, first_ms, last_ms))
        index += 1
    return slices


def topping_of(segments: Sequence[Segment], stretches: Sequence[Stretch]) -> Slice | None:
    """Returns what an allocation that is over is charged for beyond what it held; None where that is nothing.

    By the minimum and increment of the book in force when it ended, at the terms of its last segment then; and only by
    stretches that have its end, so that it stands once however time is cut. `segments` are all of the allocation's.
    """
    if not segments or not stretches:
        return None
    last = max(segments, key=lambda segment: segment.to_ms)
    at = bisect_right(stretches, last.to_ms - 1, key=lambda stretch: stretch.from_ms) - 1
    if at < 0 or last.to_ms > stretches[at].to_ms:
        return None
    book = stretches[at].book
    if book is None:
        return None
    ran_ms = sum(segment.to_ms - segment.from_ms for segment in segments)
    wanted_ms = book.most_time_ms(ran_ms)
    return Slice(last, stretches[at], last.to_ms, last.to_ms, wanted_ms - ran_ms) if wanted_ms > ran_ms else None
