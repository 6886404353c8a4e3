"""The smallest valid values of metering: a test says only what it is about."""

from collections.abc import Mapping
from decimal import Decimal

from metering.core.quantity import Rounding
from metering.core.tariff import PriceBook
from metering.core.usage import Holding
from scheduler.core.model import (
    GPU_UNITS,
    AccountId,
    AllocationId,
    Booking,
    DeviceId,
    GpuClass,
    JobId,
    Phase,
)
from scheduler.core.occupancy import Evidence

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
NOON_MS = 1_793_419_200_000
"""2026-10-31T04:00:00Z, noon in Shanghai on the last day of October."""


def holding(
    device: str = "GPU-1",
    from_ms: int = NOON_MS,
    to_ms: int = NOON_MS + HOUR_MS,
    *,
    phase: Phase = Phase.RUNNING,
    units: int = GPU_UNITS,
    charged: int | None = None,
    lane: int = 0,
    allocation: str = "A1",
    segment: int = 1,
    booking: Booking = Booking.BURST,
    holder: str = "acme/vision",
    evidence: Evidence | None = Evidence.NODE,
) -> Holding:
    return Holding(
        device=DeviceId(device),
        lane=lane,
        gpu_class=GpuClass("H100"),
        from_ms=from_ms,
        to_ms=to_ms,
        units=units,
        gpu_eq_units=units if charged is None else charged,
        phase=phase,
        holder=AccountId(holder),
        job=JobId(7),
        allocation=AllocationId(allocation),
        segment=segment,
        booking=booking,
        evidence=evidence,
    )


def book(
    version: str = "2026-10",
    effective_ms: int = 0,
    *,
    prices: Mapping[str, str] | None = None,
    currency: str = "CNY",
    tax: str = "0",
    rounding: Rounding = Rounding.HALF_EVEN,
    unit: str = "0.01",
    gpu_class: str = "H100",
) -> PriceBook:
    by_booking = {"guaranteed": "10", "burst": "18", "spot": "6"} if prices is None else prices
    return PriceBook(
        version=version,
        currency=currency,
        effective_ms=effective_ms,
        prices={(GpuClass(gpu_class), Booking(word)): Decimal(price) for word, price in by_booking.items()},
        tax_rate=Decimal(tax),
        rounding=rounding,
        rounding_unit=Decimal(unit),
    )
