"""Buckets and sessions that several replicas share, in one Redis (6.2 or newer) or Valkey.

Each step is one Lua script on the keys of one agent, so it is atomic, takes one round trip, and works in a cluster: the
part of a key in braces decides where it lives. Time is the store's, whatever the replicas' clocks say.
"""

import asyncio
import json
import math
import os
import time
from collections import OrderedDict
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final

from mcp_middleware.errors import ConfigurationError
from mcp_middleware.options import seconds, whole_number
from mcp_middleware.types import Clock

from .bucket import Levels, Limit, Limits, Shortage, full, refill, settle, shortage, take, takeable
from .connection import RedisConnection, Script
from .interface import Reservation, StorageUnavailableError, check_tokens
from .sessions import Agent, Place, SessionTable, Use

__all__ = ["RedisSessions", "RedisStorage"]

_RESERVE: Final = Script("bucket.lua", "reserve.lua")
_SETTLE: Final = Script("bucket.lua", "settle.lua")
_LATE: Final = -1

_TAKE_PLACE: Final = Script("places.lua", "take_place.lua")
_KEEP_PLACE: Final = Script("places.lua", "keep_place.lua")
_LEAVE_PLACE: Final = Script("places.lua", "leave_place.lua")
_OPENING: Final = 120.0
"""Seconds a place is kept for an ``initialize`` under way. Afterwards it is free; if the session was opened all the
same, it counts from its next request on."""
_TOLD_AGAIN: Final = 0.25
"""The part of the idle time after which the store is told again of a session in use; its place is kept longer by it."""
_PLACE_NAME_BYTES: Final = 8


class _LocalReservation(Reservation):
    """Taken from this replica's share."""


class _Known:
    """What this replica knows of one principal's buckets."""

    __slots__ = ("levels", "owed_requests", "owed_tokens", "share")

    def __init__(self) -> None:
        self.levels: Levels | None = None
        """What the store last said of them, at a moment of this replica's clock."""
        self.share: Levels | None = None
        """This replica's share, while the store is away."""
        self.owed_requests = 0.0
        self.owed_tokens = 0.0
        """What was let through, or settled, while the store was away; told to it with the next reservation."""


class RedisStorage:
    """A ``LimitStorage`` shared by replicas: the same figures as ``MemoryStorage`` gives, for all of them together.

    ``connection``: a ``RedisConnection``, or the URL of one. ``replicas``: how many processes share it. While the store
    is away, each lets through its share, one ``replicas``-th of the limits, starting from what the store last said was
    left. What it let through is told to the store when it is back, so nobody gets a burst twice, and a store that lost
    its data (restarted, flushed, or evicting) starts from what the replicas remember. ``prefix``: before every key.
    ``reservation_lifetime``: seconds within which a request must be settled; later its estimate stands. ``max_keys``:
    principals to remember; of those beyond it a share is full when the store goes away. ``clock``: seconds, in place of
    the store's; for tests.

    Raises ConfigurationError for a wrong option.
    """

    def __init__(
        self,
        connection: RedisConnection | str,
        *,
        replicas: int = 1,
        prefix: str = "mcp_middleware",
        reservation_lifetime: float = 3600.0,
        max_keys: int = 100_000,
        clock: Clock | None = None,
    ) -> None:
        self._connection = connection_of(connection)
        self._prefix = prefix_of("RedisStorage", prefix)
        self._replicas = whole_number("RedisStorage: replicas", replicas)
        self._lifetime = seconds("RedisStorage: reservation_lifetime", reservation_lifetime)
        self._max_keys = whole_number("RedisStorage: max_keys", max_keys)
        self._clock = clock
        self._now = time.monotonic if clock is None else clock
        self._known: OrderedDict[bytes, _Known] = OrderedDict()  # longest unused first
        self._share = lru_cache(1024)(self._find_share)

    async def reserve(self, key: bytes, limits: Limits, tokens: float) -> Reservation | Shortage:
        """See ``LimitStorage.reserve``."""
        check_tokens(tokens)
        known = self._known_of(key)
        cost = takeable(limits, tokens)
        owed_requests, owed_tokens = known.owed_requests, known.owed_tokens
        known.owed_requests = known.owed_tokens = 0.0  # told by this call alone, however many run
        name, start, sent_at = self._name(key), self._start(known, limits), time.monotonic()
        try:
            reply = await self._connection.run(
                _RESERVE,
                (name,),
                lambda node: (
                    _figures(limits),
                    b"%r" % cost,
                    self._given_clock(),
                    b"%r" % (node.deadline() if self._clock is None else 0.0),
                    b"%r" % owed_requests,
                    b"%r" % owed_tokens,
                    *start,
                ),
            )
        except BaseException as error:
            known.owed_requests += owed_requests
            known.owed_tokens += owed_tokens
            if isinstance(error, StorageUnavailableError):
                return self._reserve_locally(known, key, limits, tokens)
            raise
        outcome = int(reply[0])
        requests, left, at, now = map(float, reply[1:])
        if self._clock is None:
            self._connection.node_of(name).learn_time(now, sent_at)
        if outcome == _LATE:
            known.owed_requests += owed_requests
            known.owed_tokens += owed_tokens
            return self._reserve_locally(known, key, limits, tokens)
        # As the store has them now; nothing that was taken here meanwhile is missing, for it was taken there.
        known.levels = refill((requests, left, self._now() - (now - at)), limits, self._now())
        known.share = None
        if outcome:
            return Reservation(key, limits, cost, requests, left, now + self._lifetime)
        return shortage((requests, left, at), limits, tokens, now)

    async def settle(self, reservation: Reservation, tokens: float) -> None:
        """See ``LimitStorage.settle``."""
        check_tokens(tokens)
        if reservation.expires_at == -math.inf:
            return
        expires_at, reservation.expires_at = reservation.expires_at, -math.inf
        key, limits, taken = reservation.key, reservation.limits, reservation.tokens
        known = self._known_of(key)
        if isinstance(reservation, _LocalReservation):
            now = self._now()
            if now < expires_at:
                if known.share is not None:
                    known.share = settle(known.share, self._share(limits), taken, tokens, now)
                known.owed_tokens += tokens - taken
            return
        try:
            reply = await self._connection.run(
                _SETTLE,
                (self._name(key),),
                (_figures(limits), b"%r" % taken, b"%r" % tokens, b"%r" % expires_at, self._given_clock()),
            )
        except StorageUnavailableError as error:
            if not error.sent:  # what may have been counted is not told again
                known.owed_tokens += tokens - taken
            return
        if int(reply[0]) and known.levels is not None:
            known.levels = (float(reply[1]), float(reply[2]), self._now())

    async def aclose(self) -> None:
        """Disconnect; a ``RedisConnection`` that others share connects anew when they use it."""
        await self._connection.aclose()

    def _name(self, key: bytes) -> bytes:
        return b"%b:limit:{%b}" % (self._prefix, key.hex().encode())

    def _given_clock(self) -> bytes:
        return b"" if self._clock is None else b"%r" % self._clock()

    def _start(self, known: _Known, limits: Limits) -> tuple[bytes, bytes]:
        """The levels to start from should the store have lost the buckets."""
        if known.levels is None:
            return (b"", b"")
        requests, tokens, _ = refill(known.levels, limits, self._now())
        return (b"%r" % requests, b"%r" % tokens)

    def _known_of(self, key: bytes) -> _Known:
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = _Known()
            if len(self._known) > self._max_keys:
                self._known.popitem(last=False)
        else:
            self._known.move_to_end(key)
        return known

    def _reserve_locally(self, known: _Known, key: bytes, limits: Limits, tokens: float) -> Reservation | Shortage:
        now = self._now()
        limits_here = self._share(limits)
        share = known.share
        if share is None:
            share = full(limits_here, now)
            if known.levels is not None:
                requests, left, _ = refill(known.levels, limits, now)
                share = refill((requests / self._replicas, left / self._replicas, now), limits_here, now)
        taken = take(share, limits_here, tokens, now)
        if isinstance(taken, Shortage):
            known.share = share
            return taken
        known.share = taken
        cost = takeable(limits_here, tokens)
        known.owed_requests += 1
        known.owed_tokens += cost
        return _LocalReservation(key, limits, cost, taken[0], taken[1], now + self._lifetime)

    def _find_share(self, limits: Limits) -> Limits:
        """One replica's part of the limits; of a small one a whole unit is left."""

        def part(limit: Limit | None) -> Limit | None:
            if limit is None:
                return None
            return Limit(max(1.0, limit.capacity / self._replicas), max(1e-9, limit.rate / self._replicas))

        return Limits(part(limits.requests), part(limits.tokens))


class RedisSessions:
    """A ``SessionStore`` shared by replicas: the places of each agent, and the sessions that were ended.

    ``connection``: a ``RedisConnection``, or the URL of one. ``prefix``: before every key. ``max_sessions``: the most
    sessions this process remembers itself.

    While the store is away sessions go on, by their sealed ids and what this process remembers; one that was ended
    elsewhere is then left to its server. None can be opened where there is a cap.
    """

    def __init__(
        self,
        connection: RedisConnection | str,
        *,
        prefix: str = "mcp_middleware",
        max_sessions: int = 100_000,
    ) -> None:
        self.table = SessionTable(whole_number("RedisSessions: max_sessions", max_sessions))
        self._connection = connection_of(connection)
        self._prefix = prefix_of("RedisSessions", prefix)
        self._keys = lru_cache(4096)(self._find_keys)
        self._keeping: asyncio.Task[None] | None = None

    async def reserve(self, agent: Agent, *, per_agent: int | None, idle: float, now: float) -> Place | float:
        """See ``SessionStore.reserve``."""
        place = Place(agent, b"opening-" + os.urandom(_PLACE_NAME_BYTES).hex().encode())
        if per_agent is not None:
            arguments = (place.name, b"%d" % per_agent, b"%r" % _OPENING)
            taken, wait = await self._connection.run(_TAKE_PLACE, self._keys(agent), arguments)
            if not int(taken):
                return max(0.0, float(wait))
        self.table.reserve(agent, now, idle=idle, per_agent=None)
        return place

    async def release(self, place: Place) -> None:
        """See ``SessionStore.release``."""
        self.table.release(place.agent)
        await self._try(_LEAVE_PLACE, place.agent, (place.name, b"0"))

    async def opened(self, place: Place, use: Use, *, idle: float, now: float) -> None:
        """See ``SessionStore.opened``."""
        await self._keep(use, idle, now, place=place.name)

    async def is_over(self, use: Use, *, idle: float, now: float, known: bool) -> bool:
        """See ``SessionStore.is_over``."""
        is_kept = await self._keep(use, idle, now, known=known)
        return known if is_kept is None else not is_kept

    async def keep(self, use: Use, *, idle: float, now: float) -> None:
        """See ``SessionStore.keep``."""
        await self._keep(use, idle, now)

    async def end(self, use: Use, *, idle: float, now: float) -> None:
        """See ``SessionStore.end``. Remembered as long as the session could have been idle, no longer: then its server
        has let go of it as well."""
        seconds = max(0.0, min(idle, use.expires - now))
        await self._try(_LEAVE_PLACE, use.counted, (use.name.encode(), b"%r" % seconds))

    async def forget(self, use: Use) -> None:
        """See ``SessionStore.forget``."""
        await self._try(_LEAVE_PLACE, use.counted, (use.name.encode(), b"0"))

    async def aclose(self) -> None:
        """Disconnect; a ``RedisConnection`` that others share connects anew when they use it."""
        keeping, self._keeping = self._keeping, None
        if keeping is not None:
            keeping.cancel()
            await asyncio.wait({keeping})
        await self._connection.aclose()

    async def _keep(self, use: Use, idle: float, now: float, *, place: bytes = b"", known: bool = False) -> bool | None:
        """Whether the session has a place and was not ended; None where nobody can tell."""
        use.keep_at = now + idle * _TOLD_AGAIN
        if self._keeping is None:
            self._keeping = asyncio.create_task(self._keep_streams(idle), name="keep sessions with open streams")
        seconds = max(0.0, min(idle * (1 + _TOLD_AGAIN), use.expires - now))
        arguments = (use.name.encode(), place, b"%r" % seconds, b"1" if known else b"")
        kept = await self._try(_KEEP_PLACE, use.counted, arguments)
        return None if kept is None else bool(int(kept))

    async def _keep_streams(self, idle: float) -> None:
        """A session with an open stream is in use, though no request of it begins or ends."""
        while True:
            await asyncio.sleep(idle * _TOLD_AGAIN)
            for use in self.table.open_requests():
                seconds = b"%r" % (idle * (1 + _TOLD_AGAIN))
                if await self._try(_KEEP_PLACE, use.counted, (use.name.encode(), b"", seconds, b"")) is None:
                    break

    async def _try(self, script: Script, agent: Agent, arguments: tuple[bytes, ...]) -> Any:
        """The reply, or None where the store is away, which its connection has logged."""
        try:
            return await self._connection.run(script, self._keys(agent), arguments)
        except StorageUnavailableError:
            return None

    def _find_keys(self, agent: Agent) -> tuple[bytes, bytes]:
        """The agent's places, and its ended sessions: of one size whatever a token says, and together in a cluster."""
        tag = blake2b(json.dumps(agent).encode(), digest_size=16).hexdigest().encode()
        return (b"%b:places:{%b}" % (self._prefix, tag), b"%b:ended:{%b}" % (self._prefix, tag))


@lru_cache(1024)
def _figures(limits: Limits) -> bytes:
    """The limits as the scripts read them."""
    pairs = (
        (0.0, 0.0) if limit is None else (limit.capacity, limit.rate) for limit in (limits.requests, limits.tokens)
    )
    return b" ".join(b"%r" % figure for pair in pairs for figure in pair)


def connection_of(connection: Any) -> RedisConnection:
    """A connection, or one for a URL."""
    return connection if isinstance(connection, RedisConnection) else RedisConnection(connection)


def prefix_of(name: str, prefix: Any) -> bytes:
    """What stands before every key; braces in it would decide where keys live in a cluster."""
    if not isinstance(prefix, str) or not prefix or not all("!" <= char <= "~" and char not in "{}" for char in prefix):
        raise ConfigurationError(
            f"{name}: prefix is {prefix!r}; it must be visible ASCII characters, without spaces and braces"
        )
    return prefix.encode()
