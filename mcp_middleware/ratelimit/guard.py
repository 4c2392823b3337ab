"""Plain limits on requests, where identity is not known yet or does not matter: by address, and by tool.

By the ``limits`` library, with fixed windows, in this process alone.
"""

import math
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final

from mcp_middleware.errors import RATE_LIMITED, ConfigurationError
from mcp_middleware.exchange import Exchange
from mcp_middleware.member import ASGIApp, Bounds, Member
from mcp_middleware.message import Request
from mcp_middleware.options import whole_number
from mcp_middleware.types import Clock, Rejection

from .addresses import address_of, read_networks
from .rate import Rate
from .reading import by_glob

if TYPE_CHECKING:
    from limits import RateLimitItem
    from limits.strategies import FixedWindowRateLimiter

__all__ = ["GuardStorage", "RequestGuardMiddleware"]

_METADATA: Final = (
    "/.well-known/oauth-protected-resource",
    "/.well-known/oauth-authorization-server",
    "/.well-known/openid-configuration",
)
"""Where clients look for metadata (RFC 9728 section 3, RFC 8414 sections 3 and 5); the path of a resource or an issuer
may follow."""
_READING: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_MAX_TOOLS: Final = 10_000


class GuardStorage:
    """Where guards count, in this process's memory. Several that have the same one count an address together, and one
    that takes another's place goes on.

    ``max_addresses``: the most addresses to count; IPv6 counts by /64. ``clock``: seconds.
    """

    def __init__(self, *, max_addresses: int = 100_000, clock: Clock = time.monotonic) -> None:
        from limits.strategies import FixedWindowRateLimiter  # 0.1 s that only who asks for it should pay

        from .windows import Windows

        self.clock = clock
        self.addresses = Windows(whole_number("GuardStorage: max_addresses", max_addresses), clock)
        self.address_limiter = FixedWindowRateLimiter(self.addresses)
        self.tool_limiter = FixedWindowRateLimiter(Windows(_MAX_TOOLS, clock))
        """By itself, so that no flood of addresses drives the tools out."""


class RequestGuardMiddleware(Member):
    """Limits requests by where they come from before anybody looks at their token, and calls of a tool by everybody.

    An address has so many requests in each window *whose caller nobody authenticated*: one whose token proves good is
    taken off again, so that an address which many good callers share is not used up by them. Metadata documents, asked
    for without a token, are not counted. Without a member that authenticates, every request counts. Refused: 429 with
    ``Retry-After``.

    A tool has so many calls in each window, whoever makes them. Only what goes on to the server counts, so that nobody
    uses up what he may not call.

    Args:
        app: the ASGI application.
        addresses: a rate such as ``"600/minute"``; None does not limit.
        tools: globs of tool names to rates; the first that matches counts, all its tools together.
        trusted_proxies: addresses and networks whose ``X-Forwarded-For`` is believed.
        server: the name of this server, where several share a storage: its tools are its own.
        storage: where it is counted.
        bounds: what one request may take.

    Raises:
        ConfigurationError: an option has a value that is not allowed.
    """

    stage: ClassVar[str] = "edge"

    def __init__(
        self,
        app: ASGIApp,
        *,
        addresses: str | None = None,
        tools: Mapping[str, str] | None = None,
        trusted_proxies: Sequence[str] = (),
        server: str = "",
        storage: GuardStorage | None = None,
        bounds: Bounds | None = None,
    ) -> None:
        super().__init__(app, bounds=bounds)
        name = type(self).__name__
        if addresses is None and not tools:
            raise ConfigurationError(f"{name} limits nothing; give addresses or tools")
        self._addresses = None if addresses is None else _item(f"{name}: addresses", addresses)
        self._tools = [
            (glob, pattern, _item(f"{name}: tools[{glob!r}]", rate))
            for glob, pattern, rate in by_glob(f"{name}: tools", tools, names="tool names", values="rates")
        ]
        self._trusted = read_networks(f"{name}: trusted_proxies", trusted_proxies)
        if not isinstance(server, str):
            raise ConfigurationError(f"{name}: server is {server!r}; it must be a name")
        self._server_name = server
        if not isinstance(storage, GuardStorage | None):
            raise ConfigurationError(f"{name}: storage is {storage!r}; it must be a GuardStorage")
        self._storage = GuardStorage() if storage is None else storage

    async def on_headers(self, exchange: Exchange) -> Rejection | None:
        """Count the address, or refuse it."""
        item = self._addresses
        if item is None or _asks_for_metadata(exchange):
            return None
        peer = exchange.scope.get("client")
        address = address_of(peer[0] if peer else None, exchange.scope["headers"], self._trusted)
        limiter = self._storage.address_limiter
        if not limiter.hit(item, address):
            return self._too_many(limiter, item, (address,), "address")
        key = item.key_for(address)
        exchange.state[self] = (key, self._storage.addresses.get_expiry(key))
        return None

    async def on_request(self, exchange: Exchange) -> None:
        """Take a request off again whose caller is known, however long it will run."""
        self._take_back(exchange)

    def on_forward(self, exchange: Exchange) -> Rejection | None:
        """Count a call that every member has accepted, or keep it."""
        message = exchange.message
        if not self._tools or not isinstance(message, Request) or message.method != "tools/call":
            return None
        for glob, pattern, item in self._tools:
            if pattern.fullmatch(message.target or ""):
                limiter, names = self._storage.tool_limiter, (self._server_name, glob)
                if not limiter.hit(item, *names):
                    return self._too_many(limiter, item, names, "tool")
                break
        return None

    async def on_finish(self, exchange: Exchange) -> None:
        """The same for one that was no single good message."""
        self._take_back(exchange)

    def _take_back(self, exchange: Exchange) -> None:
        if self._addresses is not None and exchange.principal is not None:
            hit = exchange.state.pop(self, None)
            if hit is not None:
                self._storage.addresses.take_back(*hit)

    def _too_many(
        self, limiter: "FixedWindowRateLimiter", item: "RateLimitItem", names: tuple[str, ...], kind: str
    ) -> Rejection:
        reset = limiter.get_window_stats(item, *names).reset_time
        wait = max(1, math.ceil((reset - self._storage.clock()) * 1000))
        seconds = -(-wait // 1000)
        data: dict[str, Any] = {
            "dimension": "requests",
            "limit": item.amount,
            "remaining": 0,
            "retryAfterMs": wait,
            "of": kind,
        }
        policy = f'"{kind}";q={item.amount};w={item.get_expiry()}'
        return Rejection(
            status=429,
            code=RATE_LIMITED,
            message=f"too many requests of this {kind}; try again in {seconds} s",
            reason="rate_limited",
            data=data,
            headers=(
                (b"retry-after", b"%d" % seconds),
                (b"ratelimit-policy", policy.encode()),
                (b"ratelimit", b'"%b";r=0;t=%d' % (kind.encode(), seconds)),
            ),
            rule=kind,
        )


def _asks_for_metadata(exchange: Exchange) -> bool:
    """Whether it asks where to get a token. One that came with it would be judged as any other."""
    if b"authorization" in exchange.headers or exchange.http_method not in _READING:
        return False
    return exchange.path.removeprefix(exchange.scope.get("root_path", "").rstrip("/")).startswith(_METADATA)


def _item(place: str, option: Any) -> "RateLimitItem":
    from limits import parse

    try:
        rate = Rate(option).rate
    except ConfigurationError as error:
        raise ConfigurationError(f"{place}: {error}") from None
    return parse(rate)
