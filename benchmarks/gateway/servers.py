"""The Python servers of this benchmark, each a process: ``python -m benchmarks.gateway.servers NAME [UPSTREAM]`` prints
the port it listens on."""

import socket
import sys
from collections.abc import MutableMapping
from typing import Any

import msgspec
import uvicorn

from benchmarks.echo import echo
from mcp_middleware.exchange import Receive, Scope, Send
from mcp_middleware.member import ASGIApp

__all__ = ["NAMES", "behind", "build"]

NAMES = ("echo", "sink", "forwarder", "fastmcp", "fastmcp-shared")

_TOOL = {
    "name": "echo",
    "description": "Answer with the text.",
    "inputSchema": {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
}
_RESULTS: dict[str, Any] = {
    "tools/list": {"tools": [_TOOL]},
    "resources/list": {"resources": []},
    "resources/templates/list": {"resourceTemplates": []},
    "prompts/list": {"prompts": []},
    "ping": {},
}
_SENT_FIRST = b": here\n\n"


async def behind(scope: Scope, receive: Receive, send: Send) -> None:
    """The echo server, and what a proxy that speaks MCP itself asks of a server besides calls: a list of its tools, and
    an event stream that stays silent."""
    if scope["type"] != "http":
        await echo(scope, receive, send)
    elif scope["method"] == "GET":
        await _stream(receive, send)
    elif scope["method"] != "POST":
        await _answer(send, 204 if scope["method"] == "DELETE" else 405, b"")
    else:
        event = await receive()
        if event["more_body"] or b'"tools/call"' in event["body"] or b'"initialize"' in event["body"]:
            await echo(scope, _again(event, receive), send)
            return
        message = msgspec.json.decode(event["body"])
        if "id" not in message:
            await _answer(send, 202, b"")
            return
        result = _RESULTS.get(message["method"], {})
        await _answer(send, 200, msgspec.json.encode({"jsonrpc": "2.0", "id": message["id"], "result": result}))


def _again(event: MutableMapping[str, Any], receive: Receive) -> Receive:
    events = [event]

    async def receive_again() -> MutableMapping[str, Any]:
        return events.pop() if events else await receive()

    return receive_again


async def _stream(receive: Receive, send: Send) -> None:
    headers = [(b"content-type", b"text/event-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": _SENT_FIRST, "more_body": True})
    while (await receive())["type"] != "http.disconnect":
        pass


async def _answer(send: Send, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers if body else headers[1:]})
    await send({"type": "http.response.body", "body": body})


async def _sink(scope: Scope, receive: Receive, send: Send) -> None:
    """A collector that takes everything and keeps nothing."""
    if scope["type"] != "http":
        await echo(scope, receive, send)
        return
    while (await receive()).get("more_body", False):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


def _forwarder(url: str) -> ASGIApp:
    """Our forwarder without a member around it."""
    from mcp_middleware.gateway.client import UpstreamClient
    from mcp_middleware.gateway.config import from_mapping
    from mcp_middleware.gateway.forwarder import Forwarder
    from mcp_middleware.gateway.upstream import Upstream

    config = from_mapping({"listen": "127.0.0.1:1", "servers": {"echo": {"url": url}}, "auth": "off"})
    client = UpstreamClient()
    app = Forwarder(Upstream(config.servers["echo"], client), client)

    async def forwarder(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await client.start()
            await echo(scope, receive, send)
            return
        await app(scope, receive, send)

    return forwarder


def _fastmcp(url: str, *, shared: bool) -> ASGIApp:
    """The FastMCP proxy: as its documentation makes it, with a session at the server for each request, or around a
    client that is connected already, whose one session all requests share."""
    from fastmcp import Client
    from fastmcp.server import create_proxy

    if not shared:
        return create_proxy(url, name="proxy").http_app(path="/mcp")
    client = Client(url, mode="legacy")
    app: ASGIApp | None = None

    async def proxy(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal app
        if app is None:
            await client.__aenter__()  # type: ignore[no-untyped-call]
            app = create_proxy(client, name="proxy").http_app(path="/mcp")
        await app(scope, receive, send)

    return proxy


def build(name: str, upstream: str) -> ASGIApp:
    """The application called ``name``; those that stand in front of a server stand in front of ``upstream``."""
    match name:
        case "echo":
            return behind
        case "sink":
            return _sink
        case "forwarder":
            return _forwarder(upstream)
        case _:
            return _fastmcp(upstream, shared=name == "fastmcp-shared")


def main() -> None:
    """Serve until terminated."""
    name, upstream = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else ""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.bind(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    config = uvicorn.Config(
        build(name, upstream),
        loop="uvloop",
        http="httptools",
        ws="none",
        log_level="warning",
        access_log=False,
        backlog=4096,
        timeout_graceful_shutdown=1,
    )
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
