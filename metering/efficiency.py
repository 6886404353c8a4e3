"""What came of a job's GPUs: how busy they were, how much of them was idle, what they cost.

Time and cost are the ledger's own lines, as `usage` and the CSV have them. How busy GPUs were is told from GPU windows,
of GPUs that the job held whole: what several did on one GPU cannot be told apart by its counters. What was not measured
is None and never 0. Read in order: JobUse, job_use; `metering.advice` says what to make of it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from zoneinfo import ZoneInfo

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from metering.core.quantity import decimal_text
from metering.core.rating import LineType
from metering.energy_epochs import EnergyEpoch, energy_epochs
from metering.ledger import IDLE_BELOW_PPM, idle_sums, overlapping
from metering.segments import segments_in
from metering.tables import GPU_WINDOW
from metering.timelines import load_prices, timelines
from metering.usage_lines import RatedLine, lines_of
from metering.usage_report import UsageGroup, count_line
from metering.witness import has_witnesses
from scheduler.core.model import AllocationId, DeviceId, tenant_of
from scheduler.store.database import chunks
from scheduler.store.ledger_allocations import allocations_by_id

KNOWN_PERCENT = 90
"""How much of a GPU's time windows must cover before anything is said of all of it: the first and last half minute of a
job lie in windows that reach beyond it, and a window more may be late."""


@dataclass(slots=True)
class DeviceUse:
    """What windows tell of one GPU over a stretch in which the job held it whole."""

    device: DeviceId
    held_ms: int
    measured_ms: int = 0
    """Time whose utilisation is known."""
    utilization_ppm_ms: int = 0
    """Parts per million × milliseconds over the measured time."""
    idle_ms: int = 0
    utilization_max_ppm: int | None = None
    """Of windows that lie inside the stretch, as the memory is: those at its edges saw others too."""
    memory_max_bytes: int | None = None
    last_busy_ms: int | None = None
    energy_millijoules: int = 0
    energy_ms: int = 0
    """Time whose energy is known."""

    @property
    def is_never_busy(self) -> bool:
        """True when nearly all of its time was seen, and all that was seen was idle."""
        is_known = self.measured_ms * 100 >= self.held_ms * KNOWN_PERCENT
        is_quiet = self.utilization_max_ppm is None or self.utilization_max_ppm < IDLE_BELOW_PPM
        return self.held_ms > 0 and is_known and self.idle_ms == self.measured_ms and is_quiet


@dataclass(slots=True)
class JobUse:
    """A job's use of GPUs over all its starts; `last` is about its last start."""

    starts: int = 0
    gpu_ms: int = 0
    """Billed GPU time, held: what the lines' `gpu_ms` add up to."""
    charges: dict[str, UsageGroup] = field(default_factory=dict)
    """Lines added up by currency, "" for use without a price."""
    prices: set[tuple[str, str]] = field(default_factory=set)
    """Price per GPU-hour and price book of each line that costs something."""
    whole: list[DeviceUse] = field(default_factory=list)
    """By stretch and GPU that was held whole."""
    last: tuple[DeviceUse, ...] = ()
    """Those of the last start's last stretch."""
    epochs: list[EnergyEpoch] = field(default_factory=list)
    """Of each GPU whose energy counter restarted: what it used in each life of its driver."""
    last_ran_ms: int = 0
    last_idle_tail_ms: int = 0
    """How long no GPU of the last start was busy before its end; 0 where that is not known."""

    @property
    def measured_ms(self) -> int:
        """GPU time whose utilisation is known."""
        return sum(each.measured_ms for each in self.whole)

    @property
    def idle_ms(self) -> int:
        """Part of the measured time in windows of idle use."""
        return sum(each.idle_ms for each in self.whole)

    @property
    def utilization_ppm(self) -> int | None:
        """Time-weighted mean over the measured time."""
        measured_ms = self.measured_ms
        return sum(each.utilization_ppm_ms for each in self.whole) // measured_ms if measured_ms else None

    @property
    def memory_max_bytes(self) -> int | None:
        """The most that one of its GPUs had in use."""
        return max((each.memory_max_bytes for each in self.whole if each.memory_max_bytes is not None), default=None)

    @property
    def energy_millijoules(self) -> int | None:
        """By the GPUs' own counters: the sum over each driver's life. None where none was read."""
        return sum(each.energy_millijoules for each in self.whole) if self.energy_ms else None

    @property
    def energy_ms(self) -> int:
        """GPU time whose energy is known."""
        return sum(each.energy_ms for each in self.whole)

    @property
    def counter_restarts(self) -> int:
        """How often an energy counter began anew while the job held its GPU."""
        return sum(each.is_restart for each in self.epochs)


def job_use(connection: Connection, ids: Sequence[AllocationId], now_ms: int) -> JobUse:
    """Returns what came of a job's starts up to now. Reads its lines and windows, and of the tenant's other use only
    what tiers and packages depend on. Raises StoreCorrupt when the ledger contradicts itself."""
    # A gang comes after its surplus nodes: it outlives them, and what it did last is what the job did last.
    by_time = sorted(allocations_by_id(connection, ids), key=lambda each: (each.decided_ms, each.id))
    starts = sorted(by_time, key=lambda each: (each.decided_ms, each.surplus_of is None))
    use = JobUse(starts=sum(each.surplus_of is None for each in starts))
    if not starts:
        return use
    span = (starts[0].decided_ms, max(now_ms, starts[0].decided_ms + 1))
    prices = load_prices(connection)
    # The days of the price books: lines are cut, and so rounded, where those of the centre's own files are.
    zone = next((book.tzinfo for book in reversed(prices.books) if book.zone is not None), None) or ZoneInfo("UTC")
    known = timelines(connection, span, zone, prices, tenant_of(starts[0].account))
    witnesses = connection if has_witnesses(connection, *span) else None
    for start in starts:
        lines = list(lines_of(start, known, witnesses))
        for rated in lines:
            _count(use, rated)
        _measure(connection, use, lines)
    last = starts[-1]
    segments = segments_in(last, span[1])
    if segments:
        use.last_ran_ms = segments[-1].to_ms - (last.started_ms or segments[0].from_ms)
        use.last_idle_tail_ms = _idle_tail_ms(connection, use.last, segments[-1].from_ms, segments[-1].to_ms)
    return use


def _count(use: JobUse, rated: RatedLine) -> None:
    line = rated.line
    currency = line.book.currency if line.book is not None and line.amount_micros is not None else ""
    group = use.charges.get(currency)
    if group is None:
        group = use.charges[currency] = UsageGroup(currency, None, currency or None)
    count_line(group, rated)
    if line.book is not None and line.price is not None and line.amount_micros:
        use.prices.add((decimal_text(line.price, 2), line.book.version))


def _measure(connection: Connection, use: JobUse, lines: Iterable[RatedLine]) -> None:
    """Adds what windows tell, by segment and not by line: a line's edge at midnight must not cut a maximum."""
    by_number: dict[int, RatedLine] = {}
    for rated in lines:
        if rated.line.type is LineType.USAGE:
            use.gpu_ms += rated.line.slice.gpu_ms
            by_number[rated.line.slice.segment.number] = rated
    for number in sorted(by_number):
        segment = by_number[number].line.slice.segment
        found: list[DeviceUse] = []
        if not segment.is_share:
            found = device_uses(connection, by_number[number].gpus, segment.from_ms, segment.to_ms)
            use.epochs += energy_epochs(connection, by_number[number].gpus, segment.from_ms, segment.to_ms)
        use.whole += found
        use.last = tuple(found)


def device_uses(connection: Connection, devices: Sequence[DeviceId], from_ms: int, to_ms: int) -> list[DeviceUse]:
    """Returns what windows tell of each GPU over `[from_ms, to_ms)`, in the order of the devices, all of them."""
    window = GPU_WINDOW.c
    first = sa.case((window.from_ms < from_ms, from_ms), else_=window.from_ms)
    last = sa.case((window.to_ms > to_ms, to_ms), else_=window.to_ms)
    inside = last - first
    is_inside = sa.and_(window.from_ms >= from_ms, window.to_ms <= to_ms)
    mean, energy = window.utilization_mean_ppm, window.energy_millijoules
    uses = {device: DeviceUse(device, to_ms - from_ms) for device in devices}
    for part in chunks(devices):
        query = sa.select(
            window.device,
            sa.func.sum(sa.case((mean.is_not(None), inside), else_=0)),
            sa.func.sum(sa.case((mean.is_not(None), mean * inside), else_=0)),
            sa.func.sum(sa.case((mean < IDLE_BELOW_PPM, inside), else_=0)),
            sa.func.max(sa.case((is_inside, window.utilization_max_ppm))),
            sa.func.max(sa.case((is_inside, window.memory_max_bytes))),
            sa.func.max(sa.case((mean >= IDLE_BELOW_PPM, last))),
            # Whole numbers in SQL: the energy of a window cut by an edge is rounded down to a millijoule.
            sa.func.sum(sa.case((energy.is_not(None), energy * inside // (window.to_ms - window.from_ms)), else_=0)),
            sa.func.sum(sa.case((energy.is_not(None), inside), else_=0)),
        ).where(*overlapping(part, from_ms, to_ms))
        for device, measured, weighted, idle, most, memory, busy, millijoules, energy_ms in connection.execute(
            query.group_by(window.device)
        ):
            uses[device] = DeviceUse(
                DeviceId(device),
                to_ms - from_ms,
                int(measured),
                int(weighted),
                int(idle),
                most,
                memory,
                busy,
                int(millijoules),
                int(energy_ms),
            )
    return list(uses.values())


def _idle_tail_ms(connection: Connection, last: Sequence[DeviceUse], from_ms: int, to_ms: int) -> int:
    """Returns how long before the end no GPU was busy; 0 unless windows saw nearly all of that time."""
    if not last:
        return 0
    since_ms = max((each.last_busy_ms or from_ms for each in last), default=from_ms)
    idle_ms, _ = idle_sums(connection, [each.device for each in last], since_ms, to_ms)
    tail_ms = max(to_ms - since_ms, 0)
    return tail_ms if idle_ms * 100 >= tail_ms * len(last) * KNOWN_PERCENT else 0
