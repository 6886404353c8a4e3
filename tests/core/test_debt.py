"""Debt: against numeric integration, and to the bit whatever the order and the cuts."""

import random
from dataclasses import replace
from fractions import Fraction
from math import log

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.core.debt import CREDIT, EPOCH_MS, HALF_LIFE_MS, Debts, RateBook, power_of_two
from scheduler.core.events import (
    AllocationEnded,
    AllocationMade,
    AllocationPromoted,
    AllocationStarted,
    Event,
    RatesChanged,
)
from scheduler.core.model import GPU_UNITS, AccountId, Allocation, AllocationId, Booking, DeviceId, GpuClass, Phase
from scheduler.core.occupancy import Cursor, Evidence, Interval, OccupancyState, Occupant
from scheduler.core.policy import Policy
from tests.builders import START_MS, account, job, node
from tests.core.ledgerdebt import debt_from_intervals
from tests.harness import Centre

ACME = AccountId("acme")
GPU = GPU_UNITS * CREDIT  # the charge of one GPU at one credit a second


@given(st.integers(0, HALF_LIFE_MS - 1))
def test_powers_of_two_are_right_to_the_last_bits_of_a_float(rest_ms: int) -> None:
    assert abs(power_of_two(rest_ms, HALF_LIFE_MS) / 2**96 - 2 ** (rest_ms / HALF_LIFE_MS)) < 1e-15


def _integrated(steps: list[tuple[int, int]], now_ms: int, half_life_ms: int) -> float:
    """Debt in micro-credits by small steps of the differential equation, exact for the decay within a step."""
    owed, charge, at_ms = 0.0, 0, steps[0][0]
    slice_ms = max(1, (now_ms - at_ms) // 4000)
    moments = sorted({*range(at_ms, now_ms, slice_ms), *(step for step, _ in steps), now_ms})
    changes = dict.fromkeys(moments, 0)
    for step_ms, change in steps:
        changes[step_ms] += change
    for moment in moments:
        elapsed = moment - at_ms
        owed = (owed + charge * elapsed / 2000 / GPU_UNITS) * 2 ** (-elapsed / half_life_ms)
        owed += charge * elapsed / 2000 / GPU_UNITS  # trapezium: half of the slice's charge decayed, half fresh
        charge += changes[moment]
        at_ms = moment
    return owed


spans = st.lists(st.tuples(st.integers(0, 200), st.integers(1, 100), st.integers(1, 64)), min_size=1, max_size=8)


@settings(max_examples=40, deadline=None)
@given(spans, st.integers(0, 200))
def test_the_closed_form_is_what_numeric_integration_gives(spans_: list[tuple[int, int, int]], later: int) -> None:
    half_life_ms = 3_600_000
    debts, steps = Debts(half_life_ms), []
    for from_minutes, minutes, gpus in spans_:
        start_ms = START_MS + from_minutes * 60_000
        steps += [(start_ms, gpus * GPU), (start_ms + minutes * 60_000, -gpus * GPU)]
    steps.sort()
    for at_ms, change in steps:
        debts.step([ACME], at_ms, change)
    now_ms = steps[-1][0] + later * 60_000
    expected = _integrated(steps, now_ms, half_life_ms)
    assert abs(debts.credits(ACME, now_ms) - expected) <= 1 + expected * 1e-4


def test_a_debt_halves_in_a_half_life_and_converges_to_the_charge_times_its_mean_life() -> None:
    debts = Debts()
    debts.step([ACME], START_MS, GPU)
    limit = HALF_LIFE_MS / 1000 / log(2) * CREDIT
    assert abs(debts.credits(ACME, START_MS + 40 * HALF_LIFE_MS) - limit) < 2
    debts.step([ACME], START_MS + HALF_LIFE_MS, -GPU)
    owed = debts.credits(ACME, START_MS + HALF_LIFE_MS)
    assert abs(owed - limit / 2) < 2
    assert abs(debts.credits(ACME, START_MS + 2 * HALF_LIFE_MS) - owed / 2) < 2
    assert debts.credits(ACME, START_MS + 400 * HALF_LIFE_MS) == 0


@settings(max_examples=60)
@given(spans, st.integers(0, 2**32), st.sampled_from([60_000, 3_600_000, HALF_LIFE_MS]))
def test_neither_the_order_of_facts_nor_the_cuts_of_intervals_change_a_bit(
    spans_: list[tuple[int, int, int]], seed: int, half_life_ms: int
) -> None:
    chance = random.Random(seed)
    whole: list[tuple[int, int]] = []
    cut: list[tuple[int, int]] = []
    for from_minutes, minutes, gpus in spans_:
        start_ms, end_ms = START_MS + from_minutes * 60_000, START_MS + (from_minutes + minutes) * 60_000
        middle_ms = chance.randrange(start_ms, end_ms)
        whole += [(start_ms, gpus * GPU), (end_ms, -gpus * GPU)]
        cut += [(start_ms, gpus * GPU), (middle_ms, -gpus * GPU), (middle_ms, gpus * GPU), (end_ms, -gpus * GPU)]
    chance.shuffle(cut)
    straight, shuffled = Debts(half_life_ms), Debts(half_life_ms)
    for debts, steps in ((straight, sorted(whole)), (shuffled, cut)):
        for at_ms, change in steps:
            debts.step([ACME], at_ms, change)
    assert straight.values[ACME].now == shuffled.values[ACME].now
    now_ms = max(at_ms for at_ms, _ in whole)
    assert straight.credits(ACME, now_ms) == shuffled.credits(ACME, now_ms)
    assert straight.epoch_credits(ACME, now_ms) == shuffled.epoch_credits(ACME, now_ms)


def test_an_epochs_debt_is_what_it_was_when_the_epoch_began() -> None:
    begin_ms = -(-START_MS // EPOCH_MS) * EPOCH_MS
    debts = Debts()
    debts.step([ACME], begin_ms - 60_000, GPU)
    expected = debts.credits(ACME, begin_ms)
    debts.step([ACME], begin_ms + 1, 7 * GPU)
    debts.step([ACME], begin_ms + 2, -7 * GPU)
    assert expected > 0
    assert debts.epoch_credits(ACME, begin_ms + 300_000) == expected
    debts.step([ACME], begin_ms - 30_000, -GPU)  # a late fact of the epoch before counts
    assert 0 < debts.epoch_credits(ACME, begin_ms + 300_000) < expected
    assert debts.epoch_credits(ACME, begin_ms + EPOCH_MS) > 0


def test_rates_that_change_split_a_gangs_charge_at_their_time() -> None:
    book, h100 = RateBook(), GpuClass("H100")
    assert book.steps(h100, Booking.BURST, GPU_UNITS, 0, 10) == [(0, GPU), (10, -GPU)]
    book.change(5, {(h100, Booking.BURST): 3 * CREDIT})
    assert book.steps(h100, Booking.BURST, GPU_UNITS, 0, 10) == [(0, GPU), (5, 2 * GPU), (10, -3 * GPU)]
    assert book.steps(h100, Booking.BURST, GPU_UNITS, 0, 5) == [(0, GPU), (5, -GPU)]
    assert book.steps(h100, Booking.SPOT, GPU_UNITS, 6, None) == [(6, GPU)]


class Ledger:
    """The occupancy of a log of events, as the store writes it: a cut at every change of phase or booking."""

    def __init__(self) -> None:
        self.intervals: list[Interval] = []
        self.open: dict[tuple[AllocationId, DeviceId], Cursor] = {}
        self.rates: list[tuple[int, dict[tuple[GpuClass, Booking], int]]] = []

    def take(self, event: Event, live: dict[AllocationId, Allocation]) -> None:
        if isinstance(event, AllocationMade):
            live[event.allocation.id] = event.allocation
            for device in _devices(event.allocation):
                self._open(event.allocation, device, event.at_ms)
        elif isinstance(event, AllocationStarted):
            self._cut(replace(live[event.allocation], phase=Phase.RUNNING), event.at_ms, live)
        elif isinstance(event, AllocationPromoted):
            changed = replace(live[event.allocation], booking=event.booking, segment=event.segment)
            self._cut(changed, event.at_ms, live)
        elif isinstance(event, AllocationEnded):
            self._close(live.pop(event.allocation), event.at_ms)
        elif isinstance(event, RatesChanged):
            self.rates.append((event.at_ms, dict(event.rates)))

    def _cut(self, changed: Allocation, at_ms: int, live: dict[AllocationId, Allocation]) -> None:
        self._close(live[changed.id], at_ms)
        live[changed.id] = changed
        for device in _devices(changed):
            self._open(changed, device, at_ms)

    def _open(self, allocation: Allocation, device: DeviceId, at_ms: int) -> None:
        occupant = Occupant(
            OccupancyState.ALLOCATED,
            GPU_UNITS,
            phase=allocation.phase,
            holder=allocation.account,
            job=allocation.job,
            allocation=allocation.id,
            segment=allocation.segment,
            booking=allocation.booking,
            gpu_eq_units=GPU_UNITS,
        )
        self.open[allocation.id, device] = Cursor(device, 0, allocation.gpu_class, at_ms, 1, occupant)

    def _close(self, allocation: Allocation, at_ms: int) -> None:
        for device in _devices(allocation):
            cursor = self.open.pop((allocation.id, device))
            sequence = len(self.intervals) + 1
            self.intervals.append(
                Interval(
                    sequence,
                    device,
                    0,
                    cursor.gpu_class,
                    cursor.since_ms,
                    at_ms,
                    cursor.occupant,
                    Evidence.NODE,
                    at_ms,
                    str(sequence),
                    "",
                    "",
                )
            )


def _devices(allocation: Allocation) -> list[DeviceId]:
    return [device for grant in allocation.grants for device in grant.devices]


history = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(1, 3), st.sampled_from(["acme/a", "acme/b", "zeta/c"])),
        st.tuples(st.just("end"), st.integers(0, 9), st.none()),
        st.tuples(st.just("wait"), st.integers(1, 2000), st.none()),
        st.tuples(st.just("price"), st.integers(0, 5), st.none()),
    ),
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(history, st.sampled_from([3_600_000, HALF_LIFE_MS]))
def test_debts_replayed_from_the_ledger_equal_the_running_ones_to_the_bit(
    steps: list[tuple[str, int, str | None]], half_life_ms: int
) -> None:
    centre = Centre(
        node("n1", gpus=4),
        node("n2", gpus=2),
        accounts=(account("acme", guarantee=2), account("zeta", guarantee=1)),
        policy=Policy(debt_half_life_ms=half_life_ms),
    )
    for kind, number, project in steps:
        running = sorted(centre.running())
        if kind == "submit":
            centre.submit(job(gpus=number, project=str(project)))
        elif kind == "end" and running:
            centre.end(running[number % len(running)])
        elif kind == "wait":
            centre.advance(minutes=number)
        elif kind == "price":
            centre.apply(RatesChanged(centre.now_ms, {(GpuClass("H100"), Booking.BURST): number * CREDIT}))
        centre.tick()
    ledger, live = Ledger(), dict[AllocationId, Allocation]()
    for event in centre.log:
        ledger.take(event, live)
    replayed = debt_from_intervals(ledger.intervals, ledger.open.values(), ledger.rates, half_life_ms)
    assert replayed == centre.state.usage.debts.values


def test_a_late_end_before_a_change_of_rates_is_charged_at_the_rates_of_its_time() -> None:
    centre = Centre(node(gpus=2))
    first = centre.submit(job())
    centre.tick()
    centre.advance(minutes=10)
    centre.apply(RatesChanged(centre.now_ms, {(GpuClass("H100"), Booking.BURST): 9 * CREDIT}))
    centre.now_ms -= 60_000
    centre.end(first)
    centre.now_ms += 60_000
    debts = Debts()
    debts.step([ACME], START_MS, GPU)
    debts.step([ACME], START_MS + 540_000, -GPU)
    assert centre.state.usage.debts.credits(ACME, centre.now_ms) == debts.credits(ACME, centre.now_ms)
    assert Fraction(debts.credits(ACME, centre.now_ms), CREDIT) > 530
