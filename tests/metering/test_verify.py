"""Verification proves a sound ledger and finds every tampering with it, by place."""

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from metering.findings import Check, Report
from metering.tables import PRICE_BOOK
from scheduler.core.model import GPU_UNITS, DeviceId, EndReason
from scheduler.core.occupancy import OccupancyState
from scheduler.store.ledger_tables import DEVICE_CURSOR, LEDGER_HEAD, OCCUPANCY
from scheduler.store.tables import ALLOCATION, DEVICE
from tests.metering.builders import NOON_MS
from tests.metering.centre import Centre
from tests.metering.in_parts import verify
from tests.metering.tampering import tampered

A0, A1, B0, B1 = (DeviceId(f"GPU-{place}") for place in ("a-0", "a-1", "b-0", "b-1"))


@pytest.fixture
def busy(centre: Centre) -> Centre:
    """A centre with a past and a present: ended, running, starting, stopping, shared, preempted, drained."""
    centre.publish()
    centre.clock.advance(minutes=5)
    centre.run(A0, B0, hours=14)
    centre.run(A0, hours=2, reason=EndReason.PREEMPTED, account="globex/nlp", memory=256 << 30)
    gang = centre.start(A0, B0)
    centre.clock.advance(seconds=3)
    centre.running(gang)
    share = centre.start(A1, units=GPU_UNITS // 7)
    half = centre.start(A1, units=GPU_UNITS // 2, account="globex/nlp")
    centre.clock.advance(seconds=2)
    centre.running(share)
    centre.running(half)
    centre.clock.advance(minutes=30)
    centre.end(share)
    centre.stopping(half)
    centre.clock.advance(seconds=10)
    centre.start(B1)
    centre.node("c", gpus=1)
    centre.drain("c", "fan")
    centre.clock.advance(minutes=1)
    return centre


def proof(centre: Centre) -> Report:
    with centre.read() as connection:
        return verify(connection, centre.now_ms)


def test_a_sound_ledger_is_proved(busy: Centre) -> None:
    report = proof(busy)
    assert report.is_proved, report.findings
    assert report.counted["rows"] >= 15
    assert (report.counted["devices"], report.counted["allocations"], report.counted["price_books"]) == (5, 6, 1)


def test_an_empty_ledger_is_proved(centre: Centre) -> None:
    assert proof(centre).is_proved


def test_states_add_up_to_the_capacity_of_the_centre(busy: Centre) -> None:
    report = proof(busy)
    total = sum(report.counted.get(f"{state}_unit_ms", 0) for state in OccupancyState)
    old = 4 * GPU_UNITS * (busy.now_ms - NOON_MS)
    new = GPU_UNITS * 60_000  # node c is a minute old
    assert total == old + new


def test_a_lost_node_keeps_its_past_and_its_proof(busy: Centre) -> None:
    busy.lose_node("c")
    busy.clock.advance(hours=1)
    assert proof(busy).is_proved


ODD: dict[str, object] = {
    "state": "unknown",
    "phase": "stopping",
    "booking": "guaranteed",
    "evidence": "operator",
    "hash": "f" * 64,
    "previous_hash": "f" * 64,
}


def odd(column: str, value: object) -> object:
    """Another value that the column might well have had."""
    if column in ODD:
        return ODD[column] if value != ODD[column] else {"state": "idle", "phase": "running"}.get(column, "spot")
    return value + 1 if isinstance(value, int) else f"{value or ''}x"


@pytest.mark.parametrize("column", [column.name for column in OCCUPANCY.columns])
def test_a_change_of_any_column_of_any_row_is_found(busy: Centre, column: str) -> None:
    with busy.read() as connection:
        rows = connection.execute(sa.select(OCCUPANCY)).mappings().all()
    last = rows[-1]["sequence"]
    for row in rows:
        # A sequence that is taken cannot be given again, so a moved row goes behind the last.
        value = last + 7 if column == "sequence" else odd(column, row[column])
        change = OCCUPANCY.update().where(OCCUPANCY.c.sequence == row["sequence"]).values({column: value})
        report = tampered(busy, lambda connection, change=change: connection.execute(change))  # type: ignore[misc]
        assert not report.is_proved
        places = " ".join(finding.where for finding in report.findings)
        assert f"sequence {row['sequence']}" in places or column == "sequence", report.findings


def test_a_deleted_row_is_found_wherever_it_stood(busy: Centre) -> None:
    with busy.read() as connection:
        sequences = connection.execute(sa.select(OCCUPANCY.c.sequence)).scalars().all()
    for sequence in sequences:
        gone = OCCUPANCY.delete().where(OCCUPANCY.c.sequence == sequence)
        report = tampered(busy, lambda connection, gone=gone: connection.execute(gone))  # type: ignore[misc]
        assert {Check.SEQUENCE, Check.PARTITION} & {finding.check for finding in report.findings}


def test_the_last_row_cannot_be_taken_back_even_with_the_head(busy: Centre) -> None:
    def take_back(connection: Connection) -> None:
        last = connection.execute(sa.select(OCCUPANCY).order_by(OCCUPANCY.c.sequence.desc()).limit(1)).one()
        connection.execute(OCCUPANCY.delete().where(OCCUPANCY.c.sequence == last.sequence))
        connection.execute(LEDGER_HEAD.update().values(sequence=last.sequence - 1, hash=last.previous_hash))

    checks = {finding.check for finding in tampered(busy, take_back).findings}
    assert Check.PARTITION in checks
    assert not {Check.CHAIN, Check.SEQUENCE} & checks


def test_swapped_rows_are_found(busy: Centre) -> None:
    def swap(connection: Connection) -> None:
        move = OCCUPANCY.update()
        for old, new in ((3, -3), (4, 3), (-3, 4)):
            connection.execute(move.where(OCCUPANCY.c.sequence == old).values(sequence=new))

    places = {finding.where for finding in tampered(busy, swap).findings if finding.check is Check.CHAIN}
    assert {"sequence 3", "sequence 4"} <= places


@pytest.mark.parametrize("column", ["sequence", "hash"])
def test_a_changed_head_is_found(busy: Centre, column: str) -> None:
    value: object = 1 if column == "sequence" else "0" * 64
    change = LEDGER_HEAD.update().values({column: value})
    report = tampered(busy, lambda connection: connection.execute(change))
    assert [finding.where for finding in report.findings] == [f"ledger_head {column}"]


CURSOR_COLUMNS = [column.name for column in DEVICE_CURSOR.columns]


@pytest.mark.parametrize("column", CURSOR_COLUMNS)
def test_a_change_of_any_open_interval_is_found(busy: Centre, column: str) -> None:
    with busy.read() as connection:
        rows = connection.execute(sa.select(DEVICE_CURSOR)).mappings().all()
    assert {row["state"] for row in rows} >= {"allocated", "idle", "draining"}
    for row in rows:
        if column == "lane" and row["lane"] > 0 and not _has_past(busy, row["device"], row["lane"]):
            continue  # the number of a share's new lane means nothing by itself
        if column == "version" and not _has_past(busy, row["device"], row["lane"]):
            continue  # nothing is closed yet that its number could be held against
        value = 0 if column == "version" else odd(column, row[column])
        place = sa.and_(DEVICE_CURSOR.c.device == row["device"], DEVICE_CURSOR.c.lane == row["lane"])
        change = DEVICE_CURSOR.update().where(place).values({column: value})
        report = tampered(busy, lambda connection, change=change: connection.execute(change))  # type: ignore[misc]
        assert any(row["device"] in finding.where for finding in report.findings), (row["lane"], row["state"])


def _has_past(centre: Centre, device: str, lane: int) -> bool:
    with centre.read() as connection:
        place = sa.and_(OCCUPANCY.c.device == device, OCCUPANCY.c.lane == lane)
        return connection.execute(sa.select(OCCUPANCY.c.sequence).where(place).limit(1)).first() is not None


def test_a_missing_open_interval_is_found(busy: Centre) -> None:
    with busy.read() as connection:
        places = connection.execute(sa.select(DEVICE_CURSOR.c.device, DEVICE_CURSOR.c.lane)).all()
    for device, lane in places:
        gone = DEVICE_CURSOR.delete().where(DEVICE_CURSOR.c.device == device, DEVICE_CURSOR.c.lane == lane)
        report = tampered(busy, lambda connection, gone=gone: connection.execute(gone))  # type: ignore[misc]
        assert any(device in finding.where for finding in report.findings)


@pytest.mark.parametrize(
    "column", ["account", "job_id", "gpu_class", "booking", "decided_ms", "started_ms", "ended_ms"]
)
def test_an_allocation_that_tells_another_story_is_found(busy: Centre, column: str) -> None:
    with busy.read() as connection:
        rows = connection.execute(sa.select(ALLOCATION).where(ALLOCATION.c.ended_ms.is_not(None))).mappings().all()
    assert rows
    for row in rows:
        change = ALLOCATION.update().where(ALLOCATION.c.id == row["id"]).values({column: odd(column, row[column])})
        report = tampered(busy, lambda connection, change=change: connection.execute(change))  # type: ignore[misc]
        assert any(row["id"] in finding.where for finding in report.findings)


def test_an_allocation_that_is_gone_is_found_by_its_rows(busy: Centre) -> None:
    report = tampered(busy, lambda connection: connection.execute(ALLOCATION.delete()))
    assert any(finding.check is Check.HOLDER and "sequence" in finding.where for finding in report.findings)


UNPROVED = ("published_ms", "retroactive_reason")
"""What a book's hash is not of: when it was published, and why then."""


@pytest.mark.parametrize("column", [column.name for column in PRICE_BOOK.columns if column.name not in UNPROVED])
def test_a_changed_price_book_is_found(busy: Centre, column: str) -> None:
    with busy.read() as connection:
        row = connection.execute(sa.select(PRICE_BOOK)).mappings().one()
    body = {**row["body"], "prices": {"H100": {"burst": "17.99"}}}
    value = body if column == "body" else odd(column, row[column])
    change = PRICE_BOOK.update().values({column: value})
    findings = tampered(busy, lambda connection: connection.execute(change)).findings
    assert {finding.check for finding in findings} == {Check.PRICE_BOOK}
    assert all("price book 2026-10" in finding.where for finding in findings)


def test_a_device_of_another_size_is_found(busy: Centre) -> None:
    change = DEVICE.update().where(DEVICE.c.id == A0).values(units=GPU_UNITS - 1)
    findings = tampered(busy, lambda connection: connection.execute(change)).findings
    assert {Check.PARTITION, Check.CONSERVATION} <= {finding.check for finding in findings}
    assert any(A0 in finding.where for finding in findings)


def test_a_row_that_says_no_known_word_is_named_and_ends_the_proof_there(busy: Centre) -> None:
    change = OCCUPANCY.update().where(OCCUPANCY.c.sequence == 2).values(state="borrowed")
    findings = tampered(busy, lambda connection: connection.execute(change)).findings
    assert any(finding.where == "sequence 2" and "borrowed" in finding.found for finding in findings)


def test_an_allocation_that_says_no_known_word_is_a_finding(busy: Centre) -> None:
    change = ALLOCATION.update().values(booking="borrowed")
    findings = tampered(busy, lambda connection: connection.execute(change)).findings
    assert any("borrowed" in finding.found for finding in findings)


def test_findings_say_what_was_expected_and_what_was_found(busy: Centre) -> None:
    change = LEDGER_HEAD.update().values(sequence=1)
    (finding,) = tampered(busy, lambda connection: connection.execute(change)).findings
    assert str(finding).startswith("sequence: ledger_head sequence: expected ")
    assert str(finding).endswith("found 1")
