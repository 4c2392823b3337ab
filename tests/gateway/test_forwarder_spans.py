"""One CLIENT span for each message that is sent to an instance."""

import json

import httpx2
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from mcp_middleware import TraceContextMiddleware
from mcp_middleware.tracing.upstream import ClientSpans
from tests.gateway.forwarding import CALL, Caller, answer, dead_origin, gateway, head_of, raw_server
from tests.support import post


async def test_the_client_span_is_the_servers_child_and_what_the_upstream_reads() -> None:
    exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
    tracers, meters = TracerProvider(), MeterProvider([reader])
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    spans = ClientSpans(tracers, meters)
    dead = dead_origin()
    async with (
        raw_server(answer) as server,
        gateway(
            dead,
            server.origin,
            spans=spans,
            around=lambda app: TraceContextMiddleware(app, tracer_provider=tracers, trust="all"),
        ) as gate,
        httpx2.AsyncClient() as http,
    ):
        parent = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
        for _ in range(2):
            response = await post(http, gate.url, "tools/call", CALL | {"_meta": parent}, headers=parent)
            assert response.status_code == 200
            await gate.seen.get()
        port = int(server.origin.rpartition(":")[2])
        finished = exporter.get_finished_spans()
        servers = {span.context.span_id: span for span in finished if span.kind == SpanKind.SERVER}
        clients = [span for span in finished if span.kind == SpanKind.CLIENT]
        assert len(servers) == 2
        assert all(span.parent is not None and span.parent.span_id in servers for span in clients)
        assert all(f"{span.context.trace_id:032x}" == "0af7651916cd43dd8448eb211c80319c" for span in clients)
        good = [span for span in clients if (span.attributes or {})["server.port"] == port]
        bad = [span for span in clients if (span.attributes or {})["server.port"] != port]
        assert [span.status.status_code for span in good] == [StatusCode.UNSET] * 2
        assert {span.status.status_code for span in bad} == {StatusCode.ERROR}
        for span, caller in zip(good, server.requests, strict=True):
            attributes = span.attributes or {}
            assert attributes["mcp.method.name"] == "tools/call"
            assert attributes["gen_ai.tool.name"] == "echo"
            assert attributes["server.address"] == "127.0.0.1"
            assert "client.address" not in attributes
            written = f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-01"
            assert json.loads(caller.body)["params"]["_meta"]["traceparent"] == written
            assert dict(head_of(caller))[b"traceparent"].decode() == written
        data = reader.get_metrics_data()
        assert data is not None
        metric = data.resource_metrics[0].scope_metrics[0].metrics[0]
        assert metric.name == "mcp.client.operation.duration"
        assert metric.unit == "s"
        counts = {(point.attributes or {}).get("server.port"): point.count for point in metric.data.data_points}  # type: ignore[union-attr]
        assert counts[port] == 2


async def test_without_an_sdk_the_message_is_not_touched() -> None:
    async def keep(caller: Caller) -> None:
        await answer(caller)

    async with raw_server(keep) as server, gateway(server.origin, spans=ClientSpans()) as gate:
        async with httpx2.AsyncClient() as http:
            assert (await post(http, gate.url, "tools/call", CALL)).status_code == 200
        assert b"traceparent" not in server.requests[0].body
