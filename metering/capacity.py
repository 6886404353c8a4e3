"""What every device was, per civil day: the rows of `capacity.csv`, which prove that nothing is lost or counted twice.

Per device and day the states' capacity units × milliseconds add up to the device's units × the time that the ledger
knows it for. Intervals are added up in one pass in the order of their starts; memory grows with devices × days, by some
hundred bytes each, and not with intervals.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from itertools import pairwise

from sqlalchemy.engine import Connection

from metering.core.civil import Day
from metering.core.who_pays import WHO_PAYS, Payer
from scheduler.core.model import AllocationId, Phase
from scheduler.core.occupancy import OccupancyState
from scheduler.store.database import StoreCorrupt
from scheduler.store.ledger_rows import (
    ANY_START,
    BriefInterval,
    LedgerDevice,
    Starts,
    brief_cursors,
    devices,
    has_run,
    known_between,
    life_start_ms,
)
from scheduler.store.readers import Readers
from scheduler.store.repartition import Gap, absent_ms, device_gaps

_ORDER = tuple(OccupancyState)
_PLACE = {state.value: place for place, state in enumerate(_ORDER)}
_ALLOCATED = _PLACE[OccupancyState.ALLOCATED.value]
_BILLED = len(_ORDER)
"""Where a day's billed part stands, after its states."""
_SLOTS = len(_ORDER) + 1
PARTS_A_PROCESS = 2
"""Parts of time that each process adds up: it may be done with one early."""
_IS_TENANTS = {phase.value: payer is Payer.TENANT for phase, payer in WHO_PAYS.by_phase.items()}
_RUNNING = Phase.RUNNING.value
_ALLOCATED_WORD = OccupancyState.ALLOCATED.value
_SIMPLE = frozenset(phase for phase, is_tenants in _IS_TENANTS.items() if (phase == _RUNNING) is is_tenants)
"""Phases of which it is known who bears them without what was before: the tenant to run, the provider what is its."""


@dataclass(frozen=True, slots=True)
class StateOfDay:
    """How long a device was in one state on one day. `billed_unit_ms` is the part that tenants are charged for."""

    device: LedgerDevice
    day: date
    state: OccupancyState
    unit_ms: int
    billed_unit_ms: int
    state_ms: int
    """The same in whole milliseconds of the device; the states of a day add up to `capacity_ms`."""
    capacity_unit_ms: int
    capacity_ms: int


@dataclass(frozen=True, slots=True)
class Lived:
    """What a device was on each of its days, added up: what its rows are told from."""

    device: LedgerDevice
    first_day: int
    slots: tuple[int, ...]
    """Unit-milliseconds: _SLOTS for each day from its first to its last."""
    start_ms: int
    """When the ledger's knowledge of it begins, where that is in the days."""
    until_ms: int
    gaps: Sequence[Gap]


def capacity_of(readers: Readers[Connection], days: Sequence[Day]) -> Iterator[StateOfDay]:
    """Yields every device's states of each day, by device, day and state; states that did not occur are left out.

    As `lives_of` and `states_of`, which several processes may share.
    """
    for lived in lives_of(readers, days):
        yield from states_of(lived, days)


def lives_of(readers: Readers[Connection], days: Sequence[Day]) -> list[Lived]:
    """Returns what every device was, by device; those that were not there are left out.

    `days` are contiguous. Open intervals count to the end of the last day, which the caller has found to be known.
    """
    connection = readers.source
    from_ms, to_ms = days[0].from_ms, days[-1].to_ms
    sums = _Sums(connection, days)
    for part in readers.each(_Added(tuple(days)), _starts(readers.processes, from_ms, to_ms)):
        sums.fold(part)
    for interval in brief_cursors(connection, to_ms):
        sums.add(interval)
    gaps = device_gaps(connection)
    found: list[Lived] = []
    for device in devices(connection):
        life = sums.lives.pop(device.id, None)
        if life is None:
            continue
        start_ms = life.since_ms
        if start_ms > from_ms:
            start_ms = life_start_ms(connection, device.id)
        slots = tuple(life.slots[life.first_day * _SLOTS : (life.last_day + 1) * _SLOTS])
        found.append(Lived(device, life.first_day, slots, start_ms, life.until_ms, gaps.get(device.id, ())))
    return found


def states_of(lived: Lived, days: Sequence[Day]) -> Iterator[StateOfDay]:
    """Yields a device's states of each day, by day and state.

    Raises StoreCorrupt when the states of a day do not add up to the device.
    """
    for place in range(0, len(lived.slots), _SLOTS):
        day = days[lived.first_day + place // _SLOTS]
        begin_ms, end_ms = max(day.from_ms, lived.start_ms), min(day.to_ms, lived.until_ms)
        life_ms = end_ms - begin_ms - absent_ms(lived.gaps, begin_ms, end_ms)
        yield from _states_of_day(lived.device, day, lived.slots[place : place + _SLOTS], life_ms)


def _starts(processes: int, from_ms: int, to_ms: int) -> Sequence[Starts]:
    """Returns the parts of time in which the intervals of the days may begin, one after the other."""
    if processes == 1:
        return (ANY_START,)
    parts = processes * PARTS_A_PROCESS
    edges = [from_ms + (to_ms - from_ms) * part // parts for part in range(1, parts)]
    return tuple(pairwise([ANY_START[0], *edges, ANY_START[1]]))


@dataclass(slots=True)
class _Life:
    """What a device was on each day, so far."""

    slots: list[int]
    """Unit-milliseconds: _SLOTS for each day, the states in their order and then the billed part."""
    first_day: int
    last_day: int
    since_ms: int
    """The least start of an interval of lane 0."""
    until_ms: int


@dataclass(frozen=True, slots=True)
class _Part:
    """What the intervals that began in a part of time add up to."""

    lives: dict[str, _Life]
    """Each with the slots of its own days only, from its first to its last."""
    running: dict[tuple[str, int], str]
    undecided: list[BriefInterval]
    """Held after their gang ran, if it did: what ran before them on their lanes began before the part."""


@dataclass(frozen=True, slots=True)
class _Added:
    """The work of adding up intervals, by when they began."""

    days: tuple[Day, ...]

    def begin(self, connection: Connection) -> Callable[[Starts], _Part]:
        """Returns what adds up those that began in a part of time."""

        def add(starts: Starts) -> _Part:
            sums = _Sums(connection, self.days, is_whole=starts == ANY_START)
            sums.add_all(known_between(connection, self.days[0].from_ms, self.days[-1].to_ms, starts))
            return sums.part()

        return add


class _Sums:
    """Adds intervals up by device, day and state; those of a lane come in the order of time."""

    def __init__(self, connection: Connection, days: Sequence[Day], *, is_whole: bool = True) -> None:
        self.lives: dict[str, _Life] = {}
        self._is_whole = is_whole
        self._undecided: list[BriefInterval] = []
        self._connection = connection
        self._days = days
        self._starts = [day.from_ms for day in days]
        self._ends = [day.to_ms for day in days]
        self._running: dict[tuple[str, int], str] = {}
        """What ran last on each lane."""

    def add_all(self, intervals: Iterable[BriefInterval]) -> None:
        """Takes intervals by their starts. Most are of a known device and one day, and need no second look."""
        lives, running, add = self.lives, self._running, self.add
        number, start_ms, end_ms = 0, self._starts[0], self._ends[0]
        for interval in intervals:
            _, device, lane, first_ms, last_ms, state, units, phase, allocation = interval
            life = lives.get(device)
            if last_ms > end_ms and first_ms >= end_ms:
                number = max(0, bisect_right(self._starts, first_ms) - 1)
                start_ms, end_ms = self._starts[number], self._ends[number]
            is_plain = life is not None and start_ms <= first_ms and last_ms <= end_ms and number == life.last_day
            if allocation is None:
                is_plain = is_plain and state != _ALLOCATED_WORD
            else:
                is_plain = is_plain and state == _ALLOCATED_WORD and phase in _SIMPLE
            if life is None or not is_plain or (lane == 0 and first_ms < life.since_ms):
                add(interval)
                continue
            place, unit_ms = number * _SLOTS + _PLACE[state], units * (last_ms - first_ms)
            life.slots[place] += unit_ms
            life.until_ms = max(life.until_ms, last_ms)
            if phase == _RUNNING and allocation is not None:
                running[device, lane] = allocation
                life.slots[number * _SLOTS + _BILLED] += unit_ms

    def add(self, interval: BriefInterval) -> None:
        """Takes an interval that lies in the days, wholly or in part."""
        _, device, lane, first_ms, last_ms, state, units, _, allocation = interval
        place = _PLACE[state]
        is_billed = self._is_billed(interval) if allocation is not None else False
        if (allocation is None) is (place == _ALLOCATED):
            raise StoreCorrupt(
                f"device {device} lane {lane} from {first_ms} is {state}, and its holder is {allocation}; run the"
                " ledger's verification"
            )
        number = max(0, bisect_right(self._starts, first_ms) - 1)
        life = self.lives.get(device)
        if life is None:
            slots = [0] * (_SLOTS * len(self._days))
            life = self.lives[device] = _Life(slots, number, number, self._ends[-1], self._starts[0])
        if lane == 0 and first_ms < life.since_ms:
            life.since_ms = first_ms
        if self._starts[number] <= first_ms and last_ms <= self._ends[number]:  # in one day, as most are
            self._put(life, number, units * (last_ms - first_ms), (place, is_billed))
            life.until_ms = max(life.until_ms, last_ms)
            return
        while number < len(self._starts) and self._starts[number] < last_ms:
            inside_ms = min(last_ms, self._ends[number]) - max(first_ms, self._starts[number])
            self._put(life, number, units * inside_ms, (place, is_billed))
            life.until_ms = max(life.until_ms, min(last_ms, self._ends[-1]))
            number += 1

    def part(self) -> _Part:
        """Returns what was added, for another one to fold."""
        for life in self.lives.values():
            life.slots = life.slots[life.first_day * _SLOTS : (life.last_day + 1) * _SLOTS]
        return _Part(self.lives, self._running, self._undecided)

    def fold(self, part: _Part) -> None:
        """Takes the part that comes next in time."""
        for interval in part.undecided:
            _, device, lane, first_ms, _, _, _, _, allocation = interval
            if self._ran(device, lane, str(allocation), first_ms):
                self._bill(part.lives[device], interval)
        self._running |= part.running
        for device, more in part.lives.items():
            life = self.lives.get(device)
            if life is None:
                life = self.lives[device] = replace(more, slots=[0] * (_SLOTS * len(self._days)))
            life.first_day, life.last_day = min(life.first_day, more.first_day), max(life.last_day, more.last_day)
            life.since_ms, life.until_ms = min(life.since_ms, more.since_ms), max(life.until_ms, more.until_ms)
            first = more.first_day * _SLOTS
            for place, unit_ms in enumerate(more.slots, start=first):
                life.slots[place] += unit_ms

    def _bill(self, life: _Life, interval: BriefInterval) -> None:
        """Adds an interval to what tenants are charged for, in the slots of a part."""
        _, _, _, first_ms, last_ms, _, units, _, _ = interval
        for number in range(life.first_day, life.last_day + 1):
            inside_ms = min(last_ms, self._ends[number]) - max(first_ms, self._starts[number])
            if inside_ms > 0:
                life.slots[(number - life.first_day) * _SLOTS + _BILLED] += units * inside_ms

    def _put(self, life: _Life, number: int, unit_ms: int, where: tuple[int, bool]) -> None:
        place, is_billed = where
        slots, first = life.slots, number * _SLOTS
        slots[first + place] += unit_ms
        if is_billed:
            slots[first + _BILLED] += unit_ms
        if number < life.first_day:
            life.first_day = number
        elif number > life.last_day:
            life.last_day = number

    def _is_billed(self, interval: BriefInterval) -> bool:
        """Tells whether a tenant is charged for an interval that somebody held."""
        _, device, lane, first_ms, _, _, _, phase, allocation = interval
        if phase is None or allocation is None or not _IS_TENANTS[phase]:
            return False
        if phase == _RUNNING:
            self._running[device, lane] = allocation
            return True
        if not self._is_whole and (device, lane) not in self._running:
            self._undecided.append(interval)
            return False
        return self._ran(device, lane, allocation, first_ms)

    def _ran(self, device: str, lane: int, allocation: str, before_ms: int) -> bool:
        # What ran before the first day is not among the intervals.
        is_last = self._running.get((device, lane)) == allocation
        return is_last or has_run(self._connection, AllocationId(allocation), before_ms)


def _states_of_day(device: LedgerDevice, day: Day, slots: Sequence[int], life_ms: int) -> Iterator[StateOfDay]:
    held = {state: unit_ms for state, unit_ms in zip(_ORDER, slots, strict=False) if unit_ms}
    billed_unit_ms = slots[_BILLED]
    capacity_unit_ms = device.units * life_ms
    if sum(held.values()) != capacity_unit_ms:
        raise StoreCorrupt(
            f"device {device.id} on {day.date}: its states add up to {sum(held.values())} unit-milliseconds, but it has"
            f" {capacity_unit_ms}; run the ledger's verification"
        )
    whole = _whole_ms(held, device.units, life_ms)
    for state, state_ms in whole.items():
        part = billed_unit_ms if state is OccupancyState.ALLOCATED else 0
        yield StateOfDay(device, day.date, state, held[state], part, state_ms, capacity_unit_ms, life_ms)


def _whole_ms(held: dict[OccupancyState, int], units: int, life_ms: int) -> dict[OccupancyState, int]:
    """Returns the states in whole milliseconds that add up to `life_ms`: largest remainder, ties by state."""
    whole = {state: unit_ms // units for state, unit_ms in held.items()}
    by_rest = sorted(held, key=lambda state: (-(held[state] % units), _ORDER.index(state)))
    for state in by_rest[: life_ms - sum(whole.values())]:
        whole[state] += 1
    return whole
