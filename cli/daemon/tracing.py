"""Traces of what the daemon does, for OpenTelemetry: requests, ticks, what the executor was asked. Off by default.

The library comes with the extra `otel` and is imported only where `tracing.otlp_url` is set; everything of ours that
touches it stands in `spans`. Without the setting nothing is wrapped, so that tracing costs nothing.
"""

from typing import Protocol

from starlette.types import ASGIApp

from cli.daemon.attendance import AttendedExecutor
from cli.daemon.settings import Tracing
from metering.agents import AgentWatch
from scheduler.executor import Executor
from scheduler.telemetry import Telemetry

EXTRA = "pip install 'gpu-turnstile[otel]'"


class TracingProblem(Exception):
    """Why spans cannot be sent, in words that say what to do."""


class Traces(Protocol):
    """Makes the parts of a daemon that are watched."""

    def telemetry(self, version: str) -> Telemetry:
        """Returns the metrics, which are told of each tick."""
        ...

    def executor(self, executor: Executor, watch: AgentWatch) -> AttendedExecutor:
        """Returns the executor with what agents say."""
        ...

    def app(self, app: ASGIApp) -> ASGIApp:
        """Returns the API."""
        ...

    def close(self) -> None:
        """Sends what is left."""
        ...


class Untraced:
    """Watches nothing: every part is as it is."""

    def telemetry(self, version: str) -> Telemetry:
        """Returns the plain metrics."""
        return Telemetry(version)

    def executor(self, executor: Executor, watch: AgentWatch) -> AttendedExecutor:
        """Returns the plain executor with what agents say."""
        return AttendedExecutor(executor, watch)

    def app(self, app: ASGIApp) -> ASGIApp:
        """Returns the API itself."""
        return app

    def close(self) -> None:
        """Has nothing to send."""


def traces_of(settings: Tracing, version: str) -> Traces:
    """Returns what watches the daemon by its settings. Raises TracingProblem where the extra is missing."""
    if settings.otlp_url is None:
        return Untraced()
    try:
        # Imported here: most daemons trace nothing, and the library costs a quarter of a second.
        from cli.daemon.spans import over_http
    except ModuleNotFoundError as missing:
        raise TracingProblem(f"tracing.otlp_url needs the extra otel ({missing.name} is missing): {EXTRA}") from missing
    return over_http(settings.otlp_url, version, settings.ratio)
