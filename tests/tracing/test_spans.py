"""What spans say of a message and its end."""

import json

import pytest
from opentelemetry import trace
from opentelemetry.trace import StatusCode

from mcp_middleware.tracing import TraceContextMiddleware
from mcp_middleware.types import Decision, Rejection, Usage
from tests.core.asgi import Call, EchoServer, modern_headers, rpc
from tests.support import MODERN_META

from .calls import AGENT, HEADER, META, OTHER_SPAN, OTHER_TRACE, Answering, Authorization, Limiter, Resource, call, ids
from .conftest import Telemetry, TracedServer

# Attributes


async def test_attributes_of_a_tool_call(telemetry: Telemetry, server: TracedServer) -> None:
    app = TraceContextMiddleware(
        Authorization(
            server,
            fields={
                "principal": AGENT,
                "session": "s1",
                "usage": Usage(7, 11),
                "decision": Decision(True, rule="rules[0]"),
            },
        ),
        **telemetry.options,
    )
    await Call(app, call(text="secret"), headers={"mcp-protocol-version": "2025-11-25", "mcp-session-id": "live"}).run()
    span = telemetry.span()
    assert span.name == "tools/call echo"
    assert span.status.status_code is StatusCode.UNSET
    assert dict(span.attributes or {}) == {
        "mcp.method.name": "tools/call",
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "echo",
        "jsonrpc.request.id": "1",
        "mcp.protocol.version": "2025-11-25",
        "mcp.session.id": "s1",
        "session.id": "s1",
        "user.id": "alice",
        "gen_ai.agent.id": "ci-bot",
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 11,
        "network.protocol.name": "http",
        "network.protocol.version": "1.1",
        "network.transport": "tcp",
        "client.address": "127.0.0.1",
        "client.port": 1234,
        "http.response.status_code": 200,
        "mcp_middleware.decision": "allowed",
        "mcp_middleware.rule": "rules[0]",
    }


async def test_attributes_of_prompts_and_resources(telemetry: Telemetry, server: TracedServer) -> None:
    app = TraceContextMiddleware(server, **telemetry.options)
    await Call(app, rpc("prompts/get", {"name": "greet"}, "p-1")).run()
    await Call(app, rpc("resources/read", {"uri": "file:///srv/a.txt"})).run()
    prompt, resource = telemetry.spans
    assert prompt.name == "prompts/get greet"
    assert prompt.attributes is not None
    assert prompt.attributes["gen_ai.prompt.name"] == "greet"
    assert prompt.attributes["jsonrpc.request.id"] == "p-1"
    assert "gen_ai.operation.name" not in prompt.attributes
    assert resource.name == "resources/read"
    assert resource.attributes is not None
    assert resource.attributes["mcp.resource.uri"] == "file:///srv/a.txt"


async def test_a_session_is_named_by_a_digest_of_its_id(telemetry: Telemetry, server: TracedServer) -> None:
    """Never the live id; and the modern era has no sessions."""
    app = TraceContextMiddleware(server, **telemetry.options)
    await Call(app, call(), headers={"mcp-session-id": "live-session"}).run()
    await Call(app, call(), headers={"mcp-session-id": "live-session"}).run()
    headers = modern_headers("tools/call", "echo") | {"mcp-session-id": "live-session"}
    await Call(app, call(MODERN_META), headers=headers).run()
    one, two, modern = ((span.attributes or {}).get("mcp.session.id") for span in telemetry.spans)
    assert one == two
    assert isinstance(one, str)
    assert "live" not in one
    assert modern is None


async def test_content_is_captured_only_on_request(telemetry: Telemetry, server: TracedServer) -> None:
    await Call(TraceContextMiddleware(server, **telemetry.options), call(text="secret")).run()
    await Call(TraceContextMiddleware(server, capture_content=True, **telemetry.options), call(text="seen")).run()
    silent, open_ = (dict(span.attributes or {}) for span in telemetry.spans)
    assert "secret" not in str(silent)
    assert json.loads(str(open_["gen_ai.tool.call.arguments"])) == {"text": "seen"}
    assert "seen" in str(open_["gen_ai.tool.call.result"])


FAULT, NO_FAULT = StatusCode.ERROR, StatusCode.UNSET


@pytest.mark.parametrize(
    ("server", "error_type", "code", "status"),
    [
        (Answering({"result": {"content": [], "isError": True}}), "tool_error", None, FAULT),
        (Answering({"result": {"content": [], "isError": False}}), None, None, NO_FAULT),
        *[
            (Answering({"error": {"code": code, "message": "secret"}}), str(code), str(code), NO_FAULT)
            for code in (-32700, -32600, -32601, -32602, -32002, -32020, -32021, -32022)
        ],
        (Answering({"error": {"code": -32603, "message": "secret"}}), "-32603", "-32603", FAULT),
        (Answering({"error": {"code": -32000, "message": "secret"}}), "-32000", "-32000", FAULT),
        (Answering({"error": {"code": 4711, "message": "secret"}}), "4711", "4711", FAULT),
        (Answering(None, status=404), "404", None, NO_FAULT),
        (Answering(None, status=502), "502", None, FAULT),
        (Answering(None, error=KeyError("secret")), "KeyError", None, FAULT),
    ],
)
async def test_how_a_call_ended(
    telemetry: Telemetry, server: Answering, error_type: str | None, code: str | None, status: StatusCode
) -> None:
    app = TraceContextMiddleware(server, **telemetry.options)
    if server.error is None:
        await Call(app, call()).run()
    else:
        with pytest.raises(type(server.error)):
            await Call(app, call()).run()
    span = telemetry.span()
    attributes = dict(span.attributes or {})
    assert attributes.get("error.type") == error_type
    assert attributes.get("rpc.response.status_code") == code
    assert span.status.status_code is status
    assert "secret" not in span.to_json()
    (labels,) = telemetry.labels("mcp.server.operation.duration")
    assert labels.get("error.type") == error_type
    assert trace.get_current_span() is trace.INVALID_SPAN


async def test_an_event_stream_ends_as_json_does(telemetry: Telemetry) -> None:
    await Call(TraceContextMiddleware(EchoServer(sse=True), **telemetry.options), call()).run()
    assert telemetry.span().name == "tools/call echo"


async def test_the_span_begins_when_the_request_arrived(telemetry: Telemetry, server: TracedServer) -> None:
    app = Authorization(TraceContextMiddleware(server, **telemetry.options))
    await Call(app, call()).run()
    span = telemetry.span()
    assert span.start_time == int(app.exchanges[0].started_at * 1e9)
    assert span.end_time is not None
    assert span.start_time < span.end_time


# Refusals


async def test_a_refusal_before_the_body_has_a_span(telemetry: Telemetry, server: TracedServer) -> None:
    refuse = Rejection(401, 401001, "no token", "no_token")
    app = TraceContextMiddleware(Resource(server, refuse=refuse), **telemetry.options)
    done = await Call(app, call({"traceparent": META}, name="guess"), headers={"traceparent": HEADER}).run()
    await Call(app, method="DELETE").run()
    assert done.status == 401
    post, delete = telemetry.spans
    assert (post.name, delete.name) == ("POST", "DELETE")
    assert post.parent is not None
    assert ids(post.parent) == (OTHER_TRACE, OTHER_SPAN)
    assert post.status.status_code is StatusCode.UNSET
    assert post.attributes is not None
    assert post.attributes["mcp_middleware.decision"] == "unauthenticated"
    assert post.attributes["mcp_middleware.refusal.reason"] == "no_token"
    assert post.attributes["error.type"] == "401001"
    assert post.attributes["http.response.status_code"] == 401
    assert server.bodies == []


async def test_a_refused_parse_has_a_span_without_the_callers_words(telemetry: Telemetry, server: TracedServer) -> None:
    app = TraceContextMiddleware(server, **telemetry.options)
    await Call(app, b'{"nonsense').run()
    await Call(app, call(name="guess"), headers={"mcp-method": "tools/list"}).run()
    parse, mismatch = telemetry.spans
    assert (parse.name, mismatch.name) == ("POST", "tools/call")
    assert (parse.attributes or {})["error.type"] == "-32700"
    assert (mismatch.attributes or {})["error.type"] == "-32020"
    assert "guess" not in str(telemetry.labels("mcp.server.operation.duration"))


@pytest.mark.parametrize(
    ("status", "code", "expected", "verdict"),
    [
        (429, 429001, NO_FAULT, "limited"),
        (403, None, NO_FAULT, "denied"),
        (404, None, NO_FAULT, "rejected"),
        (503, 503001, FAULT, "unavailable"),
    ],
)
async def test_a_refusal_by_another_member(
    telemetry: Telemetry, server: TracedServer, status: int, code: int | None, expected: StatusCode, verdict: str
) -> None:
    refuse = Rejection(status, code, "secret", "why", rule="rules[3]")
    app = TraceContextMiddleware(Limiter(server, refuse=refuse), **telemetry.options)
    await Call(app, call(name="guess")).run()
    span = telemetry.span()
    attributes = dict(span.attributes or {})
    assert span.name == "tools/call"
    assert span.status.status_code is expected
    assert attributes["gen_ai.tool.name"] == "guess"
    assert attributes["error.type"] == str(code or status)
    assert attributes.get("rpc.response.status_code") == (str(code) if code else None)
    assert attributes["mcp_middleware.refusal.reason"] == "why"
    assert attributes["mcp_middleware.rule"] == "rules[3]"
    assert "secret" not in span.to_json()
    (labels,) = telemetry.labels("mcp.server.operation.duration")
    assert labels["mcp_middleware.decision"] == attributes["mcp_middleware.decision"] == verdict
    assert "guess" not in str(labels)
    assert trace.get_current_span() is trace.INVALID_SPAN


async def test_a_refusal_keeps_the_callers_trace_id_without_an_sdk(server: TracedServer) -> None:
    app = Resource(TraceContextMiddleware(server), refuse=Rejection(401, 401001, "no token", "no_token"))
    await Call(app, call(), headers={"traceparent": HEADER}).run()
    trace_ids = app.exchanges[0].trace
    assert trace_ids is not None
    assert (trace_ids.trace_id, trace_ids.span_id) == (OTHER_TRACE, OTHER_SPAN)
