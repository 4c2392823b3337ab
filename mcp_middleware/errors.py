"""What can go wrong, in one place: the exception for wrong configuration and every JSON-RPC code we send.

Codes of the specification stand as it defines them. Our own lie outside -32768..-32000, the range that
JSON-RPC and MCP reserve (MCP 2026-07-28, basic/index, "Error Codes").
"""

from typing import Final

__all__ = [
    "HEADER_MISMATCH",
    "INTERNAL_ERROR",
    "INVALID_PARAMS",
    "INVALID_REQUEST",
    "METHOD_NOT_FOUND",
    "PARSE_ERROR",
    "RATE_LIMITED",
    "RESOURCE_NOT_FOUND",
    "UNAUTHORIZED",
    "UNAVAILABLE",
    "UNSUPPORTED_PROTOCOL_VERSION",
    "ConfigurationError",
    "UnknownOutcomeError",
]

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602
INTERNAL_ERROR: Final = -32603

RESOURCE_NOT_FOUND: Final = -32002
"""Up to 2025-11-25; 2026-07-28 answers an unknown resource with INVALID_PARAMS."""
HEADER_MISMATCH: Final = -32020
"""A mirrored header is missing, repeated, malformed, or differs from the body (2026-07-28)."""
UNSUPPORTED_PROTOCOL_VERSION: Final = -32022

UNAUTHORIZED: Final = 401001
"""The caller's credential is missing, refused, or short of a scope."""
RATE_LIMITED: Final = 429001
"""A limit refused the request; ``data.retryAfterMs`` says when it fits, if it ever does."""
UNAVAILABLE: Final = 503001
"""A part this answer depends on is down; nothing was sent to the server."""


class ConfigurationError(ValueError):
    """An option or a configuration line is wrong. The message names the place, the value and what is allowed."""


class UnknownOutcomeError(Exception):
    """The server may have acted on a request, and nobody knows: no whole answer came. The request is not sent again."""
