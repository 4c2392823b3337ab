"""What a server sends, decoded once for every member that observes it. Pure, no I/O."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from msgspec import Raw

from .bounded import MAX_SMALL, TooManyError, items_of

__all__ = ["Content", "ErrorObject", "ServerMessage", "ToolResult", "parse_server_message"]

MAX_BLOCKS: Final = 5000
"""Content blocks of one tool result that members look at; of a result with more they know only what stands beside."""

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
    _tool_result: ToolResult | msgspec.UnsetType | None = msgspec.UNSET

    @property
    def is_answer(self) -> bool:
        """Whether this answers a request, rather than asking or telling something: with a result or an error it does,
        whatever else it says, because some readers look for these first."""
        return self.error is not None or self.result is not msgspec.UNSET

    @property
    def tool_result(self) -> ToolResult | None:
        """The result read as a tool's, or None if it is none. Decoded on first use, kept for the next member."""
        if self._tool_result is msgspec.UNSET:
            try:
                self._tool_result = _read_tool_result(self.result) if isinstance(self.result, Raw) else None
            except (msgspec.DecodeError, RecursionError):
                self._tool_result = None
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


class _Outline(
    msgspec.Struct, frozen=True, gc=False, rename={"structured": "structuredContent", "is_error": "isError"}
):
    """A ``tools/call`` result whose content is not looked at."""

    content: Raw = Raw()
    structured: Raw = Raw()
    is_error: bool = False
    _meta: Raw = Raw()


_wire: Final = msgspec.json.Decoder(_Wire)
_tool_result: Final = msgspec.json.Decoder(ToolResult)
_outline: Final = msgspec.json.Decoder(_Outline)
_block: Final = msgspec.json.Decoder(Content)


def _read_tool_result(result: Raw) -> ToolResult:
    if len(result) <= MAX_SMALL:
        return _tool_result.decode(result)
    outline = _outline.decode(result)
    try:
        blocks = items_of(outline.content, MAX_BLOCKS) if outline.content else []
    except TooManyError:
        return ToolResult([], Raw(), outline.is_error, outline._meta)
    content = [_block.decode(block) for block in blocks]
    return ToolResult(content, outline.structured, outline.is_error, outline._meta)


def parse_server_message(data: bytes) -> ServerMessage | None:
    """The server's message in ``data``, or None if it is not one (then nobody can be told what it says)."""
    try:
        wire = _wire.decode(data)
        if not data.isascii():
            data.decode()  # the decoder does not look at what it leaves raw, and members read that later
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    return ServerMessage(data, wire.id, wire.method, wire.result, wire.error)
