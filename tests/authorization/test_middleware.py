"""The middleware over a server that answers whatever a test tells it to."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from mcp_middleware.authorization import Policy, ToolAuthorizationMiddleware
from mcp_middleware.authorization.lists import MAX_ITEMS
from mcp_middleware.errors import ConfigurationError
from mcp_middleware.exchange import Exchange, Receive, Scope, Send
from mcp_middleware.member import Member
from mcp_middleware.message import Message, Request
from mcp_middleware.types import ANONYMOUS, Decision, Document, Principal, Rejection
from tests.core.asgi import Call, modern_headers, rpc
from tests.core.recording import Witness
from tests.support import MODERN_META, Turns

METADATA = "https://files.example.com/.well-known/oauth-protected-resource/mcp"
POLICY = Policy.from_text("""
rules:
  - {tools: ["read_*", "echo"], prompts: ["greet"], resources: ["x://open/*"]}
  - {tools: ["write"], scopes: ["w"]}
""")


class Server:
    """Answers with the bytes it was given, as JSON or as one event each, and remembers what reached it."""

    def __init__(
        self, *bodies: Any, media: str = "application/json", status: int = 200, event: str = "message"
    ) -> None:
        self.bodies = [body if isinstance(body, bytes) else json.dumps(body).encode() for body in bodies]
        self.media, self.status, self.event = media, status, event
        self.methods: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "POST":
            self.methods.append(json.loads((await receive())["body"])["method"])
        headers = [(b"content-type", self.media.encode())]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        for body in self.bodies:
            data = b"event: " + self.event.encode() + b"\ndata: " + body + b"\n\n" if "event" in self.media else body
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


class Naming(Member):
    """Names the metadata document, as the resource server does."""

    stage = "resource_server"

    async def on_headers(self, exchange: Exchange) -> Rejection | Document | None:
        exchange.resource_metadata = METADATA
        return None


class Rules:
    """A custom authorizer: a table of names."""

    def __init__(self, table: Mapping[str | None, Decision]) -> None:
        self.table = table
        self.asked: list[tuple[str, str | None, str | None]] = []

    def authorize(self, principal: Principal, message: Message) -> Decision:
        assert principal is ANONYMOUS
        assert isinstance(message, Request)
        self.asked.append((message.method, message.target_kind, message.target))
        return self.table.get(message.target, Decision(allowed=False))


def result(**members: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 1, "result": members}


def error(code: int, message: str, **more: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 1, "error": {"code": code, "message": message, **more}}


async def legacy(app: Any, method: str, **params: Any) -> Call:
    return await Call(app, rpc(method, params)).run()


async def modern(app: Any, method: str, **params: Any) -> Call:
    named = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}.get(method, "")
    headers = modern_headers(method, params.get(named))
    return await Call(app, rpc(method, {**params, "_meta": MODERN_META}), headers=headers).run()


@pytest.mark.parametrize("policy", ["policy.yaml", None, Policy, object()])
def test_what_is_no_policy_is_refused(policy: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"policy is .*; it must be a Policy, such as Policy\.from_file"):
        ToolAuthorizationMiddleware(Server(), policy=policy)


@pytest.mark.parametrize("value", [-1, 1.5, True, "60"])
def test_a_time_to_live_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"max_ttl_ms is .*; it must be a whole number"):
        ToolAuthorizationMiddleware(Server(), policy=POLICY, max_ttl_ms=value)


async def test_case_11_a_denied_call_reaches_nobody_and_is_on_record() -> None:
    server = Server(result(content=[]))
    witness = Witness(ToolAuthorizationMiddleware(server, policy=POLICY))
    call = await legacy(witness, "tools/call", name="drop")
    assert (call.status, call.json) == (200, error(-32602, "Unknown tool: drop"))
    call = await modern(witness, "tools/call", name="drop")
    assert (call.status, call.json) == (400, error(-32602, "Unknown tool: drop"))
    await legacy(witness, "tools/call", name="echo")
    assert server.methods == ["tools/call"]
    assert [(e.decision.allowed, e.decision.rule) for e in witness.exchanges if e.decision] == [
        (False, None),
        (False, None),
        (True, "rules[0]"),
    ]
    assert [e.rejection and e.rejection.reason for e in witness.exchanges] == ["not_allowed", "not_allowed", None]


async def test_case_10_the_challenge_names_scopes_and_metadata() -> None:
    """B10, B12."""
    witness = Witness(Naming(ToolAuthorizationMiddleware(Server(), policy=POLICY)))
    call = await modern(witness, "tools/call", name="write")
    assert call.status == 403
    assert call.headers["www-authenticate"] == (
        f'Bearer error="insufficient_scope", scope="w", resource_metadata="{METADATA}"'
    )
    assert call.json["error"] == {"code": 401001, "message": "tools/call of 'write' needs a token with the scopes: w"}
    rejection = witness.exchanges[0].rejection
    assert rejection is not None
    assert (rejection.reason, rejection.rule) == ("insufficient_scope", "rules[1]")


async def test_case_10_a_denial_that_no_scope_can_cure_is_no_challenge() -> None:
    policy = Rules({"seen": Decision(allowed=False, visible=True)})
    call = await legacy(ToolAuthorizationMiddleware(Server(), policy=policy), "tools/call", name="seen")
    assert call.status == 403
    assert "www-authenticate" not in call.headers
    assert call.json == error(401001, "tools/call of 'seen' is not allowed")


async def test_scopes_that_would_break_the_header_never_get_there() -> None:
    policy = Rules({"seen": Decision(allowed=False, visible=True, scopes=('a" b\r\nx: y',))})
    with pytest.raises(ConfigurationError, match="a scope is printable ASCII"):
        await legacy(ToolAuthorizationMiddleware(Server(), policy=policy), "tools/call", name="seen")


async def test_an_authorizer_is_asked_for_one_target_at_a_time() -> None:
    policy = Rules({"a": Decision(allowed=True), "x://{v}": Decision(allowed=True), None: Decision(allowed=True)})
    app = ToolAuthorizationMiddleware(Server(result(tools=[{"name": "a"}, {"name": "b"}])), policy=policy)
    assert (await legacy(app, "tools/list")).json["result"]["tools"] == [{"name": "a"}]
    await legacy(app, "completion/complete", ref={"type": "ref/resource", "uri": "x://{v}"})
    await modern(app, "subscriptions/listen", notifications={"resourceSubscriptions": ["x://1", "x://2"]})
    await legacy(app, "tasks/list")
    await legacy(app, "vendor/method", name="a")
    await legacy(app, "ping")
    assert policy.asked == [
        ("tools/call", "tool", "a"),
        ("tools/call", "tool", "b"),
        ("completion/complete", "template", "x://{v}"),
        ("resources/subscribe", "resource", "x://1"),
        ("resources/subscribe", "resource", "x://2"),
        ("tasks/list", "task", None),
        ("vendor/method", None, None),
    ]


async def test_case_17_what_cannot_be_judged_is_refused_with_a_remedy() -> None:
    policy = Policy.from_mapping({"default": "allow"})
    server = Server()
    app = ToolAuthorizationMiddleware(server, policy=policy)
    call = await legacy(app, "completion/complete", ref={"type": "ref/tool", "name": "x"})
    assert (call.status, call.json["error"]["code"]) == (400, -32602)
    assert "needs params.ref" in call.json["error"]["message"]
    call = await modern(app, "subscriptions/listen", notifications={"resourceSubscriptions": [7]})
    assert "needs params.notifications" in call.json["error"]["message"]
    assert server.methods == []


async def test_case_17_unknown_methods_are_not_found_unless_the_default_allows() -> None:
    closed = ToolAuthorizationMiddleware(Server(), policy=POLICY)
    assert (await legacy(closed, "vendor/x")).json == error(-32601, "Method not found")
    assert (await modern(closed, "vendor/x")).status == 404
    answered = Server(error(-32601, "Method not found", data="vendor/x"), status=404)
    opened = ToolAuthorizationMiddleware(answered, policy=Policy.from_mapping({"default": "allow"}))
    call = await modern(opened, "vendor/x")
    assert (call.status, call.json) == (404, error(-32601, "Method not found"))


async def test_case_12_each_message_of_a_batch_is_judged_by_itself() -> None:
    server = Server(result(content=[]))
    witness = Witness(ToolAuthorizationMiddleware(server, policy=POLICY))
    calls = [rpc("tools/call", {"name": name}, number) for number, name in enumerate(["echo", "drop", "write"], 1)]
    call = await Call(witness, calls, headers={"mcp-protocol-version": "2025-03-26"}).run()
    codes = [answer.get("error", {}).get("code") for answer in call.json]
    assert codes == [None, -32602, 401001]
    assert server.methods == ["tools/call"]
    assert [e.decision and e.decision.rule for e in witness.exchanges] == ["rules[0]", None, "rules[1]"]


ITEMS = b'{ "name":"read_a", "x": 1.0e2,"\\u0041":[ ] }', b'{"name":"hidden"}', b'{"name":"echo"}', b'{"name":"write"}'
TOTALS = b'"total":4,"_meta":{"count":4,"io.modelcontextprotocol/serverInfo":{"name":"s"}},"nextCursor":"c2"'
LIST = b'{"jsonrpc":"2.0","id":1,"result":{"tools":[' + b",".join(ITEMS) + b'],"ttlMs":900000,' + TOTALS + b"}}"


@pytest.mark.parametrize("media", ["application/json", "text/event-stream; charset=utf-8"])
async def test_case_16_items_stay_as_they_are_and_totals_go(media: str) -> None:
    """2026-07-28, caching."""
    app = ToolAuthorizationMiddleware(Server(LIST, media=media), policy=POLICY)
    call = await modern(app, "tools/list")
    data = call.body.partition(b"data: ")[2] or call.body
    answer = json.loads(data)["result"]
    assert b",".join([ITEMS[0], ITEMS[2], ITEMS[3]]) in data, (
        "byte for byte, in order, with the tool a scope would open"
    )
    assert {key: value for key, value in answer.items() if key != "tools"} == {
        "nextCursor": "c2",
        "cacheScope": "private",
        "ttlMs": 60_000,
        "_meta": {"io.modelcontextprotocol/serverInfo": {"name": "s"}},
    }


async def test_case_16_a_shown_list_and_a_filtered_one_do_not_differ_in_form() -> None:
    answers = []
    for names in (["echo"], ["echo", "hidden", "secret"]):
        server = Server(result(tools=[{"name": name} for name in names], total=len(names), _meta={"n": len(names)}))
        answers.append((await modern(ToolAuthorizationMiddleware(server, policy=POLICY), "tools/list")).body)
    assert answers[0] == answers[1]


@pytest.mark.parametrize(("sent", "stamped"), [(1000, 1000), (-5, 0), ("soon", 0), (None, 0), (1e300, 30), (10.9, 10)])
async def test_case_16_a_list_lives_no_longer_than_the_policy_may(sent: Any, stamped: int) -> None:
    server = Server(result(tools=[], ttlMs=sent, cacheScope="public"))
    most = 30 if stamped == 30 else 60_000
    call = await modern(ToolAuthorizationMiddleware(server, policy=POLICY, max_ttl_ms=most), "tools/list")
    assert call.json["result"] == {"cacheScope": "private", "ttlMs": stamped, "tools": []}


async def test_case_16_a_resource_is_private_as_well() -> None:
    """What one caller may read, a shared cache must not give to another (2026-07-28, caching)."""
    server = Server(result(contents=[], cacheScope="public", ttlMs=10**9, _meta={"a": 1}))
    app = ToolAuthorizationMiddleware(server, policy=POLICY)
    read = (await modern(app, "resources/read", uri="x://open/a")).json["result"]
    assert read == {"contents": [], "cacheScope": "private", "ttlMs": 60_000, "_meta": {"a": 1}}
    plain = Server(result(contents=[]))
    call = await legacy(ToolAuthorizationMiddleware(plain, policy=POLICY), "resources/read", uri="x://open/a")
    assert call.json == result(contents=[])


@pytest.mark.parametrize(
    ("method", "member", "key", "shown", "hidden"),
    [
        ("prompts/list", "prompts", "name", "greet", "plan"),
        ("resources/list", "resources", "uri", "x://open/a", "x://shut/a"),
        ("resources/templates/list", "resourceTemplates", "uriTemplate", "x://open/{a}", "x://shut/{a}"),
    ],
)
async def test_case_16_every_list_is_filtered(method: str, member: str, key: str, shown: str, hidden: str) -> None:
    items = [{key: hidden}, {key: shown}, {key: 7}, {}, "text", None, {key: shown, "name": hidden}]
    app = ToolAuthorizationMiddleware(Server(result(**{member: items})), policy=POLICY)
    expected = [item for item in items if isinstance(item, dict) and item.get(key) == shown]
    assert (await legacy(app, method)).json == result(**{member: expected})


@pytest.mark.parametrize(
    "broken", [[], "text", {"tools": {}}, {"tools": "a"}, {"tools": None}, {"tools": [], "_meta": 1}]
)
async def test_case_16_a_list_that_cannot_be_read_is_not_passed_on(broken: Any) -> None:
    server = Server({"jsonrpc": "2.0", "id": 1, "result": broken})
    call = await legacy(ToolAuthorizationMiddleware(server, policy=POLICY), "tools/list")
    assert call.json == error(-32603, "the server's list cannot be read")


@pytest.mark.parametrize("media", ["application/json", "text/event-stream"])
@pytest.mark.parametrize("uri", ["x://open/a", "x://shut/a"])
async def test_case_16_a_list_in_the_dress_of_news_is_filtered(media: str, uri: str) -> None:
    """What has a result is an answer, whatever else it says it is; and news is judged, whatever else it carries."""
    news = {"method": "notifications/resources/updated", "params": {"uri": uri}}
    app = ToolAuthorizationMiddleware(
        Server({**result(tools=[{"name": "hidden"}]), **news}, media=media), policy=POLICY
    )
    assert b"hidden" not in (await legacy(app, "tools/list")).body
    app = ToolAuthorizationMiddleware(Server({**result(content=[]), **news}, media=media), policy=POLICY)
    assert (b"x://" in (await legacy(app, "tools/call", name="echo")).body) is (uri == "x://open/a")


@pytest.mark.parametrize("media", ["application/json", "text/event-stream"])
async def test_case_31_others_have_their_turn_while_targets_are_judged(
    monkeypatch: pytest.MonkeyPatch, media: str
) -> None:
    monkeypatch.setattr("mcp_middleware.authorization.middleware._TURN", -1.0)
    names = [{"name": "echo"}, {"name": "hidden"}] * 50
    app = ToolAuthorizationMiddleware(Server(result(tools=names), media=media), policy=POLICY)
    with Turns() as others:
        call = await legacy(app, "tools/list")
    assert call.body.count(b"echo") == 50
    assert b"hidden" not in call.body
    assert others.taken >= 100
    uris = [f"x://open/{number}" for number in range(100)]
    asked = {"resourceSubscriptions": uris}
    with Turns() as others:
        call = await modern(app, "subscriptions/listen", notifications=asked)
    assert call.status == 200
    assert others.taken >= 100


async def test_a_page_may_be_large() -> None:
    """A repository's files, or a database's tables, by a server that knows no pages."""
    open_ones = [{"uri": f"x://open/{number}", "name": "a"} for number in range(19_999)]
    server = Server(result(resources=[*open_ones, {"uri": "x://hidden", "name": "a"}]))
    call = await legacy(ToolAuthorizationMiddleware(server, policy=POLICY), "resources/list")
    assert call.json == result(resources=open_ones)


async def test_case_31_a_page_of_too_many_is_told_so() -> None:
    server = Server(result(tools=[{"name": "echo"}] * (MAX_ITEMS + 1)))
    call = await legacy(ToolAuthorizationMiddleware(server, policy=POLICY), "tools/list")
    assert call.json == error(-32603, f"the server's list has more than {MAX_ITEMS} items on one page")


async def test_case_39_what_a_server_puts_around_a_list_or_a_resource_is_not_decoded() -> None:
    """Nobody reads it, so that it is skipped, or refused where a copy of it would have to be made."""
    many = {f"k{number}": 1 for number in range(20_000)}
    app = ToolAuthorizationMiddleware(Server(result(tools=[{"name": "echo", **many}], **many)), policy=POLICY)
    assert (await legacy(app, "tools/list")).json == result(tools=[{"name": "echo", **many}])
    app = ToolAuthorizationMiddleware(Server(result(tools=[], _meta=many)), policy=POLICY)
    assert (await legacy(app, "tools/list")).json == error(-32603, "the server's list cannot be read")
    for more, right in (({}, True), ({"ttlMs": 1}, False)):
        app = ToolAuthorizationMiddleware(Server(result(contents=[], **many, **more)), policy=POLICY)
        assert ("result" in (await legacy(app, "resources/read", uri="x://open/a")).json) is right


async def test_what_stands_in_a_lists_meta_may_be_long() -> None:
    meta = {"io.modelcontextprotocol/serverInfo": {"name": "s"}}
    server = Server(result(tools=[{"name": "echo"}], _meta={**meta, "cached": "12:30 " * 20_000}))
    call = await legacy(ToolAuthorizationMiddleware(server, policy=POLICY), "tools/list")
    assert call.json == result(tools=[{"name": "echo"}], _meta=meta)


@pytest.mark.parametrize("body", [b'{"jsonrpc":"2.0","id":1,"result":{"tools":[NaN]}}', b"[]", b"\xff", b""])
@pytest.mark.parametrize("media", ["application/json", "text/plain", "text/event-stream"])
async def test_case_16_an_answer_that_cannot_be_read_is_not_passed_on(body: bytes, media: str) -> None:
    call = await legacy(ToolAuthorizationMiddleware(Server(body, media=media), policy=POLICY), "tools/list")
    assert b"tools" not in call.body


@pytest.mark.parametrize(
    ("status", "media", "body"),
    [
        (401, "application/json", b'{"error":"invalid_token","error_description":"expired"}'),
        (404, "text/plain", b"Not Found"),
        (503, "text/html", b""),
    ],
)
async def test_a_servers_own_refusal_passes_as_it_is(status: int, media: str, body: bytes) -> None:
    call = await legacy(
        ToolAuthorizationMiddleware(Server(body, media=media, status=status), policy=POLICY), "tools/list"
    )
    assert (call.status, call.headers["content-type"], call.body) == (status, media, body)


async def test_case_16_an_answer_under_another_id_is_filtered_too() -> None:
    server = Server({**result(tools=[{"name": "hidden"}, {"name": "echo"}]), "id": "1"}, media="text/event-stream")
    for method, params in (("tools/list", {}), ("tools/call", {"name": "echo"})):
        call = await legacy(ToolAuthorizationMiddleware(server, policy=POLICY), method, **params)
        assert b"hidden" not in call.body
        assert b"echo" in call.body


async def test_case_16_resumed_streams_are_filtered_by_what_they_carry() -> None:
    server = Server(
        result(tools=[{"name": "hidden"}, {"name": "echo"}]),
        result(content=[{"type": "text", "text": "kept"}]),
        {"jsonrpc": "2.0", "method": "notifications/tools/list_changed"},
        {"jsonrpc": "2.0", "method": "notifications/resources/updated", "params": {"uri": "x://shut/secret"}},
        {"jsonrpc": "2.0", "method": "notifications/resources/updated", "params": {"uri": "x://open/a"}},
        {"jsonrpc": "2.0", "method": "notifications/resources/updated"},
        b'{"jsonrpc":"2.0","id":1,"result":{"tools":[{"name":"unreadable"},NaN]}}',
        media="text/event-stream",
    )
    app = ToolAuthorizationMiddleware(server, policy=POLICY)
    call = await Call(app, method="GET", headers={"mcp-session-id": "s", "last-event-id": "7"}).run()
    assert call.body.count(b"data:") == 4
    for gone in (b"hidden", b"secret", b"unreadable"):
        assert gone not in call.body
    for kept in (b"echo", b"kept", b"list_changed", b"x://open/a"):
        assert kept in call.body


async def test_the_first_event_of_the_older_transport_passes() -> None:
    """Its data is a path, not a message."""
    server = Server(b"/messages?session_id=1", media="text/event-stream", event="endpoint")
    call = await Call(ToolAuthorizationMiddleware(server, policy=POLICY), method="GET").run()
    assert b"/messages?session_id=1" in call.body


def failed(text: str, **more: Any) -> dict[str, Any]:
    return result(content=[{"type": "text", "text": text}], isError=True, **more)


@pytest.mark.parametrize(
    "answer",
    [
        failed("Unknown tool: echo"),
        failed("Unknown tool: 'echo'", resultType="complete"),
        failed("MCP error -32602: Tool echo not found"),
        error(-32602, "MCP error -32602: Tool echo not found"),
        error(-32602, 'unknown tool "echo"'),
        error(-32000, "Tool not found: echo", data={"known": ["hidden"]}),
    ],
)
async def test_case_11_servers_that_do_not_know_a_tool_are_put_in_one_form(answer: Any) -> None:
    app = ToolAuthorizationMiddleware(Server(answer), policy=POLICY)
    call = await legacy(app, "tools/call", name="echo")
    assert (call.status, call.body) == (
        200,
        json.dumps(error(-32602, "Unknown tool: echo"), separators=(",", ":")).encode(),
    )
    assert (await modern(app, "tools/call", name="echo")).status == 400
    hidden = await legacy(app, "tools/call", name="drop")
    assert hidden.body.replace(b"drop", b"echo") == call.body


@pytest.mark.parametrize(
    "answer",
    [
        failed("echo failed"),
        failed("Unknown tool: other"),
        failed("Unknown tool: ECHO"),
        failed("Unknown tool: echo, or so the remote says"),
        result(content=[{"type": "text", "text": "Unknown tool: echo"}]),
        error(-32602, "Invalid arguments for tool echo"),
        error(-32603, "Internal server error"),
    ],
)
async def test_other_failures_pass_as_they_are(answer: Any) -> None:
    body = json.dumps(answer).encode()
    call = await legacy(ToolAuthorizationMiddleware(Server(body), policy=POLICY), "tools/call", name="echo")
    assert call.body == body


@pytest.mark.parametrize(
    ("method", "key", "target", "answer", "unknown"),
    [
        ("prompts/get", "name", "greet", error(0, "Unknown prompt: greet"), (-32602, "Unknown prompt: greet", None)),
        (
            "resources/read",
            "uri",
            "x://open/a",
            error(-32602, "Unknown resource: x://open/a"),
            (-32002, "Resource not found", {"uri": "x://open/a"}),
        ),
        (
            "resources/subscribe",
            "uri",
            "x://open/a",
            error(-32002, "Resource not found: 'x://open/a'"),
            (-32002, "Resource not found", {"uri": "x://open/a"}),
        ),
    ],
)
async def test_case_11_unknown_prompts_and_resources_are_put_in_one_form(
    method: str, key: str, target: str, answer: Any, unknown: tuple[int, str, Any]
) -> None:
    app = ToolAuthorizationMiddleware(Server(answer), policy=POLICY)
    call = await legacy(app, method, **{key: target})
    code, text, data = unknown
    assert call.json == error(code, text, **({"data": data} if data else {}))
