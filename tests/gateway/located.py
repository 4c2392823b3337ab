"""An MCP server process that says where it is and notes every call it sees: ``python -m tests.gateway.located KIND NAME
PORT SEEN``."""

import os
import sys
from pathlib import Path
from typing import Any

import uvicorn
from fastmcp import FastMCP
from mcp.server.mcpserver import MCPServer


def build(kind: str, name: str, seen: Path) -> Any:
    server: FastMCP | MCPServer = FastMCP("located") if kind == "fastmcp" else MCPServer("located")
    note = os.open(seen, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    @server.tool()
    def where(text: str) -> str:
        os.write(note, f"{text}\n".encode())
        return f"{name}:{os.getpid()} {text}"

    return server.http_app(path="/mcp") if isinstance(server, FastMCP) else server.streamable_http_app()


def main() -> None:
    kind, name, port, seen = sys.argv[1:]
    uvicorn.run(build(kind, name, Path(seen)), host="127.0.0.1", port=int(port), log_level="critical", access_log=False)


if __name__ == "__main__":
    main()
