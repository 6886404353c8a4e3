"""The part of verification that asks about the chain: hashes, sequence, whether rows can be read; and follows devices.

Where several processes read, each proves a segment of the chain from the row before it, and the joints are held against
each other: a segment begins with the very hash that the one before it ended with. That way only says that all holds;
where anything does not, the chain is walked again from its beginning by one, who names every place.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import InvalidOperation
from functools import partial
from itertools import pairwise
from operator import itemgetter
from typing import Any

from sqlalchemy.engine import Connection

from metering.findings import Check, Report
from metering.tracks import Tracks
from scheduler.core.occupancy import GENESIS_HASH, RowHashes, interval_hash
from scheduler.store.codec import interval_of
from scheduler.store.ledger_rows import chain_pages, hash_at, last_sequence
from scheduler.store.read import ledger_head
from scheduler.store.readers import Readers

MOST_SHAPES = 4_096
"""Combinations of words in rows that are remembered as readable; there are a few dozen."""
SEGMENT_ROWS = 50_000
"""Rows that a process proves at once: half a second's work."""
UNREADABLE = (ValueError, LookupError, AssertionError, TypeError, InvalidOperation)
"""What reading a row raises that says an unknown word, half a holder, or a text where a number belongs."""
_STATE, _PHASE, _BOOKING, _EVIDENCE, _PREVIOUS, _HASH = 6, 9, 14, 16, 19, 20
_HOLDER = slice(10, 14)
"""Places in a row of `codec.INTERVAL_COLUMNS`."""
_WHOLE = (0, 4)
"""How much of a holder a row lacks, that it may."""
_words = itemgetter(_STATE, _PHASE, _BOOKING, _EVIDENCE)
Shapes = set[object]
Segment = tuple[int, int]
"""The sequence after which it begins, and its last."""


def verify_chain(readers: Readers[Connection], report: Report) -> tuple[bool, Tracks]:
    """Checks hashes and sequence, and follows each device; returns whether every row could be read, and the devices."""
    connection = readers.source
    tracks = Tracks()
    if readers.processes > 1 and _is_proved(readers, report, tracks):
        return True, tracks
    tracks = Tracks()
    is_readable = _walk(connection, report, tracks)
    return is_readable, tracks


def _walk(connection: Connection, report: Report, tracks: Tracks) -> bool:
    sequence, previous, is_readable = 0, GENESIS_HASH, True
    shapes: Shapes = set()  # what has been read once can be read again
    hashes = RowHashes()
    for page in chain_pages(connection):
        report.count("rows", len(page))
        for row in page:
            if not _is_next(row, (sequence, previous), shapes, hashes):
                is_readable &= _explain(report, row, (sequence, previous), shapes)
            sequence, previous = row[0], row[_HASH]
            tracks.follow(row)
    _expect_head(connection, report, (sequence, previous))
    return is_readable


def _is_next(row: Any, before: tuple[int, str], shapes: Shapes, hashes: RowHashes) -> bool:
    """Says whether a row is plainly what follows the one before; a row that is not may still be."""
    sequence, previous = before
    return (
        row[0] == sequence + 1
        and row[_PREVIOUS] == previous
        and (row[_HOLDER].count(None), *_words(row)) in shapes
        and hashes.of(previous, row) == row[_HASH]
    )


def _explain(report: Report, row: Any, before: tuple[int, str], shapes: Shapes) -> bool:
    """Says what is wrong with a row, if anything is; returns whether it can be read."""
    where = f"sequence {row[0]}"
    report.expect(Check.SEQUENCE, where, before[0] + 1, row[0])
    report.expect(Check.CHAIN, f"{where} previous_hash", before[1], row[_PREVIOUS])
    try:
        interval = interval_of(row)
    except UNREADABLE as error:
        report.wrong(Check.CHAIN, where, "a row that can be read", repr(error))
        return False
    lacking = row[_HOLDER].count(None)
    # With all of a holder or nothing of one, what there is decides whether a row can be read.
    if lacking in _WHOLE and len(shapes) < MOST_SHAPES:
        shapes.add((lacking, *_words(row)))
    report.expect(Check.CHAIN, where, f"hash {interval_hash(row[_PREVIOUS], interval)}", f"hash {row[_HASH]}")
    return True


def _expect_head(connection: Connection, report: Report, last: tuple[int, str]) -> None:
    head = ledger_head(connection)
    report.expect(Check.SEQUENCE, "ledger_head sequence", last[0], head.sequence)
    report.expect(Check.SEQUENCE, "ledger_head hash", last[1], head.hash)


@dataclass(frozen=True, slots=True)
class _Proof:
    """What a segment that holds begins after and ends with, and what its devices were meanwhile."""

    before: tuple[int, str]
    last: tuple[int, str]
    rows: int
    tracks: Tracks


@dataclass(frozen=True, slots=True)
class _Segments:
    """The work of proving segments of the chain."""

    def begin(self, connection: Connection) -> Callable[[Segment], _Proof | None]:
        """Returns what proves a segment."""
        return partial(_proved, connection, set(), RowHashes())


def _proved(connection: Connection, shapes: Shapes, hashes: RowHashes, segment: Segment) -> _Proof | None:
    """Returns the proof of a segment; None where anything about it does not hold."""
    after, until = segment
    hash_before = GENESIS_HASH if after == 0 else hash_at(connection, after)
    if hash_before is None:
        return None
    tracks, count = Tracks(), 0
    sequence, previous = after, hash_before
    follow = tracks.follow
    for page in chain_pages(connection, after, until):
        count += len(page)
        for row in page:
            if not _is_next(row, (sequence, previous), shapes, hashes):
                aside = Report()
                _explain(aside, row, (sequence, previous), shapes)
                if not aside.is_proved:
                    return None
            sequence, previous = row[0], row[_HASH]
            follow(row)
    return _Proof((after, hash_before), (sequence, previous), count, tracks)


def _is_proved(readers: Readers[Connection], report: Report, tracks: Tracks) -> bool:
    """Proves the chain by segments; returns whether all of it holds, and says nothing where it does not."""
    final = last_sequence(readers.source)
    edges = [*range(0, final, SEGMENT_ROWS), final]
    last, rows = (0, GENESIS_HASH), 0
    proofs: Iterator[_Proof | None] = readers.each(_Segments(), pairwise(edges))
    for proof in proofs:
        if proof is None or proof.before != last:
            return False
        last, rows = proof.last, rows + proof.rows
        tracks.append(proof.tracks)
    head = ledger_head(readers.source)
    if last != (head.sequence, head.hash):
        return False
    report.count("rows", rows)
    return True
