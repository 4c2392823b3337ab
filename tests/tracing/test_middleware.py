"""Parents, links, and what the server sees, with the real OpenTelemetry SDK and without."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import baggage, trace
from opentelemetry.context import attach, detach, get_current
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import SpanKind

from mcp_middleware.errors import ConfigurationError
from mcp_middleware.tracing import TraceContextMiddleware
from mcp_middleware.tracing.propagation import parse_context, select_baggage
from tests.core.asgi import Call, EchoServer, rpc

from .calls import HEADER, META, OTHER_SPAN, OTHER_TRACE, SPAN, TRACE, Authorization, call, ids, links, traceparent
from .conftest import Telemetry, TracedServer

KEYS = ["traceparent", "tracestate", "baggage"]
INVALID = [
    "",
    "00-xyz",
    f"00-{'0' * 32}-{SPAN}-01",
    f"ff-{TRACE}-{SPAN}-01",
    META.upper(),
    f"{META}\n",
    7,
    None,
    {},
    [META],
]


# Parent and links


async def test_meta_is_the_parent_and_the_header_a_link(telemetry: Telemetry, server: TracedServer) -> None:
    """The OpenTelemetry conventions for MCP."""
    app = TraceContextMiddleware(server, **telemetry.options)
    await Call(app, call({"traceparent": META}), headers={"traceparent": HEADER}).run()
    span = telemetry.span()
    assert span.kind is SpanKind.SERVER
    assert span.parent is not None
    assert ids(span.parent) == (TRACE, SPAN)
    assert span.parent.is_remote
    assert ids(span.context)[0] == TRACE
    assert links(span) == [(OTHER_TRACE, OTHER_SPAN)]


async def test_without_meta_the_header_is_the_parent(telemetry: Telemetry, server: TracedServer) -> None:
    """The OpenTelemetry conventions for MCP."""
    await Call(TraceContextMiddleware(server, **telemetry.options), call(), headers={"traceparent": HEADER}).run()
    span = telemetry.span()
    assert span.parent is not None
    assert ids(span.parent) == (OTHER_TRACE, OTHER_SPAN)
    assert links(span) == []


async def test_without_either_a_new_trace_begins(telemetry: Telemetry, server: TracedServer) -> None:
    await Call(TraceContextMiddleware(server, **telemetry.options), call()).run()
    assert telemetry.span().parent is None


async def test_the_ambient_span_is_the_parent_or_the_link(telemetry: Telemetry, server: TracedServer) -> None:
    """An HTTP span around us has the header as its parent already."""
    app = TraceContextMiddleware(server, **telemetry.options)
    with telemetry.tracers.get_tracer("http").start_as_current_span("POST /mcp") as http:
        await Call(app, call(), headers={"traceparent": HEADER}).run()
        await Call(app, call({"traceparent": META}), headers={"traceparent": HEADER}).run()
    below, beside = telemetry.spans[:2]
    assert below.parent == http.get_span_context()
    assert links(below) == []
    assert beside.parent is not None
    assert ids(beside.parent) == (TRACE, SPAN)
    assert links(beside) == [ids(http.get_span_context())]


async def test_header_and_meta_of_one_span_are_no_link(telemetry: Telemetry, server: TracedServer) -> None:
    app = TraceContextMiddleware(server, **telemetry.options)
    await Call(app, call({"traceparent": META}), headers={"traceparent": META}).run()
    assert links(telemetry.span()) == []


# What the server sees


@pytest.mark.parametrize("meta", [None, {}, {"traceparent": META, "tracestate": "rojo=1"}, {"progressToken": 9}])
async def test_the_server_sees_our_span(
    telemetry: Telemetry, server: TracedServer, meta: dict[str, Any] | None
) -> None:
    """In ``_meta`` and as the ambient context alike."""
    app = TraceContextMiddleware(server, **telemetry.options)
    await Call(app, call(meta), headers={"traceparent": HEADER, "tracestate": "congo=2"}).run()
    span = telemetry.span()
    assert server.meta["traceparent"] == traceparent(span)
    assert server.ambient == [span.context]
    assert server.meta["tracestate"] == ("rojo=1" if meta and "traceparent" in meta else "congo=2")
    assert server.meta.get("progressToken") == (meta or {}).get("progressToken")
    assert server.headers["content-length"] == str(len(server.bodies[0]))
    assert trace.get_current_span() is trace.INVALID_SPAN


async def test_case_32_header_and_meta_never_both_go_on(telemetry: Telemetry, server: TracedServer) -> None:
    app = TraceContextMiddleware(server, **telemetry.options)
    headers = {"traceparent": HEADER, "tracestate": "congo=2"}
    await Call(app, call({"traceparent": META}), headers=headers).run()
    assert server.headers["traceparent"] == server.meta["traceparent"]
    assert "tracestate" not in server.headers
    assert "tracestate" not in server.meta


async def test_no_header_is_invented(telemetry: Telemetry, server: TracedServer) -> None:
    await Call(TraceContextMiddleware(server, **telemetry.options), call({"traceparent": META})).run()
    assert server.headers.keys() == {"content-type", "content-length"}


async def test_only_the_three_keys_change(telemetry: Telemetry, server: TracedServer) -> None:
    """Numbers and strings of the arguments arrive byte for byte."""
    arguments = '{"big": 123456789012345678901234567890, "float": 1.10, "exp":1E400, "text": "\\u00e9\\/"}'
    meta = '{"traceparent":"' + META + '","x":{"deep": 1.0},"io.modelcontextprotocol.traceparent":"kept"}'
    params = '{"name":"echo","arguments":' + arguments + ',"_meta":' + meta + ',"unknown":-0.0}'
    body = '{"jsonrpc":"2.0","id":1,"method":"tools/call","params":' + params + "}"
    await Call(TraceContextMiddleware(server, **telemetry.options), body.encode()).run()
    assert f'"arguments":{arguments}'.encode() in server.bodies[0]
    assert b'"x":{"deep": 1.0}' in server.bodies[0]
    assert b'"unknown":-0.0' in server.bodies[0]
    assert server.meta["io.modelcontextprotocol.traceparent"] == "kept"
    assert server.meta["traceparent"] == traceparent(telemetry.span())


@pytest.mark.parametrize("invalid", INVALID)
async def test_case_32_invalid_trace_context_is_a_new_trace(
    telemetry: Telemetry, server: TracedServer, invalid: Any
) -> None:
    """W3C Trace Context."""
    app = TraceContextMiddleware(server, **telemetry.options)
    done = await Call(app, call({"traceparent": invalid, "tracestate": "rojo=1", "baggage": invalid})).run()
    assert done.status == 200
    span = telemetry.span()
    assert span.parent is None
    assert server.meta == {"traceparent": traceparent(span)}


async def test_case_32_two_traceparent_headers_are_none(telemetry: Telemetry, server: TracedServer) -> None:
    app = TraceContextMiddleware(server, **telemetry.options)
    headers = [("traceparent", HEADER), ("traceparent", META), ("tracestate", "a=1")]
    await Call(app, call(), headers=headers).run()
    span = telemetry.span()
    assert span.parent is None
    assert server.headers["traceparent"] == traceparent(span)
    assert "tracestate" not in server.headers


async def test_case_32_baggage_leaves_only_by_allow_list(telemetry: Telemetry, server: TracedServer) -> None:
    """On the wire and in the ambient context, whoever brought it."""
    app = TraceContextMiddleware(server, baggage=["tenant", "region"], **telemetry.options)
    token = attach(baggage.set_baggage("password", "x", baggage.set_baggage("region", "eu west")))
    try:
        meta = {"baggage": "tenant=acme%20inc;ttl=1,secret=1"}
        await Call(app, call(meta), headers={"baggage": "tenant=other,secret=2"}).run()
        assert baggage.get_all() == {"password": "x", "region": "eu west"}
    finally:
        detach(token)
    assert server.meta["baggage"] == "tenant=acme%20inc;ttl=1,region=eu%20west"
    assert server.headers["baggage"] == server.meta["baggage"]
    assert server.baggage == [{"tenant": "acme inc", "region": "eu west"}]


async def test_case_32_no_baggage_passes_by_default(telemetry: Telemetry, server: TracedServer) -> None:
    token = attach(baggage.set_baggage("password", "x"))
    try:
        app = TraceContextMiddleware(server, **telemetry.options)
        await Call(app, call({"baggage": "tenant=acme"}), headers={"baggage": "tenant=other"}).run()
        await Call(TraceContextMiddleware(server), call({"baggage": "a=1"}), headers={"baggage": "b=2"}).run()
        await Call(TraceContextMiddleware(server), method="GET", headers={"baggage": "b=2"}).run()
    finally:
        detach(token)
    assert all(b"baggage" not in body for body in server.bodies)
    assert all(name != b"baggage" for scope in server.scopes for name, _ in scope["headers"])
    assert server.baggage == [{}, {}, {}]


async def test_each_message_of_a_batch_has_its_own_context(telemetry: Telemetry, server: TracedServer) -> None:
    first, second = call({"traceparent": META}), call({"traceparent": HEADER}) | {"id": 2}
    await Call(TraceContextMiddleware(server, **telemetry.options), [first, second]).run()
    one, two = telemetry.spans
    assert [ids(span.context)[0] for span in (one, two)] == [TRACE, OTHER_TRACE]
    assert [body["params"]["_meta"]["traceparent"] for body in server.received] == [traceparent(one), traceparent(two)]
    assert server.ambient == [one.context, two.context]


async def test_a_notification_has_a_span_and_a_response_none(telemetry: Telemetry, server: TracedServer) -> None:
    app = TraceContextMiddleware(server, **telemetry.options)
    await Call(app, rpc("notifications/initialized", request_id=None)).run()
    await Call(app, {"jsonrpc": "2.0", "id": 1, "result": {}}).run()
    await Call(app, method="GET").run()
    span = telemetry.span()
    assert span.name == "notifications/initialized"
    assert server.received[0]["params"]["_meta"] == {"traceparent": traceparent(span)}
    assert server.received[1] == {"jsonrpc": "2.0", "id": 1, "result": {}}


# Without an SDK


async def test_without_an_sdk_a_valid_context_passes_unchanged(server: TracedServer) -> None:
    """Only relaying"""
    message = call({"traceparent": META.replace("00-", "cc-", 1) + "-more", "tracestate": " rojo=1 , a=2"})
    app = Authorization(TraceContextMiddleware(server))
    await Call(app, message).run()
    assert server.received == [message]
    await Call(app, call(), headers=[("traceparent", HEADER), ("tracestate", "a=1"), ("tracestate", "b=2")]).run()
    assert server.headers["traceparent"] == HEADER
    assert server.received[1] == call()
    assert [(found.trace.trace_id, found.trace.span_id) for found in app.exchanges if found.trace] == [
        (TRACE, SPAN),
        (OTHER_TRACE, OTHER_SPAN),
    ]


async def test_without_an_sdk_a_message_without_context_is_untouched(server: TracedServer) -> None:
    app = Authorization(TraceContextMiddleware(server))
    await Call(app, rpc("tools/list")).run()
    assert server.received == [rpc("tools/list")]
    assert app.exchanges[0].trace is None


@pytest.mark.parametrize("invalid", INVALID)
async def test_case_32_without_an_sdk_an_invalid_context_is_removed(server: TracedServer, invalid: Any) -> None:
    """W3C Trace Context."""
    app = TraceContextMiddleware(server)
    headers = {"tracestate": "congo=2"} | ({"traceparent": invalid} if isinstance(invalid, str) else {})
    done = await Call(app, call({"traceparent": invalid, "tracestate": "a=1", "keep": 1}), headers=headers).run()
    assert done.status == 200
    assert server.meta == {"keep": 1}
    assert not {"traceparent", "tracestate"} & server.headers.keys() or invalid == f"{META}\n"


async def test_case_32_without_an_sdk_the_message_still_wins(server: TracedServer) -> None:
    app = TraceContextMiddleware(server)
    await Call(app, call({"traceparent": META}), headers={"traceparent": HEADER, "tracestate": "congo=2"}).run()
    assert server.meta == {"traceparent": META}
    assert server.headers["traceparent"] == META
    assert "tracestate" not in server.headers


@pytest.mark.parametrize("rest", ["\r\nx-evil: 1", "€", "\x00", " x"])
async def test_case_32_a_message_cannot_write_into_headers(server: TracedServer, rest: str) -> None:
    """A later version's traceparent has a free part; it must stay one header value."""
    later = META.replace("00-", "cc-", 1) + "-" + rest
    message = call({"traceparent": later, "tracestate": f"a=1{rest}", "baggage": f"a=1{rest}"})
    headers = {"traceparent": HEADER, "tracestate": "b=2", "baggage": "a=2"}
    done = await Call(TraceContextMiddleware(server, baggage=["a"]), message, headers=headers).run()
    assert done.status == 200
    assert server.meta == {}
    assert server.headers["traceparent"] == HEADER
    assert "baggage" not in server.headers


sent_values = (
    st.text(max_size=20)
    | st.none()
    | st.integers()
    | st.sampled_from([META, HEADER, f"cc{META[2:]}-x", "a=1,b=2", "a=1;p, b=%20"])
)


@given(
    meta=st.dictionaries(st.sampled_from(KEYS), sent_values),
    headers=st.lists(
        st.tuples(
            st.sampled_from(KEYS), st.binary(max_size=20) | st.sampled_from([META.encode(), HEADER.encode(), b"a=1"])
        ),
        max_size=4,
    ),
    recording=st.booleans(),
)
async def test_case_32_nothing_a_caller_sends_fails_the_request(
    meta: dict[str, Any], headers: list[tuple[str, bytes]], recording: bool
) -> None:
    """And what goes on is one valid context, the same in both places, or none."""
    telemetry, server = Telemetry(), TracedServer()
    app = TraceContextMiddleware(server, baggage=["a"], **(telemetry.options if recording else {}))
    sent = Call(app, call(meta))
    sent.scope["headers"] += [(name.encode(), value) for name, value in headers]
    assert (await sent.run()).status == 200
    in_meta = parse_context(server.meta.get("traceparent"), server.meta.get("tracestate"))
    in_header = parse_context(server.headers.get("traceparent"), server.headers.get("tracestate"))
    assert (in_meta is None) == ("traceparent" not in server.meta)
    assert (in_header is None) == ("traceparent" not in server.headers)
    assert in_meta is None or in_header in (None, in_meta)
    assert set(select_baggage(server.meta.get("baggage"), {"a", "b"})) <= {"a"}
    assert set(select_baggage(server.headers.get("baggage"), {"a", "b"})) <= {"a"}
    if recording:
        assert server.meta["traceparent"] == traceparent(telemetry.span())
    telemetry.close()


# Options


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"baggage": "tenant"}, "baggage"),
        ({"baggage": [""]}, "baggage"),
        ({"baggage": ["a b"]}, "baggage"),
        ({"baggage": [1]}, "baggage"),
        ({"trust": "some"}, "trust"),
        ({"trust": True}, "trust"),
        ({"capture_content": 1}, "capture_content"),
        ({"tracer_provider": object()}, "tracer_provider"),
        ({"meter_provider": TracerProvider()}, "meter_provider"),
        ({"tracer_provider": MeterProvider()}, "tracer_provider"),
    ],
)
def test_wrong_options_are_refused_by_name(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        TraceContextMiddleware(EchoServer(), **options)


async def test_the_ambient_context_of_the_caller_is_left_as_it_was(telemetry: Telemetry, server: TracedServer) -> None:
    before = get_current()
    app = TraceContextMiddleware(server, baggage=["a"], **telemetry.options)
    await Call(app, call({"baggage": "a=1"}), headers={"traceparent": HEADER}).run()
    assert get_current() == before
    assert server.baggage == [{"a": "1"}]
