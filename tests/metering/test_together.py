"""Several processes export, prove and close what one does, to the byte, and find what one finds."""

import os
import signal
from pathlib import Path

import pytest
import sqlalchemy as sa

from metering.export import export_usage
from metering.together import MOST_UNASKED, processes_of, reading_ledger
from metering.verify import verify, verify_export
from scheduler.core.model import GPU_UNITS, Booking, DeviceId, EndReason
from scheduler.store.database import StoreUnavailable
from scheduler.store.ledger_tables import OCCUPANCY
from scheduler.store.readers import Alone, Readers, reading
from tests.metering.builders import book
from tests.metering.centre import SHANGHAI, Centre
from tests.metering.in_parts import InParts, small_parts
from tests.store.reader_works import Accounts

A0, A1, B0, B1 = (DeviceId(f"GPU-{place}") for place in ("a-0", "a-1", "b-0", "b-1"))


@pytest.fixture
def lived(centre: Centre) -> Centre:
    """A centre with a past of many gangs, over days, and a present."""
    centre.publish(book(tax="0.06"))
    for round_ in range(6):
        centre.run(A0, B0, hours=14)
        centre.run(A1, hours=3, reason=EndReason.PREEMPTED, account="globex/nlp", booking=Booking.SPOT)
        share = centre.start(B1, units=GPU_UNITS // 7, name=f'分享, "{round_}"')
        centre.clock.advance(seconds=2)
        centre.running(share)
        centre.clock.advance(minutes=50)
        centre.end(share)
    still = centre.start(A0, A1)
    centre.clock.advance(seconds=3)
    centre.running(still)
    centre.clock.advance(hours=30)
    return centre


def exported(centre: Centre, folder: Path, readers: Readers[sa.Connection]) -> dict[str, bytes]:
    span = (centre.clock.now_ms() - 30 * 86_400_000, centre.clock.now_ms())
    export_usage(readers.source, folder, *span, SHANGHAI, known_until_ms=span[1], readers=readers)
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_two_processes_write_and_prove_the_bytes_that_one_does(
    lived: Centre, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_parts(monkeypatch)
    with lived.read() as connection:
        alone = exported(lived, tmp_path / "alone", Alone(connection))
        proof = verify(connection, lived.now_ms)
        parted = exported(lived, tmp_path / "parted", InParts(connection))
    assert proof.is_proved
    with reading(lived.database, 2) as readers:
        together = exported(lived, tmp_path / "together", readers)
        assert verify(readers.source, lived.now_ms, readers=readers) == proof
        assert verify_export(tmp_path / "together", readers=readers) == verify_export(tmp_path / "alone")
    assert together == alone == parted
    assert sum(len(data.splitlines()) for name, data in alone.items() if name.startswith("focus_")) > 25


def test_two_processes_name_what_was_tampered_with_as_one_does(
    lived: Centre, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_parts(monkeypatch)
    with lived.read() as connection:
        exported(lived, tmp_path / "files", Alone(connection))
    with lived.database.write() as connection:
        for name in connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'trigger'").scalars().all():
            connection.exec_driver_sql(f'DROP TRIGGER "{name}"')
        connection.execute(OCCUPANCY.update().where(OCCUPANCY.c.sequence == 12).values(to_ms=OCCUPANCY.c.to_ms - 1))
    with lived.read() as connection:
        alone = verify(connection, lived.now_ms)
    focus = next((tmp_path / "files").glob("focus_*"))
    focus.write_text(focus.read_text().replace("GPU-Hours", "gpu-hours", 1))
    files = verify_export(tmp_path / "files")
    with reading(lived.database, 2) as readers:
        assert verify(readers.source, lived.now_ms, readers=readers) == alone
        assert verify_export(tmp_path / "files", readers=readers) == files
    assert any(finding.where == "sequence 12" for finding in alone.findings)
    assert not files.is_proved


def test_nothing_is_left_of_an_export_whose_reader_dies(lived: Centre, tmp_path: Path) -> None:
    with reading(lived.database, 2) as readers:
        process = next(iter(readers.each(Accounts(), range(1))))[-1]
        os.kill(process, signal.SIGKILL)
        with pytest.raises(StoreUnavailable, match="nothing was written"):
            exported(lived, tmp_path / "export", readers)
    assert [path.name for path in tmp_path.iterdir() if "export" in path.name] == []


def test_unasked_there_is_a_process_for_each_core_up_to_four_and_asked_as_many_as_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for cores, processes in ((1, 1), (2, 2), (48, MOST_UNASKED)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)))
        assert processes_of(None) == processes
        assert processes_of(3) == 3


def test_readings_at_the_same_time_start_no_more_processes_than_one_alone(lived: Centre) -> None:
    with (
        reading_ledger(lived.database, MOST_UNASKED, worth_rows=1) as first,
        reading_ledger(lived.database, 2, worth_rows=1) as second,
    ):
        assert (first.processes, second.processes) == (MOST_UNASKED, 1)
    with reading_ledger(lived.database, 2, worth_rows=1) as after:
        assert after.processes == 2
