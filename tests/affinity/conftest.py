"""Callers whom another layer has authenticated, and a look at what reaches the server."""

import base64
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import pytest

from mcp_middleware.testing import FakeClock
from tests.core.asgi import user_of

Scope = MutableMapping[str, Any]
ASGIApp = Callable[..., Awaitable[None]]


class CallerLayer:
    """Sets the user that a bearer token of the form ``issuer|client|subject|serial`` names; without one, nobody.

    What these tests see refused, affinity refused: no server guards its sessions by such a user.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        authorization = dict(scope.get("headers", ())).get(b"authorization", b"").decode()
        if authorization:
            issuer, client, subject, _serial = authorization.removeprefix("Bearer ").split("|")
            scope["user"] = user_of(client, subject, issuer)
        await self.app(scope, receive, send)


class Recorder:
    """Stands between affinity and the server: what the server was sent, and what it answered."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.requests: list[tuple[str, list[bytes]]] = []
        """HTTP method and session headers of every request that reached the server."""
        self.issued: set[bytes] = set()
        """Every session id the server put on an answer."""

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        sessions = [value for name, value in scope["headers"] if name == b"mcp-session-id"]
        self.requests.append((scope["method"], sessions))

        async def watched(event: MutableMapping[str, Any]) -> None:
            if event["type"] == "http.response.start":
                self.issued.update(value for name, value in event["headers"] if name.lower() == b"mcp-session-id")
            await send(event)

        await self.app(scope, receive, watched)


@pytest.fixture
def key() -> str:
    return base64.b64encode(os.urandom(32)).decode()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(1_790_000_000.0)
