"""Which headers pass between a caller and a server behind the gateway. Pure.

Of a request go on all, unknown ``Mcp-Param-*`` too (2026-07-28 transports, "Server Behavior for Custom
Headers"), without white space around their values, except:

- hop-by-hop headers, and those that ``Connection`` names, unless MCP needs them (RFC 9110 section 7.6.1; an option
  that names ``mcp-protocol-version`` would make the server read another message than the one that was judged);
- credentials (``Authorization``, ``Cookie``, ...): the caller's token was issued for us (F1). The server gets those of
  its configuration;
- what proxies say of a caller (``Forwarded``, ``X-Forwarded-*``, ``X-Auth-Request-*``, ...), in either spelling of the
  hyphen: a caller who sends them has made them up;
- ``Origin``: it has been judged here (F5), and a server with a list of its own would refuse pages that we let in;
- MCP's own with underscores, which some servers read as if they had hyphens, and nobody has judged.

Of an answer go on all but hop-by-hop ones, cookies, challenges, and what speaks to a proxy.
"""

from typing import Final

from mcp_middleware.resource_server.identity import IDENTITY_HEADERS
from mcp_middleware.types import Headers

__all__ = ["HOP_BY_HOP", "for_caller", "for_server"]

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
_NOT_SENT: Final = (
    HOP_BY_HOP
    | IDENTITY_HEADERS
    | {
        b"accept-encoding",
        b"content-length",
        b"cookie",
        b"cookie2",
        b"expect",
        b"client-cert",
        b"client-cert-chain",
        b"forwarded",
        b"host",
        b"http2-settings",
        b"origin",
        b"impersonate-user",
        b"true-client-ip",
        b"x-auth-token",
        b"x-auth-user",
        b"x-client-ip",
        b"x-cluster-client-ip",
        b"x-email",
        b"x-groups",
        b"x-mcp-caller",  # as ours is called, unless the configuration has another name
        b"x-http-method",
        b"x-http-method-override",
        b"x-method-override",
        b"x-real-ip",
        b"x-rewrite-url",
        b"x-roles",
        b"x-subject",
        b"x-userinfo",
        b"x-username",
    }
)
_NOT_SENT_PREFIXES: Final = (
    b"cf-access-",
    b"cf-connecting-",
    b"ssl-client-",
    b"tailscale-user-",
    b"x-amzn-oidc-",
    b"x-auth-request-",
    b"x-authenticated-",
    b"x-client-cert",
    b"x-consumer-",
    b"x-forwarded-",
    b"x-goog-authenticated-user-",
    b"x-goog-iap-",
    b"x-ms-client-principal",
    b"x-ms-token-",
    b"x-original-",
    b"x-remote-",
    b"x-ssl-client-",
    b"x-user-",
    b"x-webauth-",
)
"""Who calls, from where and how, in the words of the proxies and frameworks in use. All of it would be made up."""
_KEPT: Final = frozenset({b"accept", b"content-type", b"last-event-id", b"close", b"keep-alive"})
"""Options of ``Connection`` that take no header away: MCP needs it, or it is none."""
_NOT_RETURNED: Final = HOP_BY_HOP | {
    b"alt-svc",
    b"authentication-info",
    b"content-encoding",
    b"content-length",
    b"date",  # ours is added on the way out
    b"server",
    b"set-cookie",
    b"set-cookie2",
    b"strict-transport-security",
    b"www-authenticate",
    # Orders to a proxy in front of us, which would send a file or a page of its own in place of the answer.
    b"x-accel-redirect",
    b"x-litespeed-location",
    b"x-lighttpd-send-file",
    b"x-reproxy-url",
    b"x-sendfile",
}


def for_server(headers: Headers, own: frozenset[bytes]) -> bytes | None:
    """The header lines of a request; None where one would be several. ``own``: names of those that the configuration
    sets, with hyphens for underscores."""
    named: frozenset[bytes] = frozenset()
    parts: list[bytes] = []
    for name, value in headers:
        plain = name.replace(b"_", b"-") if b"_" in name else name
        if (
            plain in _NOT_SENT
            or plain.startswith(_NOT_SENT_PREFIXES)
            or plain in own
            or (plain is not name and plain.startswith(b"mcp-"))
        ):
            if name == b"connection":
                named |= _named(value)
            continue
        parts += (name, b": ", value.strip(b" \t"), b"\r\n")
    if named:
        kept = [parts[place : place + 4] for place in range(0, len(parts), 4) if parts[place] not in named]
        parts = [part for line in kept for part in line]
    lines = b"accept-encoding: identity\r\n" + b"".join(parts)
    count = len(parts) // 4 + 1
    return lines if lines.count(b"\n") == count == lines.count(b"\r") and b"\0" not in lines else None


def _named(value: bytes) -> frozenset[bytes]:
    """The headers that a ``Connection`` header keeps on this hop."""
    tokens = {token.strip().lower() for token in value.split(b",")} - _KEPT
    return frozenset(token for token in tokens if not token.startswith(b"mcp-"))


def for_caller(headers: Headers) -> Headers:
    """The headers of an answer."""
    lines: Headers = []
    named: frozenset[bytes] = frozenset()
    for line in headers:
        if line[0] not in _NOT_RETURNED:
            lines.append(line)
        elif line[0] == b"connection":
            named |= _named(line[1])
    return [line for line in lines if line[0] not in named] if named else lines
