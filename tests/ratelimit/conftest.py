"""A server whose answers a test chooses, callers it names, and a clock it moves."""

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, TypeAlias

import pytest

from mcp_middleware.exchange import Exchange
from mcp_middleware.member import Member
from mcp_middleware.ratelimit import RateLimitMiddleware
from mcp_middleware.storage import MemoryStorage
from mcp_middleware.testing import FakeClock
from mcp_middleware.types import Rejection, Usage
from tests.core.asgi import Call, rpc, user_of

ASGIApp: TypeAlias = Callable[[Any, Any, Any], Awaitable[None]]


class Server:
    """Answers each request with ``result``, once ``gate`` is open, or with nothing but ``status``."""

    def __init__(self) -> None:
        self.result: Any = {"content": [{"type": "text", "text": "x" * 100}]}
        self.error: Any = None
        self.raw: bytes | None = None
        """The answer as it is to be sent, in place of ``result``."""
        self.status = 200
        self.sse = False
        self.notices: list[dict[str, Any]] = []
        """Sent before the answer, each as an event of its own, in a stream."""
        self.last: asyncio.Event | None = None
        """Waited for before a stream is ended."""
        self.raises: Exception | None = None
        self.fails: Exception | None = None
        """Raised once it has answered; in a stream before its end."""
        self.gate = asyncio.Event()
        self.gate.set()
        self.entered = asyncio.Event()
        self.received: list[dict[str, Any]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["method"] != "POST":
            await self._send(send, b"", "text/plain")
            return
        message = json.loads((await receive())["body"])
        self.received.append(message)
        self.entered.set()
        await self.gate.wait()
        if self.raises is not None:
            raise self.raises
        if self.status != 200 or "id" not in message:
            await self._send(send, b"", "text/plain")
            return
        kind = {"result": self.result} if self.error is None else {"error": self.error}
        data = self.raw or json.dumps({"jsonrpc": "2.0", "id": message["id"], **kind}).encode()
        if self.sse or self.notices:
            await self._stream(send, [*(json.dumps(notice).encode() for notice in self.notices), data])
        else:
            await self._send(send, data, "application/json")
            if self.fails is not None:
                raise self.fails

    async def _stream(self, send: Any, events: list[bytes]) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for event in events:
            await send({"type": "http.response.body", "body": b"data: " + event + b"\n\n", "more_body": True})
            await asyncio.sleep(0)  # so that what the limiter does of itself is done before the next
        if self.last is not None:
            await self.last.wait()
        if self.fails is not None:
            raise self.fails
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Any, body: bytes, media: str) -> None:
        await send(
            {"type": "http.response.start", "status": self.status, "headers": [(b"content-type", media.encode())]}
        )
        await send({"type": "http.response.body", "body": body})


class Caller:
    """Sets the user as another framework's authentication does: ``caller: client`` or ``client subject issuer``."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        named = dict(scope["headers"]).get(b"caller")
        if named is not None:
            scope["user"] = user_of(*named.decode().split())
        await self.app(scope, receive, send)


class Characters:
    """A counter whose answer a test can tell by hand."""

    def count(self, text: str) -> int:
        return len(text)


class Stack:
    """A limiter around a ``Server``, and how to call it."""

    def __init__(self, clock: FakeClock, **options: Any) -> None:
        self.server = Server()
        self.storage = MemoryStorage(clock=clock)
        given = {"storage": self.storage, "counter": Characters(), "initial_output_tokens": 100, **options}
        self.limiter = RateLimitMiddleware(self.server, **given)
        self.app = Caller(self.limiter)

    def prepare(self, method: str = "tools/call", caller: str | None = "agent", **params: Any) -> Call:
        """A call that has not run."""
        if method == "tools/call":
            params.setdefault("name", "tool")
        body = rpc(method, params or None, None if method.startswith("notifications/") else 7)
        return Call(self.app, body, headers={} if caller is None else {"caller": caller})

    async def call(self, method: str = "tools/call", caller: str | None = "agent", **params: Any) -> Call:
        """A call and its answer."""
        return await self.prepare(method, caller, **params).run()

    async def left(self, caller: str = "agent") -> tuple[int, int]:
        """Requests and tokens left after one more request without tokens."""
        fields = (await self.call("tools/list", caller)).headers["ratelimit"]
        values = dict(item.split(";r=") for item in fields.split(", "))
        return int(values['"requests"']), int(values['"tokens"'])


class Reader(Member):
    """Stands in the place of the audit log."""

    stage = "audit"

    def __init__(self, app: Any) -> None:
        super().__init__(app)
        self.usages: list[Usage | None] = []
        self.rejections: list[Rejection | None] = []

    async def on_finish(self, exchange: Exchange) -> None:
        self.usages.append(exchange.usage)
        self.rejections.append(exchange.rejection)


class BrokenCounter:
    """Counts arguments well and answers badly."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def count(self, text: str) -> Any:
        return self.value if "x" in text else 1


Make: TypeAlias = Callable[..., Stack]
INPUT: Final = len('"tool"')
"""Tokens of a call without arguments."""
OUTPUT: Final = 100
"""Tokens of the server's answer."""


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def make(clock: FakeClock) -> Make:
    """Builds a Stack with the test's clock."""
    return lambda **options: Stack(clock, **options)
