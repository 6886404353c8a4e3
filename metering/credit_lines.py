"""Credits as lines: beside each usage line of which something is given back, one with what, and the incident's id."""

from dataclasses import dataclass
from datetime import tzinfo

from metering.core.civil import local_text, utc_text
from metering.core.credits import Fault, credit_micros, credited_span
from metering.core.quantity import AMOUNT_DECIMALS, GPU_HOURS_DECIMALS, fixed
from metering.core.who_pays import WhoPays
from metering.csv_files import harmless
from metering.usage_columns import USAGE_COLUMNS
from metering.usage_lines import RatedLine

CREDIT = "credit/"
"""What the id of a credit line begins with, before that of the usage line."""


@dataclass(frozen=True, slots=True)
class Credit:
    """What is given back of one line."""

    incident: str
    from_ms: int
    to_ms: int
    amount_micros: int
    """More than 0."""


def credit_of(rated: RatedLine, table: WhoPays) -> Credit | None:
    """Returns what is given back of a usage line; None for nothing."""
    allocation, piece, amount = rated.allocation, rated.line.slice, rated.line.amount_micros
    if allocation.end_reason not in table.credits or not amount:
        return None
    if allocation.started_ms is None or allocation.ended_ms is None:
        return None
    fault = Fault(
        allocation.id,
        allocation.end_reason,
        allocation.started_ms,
        allocation.ended_ms,
        allocation.checkpointed_ms,
        allocation.incident,
    )
    span = credited_span(fault, table)
    if span is None:
        return None
    if piece.topped_ms:  # a least charge for an end that the centre is at fault for
        return Credit(fault.incident, piece.from_ms, piece.to_ms, amount)
    micros = credit_micros(amount, (piece.from_ms, piece.to_ms), span)
    if micros == 0:
        return None
    return Credit(fault.incident, max(piece.from_ms, span[0]), min(piece.to_ms, span[1]), micros)


def credit_cells(credit: Credit, usage: list[str], zone: tzinfo) -> list[str]:
    """Returns the native row of a credit, from that of its usage line."""
    cells = dict(zip(USAGE_COLUMNS, usage, strict=True))
    less = fixed(-credit.amount_micros, AMOUNT_DECIMALS)
    if cells["effective_amount"]:
        cells["effective_amount"] = less
    cells |= {
        "line_id": f"{CREDIT}{cells['line_id']}",
        "line_type": "credit",
        "start_local": local_text(credit.from_ms, zone),
        "end_local": local_text(credit.to_ms, zone),
        "start_utc": utc_text(credit.from_ms),
        "duration_ms": str(credit.to_ms - credit.from_ms),
        "gpu_ms": "0",
        "gpu_hours": fixed(0, GPU_HOURS_DECIMALS),
        "unit_price": "",
        "list_price": "",
        "list_amount": less,
        "discount_amount": fixed(0, AMOUNT_DECIMALS),
        "amount": less,
        "gpu_util_avg_pct": "",
        "energy_kwh": "",
        "incident_id": harmless(credit.incident),
    }
    return [cells[column] for column in USAGE_COLUMNS]
