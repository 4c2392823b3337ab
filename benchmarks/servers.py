"""The servers under load, each a process of its own on one core: ``python -m benchmarks.servers NAME ISSUER DIRECTORY``
prints the port it listens on."""

import socket
import sys
from pathlib import Path

import uvicorn

from mcp_middleware.exchange import Receive, Scope, Send
from mcp_middleware.member import ASGIApp

from .echo import echo

__all__ = ["FASTMCP", "build"]

FASTMCP = ("fastmcp", "fastmcp-sse")
"""Real servers, answering legacy calls by JSON and by an event stream."""


def _fastmcp(*, json_response: bool) -> ASGIApp:
    from fastmcp import FastMCP

    server = FastMCP("echo")

    @server.tool(name="echo", output_schema=None)
    def answer(text: str) -> str:
        """Answer with the text."""
        return text

    return server.http_app(path="/mcp", json_response=json_response)


def _with_caller(app: ASGIApp) -> ASGIApp:
    """``app`` as it is behind any authentication: for a caller it knows FastMCP does more by itself (it looks up what
    was made visible to that caller), which is none of the members' cost."""
    from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
    from mcp.server.auth.provider import AccessToken

    user = AuthenticatedUser(AccessToken(token="-", client_id="benchmark", scopes=[], subject="benchmark"))

    async def known(scope: Scope, receive: Receive, send: Send) -> None:
        scope["user"] = user
        await app(scope, receive, send)

    return known


def build(name: str, issuer: str, directory: Path) -> ASGIApp:
    """The application called ``name``: a server, or ``server+member``, or ``server+all``."""
    server, _, member = name.partition("+")
    app = echo if server == "echo" else _fastmcp(json_response=server == "fastmcp")
    if not member:
        return app if server == "echo" else _with_caller(app)
    from . import stack  # not for the bare servers, which should hold nothing of ours

    members = stack.members(issuer, directory)
    for wrap in reversed([members[member]] if member != "all" else list(members.values())):
        app = wrap(app)
    return app


def main() -> None:
    """Serve until terminated."""
    name, issuer, directory = sys.argv[1:]
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.bind(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    config = uvicorn.Config(
        build(name, issuer, Path(directory)),
        loop="uvloop",
        http="httptools",
        ws="none",
        log_level="warning",
        access_log=False,
    )
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
