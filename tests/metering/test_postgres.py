"""PostgreSQL tells the same story as SQLite, to the byte."""

from pathlib import Path

import pytest
import sqlalchemy as sa

from metering.ledger import GpuWindow, write_windows
from metering.tables import PRICE_BOOK
from metering.verify import verify, verify_export
from scheduler.core.model import GPU_UNITS, DeviceId, EndReason
from scheduler.store.database import Database, StoreError
from scheduler.store.tables import ALLOCATION
from tests.metering.builders import HOUR_MS, NOON_MS, book
from tests.metering.centre import Centre

A0, A1, B0 = DeviceId("GPU-a-0"), DeviceId("GPU-a-1"), DeviceId("GPU-b-0")


def live_through(centre: Centre) -> None:
    """The same life on any database."""
    centre.publish(book(tax="0.06"))
    centre.run(A0, B0, hours=14)
    centre.run(A0, hours=1, reason=EndReason.PREEMPTED)
    share = centre.start(A1, units=GPU_UNITS // 7, account="globex/nlp")
    centre.running(share)
    centre.clock.advance(hours=3)
    with centre.database.write() as connection:
        windows = [GpuWindow(A0, NOON_MS, NOON_MS + HOUR_MS, HOUR_MS, 900_000, energy_millijoules=10**9)]
        assert write_windows(connection, windows) == 1
        assert write_windows(connection, windows) == 0


@pytest.mark.postgres
def test_both_databases_export_and_prove_the_same(centre: Centre, postgres: str, tmp_path: Path) -> None:
    live_through(centre)
    database = Database.open(postgres)
    try:
        other = Centre(database)
        other.tenant("acme/vision", "视觉组")
        other.tenant("globex/nlp")
        other.node("a")
        other.node("b")
        live_through(other)
        centre.export(tmp_path / "sqlite")
        other.export(tmp_path / "postgres")
        names = [_renamed(one, tmp_path / place) for one, place in ((centre, "sqlite"), (other, "postgres"))]
        assert names[0] == names[1]
        with other.read() as connection:
            assert verify(connection, other.now_ms).is_proved
            assert verify_export(tmp_path / "postgres", connection).is_proved
        for statement in (
            PRICE_BOOK.update().values(currency="USD"),
            PRICE_BOOK.delete(),
            sa.text("TRUNCATE price_book"),
        ):
            with pytest.raises(StoreError, match="append-only"), database.write() as connection:
                connection.execute(statement)
    finally:
        database.dispose()


def _renamed(centre: Centre, folder: Path) -> dict[str, list[str]]:
    """Returns the sorted lines of the CSV files with allocations by their job: ids, and so their order, are chance."""
    with centre.read() as connection:
        ids = (
            connection.execute(sa.select(ALLOCATION.c.id).order_by(ALLOCATION.c.job_id, ALLOCATION.c.attempt))
            .scalars()
            .all()
        )
    files = {}
    for path in sorted(folder.glob("*.csv")):
        text = path.read_text("utf-8-sig")
        for number, allocation in enumerate(ids):
            text = text.replace(allocation, f"allocation-{number}")
        files[path.name] = sorted(text.splitlines())
    return files
