"""What a server sends, decoded once for every member that observes it. Pure, no I/O."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from msgspec import Raw

__all__ = ["Content", "ErrorObject", "ServerMessage", "ToolResult", "parse_server_message"]

_encode: Final = msgspec.json.Encoder().encode


class ErrorObject(msgspec.Struct, frozen=True, gc=False):
    """The ``error`` of a JSON-RPC answer."""

    code: int
    message: str = ""


class Content(msgspec.Struct, frozen=True, gc=False):
    """One content block of a tool result, as far as members look at it."""

    type: str = ""
    text: str | None = None
    data: str | None = None
    """Base64 of an image or a sound."""
    resource: Raw = Raw()


class ToolResult(
    msgspec.Struct, frozen=True, gc=False, rename={"structured": "structuredContent", "is_error": "isError"}
):
    """A ``tools/call`` result, as far as members look at it."""

    content: list[Content] = []
    structured: Raw = Raw()
    is_error: bool = False
    _meta: Raw = Raw()


class ServerMessage(msgspec.Struct, gc=False):
    """A message from the server, decoded once for every member that observes it."""

    raw: Raw | bytes = b""
    """The whole message; what is sent on. Replace the message to change it, never this field."""
    id: int | str | None = None
    method: str | None = None
    result: Raw | msgspec.UnsetType = msgspec.UNSET
    error: ErrorObject | None = None
    status: int | None = None
    """The HTTP status of a JSON answer that a member replaced; None keeps the server's."""
    _tool_result: ToolResult | None = None

    @property
    def is_answer(self) -> bool:
        """Whether this answers a request, rather than asking or telling something."""
        return self.method is None and (self.error is not None or self.result is not msgspec.UNSET)

    @property
    def tool_result(self) -> ToolResult | None:
        """The result read as a tool's, or None if it is none. Decoded on first use, kept for the next member."""
        if self._tool_result is None and isinstance(self.result, Raw):
            try:
                self._tool_result = _tool_result.decode(self.result)
            except (msgspec.DecodeError, RecursionError):
                return None
        return self._tool_result

    def with_result(self, result: dict[str, Any]) -> "ServerMessage":
        """This answer with another result; ``Raw`` values inside it are copied byte for byte."""
        raw = Raw(_encode(result))
        return ServerMessage(_encode({"jsonrpc": "2.0", "id": self.id, "result": raw}), self.id, None, raw)

    def with_error(
        self, code: int, message: str, data: Mapping[str, Any] | None = None, *, status: int | None = None
    ) -> "ServerMessage":
        """This answer as an error, with another HTTP status if it goes out as JSON."""
        error: dict[str, Any] = {"code": code, "message": message}
        if data is not None:
            error["data"] = data
        raw = _encode({"jsonrpc": "2.0", "id": self.id, "error": error})
        return ServerMessage(raw, self.id, error=ErrorObject(code, message), status=status)


class _Wire(msgspec.Struct, gc=False):
    id: int | str | None = None
    method: str | None = None
    result: Raw | msgspec.UnsetType = msgspec.UNSET
    error: ErrorObject | None = None


_wire: Final = msgspec.json.Decoder(_Wire)
_tool_result: Final = msgspec.json.Decoder(ToolResult)


def parse_server_message(data: bytes) -> ServerMessage | None:
    """The server's message in ``data``, or None if it is not one (then nobody can be told what it says)."""
    try:
        wire = _wire.decode(data)
        if not data.isascii():
            data.decode()  # the decoder does not look at what it leaves raw, and members read that later
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    return ServerMessage(data, wire.id, wire.method, wire.result, wire.error)
