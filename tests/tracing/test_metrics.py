"""Durations, their labels, and how long sessions last."""

import json
from typing import Any

import pytest

from mcp_middleware.tracing import TraceContextMiddleware
from mcp_middleware.types import Headers
from tests.core.asgi import Call, modern_headers, rpc
from tests.support import MODERN_META

from .calls import Answering, call
from .conftest import Telemetry, TracedServer


async def test_durations_have_the_conventions_boundaries(telemetry: Telemetry, server: TracedServer) -> None:
    app = TraceContextMiddleware(server, **telemetry.options)
    await Call(app, call(MODERN_META), headers=modern_headers("tools/call", "echo")).run()
    (duration,) = telemetry.points("mcp.server.operation.duration")
    (overhead,) = telemetry.points("mcp_middleware.overhead.duration")
    assert duration.explicit_bounds == (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300)
    assert min(overhead.explicit_bounds) < 0.0001
    assert duration.sum >= overhead.sum >= 0
    assert dict(duration.attributes or {}) == {
        "mcp.method.name": "tools/call",
        "gen_ai.tool.name": "echo",
        "mcp.protocol.version": "2026-07-28",
    }
    assert dict(overhead.attributes or {}) == {"mcp.method.name": "tools/call"}


async def test_metrics_without_spans(server: TracedServer) -> None:
    telemetry = Telemetry()
    app = TraceContextMiddleware(server, meter_provider=telemetry.meters)
    await Call(app, call()).run()
    assert len(telemetry.points("mcp.server.operation.duration")) == 1
    assert server.meta == {}
    telemetry.close()


async def test_what_callers_invent_is_no_label(telemetry: Telemetry) -> None:
    server = Answering(None)
    app = TraceContextMiddleware(server, **telemetry.options)
    unknown: list[dict[str, Any]] = [{"error": {"code": -32602}}, {"result": {"content": [], "isError": True}}]
    for server.body in unknown:
        for number in range(50):
            await Call(app, call(name=f"tool-{number}")).run()
            await Call(app, rpc(f"method-{number}")).run()
    assert {span.name for span in telemetry.spans} == {"tools/call", "_OTHER"}
    assert len(telemetry.labels("mcp.server.operation.duration")) == 4


@pytest.mark.parametrize(("kind", "method"), [("tools", "tools/call"), ("prompts", "prompts/get")])
async def test_what_a_list_names_is_a_label(telemetry: Telemetry, kind: str, method: str) -> None:
    server = Answering({"result": {kind: [{"name": "real", "description": "x"}, {"name": "other"}]}})
    app = TraceContextMiddleware(server, **telemetry.options)
    await Call(app, rpc(f"{kind}/list")).run()
    server.body = {"error": {"code": -32603}}
    await Call(app, rpc(method, {"name": "real"})).run()
    assert [span.name for span in telemetry.spans] == [f"{kind}/list", f"{method} real"]


async def test_a_malformed_list_names_nothing(telemetry: Telemetry) -> None:
    app = TraceContextMiddleware(Answering({"result": {"tools": [{"name": 7}]}}), **telemetry.options)
    done = await Call(app, rpc("tools/list")).run()
    assert done.json["result"] == {"tools": [{"name": 7}]}
    assert telemetry.span().name == "tools/list"


async def test_a_tool_that_once_answered_is_a_label_in_its_errors_too(telemetry: Telemetry) -> None:
    server = Answering({"result": {"content": []}})
    app = TraceContextMiddleware(server, **telemetry.options)
    await Call(app, call()).run()
    server.body = {"error": {"code": -32603, "message": "down"}}
    await Call(app, call()).run()
    assert [span.name for span in telemetry.spans] == ["tools/call echo"] * 2
    assert {labels.get("gen_ai.tool.name") for labels in telemetry.labels("mcp.server.operation.duration")} == {"echo"}


async def test_labels_are_bounded_where_a_server_answers_every_name(telemetry: Telemetry, server: TracedServer) -> None:
    app = TraceContextMiddleware(server, meter_provider=telemetry.meters)
    for number in range(1200):
        await Call(app, call(name=f"tool-{number}")).run()
    assert len(telemetry.labels("mcp.server.operation.duration")) == 1001


class Sessions:
    """A server with sessions, as far as their ids go."""

    def __init__(self, status: int = 200) -> None:
        self.status = status

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        headers: Headers = [(b"content-type", b"application/json"), (b"mcp-session-id", b"session-1")]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "result": {}}).encode() if scope["method"] == "POST" else b""
        await send({"type": "http.response.body", "body": body})


INITIALIZE = rpc("initialize", {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {}})


async def test_session_duration(telemetry: Telemetry) -> None:
    server = Sessions()
    app = TraceContextMiddleware(server, **telemetry.options)
    await Call(app, INITIALIZE).run()
    server.status = 405
    await Call(app, method="DELETE", headers={"mcp-session-id": "session-1"}).run()
    assert telemetry.points("mcp.server.session.duration") == []
    server.status = 200
    await Call(app, method="DELETE", headers={"mcp-session-id": "session-1"}).run()
    await Call(app, method="DELETE", headers={"mcp-session-id": "session-1"}).run()
    (point,) = telemetry.points("mcp.server.session.duration")
    assert point.count == 1
    (span,) = telemetry.spans
    assert span.name == "initialize"
    assert (span.attributes or {})["mcp.session.id"] is not None


async def test_shutdown_ends_every_session(telemetry: Telemetry) -> None:
    app = TraceContextMiddleware(Sessions(), **telemetry.options)
    await Call(app, INITIALIZE).run()
    await app.aclose()
    await app.aclose()
    (point,) = telemetry.points("mcp.server.session.duration")
    assert point.count == 1


async def test_a_failed_initialize_opens_no_session(telemetry: Telemetry) -> None:
    app = TraceContextMiddleware(Sessions(status=400), **telemetry.options)
    await Call(app, INITIALIZE).run()
    await app.aclose()
    assert telemetry.points("mcp.server.session.duration") == []
