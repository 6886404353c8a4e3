"""Debt: decayed credits of burst use, for each account and all above it, exact and in integers.

With half-life h and charge ρ, debt follows dU/dt = ρ - U·ln 2/h; hence U ← U·2^(-Δ/h) + ρ·(h/ln 2)·(1 - 2^(-Δ/h)).
Written with G(t) = 2^(t/h) and a step Δρ for each change of the charge at a time s, that is

    U(t) = (h / ln 2) · (ρ(t) - Σ Δρ(s)·G(s) / G(t))

so an account needs two numbers: its present charge and the sum of Δρ·G. G is an integer function of the millisecond,
the same on every machine, and charges are integers; the sum is exact. Therefore nothing depends on how often debt was
looked at, where an interval was cut, or in which order late ends came in: the ledger gives the same bits as the daemon
that lived through it.

G grows without bound. Time is cut into blocks of 64 half-lives, G begins anew in each, and an account keeps the sums of
the last two blocks: what is older has weight below 2^-64.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import isqrt
from typing import NamedTuple

from scheduler.core.model import GPU_UNITS, AccountId, Booking, GpuClass

HALF_LIFE_MS = 86_400_000
"""A day: what a tenant used the day before yesterday counts a quarter; a heavy week is forgotten within the next."""

EPOCH_MS = 600_000
"""Effective weights change at UTC multiples of this, and the order looks this far ahead."""

CREDIT = 1_000_000
"""Micro-credits of a credit."""

DEFAULT_RATE = CREDIT
"""Micro-credits per GPU-second of a class and booking without a price: one credit, so that all use counts alike."""

_FRACTION_BITS = 96
_EXPONENT_BITS = 64
_BLOCK_BITS = 64  # half-lives in a block, and so the factor, in bits, between the growth of two blocks
_INVERSE_LN2 = 26_613_026_195_688_644_983  # 2^64 / ln 2, rounded down
_CHARGE_MS = GPU_UNITS * 1000  # charges are per second and in capacity units, half-lives in milliseconds

RateKey = tuple[GpuClass, Booking]


def _powers_by_byte() -> tuple[tuple[int, ...], ...]:
    """Returns 2^x over 2^96 for each byte of a fraction x of 64 bits, by place (the first counts most) and value.

    A byte's power is the product of successive square roots of 2, one for each bit that is set.
    """
    tables: list[tuple[int, ...]] = []
    root = 2 << _FRACTION_BITS
    for _ in range(_EXPONENT_BITS // 8):
        roots: list[int] = []
        for _ in range(8):
            root = isqrt(root << _FRACTION_BITS)
            roots.append(root)
        powers = [1 << _FRACTION_BITS]
        for each in reversed(roots):
            powers += [power * each >> _FRACTION_BITS for power in powers]
        tables.append(tuple(powers))
    return tuple(tables)


_POWERS = _powers_by_byte()


@lru_cache(maxsize=16_384)
def power_of_two(numerator: int, denominator: int) -> int:
    """Returns 2^(numerator / denominator) as an integer over 2^96, for exponents in [0, 1): below 2^-80 off."""
    assert 0 <= numerator < denominator, "the whole part of an exponent is a shift"
    exponent = (numerator << _EXPONENT_BITS) // denominator
    value = 1 << _FRACTION_BITS
    for powers, byte in zip(_POWERS, exponent.to_bytes(_EXPONENT_BITS // 8, "big"), strict=True):
        value = value * powers[byte] >> _FRACTION_BITS
    return value


class Tally(NamedTuple):
    """An account's burst use in the numbers that its debt follows from."""

    charge: int = 0
    """Of all burst gangs that run: micro-credits per second, times GPU_UNITS."""
    block: int = 0
    """The block of the last step."""
    recent: int = 0
    """-Σ Δcharge·G over the steps of that block."""
    older: int = 0
    """The same for the block before."""


NO_USE = Tally()


@dataclass(frozen=True, slots=True)
class Debt:
    """What is kept of an account's burst use. `before` is what had happened before the epoch of the last step."""

    account: AccountId
    now: Tally = NO_USE
    epoch: int = 0
    before: Tally = NO_USE


@dataclass(slots=True, eq=False)
class Debts:
    """The debts of all accounts, under one half-life."""

    half_life_ms: int = HALF_LIFE_MS
    values: dict[AccountId, Debt] = field(default_factory=dict)
    _scale: tuple[int, int, int, int] = (-1, 0, 1, 1)
    """Of the last instant that was asked about: it, its block, G of it, and what a debt is divided by."""
    _at_epoch: dict[AccountId, tuple[Tally, int, int]] = field(default_factory=dict)
    """The last debts that were read as of an epoch's beginning: from which tally, of which epoch, how much."""

    def step(self, accounts: Iterable[AccountId], at_ms: int, change: int) -> None:
        """Changes the charge of the accounts (micro-credits per second times GPU_UNITS) from an instant on."""
        epoch, values = at_ms // EPOCH_MS, self.values
        for account in accounts:
            debt = values.get(account) or Debt(account)
            before, latest = debt.before, debt.epoch
            if epoch > latest:
                before, latest = debt.now, epoch
            elif epoch < latest:
                before = self._stepped(before, at_ms, change)  # a late fact of an epoch that is over
            values[account] = Debt(account, self._stepped(debt.now, at_ms, change), latest, before)

    def credits(self, account: AccountId, at_ms: int) -> int:
        """Returns an account's debt in micro-credits, rounded down; `at_ms` is not before the last step. Never < 0."""
        debt = self.values.get(account)
        return 0 if debt is None else self._read(debt.now, at_ms)

    def epoch_credits(self, account: AccountId, at_ms: int) -> int:
        """Returns the debt as it stood when the epoch of `at_ms` began, whatever has happened since."""
        debt = self.values.get(account)
        if debt is None:
            return 0
        epoch = at_ms // EPOCH_MS
        tally = debt.now if debt.epoch < epoch else debt.before
        known = self._at_epoch.get(account)
        if known is None or known[0] is not tally or known[1] != epoch:
            known = self._at_epoch[account] = (tally, epoch, self._read(tally, epoch * EPOCH_MS))
        return known[2]

    def charge(self, account: AccountId) -> int:
        """Returns what the account's burst gangs cost now: micro-credits per second, times GPU_UNITS."""
        debt = self.values.get(account)
        return 0 if debt is None else debt.now.charge

    def _growth(self, at_ms: int, block: int) -> int:
        whole, rest = divmod(at_ms - block * _BLOCK_BITS * self.half_life_ms, self.half_life_ms)
        return power_of_two(rest, self.half_life_ms) << whole

    def _stepped(self, tally: Tally, at_ms: int, change: int) -> Tally:
        charge, block, recent, older = tally
        at_block = at_ms // (_BLOCK_BITS * self.half_life_ms)
        if at_block > block:
            recent, older = 0, recent if at_block == block + 1 else 0
            block = at_block
        if at_block == block:
            recent -= change * self._growth(at_ms, block)
        elif at_block == block - 1:
            older -= change * self._growth(at_ms, at_block)
        return Tally(charge + change, block, recent, older)

    def _read(self, tally: Tally, at_ms: int) -> int:
        if self._scale[0] != at_ms or self._scale[1] < tally.block:
            length_ms = _BLOCK_BITS * self.half_life_ms
            late_ms = max(at_ms, tally.block * length_ms)
            block = late_ms // length_ms
            whole = self._growth(late_ms, block) << _BLOCK_BITS
            self._scale = (at_ms if late_ms == at_ms else -1, block, whole, whole * _CHARGE_MS << 64)
        _, block, whole, divisor = self._scale
        past = 0
        if block == tally.block:
            past = (tally.recent << _BLOCK_BITS) + tally.older
        elif block == tally.block + 1:
            past = tally.recent
        scaled = (tally.charge * whole + past) * self.half_life_ms * _INVERSE_LN2
        return max(0, scaled // divisor)


class RateBook:
    """The list rates in force since when. One credit per GPU-second until the first ones come, and for what has none.

    Fairness uses the list rate only; contracts, bands and discounts change money and never debt.
    """

    def __init__(self) -> None:
        self._changes: list[tuple[int, dict[RateKey, int]]] = []

    def change(self, at_ms: int, rates: Mapping[RateKey, int]) -> None:
        """Puts new rates in force (micro-credits per GPU-second), not before those known."""
        assert not self._changes or at_ms >= self._changes[-1][0], "rates change for the time to come"
        assert all(rate >= 0 for rate in rates.values()), "a rate is never negative"
        self._changes.append((at_ms, dict(rates)))

    def in_force(self) -> dict[RateKey, int]:
        """Returns the present rates; a pair left out costs DEFAULT_RATE."""
        return dict(self._changes[-1][1]) if self._changes else {}

    def history(self) -> tuple[tuple[int, dict[RateKey, int]], ...]:
        """Returns every change there was, with its time."""
        return tuple((at_ms, dict(rates)) for at_ms, rates in self._changes)

    def rate(self, gpu_class: GpuClass, booking: Booking) -> int:
        """Returns the present micro-credits per GPU-second."""
        return self._changes[-1][1].get((gpu_class, booking), DEFAULT_RATE) if self._changes else DEFAULT_RATE

    def steps(
        self, gpu_class: GpuClass, booking: Booking, units: int, from_ms: int, to_ms: int | None
    ) -> Sequence[tuple[int, int]]:
        """Returns the steps (time, change of charge) that a gang makes which holds so many units from then on.

        `to_ms` is its end, None while it lasts. The steps of a gang that ended sum to zero.
        """
        charge = DEFAULT_RATE * units
        later: list[tuple[int, int]] = []
        for at_ms, rates in self._changes:
            new = rates.get((gpu_class, booking), DEFAULT_RATE) * units
            if at_ms <= from_ms:
                charge = new
            elif to_ms is None or at_ms < to_ms:
                later.append((at_ms, new))
        steps = [(from_ms, charge)]
        for at_ms, new in later:
            if new != charge:
                steps.append((at_ms, new - charge))
                charge = new
        if to_ms is not None:
            steps.append((to_ms, -charge))
        return steps
