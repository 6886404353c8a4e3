"""Σ `usage` = ledger = native CSV = FOCUS BilledCost before tax and rounding = counters, for centres made at random."""

import csv
from collections import Counter
from decimal import Decimal
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metering.capacity import capacity_of
from metering.core.civil import civil_days
from metering.export import TOTALS_FILE
from metering.ledger_watch import LedgerWatch
from metering.manifest import MANIFEST, Manifest
from metering.statement import OF_INVOICE, StatementFold
from metering.usage_report import GroupBy, Span, totals_of, usage_by
from metering.verify_files import verify_export
from scheduler.core.model import GPU_UNITS, Booking, DeviceId, EndReason, Phase
from scheduler.core.occupancy import OccupancyState
from scheduler.store.database import Database
from scheduler.store.ledger_rows import devices, intervals_of_device
from scheduler.store.readers import Alone
from tests.databases import new_sqlite
from tests.metering.builders import NOON_MS, book
from tests.metering.centre import SHANGHAI, Centre

DEVICES = tuple(DeviceId(f"GPU-{node}-{place}") for node in ("a", "b") for place in (0, 1))
ACCOUNTS = ("acme/vision", "acme/nlp", "globex/nlp")
ENDS = (None, None, EndReason.EXIT_NONZERO, EndReason.PREEMPTED, EndReason.CANCELLED)
USE = {"usage", "minimum", "energy", "credit"}


def lived(database: Database, seed: int) -> tuple[Centre, LedgerWatch]:
    """A centre in which a dozen random jobs started, waited, ran, were stopped or ended, over a day or two."""
    chance = Random(seed)
    centre = Centre(database)
    for account in ACCOUNTS:
        centre.tenant(account)
    centre.node("a")
    centre.node("b")
    prices = {word: f"{chance.randrange(1, 10**8)}e-6" for word in ("burst", "spot", "guaranteed")}
    plain = {word: format(Decimal(price), "f") for word, price in prices.items()}
    centre.publish(book("v1", 0, prices=plain, tax="0.06"))
    watch = LedgerWatch(database)
    watch.look((), centre.now_ms)
    for number in range(chance.randrange(3, 12)):
        chosen = tuple(chance.sample(DEVICES, chance.choice((1, 1, 2, 4))))
        units = chance.choice((GPU_UNITS, GPU_UNITS, GPU_UNITS // 7))
        made = centre.start(
            *(chosen[:1] if units < GPU_UNITS else chosen),
            account=chance.choice(ACCOUNTS),
            user=chance.choice(("mei", "jon")),
            booking=chance.choice(tuple(Booking)),
            units=units,
            name=f"job-{number}",
        )
        centre.clock.advance(milliseconds=chance.randrange(0, 90_000))
        centre.running(made)
        centre.clock.advance(milliseconds=chance.randrange(1, 9 * 3_600_000))
        if chance.random() < 0.5:
            watch.look((), centre.now_ms)
        reason = chance.choice(ENDS)
        if reason is not None and reason is not EndReason.EXIT_NONZERO:
            centre.stopping(made, reason)
            centre.clock.advance(milliseconds=chance.randrange(1, 30_000))
        centre.end(made, reason)
        centre.clock.advance(milliseconds=chance.randrange(0, 3_600_000))
    centre.running(centre.start(DEVICES[0]))  # and one goes on
    centre.clock.advance(milliseconds=chance.randrange(1, 3_600_000))
    watch.look((), centre.now_ms)
    return centre, watch


def rows_of(folder: Path, pattern: str) -> list[dict[str, str]]:
    (path,) = folder.glob(pattern)
    with path.open(encoding="utf-8-sig", newline="") as stream:
        return list(csv.DictReader(stream))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
def test_usage_ledger_csv_focus_statements_and_counters_say_the_same(seed: int) -> None:
    with TemporaryDirectory() as scratch:
        database = Database.open(new_sqlite(Path(scratch) / "turnstile.db"))
        try:
            centre, watch = lived(database, seed)
            folder = Path(scratch) / "out"
            centre.export(folder)
            _compare(centre, watch, folder)
        finally:
            database.dispose()


def _compare(centre: Centre, watch: LedgerWatch, folder: Path) -> None:
    lines = rows_of(folder, "usage_lines_*")
    use = [row for row in lines if row["line_type"] in USE]
    focus = rows_of(folder, "focus_*")
    manifest = Manifest.from_json((folder / MANIFEST).read_text("utf-8"))
    report = verify_export(folder)
    assert report.is_proved, report.findings

    # Money: usage by any key = native lines = FOCUS = statements = what invoices have before tax.
    amount = sum(Decimal(row["amount"] or 0) for row in use)
    with centre.read() as connection:
        span = Span(NOON_MS, centre.now_ms, SHANGHAI)
        for by in GroupBy:
            totals = totals_of(usage_by(connection, span, by))
            assert sum(Decimal(each.amount_micros).scaleb(-6) for each in totals) == amount
            assert sum(Decimal(each.gpu_hours_nano).scaleb(-9) for each in totals) == sum(
                Decimal(row["gpu_hours"] or 0) for row in use if row["line_type"] not in {"energy", "credit"}
            )
    assert amount == sum(
        Decimal(row["BilledCost"])
        for row in focus
        if row["ChargeCategory"] in {"Usage", "Credit"} and not _is_rounding(row)
    )
    assert amount == sum(Decimal(row["subtotal"]) for row in rows_of(folder, TOTALS_FILE))
    folds = {tenant: StatementFold(tenant) for tenant in {row["tenant_id"] for row in lines}}
    for row in lines:
        folds[row["tenant_id"]].add(row)
    told = sum(
        sums.micros
        for fold in folds.values()
        for section in fold.sections
        for kind, sums in section.kinds.items()
        if kind not in OF_INVOICE
    )
    assert Decimal(told).scaleb(-6) == amount
    assert sum(Decimal(row["BilledCost"]) for row in focus) == sum(
        Decimal(row["payable"]) for row in rows_of(folder, TOTALS_FILE)
    )

    # Time: what lines hold = what the ledger's devices were billed for = the counters less what was starting.
    held = int(manifest.sums["held_unit_ms"])
    by_phase: Counter[Phase] = Counter()
    with centre.read() as connection:
        days = civil_days(NOON_MS, centre.now_ms, SHANGHAI)
        assert held == sum(state.billed_unit_ms for state in capacity_of(Alone(connection), days))
        for device in devices(connection):
            for interval in intervals_of_device(connection, device.id, 0, centre.now_ms):
                if interval.occupant.state is OccupancyState.ALLOCATED and interval.occupant.phase is not None:
                    by_phase[interval.occupant.phase] += interval.unit_ms
    assert sum(watch.use_unit_ms.values()) == held + by_phase[Phase.STARTING]


def _is_rounding(row: dict[str, str]) -> bool:
    return "/rounding" in row["x_LedgerEntryId"] or row["x_LedgerEntryId"].startswith("rounding/")
