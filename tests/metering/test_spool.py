"""The agent's spool: whole or absent, in order, bounded, the same key after whatever crash."""

from pathlib import Path

import pytest

from metering.spool import Spool


def contents(spool: Spool) -> list[object]:
    found = []
    while (batch := spool.oldest()) is not None:
        found.append(batch.document["n"])
        spool.done(batch.key)
    return found


def test_batches_come_out_in_the_order_in_which_they_went_in(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    for n in range(5):
        spool.add({"n": n})
    assert (spool.batches, contents(spool), spool.batches) == (5, [0, 1, 2, 3, 4], 0)
    assert list((tmp_path / "spool").iterdir()) == []


def test_a_batch_that_was_not_done_has_the_same_key_after_a_restart(tmp_path: Path) -> None:
    first = Spool(tmp_path)
    first.add({"n": 1})
    before = first.oldest()
    again = Spool(tmp_path)
    again.add({"n": 2})
    after = again.oldest()
    assert before is not None
    assert after is not None
    assert before.key == after.key
    assert contents(again) == [1, 2]


def test_a_write_that_a_crash_cut_off_leaves_nothing(tmp_path: Path) -> None:
    Spool(tmp_path).add({"n": 1})
    (tmp_path / "000000000002-01JD8W3Z6Q5K9XN0V4T2R7M1AB.json.part").write_text('{"n": 2')
    spool = Spool(tmp_path)
    assert contents(spool) == [1]
    assert spool.dropped == 0


def test_a_batch_that_cannot_be_read_is_dropped_and_counted_and_holds_up_no_other(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.add({"n": 1})
    spool.add({"n": 2})
    first = min(tmp_path.iterdir())
    first.write_bytes(b"\x00\x00")
    assert contents(spool) == [2]
    assert spool.dropped == 1


def test_a_full_spool_drops_its_oldest_and_stays_below_its_limit(tmp_path: Path) -> None:
    spool = Spool(tmp_path, most_bytes=100)
    for n in range(10):
        spool.add({"n": n, "filling": "x" * 20})
        assert spool.size_bytes <= 100
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == spool.size_bytes
    left = contents(spool)
    assert left == [8, 9]
    assert spool.dropped == 8


def test_a_disk_that_takes_nothing_is_said_and_leaves_no_half_batch(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    spool.add({"n": 1})
    (tmp_path / "spool").rename(tmp_path / "gone")
    with pytest.raises(OSError, match="No such file"):
        spool.add({"n": 2})
    assert (spool.batches, spool.dropped) == (1, 1)
