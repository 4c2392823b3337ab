"""An MCP server process that says where it is and notes every call it sees: ``python -m tests.gateway.located KIND NAME
PORT SEEN``."""

import os
import sys
from pathlib import Path
from typing import Any

import uvicorn

from tests.mcp_servers import app_of, server_of


def build(kind: Any, name: str, seen: Path) -> Any:
    server = server_of(kind)
    note = os.open(seen, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    @server.tool()
    def where(text: str) -> str:
        os.write(note, f"{text}\n".encode())
        return f"{name}:{os.getpid()} {text}"

    return app_of(server)


def main() -> None:
    kind, name, port, seen = sys.argv[1:]
    uvicorn.run(build(kind, name, Path(seen)), host="127.0.0.1", port=int(port), log_level="critical", access_log=False)


if __name__ == "__main__":
    main()
