"""The division of what there is among those who want it: exact weighted max-min (water-filling) in integers.

Each account gets what it wants, or a part in proportion to its weight, whichever is less; what one leaves goes to the
others. Source of the notion: Bertsekas and Gallager, Data Networks, 2nd ed., section 6.5.2 (max-min fairness).
"""

from collections.abc import Mapping
from fractions import Fraction
from typing import TypeVar

K = TypeVar("K", bound=str)


def water_fill(total: int, weights: Mapping[K, Fraction], caps: Mapping[K, int]) -> dict[K, Fraction]:
    """Returns each one's exact part of `total`: at most its cap, in proportion to weights where caps don't bind.

    The parts sum to min(total, Σ caps). Weights must be positive, caps and total not negative; O(n log n).
    """
    assert total >= 0, "there is no negative amount to divide"
    parts: dict[K, Fraction] = {}
    left = Fraction(total)
    weight_left = sum((weights[name] for name in caps), Fraction(0))
    for name in sorted(caps, key=lambda each: (Fraction(caps[each]) / weights[each], each)):
        part = min(Fraction(caps[name]), left * weights[name] / weight_left) if left else Fraction(0)
        parts[name] = part
        left -= part
        weight_left -= weights[name]
    return parts


def whole_parts(parts: Mapping[K, Fraction], unit: int = 1) -> dict[K, int]:
    """Rounds parts to whole multiples of `unit` by largest remainder, ties by name; their sum is kept.

    Where the sum itself is no multiple of `unit`, the last one in line gets the fraction of a unit that is left.
    """
    whole = {name: int(part // unit) * unit for name, part in parts.items()}
    left = int(sum(parts.values(), Fraction(0))) - sum(whole.values())
    for name in sorted(parts, key=lambda each: (whole[each] - parts[each], each)):
        step = min(unit, left)
        whole[name] += step
        left -= step
    return whole
