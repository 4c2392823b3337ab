"""Parents, links, what the server sees, sampling, attributes and metrics, with the real OpenTelemetry SDK."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import baggage, trace
from opentelemetry.context import attach, detach, get_current
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import ReadableSpan, Tracer, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, Sampler, TraceIdRatioBased
from opentelemetry.trace import SpanKind, StatusCode, format_span_id, format_trace_id

from mcp_middleware.errors import ConfigurationError
from mcp_middleware.exchange import Exchange
from mcp_middleware.member import Member
from mcp_middleware.tracing import TraceContextMiddleware
from mcp_middleware.tracing.propagation import parse_context, select_baggage
from mcp_middleware.types import Decision, Document, Headers, Principal, Rejection, Usage
from tests.core.asgi import MODERN_META, Call, EchoServer, modern_headers, rpc

from .conftest import Telemetry, TracedServer

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
META = f"00-{TRACE}-{SPAN}-01"
OTHER_TRACE, OTHER_SPAN = "a" * 32, "b" * 16
HEADER = f"00-{OTHER_TRACE}-{OTHER_SPAN}-01"
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


def call(meta: dict[str, Any] | None = None, name: str = "echo", **arguments: Any) -> dict[str, Any]:
    params: dict[str, Any] = {"name": name, "arguments": arguments}
    if meta is not None:
        params["_meta"] = meta
    return rpc("tools/call", params)


def ids(context: Any) -> tuple[str, str]:
    return format_trace_id(context.trace_id), format_span_id(context.span_id)


def links(span: ReadableSpan) -> list[tuple[str, str]]:
    return [ids(link.context) for link in span.links]


def traceparent(span: ReadableSpan) -> str:
    return "00-{}-{}-{:02x}".format(*ids(span.context), span.context.trace_flags)


class Stage(Member):
    """A member of another stage that writes its field of the exchange, or refuses."""

    def __init__(self, app: Any, *, fields: dict[str, Any] | None = None, refuse: Rejection | None = None) -> None:
        super().__init__(app)
        self.fields = fields or {}
        self.refuse = refuse
        self.exchanges: list[Exchange] = []

    async def on_request(self, exchange: Exchange) -> Rejection | None:
        self.exchanges.append(exchange)
        for name, value in self.fields.items():
            setattr(exchange, name, value)
        return self.refuse


class Resource(Stage):
    stage = "resource_server"

    async def on_headers(self, exchange: Exchange) -> Rejection | Document | None:
        self.exchanges.append(exchange)
        for name, value in self.fields.items():
            setattr(exchange, name, value)
        return self.refuse

    async def on_request(self, exchange: Exchange) -> Rejection | None:
        return None


class Limiter(Stage):
    stage = "limiter"


class Authorization(Stage):
    stage = "authorization"


AGENT = Principal(issuer="https://login.example.com", client="ci-bot", subject="alice")


# Parent and links


async def test_meta_is_the_parent_and_the_header_a_link(telemetry: Telemetry, server: TracedServer) -> None:
    """D2"""
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
    """D2"""
    await Call(TraceContextMiddleware(server, **telemetry.options), call(), headers={"traceparent": HEADER}).run()
    span = telemetry.span()
    assert span.parent is not None
    assert ids(span.parent) == (OTHER_TRACE, OTHER_SPAN)
    assert links(span) == []


async def test_without_either_a_new_trace_begins(telemetry: Telemetry, server: TracedServer) -> None:
    await Call(TraceContextMiddleware(server, **telemetry.options), call()).run()
    assert telemetry.span().parent is None


async def test_the_ambient_span_is_the_parent_or_the_link(telemetry: Telemetry, server: TracedServer) -> None:
    """D2: an HTTP span around us has the header as its parent already."""
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
    """D1, D3, D5: in ``_meta`` and as the ambient context alike."""
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
    """D5: numbers and strings of the arguments arrive byte for byte."""
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
    """D3"""
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
    """D6: on the wire and in the ambient context, whoever brought it."""
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
    """D6"""
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
    """D5"""
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
    """D3: only relaying"""
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
    """D3"""
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


# Sampling


UNTRUSTED = [(None, "none"), (None, "authenticated"), (AGENT, "none")]
TRUSTED = [(AGENT, "authenticated"), (None, "all"), (AGENT, "all")]


def sampled(server: TracedServer) -> bool:
    return bool(int(server.meta["traceparent"][-2:], 16) & 1)


async def one_call(
    server: TracedServer, sampler: Sampler, principal: Principal | None, trust: Any, flag: str
) -> Telemetry:
    telemetry = Telemetry(sampler)
    app = Resource(TraceContextMiddleware(server, trust=trust, **telemetry.options), fields={"principal": principal})
    await Call(app, call({"traceparent": META[:-2] + flag}), headers={"traceparent": HEADER[:-2] + flag}).run()
    await Call(app, call(), headers={"traceparent": META[:-2] + flag}).run()
    assert server.meta["traceparent"].startswith(f"00-{TRACE}-")
    assert SPAN not in server.meta["traceparent"]
    telemetry.close()
    return telemetry


@pytest.mark.parametrize(("principal", "trust"), UNTRUSTED)
@pytest.mark.parametrize("flag", ["00", "01", "ff"])
@pytest.mark.parametrize(
    ("sampler", "kept"),
    [
        (ParentBased(TraceIdRatioBased(0)), False),
        (ParentBased(TraceIdRatioBased(1)), True),
        (ParentBased(ALWAYS_ON), True),
        (ParentBased(ALWAYS_OFF), False),
        (ALWAYS_ON, True),
        (ALWAYS_OFF, False),
    ],
)
async def test_case_33_an_untrusted_sampled_flag_decides_nothing(
    server: TracedServer, principal: Principal | None, trust: str, flag: str, sampler: Sampler, kept: bool
) -> None:
    telemetry = await one_call(server, sampler, principal, trust, flag)
    assert len(telemetry.spans) == (2 if kept else 0)
    assert sampled(server) is kept
    for span in telemetry.spans:
        assert span.parent is not None
        assert ids(span.parent) == (TRACE, SPAN)


@pytest.mark.parametrize(("principal", "trust"), TRUSTED)
@pytest.mark.parametrize("flag", ["00", "01"])
@pytest.mark.parametrize("root", [ALWAYS_ON, ALWAYS_OFF])
async def test_case_33_a_trusted_sampled_flag_decides(
    server: TracedServer, principal: Principal | None, trust: str, flag: str, root: Sampler
) -> None:
    telemetry = await one_call(server, ParentBased(root), principal, trust, flag)
    assert len(telemetry.spans) == (2 if flag == "01" else 0)
    assert sampled(server) is (flag == "01")


async def test_case_33_an_untrusted_trace_id_decides_nothing() -> None:
    """A sampler by ratio keeps the smallest ids; a caller who picks one gains nothing."""
    server, telemetry = TracedServer(), Telemetry(ParentBased(TraceIdRatioBased(0.25)))
    app = TraceContextMiddleware(server, **telemetry.options)
    for number in range(1, 401):
        await Call(app, call({"traceparent": f"00-{number:032x}-{SPAN}-01"})).run()
    telemetry.close()
    assert 50 < len(telemetry.spans) < 150  # 100 expected; 5.8 standard deviations


async def test_case_33_calls_of_one_trace_are_kept_or_dropped_together() -> None:
    server, telemetry = TracedServer(), Telemetry(ParentBased(TraceIdRatioBased(0.5)))
    app = TraceContextMiddleware(server, **telemetry.options)
    decisions = set()
    for _ in range(20):
        await Call(app, call({"traceparent": META})).run()
        decisions.add(sampled(server))
    telemetry.close()
    assert len(decisions) == 1


async def test_case_33_a_provider_that_hides_its_sampler_gets_a_new_trace(server: TracedServer) -> None:
    """Another implementation of the API: the caller's context is then a link."""
    telemetry = Telemetry()

    class Provider(trace.TracerProvider):
        def get_tracer(self, *args: Any, **kwargs: Any) -> trace.Tracer:
            tracer = telemetry.tracers.get_tracer("x")
            assert isinstance(tracer, Tracer)
            return tracer

    app = TraceContextMiddleware(server, tracer_provider=Provider())
    await Call(app, call({"traceparent": META}), headers={"traceparent": HEADER}).run()
    span = telemetry.span()
    assert span.parent is None
    assert links(span) == [(OTHER_TRACE, OTHER_SPAN), (TRACE, SPAN)]
    assert server.meta["traceparent"] == traceparent(span)
    telemetry.close()


async def test_a_sampler_that_fails_does_not_fail_the_request(
    server: TracedServer, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Sampler):
        def should_sample(self, *args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("broken sampler")

        def get_description(self) -> str:
            return "broken"

    telemetry = Telemetry(Broken())
    app = TraceContextMiddleware(server, **telemetry.options)
    assert (await Call(app, call({"traceparent": META})).run()).status == 200
    assert (await Call(app, call()).run()).status == 200
    assert server.received[0] == call({"traceparent": META})
    assert "broken sampler" in caplog.text
    telemetry.close()


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
        "mcp_middleware.decision": "allow",
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


class Answering:
    """A server with one answer."""

    def __init__(self, body: dict[str, Any] | None, *, status: int = 200, error: Exception | None = None) -> None:
        self.body, self.status, self.error = body, status, error

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self.error is not None:
            raise self.error
        media = b"application/json" if self.body is not None else b"text/plain"
        headers: Headers = [(b"content-type", media)]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        data = b"no" if self.body is None else json.dumps({"jsonrpc": "2.0", "id": 1, **self.body}).encode()
        await send({"type": "http.response.body", "body": data})


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
    assert post.attributes["mcp_middleware.decision"] == "deny"
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
    ("status", "code", "expected"), [(429, 429001, NO_FAULT), (403, None, NO_FAULT), (503, 503001, FAULT)]
)
async def test_a_refusal_by_another_member(
    telemetry: Telemetry, server: TracedServer, status: int, code: int | None, expected: StatusCode
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
    assert labels["mcp_middleware.decision"] == "deny"
    assert "guess" not in str(labels)
    assert trace.get_current_span() is trace.INVALID_SPAN


async def test_a_refusal_keeps_the_callers_trace_id_without_an_sdk(server: TracedServer) -> None:
    app = Resource(TraceContextMiddleware(server), refuse=Rejection(401, 401001, "no token", "no_token"))
    await Call(app, call(), headers={"traceparent": HEADER}).run()
    trace_ids = app.exchanges[0].trace
    assert trace_ids is not None
    assert (trace_ids.trace_id, trace_ids.span_id) == (OTHER_TRACE, OTHER_SPAN)


# Metrics


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
