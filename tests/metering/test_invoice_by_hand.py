"""docs/invoice-by-hand.md, carried out with the real store: every number of the page is what comes out."""

import csv
import re
from datetime import datetime
from decimal import Decimal
from pathlib import Path

import pytest

from metering.core.civil import local_text
from metering.core.tariff import parse_price_book
from metering.core.volume import Package
from metering.export import TOTALS_FILE
from metering.packages import sell
from metering.usage_report import GroupBy, Span, totals_of, usage_by
from scheduler.core.model import AccountId, AllocationId, DeviceId, GpuClass
from scheduler.core.occupancy import OccupancyState
from scheduler.store.database import Database
from scheduler.store.ledger_rows import devices, intervals_of_device
from tests.metering.centre import SHANGHAI, Centre
from tests.metering.test_docs import DOCS, tables_of

PAGE = "invoice-by-hand.md"


def moment(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp() * 1000)


@pytest.fixture
def carried_out(database: Database) -> tuple[Centre, dict[AllocationId, str]]:
    """The page's jobs on a centre that lives from 1 November: its allocations by the page's names."""
    occupancy = tables_of(PAGE)[0]
    (toml,) = re.findall(r"```toml\n(.*?)```", (DOCS / PAGE).read_text("utf-8"), flags=re.DOTALL)
    centre = Centre(database, moment("2026-11-01T00:00:00+08:00"))
    centre.tenant("acme/vision")
    centre.node("a")
    centre.node("b")
    centre.publish(parse_price_book(toml))
    begins = moment("2026-11-02T22:00:00+08:00")
    bought = Package(
        "package/november",
        AccountId("acme"),
        GpuClass("H100"),
        4,
        Decimal("30.00"),
        "CNY",
        begins,
        begins + 30 * 86_400_000,
    )
    with centre.database.write() as connection:
        sell(connection, bought, centre.now_ms)
    names: dict[AllocationId, str] = {}
    for name in ("A1", "A2"):
        rows = [row for row in occupancy if row["allocation"] == name]
        held = tuple(dict.fromkeys(DeviceId(row["device"]) for row in rows))
        centre.clock.move_to(min(moment(row["from (local)"]) for row in rows))
        made = centre.start(*held)
        names[made] = name
        (started,) = {row["from (local)"] for row in rows if row["phase"] == "running"}
        (ended,) = {row["to (local)"] for row in rows if row["phase"] == "running"}
        centre.clock.move_to(moment(started))
        centre.running(made)
        centre.clock.move_to(moment(ended))
        centre.end(made)
    centre.clock.move_to(moment("2026-11-04T00:00:00+08:00"))
    return centre, names


def test_the_pages_occupancy_is_what_the_ledger_holds(carried_out: tuple[Centre, dict[AllocationId, str]]) -> None:
    centre, names = carried_out
    with centre.read() as connection:
        rows = [
            {
                "device": str(interval.device),
                "phase": interval.occupant.phase.value,
                "allocation": names[interval.occupant.allocation],
                "from (local)": local_text(interval.from_ms, SHANGHAI),
                "to (local)": local_text(interval.to_ms, SHANGHAI),
            }
            for device in devices(connection)
            for interval in intervals_of_device(connection, device.id, 0, centre.now_ms)
            if interval.occupant.state is OccupancyState.ALLOCATED
            and interval.occupant.phase is not None
            and interval.occupant.allocation is not None
        ]
    assert sorted(map(sorted, (row.items() for row in rows))) == sorted(
        map(sorted, (row.items() for row in tables_of(PAGE)[0]))
    )


def test_the_pages_lines_and_invoice_are_what_the_export_says(
    carried_out: tuple[Centre, dict[AllocationId, str]], tmp_path: Path
) -> None:
    centre, _ = carried_out
    _, lines, invoice = tables_of(PAGE)
    from_ms = moment("2026-11-01T00:00:00+08:00")
    centre.export(tmp_path / "out", from_ms)
    (path,) = (tmp_path / "out").glob("usage_lines_*.csv")
    with path.open(encoding="utf-8-sig", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["line_type"] not in {"tax", "rounding"}]
    assert sorted(
        ({column: row[column] for column in lines[0]} for row in rows), key=lambda row: sorted(row.items())
    ) == (sorted(lines, key=lambda row: sorted(row.items())))
    with (tmp_path / "out" / TOTALS_FILE).open(encoding="utf-8-sig", newline="") as stream:
        (totals,) = csv.DictReader(stream)
    assert invoice == [{column: totals[column] for column in invoice[0]}]
    with centre.read() as connection:
        (used,) = totals_of(usage_by(connection, Span(from_ms, centre.now_ms, SHANGHAI), GroupBy.PROJECT))
    # `usage` tells what was used; the package was bought, and is on the invoice beside it.
    assert Decimal(used.amount_micros).scaleb(-6) + 30 == Decimal(totals["subtotal"])


def test_the_pages_own_sums_hold_without_any_code_of_ours() -> None:
    _, lines, (invoice,) = tables_of(PAGE)
    subtotal = sum(Decimal(row["amount"]) for row in lines)
    assert subtotal == Decimal(invoice["subtotal"])
    assert subtotal * Decimal("0.06") == Decimal(invoice["tax"])
    total = sum(Decimal(invoice[key]) for key in ("subtotal", "tax", "rounding"))
    assert total == Decimal(invoice["payable"]) == round(Decimal(invoice["subtotal"]) + Decimal(invoice["tax"]), 2)
    for row in lines:
        assert Decimal(row["list_amount"]) - Decimal(row["discount_amount"]) == Decimal(row["amount"])
