"""OpenTelemetry: a span for each request, tick and executor operation, and nothing at all where none is asked for."""

import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from cli.daemon.app import Daemon as DaemonProgram
from cli.daemon.settings import SettingsProblem, load
from cli.daemon.tracing import TracingProblem, Untraced, traces_of
from metering.agents import AgentWatch
from scheduler.core.model import JobState
from tests.api.centre import Centre, app_of
from tests.api.conftest import Http
from tests.loop.conftest import World, submit, until
from tests.loop.test_controller import state_of

pytest.importorskip("opentelemetry.sdk", reason="the extra otel is not installed")

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from cli.daemon.spans import Spans, Told, TracedApp

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture
def kept() -> InMemorySpanExporter:
    """Where spans go."""
    return InMemorySpanExporter()


@pytest.fixture
def spans(kept: InMemorySpanExporter) -> Iterator[Spans]:
    """Writes them at once."""
    made = Spans(SimpleSpanProcessor(kept), "1.2.3")
    yield made
    made.close()


def told(found: Sequence[ReadableSpan]) -> list[tuple[str, dict[str, object]]]:
    return [(span.name, dict(span.attributes or {})) for span in found]


def test_a_request_is_a_span_below_its_callers_and_tells_no_path(
    centre: Centre, spans: Spans, kept: InMemorySpanExporter
) -> None:
    app = app_of(centre)
    app.add_middleware(TracedApp, spans=spans)
    http = Http(app)
    headers = {"traceparent": f"00-{TRACE}-{CALLER}-01", "x-request-id": "abc", "authorization": "Bearer wrong"}
    http.request("GET", "/v1/jobs/4711?q=secret", headers=headers)
    http.request("GET", "/no/such/route")
    http.close()
    (first, attributes), (second, other) = told(kept.get_finished_spans())
    assert first == "GET /v1/jobs/{ref}"
    assert attributes == {
        "http.request.method": "GET",
        "http.response.status_code": 401,
        "turnstile.request_id": "abc",
        "http.route": "/v1/jobs/{ref}",
    }
    assert (second, other["http.route"]) == ("GET unmatched", "unmatched")
    span = kept.get_finished_spans()[0]
    assert span.context is not None
    assert span.parent is not None
    assert (f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}") == (TRACE, CALLER)
    assert kept.get_finished_spans()[1].parent is None


def test_ticks_and_executor_operations_are_spans_with_their_ids(
    tmp_path: Path, spans: Spans, kept: InMemorySpanExporter
) -> None:
    world = World(tmp_path)
    leader = world.leader(wrap=lambda inside: spans.executor(inside, AgentWatch()), observer=spans.telemetry("1.2.3"))
    [job] = submit(leader, seconds=0.1)
    until(leader, lambda: state_of(leader, job) is JobState.COMPLETED)
    world.close()
    found = told(kept.get_finished_spans())
    assert {"tick", "executor.recover", "executor.inventory", "executor.start"} <= {name for name, _ in found}
    [started] = [each for name, each in found if name == "executor.start"]
    assert (started["turnstile.job"], started["turnstile.allocations"]) == (job, 1)
    assert [each["turnstile.starts"] for name, each in found if name == "tick" and each["turnstile.starts"]] == [1]
    numbers = [int(str(each["turnstile.decision"])) for name, each in found if name == "tick"]
    assert numbers == sorted(set(numbers))


def test_a_daemon_that_names_a_collector_is_watched_and_one_that_does_not_loads_nothing(tmp_path: Path) -> None:
    settings = load(None, {}, {"executor.sim": "1x1xH200", "tracing.otlp_url": "http://127.0.0.1:9/v1/traces"})
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        parts = DaemonProgram(settings, tmp_path, listener)._assemble()
    assert isinstance(parts.server.config.app, TracedApp)
    assert isinstance(parts.traces, Spans)
    for close in (parts.gpus.close, parts.database.dispose, parts.traces.close):
        close()
    assert isinstance(traces_of(load(None, {}).tracing, "1"), Untraced)
    quiet = "import sys, cli.daemon.app; sys.exit('opentelemetry.sdk' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", quiet], check=False, timeout=60).returncode == 0


class Away(SpanExporter):
    """A collector that is away until it comes."""

    is_there = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return SpanExportResult.SUCCESS if self.is_there else SpanExportResult.FAILURE

    def shutdown(self) -> None:
        """Does nothing."""


def test_a_collector_that_is_away_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "cli.daemon.spans")
    away = Away()
    watched = Spans(SimpleSpanProcessor(Told(away)), "1")
    for _ in range(3):
        watched.over("tick", 0, {})
    away.is_there = True
    watched.over("tick", 0, {})
    watched.over("tick", 0, {})
    assert [record.getMessage() for record in caplog.records] == [
        "the collector of tracing.otlp_url takes no spans; they are lost until it does",
        "the collector of tracing.otlp_url takes spans again",
    ]


def test_a_missing_extra_and_a_wrong_address_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cli.daemon.spans", None)
    settings = load(None, {}, {"tracing.otlp_url": "http://127.0.0.1:9/v1/traces"})
    with pytest.raises(TracingProblem, match=r"gpu-turnstile\[otel\]"):
        traces_of(settings.tracing, "1")
    with pytest.raises(SettingsProblem) as wrong:
        load(None, {}, {"tracing.otlp_url": "collector:4318", "tracing.ratio": "2"})
    assert [problem.partition(":")[0] for problem in wrong.value.problems] == ["tracing.otlp_url", "tracing.ratio"]
