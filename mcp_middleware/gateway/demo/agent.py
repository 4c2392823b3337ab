"""A scripted agent: the official MCP client, with a machine-to-machine token that it gets by itself.

All it is given is the URL of an MCP server and its own credentials. The server's 401 leads it to the metadata, the
metadata to the issuer, and the issuer gives it a token for that server alone.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import httpx2
from mcp.client import Client
from mcp.client.auth.extensions.client_credentials import ClientCredentialsOAuthProvider
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.auth import OAuthClientInformationFull, OAuthToken
from mcp.shared.exceptions import MCPError

__all__ = ["VERSIONS", "Agent", "Call", "Conversation", "Era", "Heard"]

Era = Literal["legacy", "modern"]
VERSIONS: Final[dict[Era, str]] = {"legacy": "2025-11-25", "modern": "2026-07-28"}


class TokenMemory:
    """Where the client keeps its token: for as long as a conversation lasts."""

    def __init__(self) -> None:
        self.token: OAuthToken | None = None
        self._client: OAuthClientInformationFull | None = None

    async def get_tokens(self) -> OAuthToken | None:
        return self.token

    async def set_tokens(self, tokens: OAuthToken) -> None:
        self.token = tokens

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        return self._client

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        self._client = client_info


@dataclass(frozen=True, slots=True)
class Call:
    """What came of one tool call, as the agent sees it."""

    text: str = ""
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Heard:
    """One refusal on the wire that the client may have dealt with by itself."""

    status: int
    challenge: str
    """``WWW-Authenticate``, or empty."""
    retry_after: str
    """``Retry-After``, or empty."""


@dataclass(slots=True)
class Conversation:
    """An agent connected to one server."""

    client: Client
    memory: TokenMemory
    heard: list[Heard]
    """Every HTTP answer from 400 on, in order."""

    @property
    def token(self) -> str:
        """The access token in use."""
        return self.memory.token.access_token if self.memory.token else ""

    @property
    def scopes(self) -> str:
        """What the token in use is good for."""
        return (self.memory.token.scope if self.memory.token else None) or ""

    async def tools(self) -> list[str]:
        """The tools the server shows this agent."""
        return [tool.name for tool in (await self.client.list_tools()).tools]

    async def call(self, tool: str, **arguments: Any) -> Call:
        """Call a tool; a refusal is an answer too."""
        try:
            result = await self.client.call_tool(tool, arguments)
        except MCPError as refused:
            return Call(error=f"{refused.error.code} {refused.error.message}")
        text = ", ".join(part.text for part in result.content if part.type == "text")
        return Call(error=text) if result.is_error else Call(text)


@dataclass(frozen=True, slots=True)
class Agent:
    """An agent, with the secret it was given when it was registered with ``issuer``: it is sent nowhere else."""

    client_id: str
    issuer: str
    secret: str = field(repr=False)

    @asynccontextmanager
    async def connect(
        self,
        url: str,
        era: Era,
        *,
        token: str | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> AsyncIterator[Conversation]:
        """Talk to the server at ``url``: with the handshake of 2025-11-25, or as 2026-07-28 does it.

        With a ``token`` the client sends that one. Without, it gets one by itself, but then makes one request at a
        time. ``transport`` takes its requests elsewhere than their URL says, as a load balancer does.
        """
        memory, heard = TokenMemory(), list[Heard]()

        async def listen(response: httpx2.Response) -> None:
            if response.status_code >= 400:
                headers = response.headers
                challenge, retry_after = headers.get("www-authenticate", ""), headers.get("retry-after", "")
                heard.append(Heard(response.status_code, challenge, retry_after))

        auth: httpx2.Auth = ClientCredentialsOAuthProvider(url, memory, self.client_id, self.secret, issuer=self.issuer)
        if token is not None:
            await memory.set_tokens(OAuthToken(access_token=token))
            auth = httpx2.FunctionAuth(lambda request: _with_token(request, token))
        timeout = httpx2.Timeout(10.0, read=60.0)
        hooks = {"response": [listen]}
        async with (
            httpx2.AsyncClient(auth=auth, timeout=timeout, event_hooks=hooks, transport=transport) as http,
            Client(
                streamable_http_client(url, http_client=http), mode="legacy" if era == "legacy" else "auto"
            ) as client,
        ):
            if client.protocol_version != VERSIONS[era]:
                raise RuntimeError(f"the client settled on MCP {client.protocol_version} instead of {VERSIONS[era]}")
            yield Conversation(client, memory, heard)


def _with_token(request: httpx2.Request, token: str) -> httpx2.Request:
    request.headers["authorization"] = f"Bearer {token}"
    return request
