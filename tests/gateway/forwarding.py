"""A forwarder between real sockets: servers that misbehave byte by byte behind it, and what the members saw."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from mcp_middleware import SessionAffinityMiddleware
from mcp_middleware.exchange import Exchange
from mcp_middleware.gateway.client import UpstreamClient
from mcp_middleware.gateway.credentials import ServerCredentials
from mcp_middleware.gateway.forwarder import Forwarder
from mcp_middleware.gateway.sections.credentials import CallerConfig, GrantConfig, HeaderConfig
from mcp_middleware.gateway.sections.servers import ServerConfig
from mcp_middleware.gateway.upstream import Upstream
from mcp_middleware.member import ASGIApp, Bounds, Member
from mcp_middleware.oauth import OAuthHTTPClient
from mcp_middleware.server_message import ServerMessage
from mcp_middleware.types import Clock, Rejection
from tests.support import SESSION_KEY, listener, origin_of, serve

AUDIENCE = "https://gateway.example/files/mcp"

CALL: dict[str, Any] = {"name": "echo", "arguments": {"text": "hi"}}
RESULT = b'{"jsonrpc":"2.0","id":1,"result":{"content":[],"resultType":"complete"}}'
INITIALIZED = b'{"jsonrpc":"2.0","id":1,"result":{"protocolVersion":"2025-11-25","capabilities":{},"serverInfo":{}}}'

Handler = Callable[["Caller"], Awaitable[None]]


@dataclass
class Seen:
    """What was known of a request when it was over."""

    status: int | None
    answer: ServerMessage | None
    failed: BaseException | None
    rejection: Rejection | None
    instance: str | None
    disconnected: bool


class Recorder(Member):
    """Keeps what the audit would see."""

    stage = "audit"

    def __init__(self, app: ASGIApp, seen: "asyncio.Queue[Seen]") -> None:
        super().__init__(app)
        self.seen = seen

    async def on_finish(self, exchange: Exchange) -> None:
        self.seen.put_nowait(
            Seen(
                exchange.status,
                exchange.answer,
                exchange.failed,
                exchange.rejection,
                exchange.instance,
                exchange.disconnected,
            )
        )


@dataclass
class Gateway:
    """A forwarder that is served."""

    url: str
    upstream: Upstream
    client: UpstreamClient
    draining: asyncio.Event
    seen: "asyncio.Queue[Seen]"

    @property
    def origin(self) -> str:
        return self.url.removesuffix("/mcp")


@asynccontextmanager
async def gateway(
    *origins: str,
    members: bool = True,
    probing: bool = False,
    first_byte: float = 10.0,
    stream_idle: float = 10.0,
    headers: dict[str, str] | None = None,
    forward_headers: tuple[str, ...] = (),
    credentials: HeaderConfig | GrantConfig | None = None,
    caller: CallerConfig | None = None,
    clock: Clock = time.time,
    spans: Any = None,
    bounds: Bounds | None = None,
    around: Callable[[ASGIApp], ASGIApp] = lambda app: app,
) -> AsyncIterator[Gateway]:
    """A gateway for the servers at ``origins``. Without ``probing``, requests alone say which instances live; ``clock``
    is that of ``credentials``."""
    config = ServerConfig(
        name="files",
        instances=tuple(origin + "/mcp" for origin in origins),
        headers=headers or {},
        forward_headers=forward_headers,
        credentials=credentials,
        caller=caller,
        timeout=first_byte,
        stream_idle=stream_idle,
    )
    client, draining, seen = UpstreamClient(), asyncio.Event(), asyncio.Queue[Seen]()
    upstream = Upstream(config, client)
    await client.start()
    if probing:
        await upstream.start()
    http = OAuthHTTPClient()
    made = ServerCredentials(config, http, issuer="https://gateway.example", audience=AUDIENCE, clock=clock)
    app: ASGIApp = Forwarder(
        upstream,
        client,
        credentials=made if credentials is not None or caller is not None else None,
        spans=spans,
        draining=draining,
        bounds=bounds,
    )
    if members:
        app = Recorder(SessionAffinityMiddleware(around(app), keys=[SESSION_KEY], instances=upstream), seen)
    async with serve(_quiet(app)) as origin:
        yield Gateway(origin + "/mcp", upstream, client, draining, seen)
    await made.aclose()
    await http.aclose()
    await upstream.aclose()
    await client.aclose()


def _quiet(app: ASGIApp) -> ASGIApp:
    """As the gateway does: a broken stream has been ended and recorded, and is no news for the server."""
    from mcp_middleware.gateway.client import UpstreamError

    async def quiet(scope: Any, receive: Any, send: Any) -> None:
        try:
            await app(scope, receive, send)
        except UpstreamError:
            if scope["type"] != "http":
                raise

    return quiet


@dataclass
class Caller:
    """One request that a raw server has read."""

    head: bytes
    body: bytes
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    number: int
    """Of the request on this server, from 1."""

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def send_json(self, body: bytes, *, status: bytes = b"200 OK", headers: bytes = b"") -> None:
        length = b"content-length: %d\r\n" % len(body)
        await self.send(
            b"HTTP/1.1 " + status + b"\r\ncontent-type: application/json\r\n" + length + headers + b"\r\n" + body
        )

    async def start_stream(self) -> None:
        await self.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")

    async def send_chunk(self, data: bytes) -> None:
        await self.send(b"%x\r\n%b\r\n" % (len(data), data))

    def close(self) -> None:
        self.writer.close()

    async def gone(self) -> None:
        """Wait until the other side has closed the connection."""
        while True:
            try:
                if not await self.reader.read(65536):
                    return
            except ConnectionError:
                return


@dataclass
class RawServer:
    """A server that answers as its handler says."""

    origin: str
    bound: socket.socket
    requests: list[Caller] = field(default_factory=list)
    connections: int = 0
    arrived: "asyncio.Queue[Caller]" = field(default_factory=asyncio.Queue)


@asynccontextmanager
async def raw_server(handler: Handler, bound: socket.socket | None = None) -> AsyncIterator[RawServer]:
    """Serve ``handler`` on a loopback socket; it gets each request once that is whole."""
    bound = bound or listener()
    served = RawServer(origin_of(bound), bound)
    tasks: set[asyncio.Task[Any]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.connections += 1
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                lines = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
                body = await reader.readexactly(int(lines.get(b"content-length", 0)))
                caller = Caller(head, body, reader, writer, len(served.requests) + 1)
                served.requests.append(caller)
                served.arrived.put_nowait(caller)
                await handler(caller)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(connected, sock=bound)
    try:
        yield served
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def answer(caller: Caller) -> None:
    """The handler of a server that always succeeds."""
    await caller.send_json(RESULT)


def head_of(caller: Caller) -> list[tuple[bytes, bytes]]:
    """The headers of a request, as they came."""
    lines = [line.partition(b": ") for line in caller.head.split(b"\r\n")[1:-2]]
    return [(name, value) for name, _, value in lines]


def dead_origin() -> str:
    """An origin at which nobody listens."""
    bound = listener()
    origin = origin_of(bound)
    bound.close()
    return origin
