"""The member around an application that echoes what reached it, and a verifier that answers what it is told to."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
from mcp.server.auth.middleware.auth_context import auth_context_var
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser

from mcp_middleware.resource_server import OAuthResourceServerMiddleware
from mcp_middleware.types import Rejection
from tests.core.recording import Witness
from tests.resource_server.issuer import RESOURCE, LoopbackIssuer
from tests.support import message

ORIGIN = "https://files.example.com"
LOGIN = "https://login.example.com"


class EchoApp:
    """Answers every request, and keeps the scope and the SDK's context variable it saw."""

    def __init__(self) -> None:
        self.scopes: list[Any] = []
        self.users: list[AuthenticatedUser | None] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        self.users.append(auth_context_var.get())
        body = b'{"jsonrpc":"2.0","id":1,"result":{}}'
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def header(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.scopes[-1]["headers"] if key == name]


@dataclass
class Setup:
    echo: EchoApp
    witness: Witness
    http: httpx2.AsyncClient

    async def call(self, token: str | None = None, **options: Any) -> httpx2.Response:
        headers = dict(options.pop("headers", {}))
        if token is not None:
            headers["authorization"] = f"Bearer {token}"
        return await self.http.post("/mcp", json=message("tools/list", era="legacy"), headers=headers, **options)

    @property
    def rejection(self) -> Rejection | None:
        return self.witness.last.rejection


@asynccontextmanager
async def guarded(issuer: LoopbackIssuer, **options: Any) -> AsyncIterator[Setup]:
    options.setdefault("resource", RESOURCE)
    if "verifier" not in options:
        options.setdefault("issuers", [issuer.issuer])
    options.setdefault("scopes", ["mcp:use"])
    echo = EchoApp()
    witness = Witness(OAuthResourceServerMiddleware(echo, **options))
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(witness), base_url=ORIGIN) as http:
        yield Setup(echo, witness, http)


class StaticVerifier:
    """A verifier of somebody else's, with the SDK's own AccessToken."""

    def __init__(self, answer: object) -> None:
        self.answer = answer

    async def verify_token(self, token: str) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def static(answer: object) -> dict[str, Any]:
    return {"verifier": StaticVerifier(answer), "authorization_servers": [LOGIN]}
