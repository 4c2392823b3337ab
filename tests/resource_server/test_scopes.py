"""Scopes: which contain others, and the one challenge that names all that a message needs (B10, H6, case 10)."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mcp.client.auth.utils import extract_field_from_www_auth
from mcp.server.auth.middleware.auth_context import auth_context_var

from mcp_middleware.affinity import SessionAffinityMiddleware
from mcp_middleware.audit import AuditLogMiddleware
from mcp_middleware.audit.record import AuditRecord
from mcp_middleware.authorization import Authorizer, Policy, ToolAuthorizationMiddleware
from mcp_middleware.errors import ConfigurationError
from mcp_middleware.message import Message
from mcp_middleware.ratelimit import RateLimitMiddleware
from mcp_middleware.resource_server import OAuthResourceServerMiddleware
from mcp_middleware.resource_server.scopes import ScopeHierarchy
from mcp_middleware.types import Decision, Era, Principal
from tests.audit.trails import ListSink
from tests.core.recording import Witness
from tests.resource_server.issuer import RESOURCE, LoopbackIssuer
from tests.support import SESSION_KEY, each_era, headers_for, message

ORIGIN = "https://files.example.com"
POLICY = """
rules:
  - {tools: ["echo"], resources: ["memo://*"]}
  - {tools: ["write"], scopes: ["files:write"]}
  - {tools: ["publish"], scopes: ["mcp:use", "files:write", "files:publish"]}
  - {effect: deny, tools: ["secret_*"]}
"""
BASE = "mcp:use"


class Server:
    """Answers every request, and keeps what reached it."""

    def __init__(self) -> None:
        self.reached: list[Any] = []
        self.seen: list[tuple[list[str], list[str]]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = (await receive())["body"] if scope["method"] == "POST" else b"{}"
        self.reached.append(json.loads(body))
        user = auth_context_var.get()
        if user is not None:
            self.seen.append((user.access_token.scopes, scope["auth"].scopes))
        answer = {"jsonrpc": "2.0", "id": self.reached[-1].get("id"), "result": {"content": []}}
        headers = [(b"content-type", b"application/json"), (b"mcp-session-id", b"s1")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps(answer).encode()})


@dataclass
class Governed:
    issuer: LoopbackIssuer
    server: Server
    sink: ListSink
    witness: Witness
    http: httpx2.AsyncClient

    async def send(
        self, method: str, params: Any = None, *, scope: str | None = "", era: Era = "modern", **more: Any
    ) -> httpx2.Response:
        body = message(method, params, era=era, **more)
        headers = headers_for(body, era=era, token=self.issuer.token(scope=scope))
        return await self.http.post("/mcp", content=json.dumps(body), headers=headers)

    async def call(self, tool: str, *, scope: str | None = "", era: Era = "modern") -> httpx2.Response:
        return await self.send("tools/call", {"name": tool, "arguments": {}}, scope=scope, era=era)

    @property
    def record(self) -> AuditRecord:
        record = self.sink.only
        self.sink.records.clear()
        return record


@asynccontextmanager
async def governed(
    issuer: LoopbackIssuer, *, policy: Authorizer | None = None, between: Any = None, **options: Any
) -> AsyncIterator[Governed]:
    """All members round a server; ``between`` puts something foreign round what is inside the resource server."""
    server, sink = Server(), ListSink()
    app: Any = ToolAuthorizationMiddleware(server, policy=policy or Policy.from_text(POLICY))
    app = SessionAffinityMiddleware(app, keys=[SESSION_KEY], per_agent=1)
    app = RateLimitMiddleware(app, requests="1000/minute", tokens="100000/minute")
    if between is not None:
        app = between(app)
    app = OAuthResourceServerMiddleware(app, resource=RESOURCE, issuers=[issuer.issuer], scopes=[BASE], **options)
    witness = Witness(AuditLogMiddleware(app, sink=sink))
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(witness), base_url=ORIGIN) as http:
        yield Governed(issuer, server, sink, witness, http)


def challenged(answer: httpx2.Response) -> str | None:
    """The scopes of an answer that asks for more of them."""
    assert answer.status_code == 403
    assert len(answer.headers.get_list("www-authenticate")) == 1
    assert extract_field_from_www_auth(answer, "error") == "insufficient_scope"
    metadata = extract_field_from_www_auth(answer, "resource_metadata")
    assert metadata == f"{ORIGIN}/.well-known/oauth-protected-resource/mcp"
    return extract_field_from_www_auth(answer, "scope")


@each_era
@pytest.mark.parametrize("scope", [None, "", "files:write", "other"])
async def test_case_10_base_and_tool_scopes_are_named_in_one_challenge(
    issuer: LoopbackIssuer, scope: str | None, era: Era
) -> None:
    async with governed(issuer) as stack:
        assert challenged(await stack.call("write", scope=scope, era=era)) == "mcp:use files:write"
        record = stack.record
        assert (record.decision, record.reason, record.rule) == ("denied", "insufficient_scope", "rules[1]")
        assert (record.method, record.target, record.agent) == ("tools/call", "write", "agent-1")
        assert challenged(await stack.call("publish", scope=scope, era=era)) == "mcp:use files:write files:publish"
        assert not stack.server.reached
        for _ in range(20):
            await stack.call("write", scope=scope, era=era)
        granted = await stack.call("write", scope="mcp:use files:write", era=era)
        assert granted.status_code == 200
        # What was refused took no tokens: nothing is missing but what the one good call may take.
        assert int(granted.headers["ratelimit"].split('"tokens";r=')[1]) > 90_000


@each_era
async def test_case_10_without_the_base_scopes_nothing_else_is_told(issuer: LoopbackIssuer, era: Era) -> None:
    """A tool that may be used, one that is hidden and one that is none: one answer, and one record each."""
    async with governed(issuer) as stack:
        said: set[tuple[str, str]] = set()
        for tool in ("echo", "secret_door", "missing"):
            answer = await stack.call(tool, era=era)
            assert challenged(answer) == BASE
            headers = sorted((name, value) for name, value in answer.headers.items() if name != "ratelimit")
            said.add((answer.text, str(headers)))
            record = stack.record
            assert (record.decision, record.reason, record.target) == ("denied", "insufficient_scope", tool)
        assert len(said) == 1
        assert not stack.server.reached


@each_era
async def test_case_11_a_hidden_tool_stays_hidden_once_the_base_scopes_are_met(
    issuer: LoopbackIssuer, era: Era
) -> None:
    async with governed(issuer) as stack:
        for tool in ("secret_door", "missing"):
            answer = await stack.call(tool, scope=BASE, era=era)
            assert "www-authenticate" not in answer.headers
            assert answer.json()["error"]["message"] == f"Unknown tool: {tool}"
            assert stack.record.reason == "not_allowed"


@pytest.mark.parametrize(
    ("method", "params", "more"),
    [
        ("initialize", {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {}}, {}),
        ("tools/list", None, {}),
        ("ping", None, {}),
        ("unknown/method", None, {}),
        ("completion/complete", {"ref": {"type": "ref/prompt", "name": "p"}}, {}),
        ("notifications/initialized", None, {"id": None}),
    ],
)
async def test_case_10_every_message_needs_the_base_scopes(
    issuer: LoopbackIssuer, method: str, params: Any, more: dict[str, Any]
) -> None:
    async with governed(issuer) as stack:
        for _ in range(3):  # a session that is refused takes no place, of which there is one
            assert challenged(await stack.send(method, params, era="legacy", **more)) == BASE
            record = stack.record
            assert (record.reason, record.method) == ("insufficient_scope", method)
        assert not stack.server.reached
        assert (await stack.send(method, params, scope=BASE, era="legacy", **more)).status_code == 200


async def test_case_10_every_http_method_needs_the_base_scopes(issuer: LoopbackIssuer) -> None:
    async with governed(issuer) as stack:
        bare = {"authorization": f"Bearer {issuer.token(scope='')}"}
        for method in ("GET", "DELETE"):
            assert challenged(await stack.http.request(method, "/mcp", headers=bare)) == BASE
            assert stack.record.reason == "insufficient_scope"
        response = {"jsonrpc": "2.0", "id": 1, "result": {}}
        assert challenged(await stack.http.post("/mcp", json=response, headers=bare)) == BASE
        assert stack.record.reason == "insufficient_scope"
        assert not stack.server.reached


async def test_case_10_a_batch_is_refused_as_one(issuer: LoopbackIssuer) -> None:
    """Nothing of it can pass, and a challenge is a header: in an answer of status 200 no client would see it."""
    batch = [message("tools/call", {"name": tool}, id=id, era="legacy") for id, tool in enumerate(("echo", "write"))]
    async with governed(issuer) as stack:

        async def send(scope: str) -> httpx2.Response:
            headers = headers_for(era="legacy", token=issuer.token(scope=scope), version="2025-03-26")
            return await stack.http.post("/mcp", content=json.dumps(batch), headers=headers)

        assert challenged(await send("")) == BASE
        assert stack.record.reason == "insufficient_scope"
        assert not stack.server.reached
        answers = (await send(BASE)).json()
        assert "result" in answers[0]
        assert "mcp:use files:write" in answers[1]["error"]["message"]
        assert [record.reason for record in stack.sink.records] == [None, "insufficient_scope"]
        assert len(stack.server.reached) == 1


class Incurable:
    """An authorizer that shows a tool it lets nobody use."""

    def authorize(self, principal: Principal, message: Message) -> Decision:
        return Decision(allowed=False, rule="mine", visible=True)


@pytest.mark.parametrize("scope", ["", BASE])
async def test_case_10_what_no_scope_cures_asks_for_none(issuer: LoopbackIssuer, scope: str) -> None:
    """Also of a token that lacks the base scopes: a client would ask for a new one for nothing."""
    async with governed(issuer, policy=Incurable()) as stack:
        answer = await stack.call("echo", scope=scope)
        assert answer.status_code == 403
        assert "www-authenticate" not in answer.headers
        assert stack.record.reason == "not_allowed"
        assert challenged(await stack.send("tools/list")) == BASE
        assert not stack.server.reached


async def test_case_10_apart_from_the_policy_the_base_scopes_are_asked_for_first(issuer: LoopbackIssuer) -> None:
    """What stands between could be anything, so nothing reaches it."""
    passed: list[str] = []

    def foreign(app: Any) -> Any:
        async def between(scope: Any, receive: Any, send: Any) -> None:
            passed.append(scope["path"])
            await app(scope, receive, send)

        return between

    async with governed(issuer, between=foreign) as stack:
        assert challenged(await stack.call("write")) == BASE
        assert not passed
        assert challenged(await stack.call("write", scope=BASE)) == "mcp:use files:write"
        assert len(passed) == 1
        assert not stack.server.reached


IMPLIED = {"mcp:admin": ["mcp:use", "files:all"], "files:all": ["files:write"]}


@each_era
async def test_f6_few_scopes_are_asked_for_at_first_and_none_alone_allows_anything(
    issuer: LoopbackIssuer, era: Era
) -> None:
    """The first challenge and the metadata name the base scopes, and those of rules only the call that needs them."""
    async with governed(issuer) as stack:
        body = message("tools/call", {"name": "write", "arguments": {}}, era=era)
        unknown = await stack.http.post("/mcp", content=json.dumps(body), headers=headers_for(body, era=era))
        assert (unknown.status_code, extract_field_from_www_auth(unknown, "scope")) == (401, BASE)
        document = await stack.http.get("/.well-known/oauth-protected-resource/mcp")
        assert document.json()["scopes_supported"] == [BASE]
        stack.sink.records.clear()
        for tool in ("secret_1", "of_no_rule"):
            answer = await stack.call(tool, scope="mcp:use files:write files:publish *", era=era)
            assert answer.json()["error"]["message"] == f"Unknown tool: {tool}"
            assert stack.record.reason == "not_allowed"
        assert not stack.server.reached


async def test_case_10_a_greater_scope_contains_the_smaller(issuer: LoopbackIssuer) -> None:
    async with governed(issuer, implied_scopes=IMPLIED) as stack:
        token = issuer.token(scope="mcp:admin")
        body = message("tools/call", {"name": "write", "arguments": {}})
        for _ in range(2):
            answer = await stack.http.post("/mcp", content=json.dumps(body), headers=headers_for(body, token=token))
            assert answer.status_code == 200
        first, second = (exchange.principal for exchange in stack.witness.exchanges)
        assert first is not None
        assert first.scopes == {"mcp:admin", "mcp:use", "files:all", "files:write"}
        assert first is second  # worked out once for all requests that bear the token
        # The server sees what the issuer granted, and knows its own hierarchy.
        assert stack.server.seen == [(["mcp:admin"], ["mcp:admin"])] * 2
        assert challenged(await stack.call("publish", scope="mcp:admin")) == "mcp:use files:write files:publish"
        assert challenged(await stack.call("write", scope="files:all")) is not None
        assert (await stack.call("write", scope="files:all mcp:use")).status_code == 200


async def test_widened_tokens_do_not_fill_the_memory(issuer: LoopbackIssuer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mcp_middleware.resource_server.middleware._WIDENED", 2)
    async with governed(issuer, implied_scopes=IMPLIED) as stack:
        for number in range(5):
            token = issuer.token(scope="mcp:admin", jti=str(number), sub=f"user-{number}")
            body = message("tools/list")
            answer = await stack.http.post("/mcp", content=json.dumps(body), headers=headers_for(body, token=token))
            assert answer.status_code == 200
        callers = [exchange.principal for exchange in stack.witness.exchanges]
        assert [caller and caller.subject for caller in callers] == [f"user-{n}" for n in range(5)]


@pytest.mark.parametrize(
    ("implied", "named"),
    [
        ("mcp:admin", r"implied_scopes is 'mcp:admin'; it must be a mapping"),
        ([("a", ["b"])], r"implied_scopes is .*; it must be a mapping"),
        ({"a": "b"}, r"implied_scopes\['a'\] is 'b'; it must be a list"),
        ({"a": {"b": "c"}}, r"implied_scopes\['a'\] is .*; it must be a list"),
        ({"a": None}, r"implied_scopes\['a'\] is None; it must be a list"),
        ({"a": [1]}, r"implied_scopes\['a'\] has 1; a scope is printable"),
        ({"a": ["b c"]}, r"implied_scopes\['a'\] has 'b c'; a scope is printable"),
        ({"a": ["offline_access"]}, r"implied_scopes\['a'\] has 'offline_access'"),
        ({"": ["b"]}, r"implied_scopes has ''; a scope is printable"),
        ({1: ["b"]}, r"implied_scopes has 1; a scope is printable"),
        ({"a": ["a"]}, r"implied_scopes\['a'\]: a contains a; no scope may contain itself"),
        ({"a": ["b"], "b": ["a"]}, r"implied_scopes\['a'\]: a contains b contains a; no scope"),
        ({"a": ["b"], "b": ["c"], "c": ["d", "b"]}, r"implied_scopes\['b'\]: b contains c contains b; no scope"),
        ({"a": ["x", "b"], "b": ["c"], "c": ["a"]}, r"implied_scopes\['a'\]: a contains b contains c contains a; no"),
    ],
)
def test_a_wrong_hierarchy_is_refused(implied: Any, named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        OAuthResourceServerMiddleware(
            Server(), resource=RESOURCE, issuers=["https://login.example.com"], implied_scopes=implied
        )


names = st.integers(0, 8)


@given(st.dictionaries(names, st.lists(names, max_size=4)), st.frozensets(names))
def test_scopes_are_widened_by_all_that_can_be_reached(graph: dict[int, list[int]], held: frozenset[int]) -> None:
    """Only to greater numbers, so that there is no circle."""
    implied: Mapping[str, list[str]] = {
        f"s{name}": [f"s{other}" for other in others if other > name] for name, others in graph.items()
    }
    scopes = frozenset(f"s{name}" for name in held)
    expected = set(scopes)
    while True:
        more = {inner for scope in expected for inner in implied.get(scope, [])} - expected
        if not more:
            break
        expected |= more
    wide = ScopeHierarchy(implied).widened(scopes)
    assert wide == expected
    assert (wide is scopes) == (wide == scopes)


def test_many_scopes_that_contain_each_other_are_no_matter() -> None:
    """What all of them contain, written out, would be gigabytes."""
    chain = {f"s{number}": [f"s{number + 1}"] for number in range(20_000)}
    assert len(ScopeHierarchy(chain).widened(frozenset({"s0", "x"}))) == 20_002
    dense = {f"s{number}": [f"s{other}" for other in range(number + 1, 300)] for number in range(300)}
    assert len(ScopeHierarchy(dense).widened(frozenset({"s0"}))) == 300


class Fixed:
    """An authorizer with one answer."""

    def __init__(self, decision: Decision) -> None:
        self.decision = decision

    def authorize(self, principal: Principal, message: Message) -> Decision:
        return self.decision


@given(
    allowed=st.booleans(),
    visible=st.booleans(),
    scopes=st.sampled_from([(), ("files:write",), (BASE, "other")]),
    held=st.sampled_from(["", BASE, "files:write", f"files:write {BASE}"]),
    method=st.sampled_from(
        ["tools/call", "resources/read", "tools/list", "initialize", "tasks/get", "x/y", "notifications/x"]
    ),
)
@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_case_10_whatever_an_authorizer_says_the_base_scopes_are_needed(
    issuer: LoopbackIssuer,
    allowed: bool,
    visible: bool,
    scopes: tuple[str, ...],
    held: str,
    method: str,
) -> None:
    judged = method in ("tools/call", "resources/read", "tasks/get", "x/y")
    based = BASE in held.split()
    params = {"name": "t", "uri": "x://y", "taskId": "1", "protocolVersion": "2025-11-25"}
    async with governed(issuer, policy=Fixed(Decision(allowed, "rule", visible, scopes))) as stack:
        answer = await stack.send(method, params, scope=held, era="legacy", id=None if "notif" in method else 1)
        record = stack.record
        assert bool(stack.server.reached) == (based and (allowed or not judged))
        challenge = answer.headers.get("www-authenticate")
        if stack.server.reached:
            assert (record.decision, challenge) == ("allowed", None)
        elif not based and not (judged and visible and not allowed and not scopes):
            named = set((challenged(answer) or "").split())
            assert named == {BASE, *(scopes if judged and (allowed or visible) else ())}
            assert record.reason == "insufficient_scope"
        elif visible and scopes:
            assert challenged(answer) == " ".join(dict.fromkeys((BASE, *scopes)))
        else:
            assert challenge is None
            assert record.reason == "not_allowed"
            assert (answer.status_code == 403) == visible
