"""A real controller over a fresh SQLite database and the simulated executor."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from scheduler.clock import LedgerClock
from scheduler.core.model import AccountId, AllocationId, EndReason, JobId, UserName
from scheduler.core.policy import Policy
from scheduler.executor import Executor, LogChunk, NodeInventory, Observation, StartOrder
from scheduler.loop import Controller
from scheduler.observer import Observer, Unobserved
from scheduler.simulated import SimulatedExecutor, SimulatedSettings
from scheduler.store.accounts import SaveAccount
from scheduler.store.database import Database
from scheduler.store.jobs import JobDraft, SubmitJobs
from scheduler.store.lease import LeaderLease
from tests.builders import account, launch, node, shape
from tests.databases import new_sqlite

SECONDS = 20.0


class World:
    """One database, and daemons that come and go over it."""

    def __init__(self, folder: Path) -> None:
        self.url = new_sqlite(folder / "turnstile.db")
        self.clock = LedgerClock()
        self.nodes: list[NodeInventory] = [node("n1"), node("n2")]
        self.open: list[Controller] = []
        self.executors: list[SimulatedExecutor] = []

    def daemon(
        self,
        holder: str = "first",
        ttl_ms: int = 60_000,
        wrap: Callable[[SimulatedExecutor], Executor] = lambda executor: executor,
        settings: SimulatedSettings | None = None,
        observer: Observer | None = None,
    ) -> Controller:
        """Starts a daemon's controller; it leads unless another does."""
        database = Database.open(self.url)
        executor = SimulatedExecutor(self.clock, lambda: self.nodes, settings)
        lease = LeaderLease(database, holder, f"http://{holder}.invalid", ttl_ms)
        controller = Controller(database, wrap(executor), self.clock, Policy(), lease, observer or Unobserved())
        controller.start()
        self.open.append(controller)
        self.executors.append(executor)
        assert controller.wait_until_settled(SECONDS), controller.health()
        return controller

    def leader(self, **more: object) -> Controller:
        """Starts a daemon with the accounts that the tests use, once its inventory is known."""
        controller = self.daemon(**more)  # type: ignore[arg-type]  # passed on as they came
        for name in ("acme", "acme/nlp"):
            controller.carry_out(SaveAccount(account(name), name)).result(SECONDS)
        until(controller, lambda: len(controller.offers) > 0)
        return controller

    def close(self) -> None:
        for controller in self.open:
            controller.stop()
            controller.database.dispose()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


def submit(controller: Controller, *, gpus: int = 1, seconds: float = 0.0, count: int = 1) -> list[JobId]:
    """Submits like jobs, each by a command of its own, and waits until they are durable."""
    futures = [
        controller.carry_out(
            SubmitJobs(
                (
                    JobDraft(
                        AccountId("acme/nlp"),
                        UserName("mei"),
                        f"job-{index}",
                        shape(gpus=gpus),
                        3_600_000,
                        launch("true", seconds=seconds),
                    ),
                ),
                AccountId("acme"),
                UserName("mei"),
                None,
                None,
            )
        )
        for index in range(count)
    ]
    return [job for future in futures for job in future.result(SECONDS)]


def until(controller: Controller, is_so: Callable[[], bool]) -> None:
    """Waits for something to come true, looking after every change; fails after a while."""
    seen = controller.version
    for _ in range(2000):
        if is_so():
            return
        seen = controller.wait_for_change(seen, 0.05)
    raise AssertionError("it did not come true in time")


class Slow:
    """An executor whose starts are carried out late, with everything else as the one inside does it."""

    def __init__(self, inside: SimulatedExecutor, refuse: Callable[[StartOrder], None]) -> None:
        self._inside = inside
        self._refuse = refuse

    def start(self, order: StartOrder) -> None:
        self._refuse(order)
        self._inside.start(order)

    def inventory(self) -> Sequence[NodeInventory]:
        return self._inside.inventory()

    def recover(self, live: Sequence[StartOrder]) -> None:
        self._inside.recover(live)

    def stop(self, allocation: AllocationId, grace_seconds: float, reason: EndReason) -> None:
        self._inside.stop(allocation, grace_seconds, reason)

    def extend(self, allocation: AllocationId, time_limit_ms: int) -> None:
        self._inside.extend(allocation, time_limit_ms)

    def observe(self) -> Sequence[Observation]:
        return self._inside.observe()

    def acknowledge(self, allocation: AllocationId) -> None:
        self._inside.acknowledge(allocation)

    def wait_for_news(self, timeout_seconds: float) -> bool:
        return self._inside.wait_for_news(timeout_seconds)

    def wake(self) -> None:
        self._inside.wake()

    def logs(self, allocation: AllocationId, node_rank: int, offset: int, limit_bytes: int) -> LogChunk:
        return self._inside.logs(allocation, node_rank, offset, limit_bytes)

    def close(self) -> None:
        self._inside.close()
