"""The composition root: puts a daemon together from its settings, runs it, takes it apart.

    settings ─► data directory (locked) ─► database (migrated) ─► clock, GPUs, executor ─► controller ─► API

Nothing else in the project knows all the parts. APScheduler rings the bell for periodic work here and nowhere else.
"""

import fcntl
import gc
import logging
import os
import platform
import signal
import socket
import sys
from collections.abc import Callable
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import IO, TYPE_CHECKING

import uvicorn
from apscheduler.schedulers.background import BackgroundScheduler
from platformdirs import user_data_path

from cli.daemon import migrate
from cli.daemon.attendance import LOOK_SECONDS, Attendance
from cli.daemon.bootstrap import bootstrap
from cli.daemon.checkups import Patient, checkups
from cli.daemon.decisions import FORGET_SECONDS, forget_decisions
from cli.daemon.gpus import Gpus, no_gpus, real_gpus, simulated_gpus
from cli.daemon.guarantees import GuaranteeWatch
from cli.daemon.idleness import idle_watch
from cli.daemon.money import KEEP_SECONDS, WHOLE_SECONDS, BudgetKeeper, centre_zone
from cli.daemon.notifier import notifier_of
from cli.daemon.periods import PERIODS_SECONDS, PRUNE_HOURS, PeriodTurns, period_terms
from cli.daemon.settings import Settings, SettingsProblem
from cli.daemon.tracing import Traces, TracingProblem, traces_of
from cli.daemon.turns import Turns
from metering.admission import BudgetAdmission
from metering.billing_routes import billing_routes
from metering.budget_routes import budget_routes
from metering.budget_section import budget_section
from metering.budget_watch import BudgetCollector
from metering.ledger_watch import BLIND_MS, LedgerCollector, LedgerWatch
from metering.period_routes import period_routes
from metering.period_watch import PeriodCollector
from metering.routes import ledger_routes
from metering.samples import StoreWindows
from metering.telemetry import GpuCollector
from scheduler.clock import LedgerClock
from scheduler.executor import Enterable, Executor, ExecutorError
from scheduler.local import LocalExecutor
from scheduler.loop import LEASE_TTL_MS, Controller
from scheduler.refusal import Refused
from scheduler.routes.app import api
from scheduler.routes.checkups import checkup_routes
from scheduler.routes.needs import ApiSettings
from scheduler.simulated import SimulatedExecutor
from scheduler.store.database import Database, StoreError
from scheduler.store.lease import LeaderLease
from scheduler.telemetry import Telemetry
from scheduler.wire.submission import SubmissionRules

if TYPE_CHECKING:
    from cli.daemon.cluster import OverCluster

logger = logging.getLogger(__name__)

DISTRIBUTION = "gpu-turnstile"
INVENTORY_SECONDS = 30
"""Between two looks at the inventory when no sample showed a change: catches what the executor alone knows."""
BOOTSTRAP_SECONDS = 2
"""Between two looks whether a daemon that could not lead at its start leads now."""
RATES_SECONDS = 10
"""Between two looks at which price book is in force, for fairness; money is rated by the ledger's times, exactly."""
DEADLINE_SECONDS = 2
"""Between two looks for jobs whose deadline has passed: how late one ends."""
RESERVATION_SECONDS = 2
"""Between two looks for reservations that begin or end: how late the ledger calls their GPUs so."""
NOTICE_SECONDS = 2
"""Between two looks for what people want to be told of."""
DAY_MS = 86_400_000
SWITCH_SECONDS = 0.0005
"""How long a thread may keep the interpreter from another that waits for it. At CPython's 5 ms an answer may wait so
long for the planner each time that it comes back from the kernel."""


class StartProblem(Exception):
    """Why the daemon cannot start, in words that say what to do."""


@dataclass(slots=True)
class _Parts:
    database: Database
    gpus: Gpus
    controller: Controller
    telemetry: Telemetry
    ledger: LedgerWatch
    periodic: BackgroundScheduler
    traces: Traces
    server: uvicorn.Server


class Daemon:
    """A daemon from start to stop, in the calling thread."""

    def __init__(self, settings: Settings, data_dir: Path, listener: socket.socket) -> None:
        self.settings = settings
        self.data_dir = data_dir
        self._listener = listener
        self.url = settings.server.url or f"http://{settings.host}:{listener.getsockname()[1]}"
        self._parts: _Parts | None = None
        self._over_cluster: OverCluster | None = None
        self._held_now: frozenset[str] = frozenset()
        self._attendance = Attendance()
        self._idleness = idle_watch(settings.metering)

    def run(self, announce: Callable[["Daemon"], None]) -> None:
        """Runs until SIGTERM or SIGINT. Calls `announce` once it answers. Raises StartProblem, StoreError."""
        sys.setswitchinterval(SWITCH_SECONDS)
        parts = self._parts = self._assemble()
        try:
            parts.gpus.poll()
            parts.controller.start()
            parts.periodic.start()
            if not bootstrap(parts.controller, self.data_dir):
                self._bootstrap_later(parts)
            # Now that it leads: from here on held time is counted and /metrics says whether the ledger adds up.
            parts.periodic.add_job(_guarded(self._keep_windows))
            # What is loaded by now stays for the daemon's life: the collector need not walk it again and again, which
            # made the store an eighth slower.
            gc.collect()
            gc.freeze()
            # Who connects as soon as this is announced waits in the socket's queue until the server takes him.
            self._listener.listen(parts.server.config.backlog)
            announce(self)
            _stop_at_signals(parts.server)
            parts.server.run(sockets=[self._listener])
        finally:
            if parts.periodic.running:
                parts.periodic.shutdown(wait=True)
            parts.controller.stop()
            parts.gpus.close()
            parts.database.dispose()
            parts.traces.close()

    def _bootstrap_later(self, parts: _Parts) -> None:
        """Tries again until it is done: a first start whose cluster is away leads later, and needs its token then."""

        def try_again() -> None:
            if bootstrap(parts.controller, self.data_dir, wait_seconds=0.0):
                again.remove()

        again = parts.periodic.add_job(_guarded(try_again), "interval", seconds=BOOTSTRAP_SECONDS)

    @property
    def controller(self) -> Controller:
        """The controller of a daemon that runs."""
        assert self._parts is not None, "the daemon runs"
        return self._parts.controller

    def _assemble(self) -> _Parts:
        settings = self.settings
        url = database_url(settings, self.data_dir)
        try:
            migrate.upgrade(url)
            database = Database.open(url)
        except ValueError as problem:
            raise StartProblem(f"database.url: {problem}") from problem
        clock = LedgerClock()
        gpus = self._gpus(clock)
        traces = self._traces()
        telemetry = traces.telemetry(version(DISTRIBUTION))
        executor = self._executor(clock, gpus, telemetry)
        attended = traces.executor(executor, self._attendance.watch)
        holder = f"{platform.node()}:{self.data_dir}"
        lease = LeaderLease(database, holder, self.url, LEASE_TTL_MS)
        controller = Controller(database, attended, clock, settings.policy, lease, telemetry)
        admission = BudgetAdmission(centre_zone(settings.metering.zone))
        controller.admission = admission
        controller.entrance = executor if isinstance(executor, Enterable) else None
        telemetry.registry.register(
            GpuCollector(gpus.snapshots, lambda _: settings.node.pool, self._attendance.watch.successes)
        )
        ledger = LedgerWatch(database, blind_ms=max(BLIND_MS, int(settings.metering.window_seconds * 3000)))
        telemetry.registry.register(LedgerCollector(ledger))
        limits = ApiSettings(
            version=version(DISTRIBUTION),
            most_body_bytes=settings.server.body_limit_bytes,
            requests_per_second=settings.server.requests_per_second,
            is_metrics_open=settings.server.metrics_open,
            rules=submission_rules(settings),
        )
        terms = period_terms(settings)
        money = partial(
            ledger_routes,
            issuer_known=self.settings.metering.issuer,
            processes=self.settings.metering.processes,
        )
        billing = PeriodTurns(controller, terms, self.settings.metering.observation_days)
        patient = Patient(controller, self.data_dir, self._attendance, ledger, billing.keeper, telemetry)
        routes = (
            partial(checkup_routes, checkups(patient)),
            money,
            budget_routes(admission.zone),
            period_routes(terms),
            billing_routes(terms),
            self._attendance.routes,
        )
        app = api(controller, admission, limits, telemetry, routes, (budget_section(admission.zone),))
        config = uvicorn.Config(
            traces.app(app),
            log_config=None,
            access_log=False,
            lifespan="on",
            proxy_headers=False,
            timeout_graceful_shutdown=5,
        )
        periodic = self._periodic(gpus, executor, controller)
        keeper = BudgetKeeper(controller, admission)
        telemetry.registry.register(BudgetCollector(keeper.watch))
        periodic.add_job(_guarded(keeper.keep), "interval", seconds=KEEP_SECONDS)
        periodic.add_job(_guarded(keeper.keep_all), "interval", seconds=WHOLE_SECONDS)
        telemetry.registry.register(PeriodCollector(billing.keeper))
        periodic.add_job(_guarded(billing.look), "interval", seconds=PERIODS_SECONDS)
        periodic.add_job(_guarded(billing.prune), "interval", hours=PRUNE_HOURS)
        return _Parts(database, gpus, controller, telemetry, ledger, periodic, traces, uvicorn.Server(config))

    def _traces(self) -> Traces:
        try:
            return traces_of(self.settings.tracing, version(DISTRIBUTION))
        except TracingProblem as problem:
            raise StartProblem(str(problem)) from problem

    def _gpus(self, clock: LedgerClock) -> Gpus:
        sim = self.settings.executor.sim
        if self.settings.executor.kind == "kubernetes":
            return no_gpus(self.settings)
        if sim is None:
            return real_gpus(self.settings, clock)
        try:
            return simulated_gpus(sim, self.settings, clock, self._is_held)
        except ValueError as problem:
            raise SettingsProblem([f"executor.sim: {problem}"]) from problem

    def _executor(self, clock: LedgerClock, gpus: Gpus, telemetry: Telemetry) -> Executor:
        if self.settings.executor.kind == "simulated":
            return SimulatedExecutor(clock, gpus.inventory)
        if self.settings.executor.kind == "kubernetes":
            # Imported here: the client costs a quarter of a second, which a daemon without a cluster need not pay.
            from cli.daemon.cluster import over_cluster

            try:
                made = over_cluster(self.settings, self.data_dir, clock, submission_rules(self.settings))
            except ExecutorError as problem:
                raise StartProblem(str(problem)) from problem
            telemetry.registry.register(made.traffic)
            self._over_cluster = made
            return made.executor
        return LocalExecutor(self.data_dir / "jobs", clock, gpus.inventory)

    def _is_held(self, device: str) -> bool:
        return device in self._held_now

    def _refresh(self) -> None:
        self.controller.refresh_inventory()

    def _periodic(self, gpus: Gpus, executor: Executor, controller: Controller) -> BackgroundScheduler:
        periodic = BackgroundScheduler(timezone="UTC", job_defaults={"coalesce": True, "max_instances": 1})
        seconds = self.settings.metering.sample_seconds
        periodic.add_job(_guarded(lambda: self._sample(gpus)), "interval", seconds=seconds)
        periodic.add_job(_guarded(self._keep_windows), "interval", seconds=self.settings.metering.window_seconds)
        periodic.add_job(_guarded(self._refresh), "interval", seconds=INVENTORY_SECONDS)
        guarantees = GuaranteeWatch()
        periodic.add_job(_guarded(lambda: guarantees.look(controller)), "interval", seconds=INVENTORY_SECONDS)
        periodic.add_job(_guarded(lambda: self._attendance.look(controller)), "interval", seconds=LOOK_SECONDS)
        turns = Turns(controller)
        periodic.add_job(_guarded(turns.announce_rates), "interval", seconds=RATES_SECONDS)
        periodic.add_job(_guarded(turns.end_overdue), "interval", seconds=DEADLINE_SECONDS)
        periodic.add_job(_guarded(turns.turn_reservations), "interval", seconds=RESERVATION_SECONDS)
        notifier = notifier_of(self.settings.notify, controller)
        periodic.add_job(_guarded(notifier.look), "interval", seconds=NOTICE_SECONDS)
        periodic.add_job(_guarded(notifier.forget), "interval", hours=6)
        forgotten = partial(forget_decisions, controller, self.settings.decisions)
        periodic.add_job(_guarded(forgotten), "interval", seconds=FORGET_SECONDS)
        keep_ms = self.settings.executor.log_retention_days * DAY_MS
        if self.settings.executor.kind == "kubernetes":
            from cli.daemon.cluster import NEWS_SECONDS, forget_logs, refresh_when_changed

            look = _guarded(lambda: refresh_when_changed(executor, controller))
            periodic.add_job(look, "interval", seconds=NEWS_SECONDS)
            tidy = _guarded(lambda: forget_logs(executor, controller.clock.now_ms() - keep_ms))
            periodic.add_job(tidy, "interval", hours=6)
            over = self._over_cluster
            assert over is not None, "made with the executor"
            periodic.add_job(_guarded(lambda: over.look_at_gate(controller)), "interval", seconds=NEWS_SECONDS)
        if isinstance(executor, LocalExecutor):
            periodic.add_job(
                _guarded(lambda: executor.forget_logs(controller.clock.now_ms() - keep_ms)), "interval", hours=6
            )
        return periodic

    def _sample(self, gpus: Gpus) -> None:
        if self.controller.is_leading:
            asked = self.controller.ask(lambda state, _: frozenset(device.id for device, _ in state.device_holders()))
            self._held_now = frozenset(asked.result(timeout=5.0))
        if gpus.poll():
            self.controller.refresh_inventory()

    def _keep_windows(self) -> None:
        """Stores what was measured since the last call, and looks at what is new in the ledger."""
        parts = self._parts
        assert parts is not None, "periodic work runs while the daemon does"
        windows = self._attendance.own_windows(parts.gpus.close_windows())
        if not parts.controller.is_leading:
            parts.ledger.forget()
            self._idleness.forget()
            return
        if windows:
            parts.controller.carry_out(StoreWindows(windows)).result(timeout=30.0)
        measured = (*windows, *self._attendance.agents_windows(parts.controller))
        parts.ledger.look(measured, parts.controller.clock.now_ms())
        self._idleness.look(parts.controller, measured)


def _stop_at_signals(server: uvicorn.Server) -> None:
    """Makes SIGTERM and SIGINT end the server, and nothing but the server.

    While it runs, uvicorn has handlers of its own; when it is done it raises the signal once more, for those it found.
    The system's default would then end the process before the term has ended and the lease is given back.
    """

    def stop(_number: int, _frame: FrameType | None) -> None:
        server.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)


def _guarded(work: Callable[[], object]) -> Callable[[], None]:
    """Wraps periodic work: what goes wrong once is logged and tried again the next time."""

    def run() -> None:
        try:
            work()
        except (Refused, StoreError, ExecutorError, FutureTimeout, OSError) as problem:
            logger.warning("periodic work was put off: %s: %s", type(problem).__name__, problem)
        except Exception:
            logger.exception("periodic work failed")

    return run


def submission_rules(settings: Settings) -> SubmissionRules:
    """Returns what the settings say about every job, whoever submits it."""
    return SubmissionRules(
        longest_time_limit_seconds=settings.server.longest_time_limit_seconds,
        run_as=settings.executor.run_as,
        log_limit_bytes=settings.executor.log_limit_bytes,
        volumes=frozenset(settings.kubernetes.volumes) if settings.executor.kind == "kubernetes" else frozenset(),
        runs_images=settings.executor.kind == "kubernetes",
        needs_image=settings.executor.kind == "kubernetes",
        has_terminals=settings.executor.kind in {"local", "kubernetes"},
        shares_gpus=settings.executor.shares and settings.executor.kind != "kubernetes",
        keeps_secrets=settings.executor.kind != "kubernetes",
    )


def database_url(settings: Settings, data_dir: Path) -> str:
    """Returns the database's URL, which may hold a password. Raises StartProblem."""
    given = settings.database
    if given.url_file is not None:
        try:
            return Path(given.url_file).read_text(encoding="utf-8").strip()
        except OSError as problem:
            raise StartProblem(f"database.url_file: {given.url_file}: {problem.strerror}") from problem
    return given.url or f"sqlite:///{data_dir / 'turnstile.db'}"


def default_data_dir(name: str = "") -> Path:
    """Returns where a daemon keeps its data when nothing else is said."""
    return user_data_path("turnstile") / name


def claim_data_dir(path: Path) -> IO[str]:
    """Makes the data directory private and locks it for this process; keep the file open. Raises StartProblem."""
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = (path / "daemon.lock").open("a+", encoding="ascii")
    except OSError as problem:
        raise StartProblem(f"data directory {path}: {problem.strerror}; choose another with --data-dir") from problem
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as problem:
        lock.seek(0)
        owner = lock.read().strip() or "unknown"
        lock.close()
        raise StartProblem(
            f"another daemon (process {owner}) runs with data directory {path}; stop it, or choose another directory"
        ) from problem
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


def bind(settings: Settings) -> socket.socket:
    """Returns a socket bound to the address of the settings. Raises StartProblem."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as problem:
        listener.close()
        raise StartProblem(
            f"cannot listen on {settings.server.listen}: {problem.strerror}; choose another with --listen"
        ) from problem
    return listener
