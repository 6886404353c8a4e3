"""Rows of a chain hashed with what repeats remembered: the same hashes as one by one, whatever stands in a row."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.occupancy import GENESIS_HASH, RowHashes, fields_hash

TEXTS = st.sampled_from(["", "-", "0", "1:a", "GPU-0", "acme/vision", "训练", "x" * 255, "x" * 256, "a\x1f1:b"])
NUMBERS = st.sampled_from([-1, 0, 7, 12_600, 10**12 - 1, 10**12, 1_793_462_400_000, 10**13 - 1, 10**13])
HELD = st.tuples(*[st.one_of(st.none(), TEXTS, NUMBERS)] * 11)
PLACES = st.tuples(TEXTS, NUMBERS, TEXTS)
KEYS = st.one_of(TEXTS, st.none(), NUMBERS)
PREVIOUS = st.sampled_from([GENESIS_HASH, "a" * 64, "a" * 63, ""])


@st.composite
def rows(draw: st.DrawFn) -> list[tuple[str, tuple[Any, ...]]]:
    places, held = draw(st.lists(PLACES, min_size=1, max_size=3)), draw(st.lists(HELD, min_size=1, max_size=3))
    made = []
    for _ in range(draw(st.integers(1, 8))):
        place, what = draw(st.sampled_from(places)), draw(st.sampled_from(held))
        times = draw(NUMBERS), draw(NUMBERS)
        row = (draw(NUMBERS), *place, *times, *what, draw(st.one_of(NUMBERS, st.none())), draw(KEYS), "before", "hash")
        made.append((draw(PREVIOUS), row))
    return made


@given(rows())
def test_remembered_pieces_give_the_hashes_of_whole_rows(listed: list[tuple[str, tuple[Any, ...]]]) -> None:
    hashes = RowHashes()
    for previous, row in listed:
        assert hashes.of(previous, row) == fields_hash((previous, *row[:19]))
