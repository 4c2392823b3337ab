"""The revision of the protocol that a message stands under, and whether its headers agree with its body. Pure, no I/O.

The headers that mirror the body (``MCP-Protocol-Version``, ``Mcp-Method``, ``Mcp-Name``) are what proxies and servers
route by. One that differs from the body which was judged would send a message elsewhere than to what it was judged for
(2026-07-28, transports/streamable-http, "Server Validation").
"""

import base64
import binascii
import re
from collections.abc import Collection, Mapping
from typing import Any, Final

import msgspec

from .errors import HEADER_MISMATCH, INVALID_PARAMS, INVALID_REQUEST, UNSUPPORTED_PROTOCOL_VERSION
from .message import (
    CLIENT_CAPABILITIES_KEY,
    PROTOCOL_VERSION_KEY,
    TARGETS,
    Batch,
    Message,
    Notification,
    Request,
    Response,
)
from .types import Era, Rejection

__all__ = [
    "BATCH_VERSION",
    "LEGACY_VERSIONS",
    "MODERN_VERSIONS",
    "SESSION_HEADER",
    "VERSION_HEADER",
    "Standing",
    "check_headers",
    "decode_header_value",
]

LEGACY_VERSIONS: Final = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25")
MODERN_VERSIONS: Final = ("2026-07-28",)
BATCH_VERSION: Final = "2025-03-26"
"""The one revision with batches; also what an absent version header means (2025-11-25, transports)."""

SESSION_HEADER: Final = b"mcp-session-id"
VERSION_HEADER: Final = b"mcp-protocol-version"
_METHOD_HEADER: Final = b"mcp-method"
_NAME_HEADER: Final = b"mcp-name"
_ROUTING_HEADERS: Final = (VERSION_HEADER, _METHOD_HEADER, _NAME_HEADER, SESSION_HEADER)

_MIRRORED: Final = frozenset(
    {"tools/call", "prompts/get", "resources/read", "tasks/get", "tasks/update", "tasks/cancel"}
)
"""Methods whose target the ``Mcp-Name`` header repeats (2026-07-28 transports; SEP-2663 for tasks)."""

_SENTINEL: Final = re.compile(rb"=\?base64\?(.*)\?=")


class Standing(msgspec.Struct, frozen=True, gc=False):
    """The revision a message stands under."""

    era: Era
    version: str | None
    """``MCP-Protocol-Version``; None where a legacy client sent none."""


_STANDINGS: Final[dict[bytes | None, Standing]] = {
    None: Standing("legacy", None),
    **{version.encode(): Standing("legacy", version) for version in LEGACY_VERSIONS},
    **{version.encode(): Standing("modern", version) for version in MODERN_VERSIONS},
}
"""By the version header."""


def check_headers(
    message: Message | Batch, headers: Mapping[bytes, bytes], repeated: Collection[bytes] = ()
) -> Standing | Rejection:
    """The era and version of a message, or where its headers and its body disagree.

    ``headers`` maps lower-case names to values without surrounding white space; ``repeated`` names those that came
    more than once. Header checks come before the version is looked up, so that a client which disagrees with itself is
    told so. Sources: 2026-07-28 transports, "Server Validation", and versioning; 2025-11-25 transports for an absent
    header.
    """
    for header in repeated:
        if header in _ROUTING_HEADERS:
            return _refusal(message, HEADER_MISMATCH, f"the {header.decode()} header appears more than once")
    raw_version = headers.get(VERSION_HEADER)
    standing = _STANDINGS.get(raw_version)
    if standing is not None and standing.era == "legacy":
        return _check_legacy(message, standing, headers)
    version = (raw_version or b"").decode("latin-1")
    if isinstance(message, Request):
        if PROTOCOL_VERSION_KEY not in message.meta or CLIENT_CAPABILITIES_KEY not in message.meta:
            missing = [key for key in (PROTOCOL_VERSION_KEY, CLIENT_CAPABILITIES_KEY) if key not in message.meta]
            return _refusal(message, INVALID_PARAMS, f"params._meta is missing {' and '.join(missing)}")
        if message.text("_meta", PROTOCOL_VERSION_KEY) != version:
            return _refusal(message, HEADER_MISMATCH, "the mcp-protocol-version header differs from params._meta")
        if _METHOD_HEADER not in headers:
            return _refusal(message, HEADER_MISMATCH, "the mcp-method header is missing")
        if message.method in _MIRRORED and _NAME_HEADER not in headers:
            return _refusal(message, HEADER_MISMATCH, "the mcp-name header is missing")
    elif isinstance(message, Batch):
        return _refusal(message, INVALID_REQUEST, f"batches exist in revision {BATCH_VERSION} only")
    elif isinstance(message, Response):
        return _refusal(message, INVALID_REQUEST, f"revision {version[:40]!r} has no responses from clients")
    mismatch = _mirror_mismatch(message, headers)
    if mismatch is not None:
        return _refusal(message, HEADER_MISMATCH, mismatch)
    if standing is None:
        return _refusal(
            message,
            UNSUPPORTED_PROTOCOL_VERSION,
            "Unsupported protocol version",
            {"supported": list(MODERN_VERSIONS), "requested": version},
        )
    return standing


def _check_legacy(message: Message | Batch, standing: Standing, headers: Mapping[bytes, bytes]) -> Standing | Rejection:
    """The legacy half of ``check_headers``: mirrored headers mean nothing here, so one that lies is refused."""
    if isinstance(message, Request | Notification):
        if PROTOCOL_VERSION_KEY in message.meta:
            claimed = message.text("_meta", PROTOCOL_VERSION_KEY)
            if claimed not in LEGACY_VERSIONS or standing.version not in (None, claimed):
                text = "the mcp-protocol-version header is missing or differs from params._meta"
                return _refusal(message, HEADER_MISMATCH, text)
        mismatch = _mirror_mismatch(message, headers)
        if mismatch is not None:
            return _refusal(message, HEADER_MISMATCH, mismatch)
    elif isinstance(message, Batch) and standing.version not in (None, BATCH_VERSION):
        text = f"batches exist in revision {BATCH_VERSION} only, this is {standing.version}"
        return _refusal(message, INVALID_REQUEST, text)
    return standing


def _refusal(message: Message | Batch, code: int, text: str, data: Mapping[str, Any] | None = None) -> Rejection:
    reason = "header_mismatch" if code == HEADER_MISMATCH else "invalid_message"
    request_id = message.id if isinstance(message, Request) else None
    return Rejection(400, code, text, reason, data=data, request_id=request_id)


def _mirror_mismatch(message: Request | Notification, headers: Mapping[bytes, bytes]) -> str | None:
    method = headers.get(_METHOD_HEADER)
    if method is not None and _ascii(method) != message.method:
        return "the mcp-method header differs from the body's method"
    name = headers.get(_NAME_HEADER)
    if name is None or not isinstance(message, Request):
        return None
    if message.method in _MIRRORED and decode_header_value(name) != message.target:
        return f"the mcp-name header differs from the body's params.{TARGETS[message.method][1]}"
    return None


def decode_header_value(value: bytes) -> str | None:
    """A mirrored header's text: ASCII verbatim, or the UTF-8 inside ``=?base64?...?=``
    (2026-07-28 transports, "Value Encoding").

    None where the encoding is malformed, so that a corrupt header never equals a body's value. Other bytes than ASCII
    are: who reads them as Latin-1 and who reads them as UTF-8 see two names.
    """
    match = _SENTINEL.fullmatch(value) if value.startswith(b"=?") else None
    if match is None:
        return _ascii(value)
    try:
        decoded = base64.b64decode(match[1], validate=True)
        return decoded.decode() if base64.b64encode(decoded) == match[1] else None
    except (binascii.Error, ValueError):
        return None


def _ascii(value: bytes) -> str | None:
    return value.decode("ascii") if value.isascii() else None
