"""A table of our figures beside references and aims."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of a yardstick. At most one of the three aims is given."""

    name: str
    ours: float
    reference: str
    at_most: float | None = None
    at_least: float | None = None
    equal: float | None = None
    """To as many decimals as it is written with."""

    @property
    def aim(self) -> str:
        """Returns the aim in words; empty where there is none."""
        for sign, value in (("≤", self.at_most), ("≥", self.at_least), ("=", self.equal)):
            if value is not None:
                return f"{sign} {number(value)}"
        return ""

    @property
    def is_met(self) -> bool:
        """Tells whether the aim is reached; True where there is none."""
        return (
            (self.at_most is None or self.ours <= self.at_most)
            and (self.at_least is None or self.ours >= self.at_least)
            and (self.equal is None or round(self.ours, 2) == self.equal)
        )


def number(value: float) -> str:
    """Returns a figure with as many decimals as mean something."""
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:,.2f}"


def show(figures: Iterable[Figure]) -> int:
    """Prints the table; returns how many aims are missed."""
    missed = 0
    print(f"  {'':42}{'ours':>10}  {'aim':<10}{'':8}reference")
    for each in figures:
        verdict = "" if not each.aim else "met" if each.is_met else "MISSED"
        missed += not each.is_met
        print(f"  {each.name:42}{number(each.ours):>10}  {each.aim:<10}{verdict:8}{each.reference}".rstrip())
    return missed
