"""A log of any length in bounded space: whatever is written, in whatever pieces, is read back or named as dropped."""

import re
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.joblog import LEAST_LIMIT_BYTES, LogWriter, read_log

MARKER = re.compile(rb"\n\[turnstile: (\d+) bytes dropped here: the log's cap\]\n")


def stream(size: int) -> bytes:
    """Bytes that tell where they stood: every position has a number of its own nearby, and no marker."""
    return b"".join(b"%08d " % position for position in range(0, size + 9, 9))[:size]


def written(directory: str, limit_bytes: int, pieces: list[int]) -> bytes:
    data = stream(sum(pieces))
    log = LogWriter(directory, limit_bytes)
    position = 0
    for piece in pieces:
        log.write(data[position : position + piece])
        position += piece
    log.close()
    return data


@settings(max_examples=60, deadline=None)
@given(
    limit_bytes=st.integers(LEAST_LIMIT_BYTES, 3 * LEAST_LIMIT_BYTES),
    pieces=st.lists(st.integers(1, 5000), max_size=12),
)
def test_head_and_tail_are_kept_within_the_cap_and_the_gap_is_exact(limit_bytes: int, pieces: list[int]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        data = written(directory, limit_bytes, pieces)
        kept_bytes = sum(path.stat().st_size for path in Path(directory).iterdir())
        text, next_offset, is_truncated = read_log(directory, 0, 1 << 20)
    assert kept_bytes <= limit_bytes
    assert next_offset == len(data)
    assert is_truncated == (kept_bytes < len(data))
    gap = MARKER.search(text)
    if gap is None:
        assert text == data
    else:
        head, tail = text[: gap.start()], text[gap.end() :]
        assert data.startswith(head)
        assert data.endswith(tail)
        assert len(head) + int(gap[1]) + len(tail) == len(data)
        assert len(head) >= limit_bytes // 2
        assert len(tail) >= limit_bytes // 4


@settings(max_examples=40, deadline=None)
@given(pieces=st.lists(st.integers(1, 5000), max_size=8), chunk_bytes=st.integers(100, 3000))
def test_reading_by_chunks_gives_what_reading_at_once_gives(pieces: list[int], chunk_bytes: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        written(directory, LEAST_LIMIT_BYTES, pieces)
        whole, end, _ = read_log(directory, 0, 1 << 20)
        collected, offset = b"", 0
        while offset < end:
            data, next_offset, _ = read_log(directory, offset, chunk_bytes)
            assert 0 < len(data) <= chunk_bytes
            assert next_offset > offset
            collected, offset = collected + data, next_offset
    assert collected == whole


def test_a_reader_that_keeps_up_misses_nothing_however_long_the_log(tmp_path: Path) -> None:
    log = LogWriter(str(tmp_path), LEAST_LIMIT_BYTES)
    data = stream(20 * LEAST_LIMIT_BYTES)
    collected, offset = b"", 0
    for position in range(0, len(data), 500):
        log.write(data[position : position + 500])
        piece, offset, _ = read_log(str(tmp_path), offset, 1 << 20)
        collected += piece
    log.close()
    assert collected == data


def test_a_disk_that_refuses_a_write_makes_a_gap_and_not_an_error(tmp_path: Path) -> None:
    directory = tmp_path / "log"
    log = LogWriter(str(directory), LEAST_LIMIT_BYTES)  # the directory is missing: no file can be opened
    log.write(b"lost")
    directory.mkdir()
    log.close()
    data, next_offset, is_truncated = read_log(str(directory), 0, 1000)
    assert MARKER.fullmatch(data)
    assert (next_offset, is_truncated) == (4, True)


def test_an_offset_beyond_the_end_reads_nothing_and_stays(tmp_path: Path) -> None:
    written(str(tmp_path), LEAST_LIMIT_BYTES, [10])
    assert read_log(str(tmp_path), 99, 10) == (b"", 99, False)
