"""How much of a month's volume and of its packages a tenant has used of a GPU class, at every instant.

`meter_of` runs over all that the tenant used of the class, in the order of time, and notes where a tier is passed and
where a package begins to pay or is used up. Both are facts of time, not of jobs: what runs beside each other draws
together, so the result does not depend on the order in which uses are given, nor on how they are cut.

Everything is counted in unit-milliseconds, integers. A millisecond belongs to a tier, and is paid by a package, only if
all that the tenant used in it still fits; so a package never pays for more than was bought, and what is left of it then
is less than a millisecond of what ran.
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from metering.core.quantity import UNIT_MS_PER_GPU_HOUR
from scheduler.core.model import AccountId, GpuClass


@dataclass(frozen=True, slots=True)
class Package:
    """GPU-hours of a class that a tenant bought: they pay for its use from `from_ms`, and expire at `to_ms`."""

    id: str
    tenant: AccountId
    gpu_class: GpuClass
    gpu_hours: int
    price: Decimal
    """Of the whole package, before tax."""
    currency: str
    from_ms: int
    to_ms: int

    @property
    def unit_ms(self) -> int:
        """What it holds, in capacity units × milliseconds."""
        return self.gpu_hours * UNIT_MS_PER_GPU_HOUR


@dataclass(frozen=True, slots=True)
class Use:
    """Charged units that a tenant used of the class over `[from_ms, to_ms)`."""

    from_ms: int
    to_ms: int
    units: int
    draws: bool
    """A package pays for it: it is not spot, and no reserved fee pays for it."""


@dataclass(frozen=True, slots=True)
class MeterEdge:
    """What holds from an instant on: the threshold passed last in the month, and the package that pays."""

    from_ms: int
    volume_hours: int = 0
    package: Package | None = None


@dataclass(frozen=True, slots=True)
class Meter:
    """A tenant's volume of one class over time. The first edge holds for all time before it too."""

    edges: tuple[MeterEdge, ...]
    left_unit_ms: Mapping[str, int]
    """What is left of each package, by its id, when it expired or where the uses end."""

    def at(self, at_ms: int) -> MeterEdge:
        """Returns what holds at an instant."""
        found = bisect_right(self.edges, at_ms, key=lambda edge: edge.from_ms) - 1
        return self.edges[max(0, found)]


def meter_of(
    uses: Iterable[Use], thresholds_hours: Iterable[int], packages: Sequence[Package], month_starts: Sequence[int]
) -> Meter:
    """Returns the meter of a tenant and class. Volume begins anew at each of `month_starts`, and is not counted before.

    Time grows with uses × log(uses); memory with uses.
    """
    run = _Run(sorted(thresholds_hours), sorted(packages, key=lambda each: (each.to_ms, each.from_ms, each.id)))
    changes: dict[int, list[int]] = {at: [0, 0] for at in month_starts}
    for package in packages:
        changes.setdefault(package.from_ms, [0, 0])
        changes.setdefault(package.to_ms, [0, 0])
    for use in uses:
        for at_ms, sign in ((use.from_ms, 1), (use.to_ms, -1)):
            change = changes.setdefault(at_ms, [0, 0])
            change[0] += sign * use.units
            change[1] += sign * use.units * use.draws
    months = set(month_starts)
    times = sorted(changes)
    units = drawing = 0
    for place, at_ms in enumerate(times):
        if at_ms in months:
            run.begin_month(at_ms)
        units += changes[at_ms][0]
        drawing += changes[at_ms][1]
        end_ms = times[place + 1] if place + 1 < len(times) else at_ms
        run.count(at_ms, end_ms, units)
        run.draw(at_ms, end_ms, drawing)
    assert units == drawing == 0, "every use that begins ends"
    return run.meter()


class _Run:
    """The sweep over time."""

    def __init__(self, thresholds_hours: Sequence[int], packages: Sequence[Package]) -> None:
        self._thresholds = thresholds_hours
        self._packages = packages
        self._left = {package.id: package.unit_ms for package in packages}
        self._used_up: set[str] = set()
        self._volume: int | None = None  # unit-ms of the month; None before the first month that counts
        self._passed = 0
        self._tiers: list[tuple[int, int]] = []
        self._payers: list[tuple[int, Package | None]] = []

    def begin_month(self, at_ms: int) -> None:
        self._volume, self._passed = 0, 0
        self._tiers.append((at_ms, 0))

    def count(self, from_ms: int, to_ms: int, units: int) -> None:
        """Adds a stretch of constant use to the month's volume and notes the thresholds that it passes."""
        if self._volume is None:
            return
        end = self._volume + units * (to_ms - from_ms)
        while self._passed < len(self._thresholds):
            hours = self._thresholds[self._passed]
            fits = hours * UNIT_MS_PER_GPU_HOUR - self._volume
            if end - self._volume <= fits:
                break
            self._tiers.append((from_ms + fits // units, hours))
            self._passed += 1
        self._volume = end

    def draw(self, from_ms: int, to_ms: int, units: int) -> None:
        """Takes a stretch of constant use from the packages and notes which of them pays when."""
        at_ms = from_ms
        while True:
            package = self._paying(at_ms)
            self._payers.append((at_ms, package))
            if package is None or not units or at_ms == to_ms:
                return
            lasts_ms = min(self._left[package.id] // units, to_ms - at_ms)
            self._left[package.id] -= lasts_ms * units
            at_ms += lasts_ms
            if at_ms == to_ms:
                return
            self._used_up.add(package.id)

    def _paying(self, at_ms: int) -> Package | None:
        """Returns the package that expires first of those that have something left."""
        for package in self._packages:
            if package.from_ms <= at_ms < package.to_ms and package.id not in self._used_up:
                return package
        return None

    def meter(self) -> Meter:
        """Returns both courses as one, with an edge where either changes."""
        tiers, payers = dict(self._tiers), dict(self._payers)  # of several at one instant, the last holds
        edges: list[MeterEdge] = []
        volume_hours, package = 0, None
        for at_ms in sorted({*tiers, *payers}):
            volume_hours = tiers.get(at_ms, volume_hours)
            package = payers.get(at_ms, package)
            if not edges or (edges[-1].volume_hours, edges[-1].package) != (volume_hours, package):
                edges.append(MeterEdge(at_ms, volume_hours, package))
        if not edges or edges[0].volume_hours or edges[0].package:
            edges.insert(0, MeterEdge(0))
        return Meter(tuple(edges), dict(self._left))
