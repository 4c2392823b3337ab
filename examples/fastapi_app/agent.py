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

__all__ = ["Agent", "Call", "Conversation", "Credentials", "Era"]

Era = Literal["legacy", "modern"]


@dataclass(frozen=True, slots=True)
class Credentials:
    """What an agent was given when it was registered: a secret, or a private key (PEM) of its own.

    ``issuer`` is where they are good: the client sends them nowhere else, wherever a server may point.
    """

    client_id: str
    issuer: str
    secret: str | None = None
    private_key: str | None = None

    @property
    def method(self) -> str:
        """How the client proves itself, by the name the OAuth registry has for it."""
        return "private_key_jwt" if self.private_key else "client_secret_basic"

    def provider(self, url: str) -> httpx2.Auth:
        """The SDK's OAuth provider for one server."""
        storage = TokenMemory()
        if self.private_key:
            signer = SignedJWTParameters(
                issuer=self.client_id, subject=self.client_id, signing_key=self.private_key, signing_algorithm="ES256"
            )
            return PrivateKeyJWTOAuthProvider(
                url, storage, self.client_id, signer.create_assertion_provider(), issuer=self.issuer
            )
        return ClientCredentialsOAuthProvider(url, storage, self.client_id, self.secret or "", issuer=self.issuer)


@dataclass(slots=True)
class TokenMemory:
    """Where the provider keeps its token: as long as the conversation lasts."""

    tokens: OAuthToken | None = None
    client: OAuthClientInformationFull | None = None

    async def get_tokens(self) -> OAuthToken | None:
        return self.tokens

    async def set_tokens(self, tokens: OAuthToken) -> None:
        self.tokens = tokens

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


@dataclass(slots=True)
class Conversation:
    """An agent connected to one server."""

    client: Client
    granted: list[str] = field(default_factory=list)
    """The scopes of each token it was given, in order."""

    @property
    def version(self) -> str:
        return self.client.protocol_version

    async def tools(self) -> list[str]:
        """The tools the server shows this agent."""
        return [tool.name for tool in (await self.client.list_tools()).tools]

    async def call(self, tool: str, **arguments: Any) -> Call:
        """Call a tool; a refusal is an answer too."""
        try:
            result = await self.client.call_tool(tool, arguments)
        except MCPError as error:
            data = error.error.data if isinstance(error.error.data, dict) else {}
            wait = data.get("retryAfterMs")
            return Call(
                error=f"{error.error.code} {error.error.message}", retry_after=wait / 1000 if wait is not None else None
            )
        text = "\n".join(part.text for part in result.content if part.type == "text")
        return Call(error=text) if result.is_error else Call(text)


@dataclass(frozen=True, slots=True)
class Agent:
    """An agent with its credentials."""

    credentials: Credentials

    @asynccontextmanager
    async def connect(self, url: str, era: Era) -> AsyncIterator[Conversation]:
        """Talk to the server at ``url``: with the handshake of 2025-11-25, or as 2026-07-28 does it."""
        granted: list[str] = []

        async def note_token(response: httpx2.Response) -> None:
            if response.request.url.path == "/token" and response.status_code == 200:
                await response.aread()
                granted.append(response.json()["scope"])

        async with httpx2.AsyncClient(
            auth=self.credentials.provider(url),
            event_hooks={"response": [note_token]},
            timeout=httpx2.Timeout(10.0, read=60.0),
        ) as http:
            transport = streamable_http_client(url, http_client=http)
            async with Client(transport, mode="legacy" if era == "legacy" else "auto") as client:
                yield Conversation(client, granted)
