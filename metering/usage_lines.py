"""The native usage lines: the ledger's allocations, rated and written as rows of text.

One row a segment × civil day × price book, then a tax and a rounding row per invoice, so that the amounts of a file add
up to what is payable. The columns are a contract with billing departments: docs/ledger.md says what each one means.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import tzinfo

from sqlalchemy.engine import Connection

from metering.core.civil import local_text, utc_text
from metering.core.quantity import AMOUNT_DECIMALS, decimal_text, divide, fixed
from metering.core.rating import Invoice, Line, rate
from metering.core.usage import (
    Holding,
    Segment,
    Stretch,
    UnevenSegment,
    holding_of,
    open_holding_of,
    segments_of,
    slices_of,
)
from metering.csv_files import harmless
from metering.ledger import sum_windows
from metering.plain_gangs import plain_gang
from metering.witness import has_witnesses, seen_devices
from scheduler.core.model import GPU_UNITS, AccountId, DeviceId, tenant_of
from scheduler.store.account_names import AccountNames
from scheduler.store.database import StoreCorrupt
from scheduler.store.ledger_rows import LedgerAllocation, allocations

USAGE_COLUMNS = (
    *("line_id", "period", "period_status", "tenant_id", "tenant_name", "project_id", "project_name", "user_id"),
    *("job_id", "job_name", "segment_no", "end_reason", "gpu_model", "gpu_share", "gpu_count", "priority_class"),
    *("start_local", "end_local", "start_utc", "duration_ms", "gpu_ms", "gpu_hours", "sku", "price_book"),
    *("unit_price", "list_amount", "discount_amount", "amount", "currency", "tax_rate", "line_type"),
    *("corrects_line_id", "package_id", "gpu_util_avg_pct", "energy_kwh", "evidence", "incident_id"),
)
PERIOD_STATUS = "open"
"""Of lines until they are sealed with their period: the export writes what they are."""
ENERGY_COVERAGE_PERCENT = 95
"""Energy is told only when windows cover this much of a line's GPU time: a sum with holes would read as a saving."""
_NO_SKU = re.compile(r"[^a-z0-9.-]+")


@dataclass(frozen=True, slots=True)
class RatedLine:
    """A line with the names that go beside it."""

    line: Line
    allocation: LedgerAllocation
    end_word: str
    seen: tuple[DeviceId, ...] = ()
    """The GPUs that agents saw in its hands, where the platform chose them."""

    @property
    def gpus(self) -> tuple[DeviceId, ...]:
        """The GPUs that it is known to have held; slots of nodes where no agent said which GPUs those were."""
        return self.seen or self.line.slice.segment.devices


@dataclass(frozen=True, slots=True)
class LineContext:
    """What all lines of an export share."""

    zone: tzinfo
    names: AccountNames
    """Lines carry the names of their own time, so that renaming an account changes no past export."""
    has_windows: bool
    """GPU windows exist in the range; without any, none is looked for."""


def rated_lines(
    connection: Connection, stretches: Sequence[Stretch], tenant: AccountId | None = None
) -> Iterator[RatedLine]:
    """Yields the lines of the stretches' range by allocation, segment and time. Memory does not grow with their number.

    Raises StoreCorrupt when the ledger contradicts itself.
    """
    from_ms, to_ms = stretches[0].from_ms, stretches[-1].to_ms
    is_seen = has_witnesses(connection, from_ms, to_ms)
    for allocation in allocations(connection, from_ms, to_ms, tenant):
        for segment in _segments(allocation, to_ms):
            seen = seen_devices(connection, segment.allocation, segment.from_ms, segment.to_ms) if is_seen else ()
            for piece in slices_of(segment, stretches):
                word = piece.end_word(allocation.ended_ms, allocation.end_reason)
                yield RatedLine(rate(piece), allocation, word, seen)


def _segments(allocation: LedgerAllocation, to_ms: int) -> list[Segment]:
    gang = plain_gang(allocation)
    if gang is not None:
        return gang.segments
    try:
        return segments_of(_holdings(allocation, to_ms))
    except UnevenSegment as error:
        raise StoreCorrupt(f"{error}; run the ledger's verification") from error


def _holdings(allocation: LedgerAllocation, to_ms: int) -> Iterator[Holding]:
    closed = (holding_of(interval) for interval in allocation.intervals)
    still_open = (open_holding_of(cursor, to_ms) for cursor in allocation.cursors)
    yield from (holding for holding in (*closed, *still_open) if holding is not None)


def usage_row(connection: Connection, rated: RatedLine, context: LineContext) -> list[str]:
    """Returns the cells of a usage line, in the order of USAGE_COLUMNS."""
    line, piece, segment = rated.line, rated.line.slice, rated.line.slice.segment
    tenant = tenant_of(segment.holder)
    amount = "" if line.amount_micros is None else fixed(line.amount_micros, AMOUNT_DECIMALS)
    use, energy = _measured(connection, rated, context)
    return [
        harmless(piece.line_id),
        f"{piece.stretch.day:%Y-%m}",
        PERIOD_STATUS,
        harmless(tenant),
        harmless(context.names.at(tenant, piece.from_ms)),
        harmless(segment.holder),
        harmless(context.names.at(segment.holder, piece.from_ms)),
        harmless(rated.allocation.user),
        rated.allocation.job_label,
        harmless(rated.allocation.job_name or ""),
        str(segment.number),
        rated.end_word,
        harmless(segment.gpu_class),
        gpu_share(segment.units, len(segment.devices)),
        str(len(segment.devices)),
        segment.booking.value,
        local_text(piece.from_ms, context.zone),
        local_text(piece.to_ms, context.zone),
        utc_text(piece.from_ms),
        str(piece.to_ms - piece.from_ms),
        str(piece.gpu_ms),
        piece.charged.hours_text,
        sku(segment.gpu_class, is_share=segment.is_share),
        harmless(line.book.version) if line.book else "",
        decimal_text(line.price, 2) if line.price is not None else "",
        amount,
        fixed(0, AMOUNT_DECIMALS) if amount else "",
        amount,
        line.book.currency if line.book else "",
        decimal_text(line.book.tax_rate, 2) if line.book else "",
        "usage",
        "",
        "",
        use,
        energy,
        piece.evidence(rated.end_word).value,
        "",
    ]


def invoice_rows(invoice: Invoice, context: LineContext, range_ms: tuple[int, int], period: str) -> list[list[str]]:
    """Returns the tax row and the rounding row of an invoice; a row of nothing is left out."""
    rates = invoice.tax_rates
    rate_text = decimal_text(rates[0], 2) if len(rates) == 1 else ""
    rows = []
    for kind, micros, tax_rate in (
        ("tax", invoice.tax_micros, rate_text),
        ("rounding", invoice.rounding_micros, ""),
    ):
        if micros == 0:
            continue
        cells = dict.fromkeys(USAGE_COLUMNS, "")
        cells |= {
            "line_id": harmless(f"{kind}/{invoice.tenant}/{invoice.currency}/{range_ms[0]}-{range_ms[1]}"),
            "period": period,
            "period_status": PERIOD_STATUS,
            "tenant_id": harmless(invoice.tenant),
            "tenant_name": harmless(context.names.last(invoice.tenant)),
            "start_local": local_text(range_ms[0], context.zone),
            "end_local": local_text(range_ms[1], context.zone),
            "start_utc": utc_text(range_ms[0]),
            "list_amount": fixed(micros, AMOUNT_DECIMALS),
            "discount_amount": fixed(0, AMOUNT_DECIMALS),
            "amount": fixed(micros, AMOUNT_DECIMALS),
            "currency": invoice.currency,
            "tax_rate": tax_rate,
            "line_type": kind,
            "evidence": "controller",
        }
        rows.append(list(cells.values()))
    return rows


def sku(gpu_class: str, *, is_share: bool) -> str:
    """Returns what is sold, as in `gpu.h100-80gb.whole`; the same whatever it costs and whoever buys it."""
    return f"gpu.{_NO_SKU.sub('-', gpu_class.lower()).strip('-')}.{'share' if is_share else 'whole'}"


def gpu_share(units: int, devices: int) -> str:
    """Returns the part of a GPU that is held of each device: 1, 0.5, or nine decimals where it has no end."""
    scaled = divide(units * 10**9, GPU_UNITS * devices)
    digits = fixed(scaled, 9).rstrip("0")
    return digits.rstrip(".")


def _measured(connection: Connection, rated: RatedLine, context: LineContext) -> tuple[str, str]:
    """Returns mean utilisation in per cent and energy in kWh as text; empty where they are not known."""
    piece = rated.line.slice
    # What several tenants did on one GPU cannot be told apart by its counters.
    if not context.has_windows or piece.segment.is_share:
        return "", ""
    sums = sum_windows(connection, rated.gpus, piece.from_ms, piece.to_ms)
    use = fixed(divide(sums.utilization_ppm_ms, sums.utilization_ms * 100), 2) if sums.utilization_ms else ""
    needed_ms = (piece.to_ms - piece.from_ms) * len(piece.segment.devices) * ENERGY_COVERAGE_PERCENT
    is_known = sums.energy_ms > 0 and sums.energy_ms * 100 >= needed_ms
    return use, fixed(divide(sums.energy_millijoules, 3600), AMOUNT_DECIMALS) if is_known else ""
