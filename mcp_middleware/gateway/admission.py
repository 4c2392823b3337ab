"""What one caller may have under way in this process: requests and streams, and bytes of large bodies.

It runs behind authentication and before anything of a body is read: whatever a caller sends takes a place from its
headers on. Calls and streams may take ``most_open`` of them. Beyond that is a reserve, so that a caller whose calls all
wait can still connect, answer what the servers ask of it, say that it lives, and cancel.
"""

from collections.abc import Hashable, MutableMapping
from typing import Any, ClassVar, Final

from mcp_middleware.errors import RATE_LIMITED, UNAVAILABLE
from mcp_middleware.exchange import Exchange, Receive
from mcp_middleware.member import ASGIApp, Bounds, Member
from mcp_middleware.message import Request
from mcp_middleware.responses import retry_later
from mcp_middleware.types import Rejection

__all__ = ["Admission", "UnderWay"]

LEAST_RESERVE: Final = 16
"""Places beyond ``most_open``; a quarter of that, where that is more."""
SMALL: Final = 64 * 1024
"""Bytes of a body that is not counted: a connection may hold as much of what nobody has asked for yet."""
SHARE: Final = 4
"""One caller gets one part in so many of the memory for bodies."""

_HANDSHAKES: Final = frozenset({"initialize", "server/discover", "ping"})
"""What a client needs to connect; a refusal would make it give up, or fall back to another era."""


class _Amounts:
    """How much of something each caller has, and all of them together."""

    __slots__ = ("_of", "total")

    def __init__(self) -> None:
        self._of: dict[Hashable, int] = {}
        self.total = 0

    def of(self, caller: Hashable) -> int:
        return self._of.get(caller, 0)

    def add(self, caller: Hashable, amount: int) -> None:
        """Count ``amount`` more, which is negative for what is given back."""
        self.total += amount
        now = self._of.get(caller, 0) + amount
        if now:
            self._of[caller] = now
        else:
            del self._of[caller]


class UnderWay:
    """What callers have under way, over all servers of one gateway."""

    __slots__ = ("bodies", "calls", "requests")

    def __init__(self) -> None:
        self.requests = _Amounts()
        self.calls = _Amounts()
        """Of the requests those that may take no place of the reserve: calls, and streams."""
        self.bodies = _Amounts()


class _Place:
    """What one request takes."""

    __slots__ = ("body", "call", "caller", "request")

    def __init__(self, caller: Hashable, request: int, body: int) -> None:
        self.caller = caller
        self.request = request
        self.body = body
        self.call = 0


class Admission(Member):
    """Gives every request of a caller its place in ``under_way``, where there is one. ``most_open`` is how many calls
    and streams one caller may have open, ``body_memory`` how many bytes all bodies of more than ``SMALL`` together."""

    stage: ClassVar[str] = "limiter"

    def __init__(
        self, app: ASGIApp, *, under_way: UnderWay, most_open: int, body_memory: int, bounds: Bounds | None = None
    ) -> None:
        super().__init__(app, bounds=bounds)
        self._under_way = under_way
        self._most = most_open
        self._most_requests = most_open + max(LEAST_RESERVE, most_open // 4)
        self._body_memory = body_memory

    async def on_headers(self, exchange: Exchange) -> Rejection | None:
        under_way, caller = self._under_way, exchange.caller.key
        if under_way.requests.of(caller) >= self._most_requests:
            return self._too_many(self._most_requests)
        size = self._announced(exchange)
        if size and not self._has_room(caller, size):
            text = "Too many bytes of large requests are under way; come back in a moment"
            return retry_later(503, UNAVAILABLE, text, "bodies_full", seconds=1.0)
        under_way.requests.add(caller, 1)
        if size:
            under_way.bodies.add(caller, size)
        place = exchange.state[self] = _Place(caller, 1, size)
        if size and b"transfer-encoding" in exchange.headers:
            exchange.receive = self._settling(place, exchange.receive)
        return None

    async def on_request(self, exchange: Exchange) -> Rejection | None:
        place = exchange.state.get(self)
        if place is None:  # a message of a batch, whose place the batch has
            place = exchange.state[self] = _Place(exchange.caller.key, 0, 0)
        message = exchange.message
        streams = message is None and exchange.http_method == "GET"
        if not streams and (not isinstance(message, Request) or message.method in _HANDSHAKES):
            return None
        calls = self._under_way.calls
        if calls.of(place.caller) >= self._most:
            return self._too_many(self._most)
        calls.add(place.caller, 1)
        place.call = 1
        return None

    async def on_finish(self, exchange: Exchange) -> None:
        place = exchange.state.pop(self, None)
        if place is not None:
            under_way, caller = self._under_way, place.caller
            if place.request:
                under_way.requests.add(caller, -1)
            if place.call:
                under_way.calls.add(caller, -1)
            if place.body:
                under_way.bodies.add(caller, -place.body)
                place.body = 0

    def _announced(self, exchange: Exchange) -> int:
        """Bytes of the body that is about to be read, as far as they count; of a chunked one as many as may come."""
        headers, most = exchange.headers, self.bounds.max_body_bytes
        if b"transfer-encoding" in headers:
            return most
        length = headers.get(b"content-length", b"0")
        size = int(length) if length.isdigit() and len(length) < 20 else 0
        return size if SMALL < size <= most else 0  # what is larger is refused before it is read

    def _has_room(self, caller: Hashable, size: int) -> bool:
        """Whether a body fits. One alone always does: a larger bound on one is the wish for those to pass."""
        bodies = self._under_way.bodies
        mine, share = bodies.of(caller), self._body_memory // SHARE
        if mine and mine + size > share:
            return False
        return not bodies.total or bodies.total + size <= self._body_memory

    def _settling(self, place: _Place, receive: Receive) -> Receive:
        """``receive``, by which a chunked body comes; once it has come, it counts with what it is."""
        size = 0

        async def count() -> MutableMapping[str, Any]:
            nonlocal size
            event = await receive()
            size += len(event.get("body", b""))
            if place.body and event["type"] == "http.request" and not event.get("more_body", False):
                held = size if size > SMALL else 0
                self._under_way.bodies.add(place.caller, held - place.body)
                place.body = held
            return event

        return count

    def _too_many(self, most: int) -> Rejection:
        return Rejection(
            429,
            RATE_LIMITED,
            f"There are {most} requests and streams of this caller open; wait for one to end",
            "too_many_open",
            data={"dimension": "open", "limit": most, "remaining": 0, "retryAfterMs": 1000},
            headers=((b"retry-after", b"1"),),
        )
