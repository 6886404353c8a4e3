"""The examples of docs/ledger.md and docs/prices.md are what the code computes."""

import re
from pathlib import Path

from metering.core.civil import local_text
from metering.core.quantity import AMOUNT_DECIMALS, decimal_text, fixed
from metering.core.rating import Totals, rate
from metering.core.tariff import parse_price_book
from metering.core.usage import Holding, segments_of, slices_of, stretches_of
from scheduler.clock import parse_utc_ms
from scheduler.core.model import AccountId, AllocationId, Booking, DeviceId, GpuClass, JobId, Phase
from scheduler.core.occupancy import Evidence
from tests.metering.builders import DAY_MS
from tests.metering.centre import SHANGHAI

DOCS = Path(__file__).parents[2] / "docs"


def tables_of(page: str) -> list[list[dict[str, str]]]:
    """Returns the tables of a page, each a list of rows by column."""
    tables = []
    for block in re.findall(r"(?:^\|.*\n)+", (DOCS / page).read_text("utf-8"), flags=re.MULTILINE):
        rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in block.splitlines()]
        tables.append([dict(zip(rows[0], row, strict=True)) for row in rows[2:]])
    return tables


def test_every_price_file_of_the_prices_page_can_be_read() -> None:
    files = re.findall(r"```toml\n(.*?)```", (DOCS / "prices.md").read_text("utf-8"), flags=re.DOTALL)
    assert [parse_price_book(each).version for each in files] == ["2026-11", "2026-12"]


def test_the_example_of_the_ledger_page_is_what_the_code_computes() -> None:
    *_, occupancy, lines, invoice = tables_of("ledger.md")
    toml, *_ = re.findall(r"```toml\n(.*?)```", (DOCS / "prices.md").read_text("utf-8"), flags=re.DOTALL)
    book = parse_price_book(toml)
    held = [
        Holding(
            DeviceId(row["device"]),
            int(row["lane"]),
            GpuClass("H100-80GB"),
            parse_utc_ms(row["from (UTC)"]),
            parse_utc_ms(row["to (UTC)"]),
            int(row["units"]),
            int(row["units"]),
            Phase(row["phase"]),
            AccountId("acme/vision"),
            JobId(1),
            AllocationId(row["allocation"]),
            1,
            Booking(row["booking"]),
            Evidence.NODE,
        )
        for row in occupancy
    ]
    start_ms = min(holding.from_ms for holding in held)
    stretches = stretches_of(start_ms, start_ms + DAY_MS, SHANGHAI, [book])
    rated = [rate(piece) for segment in segments_of(held) for piece in slices_of(segment, stretches)]
    assert lines == [
        {
            "line_id": line.slice.line_id,
            "start_local": local_text(line.slice.from_ms, SHANGHAI),
            "duration_ms": str(line.slice.to_ms - line.slice.from_ms),
            "gpu_ms": str(line.slice.gpu_ms),
            "gpu_hours": line.slice.charged.hours_text,
            "unit_price": "" if line.price is None else decimal_text(line.price, 2),
            "amount": "" if line.amount_micros is None else fixed(line.amount_micros, AMOUNT_DECIMALS),
        }
        for line in rated
    ]
    totals = Totals()
    for line in rated:
        totals.add(line)
    (made,) = totals.invoices()
    assert invoice == [
        {
            "subtotal": fixed(made.subtotal_micros, AMOUNT_DECIMALS),
            "tax": fixed(made.tax_micros, AMOUNT_DECIMALS),
            "rounding": fixed(made.rounding_micros, AMOUNT_DECIMALS),
            "payable": fixed(made.payable_micros, AMOUNT_DECIMALS),
        }
    ]
