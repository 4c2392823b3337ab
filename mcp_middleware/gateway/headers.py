"""Which headers pass between a caller and a server behind the gateway: those that are listed, and no others. Pure.

Of a request go on what MCP and HTTP need for it, all ``Mcp-*`` (unknown ``Mcp-Param-*`` too: 2026-07-28 transports,
"Server Behavior for Custom Headers"; none with an underscore, which some servers read as the hyphen of one that was
judged), trace context as the members left it, and what the configuration names. Whatever
says who calls is thereby left behind, in the words of any proxy and framework there is: a caller has made it up. So is
the caller's token, which was issued for us (F1), in whatever header it stands.

Of an answer go on what MCP needs, and what HTTP says that changes nothing but this answer. A server stands at an origin
of ours, and has no orders to give to browsers about it, or to the proxies in front.

White space around values stays behind, and so does what ``Connection`` names, unless MCP needs it (RFC 9110 section
7.6.1; an option that names ``mcp-protocol-version`` would make the server read another message than the one that was
judged).
"""

import re
from collections.abc import Callable, Iterable
from typing import Final

from mcp_middleware.responses import NOSNIFF
from mcp_middleware.types import Headers

__all__ = ["HOP_BY_HOP", "for_caller", "for_server", "passing"]

HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
_PREFIX: Final = b"mcp-"
_SENT: Final = frozenset(
    {
        b"accept",
        b"accept-language",
        b"baggage",
        b"content-type",
        b"last-event-id",
        b"traceparent",
        b"tracestate",
        b"user-agent",
    }
)
_KEPT: Final = frozenset({b"accept", b"content-type", b"last-event-id", b"close", b"keep-alive"})
"""Options of ``Connection`` that take no header away: MCP needs it, or it is none."""

_UNSTORED: Final = re.compile(
    rb"(?:no-store|no-cache|no-transform|must-revalidate|private|max-age=0)"
    rb"(?:[ \t]*,[ \t]*(?:no-store|no-cache|no-transform|must-revalidate|private|max-age=0))*",
    re.IGNORECASE,
)
_A_DAY: Final = re.compile(rb"[0-9]{1,5}")
_RETURNED: Final[dict[bytes, Callable[[bytes], object]]] = {
    b"allow": bool,
    b"cache-control": _UNSTORED.fullmatch,  # what may be kept, and for whom, is not for one server to say
    b"content-type": bool,
    b"retry-after": _A_DAY.fullmatch,  # seconds; clients believe it
    b"x-accel-buffering": b"no".__eq__,  # SSE, as the transport asks for it (A13)
}
"""What passes of an answer, where its value is one that may."""


def passing(names: Iterable[str], own: frozenset[bytes]) -> frozenset[bytes]:
    """The headers of a request that pass besides ``Mcp-*``. ``names``: those that the configuration lets pass, ``own``
    those that it sets itself, in lower case and with hyphens for underscores."""
    known = _SENT.union(name.encode() for name in names)
    return frozenset(name for name in known if name.replace(b"_", b"-") not in own)


def for_server(headers: Headers, passing: frozenset[bytes], token: bytes | None) -> bytes | None:
    """The header lines of a request; None where one would be several. ``token`` is the caller's."""
    named: frozenset[bytes] = frozenset()
    parts: list[bytes] = []
    for name, value in headers:
        if name in passing or (name.startswith(_PREFIX) and b"_" not in name):
            parts += (name, b": ", value.strip(b" \t"), b"\r\n")
        elif name == b"connection":
            named |= _named(value)
    lines = b"".join(parts)
    if named or (token and token in lines):
        kept = [parts[place : place + 4] for place in range(0, len(parts), 4)]
        parts = [part for line in kept if line[0] not in named and not (token and token in line[2]) for part in line]
        lines = b"".join(parts)
    lines = b"accept-encoding: identity\r\n" + lines
    count = len(parts) // 4 + 1
    return lines if lines.count(b"\n") == count == lines.count(b"\r") and b"\0" not in lines else None


def _named(value: bytes) -> frozenset[bytes]:
    """The headers that a ``Connection`` header keeps on this hop."""
    tokens = {token.strip().lower() for token in value.split(b",")} - _KEPT
    return frozenset(token for token in tokens if not token.startswith(_PREFIX))


def for_caller(headers: Headers) -> Headers:
    """The headers of an answer."""
    lines: Headers = [NOSNIFF]
    named: frozenset[bytes] = frozenset()
    for line in headers:
        name, value = line
        may_pass = _RETURNED.get(name)
        if name.startswith(_PREFIX) or (may_pass is not None and may_pass(value)):
            lines.append(line)
        elif name == b"connection":
            named |= _named(value)
    return [line for line in lines if line[0] not in named] if named else lines
