"""What the gateway itself asks of every request, whoever calls: is it for us, and may that page send it.

It runs as a member in the pipeline of the others, so that what it refuses is recorded as every refusal is.
"""

import time
from collections.abc import Callable, Collection
from typing import ClassVar, Final, TypeAlias

from mcp_middleware.errors import INVALID_REQUEST
from mcp_middleware.exchange import Exchange
from mcp_middleware.member import ASGIApp, Bounds, Member
from mcp_middleware.resource_server.legacy import LEGACY_WELL_KNOWN
from mcp_middleware.resource_server.metadata import WELL_KNOWN
from mcp_middleware.resource_server.origins import AllowedOrigins
from mcp_middleware.types import Document, Headers, Rejection

__all__ = ["AccessLog", "Edge"]

_PREFLIGHT: Final = (
    (b"access-control-allow-methods", b"GET, POST, DELETE"),
    (b"access-control-allow-headers", b"*, authorization"),
    (b"access-control-max-age", b"600"),
)
"""What a page of an allowed origin may send (Fetch, "CORS protocol"). ``*`` does not stand for ``Authorization``."""
_EXPOSED: Final = (b"access-control-expose-headers", b"mcp-session-id, www-authenticate, retry-after")
"""What it may read of an answer besides its body."""

AccessLog: TypeAlias = Callable[[str, Exchange, float], None]
"""Writes one line: the server's name, the finished exchange, and the seconds it took."""


def _shared_with(origin: bytes) -> Headers:
    return [(b"access-control-allow-origin", origin), (b"vary", b"origin")]


class Edge(Member):
    """Checks ``Host`` and ``Origin`` against DNS rebinding (F5; transports, "Security Warning"), lets pages of allowed
    origins read their answers, and writes the access log.

    ``hosts`` are the values of ``Host`` that are ours, in lower case, with a port where it is not the scheme's own.
    """

    stage: ClassVar[str] = "edge"

    def __init__(
        self,
        app: ASGIApp,
        *,
        server: str,
        hosts: Collection[str],
        origins: AllowedOrigins,
        access_log: AccessLog | None = None,
        bounds: Bounds | None = None,
    ) -> None:
        super().__init__(app, bounds=bounds)
        self._name = server
        self._hosts = frozenset(host.encode() for host in hosts)
        self._origins = origins
        self._access_log = access_log

    async def on_headers(self, exchange: Exchange) -> Rejection | Document | None:
        host = exchange.headers.get(b"host", b"").lower()
        if b"host" in exchange.repeated or host not in self._hosts:
            return Rejection(421, INVALID_REQUEST, "The Host of this request is not served here", "bad_host")
        if exchange.path.startswith((WELL_KNOWN, LEGACY_WELL_KNOWN)):
            return None  # metadata is for pages of every origin
        origin = exchange.headers.get(b"origin")
        if b"origin" in exchange.repeated or not self._origins.allow(origin):
            return Rejection(403, INVALID_REQUEST, "The Origin of this request is not allowed here", "bad_origin")
        if origin and exchange.http_method == "OPTIONS" and b"access-control-request-method" in exchange.headers:
            return Document(b"", 204, (*_shared_with(origin), *_PREFLIGHT))
        return None

    def on_response_start(self, exchange: Exchange, status: int, headers: Headers) -> None:
        origin = exchange.headers.get(b"origin")
        if origin and self._origins.allow(origin):
            headers[:] = [line for line in headers if not line[0].startswith(b"access-control-")]
            headers += [*_shared_with(origin), _EXPOSED]

    async def on_finish(self, exchange: Exchange) -> None:
        if self._access_log is not None and not exchange.silent:
            self._access_log(self._name, exchange, time.monotonic() - exchange.started)
