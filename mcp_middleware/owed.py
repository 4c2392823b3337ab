"""Calls whose stream has ended without their answer, which may come yet (2025-11-25, transports, "Resumability and
Redelivery"): a server may end a call's stream before it answers, and a client gets the rest with a GET that names the
last event it has. So a call that the limiter has charged, and the audit has begun to record, ends with that GET.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
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
_MOST_EVENTS: Final = 10_000

_Key: TypeAlias = tuple[object, bytes | None, int | str | None]


class Owed:
    """The calls of one pipeline that are owed an answer, by caller, session and id. ``finish`` ends one: when its
    answer has come, when nobody waits for it any more, or when others have taken its place."""

    def __init__(self, finish: Callable[[Exchange], Awaitable[None]]) -> None:
        self._finish = finish
        self._calls: dict[_Key, dict[Exchange, asyncio.TimerHandle]] = {}
        """Of one id several where a client uses it again, which it must not; the oldest is answered first."""
        self._count = 0
        self._bytes = 0
        self._events: dict[tuple[_Key, bytes], None] = {}
        """The last that have answered one."""
        self._finishing: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return self._count

    def add(self, exchange: Exchange) -> None:
        """Wait for the answer to ``exchange``."""
        key = _key(exchange, exchange.request_id)
        timer = asyncio.get_running_loop().call_later(_KEPT, self._end, key, exchange)
        self._calls.setdefault(key, {})[exchange] = timer
        self._count += 1
        self._bytes += exchange.request_bytes
        while self._count > _MOST or self._bytes > _MOST_BYTES:
            self._end(*self._oldest(next(iter(self._calls))))

    async def answer(self, stream: Exchange, message: ServerMessage, event: bytes) -> None:
        """Finish the call that ``message`` answers on the GET stream ``stream``, if it is one of these. ``event`` is
        the id by which it is known when it is sent again; then it answers none."""
        key = _key(stream, message.id)
        if key not in self._calls or (key, event) in self._events:
            return
        if event:
            self._events[key, event] = None
            if len(self._events) > _MOST_EVENTS:
                del self._events[next(iter(self._events))]
        _, exchange = self._oldest(key)
        self._take(key, exchange)
        exchange.answer, exchange.failed, exchange.late = message, None, True
        exchange.response_bytes += len(message.raw)
        await asyncio.shield(self._begin_to_finish(exchange))  # also for a client that leaves now

    def end_session(self, exchange: Exchange) -> None:
        """Finish the calls of the session that ``exchange`` has ended."""
        session = _key(exchange, None)[:2]
        self._end_all([key for key in self._calls if key[:2] == session])

    async def aclose(self) -> None:
        """Finish all: nobody waits any more."""
        self._end_all(list(self._calls))
        if self._finishing:
            await asyncio.wait(self._finishing)

    def _oldest(self, key: _Key) -> tuple[_Key, Exchange]:
        return key, next(iter(self._calls[key]))

    def _end_all(self, keys: Iterable[_Key]) -> None:
        for key in keys:
            for exchange in list(self._calls[key]):
                self._end(key, exchange)

    def _end(self, key: _Key, exchange: Exchange) -> None:
        self._take(key, exchange)
        self._begin_to_finish(exchange)

    def _take(self, key: _Key, exchange: Exchange) -> None:
        calls = self._calls[key]
        calls.pop(exchange).cancel()
        if not calls:
            del self._calls[key]
        self._count -= 1
        self._bytes -= exchange.request_bytes

    def _begin_to_finish(self, exchange: Exchange) -> asyncio.Task[None]:
        task = asyncio.ensure_future(self._finish(exchange))
        self._finishing.add(task)
        task.add_done_callback(self._finishing.discard)
        return task


def _key(exchange: Exchange, request_id: int | str | None) -> _Key:
    return exchange.caller.key, exchange.headers.get(SESSION_HEADER), request_id
