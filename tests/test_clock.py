"""The ledger's clock never goes back, whatever the wall clock and the threads do."""

import threading
import time

import pytest

from scheduler.clock import LedgerClock, iso_utc, parse_utc_ms


def test_a_wall_clock_that_is_set_back_does_not_take_the_ledger_back(monkeypatch: pytest.MonkeyPatch) -> None:
    wall_ns, monotonic_ns = 1_000_000_000_000, 5_000_000_000
    monkeypatch.setattr(time, "time_ns", lambda: wall_ns)
    monkeypatch.setattr(time, "monotonic_ns", lambda: monotonic_ns)
    clock = LedgerClock()
    assert clock.now_ms() == 1_000_000
    wall_ns -= 3_600_000_000_000
    monotonic_ns += 2_000_000_000
    assert clock.now_ms() == 1_002_000
    wall_ns += 3_600_000_000_000 + 10_000_000_000
    assert clock.now_ms() == 1_010_000


def test_a_clock_starts_at_what_the_ledger_knows() -> None:
    floor_ms = time.time_ns() // 1_000_000 + 86_400_000
    assert LedgerClock(floor_ms).now_ms() >= floor_ms
    clock = LedgerClock()
    clock.raise_floor(floor_ms)
    assert clock.now_ms() >= floor_ms


def test_threads_never_see_an_earlier_time_than_was_given_out() -> None:
    clock = LedgerClock()
    latest = 0
    guard = threading.Lock()
    failures: list[tuple[int, int]] = []

    def look() -> None:
        nonlocal latest
        for _ in range(3000):
            with guard:
                before = latest
            now = clock.now_ms()
            if now < before:
                failures.append((before, now))
            with guard:
                latest = max(latest, now)

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_times_survive_being_written_and_read() -> None:
    assert parse_utc_ms(iso_utc(1_790_000_000_123)) == 1_790_000_000_123
    with pytest.raises(ValueError, match="has no time zone"):
        parse_utc_ms("2026-11-23T12:00:00")
