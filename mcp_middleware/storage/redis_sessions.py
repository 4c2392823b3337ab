"""Sessions that several replicas share, in one Redis (6.2 or newer) or Valkey."""

import asyncio
import json
import os
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final

from mcp_middleware.options import whole_number

from .connection import RedisConnection, Script, Word, connection_of, prefix_of
from .interface import StorageUnavailableError
from .sessions import Agent, Place, SessionTable, Use

__all__ = ["RedisSessions"]

_TAKE_PLACE: Final = Script("places.lua", "take_place.lua")
_KEEP_PLACE: Final = Script("places.lua", "keep_place.lua", replies=int)
_LEAVE_PLACE: Final = Script("places.lua", "leave_place.lua", replies=int)
_OPENING: Final = 120.0
"""Seconds a place is kept for an ``initialize`` under way. Afterwards it is free; if the session was opened all the
same, it counts from its next request on."""
_TOLD_AGAIN: Final = 0.25
"""The part of the idle time after which the store is told again of a session in use; its place is kept longer by it."""
_PLACE_NAME_BYTES: Final = 8


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
            arguments = (place.name, per_agent, _OPENING)
            taken, wait = await self._connection.run(_TAKE_PLACE, self._keys(agent), arguments)
            if not int(taken):
                return max(0.0, float(wait))
        self.table.reserve(agent, now, idle=idle, per_agent=None)
        return place

    async def release(self, place: Place) -> None:
        """See ``SessionStore.release``."""
        self.table.release(place.agent)
        await self._try(_LEAVE_PLACE, place.agent, (place.name, 0))

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
        await self._try(_LEAVE_PLACE, use.counted, (use.name.encode(), seconds))

    async def forget(self, use: Use) -> None:
        """See ``SessionStore.forget``."""
        await self._try(_LEAVE_PLACE, use.counted, (use.name.encode(), 0))

    async def aclose(self) -> None:
        """Disconnect; a ``RedisConnection`` that others share connects anew when they use it."""
        await self._connection.aclose()  # first: requests that wait for it end now, and may begin to keep streams
        keeping = self._keeping
        if keeping is not None:
            keeping.cancel()
            await asyncio.wait({keeping})
            self._keeping = None

    async def _keep(self, use: Use, idle: float, now: float, *, place: bytes = b"", known: bool = False) -> bool | None:
        """Whether the session has a place and was not ended; None where nobody can tell."""
        use.keep_at = now + idle * _TOLD_AGAIN
        if self._keeping is None:
            self._keeping = asyncio.create_task(self._keep_streams(idle), name="keep sessions with open streams")
        seconds = max(0.0, min(idle * (1 + _TOLD_AGAIN), use.expires - now))
        arguments = (use.name.encode(), place, seconds, b"1" if known else b"")
        kept = await self._try(_KEEP_PLACE, use.counted, arguments)
        return None if kept is None else bool(int(kept))

    async def _keep_streams(self, idle: float) -> None:
        """A session with an open stream is in use, though no request of it begins or ends."""
        while True:
            await asyncio.sleep(idle * _TOLD_AGAIN)
            for use in self.table.open_requests():
                seconds = idle * (1 + _TOLD_AGAIN)
                if await self._try(_KEEP_PLACE, use.counted, (use.name.encode(), b"", seconds, b"")) is None:
                    break

    async def _try(self, script: Script, agent: Agent, arguments: tuple[Word, ...]) -> Any:
        """The reply, or None where the store is away, which its connection has logged."""
        try:
            return await self._connection.run(script, self._keys(agent), arguments)
        except StorageUnavailableError:
            return None

    def _find_keys(self, agent: Agent) -> tuple[bytes, bytes]:
        """The agent's places, and its ended sessions: of one size whatever a token says, and together in a cluster."""
        tag = blake2b(json.dumps(agent).encode(), digest_size=16).hexdigest().encode()
        return (b"%b:places:{%b}" % (self._prefix, tag), b"%b:ended:{%b}" % (self._prefix, tag))
