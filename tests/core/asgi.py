"""Calling an ASGI application by hand, event by event, so that a test sees what is sent and when."""

import asyncio
import json
from collections.abc import MutableMapping
from types import SimpleNamespace
from typing import Any

from starlette.requests import Request

from tests.support import MODERN


def rpc(method: str, params: dict[str, Any] | None = None, request_id: int | str | None = 1) -> dict[str, Any]:
    message: dict[str, Any] = {"jsonrpc": "2.0", "method": method}
    if request_id is not None:
        message["id"] = request_id
    if params is not None:
        message["params"] = params
    return message


def modern_headers(method: str, name: str | None = None) -> dict[str, str]:
    headers = {"mcp-protocol-version": MODERN, "mcp-method": method}
    if name is not None:
        headers["mcp-name"] = name
    return headers


def user_of(client: str, subject: str | None = None, issuer: str | None = None) -> Any:
    """What another layer that authenticates sets as the scope's user.

    It is no ``AuthenticatedUser`` of the SDK, whose server would then guard its sessions by itself.
    """
    token = SimpleNamespace(client_id=client, subject=subject, scopes=[], expires_at=None, claims={"iss": issuer})
    return SimpleNamespace(access_token=token)


class Call:
    """One request to ``app``; ``events`` grows as the application sends."""

    def __init__(
        self,
        app: Any,
        body: Any = b"",
        *,
        method: str = "POST",
        path: str = "/mcp",
        headers: dict[str, str] | list[tuple[str, str]] | None = None,
        chunks: list[bytes] | None = None,
    ) -> None:
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        lines = list(headers.items()) if isinstance(headers, dict) else list(headers or [])
        if method == "POST" and not any(name == "content-type" for name, _ in lines):
            lines.append(("content-type", "application/json"))
        if method == "POST" and chunks is None:
            lines.append(("content-length", str(len(body))))
        self.app = app
        self.scope: dict[str, Any] = {
            "type": "http",
            "http_version": "1.1",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            "scheme": "http",
            "server": ("testserver", 80),
            "client": ("127.0.0.1", 1234),
            "headers": [(name.encode(), value.encode()) for name, value in lines],
        }
        parts = chunks if chunks is not None else [body]
        self.incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        for index, part in enumerate(parts):
            more = index < len(parts) - 1
            self.incoming.put_nowait({"type": "http.request", "body": part, "more_body": more})
        self.events: list[MutableMapping[str, Any]] = []
        self.arrived = asyncio.Condition()

    def disconnect(self) -> None:
        self.incoming.put_nowait({"type": "http.disconnect"})

    async def send(self, event: MutableMapping[str, Any]) -> None:
        async with self.arrived:
            self.events.append(event)
            self.arrived.notify_all()

    async def seen(self, count: int) -> None:
        """Wait until ``count`` events have been sent."""
        async with self.arrived:
            await self.arrived.wait_for(lambda: len(self.events) >= count)

    async def run(self) -> "Call":
        await self.app(self.scope, self.incoming.get, self.send)
        return self

    @property
    def status(self) -> int:
        return int(self.events[0]["status"])

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.events[0]["headers"]}

    @property
    def body(self) -> bytes:
        return b"".join(event.get("body", b"") for event in self.events[1:])

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class EchoServer:
    """An ASGI application that records what reaches it and answers each request with its own body as the result."""

    def __init__(self, *, sse: bool = False) -> None:
        self.received: list[dict[str, Any]] = []
        self.bodies: list[bytes] = []
        self.scopes: list[MutableMapping[str, Any]] = []
        self.sse = sse

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        body = b""
        if scope["method"] == "POST":
            body = await Request(scope, receive).body()
            self.bodies.append(body)
            self.received.append(json.loads(body))
        message = json.loads(body) if body else {}
        if "id" not in message or "method" not in message:
            await send({"type": "http.response.start", "status": 202, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            return
        answer = {"jsonrpc": "2.0", "id": message["id"], "result": {"content": [], "echo": message.get("params")}}
        data = json.dumps(answer).encode()
        media = b"application/json"
        if self.sse:
            media, data = b"text/event-stream", b"event: message\r\ndata: " + data + b"\r\n\r\n"
        headers = [(b"content-type", media), (b"content-length", str(len(data)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": data})
