"""A real server that calls another for its caller, as the guide has it: each hop protected, no token on both."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx2
import pytest
from fastmcp.server.dependencies import get_access_token as fastmcp_access_token
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.server.auth.middleware.auth_context import get_access_token as sdk_access_token
from starlette.middleware import Middleware

from mcp_middleware.credentials import Caller, ClientCredentials, TokenExchange
from mcp_middleware.oauth import ClientSecret
from mcp_middleware.resource_server import OAuthResourceServerMiddleware
from mcp_middleware.types import Era
from tests.authorization_server.running import RunningServer, running
from tests.mcp_servers import Kind, app_of, server_of
from tests.support import connect, listener, origin_of, serve, text_of


def _protected(server: Any, url: str, issuer: str) -> Any:
    return app_of(server, Middleware(OAuthResourceServerMiddleware, resource=url, issuers=[issuer]))


def _mailbox(url: str, issuer: str) -> Any:
    """Tells who calls it, and with which token."""
    server = server_of("fastmcp")

    @server.tool()
    def whoami() -> str:
        token = fastmcp_access_token()
        assert token is not None
        return f"{token.subject} by {token.client_id} with {token.token}"

    return _protected(server, url, issuer)


def _assistant(kind: Kind, url: str, issuer: str, ask: Callable[[Any], Any]) -> Any:
    """Asks the mailbox who calls, for its own caller."""
    server = server_of(kind)

    @server.tool()
    async def asked() -> str:
        return str(await ask(fastmcp_access_token() if kind == "fastmcp" else sdk_access_token()))

    return _protected(server, url, issuer)


@asynccontextmanager
async def served(kind: Kind, grant: str) -> AsyncIterator[tuple[str, RunningServer]]:
    """The URL of an assistant before a mailbox, and their authorization server."""
    assistant, mail = listener(), listener()
    assistant_url, mail_url = f"{origin_of(assistant)}/mcp", f"{origin_of(mail)}/mcp"
    async with AsyncExitStack() as stack:
        issuer = await stack.enter_async_context(running(resources=[assistant_url, mail_url]))
        secret = issuer.add_client("assistant", serves=[assistant_url]).secret
        proof = ClientSecret("assistant", secret or "")
        exchange = TokenExchange(issuer=issuer.issuer, authentication=proof, audience=mail_url)
        own = ClientCredentials(issuer=issuer.issuer, authentication=proof, resource=mail_url)
        for credential in (exchange, own):
            await credential.start()
            stack.push_async_callback(credential.aclose)

        async def ask(access: Any) -> str:
            auth = exchange.auth(Caller.from_access_token(access)) if grant == "exchange" else own.auth()
            async with (
                httpx2.AsyncClient(auth=auth) as http,
                Client(streamable_http_client(mail_url, http_client=http)) as client,
            ):
                return text_of(await client.call_tool("whoami"))

        await stack.enter_async_context(serve(_mailbox(mail_url, issuer.issuer), bound=mail))
        await stack.enter_async_context(serve(_assistant(kind, assistant_url, issuer.issuer, ask), bound=assistant))
        yield assistant_url, issuer


@pytest.mark.parametrize(("kind", "era"), [("fastmcp", "modern"), ("sdk", "legacy")])
async def test_case_8_a_tool_acts_for_its_caller_with_a_token_of_its_own(kind: Kind, era: Era) -> None:
    """F1: the mailbox sees the caller and the assistant, and never the token that the assistant was called with."""
    async with served(kind, "exchange") as (url, issuer):
        agent = issuer.add_client("agent")
        token = await issuer.token(agent, url)
        async with connect(url, token=token, era=era) as client:
            first = text_of(await client.call_tool("asked"))
            assert first.startswith("agent by assistant with ey")
            assert token not in first
            assert text_of(await client.call_tool("asked")) == first, "the same token: it was kept"


async def test_a_tool_acts_for_itself() -> None:
    async with served("fastmcp", "own") as (url, issuer):
        agent = issuer.add_client("agent")
        async with connect(url, token=await issuer.token(agent, url)) as client:
            assert text_of(await client.call_tool("asked")).startswith("assistant by assistant with ey")
