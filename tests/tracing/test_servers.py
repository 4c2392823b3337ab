"""Real FastMCP and SDK servers and the official client over sockets, each with OpenTelemetry spans of its own."""

from collections.abc import Iterator
from typing import Any

import mcp.shared._otel as sdk_otel
import pytest
from opentelemetry import trace
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, format_span_id

from mcp_middleware.tracing import TraceContextMiddleware
from mcp_middleware.types import Era
from tests.mcp_servers import Kind, app_of, each_server, server_of
from tests.support import connect, each_era, serve, text_of

from .conftest import Telemetry

OURS = "mcp_middleware"


@pytest.fixture
def sdk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Telemetry]:
    """The SDK as the process's own, for this test: client and servers find it globally."""
    telemetry = Telemetry()
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", telemetry.tracers)
    monkeypatch.setattr(sdk_otel, "_tracer", telemetry.tracers.get_tracer("mcp-python-sdk"))
    yield telemetry
    telemetry.close()


def build(kind: Kind) -> Any:
    server = server_of(kind)
    server.tool()(add)
    server.tool()(where)
    return app_of(server)


def add(a: int, b: int) -> str:
    """Add."""
    if a < 0:
        raise ValueError("negative")
    return str(a + b)


def where() -> str:
    """The trace that the tool runs in."""
    context = trace.get_current_span().get_span_context()
    return f"{context.trace_id:032x}"


def scope_of(span: ReadableSpan) -> str:
    return span.instrumentation_scope.name if span.instrumentation_scope else ""


def parent_of(span: ReadableSpan, spans: list[ReadableSpan]) -> ReadableSpan | None:
    wanted = span.parent.span_id if span.parent else None
    return next((found for found in spans if found.context.span_id == wanted), None)


def call_spans(telemetry: Telemetry) -> tuple[list[ReadableSpan], list[ReadableSpan], list[ReadableSpan]]:
    """The spans of tools/call: the client's, ours, and the server's own."""
    spans = [span for span in telemetry.spans if (span.attributes or {}).get("mcp.method.name") == "tools/call"]
    client = [span for span in spans if span.kind is SpanKind.CLIENT]
    ours = [span for span in spans if scope_of(span) == OURS]
    server = [span for span in spans if span.kind is SpanKind.SERVER and scope_of(span) != OURS]
    return client, ours, server


@each_era
@each_server
async def test_client_then_ours_then_the_servers(
    sdk: Telemetry, kind: Kind, era: Era, caplog: pytest.LogCaptureFixture
) -> None:
    """One trace, whichever of ``_meta`` and the ambient context the server goes by."""
    async with serve(TraceContextMiddleware(build(kind))) as url, connect(f"{url}/mcp", era=era) as client:
        for a in range(3):
            assert text_of(await client.call_tool("add", {"a": a, "b": 2})) == str(a + 2)
        trace_id = text_of(await client.call_tool("where", {}))
    assert "detach" not in caplog.text
    clients, ours, servers = call_spans(sdk)
    everything = list(sdk.spans)
    assert len(ours) == len(clients) == 4
    assert len(servers) >= 4
    assert [span.name for span in ours] == ["tools/call add"] * 3 + ["tools/call where"]
    assert [parent_of(span, everything) for span in ours] == clients
    for span in servers:
        ancestor = parent_of(span, everything)
        while ancestor is not None and ancestor not in ours:
            ancestor = parent_of(ancestor, everything)
        assert ancestor is not None, f"{scope_of(span)} {span.name} does not hang under our span"
    assert trace_id == f"{ours[-1].context.trace_id:032x}"


@each_era
@each_server
async def test_with_asgi_instrumentation_around(sdk: Telemetry, kind: Kind, era: Era) -> None:
    """The HTTP span stays what it is; the MCP span has the message's parent, and a link to the HTTP span."""
    app = OpenTelemetryMiddleware(TraceContextMiddleware(build(kind)), exclude_spans=["receive", "send"])
    async with serve(app) as url, connect(f"{url}/mcp", era=era) as client:
        await client.call_tool("add", {"a": 1, "b": 2})
    clients, ours, servers = call_spans(sdk)
    http = {format_span_id(s.context.span_id) for s in sdk.spans if "opentelemetry.instrumentation" in scope_of(s)}
    (span,) = ours
    assert parent_of(span, list(sdk.spans)) == clients[0]
    assert [format_span_id(link.context.span_id) in http for link in span.links] == [True]
    assert {found.context.trace_id for found in servers} == {span.context.trace_id}


@each_era
@each_server
async def test_errors_of_real_servers(sdk: Telemetry, kind: Kind, era: Era) -> None:
    """Both servers answer an unknown tool as one that failed; the list tells them apart."""
    app = TraceContextMiddleware(build(kind), meter_provider=sdk.meters)
    async with serve(app) as url, connect(f"{url}/mcp", era=era) as client:
        await client.list_tools()
        assert (await client.call_tool("add", {"a": -1, "b": 2})).is_error
        await client.call_tool("invented", {})
    _, ours, _ = call_spans(sdk)
    failed, unknown = ours
    assert [(span.attributes or {})["error.type"] for span in ours] == ["tool_error", "tool_error"]
    assert (unknown.attributes or {})["gen_ai.tool.name"] == "invented"
    assert (failed.name, unknown.name) == ("tools/call add", "tools/call")
    assert "invented" not in str(sdk.labels("mcp.server.operation.duration"))


@each_server
async def test_a_legacy_session_is_one_session(sdk: Telemetry, kind: Kind) -> None:
    app = TraceContextMiddleware(build(kind), meter_provider=sdk.meters)
    async with serve(app) as url:
        async with connect(f"{url}/mcp", era="legacy") as client:
            await client.call_tool("add", {"a": 1, "b": 2})
            await client.list_tools()
        sessions = {(s.attributes or {}).get("mcp.session.id") for s in sdk.spans if scope_of(s) == OURS}
        assert len(sessions) == 1
        assert None not in sessions
    (point,) = sdk.points("mcp.server.session.duration")
    assert point.count == 1


@each_era
@each_server
async def test_without_an_sdk_everything_works(kind: Kind, era: Era) -> None:
    async with serve(TraceContextMiddleware(build(kind))) as url, connect(f"{url}/mcp", era=era) as client:
        assert text_of(await client.call_tool("add", {"a": 1, "b": 2})) == "3"
