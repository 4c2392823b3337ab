"""Real sockets for the tests: an ASGI app under uvicorn, the official client of both eras, and raw messages.

``serve`` runs an app in the test's own event loop on an ephemeral loopback port. ``connect`` gives the official
client. ``post`` sends one JSON-RPC message with exactly the headers a correct client sends, for the tests that then
bend one of them; ``answer_of`` reads the reply, JSON or event stream. ``until`` waits for what no event tells, and
``Turns`` tells whether something held the event loop.
"""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Literal, Self

import httpx2
import pytest
import uvicorn
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client
from starlette.types import ASGIApp

from mcp_middleware.types import Era

LEGACY: Final = "2025-11-25"
MODERN: Final = "2026-07-28"
ERAS: Final[tuple[Era, ...]] = ("legacy", "modern")

each_era = pytest.mark.parametrize("era", ERAS)

TIMEOUT: Final = httpx2.Timeout(10.0, read=30.0)
"""Seconds; a test that waits longer has failed."""

MODERN_META: Final[Mapping[str, Any]] = {
    "io.modelcontextprotocol/protocolVersion": MODERN,
    "io.modelcontextprotocol/clientInfo": {"name": "tests", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}
"""What 2026-07-28 requires in ``params._meta`` of every request (basic/index)."""

HELLO: Final[Mapping[str, Any]] = {
    "protocolVersion": LEGACY,
    "capabilities": {},
    "clientInfo": {"name": "tests", "version": "1"},
}
"""The parameters of ``initialize``."""

SESSION_KEY: Final = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
"""A key to seal sessions with, for the tests to which it does not matter which."""

_NAMED: Final = {
    "tools/call": "name",
    "prompts/get": "name",
    "resources/read": "uri",
    "tasks/get": "taskId",
    "tasks/update": "taskId",
    "tasks/cancel": "taskId",
}
"""Method to the parameter that ``Mcp-Name`` mirrors."""


class _Server(uvicorn.Server):
    """A uvicorn server that leaves the process's signals alone, says when it listens, and ends when it is told to.

    Uvicorn itself looks ten times a second whether it is to end, and waits as long for connections to close: 0.2 s for
    each server, which would be most of what many tests take.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()
        self._told = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        except SystemExit:
            raise RuntimeError("the app failed in its lifespan start-up") from None
        self.listening.set()

    async def main_loop(self) -> None:
        while not await self.on_tick(0):  # once a second, for the Date header
            with suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._told.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        try:
            async with asyncio.timeout(self.config.timeout_graceful_shutdown):
                while self.server_state.connections or self.server_state.tasks:  # noqa: ASYNC110 (it has no event)
                    await asyncio.sleep(0.005)
        except TimeoutError:
            for task in self.server_state.tasks:
                task.cancel()
        await self.lifespan.shutdown()

    def end(self) -> None:
        """End now; ``serve()`` returns once it has."""
        self.should_exit = True
        self._told.set()


def listener() -> socket.socket:
    """A bound loopback socket, for apps that must know their own URL before they are built."""
    # With its protocol named, asyncio turns Nagle off on what it accepts; without, every answer waits for an ACK.
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.bind(("127.0.0.1", 0))
    return bound


def free_port() -> int:
    """A port that nobody listens on, for a process that takes it."""
    with listener() as bound:
        port: int = bound.getsockname()[1]
        return port


def children_of(pid: int) -> list[int]:
    """The processes that a process has started and that still run."""
    listed = [children.read_text() for children in Path(f"/proc/{pid}/task").glob("*/children")]
    return [int(child) for line in listed for child in line.split()]


def origin_of(bound: socket.socket) -> str:
    """The origin of a bound socket, ``http://127.0.0.1:<port>``."""
    return f"http://127.0.0.1:{bound.getsockname()[1]}"


@asynccontextmanager
async def serve(
    app: ASGIApp,
    *,
    bound: socket.socket | None = None,
    http: Literal["httptools", "h11"] = "httptools",
    drain: float = 1.0,
    tls: tuple[str, str] | None = None,
) -> AsyncIterator[str]:
    """Run ``app`` with its lifespan under uvicorn; yield its origin, without a trailing slash.

    ``bound`` is a socket of ``listener()``; without one a new port is taken. ``drain`` is how many seconds requests
    that are still open at the end may take. ``tls`` are the files of a certificate and its key.
    """
    bound = bound or listener()
    config = uvicorn.Config(
        app,
        http=http,
        ws="none",
        log_config=None,
        access_log=False,
        ssl_certfile=tls[0] if tls else None,
        ssl_keyfile=tls[1] if tls else None,
        timeout_graceful_shutdown=drain,  # type: ignore[arg-type]  # whole seconds by its type, any by its use
    )
    server = _Server(config)
    running = asyncio.create_task(server.serve(sockets=[bound]), name="test server")
    listening = asyncio.create_task(server.listening.wait())
    try:
        await asyncio.wait({running, listening}, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            await running
        yield origin_of(bound).replace("http:", "https:" if tls else "http:")
    finally:
        listening.cancel()
        server.end()
        await asyncio.wait({running})
        bound.close()
    await running


async def until(holds: Callable[[], object]) -> None:
    """Wait for what no event tells."""
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


class Turns:
    """While it is entered, how often others have had their turn of the event loop."""

    def __init__(self) -> None:
        self.taken = 0

    def __enter__(self) -> Self:
        self._taking = asyncio.create_task(self._take())
        return self

    def __exit__(self, *_: object) -> None:
        self._taking.cancel()

    async def _take(self) -> None:
        while True:
            self.taken += 1
            await asyncio.sleep(0)


@asynccontextmanager
async def connect(
    url: str,
    *,
    token: str | None = None,
    era: Era = "modern",
    auth: httpx2.Auth | None = None,
    headers: Mapping[str, str] | None = None,
    **callbacks: Any,
) -> AsyncIterator[Client]:
    """The official client, connected. ``modern`` negotiates as it does by default, and must not have fallen back.

    ``callbacks`` are arguments of ``mcp.client.Client``, such as ``elicitation_callback``.
    """
    sent = dict(headers or {})
    if token is not None:
        sent["authorization"] = f"Bearer {token}"
    async with httpx2.AsyncClient(headers=sent, auth=auth, timeout=TIMEOUT) as http:
        transport = streamable_http_client(url, http_client=http)
        mode = "legacy" if era == "legacy" else "auto"
        callbacks.setdefault("read_timeout_seconds", 20.0)
        async with Client(transport, mode=mode, **callbacks) as client:
            if (client.protocol_version == MODERN) != (era == "modern"):
                raise RuntimeError(f"asked for the {era} era, the client settled on {client.protocol_version}")
            yield client


def message(
    method: str,
    params: Mapping[str, Any] | None = None,
    *,
    id: int | str | None = 1,
    era: Era = "modern",
) -> dict[str, Any]:
    """A JSON-RPC message as a correct client of that era writes it; ``id=None`` makes a notification."""
    values = dict(params or {})
    if era == "modern" and id is not None:
        values["_meta"] = {**MODERN_META, **values.get("_meta", {})}
    body: dict[str, Any] = {"jsonrpc": "2.0", "method": method}
    if id is not None:
        body["id"] = id
    if values:
        body["params"] = values
    return body


def headers_for(
    body: Mapping[str, Any] | None = None,
    *,
    era: Era = "modern",
    token: str | None = None,
    session: str | None = None,
    version: str | None = None,
) -> dict[str, str]:
    """The headers a correct client of that era sends with ``body`` (None: GET or DELETE)."""
    headers = {"accept": "application/json, text/event-stream", "content-type": "application/json"}
    if token is not None:
        headers["authorization"] = f"Bearer {token}"
    if session is not None:
        headers["mcp-session-id"] = session
    method = body.get("method") if body else None
    if era == "modern":
        headers["mcp-protocol-version"] = version or MODERN
        if method is not None:
            headers["mcp-method"] = method
            named = _NAMED.get(method)
            if named is not None and body is not None:
                headers["mcp-name"] = str(body["params"][named])
    elif method != "initialize":
        headers["mcp-protocol-version"] = version or LEGACY
    return headers


async def post(
    http: httpx2.AsyncClient,
    url: str,
    method: str,
    params: Mapping[str, Any] | None = None,
    *,
    id: int | str | None = 1,
    era: Era = "modern",
    token: str | None = None,
    session: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> httpx2.Response:
    """Send one message, well formed, with ``headers`` laid over the right ones; the reply is read to its end."""
    body = message(method, params, id=id, era=era)
    sent = headers_for(body, era=era, token=token, session=session) | dict(headers or {})
    return await http.post(url, content=json.dumps(body), headers=sent)


async def initialize(
    http: httpx2.AsyncClient,
    url: str,
    *,
    token: str | None = None,
    version: str = LEGACY,
    headers: Mapping[str, str] | None = None,
) -> str | None:
    """Open a legacy session by hand, ``notifications/initialized`` included; its id, or None if it has none."""
    params = {**HELLO, "protocolVersion": version}
    response = await post(http, url, "initialize", params, era="legacy", token=token, headers=headers)
    if response.status_code != 200:
        raise RuntimeError(f"initialize was answered {response.status_code}: {response.text}")
    session = response.headers.get("mcp-session-id")
    versioned = {"mcp-protocol-version": version, **(headers or {})}
    told = await post(
        http, url, "notifications/initialized", id=None, era="legacy", token=token, session=session, headers=versioned
    )
    if told.status_code != 202:
        raise RuntimeError(f"notifications/initialized was answered {told.status_code}: {told.text}")
    return session


def messages_of(response: httpx2.Response) -> list[Any]:
    """Every JSON-RPC message of a reply, from a JSON body (a batch as its elements) or from an event stream."""
    if response.headers.get("content-type", "").startswith("text/event-stream"):
        events = response.text.replace("\r\n", "\n").split("\n\n")
        lines = [[line[5:].lstrip() for line in event.split("\n") if line.startswith("data:")] for event in events]
        return [json.loads("\n".join(data)) for data in lines if any(data)]
    if not response.content:
        return []
    body = response.json()
    return body if isinstance(body, list) else [body]


def answer_of(response: httpx2.Response) -> dict[str, Any]:
    """The one message of a reply with a ``result`` or an ``error``."""
    answers = [found for found in messages_of(response) if "result" in found or "error" in found]
    if len(answers) != 1:
        raise RuntimeError(f"expected one answer, got {response.status_code} {response.text!r}")
    answer: dict[str, Any] = answers[0]
    return answer


def text_of(result: Any) -> str:
    """The text parts of the official client's tool result, joined."""
    return "\n".join(part.text for part in result.content if part.type == "text")
