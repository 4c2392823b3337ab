"""Real MCP servers of both makes, FastMCP's and the official SDK's, to be furnished by a test."""

from collections.abc import Mapping
from typing import Any, Final, Literal

import fastmcp
import pytest
from mcp.server import mcpserver
from starlette.middleware import Middleware
from starlette.types import ASGIApp

Kind = Literal["fastmcp", "sdk"]
KINDS: Final[tuple[Kind, ...]] = ("fastmcp", "sdk")
CONTEXTS: Final[Mapping[Kind, type]] = {"fastmcp": fastmcp.Context, "sdk": mcpserver.Context}
"""What a tool's parameter is annotated with to be given the context."""

each_server = pytest.mark.parametrize("kind", KINDS)


def server_of(kind: Kind) -> fastmcp.FastMCP | mcpserver.MCPServer:
    """One without tools; both makes know their decorators as ``@server.tool()``, with the parentheses."""
    return fastmcp.FastMCP("tests") if kind == "fastmcp" else mcpserver.MCPServer("tests")


def app_of(server: fastmcp.FastMCP | mcpserver.MCPServer, *middleware: Middleware, **options: Any) -> ASGIApp:
    """Its ASGI application inside ``middleware``, outermost first, with its endpoint at ``/mcp``."""
    if isinstance(server, fastmcp.FastMCP):
        return server.http_app(path="/mcp", middleware=list(middleware), **options)
    app: ASGIApp = server.streamable_http_app(**options)
    for entry in reversed(middleware):
        app = entry.cls(app, *entry.args, **entry.kwargs)
    return app
