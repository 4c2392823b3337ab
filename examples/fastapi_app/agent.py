"""A scripted agent: the official MCP client, and a machine-to-machine token that it gets by itself.

All the client is given is the URL of an MCP server and its own credentials. The server's 401 leads it to the metadata,
the metadata to the issuer, and the issuer gives it a token for that server alone.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx2
from mcp.client import Client
from mcp.client.auth.extensions.client_credentials import (
    ClientCredentialsOAuthProvider,
    PrivateKeyJWTOAuthProvider,
    SignedJWTParameters,
)
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.auth import OAuthClientInformationFull, OAuthToken
from mcp.shared.exceptions import MCPError

__all__ = ["Agent", "Call", "Conversation", "Era", "TokenMemory"]

Era = Literal["legacy", "modern"]


@dataclass(slots=True)
class TokenMemory:
    """Where the SDK's provider keeps its tokens: for as long as a conversation lasts."""

    tokens: list[OAuthToken] = field(default_factory=list)
    """All that were granted; the last one is in use."""
    client: OAuthClientInformationFull | None = None

    async def get_tokens(self) -> OAuthToken | None:
        return self.tokens[-1] if self.tokens else None

    async def set_tokens(self, tokens: OAuthToken) -> None:
        self.tokens.append(tokens)

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        return self.client

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        self.client = client_info


@dataclass(frozen=True, slots=True)
class Call:
    """What came of one tool call, as the agent sees it."""

    text: str = ""
    error: str | None = None
    retry_after: float | None = None
    """Seconds, where the server named a time to come back at."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """An agent connected to one server."""

    client: Client
    memory: TokenMemory

    @property
    def scopes(self) -> str:
        """What the token in use is good for."""
        return self.memory.tokens[-1].scope or ""

    async def tools(self) -> list[str]:
        """The tools the server shows this agent."""
        return [tool.name for tool in (await self.client.list_tools()).tools]

    async def call(self, tool: str, **arguments: Any) -> Call:
        """Call a tool; a refusal is an answer too."""
        try:
            result = await self.client.call_tool(tool, arguments)
        except MCPError as refused:
            data = refused.error.data if isinstance(refused.error.data, dict) else {}
            wait = data["retryAfterMs"] / 1000 if "retryAfterMs" in data else None
            return Call(error=f"{refused.error.code} {refused.error.message}", retry_after=wait)
        text = "\n".join(part.text for part in result.content if part.type == "text")
        return Call(error=text) if result.is_error else Call(text)

    async def show_token_to(self, url: str) -> Call:
        """Use the token in hand at another server."""
        headers = {"authorization": f"Bearer {self.memory.tokens[-1].access_token}"}
        async with httpx2.AsyncClient(headers=headers) as http:
            response = await http.get(url)
        challenge = response.headers.get("www-authenticate", "").partition(",")[0]
        return Call(error=f"HTTP {response.status_code} {challenge}") if response.is_error else Call(response.text)


@dataclass(frozen=True, slots=True)
class Agent:
    """An agent, with what it was given when it was registered: a secret, or a private key (PEM) of its own.

    ``issuer`` is where they are good: the client sends them nowhere else, wherever a server may point.
    """

    client_id: str
    issuer: str
    secret: str | None = field(default=None, repr=False)
    private_key: str | None = field(default=None, repr=False)

    @property
    def method(self) -> str:
        """How the agent proves itself, by its name in RFC 7591."""
        return "private_key_jwt" if self.private_key else "client_secret_basic"

    @asynccontextmanager
    async def connect(self, url: str, era: Era) -> AsyncIterator[Conversation]:
        """Talk to the server at ``url``: with the handshake of 2025-11-25, or as 2026-07-28 does it."""
        memory = TokenMemory()
        timeout = httpx2.Timeout(10.0, read=60.0)
        async with httpx2.AsyncClient(auth=self._provider(url, memory), timeout=timeout) as http:
            transport = streamable_http_client(url, http_client=http)
            async with Client(transport, mode="legacy" if era == "legacy" else "auto") as client:
                yield Conversation(client, memory)

    def _provider(self, url: str, memory: TokenMemory) -> httpx2.Auth:
        """The SDK's client-credentials provider for one server."""
        if self.private_key is None:
            secret = self.secret or ""
            return ClientCredentialsOAuthProvider(url, memory, self.client_id, secret, issuer=self.issuer)
        signer = SignedJWTParameters(
            issuer=self.client_id, subject=self.client_id, signing_key=self.private_key, signing_algorithm="ES256"
        )
        assertions = signer.create_assertion_provider()
        return PrivateKeyJWTOAuthProvider(url, memory, self.client_id, assertions, issuer=self.issuer)
