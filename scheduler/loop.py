"""The controller: leads or follows, and while it leads joins the desk, the planner and the runner into one loop.

    command ─► desk (one transaction) ─► events ─► planner (state, tick) ─► plan ─► desk ─► runner ─► executor
                                                                                      ▲                  │
                                                                                      └── observations ◄─┘

A term of leadership begins with the lease and with a state rebuilt from the database, and ends when the lease is lost,
the store fails in a way that leaves a commit in doubt, or the planner contradicts itself. The next term begins the
same way: there is no path of recovery but the one that every start takes.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

from scheduler.admission import Admission, FreeOfCharge
from scheduler.clock import LedgerClock
from scheduler.core.calibration import KEPT, TrackRecord
from scheduler.core.events import AllocationExtended, AllocationStopping, Event
from scheduler.core.model import AllocationId, PoolName
from scheduler.core.plan import Plan
from scheduler.core.policy import Policy
from scheduler.core.state import ClusterState
from scheduler.desk import Desk
from scheduler.executor import Enterable, Executor, ExecutorError, LogChunk
from scheduler.observer import Observer
from scheduler.planner import Offer, Planner
from scheduler.recorder import Recorder
from scheduler.refusal import RefusalCode, Refused
from scheduler.runner import Runner
from scheduler.store.database import Database, Fenced, StoreBusy, StoreError
from scheduler.store.decisions import past_estimates
from scheduler.store.lease import LeaderLease
from scheduler.store.read import build_state, latest_known_ms, live_orders, load_state_parts
from scheduler.store.write import Command, Writer

T = TypeVar("T")
logger = logging.getLogger(__name__)

LEASE_TTL_MS = 10_000
"""A follower takes over within 15 s of the leader's death (the promise): the lease's end plus one look."""
LOOK_SECONDS = 2.0
"""Between a follower's looks at the lease, a leader's renewals, and tries to begin a term again."""

QUIET_MS = 60_000
"""Without a tick for so long one hangs: a planner with nothing to do ticks each five seconds."""


@dataclass(slots=True)
class _Term:
    """What exists while this daemon leads."""

    desk: Desk
    planner: Planner
    runner: Runner
    recorder: Recorder


class Controller:
    """Carries out commands, answers questions, keeps the loop going. Safe to call from any thread."""

    def __init__(
        self,
        database: Database,
        executor: Executor,
        clock: LedgerClock,
        policy: Policy,
        lease: LeaderLease,
        observer: Observer,
    ) -> None:
        self.database = database
        self.executor = executor
        self.clock = clock
        self.policy = policy
        self.admission: Admission = FreeOfCharge()
        """Prices and budgets: whoever puts the daemon together sets it before the start."""
        self.entrance: Enterable | None = None
        """The way into running jobs, set likewise; None where the executor offers none."""
        self._lease = lease
        self._observer = observer
        self._term: _Term | None = None
        self._delivering: _Term
        self._offers: tuple[Offer, ...] = ()
        self._is_following = False
        self._must_end = threading.Event()
        self._is_closing = threading.Event()
        self._changed = threading.Condition()
        self._version = 0
        self._listeners: list[Callable[[], None]] = []
        self._trouble: str | None = "this daemon is starting"
        self._thread = threading.Thread(target=self._run, name="leader", daemon=True)

    # ---- what everybody calls -------------------------------------------------------------------------------------

    def carry_out(self, command: Command[T]) -> Future[T]:
        """Returns a future that has the command's answer after its commit. Raises Refused when this daemon can't."""
        return self._leading().desk.carry_out(command)

    def ask(self, question: Callable[[ClusterState, Plan], T]) -> Future[T]:
        """Runs a read-only question about the state between two ticks. Raises Refused when this daemon can't."""
        return self._leading().planner.ask(question)

    def track_record(self, pool: PoolName) -> TrackRecord | None:
        """Returns what the last start estimates of a pool were worth; None before the first of this term."""
        term = self._term
        return None if term is None else term.planner.forecasts.record(pool)

    @property
    def offers(self) -> tuple[Offer, ...]:
        """The sizes of nodes that exist; empty until a first inventory. Takes no lock."""
        term = self._term
        return term.planner.offers if term is not None else self._offers

    @property
    def is_leading(self) -> bool:
        """True while commands are carried out here."""
        return self._term is not None

    @property
    def leader_url(self) -> str | None:
        """Where the leader's API answers, if another daemon leads; None when none does or the database is away."""
        if not self._is_following:
            return None
        try:
            leader = self._lease.leader()
        except StoreError:
            return None
        return None if leader is None else leader.url

    def logs(self, allocation: AllocationId, node_rank: int, offset: int, limit_bytes: int) -> LogChunk:
        """Returns part of an allocation's output. Raises KeyError when nothing is known of it, ExecutorError."""
        return self.executor.logs(allocation, node_rank, offset, limit_bytes)

    def refresh_inventory(self) -> None:
        """Has the executor's nodes read again soon; does nothing on a follower."""
        term = self._term
        if term is not None:
            term.runner.refresh_inventory()

    def health(self) -> list[str]:
        """Returns what is wrong, in words; empty when ready."""
        term = self._term
        if term is None:
            return [self._trouble or "this daemon does not lead"]
        quiet_ms = self.clock.now_ms() - term.planner.last_tick_ms
        hangs = f"a tick hangs: none for {quiet_ms // 1000} s; restart the daemon" if quiet_ms > QUIET_MS else None
        problems = (term.planner.problem, hangs, term.runner.problem)
        return [problem for problem in problems if problem is not None]

    @property
    def version(self) -> int:
        """Rises after every batch that changed something."""
        return self._version

    def wait_for_change(self, seen: int, timeout_seconds: float) -> int:
        """Sleeps until the version is not `seen` or the time is over; returns the version then."""
        with self._changed:
            self._changed.wait_for(lambda: self._version != seen, timeout_seconds)
            return self._version

    def on_change(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Calls `listener` (quick, on the desk's thread) after every change; returns how to stop that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    # ---- terms of leadership --------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begins to lead, or to wait for the lead; returns at once."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the term, gives the lease back, lets go of the executor. Jobs keep running."""
        self._is_closing.set()
        self._must_end.set()
        self._thread.join()
        self.executor.close()

    def wait_until_settled(self, timeout_seconds: float) -> bool:
        """Sleeps until this daemon leads or knows that it follows; False when the time was not enough."""
        with self._changed:
            return self._changed.wait_for(lambda: self.is_leading or self._is_following, timeout_seconds)

    def _run(self) -> None:
        while not self._is_closing.is_set():
            try:
                self._lead_once()
            except (StoreError, ExecutorError) as problem:
                self._trouble = str(problem)
                logger.warning("cannot lead: %s", problem)
            except Exception as problem:
                # The loop's edge: the next term starts from the store again, which is right by construction.
                self._trouble = f"cannot lead: {type(problem).__name__}"
                logger.exception("a term of leadership broke")
            self._is_closing.wait(LOOK_SECONDS)

    def _lead_once(self) -> None:
        epoch = self._lease.acquire(self.clock.now_ms())
        self._is_following = epoch is None
        if epoch is None:
            self._trouble = "another daemon leads"
            with self._changed:
                self._changed.notify_all()
            return
        self._must_end.clear()
        if self._is_closing.is_set():
            self._lease.release()
            return
        term = self._begin(epoch)
        logger.info("leads, epoch %d", epoch)
        try:
            self._announce(term)
            while not self._must_end.wait(LOOK_SECONDS):
                self._renew()
                if term.planner.problem is not None:
                    self._trouble = term.planner.problem
                    break
        except Fenced as problem:
            self._trouble = str(problem)
            logger.warning("lost the lead: %s", problem)
        finally:
            self._finish(term)

    def _renew(self) -> None:
        """Extends the lease. Raises Fenced, StoreError."""
        try:
            self._lease.renew(self.clock.now_ms())
        except StoreBusy as problem:
            # A write takes long, as the first of ten thousand GPUs does on a busy machine. That is no reason to give
            # the lead up: nobody takes it past an open write, each write checks it, and a long one extends it.
            logger.warning("the lease was not renewed, which is tried again: %s", problem)
            return
        # A durable write: where nothing happens, the age of the ledger's last one must not look like a lag.
        self._observer.ledger_posted(self.clock.now_ms())

    def _begin(self, epoch: int) -> _Term:
        with self.database.read() as connection:
            self.clock.raise_floor(latest_known_ms(connection))
            half_life_ms = self.policy.debt_half_life_ms
            parts = load_state_parts(connection, half_life_ms)
            state = build_state(parts, half_life_ms)
            live = live_orders(connection)
            pools = sorted({room.node.pool for room in state.capacity.rooms.values()})
            measured = past_estimates(connection, pools, KEPT)
            told = tuple(self.admission.headroom(connection, self.clock.now_ms()))
            for event in told:
                state.apply(event)
        writer = Writer(self.database, self.clock, self.policy, epoch, self.admission, lease=self._lease)
        desk = Desk(writer, self._deliver, self._must_end.set)
        runner = Runner(self.executor, self.clock, desk, live)
        recorder = Recorder(self.database, self.admission, self.policy, self.clock, epoch)
        planner = Planner(state, self.policy, self.clock, desk, runner.launch, self._observer)
        planner.recorder = recorder
        planner.forecasts.recall(measured)
        term = _Term(desk, planner, runner, recorder)
        runner.recover()
        self._delivering = term
        desk.start()
        recorder.begin(desk, parts, told)
        runner.start()
        planner.start()
        return term

    def _announce(self, term: _Term) -> None:
        self._term = term
        self._trouble = None
        self._bump()

    def _finish(self, term: _Term) -> None:
        self._offers = term.planner.offers
        self._term = None
        term.runner.stop()
        term.recorder.stop()
        term.desk.stop()
        term.planner.stop()
        try:
            self._lease.release()
        except StoreError as problem:
            logger.warning("the lease was not given back: %s", problem)
        self._bump()

    def _leading(self) -> _Term:
        term = self._term
        if term is None:
            raise Refused(RefusalCode.UNAVAILABLE, f"{self._trouble or 'this daemon does not lead'}; try again soon")
        return term

    def _deliver(self, happened: Sequence[Event]) -> None:
        """Runs on the desk's thread, in commit order, before any caller learns that its command is done."""
        term = self._delivering
        term.recorder.delivered(happened)
        term.planner.take_in(happened)
        for event in happened:
            if isinstance(event, AllocationStopping) and not event.is_with_gang:
                term.runner.end(event.allocation, event.reason, event.gang)
            elif isinstance(event, AllocationExtended) and event.surplus_of is None:
                term.runner.extend(event.allocation, event.time_limit_ms)
        self._observer.ledger_posted(self.clock.now_ms())
        self._bump()

    def _bump(self) -> None:
        with self._changed:
            self._version += 1
            self._changed.notify_all()
        for listener in tuple(self._listeners):
            listener()
