"""Calls whose stream has ended without their answer, which may come yet (2025-11-25, transports, "Resumability and
Redelivery"): a server may end a call's stream before it answers, and a client gets the rest with a GET that names the
last event it has. So a call that the limiter has charged, and the audit has begun to record, ends with that GET.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

from .exchange import Exchange
from .revision import SESSION_HEADER
from .server_message import ServerMessage

__all__ = ["Owed"]

_KEPT: Final = 3600.0
"""Seconds for which an answer may come: as long as what was reserved for it can be settled, by default."""
_MOST: Final = 1000
_MOST_BYTES: Final = 64 * 1024 * 1024
"""Bytes of all these calls' bodies."""

_Key: TypeAlias = tuple[object, bytes | None, int | str | None]


class Owed:
    """The calls of one pipeline that are owed an answer, by caller, session and id. ``finish`` ends one: when its
    answer has come, when nobody waits for it any more, or when others have taken its place."""

    def __init__(self, finish: Callable[[Exchange], Awaitable[None]]) -> None:
        self._finish = finish
        self._calls: dict[_Key, tuple[Exchange, asyncio.TimerHandle]] = {}
        self._bytes = 0
        self._finishing: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._calls)

    def add(self, exchange: Exchange) -> None:
        """Wait for the answer to ``exchange``."""
        key = _key(exchange, exchange.request_id)
        self._end(key)  # a client that uses an id twice cannot tell the answers apart either
        timer = asyncio.get_running_loop().call_later(_KEPT, self._end, key)
        self._calls[key] = exchange, timer
        self._bytes += exchange.request_bytes
        while len(self._calls) > _MOST or self._bytes > _MOST_BYTES:
            self._end(next(iter(self._calls)))

    async def answer(self, stream: Exchange, message: ServerMessage) -> None:
        """Finish the call that ``message`` answers on the GET stream ``stream``, if it is one of these: an event that
        is sent again answers none."""
        exchange = self._take(_key(stream, message.id))
        if exchange is not None:
            exchange.answer, exchange.failed, exchange.late = message, None, True
            exchange.response_bytes += len(message.raw)
            await asyncio.shield(self._begin_to_finish(exchange))  # also for a client that leaves now

    def end_session(self, exchange: Exchange) -> None:
        """Finish the calls of the session that ``exchange`` has ended."""
        session = _key(exchange, None)[:2]
        for key in [key for key in self._calls if key[:2] == session]:
            self._end(key)

    async def aclose(self) -> None:
        """Finish all: nobody waits any more."""
        for key in list(self._calls):
            self._end(key)
        if self._finishing:
            await asyncio.wait(self._finishing)

    def _take(self, key: _Key) -> Exchange | None:
        found = self._calls.pop(key, None)
        if found is None:
            return None
        exchange, timer = found
        timer.cancel()
        self._bytes -= exchange.request_bytes
        return exchange

    def _end(self, key: _Key) -> None:
        exchange = self._take(key)
        if exchange is not None:
            self._begin_to_finish(exchange)

    def _begin_to_finish(self, exchange: Exchange) -> asyncio.Task[None]:
        task = asyncio.ensure_future(self._finish(exchange))
        self._finishing.add(task)
        task.add_done_callback(self._finishing.discard)
        return task


def _key(exchange: Exchange, request_id: int | str | None) -> _Key:
    return exchange.caller.key, exchange.headers.get(SESSION_HEADER), request_id
