"""The servers under load, each a process of its own on one core: ``python -m benchmarks.servers NAME ISSUER DIRECTORY``
prints the port it listens on."""

import socket
import sys
from pathlib import Path

import uvicorn

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


def build(name: str, issuer: str, directory: Path) -> ASGIApp:
    """The application called ``name``: a server, or ``server+member``, or ``server+all``."""
    server, _, member = name.partition("+")
    app = echo if server == "echo" else _fastmcp(json_response=server == "fastmcp")
    if not member:
        return app
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
