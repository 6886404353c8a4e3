"""The composition root of the agent: puts one together from its settings, runs its threads, takes it apart.

    measuring thread   reader ─► sampler ─► spool        delivering thread   spool ─► HTTP ─► daemon
    scrape threads     /metrics on a port of its own, loopback unless told otherwise

The agent needs no database and no daemon to start: what it measures waits on disk.
"""

import fcntl
import logging
import os
import platform
import random
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

from prometheus_client import CollectorRegistry, start_http_server
from ulid import ULID

from cli.client import Client, Endpoint
from cli.errors import CliError, ConfigProblem, NotLoggedIn
from cli.faults import ApiError
from metering.agent import Sampler, SamplerPolicy
from metering.agent_metrics import AgentCollector
from metering.gpus import GpuReader, ProblemCode
from metering.holders import HolderWatch
from metering.reader_process import ProcessReader, ReaderLimits
from metering.reporter import AgentName, LinkProblem, LinkTrouble, Reporter
from metering.simulated import SimulatedReader, parse_sim
from metering.spool import Spool
from metering.telemetry import GpuCollector
from scheduler.clock import Clock, LedgerClock
from scheduler.core.model import NodeName

logger = logging.getLogger(__name__)

DISTRIBUTION = "gpu-turnstile"
BEAT_SECONDS = 15.0
"""Between two heartbeats: the daemon takes an agent for silent after four of them."""
LAST_REPORT_SECONDS = 10.0
"""How long a stopping agent tries to deliver what it still has; the rest waits on disk for the next start."""
SKEW_WORTH_A_WORD_MS = 5_000
TOKEN_ADVICE = "an operator makes one with `turnstile admin token create --role agent -u NODE`"  # noqa: S105

NEEDS_SOMEBODY = frozenset(
    {
        ProblemCode.LIBRARY_NOT_FOUND,
        ProblemCode.DRIVER_NOT_LOADED,
        ProblemCode.VERSION_MISMATCH,
        ProblemCode.NO_PERMISSION,
    }
)
"""Why no GPU can be read until somebody does something about the machine."""


class AgentProblem(Exception):
    """Why the agent cannot start, in words that say what to do."""


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """How an agent runs. `endpoint` reads the token anew each time, so that a rotated one is taken up."""

    endpoint: Callable[[], Endpoint]
    node: NodeName
    spool: Path
    spool_bytes: int
    metrics: tuple[str, int] | None
    """Where /metrics answers; None for nowhere."""
    sim: str | None = None
    sample_seconds: float = 15.0
    window_seconds: float = 60.0
    read_deadline_seconds: float = 10.0
    beat_seconds: float = BEAT_SECONDS
    waits_for_driver: bool = False
    """Whether a machine without a working NVML is waited for (a DaemonSet) or refused (a person)."""
    classes: Mapping[str, str] = field(default_factory=dict)
    """NVML product name to GPU class, where the built-in names don't suit."""


class HttpUplink:
    """The way to the daemon over HTTP. A connection that was refused for its token is made anew with the token of then.

    Not for use by several threads.
    """

    def __init__(self, endpoint: Callable[[], Endpoint]) -> None:
        self._endpoint = endpoint
        self._client: Client | None = None

    def post(self, path: str, body: Mapping[str, Any], key: str | None = None) -> Mapping[str, Any]:
        """Returns the answer. Raises LinkProblem with words for people."""
        try:
            if self._client is None:
                self._client = Client(self._endpoint())
            return self._client.post(path, body, key=key)
        except ApiError as error:
            self.close()
            raise LinkProblem(_trouble(error.code), _words(error)) from None
        except (ConfigProblem, NotLoggedIn) as error:
            raise LinkProblem(LinkTrouble.NOT_ALLOWED, _words(error)) from None

    def close(self) -> None:
        """Drops the connection."""
        if self._client is not None:
            self._client.close()
            self._client = None


def _trouble(code: str) -> LinkTrouble:
    if code in {"not_logged_in", "not_allowed"}:
        return LinkTrouble.NOT_ALLOWED
    # An address that is not there is an older daemon, which will be a newer one some day.
    return LinkTrouble.REFUSED if code in {"invalid", "conflict", "too_large"} else LinkTrouble.AWAY


def _words(error: CliError) -> str:
    """Returns an error as one line, with what would be right for an agent."""
    if error.code == "not_logged_in":
        return f"the daemon does not take this agent's token: {error.message}; {TOKEN_ADVICE}"
    if error.code == "not_allowed":
        return f"{error.message}; {TOKEN_ADVICE}"
    problems = "; ".join(f"{each.field}: {each.message}" for each in error.problems)
    return f"{error.message} ({problems})" if problems else error.message


class Agent:
    """An agent from start to stop, in the calling thread and one more."""

    def __init__(self, settings: AgentSettings, watch: HolderWatch | None = None) -> None:
        """Raises AgentProblem for settings that cannot be, or a spool that cannot be written."""
        self.settings = settings
        clock = LedgerClock()
        self._reader = _reader(settings, clock)
        # A hole of more than three samples is unmeasured time, however far apart samples are.
        policy = SamplerPolicy(interval_ms=max(1, int(settings.sample_seconds * 1000)))
        sampler = Sampler(settings.node, self._reader, clock, policy)
        try:
            spool = Spool(settings.spool, settings.spool_bytes)
            self._lock = (settings.spool / "lock").open("a")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as problem:
            raise AgentProblem(f"another agent uses the spool {settings.spool}; stop it, or give --spool") from problem
        except OSError as problem:
            raise AgentProblem(
                f"the spool {settings.spool} cannot be used: {problem.strerror}; choose another with --spool"
            ) from problem
        name = AgentName(settings.node, str(ULID()), version(DISTRIBUTION))
        self.reporter = Reporter(name, sampler, spool, clock, watch)
        self._uplink = HttpUplink(settings.endpoint)
        self._stop = threading.Event()
        self._said: str | None = None

    def once(self) -> None:
        """Reads twice, closes a window, reports. Raises AgentProblem, LinkProblem."""
        try:
            self._first_reading()
            self._stop.wait(min(self.settings.sample_seconds, 1.0))
            self.reporter.measure()
            self.reporter.close()
            self.reporter.report(self._uplink)
        finally:
            self._close()

    def run(self, announce: Callable[["Agent"], None]) -> None:
        """Runs until SIGTERM or SIGINT. Calls `announce` when it measures.

        Raises AgentProblem, and LinkProblem when the daemon answers at the start and takes no such token.
        """
        _at_signals(self._stop.set)
        try:
            self._first_reading()
            self._first_report()
            server = self._serve_metrics()
            announce(self)
            delivering = threading.Thread(target=self._deliver, name="delivering", daemon=True)
            delivering.start()
            self._measure()
            delivering.join(timeout=LAST_REPORT_SECONDS)
            server()
        finally:
            self._close()

    def _first_reading(self) -> None:
        snapshot = self.reporter.measure()
        for problem in snapshot.problems:
            if problem.is_machine_wide and problem.code in NEEDS_SOMEBODY:
                if self.settings.waits_for_driver:
                    logger.warning("no GPU can be read yet: %s", problem.message)
                else:
                    raise AgentProblem(problem.message)

    def _first_report(self) -> None:
        try:
            self.reporter.report(self._uplink)
        except LinkProblem as problem:
            if problem.trouble is LinkTrouble.NOT_ALLOWED:
                raise
            self._say(problem)
        self._look_at_skew()

    def _measure(self) -> None:
        """Measures until told to stop; what was measured last is in the spool when this returns."""
        rounds = max(1, round(self.settings.window_seconds / self.settings.sample_seconds))
        done = 0
        while not self._stop.wait(self.settings.sample_seconds):
            self.reporter.measure()
            done += 1
            if done % rounds == 0:
                self.reporter.close()
        self.reporter.close()

    def _deliver(self) -> None:
        while not self._stop.wait(self.settings.beat_seconds * random.uniform(0.9, 1.0)):  # noqa: S311  # spreads load
            self._report()
        self._report()

    def _report(self) -> None:
        try:
            self.reporter.report(self._uplink)
        except LinkProblem as problem:
            self._say(problem)
        except Exception:
            # The loop's edge: an answer that nobody foresaw must not end the deliveries of a node for ever.
            logger.exception("a report failed")
        else:
            if self._said is not None:
                logger.info("the daemon takes in what is delivered again")
            self._said = None
            self._look_at_skew()

    def _say(self, problem: LinkProblem) -> None:
        """Says what keeps deliveries from working: once, until it is something else."""
        if str(problem) != self._said:
            waiting, size_bytes, _ = self.reporter.spooled
            logger.warning(
                "not delivered: %s. The agent goes on and keeps what it measures (%d batches, %d bytes wait in %s)",
                problem, waiting, size_bytes, self.settings.spool,
            )  # fmt: skip
        self._said = str(problem)

    def _look_at_skew(self) -> None:
        skew_ms = self.reporter.link.skew_ms
        if skew_ms is not None and abs(skew_ms) > SKEW_WORTH_A_WORD_MS:
            ahead = "ahead of" if skew_ms > 0 else "behind"
            logger.warning("this node's clock is %.1f s %s the daemon's; check NTP", abs(skew_ms) / 1000, ahead)

    def _serve_metrics(self) -> Callable[[], None]:
        """Serves /metrics; returns how to stop that. Raises AgentProblem when the port is taken."""
        if self.settings.metrics is None:
            return lambda: None
        host, port = self.settings.metrics
        registry = CollectorRegistry()
        registry.register(GpuCollector(lambda: (self.reporter.snapshot,), lambda _: self.reporter.link.pool or ""))
        registry.register(AgentCollector(self.reporter))
        try:
            server, thread = start_http_server(port, host, registry)
        except OSError as problem:
            raise AgentProblem(
                f"/metrics cannot be served at {host}:{port}: {problem.strerror}; choose another with --metrics"
            ) from problem
        self.metrics_port = int(server.server_address[1])

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        return stop

    metrics_port: int | None = None
    """Where /metrics answers, once it does."""

    def _close(self) -> None:
        self._reader.close()
        self._lock.close()
        self._uplink.close()


def _reader(settings: AgentSettings, clock: Clock) -> GpuReader:
    if settings.sim is None:
        limits = ReaderLimits(call_seconds=settings.read_deadline_seconds)
        return ProcessReader(clock, arguments={"class_overrides": dict(settings.classes)}, limits=limits)
    try:
        nodes = parse_sim(settings.sim)
    except ValueError as problem:
        raise AgentProblem(f"--sim: {problem}") from problem
    if len(nodes) != 1:
        raise AgentProblem(f"--sim: an agent reads one node, and {settings.sim!r} is {len(nodes)}; write 1x4xH200")
    return SimulatedReader(nodes[0], clock, lambda _uuid: True)


def node_name(given: str | None, sim: str | None) -> NodeName:
    """Returns the node's name: what was given, else the simulated node's, else the host's."""
    if given:
        return NodeName(given)
    if sim is not None:
        try:
            return parse_sim(sim)[0].name
        except ValueError as problem:
            raise AgentProblem(f"--sim: {problem}") from problem
    return NodeName(platform.node() or "localhost")


def default_spool(node: NodeName) -> Path:
    """Returns where an agent keeps its spool when nothing else is said."""
    from platformdirs import user_state_path

    return user_state_path("turnstile") / "agent" / node.replace(os.sep, "_")


def _at_signals(stop: Callable[[], None]) -> None:
    def stopping(_number: int, _frame: FrameType | None) -> None:
        stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stopping)
