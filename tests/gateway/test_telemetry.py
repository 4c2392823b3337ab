"""What a collector gets from the gateway, over a socket."""

import gzip
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tests.integration.stack import build_server
from tests.support import post, serve

from .authority import authority
from .forwarding import raw_server
from .gateways import ECHO, gateway
from .test_forwarder_credentials import accepting

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Collector:
    """An OTLP receiver over HTTP."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.metrics: set[str] = set()
        self.counts: set[tuple[str, ...]] = set()
        """Of counters: the name, and the values of the labels."""
        self.keys: set[str | None] = set()
        self.app = Starlette(
            routes=[
                Route("/v1/traces", self._traces, methods=["POST"]),
                Route("/v1/metrics", self._metrics, methods=["POST"]),
            ]
        )

    async def _traces(self, request: Request) -> Response:
        self.keys.add(request.headers.get("x-key"))
        received = ExportTraceServiceRequest.FromString(await _body(request))
        self.spans += [s for r in received.resource_spans for scope in r.scope_spans for s in scope.spans]
        return Response(b"")

    async def _metrics(self, request: Request) -> Response:
        received = ExportMetricsServiceRequest.FromString(await _body(request))
        metrics = [m for r in received.resource_metrics for s in r.scope_metrics for m in s.metrics]
        self.metrics |= {metric.name for metric in metrics}
        self.counts |= {
            (metric.name, *(label.value.string_value for label in point.attributes))
            for metric in metrics
            for point in metric.sum.data_points
        }
        return Response(b"")


async def _body(request: Request) -> bytes:
    body = await request.body()
    return gzip.decompress(body) if request.headers.get("content-encoding") == "gzip" else body


@pytest.mark.parametrize("sample", [1, 0])
async def test_a_call_is_two_spans_in_the_callers_trace_and_counted_though_not_sampled(
    sample: int, tmp_path: Path
) -> None:
    collector = Collector()
    params: dict[str, Any] = {**ECHO, "_meta": {"traceparent": CALLER}}
    async with serve(collector.app) as otlp, serve(build_server("sdk")) as upstream:
        tracing = {"otlp": otlp, "sample": sample, "headers": {"X-Key": "k"}}
        async with gateway(tmp_path, {"files": f"{upstream}/mcp"}, tracing=tracing) as running:
            reply = await post(running.http, running.url(), "tools/call", params, token=running.token())
            assert reply.status_code == 200
    assert {"mcp.server.operation.duration", "mcp.client.operation.duration"} <= collector.metrics
    assert {("mcp_middleware.gateway.reloads", outcome) for outcome in ("ok", "refused")} <= collector.counts
    spans = {span.kind: span for span in collector.spans}
    if not sample:
        assert not spans
        return
    assert collector.keys == {"k"}
    server, client = spans[Span.SPAN_KIND_SERVER], spans[Span.SPAN_KIND_CLIENT]
    assert server.name == client.name == "tools/call echo"
    assert server.trace_id == client.trace_id == bytes.fromhex(CALLER[3:35])
    assert server.parent_span_id == bytes.fromhex(CALLER[36:52])
    assert client.parent_span_id == server.span_id


async def test_credentials_that_fail_are_counted_by_server_and_how(tmp_path: Path) -> None:
    collector = Collector()
    async with serve(collector.app) as otlp, authority() as issuer, raw_server(accepting()) as upstream:
        grant = {"issuer": issuer.issuer, "client_id": "gateway", "client_secret": "s", "type": "client_credentials"}
        servers = {"files": {"url": f"{upstream.origin}/mcp", "credentials": grant}}
        async with gateway(tmp_path, servers, tracing={"otlp": otlp}) as running:
            reply = await post(running.http, running.url(), "tools/call", ECHO, token=running.token())
            assert reply.status_code == 502
    assert ("mcp_middleware.gateway.credential_failures", "files", "rejected") in collector.counts
