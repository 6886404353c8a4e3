"""The ledger for Prometheus: GPU time held by tenants, busy or idle, and whether the ledger still adds up.

Looked at once a minute and only at what is new: closed intervals after the last one seen, the open intervals, and the
samplers' windows. A view, never the bill: time is counted when it is seen, so a holding that evidence ends earlier
later on was counted to the look before, and a counter does not go back. A daemon that starts counts from zero.

A window's busy and idle time is spread evenly over it, so whoever held the GPU for a part gets that part of both; on a
GPU that tenants share each gets what the whole GPU showed. Busy, idle and unmeasured add up to the time held, exactly.
"""

import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy.engine import Connection

from metering.windows import SampleWindow
from scheduler.core.model import GPU_UNITS, ROOT_ACCOUNT, AccountId, DeviceId, GpuClass, tenant_of
from scheduler.core.occupancy import Cursor, Interval
from scheduler.store.account_names import present_names
from scheduler.store.codec import interval_of
from scheduler.store.database import Database
from scheduler.store.ledger_rows import (
    ClosedTotal,
    LedgerDevice,
    chain_pages,
    closed_totals,
    cursors,
    devices,
)
from scheduler.store.read import ledger_head
from scheduler.store.repartition import Gap, absent_ms, device_gaps

BLIND_MS = 180_000
"""Held time of a GPU without a window for so long counts as unmeasured: three windows of the usual minute."""
KINDS = ("busy", "idle", "unmeasured")
UNIT_MS_PER_GPU_SECOND = GPU_UNITS * 1000
UseKey = tuple[AccountId, GpuClass, str]


@dataclass(frozen=True, slots=True)
class _Piece:
    """Units of a device in a tenant's hands for a while; `to_ms` None: still."""

    from_ms: int
    to_ms: int | None
    units: int
    tenant: AccountId
    gpu_class: GpuClass


@dataclass(frozen=True, slots=True)
class _Seen:
    """How far the ledger was read."""

    sequence: int
    closed: dict[DeviceId, ClosedTotal]
    since_ms: int
    """When counting began."""


class LedgerWatch:
    """Reads what is new in the ledger at each `look`. Every method is thread-safe; looks wait for one another."""

    def __init__(self, database: Database, blind_ms: int = BLIND_MS) -> None:
        self._database = database
        self._blind_ms = blind_ms
        self._looking = threading.Lock()  # held through a look, which may read for long
        self._lock = threading.Lock()  # over the two answers
        self._use: Counter[UseKey] = Counter()
        self._imbalance: int | None = None
        self._seen: _Seen | None = None
        self._counted_ms: dict[DeviceId, int] = {}
        self._ended: dict[DeviceId, list[_Piece]] = {}  # closed, and not counted to their end

    @property
    def use_unit_ms(self) -> dict[UseKey, int]:
        """Capacity units × milliseconds by tenant, class and kind, since this process began to count."""
        with self._lock:
            return dict(self._use)

    @property
    def imbalance_unit_ms(self) -> int | None:
        """Capacity units × milliseconds that are missing or too many, over all devices; None before the first look."""
        with self._lock:
            return self._imbalance

    def look(self, windows: Sequence[SampleWindow], now_ms: int) -> None:
        """Counts what is new up to `now_ms`. The first look only finds where the ledger stands. Raises StoreError."""
        with self._looking:
            self._look(windows, now_ms)

    def _look(self, windows: Sequence[SampleWindow], now_ms: int) -> None:
        with self._database.read() as connection:
            is_first = self._seen is None
            seen = self._seen or _start(connection, now_ms)
            pages = () if is_first else chain_pages(connection, after=seen.sequence)
            new = [interval_of(row) for page in pages for row in page]
            closed = dict(seen.closed)
            for row in new:
                closed[row.device] = _with(closed.get(row.device), row)
            held = cursors(connection)
            known = devices(connection)
            imbalance = _imbalance(known, closed, (held, device_gaps(connection)), now_ms)
            pairs = _pairs(connection, known)
        # Only now: a look that failed half-way left nothing behind, and the next one reads the same rows.
        self._seen = _Seen(new[-1].sequence if new else seen.sequence, closed, seen.since_ms)
        use = self._count(new, held, {} if is_first else {DeviceId(each.uuid): each for each in windows}, now_ms)
        with self._lock:
            for tenant, gpu_class in pairs:
                # A counter that is born with a value is invisible to increase(): each begins at 0, before it is held.
                for kind in KINDS:
                    self._use.setdefault((tenant, gpu_class, kind), 0)
            self._use.update(use)
            self._imbalance = imbalance

    def forget(self) -> None:
        """Starts anew at the next look: this daemon does not lead, and another counts meanwhile."""
        with self._looking, self._lock:
            self._seen = None
            self._counted_ms.clear()
            self._ended.clear()
            self._imbalance = None

    def _count(
        self, new: Iterable[Interval], held: Iterable[Cursor], windows: dict[DeviceId, SampleWindow], now_ms: int
    ) -> Counter[UseKey]:
        pieces = {device: list(left) for device, left in self._ended.items()}
        rows: list[Interval | Cursor] = [*new, *held]
        for row in rows:
            piece = _piece(row)
            if piece is not None:
                pieces.setdefault(row.device, []).append(piece)
        use: Counter[UseKey] = Counter()
        self._ended.clear()
        for device in {*pieces, *windows}:
            window = windows.get(device)
            begin_ms = self._counted_ms.get(device, self._since_ms)
            end_ms = begin_ms
            if window is not None:
                end_ms = max(begin_ms, window.to_ms)
            elif now_ms - begin_ms >= self._blind_ms:
                end_ms = now_ms
            self._counted_ms[device] = end_ms
            for piece in pieces.get(device, ()):
                _add(use, piece, (begin_ms, end_ms), window)
                if piece.to_ms is not None and piece.to_ms > end_ms:
                    self._ended.setdefault(device, []).append(piece)
        return use

    @property
    def _since_ms(self) -> int:
        assert self._seen is not None, "a look began"
        return self._seen.since_ms


class LedgerCollector(Collector):
    """Shows what a LedgerWatch counted."""

    def __init__(self, watch: LedgerWatch) -> None:
        self._watch = watch

    def describe(self) -> Iterable[Metric]:
        """Returns the families without series, so that registering reads nothing and doubles are refused."""
        return _families()

    def collect(self) -> Iterator[Metric]:
        """Returns the families with the values of the last look."""
        use, imbalance = _families()
        counted = self._watch.use_unit_ms
        for tenant, gpu_class in sorted({(tenant, gpu_class) for tenant, gpu_class, _ in counted}):
            for kind in KINDS:
                unit_ms = counted.get((tenant, gpu_class, kind), 0)
                use.add_metric((tenant, gpu_class, kind), unit_ms / UNIT_MS_PER_GPU_SECOND)
        unit_ms_wrong = self._watch.imbalance_unit_ms
        if unit_ms_wrong is not None:
            imbalance.add_metric((), unit_ms_wrong / UNIT_MS_PER_GPU_SECOND)
        yield from (use, imbalance)


def _families() -> tuple[CounterMetricFamily, GaugeMetricFamily]:
    use = CounterMetricFamily(
        "turnstile_tenant_gpu_seconds",
        "GPU time that tenants held since the daemon started: busy, idle or unmeasured. A view, not the bill.",
        labels=("tenant", "model", "kind"),
    )
    imbalance = GaugeMetricFamily(
        "turnstile_ledger_imbalance_seconds",
        "GPU time that the ledger counts twice or not at all, over all GPUs. Must be 0.",
    )
    return use, imbalance


def _start(connection: Connection, now_ms: int) -> _Seen:
    return _Seen(ledger_head(connection).sequence, closed_totals(connection), now_ms)


def _pairs(connection: Connection, known: Sequence[LedgerDevice]) -> set[tuple[AccountId, GpuClass]]:
    """Returns every tenant with every GPU class that is there."""
    classes = {device.gpu_class for device in known if device.removed_ms is None}
    tenants = {tenant_of(account) for account in present_names(connection) if account != ROOT_ACCOUNT}
    return {(tenant, gpu_class) for tenant in tenants for gpu_class in classes}


def _with(total: ClosedTotal | None, row: Interval) -> ClosedTotal:
    if total is None:
        return ClosedTotal(row.unit_ms, row.from_ms, row.to_ms)
    first_ms, last_ms = min(total.first_ms, row.from_ms), max(total.last_ms, row.to_ms)
    return ClosedTotal(total.unit_ms + row.unit_ms, first_ms, last_ms)


def _imbalance(
    found: Sequence[LedgerDevice],
    closed: dict[DeviceId, ClosedTotal],
    lanes_and_gaps: tuple[Sequence[Cursor], Mapping[DeviceId, Sequence[Gap]]],
    now_ms: int,
) -> int:
    """Returns how far the devices' lanes are from the devices' lives, in unit-milliseconds; each device by its amount.

    A gap and an overlap of the same size on one device cancel out here; the ledger's verification finds both.
    """
    held, gaps = lanes_and_gaps
    until_ms = max([now_ms, *(cursor.since_ms for cursor in held)])
    lanes: dict[DeviceId, int] = {}
    for cursor in held:
        lanes[cursor.device] = lanes.get(cursor.device, 0) + cursor.occupant.units * (until_ms - cursor.since_ms)
    wrong = 0
    known = {device.id: device for device in found}
    for name in {*known, *closed, *lanes}:
        device, total = known.get(name), closed.get(name)
        end_ms = until_ms if name in lanes or total is None else total.last_ms
        away_ms = absent_ms(gaps.get(name, ()), 0, end_ms)
        life = device.units * (end_ms - device.first_seen_ms - away_ms) if device is not None else 0
        wrong += abs(life - (total.unit_ms if total else 0) - lanes.get(name, 0))
    return wrong


def _piece(row: Interval | Cursor) -> _Piece | None:
    occupant = row.occupant
    if occupant.holder is None:
        return None
    tenant = tenant_of(occupant.holder)
    if isinstance(row, Cursor):
        return _Piece(row.since_ms, None, occupant.units, tenant, row.gpu_class)
    return _Piece(row.from_ms, row.to_ms, occupant.units, tenant, row.gpu_class)


def _add(use: Counter[UseKey], piece: _Piece, span: tuple[int, int], window: SampleWindow | None) -> None:
    """Adds the part of a piece inside the span, divided as the window says."""
    from_ms = max(piece.from_ms, span[0])
    to_ms = span[1] if piece.to_ms is None else min(piece.to_ms, span[1])
    if to_ms <= from_ms:
        return
    busy = idle = 0
    if window is not None:
        inside_ms = max(0, to_ms - max(from_ms, window.from_ms))
        length_ms = window.to_ms - window.from_ms
        busy = (window.measured_ms - window.idle_ms) * inside_ms // length_ms
        idle = window.idle_ms * inside_ms // length_ms
    held_ms = to_ms - from_ms
    for kind, part_ms in zip(KINDS, (busy, idle, held_ms - busy - idle), strict=True):
        use[piece.tenant, piece.gpu_class, kind] += part_ms * piece.units
