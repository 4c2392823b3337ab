"""The demonstration's MCP servers, on the official SDK, as their authors wrote them: none knows that it is governed.

python -m mcp_middleware.gateway.demo.servers files --instance files-1
"""

import argparse
import asyncio
import hmac
import os
from collections.abc import Callable
from typing import Any, Final

from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from .listening import listen, serve

__all__ = ["KEY", "SERVERS", "RequireKey", "files", "search", "tickets"]

KEY: Final = "FILES_KEY"
"""The environment variable with the key that the files server asks its callers for."""

_TEXTS: Final = {
    "agenda.txt": "Tuesday: the annual report.\nWednesday: nothing yet.\nThursday: the summer party.",
    "budget.txt": "Bread: 12.\nGames: 30.",
}
_SECONDS: Final = 0.2
"""How long counting takes: long enough for calls at once to overlap."""


def search(_: str) -> MCPServer:
    """Pages to be found; keeps nothing."""
    mcp = MCPServer("search", log_level="WARNING")
    pages = ["How to bake bread", "How to plan a party", "The annual report, explained"]

    @mcp.tool()
    def find(text: str) -> list[str]:
        """The titles that contain a text."""
        return [page for page in pages if text.lower() in page.lower()]

    return mcp


def files(instance: str) -> MCPServer:
    """Files; keeps in its memory which file each session has open, and how far it has read."""
    mcp = MCPServer("files", log_level="WARNING")
    readings: dict[str, list[str]] = {}

    @mcp.tool()
    def list_files() -> list[str]:
        """The names of all files."""
        return sorted(_TEXTS)

    @mcp.tool()
    def open_file(name: str, ctx: Context[Any]) -> str:
        """Open a file in this session, to read it line by line."""
        readings[_session(ctx)] = _TEXTS[name].splitlines()
        return f"{name} is open at {instance}"

    @mcp.tool()
    def next_line(ctx: Context[Any]) -> str:
        """The next line of the file that is open in this session."""
        lines = readings.get(_session(ctx))
        if lines is None:
            raise ToolError(f"no file is open in this session at {instance}")
        return f"{lines.pop(0) if lines else 'the end'} ({instance})"

    @mcp.tool()
    async def count_words(name: str) -> str:
        """How many words a file has; slow."""
        await asyncio.sleep(_SECONDS)
        return f"{len(_TEXTS[name].split())} words ({instance})"

    return mcp


def tickets(_: str) -> MCPServer:
    """Tickets; some tools write."""
    mcp = MCPServer("tickets", log_level="WARNING")
    titles = ["The printer is out of paper"]

    @mcp.tool()
    def list_tickets() -> list[str]:
        """The titles of all tickets."""
        return titles

    @mcp.tool()
    def create_ticket(title: str) -> str:
        """Write a ticket."""
        titles.append(title)
        return f"ticket {len(titles)}: {title}"

    @mcp.tool()
    def purge_tickets() -> str:
        """Delete every ticket."""
        titles.clear()
        return "all tickets deleted"

    return mcp


SERVERS: Final[dict[str, Callable[[str], MCPServer]]] = {"search": search, "files": files, "tickets": tickets}


class RequireKey:
    """Asks every caller for a key, as a server does that only the gateway may reach."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app = app
        self._key = key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            given = dict(scope["headers"]).get(b"x-api-key", b"")
            if not hmac.compare_digest(given, self._key):
                await JSONResponse({"error": "X-Api-Key is missing or wrong"}, 401)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _session(ctx: Context[Any]) -> str:
    """The session's id; empty where there is none."""
    return (ctx.headers or {}).get("mcp-session-id", "")


def main() -> None:
    """Serve until ended; the first line of the output is the server's URL."""
    parser = argparse.ArgumentParser(description="One of the demonstration's MCP servers.")
    parser.add_argument("server", choices=SERVERS)
    parser.add_argument("--instance", required=True, help="how it calls itself")
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    options = parser.parse_args()
    app: ASGIApp = SERVERS[options.server](options.instance).streamable_http_app()
    if options.server == "files":
        app = RequireKey(app, os.environ[KEY])
    bound = listen(options.port)
    print(f"http://127.0.0.1:{bound.getsockname()[1]}/mcp", flush=True)
    serve(app, bound)


if __name__ == "__main__":
    main()
