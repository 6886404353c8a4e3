"""What was only observed is forgotten when it is old, in parts, and never what an unsealed period may still show."""

import pytest
import sqlalchemy as sa

from metering.ledger import GpuWindow, write_windows
from metering.periods import known_period
from metering.pruning import PruneObserved
from metering.tables import DEVICE_WITNESS, GPU_WINDOW
from metering.witness import Holding, write_witnesses
from scheduler.core.model import AllocationId, DeviceId, NodeName
from scheduler.store.database import Database
from scheduler.store.history_tables import NODE_EVENT
from scheduler.store.node_events import NodeEvent, write_node_events
from tests.metering.builders import DAY_MS, HOUR_MS
from tests.metering.centre import Centre
from tests.metering.test_periods import TERMS, close

TABLES = (GPU_WINDOW, DEVICE_WITNESS, NODE_EVENT)


def observe(centre: Centre) -> None:
    """A window, a sighting and an event of now."""
    at_ms = centre.now_ms
    with centre.database.write() as connection:
        write_windows(connection, [GpuWindow(DeviceId("GPU-a-0"), at_ms, at_ms + 60_000, 60_000)])
        seen = Holding("GPU-a-0", AllocationId(f"A{at_ms}"), at_ms, at_ms + 60_000, "kubelet")
        write_witnesses(connection, NodeName("a"), [seen])
        write_node_events(connection, [NodeEvent(NodeName("a"), at_ms, "xid", "31")])


def left(centre: Centre) -> list[int]:
    with centre.read() as connection:
        return [connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one() for table in TABLES]


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def test_what_was_observed_long_ago_is_forgotten_but_not_before_its_period_is_closed(
    request: pytest.FixtureRequest, kind: str
) -> None:
    is_sqlite = kind == "sqlite"
    database = request.getfixturevalue("database") if is_sqlite else Database.open(request.getfixturevalue("postgres"))
    centre = Centre(database)
    centre.tenant("acme/vision")
    (device, _) = centre.node("a")
    centre.publish()
    centre.run(device)
    for _ in range(3):
        observe(centre)
        centre.clock.advance(hours=1)
    prune = PruneObserved(2 * DAY_MS, TERMS.zone, most_rows=2)
    assert centre.carry_out(prune) == 0, "nothing is old"
    centre.clock.advance(hours=24 * 5)
    observe(centre)
    assert centre.carry_out(prune) == 0, "October is not sealed, and its export shows use by them"
    close(centre)
    assert [centre.carry_out(prune) for _ in range(3)] == [6, 3, 0], "in parts"
    assert left(centre) == [1, 1, 1]
    with centre.read() as connection:
        november = known_period(connection, "2026-11", TERMS.zone, centre.now_ms).period
    assert november.from_ms < centre.now_ms - HOUR_MS
    centre.clock.advance(hours=24 * 20)
    assert centre.carry_out(prune) == 0, "November is open"
    if not is_sqlite:
        database.dispose()
