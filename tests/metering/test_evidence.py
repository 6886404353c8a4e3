"""Late evidence about ends: kept once, in any order the same ledger, and nothing is paid that cannot be proved."""

from itertools import permutations
from pathlib import Path
from random import Random

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metering.findings import Report
from metering.verify import verify
from scheduler.core.ending import COMPLETED, EndEvidence, EvidenceKind, RecordedEnd, settled_end
from scheduler.core.model import GPU_UNITS, AllocationId, DeviceId, EndReason
from scheduler.core.occupancy import Evidence, OccupancyState
from scheduler.refusal import Refused
from scheduler.store.database import Database, StoreError
from scheduler.store.evidence import Reclassify, Said
from scheduler.store.ledger_allocations import allocations
from scheduler.store.ledger_rows import intervals_of_device
from scheduler.store.ledger_tables import EVIDENCE, RECLASSIFICATION
from scheduler.store.overlays import known_now, unknown_stretches
from tests.databases import new_sqlite
from tests.metering.builders import HOUR_MS, book
from tests.metering.centre import Centre
from tests.metering.tampering import assert_every_change_is_found

A0, A1, B0 = DeviceId("GPU-a-0"), DeviceId("GPU-a-1"), DeviceId("GPU-b-0")
ID = AllocationId("A")


def said(
    allocation: AllocationId,
    kind: EvidenceKind,
    at_ms: int,
    *,
    reason: str | None = None,
    source: Evidence = Evidence.NODE,
) -> Said:
    return Said(f"{kind}/{at_ms}/{reason}/{source}", allocation, kind, at_ms, source, reason)


def states(centre: Centre, device: DeviceId = A0) -> list[tuple[str, int, int]]:
    """What is known now of a device's closed past: state, start and end."""
    with centre.read() as connection:
        pieces = list(known_now(connection, intervals_of_device(connection, device, 0, centre.now_ms + 1)))
    joined: list[tuple[str, int, int]] = []
    for piece in pieces:
        state = piece.occupant.state.value
        if joined and joined[-1][0] == state:
            joined[-1] = (state, joined[-1][1], piece.to_ms)
        else:
            joined.append((state, piece.from_ms, piece.to_ms))
    return joined


def end_of(centre: Centre, allocation: AllocationId) -> tuple[int | None, EndReason | None]:
    with centre.read() as connection:
        (found,) = (each for each in allocations(connection, 0, centre.now_ms + 1) if each.id == allocation)
    return found.ended_ms, found.end_reason


def proof(centre: Centre) -> Report:
    with centre.read() as connection:
        return verify(connection, centre.now_ms)


@pytest.fixture
def lost(centre: Centre) -> tuple[Centre, AllocationId, int]:
    """A gang of two GPUs whose node went silent an hour after it began, noticed two hours later; its last evidence."""
    allocation = centre.start(A0, A1)
    centre.running(allocation)
    centre.clock.advance(hours=1)
    last_ms = centre.now_ms
    centre.clock.advance(hours=2)
    centre.lost(allocation, ago_ms=2 * HOUR_MS)
    centre.clock.advance(hours=1)
    return centre, allocation, last_ms


def test_a_silent_node_ends_at_its_last_evidence_and_the_rest_is_unknown(
    lost: tuple[Centre, AllocationId, int],
) -> None:
    centre, allocation, last_ms = lost
    assert end_of(centre, allocation) == (last_ms, EndReason.NODE_LOST)
    assert states(centre) == [("allocated", last_ms - HOUR_MS, last_ms), ("unknown", last_ms, last_ms + 2 * HOUR_MS)]
    with centre.read() as connection:
        found = [(each.device, each.from_ms, each.to_ms) for each in unknown_stretches(connection, 0, centre.now_ms)]
    assert found == [(device, last_ms, last_ms + 2 * HOUR_MS) for device in (A0, A1)]
    assert proof(centre).is_proved


def test_devices_of_a_lost_gang_on_nodes_that_are_well_are_draining_and_nobodys_bill(centre: Centre) -> None:
    allocation = centre.start(A0, B0)
    centre.running(allocation)
    centre.clock.advance(hours=1)
    centre.lose_node("a")
    centre.clock.advance(hours=1)
    centre.lost(allocation, ago_ms=HOUR_MS)
    centre.clock.advance(hours=1)
    assert [state for state, _, _ in states(centre, A0)][-1] == "unknown"
    assert [state for state, _, _ in states(centre, B0)][-1] == "draining"
    assert proof(centre).is_proved


def test_the_nodes_own_word_settles_what_was_unknown(lost: tuple[Centre, AllocationId, int]) -> None:
    centre, allocation, last_ms = lost
    learned = centre.learn(said(allocation, EvidenceKind.ENDED, last_ms + HOUR_MS, reason=COMPLETED))
    assert (learned.new, learned.moved) == (1, (allocation,))
    assert end_of(centre, allocation) == (last_ms + HOUR_MS, None)
    for device in (A0, A1):
        assert states(centre, device) == [
            ("allocated", last_ms - HOUR_MS, last_ms + HOUR_MS),
            ("unavailable", last_ms + HOUR_MS, last_ms + 2 * HOUR_MS),
        ]
    assert proof(centre).is_proved


def test_signs_of_life_move_the_end_forward_and_leave_the_rest_unknown(lost: tuple[Centre, AllocationId, int]) -> None:
    centre, allocation, last_ms = lost
    centre.learn(said(allocation, EvidenceKind.ALIVE, last_ms + 60_000))
    assert states(centre)[-1] == ("unknown", last_ms + 60_000, last_ms + 2 * HOUR_MS)
    centre.learn(said(allocation, EvidenceKind.ALIVE, last_ms + 9 * HOUR_MS))
    assert end_of(centre, allocation)[0] == last_ms + 2 * HOUR_MS  # not beyond what was unknown
    assert proof(centre).is_proved


def test_silence_that_is_found_later_takes_back_what_was_not_proved(lost: tuple[Centre, AllocationId, int]) -> None:
    centre, allocation, last_ms = lost
    centre.learn(said(allocation, EvidenceKind.SILENT, last_ms - 60_000))
    assert states(centre) == [
        ("allocated", last_ms - HOUR_MS, last_ms - 60_000),
        ("unknown", last_ms - 60_000, last_ms + 2 * HOUR_MS),
    ]
    assert proof(centre).is_proved


def test_the_same_evidence_again_changes_nothing_and_another_under_its_key_is_refused(
    lost: tuple[Centre, AllocationId, int],
) -> None:
    centre, allocation, last_ms = lost
    word = said(allocation, EvidenceKind.ALIVE, last_ms + 1000)
    assert centre.learn(word, word).new == 1
    before = states(centre)
    assert centre.learn(word) == centre.learn(word)
    assert states(centre) == before
    with pytest.raises(Refused, match="says something else"):
        centre.learn(Said(word.key, allocation, EvidenceKind.ENDED, last_ms + 5, Evidence.NODE))


def test_evidence_about_what_runs_or_does_not_exist_is_reported_and_not_kept(centre: Centre) -> None:
    live = centre.start(A0)
    learned = centre.learn(said(live, EvidenceKind.ALIVE, 5), said(AllocationId("none"), EvidenceKind.ALIVE, 6))
    assert (learned.new, learned.live, learned.unknown) == (0, (live,), (AllocationId("none"),))


def test_a_late_end_of_a_certain_allocation_may_only_shorten_it(centre: Centre) -> None:
    allocation = centre.run(A0, hours=2)
    end_ms = centre.now_ms
    centre.clock.advance(hours=1)
    centre.end(allocation, ago_ms=0)  # seen once more, later
    assert end_of(centre, allocation)[0] == end_ms
    centre.end(allocation, ago_ms=90 * 60_000)  # and by the node's journal, earlier
    assert end_of(centre, allocation)[0] == end_ms - 30 * 60_000
    assert proof(centre).is_proved


def test_exports_and_sums_read_through_what_is_laid_over(
    lost: tuple[Centre, AllocationId, int], tmp_path: Path
) -> None:
    centre, allocation, last_ms = lost
    centre.publish(book(effective_ms=0))
    before = centre.export(tmp_path / "before")
    centre.learn(said(allocation, EvidenceKind.ENDED, last_ms + HOUR_MS, reason=COMPLETED))
    after = centre.export(tmp_path / "after")
    assert int(after.sums["gpu_ms"]) - int(before.sums["gpu_ms"]) == 2 * HOUR_MS
    assert after.sums["capacity_unit_ms"] == before.sums["capacity_unit_ms"]


def test_an_operator_settles_a_device_with_a_reason_and_no_machine_overrules_it(
    lost: tuple[Centre, AllocationId, int],
) -> None:
    centre, allocation, last_ms = lost
    span = (last_ms + HOUR_MS, last_ms + 2 * HOUR_MS)
    centre.carry_out(Reclassify(A0, *span, OccupancyState.UNAVAILABLE, "power_cut", "ops", "PDU log"))
    centre.learn(said(allocation, EvidenceKind.ALIVE, last_ms + 2 * HOUR_MS))
    assert states(centre)[-1] == ("unavailable", *span)
    assert end_of(centre, allocation)[0] == span[0]
    assert proof(centre).is_proved
    with pytest.raises(Refused, match="is not unknown"):
        centre.carry_out(Reclassify(A0, *span, OccupancyState.IDLE, None, "ops", "again"))
    with pytest.raises(Refused, match="cannot become allocated"):
        centre.carry_out(Reclassify(A1, *span, OccupancyState.ALLOCATED, None, "ops", "again"))
    with pytest.raises(Refused, match="reason"):
        centre.carry_out(Reclassify(A1, *span, OccupancyState.IDLE, None, "ops", " "))


def test_an_operators_word_on_an_end_outranks_the_nodes(lost: tuple[Centre, AllocationId, int]) -> None:
    centre, allocation, last_ms = lost
    centre.learn(said(allocation, EvidenceKind.ENDED, last_ms + HOUR_MS, reason=COMPLETED))
    centre.learn(said(allocation, EvidenceKind.ENDED, last_ms + 1, reason=None, source=Evidence.OPERATOR))
    assert end_of(centre, allocation) == (last_ms + 1, EndReason.NODE_LOST)
    assert proof(centre).is_proved


def test_a_share_of_a_lost_node_is_unknown_in_its_own_lane(centre: Centre) -> None:
    allocation = centre.start(A0, units=GPU_UNITS // 7)
    centre.running(allocation)
    centre.clock.advance(hours=2)
    centre.lost(allocation, ago_ms=HOUR_MS)
    centre.clock.advance(hours=1)
    end_ms = centre.now_ms - 2 * HOUR_MS
    centre.learn(said(allocation, EvidenceKind.ENDED, end_ms + 5, reason=COMPLETED))
    assert end_of(centre, allocation)[0] == end_ms + 5
    assert proof(centre).is_proved


def test_any_order_and_any_doubles_give_the_same_ledger(tmp_path: Path) -> None:
    words = (
        (EvidenceKind.ALIVE, 30, None),
        (EvidenceKind.SILENT, -10, None),
        (EvidenceKind.ENDED, 50, COMPLETED),
        (EvidenceKind.ENDED, 40, "exit_nonzero"),
    )
    seen = set()
    for number, order in enumerate(permutations(words)):
        database = Database.open(new_sqlite(tmp_path / f"{number}.db"))
        centre = Centre(database)
        centre.tenant("acme/vision")
        centre.node("a")
        allocation = centre.start(A0, A1)
        centre.running(allocation)
        centre.clock.advance(minutes=60)
        last_ms = centre.now_ms
        centre.clock.advance(minutes=60)
        centre.lost(allocation, ago_ms=3_600_000)
        for kind, minutes, reason in (*order, order[0]):
            centre.learn(said(allocation, kind, last_ms + minutes * 60_000, reason=reason))
        seen.add((tuple(states(centre)), end_of(centre, allocation)))
        assert proof(centre).is_proved
        database.dispose()
    assert len(seen) == 1


ENDS = st.lists(
    st.tuples(st.sampled_from(EvidenceKind), st.integers(0, 100), st.sampled_from([Evidence.NODE, Evidence.HEARTBEAT])),
    max_size=6,
)


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(ENDS, st.integers(20, 50), st.integers(0, 40), st.booleans(), st.randoms(use_true_random=False))
def test_the_fold_depends_on_no_order_and_stays_inside_what_is_open(
    ends: list[tuple[EvidenceKind, int, Evidence]],
    end_ms: int,
    blind_ms: int,
    is_lost: bool,
    shuffle: Random,
) -> None:
    reason = EndReason.NODE_LOST if is_lost else None
    recorded = RecordedEnd(10, end_ms, end_ms + blind_ms, reason)
    items = [EndEvidence(place, ID, kind, at_ms, source) for place, (kind, at_ms, source) in enumerate(ends)]
    settled = settled_end(recorded, items)
    mixed = [*items, *items]
    shuffle.shuffle(mixed)
    assert settled_end(recorded, mixed) == settled
    assert 10 <= settled.end_ms <= (recorded.ceiling_ms if is_lost else end_ms)


# ---- what nobody may do --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", [EVIDENCE, RECLASSIFICATION], ids=lambda table: str(table.name))
def test_the_database_refuses_to_change_or_delete_what_became_known(
    lost: tuple[Centre, AllocationId, int], table: sa.Table
) -> None:
    centre, allocation, last_ms = lost
    centre.learn(said(allocation, EvidenceKind.ALIVE, last_ms + 1000))
    for statement in (table.update().values(recorded_ms=0), table.delete()):
        with pytest.raises(StoreError, match="append-only"), centre.database.write() as connection:
            connection.execute(statement)


def test_a_reclassification_outside_of_its_interval_cannot_be_written(lost: tuple[Centre, AllocationId, int]) -> None:
    centre, allocation, last_ms = lost
    centre.learn(said(allocation, EvidenceKind.ALIVE, last_ms + 1000))
    with centre.read() as connection:
        row = dict(connection.execute(sa.select(RECLASSIFICATION)).mappings().first() or {})
    for change in ({"to_ms": last_ms + 99 * HOUR_MS}, {"units": 1}, {"device": "GPU-b-0"}, {"covers": 999}):
        with pytest.raises(StoreError, match="outside"), centre.database.write() as connection:
            connection.execute(sa.insert(RECLASSIFICATION).values({**row, "sequence": 99, **change}))


@pytest.mark.parametrize("table", [EVIDENCE, RECLASSIFICATION], ids=lambda table: str(table.name))
def test_tampering_with_any_column_or_row_is_found_and_named(
    lost: tuple[Centre, AllocationId, int], table: sa.Table
) -> None:
    centre, allocation, last_ms = lost
    centre.learn(said(allocation, EvidenceKind.ALIVE, last_ms + 1000))
    centre.learn(said(allocation, EvidenceKind.ENDED, last_ms + 2000, reason=COMPLETED))
    with centre.read() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one() >= 2
    assert_every_change_is_found(centre, table)


@pytest.mark.postgres
def test_both_databases_keep_evidence_alike(postgres: str) -> None:
    database = Database.open(postgres)
    try:
        centre = Centre(database)
        centre.tenant("acme/vision")
        centre.node("a")
        allocation = centre.start(A0, A1)
        centre.running(allocation)
        centre.clock.advance(hours=2)
        centre.lost(allocation, ago_ms=HOUR_MS)
        last_ms = centre.now_ms - HOUR_MS
        centre.clock.advance(hours=1)
        centre.learn(said(allocation, EvidenceKind.ALIVE, last_ms + 1000))
        assert states(centre)[-1] == ("unknown", last_ms + 1000, last_ms + HOUR_MS)
        assert proof(centre).is_proved
        for table in (EVIDENCE, RECLASSIFICATION):
            for statement in (table.update().values(recorded_ms=0), table.delete(), sa.text(f"TRUNCATE {table.name}")):
                with pytest.raises(StoreError, match="append-only"), database.write() as connection:
                    connection.execute(statement)
    finally:
        database.dispose()
