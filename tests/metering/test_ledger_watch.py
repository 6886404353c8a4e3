"""What the ledger's metrics say against what was held, measured, and really stands in the ledger."""

from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

from metering.ledger_watch import BLIND_MS, LedgerCollector, LedgerWatch
from metering.windows import SampleWindow
from scheduler.core.model import GPU_UNITS, DeviceId, EndReason
from scheduler.store.database import Database
from scheduler.store.ledger_rows import ClosedTotal, closed_totals, intervals_of_device
from tests.databases import new_sqlite
from tests.metering.builders import NOON_MS
from tests.metering.centre import Centre

A0, A1 = DeviceId("GPU-a-0"), DeviceId("GPU-a-1")
MINUTE_MS = 60_000


def window(centre: Centre, device: DeviceId, *, idle_ms: int, measured_ms: int = MINUTE_MS) -> SampleWindow:
    """The minute up to now."""
    return SampleWindow(
        uuid=device,
        from_ms=centre.now_ms - MINUTE_MS,
        to_ms=centre.now_ms,
        samples=4,
        measured_ms=measured_ms,
        utilization_percent_ms=0,
        memory_utilization_percent_ms=0,
        utilization_max_percent=0,
        memory_used_max_bytes=0,
        energy_millijoules=0,
        counter_resets=0,
        idle_ms=idle_ms,
        idle_since_ms=None,
    )


def gpu_ms(watch: LedgerWatch) -> dict[tuple[str, str], int]:
    """Returns whole GPUs × milliseconds by tenant and kind."""
    found = {(tenant, kind): value for (tenant, _, kind), value in watch.use_unit_ms.items() if value}
    assert all(value % GPU_UNITS == 0 for value in found.values())
    return {key: value // GPU_UNITS for key, value in found.items()}


@pytest.fixture
def watch(centre: Centre) -> LedgerWatch:
    made = LedgerWatch(centre.database)
    made.look((), centre.now_ms)
    return made


def test_held_time_is_divided_as_the_windows_measured_it(centre: Centre, watch: LedgerWatch) -> None:
    allocation = centre.start(A0, A1)
    centre.running(allocation)
    centre.clock.advance(minutes=1)
    windows = (window(centre, A0, idle_ms=20_000), window(centre, A1, idle_ms=0, measured_ms=45_000))
    watch.look(windows, centre.now_ms)
    assert gpu_ms(watch) == {("acme", "busy"): 85_000, ("acme", "idle"): 20_000, ("acme", "unmeasured"): 15_000}


def test_a_minute_that_two_tenants_shared_in_turn_is_theirs_by_their_parts(centre: Centre, watch: LedgerWatch) -> None:
    first = centre.start(A0)
    centre.running(first)
    centre.clock.advance(seconds=15)
    centre.end(first)
    second = centre.start(A0, account="globex/nlp")
    centre.running(second)
    centre.clock.advance(seconds=45)
    watch.look((window(centre, A0, idle_ms=40_000),), centre.now_ms)
    assert gpu_ms(watch) == {
        ("acme", "busy"): 5_000,
        ("acme", "idle"): 10_000,
        ("globex", "busy"): 15_000,
        ("globex", "idle"): 30_000,
    }


def test_a_gpu_that_nobody_measures_is_counted_as_unmeasured_after_a_while(centre: Centre, watch: LedgerWatch) -> None:
    centre.running(centre.start(A0))
    centre.clock.advance(milliseconds=BLIND_MS - 1)
    watch.look((), centre.now_ms)
    assert gpu_ms(watch) == {}
    centre.clock.advance(milliseconds=1)
    watch.look((), centre.now_ms)
    assert gpu_ms(watch) == {("acme", "unmeasured"): BLIND_MS}


def test_a_holding_that_ended_before_its_window_came_is_not_lost(centre: Centre, watch: LedgerWatch) -> None:
    allocation = centre.start(A0)
    centre.running(allocation)
    centre.clock.advance(seconds=30)
    centre.end(allocation)
    watch.look((), centre.now_ms)
    assert gpu_ms(watch) == {}
    centre.clock.advance(seconds=30)
    watch.look((window(centre, A0, idle_ms=60_000),), centre.now_ms)
    assert gpu_ms(watch) == {("acme", "idle"): 30_000}


def test_what_was_held_before_the_first_look_is_not_counted(centre: Centre) -> None:
    centre.run(A0, hours=5)
    centre.running(centre.start(A1))
    late = LedgerWatch(centre.database)
    late.look((), centre.now_ms)
    centre.clock.advance(minutes=1)
    late.look((window(centre, A0, idle_ms=0), window(centre, A1, idle_ms=0)), centre.now_ms)
    assert gpu_ms(late) == {("acme", "busy"): MINUTE_MS}


@given(st.lists(st.tuples(st.sampled_from(["run", "end", "tick", "blind"]), st.integers(0, 60_000)), max_size=14))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_all_kinds_add_up_to_the_time_held_and_no_counter_goes_back(
    tmp_path: Path, steps: list[tuple[str, int]]
) -> None:
    path = tmp_path / "turnstile.db"
    for old in tmp_path.glob("turnstile.db*"):
        old.unlink()
    database = Database.open(new_sqlite(path))
    try:
        centre = Centre(database)
        centre.tenant("acme/vision")
        centre.node("a", gpus=1)
        watch = LedgerWatch(database)
        watch.look((), centre.now_ms)
        running, before = None, dict[tuple[str, str, str], int]()
        for step, number in steps:
            centre.clock.advance(minutes=1)
            if step == "run" and running is None:
                running = centre.start(A0)
                centre.running(running)
            elif step == "end" and running is not None:
                centre.end(running, EndReason.NODE_LOST if number % 2 else None)
                running = None
            watch.look((window(centre, A0, idle_ms=number),) if step != "blind" else (), centre.now_ms)
            now = {(str(tenant), str(model), kind): value for (tenant, model, kind), value in watch.use_unit_ms.items()}
            assert all(now[key] >= value for key, value in before.items())
            before = now
            assert watch.imbalance_unit_ms == 0
        centre.clock.advance(milliseconds=BLIND_MS)
        watch.look((), centre.now_ms)
        with database.read() as connection:
            held = sum(row.unit_ms for row in intervals_of_device(connection, A0, 0, 1 << 60) if row.occupant.holder)
            open_ms = connection.execute(
                sa.text("SELECT sum(units * (:now - since_ms)) FROM device_cursor WHERE holder IS NOT NULL"),
                {"now": centre.now_ms},
            ).scalar()
        assert sum(watch.use_unit_ms.values()) == held + (open_ms or 0)
    finally:
        database.dispose()


def test_a_ledger_that_adds_up_has_no_imbalance(centre: Centre, watch: LedgerWatch) -> None:
    centre.run(A0)
    centre.running(centre.start(A1, units=GPU_UNITS // 2))
    centre.drain("b", "fans")
    centre.clock.advance(hours=1)
    centre.lose_node("b")
    centre.clock.advance(hours=1)
    watch.look((), centre.now_ms)
    fresh = LedgerWatch(centre.database)
    fresh.look((), centre.now_ms)
    assert (watch.imbalance_unit_ms, fresh.imbalance_unit_ms) == (0, 0)


def test_a_row_that_is_gone_shows_as_gpu_seconds(centre: Centre) -> None:
    centre.run(A0, hours=1)
    _tamper(centre, "DELETE FROM occupancy WHERE device = :device AND phase = 'running'")
    assert _shown(centre) == "turnstile_ledger_imbalance_seconds 3600.0"


def test_an_open_interval_that_was_moved_shows_as_gpu_seconds(centre: Centre) -> None:
    centre.run(A0, hours=1)
    _tamper(centre, "UPDATE device_cursor SET since_ms = since_ms - 5000 WHERE device = :device")
    assert _shown(centre) == "turnstile_ledger_imbalance_seconds 5.0"


def test_an_interval_written_twice_is_seen_at_the_next_look(centre: Centre, watch: LedgerWatch) -> None:
    centre.run(A0, hours=1)
    _tamper(
        centre,
        "INSERT INTO occupancy SELECT sequence + 1000, device, lane, gpu_class, from_ms, to_ms, state, units, cause,"
        " phase, holder, job_id, allocation_id, segment, booking, gpu_eq_units, evidence, recorded_ms,"
        " idempotency_key || 'x', previous_hash, hash FROM occupancy WHERE device = :device AND phase = 'running'",
    )
    watch.look((), centre.now_ms)
    assert watch.imbalance_unit_ms == 3_600_000 * GPU_UNITS


def _tamper(centre: Centre, statement: str) -> None:
    """Does what the triggers refuse, as a broken disk or a person with the file would."""
    with centre.database.write() as connection:
        names = connection.execute(sa.text("SELECT name FROM sqlite_master WHERE type = 'trigger'")).scalars().all()
        for name in names:
            connection.execute(sa.text(f"DROP TRIGGER {name}"))
        assert connection.execute(sa.text(statement), {"device": A0}).rowcount == 1


def _shown(centre: Centre) -> str:
    watch = LedgerWatch(centre.database)
    watch.look((), centre.now_ms)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(LedgerCollector(watch))
    return next(line for line in generate_latest(registry).decode().splitlines() if line.startswith("turnstile_ledger"))


def test_every_tenant_has_each_kind_at_zero_before_it_holds_anything(centre: Centre, watch: LedgerWatch) -> None:
    """So that increase() sees the first minute: a counter that is born with a value looks as if it had not moved."""
    assert set(watch.use_unit_ms.values()) == {0}
    centre.running(centre.start(A0))
    centre.clock.advance(minutes=1)
    watch.look((window(centre, A0, idle_ms=0),), centre.now_ms)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(LedgerCollector(watch))
    series = [line for line in generate_latest(registry).decode().splitlines() if line.startswith("turnstile_tenant")]
    assert series == [
        'turnstile_tenant_gpu_seconds_total{kind="busy",model="H100",tenant="acme"} 60.0',
        'turnstile_tenant_gpu_seconds_total{kind="idle",model="H100",tenant="acme"} 0.0',
        'turnstile_tenant_gpu_seconds_total{kind="unmeasured",model="H100",tenant="acme"} 0.0',
        'turnstile_tenant_gpu_seconds_total{kind="busy",model="H100",tenant="globex"} 0.0',
        'turnstile_tenant_gpu_seconds_total{kind="idle",model="H100",tenant="globex"} 0.0',
        'turnstile_tenant_gpu_seconds_total{kind="unmeasured",model="H100",tenant="globex"} 0.0',
    ]


def test_a_daemon_that_lost_the_lead_says_nothing_of_the_balance(centre: Centre, watch: LedgerWatch) -> None:
    watch.forget()
    assert watch.imbalance_unit_ms is None


@pytest.mark.postgres
def test_closed_totals_are_whole_numbers_on_postgresql_too(postgres: str) -> None:
    database = Database.open(postgres)
    try:
        centre = Centre(database)
        centre.tenant("acme/vision")
        centre.node("a")
        centre.run(A0, hours=1)
        with database.read() as connection:
            assert closed_totals(connection)[A0] == ClosedTotal(3_600_000 * GPU_UNITS, NOON_MS, NOON_MS + 3_600_000)
        watch = LedgerWatch(database)
        watch.look((), centre.now_ms)
        assert watch.imbalance_unit_ms == 0
    finally:
        database.dispose()
