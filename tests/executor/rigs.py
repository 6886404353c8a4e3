"""Drives an executor until something happened: in virtual time by jumping, with real processes by waiting for news."""

import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol, TypeVar

from scheduler.clock import LedgerClock, ManualClock
from scheduler.core.model import (
    GPU_UNITS,
    AccountId,
    Allocation,
    AllocationId,
    Booking,
    DeviceId,
    GpuClass,
    Grant,
    JobId,
    NodeName,
    UserName,
)
from scheduler.executor import Ended, Executor, LaunchSpec, Observation, Shrunk, Started, StartOrder
from scheduler.local import LocalExecutor
from scheduler.simulated import SimulatedExecutor, SimulatedSettings
from scheduler.spawn import LocalSettings
from tests.builders import node

DEADLINE_SECONDS = 20.0
"""How long a test with real processes waits for what takes milliseconds on an idle machine."""

T = TypeVar("T")

_numbers = itertools.count(1)
_NODES = [node("n0"), node("n1")]


def order(
    *argv: str,
    nodes: int = 1,
    limit_ms: int = 60_000,
    grace_seconds: float = 5.0,
    decided_ms: int | None = None,
    array_index: int | None = None,
    environment: Mapping[str, str] | None = None,
    units: int = GPU_UNITS,
    memory_bytes: int = 0,
    **spec: object,
) -> StartOrder:
    number = next(_numbers)
    grants = tuple(
        Grant(NodeName(f"n{rank}"), (DeviceId(f"GPU-n{rank}-0"), DeviceId(f"GPU-n{rank}-1")), units, 0, memory_bytes)
        for rank in range(nodes)
    )
    if units < GPU_UNITS:
        grants = tuple(replace(grant, devices=grant.devices[:1]) for grant in grants)
    allocation = Allocation(
        AllocationId(f"01TESTALLOCATION{number:010d}"),
        JobId(number),
        AccountId("acme/nlp"),
        UserName("mei"),
        GpuClass("H100"),
        Booking.BURST,
        grants,
        LedgerClock().now_ms() if decided_ms is None else decided_ms,
        attempt=1,
        time_limit_ms=limit_ms,
    )
    launch = LaunchSpec(argv or ("true",), "train", environment or {}, grace_seconds=grace_seconds)
    return StartOrder(allocation, replace(launch, **spec), array_index)  # type: ignore[arg-type] # fields by name


def shell(text: str, **options: object) -> StartOrder:
    return order("/bin/sh", "-c", text, **options)  # type: ignore[arg-type] # passed through


class Rig(Protocol):
    """What the contract suite asks of an executor's surroundings."""

    @property
    def executor(self) -> Executor: ...
    def job(
        self, *, seconds: float = 0.0, exit_code: int = 0, limit_ms: int = 60_000, nodes: int = 1
    ) -> StartOrder: ...
    def stubborn_job(self, *, seconds: float) -> StartOrder: ...
    def until_started(self, order: StartOrder) -> Started: ...
    def until_ready(self, order: StartOrder) -> Started: ...
    def until_ended(self, order: StartOrder) -> Ended: ...
    def until_shrunk(self, order: StartOrder) -> Shrunk: ...
    def restart(self) -> Executor: ...
    def close(self) -> None: ...


def find_end(news: list[Observation], order: StartOrder) -> Ended | None:
    return next((n for n in news if isinstance(n, Ended) and n.allocation == order.allocation.id), None)


def find_start(news: list[Observation], order: StartOrder) -> Started | None:
    return next((n for n in news if isinstance(n, Started) and n.allocation == order.allocation.id), None)


def find_shrunk(news: list[Observation], order: StartOrder) -> Shrunk | None:
    return next((n for n in news if isinstance(n, Shrunk) and n.allocation == order.allocation.id), None)


class LocalRig:
    """Real processes under a temporary base directory."""

    def __init__(self, base: Path, settings: LocalSettings | None = None) -> None:
        self.base = base
        self.clock = LedgerClock()
        self.settings = settings or LocalSettings(rescan_seconds=0.3)
        self.executor = self.build()
        self.seen: list[Observation] = []

    def build(self) -> LocalExecutor:
        return LocalExecutor(self.base, self.clock, lambda: _NODES, self.settings)

    def job(self, *, seconds: float = 0.0, exit_code: int = 0, limit_ms: int = 60_000, nodes: int = 1) -> StartOrder:
        return shell(f"sleep {seconds}; exit {exit_code}", limit_ms=limit_ms, nodes=nodes)

    def stubborn_job(self, *, seconds: float) -> StartOrder:
        return shell(f"trap '' TERM; echo ready; sleep {seconds}")

    def until_started(self, order: StartOrder) -> Started:
        return self._until(lambda: find_start(self.seen, order), order)

    def until_ended(self, order: StartOrder) -> Ended:
        return self._until(lambda: find_end(self.seen, order), order)

    def until_shrunk(self, order: StartOrder) -> Shrunk:
        return self._until(lambda: find_shrunk(self.seen, order), order)

    def until_ready(self, order: StartOrder) -> Started:
        """A stubborn job is one only after it has told the kernel so."""
        self.until_printed(order, b"ready")
        return self.until_started(order)

    def until_printed(self, order: StartOrder, text: bytes, rank: int = 0) -> bytes:
        def look() -> bytes | None:
            data = self.executor.logs(order.allocation.id, rank, 0, 1 << 20).data
            return data if text in data else None

        return self._until(look, order)

    def run(self, order: StartOrder) -> Ended:
        self.executor.start(order)
        return self.until_ended(order)

    def output(self, order: StartOrder, rank: int = 0) -> bytes:
        return self.executor.logs(order.allocation.id, rank, 0, 1 << 24).data

    def restart(self) -> LocalExecutor:
        self.executor.close()
        self.executor = self.build()
        return self.executor

    def close(self) -> None:
        """Kills every job that the test left, through the executor itself."""
        self.executor.recover([])
        deadline = time.monotonic() + DEADLINE_SECONDS
        while any((self.base / "runs").iterdir()):
            assert time.monotonic() < deadline, "jobs outlived their test"
            self.executor.wait_for_news(0.05)
            self.executor.observe()
        self.executor.close()

    def _until(self, look: Callable[[], T | None], order: StartOrder) -> T:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while True:
            self.seen += self.executor.observe()
            if (found := look()) is not None:
                return found
            assert time.monotonic() < deadline, f"nothing in {DEADLINE_SECONDS} s for {order.spec.argv}: {self.seen}"
            self.executor.wait_for_news(0.05)


class SimulatedRig:
    """Virtual time, moved from one event to the next."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.executor = self.build()
        self.seen: list[Observation] = []

    def build(self) -> SimulatedExecutor:
        return SimulatedExecutor(self.clock, lambda: _NODES)

    def job(self, *, seconds: float = 0.0, exit_code: int = 0, limit_ms: int = 60_000, nodes: int = 1) -> StartOrder:
        return order(
            nodes=nodes,
            limit_ms=limit_ms,
            decided_ms=self.clock.now_ms(),
            simulated_seconds=seconds,
            simulated_exit_code=exit_code,
        )

    def stubborn_job(self, *, seconds: float) -> StartOrder:
        self.executor = SimulatedExecutor(self.clock, lambda: _NODES, SimulatedSettings(obeys_stop_after_seconds=1e6))
        return self.job(seconds=seconds)

    def until_started(self, order: StartOrder) -> Started:
        while (found := find_start(self.seen, order)) is None:
            self._step()
        return found

    def until_ready(self, order: StartOrder) -> Started:
        return self.until_started(order)

    def until_ended(self, order: StartOrder) -> Ended:
        while (found := find_end(self.seen, order)) is None:
            self._step()
        return found

    def until_shrunk(self, order: StartOrder) -> Shrunk:
        while (found := find_shrunk(self.seen, order)) is None:
            self._step()
        return found

    def restart(self) -> SimulatedExecutor:
        self.executor = self.build()
        return self.executor

    def close(self) -> None:
        self.executor.close()

    def _step(self) -> None:
        news = self.executor.observe()
        self.seen += news
        if not news:
            due_ms = self.executor.next_due_ms()
            assert due_ms is not None, "nothing will ever happen"
            self.clock.move_to(due_ms)
