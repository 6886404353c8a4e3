"""GPU time and money as exact values that refuse strangers. No float enters or leaves this module.

`GpuMs` is what a GPU's time is counted in: capacity units times milliseconds, an integer, so that shares and MIG
instances add up as exactly as whole GPUs. `Money` is a rational number of one currency. Adding one to the other, to a
bare number, or to another currency raises TypeError or CurrencyMismatch. Both are turned into decimal digits only by
the functions at the end, each of which names how it rounds.

    ValueError
      BadDecimal         a text is not a plain, finite, non-negative decimal number
      InexactGpuMs       a share's time is not a whole number of GPU-milliseconds
      CurrencyMismatch   two currencies met in one sum
"""

import re
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction
from typing import Self

from scheduler.core.model import GPU_UNITS

MS_PER_HOUR = 3_600_000
UNIT_MS_PER_GPU_HOUR = GPU_UNITS * MS_PER_HOUR
GPU_HOURS_DECIMALS = 9  # PricingQuantity of the export: a GPU-millisecond is 2.8e-7 GPU-hours
AMOUNT_DECIMALS = 6  # FOCUS asks for at least six decimals of a cost

_PLAIN_DECIMAL = re.compile(r"(0|[1-9][0-9]{0,11})(\.[0-9]{1,9})?")
_CURRENCY = re.compile(r"[A-Z]{3}")
_ISO_4217 = """
AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BHD BIF BMD BND BOB BOV BRL BSD BTN BWP BYN BZD CAD CDF CHE
CHF CHW CLF CLP CNY COP COU CRC CUP CVE CZK DJF DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GNF
GTQ GYD HKD HNL HTG HUF IDR ILS INR IQD IRR ISK JMD JOD JPY KES KGS KHR KMF KPW KRW KWD KYD KZT LAK LBP LKR
LRD LSL LYD MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MXV MYR MZN NAD NGN NIO NOK NPR NZD OMR PAB PEN
PGK PHP PKR PLN PYG QAR RON RSD RUB RWF SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS
TMT TND TOP TRY TTD TWD TZS UAH UGX USD USN UYI UYU UYW UZS VED VES VND VUV WST XAF XAG XAU XBA XBB XBC XBD
XCD XCG XDR XOF XPD XPF XPT XSU XTS XUA XXX YER ZAR ZMW ZWG
"""
CURRENCIES = frozenset(_ISO_4217.split())
"""ISO 4217, list one of 2025."""
_MINOR_DIGITS = {
    **dict.fromkeys(("BIF", "CLP", "DJF", "GNF", "ISK", "JPY", "KMF", "KRW", "PYG", "RWF", "UGX", "VND", "VUV"), 0),
    **dict.fromkeys(("XAF", "XOF", "XPF"), 0),
    **dict.fromkeys(("BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"), 3),
}
"""Digits of the minor unit where they are not two (ISO 4217, table A.1)."""


class BadDecimal(ValueError):
    """A text is not a plain decimal number; the message says what it is and what would be right."""


class InexactGpuMs(ValueError):
    """GPU time of a share that is no whole number of GPU-milliseconds was asked for as one."""


class CurrencyMismatch(ValueError):
    """Two currencies met in one sum."""


class Rounding(StrEnum):
    """What happens to the digits that are cut off. `up` is away from zero, `down` towards it."""

    HALF_EVEN = "half_even"
    HALF_UP = "half_up"
    UP = "up"
    DOWN = "down"


def divide(numerator: int, denominator: int, mode: Rounding = Rounding.HALF_EVEN) -> int:
    """Returns numerator / denominator as an integer, rounded by `mode`. `denominator` is positive."""
    assert denominator > 0, "a denominator is a scale, which is positive"
    quotient, rest = divmod(abs(numerator), denominator)
    if rest:
        twice = 2 * rest
        if mode is Rounding.HALF_EVEN:  # of every line: without the table
            quotient += twice > denominator or (twice == denominator and quotient % 2 == 1)
            return quotient if numerator >= 0 else -quotient
        goes_up = {
            Rounding.HALF_UP: twice >= denominator,
            Rounding.UP: True,
            Rounding.DOWN: False,
        }[mode]
        quotient += goes_up
    return quotient if numerator >= 0 else -quotient


def fixed(scaled: int, decimals: int) -> str:
    """Returns an integer of 10**-decimals as digits: fixed(1234500, 6) is `1.234500`. Never an exponent."""
    if decimals == 0:
        return str(scaled)
    digits = str(abs(scaled)).zfill(decimals + 1)
    sign = "-" if scaled < 0 else ""
    return f"{sign}{digits[:-decimals]}.{digits[-decimals:]}"


def parse_decimal(text: str) -> Decimal:
    """Returns the number that a person wrote, exactly: up to 12 digits, a point, up to 9 digits.

    Raises BadDecimal for anything else: a sign, an exponent, NaN, Infinity, separators, digits of other scripts.
    """
    if not _PLAIN_DECIMAL.fullmatch(text):
        raise BadDecimal(
            f"{text[:40]!r} is not a plain decimal number of at most 12 digits before and 9 after the point,"
            " such as 12.50 (no sign, exponent, separator, NaN or Infinity)"
        )
    return Decimal(text)


def decimal_text(number: Decimal, least_decimals: int = 0) -> str:
    """Returns a finite decimal without exponent and without trailing zeros beyond `least_decimals`."""
    assert number.is_finite(), "numbers are checked where they come in"
    digits = format(number, "f")
    whole, _, part = digits.partition(".")
    part = part.rstrip("0").ljust(least_decimals, "0")
    return f"{whole}.{part}" if part else whole


def is_currency(code: str) -> bool:
    """Says whether a text has the form of an ISO 4217 code."""
    return bool(_CURRENCY.fullmatch(code))


def minor_unit(currency: str) -> Decimal:
    """Returns the smallest amount that is paid in a currency, 0.01 for most."""
    return Decimal(1).scaleb(-_MINOR_DIGITS.get(currency, 2))


@dataclass(frozen=True, slots=True, order=True)
class GpuMs:
    """GPU time: `unit_ms` is capacity units × milliseconds, 12,600 units being one GPU. Exact for every share."""

    unit_ms: int

    def __post_init__(self) -> None:
        if type(self.unit_ms) is not int:
            raise TypeError(f"GPU time is counted in whole unit-milliseconds, not {type(self.unit_ms).__name__}")

    @classmethod
    def held(cls, units: int, from_ms: int, to_ms: int) -> Self:
        """Returns the time of `units` capacity units over the half-open interval."""
        return cls(units * (to_ms - from_ms))

    def __add__(self, other: object) -> "GpuMs":
        return GpuMs(self.unit_ms + other.unit_ms) if isinstance(other, GpuMs) else NotImplemented

    def __sub__(self, other: object) -> "GpuMs":
        return GpuMs(self.unit_ms - other.unit_ms) if isinstance(other, GpuMs) else NotImplemented

    @property
    def exact_ms(self) -> Fraction:
        """GPU-milliseconds as a rational number."""
        return Fraction(self.unit_ms, GPU_UNITS)

    @property
    def whole_ms(self) -> int:
        """GPU-milliseconds as an integer. Raises InexactGpuMs for a share whose time is not whole."""
        whole, rest = divmod(self.unit_ms, GPU_UNITS)
        if rest:
            raise InexactGpuMs(f"{self.unit_ms} unit-milliseconds are {whole} GPU-milliseconds and {rest}/{GPU_UNITS}")
        return whole

    @property
    def exact_hours(self) -> Fraction:
        """GPU-hours as a rational number."""
        return Fraction(self.unit_ms, UNIT_MS_PER_GPU_HOUR)

    @property
    def hours_text(self) -> str:
        """GPU-hours with nine decimals, rounded half to even."""
        return hours_text(self.unit_ms)


def hours_text(unit_ms: int) -> str:
    """Returns unit-milliseconds as GPU-hours with nine decimals, rounded half to even."""
    return fixed(divide(unit_ms * 10**GPU_HOURS_DECIMALS, UNIT_MS_PER_GPU_HOUR), GPU_HOURS_DECIMALS)


def gpu_ms_between(units: int, from_ms: int, to_ms: int) -> int:
    """Returns the integer GPU-milliseconds of `units` over `[from_ms, to_ms)`, such that splitting conserves the sum.

    The rule for shares: ⌊units · to / 12600⌋ − ⌊units · from / 12600⌋, times counted from 1970. For whole GPUs that is
    the exact product; for a share it is at most one millisecond from it, and however an interval is cut, the pieces
    add up to the whole, because each cut is rounded once and used on both of its sides.
    """
    return units * to_ms // GPU_UNITS - units * from_ms // GPU_UNITS


@dataclass(frozen=True, slots=True)
class Money:
    """An exact amount of one currency. Made from int, Decimal or Fraction; a float is refused."""

    amount: Fraction
    currency: str

    def __post_init__(self) -> None:
        if type(self.amount) is not Fraction:
            raise TypeError(f"an amount of money is a Fraction (see Money.of), not {type(self.amount).__name__}")
        if not is_currency(self.currency):
            raise ValueError(f"{self.currency!r} is not a currency code of three capital letters, such as CNY")

    @classmethod
    def of(cls, amount: int | Decimal | Fraction, currency: str) -> Self:
        """Returns the exact amount. Raises TypeError for a float or bool, BadDecimal for NaN and Infinity."""
        if type(amount) not in {int, Decimal, Fraction}:
            raise TypeError(f"an amount of money is an int, Decimal or Fraction, not {type(amount).__name__}")
        if isinstance(amount, Decimal) and not amount.is_finite():
            raise BadDecimal(f"{amount} is no amount of money")
        return cls(Fraction(amount), currency)

    def __add__(self, other: object) -> "Money":
        return Money(self.amount + self._same(other), self.currency) if isinstance(other, Money) else NotImplemented

    def __sub__(self, other: object) -> "Money":
        return Money(self.amount - self._same(other), self.currency) if isinstance(other, Money) else NotImplemented

    def __neg__(self) -> "Money":
        return Money(-self.amount, self.currency)

    def __lt__(self, other: object) -> bool:
        return self.amount < self._same(other) if isinstance(other, Money) else NotImplemented

    def _same(self, other: "Money") -> Fraction:
        if other.currency != self.currency:
            raise CurrencyMismatch(f"{self.currency} and {other.currency} do not add up; convert one of them first")
        return other.amount

    def scaled(self, decimals: int, mode: Rounding = Rounding.HALF_EVEN) -> int:
        """Returns the amount as an integer of 10**-decimals."""
        return divide(self.amount.numerator * 10**decimals, self.amount.denominator, mode)

    def text(self, decimals: int = AMOUNT_DECIMALS, mode: Rounding = Rounding.HALF_EVEN) -> str:
        """Returns the amount as digits with so many decimals; half to even unless told otherwise."""
        return fixed(self.scaled(decimals, mode), decimals)

    def rounded_to(self, unit: Decimal, mode: Rounding = Rounding.HALF_EVEN) -> "Money":
        """Returns the nearest multiple of `unit` (0.01, 0.05 …)."""
        step = Fraction(unit)
        share = self.amount / step
        return Money(divide(share.numerator, share.denominator, mode) * step, self.currency)
