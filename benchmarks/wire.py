"""The bytes of MCP requests as a correct client of each era sends them, and the reading of their answers."""

import json
import re
from dataclasses import dataclass
from typing import Any

from mcp_middleware.types import Era

__all__ = ["Answer", "call", "check_echo", "initialize", "initialized"]

LEGACY = "2025-11-25"
MODERN = "2026-07-28"

_META = {
    "io.modelcontextprotocol/protocolVersion": MODERN,
    "io.modelcontextprotocol/clientInfo": {"name": "benchmark", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)


def _post(body: dict[str, Any], token: str, headers: dict[str, str]) -> bytes:
    content = json.dumps(body, separators=(",", ":")).encode()
    lines = {
        "host": "127.0.0.1",
        "content-type": "application/json",
        "accept": "application/json, text/event-stream",
        "authorization": f"Bearer {token}",
        "content-length": str(len(content)),
        **headers,
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"POST /mcp HTTP/1.1\r\n{head}\r\n".encode() + content


def initialize(token: str) -> bytes:
    """Open a legacy session."""
    client = {"name": "benchmark", "version": "1"}
    params = {"protocolVersion": LEGACY, "capabilities": {}, "clientInfo": client}
    return _post({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}, token, {})


def initialized(token: str, session: str) -> bytes:
    """End the handshake of a legacy session."""
    headers = {"mcp-session-id": session, "mcp-protocol-version": LEGACY}
    return _post({"jsonrpc": "2.0", "method": "notifications/initialized"}, token, headers)


def call(era: Era, token: str, session: str | None, text: str, request_id: int) -> bytes:
    """Call the tool ``echo`` with ``text``."""
    params: dict[str, Any] = {"name": "echo", "arguments": {"text": text}}
    if era == "modern":
        params["_meta"] = _META
        headers = {"mcp-protocol-version": MODERN, "mcp-method": "tools/call", "mcp-name": "echo"}
    else:
        headers = {"mcp-protocol-version": LEGACY}
        if session is not None:
            headers["mcp-session-id"] = session
    return _post({"jsonrpc": "2.0", "id": request_id, "method": "tools/call", "params": params}, token, headers)


@dataclass(slots=True)
class Answer:
    """An HTTP answer as it arrives: feed it chunks until ``complete``."""

    received: int = 0
    expected: int | None = None
    """Bytes of the whole answer; None while the head is incomplete, and for a chunked one."""
    head: bytes = b""
    tail: bytes = b""
    complete: bool = False

    def feed(self, chunk: bytes) -> bool:
        """Take the next bytes; True once the answer is whole."""
        self.received += len(chunk)
        if self.expected is None and not self.tail:
            self.head += chunk
            end = self.head.find(b"\r\n\r\n")
            if end < 0:
                return False
            length = _LENGTH.search(self.head, 0, end + 2)
            if length is not None:
                self.expected = end + 4 + int(length[1])
        if self.expected is not None:
            self.complete = self.received >= self.expected
        else:
            self.tail = (self.tail + chunk)[-7:]
            self.complete = self.tail == b"\r\n0\r\n\r\n"
        return self.complete

    @property
    def status(self) -> int:
        return int(self.head[9:12])

    def header(self, name: bytes) -> str | None:
        found = re.search(rb"\r\n" + name + rb": *([^\r]*)\r\n", self.head, re.IGNORECASE)
        return found[1].decode() if found else None


def check_echo(answer: bytes, text: str) -> None:
    """Raise RuntimeError unless ``answer`` is the good answer of ``echo`` to ``text``, JSON or event stream."""
    head, _, body = answer.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" in head.lower():
        parts = re.split(rb"(?:\A|\r\n)[0-9a-f]+\r\n", body)
        body = b"".join(parts)
    if b"text/event-stream" in head.lower():
        body = next(line[6:] for line in body.replace(b"\r\n", b"\n").split(b"\n") if line.startswith(b"data: {"))
    message = json.loads(body)
    result = message.get("result", {})
    if result.get("isError") or result.get("content", [{}])[0].get("text") != text:
        raise RuntimeError(f"a wrong answer: {answer[:2000]!r}")
