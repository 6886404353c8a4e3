"""The short way through plain allocations gives what the long way gives, or leaves them to it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.core.usage import UnevenSegment, holding_of, segments_of
from metering.plain_gangs import plain_gang
from scheduler.core.model import AllocationId, Booking, DeviceId, EndReason, GpuClass, Phase, UserName
from scheduler.store.codec import INTERVAL_COLUMNS
from scheduler.store.ledger_allocations import LedgerAllocation, allocations
from tests.metering.centre import Centre

NAMES = [column.name for column in INTERVAL_COLUMNS]
A0, B0 = DeviceId("GPU-a-0"), DeviceId("GPU-b-0")
START_MS = 1_000_000


def row(device: str, from_ms: int, to_ms: int, phase: Phase, **said: Any) -> tuple[Any, ...]:
    values = {
        "sequence": 1,
        "device": device,
        "lane": 0,
        "gpu_class": "H100",
        "from_ms": from_ms,
        "to_ms": to_ms,
        "state": "allocated",
        "units": 12_600,
        "cause": None,
        "phase": phase.value,
        "holder": "acme/vision",
        "job_id": 7,
        "allocation_id": "A1",
        "segment": 1,
        "booking": "burst",
        "gpu_eq_units": 12_600,
        "evidence": "node",
        "recorded_ms": to_ms,
        "idempotency_key": "k/0/1",
        "previous_hash": "",
        "hash": "",
    }
    return tuple((values | said)[name] for name in NAMES)


def allocation(rows: tuple[Any, ...]) -> LedgerAllocation:
    end_ms = max(each[5] for each in rows)
    return LedgerAllocation(
        id=AllocationId("A1"),
        job=7,  # type: ignore[arg-type]  # an id of a test
        job_name="train",
        job_label="7",
        labels={},
        account="acme/vision",  # type: ignore[arg-type]
        user=UserName("mei"),
        gpu_class=GpuClass("H100"),
        booking=Booking.BURST,
        phase=Phase.STOPPING,
        segment=1,
        grants=(),
        decided_ms=START_MS,
        started_ms=START_MS,
        ended_ms=end_ms,
        end_reason=EndReason.CANCELLED,
        rows=rows,
        cursors=(),
    )


def long_way(made: LedgerAllocation) -> object:
    try:
        return segments_of(holding for holding in map(holding_of, made.intervals) if holding is not None)
    except UnevenSegment:
        return UnevenSegment


CHANGES = st.sampled_from(
    [
        {},
        {"units": 6_300},
        {"gpu_eq_units": 20_000},
        {"lane": 1},
        {"booking": "spot"},
        {"segment": 2},
        {"device": "GPU-9"},
        {"from_ms": START_MS + 1},
        {"to_ms": START_MS + 40_000},
        {"phase": "starting"},
        {"phase": "stopping"},
        {"evidence": "heartbeat"},
    ]
)


@given(
    st.integers(1, 3),
    st.lists(st.tuples(st.sampled_from(list(Phase)), st.integers(1, 9_000)), min_size=1, max_size=4),
    st.integers(0, 11),
    CHANGES,
    st.randoms(use_true_random=False),
)
def test_the_short_way_says_what_the_long_way_says_or_nothing(
    gpus: int, spans: list[tuple[Phase, int]], place: int, change: dict[str, Any], order: Any
) -> None:
    rows, at_ms = [], START_MS
    for phase, lasts_ms in spans:
        rows += [row(f"GPU-{number}", at_ms, at_ms + lasts_ms, phase) for number in range(gpus)]
        at_ms += lasts_ms
    changed = dict(zip(NAMES, rows[place % len(rows)], strict=True)) | change
    rows[place % len(rows)] = tuple(changed[name] for name in NAMES)
    order.shuffle(rows)
    made = allocation(tuple(rows))
    gang = plain_gang(made)
    if gang is not None:
        assert gang.segments == long_way(made)


def test_a_gang_that_started_ran_and_stopped_is_plain() -> None:
    spans = ((0, 10, Phase.STARTING), (10, 500, Phase.RUNNING), (500, 520, Phase.STOPPING))
    rows = tuple(row(device, *span) for span in spans for device in ("GPU-1", "GPU-0"))
    gang = plain_gang(allocation(rows))
    assert gang is not None
    assert (gang.from_ms, gang.to_ms, gang.running_ms, gang.devices) == (0, 520, 10, ("GPU-0", "GPU-1"))
    assert gang.segments == long_way(allocation(rows))
    assert plain_gang(allocation(rows[:2])) == replace(gang, segments=[], to_ms=10, running_ms=None)


@pytest.mark.parametrize("hours", [1, 30])
def test_real_allocations_of_both_kinds_are_read_alike(centre: Centre, tmp_path: Path, hours: int) -> None:
    centre.run(A0, B0, hours=hours)
    centre.running(centre.start(A0, B0))
    centre.clock.advance(hours=1)
    with centre.read() as connection:
        ended, live = allocations(connection, 0, centre.now_ms)
        gang = plain_gang(ended)
        assert gang is not None
        assert gang.segments == long_way(ended)
        assert plain_gang(live) is None
