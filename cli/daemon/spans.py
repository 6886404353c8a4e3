"""The one door to OpenTelemetry: spans of requests, ticks and executor operations, sent in the background.

Spans carry what logs and metrics may carry: methods, route templates, statuses, ids of requests, jobs, allocations and
decisions. No path, query, header, body or user's word is in them. A collector that does not answer costs spans, which a
bounded queue drops, and never a request or a tick.
"""

import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cli.daemon.attendance import AttendedExecutor
from metering.agents import AgentWatch
from scheduler.core.model import AllocationId, EndReason
from scheduler.core.plan import Plan
from scheduler.executor import Executor, ExecutorError, NodeInventory, StartOrder
from scheduler.routes.edge import UNMATCHED
from scheduler.telemetry import Telemetry

logger = logging.getLogger(__name__)

Attributes = Mapping[str, str | int | bool]
SERVICE = "turnstile"
FLUSH_SECONDS = 3.0
"""How long a daemon that stops waits for its last spans to be taken."""
SEND_SECONDS = 5.0
"""How long one batch is tried: the next one is due by then."""
_PROPAGATOR = TraceContextTextMapPropagator()


class Spans:
    """Writes spans. Every method is thread-safe, cheap, and waits for nobody."""

    def __init__(self, processor: SpanProcessor, version: str, ratio: float = 1.0) -> None:
        # A caller's own decision to trace is kept: the parts of one trace are recorded together or not at all.
        resource = Resource.create({"service.name": SERVICE, "service.version": version})
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(ratio)), resource=resource, shutdown_on_exit=False
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer(SERVICE, version)

    def telemetry(self, version: str) -> Telemetry:
        """Returns metrics that write a span for each tick."""
        return TracedTelemetry(version, self)

    def executor(self, executor: Executor, watch: AgentWatch) -> AttendedExecutor:
        """Returns the executor with a span for each operation."""
        return TracedExecutor(executor, watch, self)

    def app(self, app: ASGIApp) -> ASGIApp:
        """Returns the API with a span for each request."""
        return TracedApp(app, self)

    def close(self) -> None:
        """Sends what is left and ends; a collector that is away is not waited for longer than FLUSH_SECONDS."""
        ending = threading.Thread(target=self._provider.shutdown, name="spans-end", daemon=True)
        ending.start()
        ending.join(FLUSH_SECONDS)

    def over(
        self,
        name: str,
        began_ns: int,
        attributes: Attributes,
        *,
        kind: SpanKind = SpanKind.INTERNAL,
        parent: Context | None = None,
        problem: str | None = None,
    ) -> None:
        """Writes a span that ends now and began at a Unix time in nanoseconds."""
        span = self._tracer.start_span(
            name, context=parent, kind=kind, attributes=dict(attributes), start_time=began_ns
        )
        if problem is not None:
            span.set_status(StatusCode.ERROR, problem)
        span.end()

    @contextmanager
    def during(self, name: str, attributes: Attributes) -> Iterator[None]:
        """Writes a span over the block; an exception that leaves it is its problem, by its type alone."""
        began_ns = time.time_ns()
        problem: str | None = None
        try:
            yield
        except BaseException as error:
            problem = type(error).__name__
            raise
        finally:
            self.over(name, began_ns, attributes, problem=problem)


def over_http(url: str, version: str, ratio: float) -> Spans:
    """Returns spans that go to a collector by OTLP over HTTP, in batches."""
    # The library tells of every try; we tell of the first that failed and of the first that went well again.
    logging.getLogger(OTLPSpanExporter.__module__).setLevel(logging.CRITICAL)
    return Spans(BatchSpanProcessor(Told(OTLPSpanExporter(endpoint=url, timeout=SEND_SECONDS))), version, ratio)


class Told(SpanExporter):
    """An exporter that says once when its spans are lost, and once when they no longer are."""

    def __init__(self, inside: SpanExporter) -> None:
        self._inside = inside
        self._is_losing = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Sends a batch, or loses it."""
        result = self._inside.export(spans)
        is_lost = result is not SpanExportResult.SUCCESS
        if is_lost and not self._is_losing:
            # Its address may hold a password, so it is called by its setting.
            logger.warning("the collector of tracing.otlp_url takes no spans; they are lost until it does")
        elif self._is_losing and not is_lost:
            logger.info("the collector of tracing.otlp_url takes spans again")
        self._is_losing = is_lost
        return result

    def shutdown(self) -> None:
        """Ends."""
        self._inside.shutdown()


class TracedApp:
    """The API with a span for each request, below the caller's where it sent a `traceparent`."""

    def __init__(self, app: ASGIApp, spans: Spans) -> None:
        self._app = app
        self._spans = spans

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began_ns = time.time_ns()
        told: dict[str, str | int] = {"http.request.method": scope["method"]}

        async def send_seen(message: Message) -> None:
            if message["type"] == "http.response.start":
                told["http.response.status_code"] = message["status"]
                for name, value in message["headers"]:
                    if name == b"x-request-id":
                        told["turnstile.request_id"] = value.decode("latin-1")
            await send(message)

        try:
            await self._app(scope, receive, send_seen)
        finally:
            told["http.route"] = route = getattr(scope.get("route"), "path", UNMATCHED)
            status = int(told.get("http.response.status_code", 0))
            problem = None if 0 < status < 500 else f"answered {status}" if status else "not answered"
            parent = _parent_of(scope)
            name = f"{scope['method']} {route}"
            self._spans.over(name, began_ns, told, kind=SpanKind.SERVER, parent=parent, problem=problem)


def _parent_of(scope: Scope) -> Context | None:
    sent = {name.decode(): value.decode("latin-1") for name, value in scope["headers"] if name == b"traceparent"}
    return _PROPAGATOR.extract(sent, Context()) if sent else None


class TracedTelemetry(Telemetry):
    """The metrics, with a span for each tick."""

    def __init__(self, version: str, spans: Spans) -> None:
        super().__init__(version)
        self._spans = spans

    def cycle(self, seconds: float, made: Plan) -> None:
        """Takes in a tick."""
        super().cycle(seconds, made)
        told = {
            "turnstile.decision": made.decision,
            "turnstile.starts": len(made.starts),
            "turnstile.stops": len(made.stops),
            "turnstile.is_partial": made.is_partial,
        }
        self._spans.over("tick", time.time_ns() - round(seconds * 1e9), told)


class TracedExecutor(AttendedExecutor):
    """The executor, with a span for each operation that changes something or reads all nodes."""

    def __init__(self, executor: Executor, watch: AgentWatch, spans: Spans) -> None:
        super().__init__(executor, watch)
        self._spans = spans

    def inventory(self) -> Sequence[NodeInventory]:
        """As the executor."""
        with self._spans.during("executor.inventory", {}):
            return super().inventory()

    def recover(self, live: Sequence[StartOrder]) -> None:
        """As the executor."""
        with self._spans.during("executor.recover", {"turnstile.allocations": len(live)}):
            super().recover(live)

    def start(self, order: StartOrder) -> None:
        """As the executor."""
        told = {**_about(order.allocation.id), "turnstile.job": order.allocation.job, "turnstile.allocations": 1}
        with self._spans.during("executor.start", told):
            super().start(order)

    def start_many(self, orders: Sequence[StartOrder]) -> Mapping[AllocationId, ExecutorError]:
        """As the executor; one span for all, which names the first. `orders` is not empty."""
        first = orders[0].allocation
        told = {**_about(first.id), "turnstile.job": first.job, "turnstile.allocations": len(orders)}
        began_ns = time.time_ns()
        failed = super().start_many(orders)
        self._spans.over("executor.start", began_ns, told, problem=f"{len(failed)} not started" if failed else None)
        return failed

    def stop(self, allocation: AllocationId, grace_seconds: float, reason: EndReason) -> None:
        """As the executor."""
        with self._spans.during("executor.stop", {**_about(allocation), "turnstile.reason": reason.value}):
            super().stop(allocation, grace_seconds, reason)

    def shrink(self, allocation: AllocationId, nodes: int, grace_seconds: float, reason: EndReason) -> None:
        """As the executor."""
        told = {**_about(allocation), "turnstile.nodes": nodes, "turnstile.reason": reason.value}
        with self._spans.during("executor.shrink", told):
            super().shrink(allocation, nodes, grace_seconds, reason)

    def extend(self, allocation: AllocationId, time_limit_ms: int) -> None:
        """As the executor."""
        with self._spans.during("executor.extend", _about(allocation)):
            super().extend(allocation, time_limit_ms)


def _about(allocation: AllocationId) -> dict[str, str | int]:
    return {"turnstile.allocation": allocation}
