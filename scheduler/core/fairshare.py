"""The division of what there is among those who want it: exact weighted max-min (water-filling) in integers.

Each account gets what it wants, or a part in proportion to its weight, whichever is less; what one leaves goes to the
others. Source of the notion: Bertsekas and Gallager, Data Networks, 2nd ed., section 6.5.2 (max-min fairness).
`shares` applies it to the account tree.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Generic, TypeVar

from scheduler.core.debt import power_of_two
from scheduler.core.model import GPU_UNITS

K = TypeVar("K", bound=str)

WEIGHT_STEPS = 1 << 20
"""Effective weights are whole multiples of this part of a plain one."""

_FLOOR_STEPS = WEIGHT_STEPS // 16
"""However deep in debt, an account keeps a sixteenth of its weight."""

_ORDER_BITS = 128  # two different ratios of a cap to a weight differ by more than 2^-128, so floors tell them apart


@dataclass(frozen=True, slots=True)
class Division(Generic[K]):
    """Who gets how much. Those in `filled` get all that they want; of those in `short`, each its weight's part."""

    filled: Mapping[K, int]
    short: Mapping[K, int]
    """Weights."""
    caps: Mapping[K, int]
    left: int
    """What those in `short` divide."""

    def exact(self) -> dict[K, Fraction]:
        """Returns each one's exact part."""
        weight = sum(self.short.values())
        parts = {name: Fraction(part) for name, part in self.filled.items()}
        parts.update({name: Fraction(self.left * each, weight) for name, each in self.short.items()})
        return parts

    def whole(self, unit: int = GPU_UNITS) -> dict[K, int]:
        """Returns the parts rounded to multiples of `unit` by largest remainder, ties by name; their sum is kept.

        Nobody gets more than its cap. A fraction of a unit that is left over goes last in line; caps that are no
        multiple of it (shares of a GPU) stay as they are.
        """
        weight = sum(self.short.values())
        whole = dict(self.filled)
        order: list[tuple[int, K]] = []
        for name, each in self.short.items():
            count, remainder = divmod(self.left * each, weight * unit)
            whole[name] = count * unit
            order.append((-remainder, name))
        over = self.left - sum(whole[name] for name in self.short)
        for _, name in sorted(order):
            step = min(unit, over, self.caps[name] - whole[name])
            whole[name] += step
            over -= step
        assert over == 0, "what a part lost to rounding fits below its cap"
        return whole


def water_fill(total: int, weights: Mapping[K, int], caps: Mapping[K, int]) -> Division[K]:
    """Divides `total`: everybody gets at most its cap, and in proportion to weights where caps don't bind.

    The parts sum to min(total, Σ caps). Weights are positive and below 2^64, caps and total not negative; O(n log n).
    """
    assert total >= 0, "there is no negative amount to divide"
    order = sorted(((caps[name] << _ORDER_BITS) // weights[name], name) for name in caps)
    left, weight = total, sum(weights[name] for name in caps)
    filled: dict[K, int] = {}
    for position, (_, name) in enumerate(order):
        if caps[name] * weight > left * weights[name]:
            # Caps that are higher for their weight are out of reach as well.
            return Division(filled, {name: weights[name] for _, name in order[position:]}, caps, left)
        filled[name] = caps[name]
        left -= caps[name]
        weight -= weights[name]
    return Division(filled, {}, caps, 0)


def pro_rata(total: int, parts: Mapping[K, int], unit: int = GPU_UNITS) -> dict[K, int]:
    """Returns the parts as they are if `total` covers them; otherwise cut in proportion, in whole units, same sum."""
    if sum(parts.values()) <= total:
        return dict(parts)
    wanted = {name: part for name, part in parts.items() if part > 0}
    cut = water_fill(total, wanted, wanted).whole(unit)
    return {name: cut.get(name, 0) for name in parts}


def effective_weights(plain: Mapping[K, int], debts: Mapping[K, int]) -> dict[K, int]:
    """Returns ω = w·max(1/16, 2^(-ν/ν̄)) of siblings, in steps of w/2^20; ν = U/w, ν̄ = ΣU/Σw.

    `plain` are those that have demand or use, with their weights; debts are in any one unit. Plain weights (in the same
    steps) where nobody owes. Never zero; falls with an account's own debt, rises with its own weight.
    """
    owed, weight = sum(debts[name] for name in plain), sum(plain.values())
    if owed == 0:
        return {name: each * WEIGHT_STEPS for name, each in plain.items()}
    return {name: each * _steps(debts[name] * weight, owed * each) for name, each in plain.items()}


def _steps(numerator: int, denominator: int) -> int:
    """Returns 2^20 · 2^(-numerator / denominator), rounded down, at least the floor."""
    whole, rest = divmod(numerator, denominator)
    if whole >= 4:
        return _FLOOR_STEPS
    if rest == 0:
        return WEIGHT_STEPS >> whole
    return max(_FLOOR_STEPS, power_of_two(denominator - rest, denominator) >> (96 - 20 + whole + 1))
