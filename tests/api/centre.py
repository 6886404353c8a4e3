"""A centre behind the real API: the real store, state and planner, driven by hand in the caller's thread.

What threads do in the daemon (commit, plan, observe) happens here inside the call, so tests are deterministic; the
daemon's own controller is driven by `test_real_controller`.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

from fastapi import FastAPI
from ulid import ULID

from cli.daemon.attendance import Attendance
from metering.admission import BudgetAdmission
from metering.billing_routes import billing_routes
from metering.budget_routes import budget_routes
from metering.budget_section import budget_section
from metering.closing import PeriodTerms
from metering.focus import FocusTerms
from metering.period_routes import period_routes
from metering.routes import ledger_routes
from scheduler.auth import Role, new_secret, secret_hash
from scheduler.checkup import Check, Checkup
from scheduler.clock import ManualClock
from scheduler.core.calibration import PastEstimates, TrackRecord
from scheduler.core.cycle import plan
from scheduler.core.model import Account, AccountId, AllocationId, EndReason, Grant, JobId, PoolName, UserName
from scheduler.core.occupancy import Evidence
from scheduler.core.plan import Plan
from scheduler.core.policy import Policy
from scheduler.core.state import ClusterState
from scheduler.executor import Ended, Enterable, LogChunk, NodeInventory, Started
from scheduler.planner import Offer, offers_of
from scheduler.routes.app import api
from scheduler.routes.checkups import checkup_routes
from scheduler.routes.needs import ApiSettings
from scheduler.store.accounts import SaveAccount
from scheduler.store.allocations import ApplyPlan
from scheduler.store.database import Database
from scheduler.store.inventory import SyncInventory
from scheduler.store.observations import RecordObservations
from scheduler.store.tokens import SaveToken
from scheduler.store.write import Command, Writer
from scheduler.telemetry import Telemetry
from tests.builders import START_MS, node

T = TypeVar("T")
PERIODS = PeriodTerms("Asia/Shanghai", 72 * 3_600_000, FocusTerms())


class Centre:
    """Satisfies `scheduler.routes.needs.Controller` over a database that was migrated already."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.policy = Policy()
        self.clock = ManualClock(START_MS)
        self.is_leading = True
        self.leader_url: str | None = None
        self.problems: list[str] = []
        self.entrance: Enterable | None = None
        self.outputs: dict[tuple[str, int], tuple[bytes, bool]] = {}
        self.broken: Exception | None = None
        """What the next commands fail with, as when the database is away."""
        self.admission = BudgetAdmission()
        self._writer = Writer(database, self.clock, self.policy, None, self.admission)
        self._state = ClusterState()
        self._plan = Plan(0, START_MS)
        self._lock = threading.Lock()
        self._listeners: list[Callable[[], None]] = []
        self.past = PastEstimates()
        self.is_hanging = False
        """True: no question is answered, as while a tick hangs."""
        self._unanswered: list[Callable[[], None]] = []

    # ---- what the routes need -------------------------------------------------------------------------------------

    @property
    def offers(self) -> Sequence[Offer]:
        return offers_of(self._state)

    def carry_out(self, command: Command[T]) -> Future[T]:
        done: Future[T] = Future()
        try:
            done.set_result(self.commit(command))
        except Exception as problem:  # noqa: BLE001 -- a future carries whatever its work raised
            done.set_exception(problem)
        return done

    def ask(self, question: Callable[[ClusterState, Plan], T]) -> Future[T]:
        done: Future[T] = Future()
        if self.is_hanging:
            self._unanswered.append(lambda: done.set_result(question(self._state, self._plan)))
            return done
        with self._lock:
            done.set_result(question(self._state, self._plan))
        return done

    def go_on(self) -> None:
        """Ends `is_hanging`, and answers what was asked meanwhile."""
        self.is_hanging = False
        while self._unanswered:
            self._unanswered.pop()()

    def logs(self, allocation: AllocationId, node_rank: int, offset: int, limit_bytes: int) -> LogChunk:
        written, is_complete = self.outputs[allocation, node_rank]
        data = written[offset : offset + limit_bytes]
        end = offset + len(data)
        return LogChunk(data, end, is_complete=is_complete and end >= len(written))

    def health(self) -> list[str]:
        return self.problems

    def track_record(self, pool: PoolName) -> TrackRecord | None:
        return self.past.record(pool)

    def on_change(self, listener: Callable[[], None]) -> Callable[[], None]:
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    # ---- what tests drive -----------------------------------------------------------------------------------------

    def commit(self, command: Command[T]) -> T:
        with self._lock:
            if self.broken is not None:
                raise self.broken
            value, happened = self._writer.run(command)
            for event in happened:
                self._state.apply(event)
        for listener in tuple(self._listeners):
            listener()
        return value

    def has_nodes(self, *nodes: NodeInventory) -> None:
        self.commit(SyncInventory(nodes, Evidence.CONTROLLER))

    def has_account(self, name: str, **terms: Any) -> None:
        self.commit(SaveAccount(Account(AccountId(name), **terms), name))

    def token(self, role: Role, account: str = "", user: str = "ana", *, lifetime_ms: int | None = None) -> str:
        secret = new_secret()
        expires_ms = None if lifetime_ms is None else self.clock.now_ms() + lifetime_ms
        command = SaveToken(
            str(ULID()), secret_hash(secret), role.value, AccountId(account), UserName(user), expires_ms
        )
        self.commit(command)
        return secret

    def tick(self) -> None:
        """Plans, starts what can start, and lets it run."""
        with self._lock:
            self._plan = plan(self._state, self.policy, self.clock.now_ms(), self._plan.decision + 1)
        applied = self.commit(ApplyPlan(self._plan))
        started = tuple(Started(order.allocation.id, self.clock.now_ms()) for order in applied.started)
        if started:
            self.commit(RecordObservations(started))
            with self._lock:
                self._plan = plan(self._state, self.policy, self.clock.now_ms(), self._plan.decision + 1)

    def ends(self, job: int, exit_code: int = 0) -> None:
        """The job's processes end by themselves, or as they were asked to."""
        allocation = self._state.allocations[self.allocation_of(job)]
        reason = allocation.stop_reason or (EndReason.EXIT_NONZERO if exit_code else None)
        self.commit(RecordObservations((Ended(allocation.id, self.clock.now_ms(), exit_code, reason),)))

    def grants_of(self, job: int) -> tuple[Grant, ...]:
        return self._state.allocations[self.allocation_of(job)].grants

    def allocation_of(self, job: int) -> AllocationId:
        allocation = self._state.jobs[JobId(job)].allocation
        assert allocation is not None, f"job {job} runs"
        return allocation

    def writes(self, job: int, output: bytes, *, is_complete: bool = False, rank: int = 0) -> None:
        allocation = self.allocation_of(job)
        before, _ = self.outputs.get((allocation, rank), (b"", False))
        self.outputs[allocation, rank] = (before + output, is_complete)


def two_tenants(database: Database) -> Centre:
    """A centre of two H100 and one A100 node, with the tenants acme (vision, nlp) and zeta (lab)."""
    centre = Centre(database)
    centre.has_nodes(
        node("h1"), node("h2"), node("a1", gpus=4, gpu_class="A100", pool="old", labels={"gpu_memory_bytes": "80"})
    )
    for name in ("acme", "acme/vision", "acme/nlp", "zeta", "zeta/lab"):
        centre.has_account(name)
    return centre


def app_of(centre: Centre, **settings: Any) -> FastAPI:
    """The app as the daemon puts it together."""
    limits = ApiSettings(version="1.2.3", **settings)
    checks: Sequence[Checkup] = (lambda: [Check("disk", is_ok=False, detail="full", advice="make room")],)
    routes = (
        partial(checkup_routes, checks),
        ledger_routes,
        budget_routes(centre.admission.zone),
        period_routes(PERIODS),
        billing_routes(PERIODS),
        Attendance().routes,
    )
    return api(centre, centre.admission, limits, Telemetry("1.2.3"), routes, (budget_section(centre.admission.zone),))
