"""Under real FastMCP and SDK servers, over sockets, with the official client and with raw messages of both eras."""

import base64
import itertools
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx2
import pytest
import pytest_asyncio
from fastmcp import FastMCP
from fastmcp.server.auth.providers.jwt import StaticTokenVerifier
from mcp import MCPError
from starlette.middleware import Middleware

from mcp_middleware.authorization import Policy, ToolAuthorizationMiddleware
from mcp_middleware.types import Era
from tests.authorization.servers import POLICY, governed, names
from tests.mcp_servers import KINDS, Kind, each_server
from tests.support import ERAS, TIMEOUT, answer_of, connect, each_era, headers_for, initialize, message, serve, text_of

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(params=KINDS, scope="module", loop_scope="module")
async def url(request: pytest.FixtureRequest) -> AsyncIterator[str]:
    async with serve(governed(request.param, Policy.from_text(POLICY))) as origin:
        yield f"{origin}/mcp"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http() -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(timeout=TIMEOUT) as client:
        yield client


class Raw:
    """Raw messages of one caller in one era."""

    def __init__(self, http: httpx2.AsyncClient, url: str, era: Era, token: str) -> None:
        self.http, self.url, self.era, self.token = http, url, era, token
        self.session: str | None = None

    async def ask(
        self, method: str, params: dict[str, Any] | None = None, headers: Mapping[str, str] | None = None
    ) -> httpx2.Response:
        if self.era == "legacy" and self.session is None:
            self.session = await initialize(self.http, self.url, token=self.token)
        body = message(method, params, era=self.era)
        sent = headers_for(body, era=self.era, token=self.token, session=self.session)
        return await self.http.post(self.url, content=json.dumps(body), headers=sent | dict(headers or {}))


@each_era
async def test_case_16_the_official_client_sees_what_is_allowed_and_nothing_else(url: str, era: Era) -> None:
    async with connect(url, token="reader", era=era) as client:
        assert [tool.name for tool in (await client.list_tools()).tools] == ["read_file", "read_log", "echo"]
        assert [prompt.name for prompt in (await client.list_prompts()).prompts] == ["greet"]
        assert [str(r.uri) for r in (await client.list_resources()).resources] == ["file:///srv/public/a"]
        templates = (await client.list_resource_templates()).resource_templates
        assert [template.uri_template for template in templates] == ["file:///srv/public/in/{path}"]
        assert text_of(await client.call_tool("echo", {"text": "it"})) == "done it"
        assert (await client.get_prompt("greet")).messages
        assert (await client.read_resource("file:///srv/public/in/x")).contents


@each_era
async def test_case_11_the_official_client_is_told_of_no_hidden_target(url: str, era: Era) -> None:
    async with connect(url, token="reader", era=era) as client:
        for call, code, text in [
            (client.call_tool("write_file", {}), -32602, "Unknown tool: write_file"),
            (client.get_prompt("secret_plan"), -32602, "Unknown prompt: secret_plan"),
            (
                client.read_resource("file:///srv/secret/b"),
                -32602 if era == "modern" else -32002,
                "Resource not found",
            ),
        ]:
            with pytest.raises(MCPError) as refused:
                await call
            assert (refused.value.error.code, refused.value.error.message) == (code, text)


@each_era
async def test_case_11_hidden_targets_answer_exactly_as_unknown_ones(
    url: str, http: httpx2.AsyncClient, era: Era
) -> None:
    """The admin's unknown names pass the policy and are answered by the server; the hidden ones never reach it."""
    raw = Raw(http, url, era, "admin")
    for method, key, hidden, unknown in [
        ("tools/call", "name", "secret_key", "nothing"),
        ("resources/read", "uri", "file:///srv/secret/b", "file:///srv/nothing"),
    ]:
        answers, kept = [], []
        for name in (hidden, unknown):
            response = await raw.ask(method, {key: name})
            answers.append((response.status_code, str(answer_of(response)).replace(name, "NAME")))
            kept.append(
                {key: value for key, value in response.headers.items() if key not in ("date", "content-length")}
            )
        assert answers[0] == answers[1]
        assert era == "legacy" or kept[0] == kept[1], "a legacy server answers calls in an event stream"
        assert answers[0][0] == (200 if era == "legacy" else 400)


async def test_case_11_hidden_prompts_answer_exactly_as_unknown_ones(http: httpx2.AsyncClient) -> None:
    """All but the modern SDK server, which says 'Internal server error' of every failing prompt."""
    for kind, era in itertools.product(KINDS, ERAS):
        if (kind, era) == ("sdk", "modern"):
            continue
        async with serve(governed(kind, Policy.from_text(POLICY))) as origin:
            raw = Raw(http, f"{origin}/mcp", era, "admin")
            answers = []
            for name in ("secret_plan", "nothing"):
                response = await raw.ask("prompts/get", {"name": name})
                answers.append((response.status_code, str(answer_of(response)).replace(name, "NAME")))
            assert answers[0] == answers[1]


@each_era
async def test_case_11_names_match_byte_for_byte(url: str, http: httpx2.AsyncClient, era: Era) -> None:
    raw = Raw(http, url, era, "reader")
    for name in ("Echo", "ECHO", "xecho", "echo2", "echo ", " echo", "echo\n", "ｅcho", "echo\u200b", "éch"):
        encoded = base64.b64encode(name.encode()).decode()
        headers = {"mcp-name": f"=?base64?{encoded}?="} if era == "modern" else {}
        answer = answer_of(await raw.ask("tools/call", {"name": name}, headers))
        assert answer["error"] == {"code": -32602, "message": f"Unknown tool: {name}"}


@each_era
async def test_case_10_a_missing_scope_is_challenged_with_all_scopes(
    url: str, http: httpx2.AsyncClient, era: Era
) -> None:
    """B10: one challenge with every scope of the operation, the met one included."""
    raw = Raw(http, url, era, "writer")
    listed = answer_of(await raw.ask("tools/list"))
    assert names(listed, "tools") == ["write_file"], "a tool that a scope would open is seen"
    response = await raw.ask("tools/call", {"name": "write_file"})
    assert response.status_code == 403
    assert response.headers["www-authenticate"] == 'Bearer error="insufficient_scope", scope="files:read files:write"'
    assert answer_of(response)["error"]["code"] == 401001
    assert answer_of(response)["id"] == 1
    allowed = await Raw(http, url, era, "full-writer").ask("tools/call", {"name": "write_file"})
    assert answer_of(allowed)["result"]["content"][0]["text"] == "done "


@each_era
async def test_case_17_without_a_rule_nothing_is_open(url: str, http: httpx2.AsyncClient, era: Era) -> None:
    raw = Raw(http, url, era, "nobody")
    for method, member in [
        ("tools/list", "tools"),
        ("prompts/list", "prompts"),
        ("resources/list", "resources"),
        ("resources/templates/list", "resourceTemplates"),
    ]:
        assert answer_of(await raw.ask(method))["result"][member] == []
    prompt = {"ref": {"type": "ref/prompt", "name": "greet"}, "argument": {"name": "a", "value": ""}}
    template = {"ref": {"type": "ref/resource", "uri": "file:///srv/{x}"}, "argument": {"name": "x", "value": ""}}
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("tools/call", {"name": "echo"}, "Unknown tool: echo"),
        ("prompts/get", {"name": "greet"}, "Unknown prompt: greet"),
        ("resources/read", {"uri": "file:///srv/public/a"}, "Resource not found"),
        ("resources/subscribe", {"uri": "file:///srv/public/a"}, "Resource not found"),
        ("resources/unsubscribe", {"uri": "file:///srv/public/a"}, "Resource not found"),
        ("completion/complete", prompt, "Unknown prompt: greet"),
        ("completion/complete", template, "Resource not found"),
        ("tasks/get", {"taskId": "1"}, "Unknown task: 1"),
        ("tasks/list", {}, "Method not found"),
        ("vendor/secrets", {}, "Method not found"),
        ("subscriptions/listen", {"notifications": {"resourceSubscriptions": ["file:///a"]}}, "Resource not found"),
    ]
    removed = {"resources/subscribe", "resources/unsubscribe"} if era == "modern" else set()
    for method, params, text in cases:
        text = "Method not found" if method in removed else text
        assert answer_of(await raw.ask(method, params))["error"]["message"] == text, method


@pytest.mark.parametrize("json_response", [False, True])
@each_server
async def test_case_16_lists_are_filtered_in_json_and_in_event_streams(
    kind: Kind, json_response: bool, http: httpx2.AsyncClient
) -> None:
    app = governed(kind, Policy.from_text(POLICY), json_response=json_response)
    async with serve(app) as origin:
        response = await Raw(http, f"{origin}/mcp", "legacy", "reader").ask("tools/list")
    assert response.headers["content-type"].startswith("application/json" if json_response else "text/event-stream")
    assert names(answer_of(response), "tools") == ["read_file", "read_log", "echo"]
    assert "cacheScope" not in answer_of(response)["result"]


async def test_case_16_modern_lists_are_private(url: str, http: httpx2.AsyncClient) -> None:
    """2026-07-28, caching."""
    raw = Raw(http, url, "modern", "reader")
    for method in ("tools/list", "prompts/list", "resources/list", "resources/templates/list", "resources/read"):
        params = {"uri": "file:///srv/public/a"} if method == "resources/read" else {}
        result = answer_of(await raw.ask(method, params))["result"]
        assert result["cacheScope"] == "private"
        assert result["ttlMs"] <= 60_000


async def test_traversal_and_encodings_do_not_get_around_the_globs(url: str, http: httpx2.AsyncClient) -> None:
    """The servers decode what a template matches: ``in%2Fx`` would be read as ``in/x``."""
    reader, admin = Raw(http, url, "legacy", "reader"), Raw(http, url, "legacy", "admin")
    for raw, uri in [
        (reader, "file:///srv/public/in/.."),
        (reader, "file:///srv/public/in/..%2F..%2Fsecret%2Fb"),
        (reader, "file:///srv/public/in/%252e%252e"),
        (reader, "file:///srv/public/../secret/b"),
        (reader, "file:///srv/public/in\\..\\..\\secret"),
        (admin, "file:///srv/secret%2Fin/x"),
        (admin, "FILE:///srv/secret/b"),
        (admin, "file:///srv/%73ecret/b"),
    ]:
        answer = answer_of(await raw.ask("resources/read", {"uri": uri}))
        assert answer["error"] == {"code": -32002, "message": "Resource not found", "data": {"uri": uri}}
    answer = answer_of(await reader.ask("resources/read", {"uri": "file:///srv/public/in/a%20b"}))
    assert answer["result"]["contents"][0]["text"] == "public a b"


async def test_other_spellings_of_a_subscription_are_refused(url: str, http: httpx2.AsyncClient) -> None:
    """The SDK's models also read ``resource_subscriptions``."""
    raw = Raw(http, url, "modern", "admin")
    params = {"notifications": {"resource_subscriptions": ["file:///srv/secret/b"]}}
    response = await raw.ask("subscriptions/listen", params)
    assert response.status_code == 400
    assert "params.notifications" in answer_of(response)["error"]["message"]


async def test_behind_fastmcps_own_authentication_roles_and_machines_match() -> None:
    policy = Policy.from_text("rules:\n  - {subjects: ['*'], tools: [echo]}\n  - {roles: [admin], tools: [reset]}")
    tokens: dict[str, dict[str, Any]] = {
        "machine": {"client_id": "ci-1"},
        "admin": {"client_id": "ci-2", "sub": "alice", "roles": ["admin"]},
    }
    server = FastMCP("own", auth=StaticTokenVerifier(tokens))
    for name in ("echo", "reset"):
        server.tool(lambda: "done", name=name)
    member = Middleware(ToolAuthorizationMiddleware, policy=policy)
    async with serve(server.http_app(path="/mcp", middleware=[member])) as origin:
        for token, seen in [("machine", ["echo"]), ("admin", ["echo", "reset"])]:
            async with connect(f"{origin}/mcp", token=token) as client:
                assert [tool.name for tool in (await client.list_tools()).tools] == seen
