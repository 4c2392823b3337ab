"""A recording OpenTelemetry SDK, and a server that notes which trace context reaches it."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from opentelemetry import baggage, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import Sampler
from opentelemetry.trace import SpanContext

from tests.core.asgi import EchoServer


class Telemetry:
    """What an application's OpenTelemetry SDK has recorded."""

    def __init__(self, sampler: Sampler | None = None) -> None:
        self.exporter = InMemorySpanExporter()
        self.tracers = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.reader = InMemoryMetricReader()
        self.meters = MeterProvider([self.reader], shutdown_on_exit=False)

    @property
    def options(self) -> dict[str, Any]:
        return {"tracer_provider": self.tracers, "meter_provider": self.meters}

    @property
    def spans(self) -> Sequence[ReadableSpan]:
        return self.exporter.get_finished_spans()

    def span(self) -> ReadableSpan:
        """The one span there is."""
        (span,) = self.spans
        return span

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.spans if span.name == name]

    def points(self, metric: str) -> list[HistogramDataPoint]:
        data = self.reader.get_metrics_data()
        found = [
            point
            for resource in (data.resource_metrics if data else [])
            for scope in resource.scope_metrics
            for instrument in scope.metrics
            if instrument.name == metric
            for point in instrument.data.data_points
        ]
        return [point for point in found if isinstance(point, HistogramDataPoint)]

    def labels(self, metric: str) -> list[dict[str, Any]]:
        return [dict(point.attributes or {}) for point in self.points(metric)]

    def close(self) -> None:
        self.tracers.shutdown()
        self.meters.shutdown()


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    sdk = Telemetry()
    yield sdk
    sdk.close()


class TracedServer(EchoServer):
    """An echo server that notes its ambient span and baggage."""

    def __init__(self) -> None:
        super().__init__()
        self.ambient: list[SpanContext] = []
        self.baggage: list[dict[str, object]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.ambient.append(trace.get_current_span().get_span_context())
        self.baggage.append(dict(baggage.get_all()))
        await super().__call__(scope, receive, send)

    @property
    def meta(self) -> dict[str, Any]:
        """``params._meta`` of the last message."""
        meta: dict[str, Any] = self.received[-1].get("params", {}).get("_meta", {})
        return meta

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.scopes[-1]["headers"]}


@pytest.fixture
def server() -> TracedServer:
    return TracedServer()
