"""Real FastMCP and SDK servers over real sockets, with the official client."""

import asyncio
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
from fastmcp.server.dependencies import get_access_token as fastmcp_access_token
from mcp.server.auth.middleware.auth_context import get_access_token as sdk_access_token
from mcp.server.auth.provider import AccessToken
from starlette.middleware import Middleware

from mcp_middleware.resource_server import OAuthResourceServerMiddleware
from mcp_middleware.types import Era
from tests.mcp_servers import Kind, app_of, each_server, server_of
from tests.resource_server.issuer import LoopbackIssuer
from tests.support import connect, each_era, initialize, listener, messages_of, origin_of, post, serve, text_of


def whoami() -> str:
    """The caller, as FastMCP and as the SDK tell it: by one object, which FastMCP need not convert."""
    assert fastmcp_access_token() is fastmcp_access_token()
    return f"{_shown(fastmcp_access_token())} | {_shown(sdk_access_token())}"


def _shown(token: AccessToken | None) -> str:
    return f"{token.client_id} {token.subject} {(token.claims or {})['jti']}" if token else "nobody"


@asynccontextmanager
async def served(kind: Kind, *issuers: LoopbackIssuer) -> AsyncIterator[str]:
    """The URL of a protected server; it is the resource."""
    bound = listener()
    url = f"{origin_of(bound)}/mcp"
    options: dict[str, Any] = {"resource": url, "issuers": [one.issuer for one in issuers], "scopes": ["mcp:use"]}
    server = server_of(kind)
    server.tool()(whoami)
    async with serve(app_of(server, Middleware(OAuthResourceServerMiddleware, **options)), bound=bound):
        yield url


@each_server
@each_era
async def test_a_tool_sees_its_caller(issuer: LoopbackIssuer, kind: Kind, era: Era) -> None:
    """B13: get_access_token() of FastMCP in FastMCP, of the SDK in both."""
    async with served(kind, issuer) as url:
        for caller in ("alice", "bob"):
            async with connect(url, token=issuer.token(aud=url, sub=caller), era=era) as client:
                text = text_of(await client.call_tool("whoami"))
                assert text.endswith(f"| agent-1 {caller} 1")
                if kind == "fastmcp":
                    assert text.startswith(f"agent-1 {caller} 1 |")


@each_server
async def test_case_19_a_session_belongs_to_its_caller(issuer: LoopbackIssuer, kind: Kind) -> None:
    """B13: another subject's session id is answered as an unknown one; a new token of the same caller keeps it."""
    async with (
        serve((other := LoopbackIssuer()).app) as other.url,
        served(kind, issuer, other) as url,
        httpx2.AsyncClient() as http,
    ):
        alice, bob = issuer.token(aud=url), issuer.token(aud=url, sub="bob")
        session = await initialize(http, url, token=alice)
        assert session is not None

        async def listed(token: str, session: str) -> httpx2.Response:
            return await post(http, url, "tools/list", era="legacy", token=token, session=session)

        stolen, unknown = await listed(bob, session), await listed(bob, "0" * 32)
        assert stolen.status_code == unknown.status_code == 404
        assert stolen.content == unknown.content
        machine = issuer.token(aud=url, client_id="agent-2")
        assert (await listed(machine, session)).status_code == 404
        namesake = other.token(aud=url)
        assert (await listed(namesake, session)).status_code == 404
        refreshed = issuer.token(aud=url, jti="2")
        assert messages_of(await listed(refreshed, session))[-1]["result"]["tools"]
        call = {"name": "whoami", "arguments": {}}
        answer = await post(http, url, "tools/call", call, era="legacy", token=refreshed, session=session)
        assert "agent-1 alice 2" in answer.text  # the tool sees the token of the request, not the session's first
        assert "agent-1 alice 1" not in answer.text


@each_server
async def test_case_2_two_tokens_on_the_wire(issuer: LoopbackIssuer, kind: Kind) -> None:
    async with served(kind, issuer) as url:
        host, port = url.split("/")[2].split(":")
        line = f"Authorization: Bearer {issuer.token(aud=url)}\r\n"
        for lines in (line * 2, line + line.upper(), line + "authorization:\r\n"):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(f"GET /mcp HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{lines}\r\n".encode())
            assert (await reader.readline()).startswith(b"HTTP/1.1 400")
            writer.close()
            await writer.wait_closed()


@each_server
async def test_case_1_no_token_no_server(issuer: LoopbackIssuer, kind: Kind) -> None:
    async with served(kind, issuer) as url, httpx2.AsyncClient() as http:
        for method in ("POST", "GET", "DELETE"):
            answer = await http.request(method, url)
            assert answer.status_code == 401
            assert "error=" not in answer.headers["www-authenticate"]
        header = answer.headers["www-authenticate"]
        found = re.search('resource_metadata="([^"]+)"', header)
        assert found is not None
        document = await http.get(found.group(1))
        assert document.json()["resource"] == url
        head = await http.head(found.group(1))
        assert (head.status_code, head.content) == (200, b"")


def test_without_the_sdk_or_starlette_the_caller_is_still_known() -> None:
    program = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[1:]:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
from mcp_middleware.resource_server.identity import hand_on
from mcp_middleware.resource_server.verifier import VerifiedToken
from mcp_middleware.types import Principal
scope = {}
undo = hand_on()(scope, VerifiedToken("t", Principal("i", "agent-1", "alice"), ["a"], 1, "r", {}, 0.0))
user = scope["user"]
print(type(user).__module__, user.is_authenticated, user.display_name, scope["auth"].scopes, undo)
"""
    for absent, module in (("mcp",), "starlette.authentication"), (("mcp", "starlette"), "mcp_middleware"):
        result = subprocess.run([sys.executable, "-c", program, *absent], capture_output=True, text=True, check=True)
        assert result.stdout.startswith(module)
        assert result.stdout.strip().endswith("True agent-1 ['a'] None")
