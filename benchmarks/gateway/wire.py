"""The bytes of requests to an MCP endpoint, wherever a gateway serves it and whatever it calls the tool. Legacy era."""

import json
from dataclasses import dataclass
from typing import Any

from benchmarks.wire import LEGACY

__all__ = ["LEGACY", "Endpoint"]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where requests go, and what they must carry."""

    port: int
    path: str = "/mcp"
    token: str | None = None
    tool: str = "echo"
    argument: str = "text"

    def initialize(self) -> bytes:
        """Open a session."""
        client = {"name": "benchmark", "version": "1"}
        params = {"protocolVersion": LEGACY, "capabilities": {}, "clientInfo": client}
        return self.post({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}, None)

    def initialized(self, session: str | None) -> bytes:
        """End the handshake."""
        return self.post({"jsonrpc": "2.0", "method": "notifications/initialized"}, session)

    def call(self, session: str | None, text: str, request_id: int) -> bytes:
        """Call the tool with ``text``."""
        params = {"name": self.tool, "arguments": {self.argument: text}}
        return self.post({"jsonrpc": "2.0", "id": request_id, "method": "tools/call", "params": params}, session)

    def listen(self, session: str | None) -> bytes:
        """Open the session's event stream."""
        return self._head("GET", {"accept": "text/event-stream"}, session)

    def post(self, message: dict[str, Any], session: str | None) -> bytes:
        content = json.dumps(message, separators=(",", ":")).encode()
        lines = {
            "content-type": "application/json",
            "accept": "application/json, text/event-stream",
            "content-length": str(len(content)),
        }
        return self._head("POST", lines, session) + content

    def _head(self, method: str, lines: dict[str, str], session: str | None) -> bytes:
        lines = {"host": f"127.0.0.1:{self.port}", **lines, "mcp-protocol-version": LEGACY}
        if self.token is not None:
            lines["authorization"] = f"Bearer {self.token}"
        if session is not None:
            lines["mcp-session-id"] = session
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        return f"{method} {self.path} HTTP/1.1\r\n{head}\r\n".encode()
