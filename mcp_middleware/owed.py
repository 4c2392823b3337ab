"""Calls whose answer may come on another stream than their own (2025-11-25, transports, "Resumability and
Redelivery"): a server may end a call's stream before it answers, and a client gets the rest with a GET that names the
last event it has. So a call that the limiter has charged, and the audit has begun to record, ends with that GET.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from typing import Any, Final, TypeAlias

from .background import Background
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
_ENDS: Final = 1.0
"""Seconds within which a server ends a stream whose client has left."""

_Key: TypeAlias = tuple[object, bytes | None, int | str | None]


class Owed:
    """The calls of one pipeline that are owed an answer, by caller, session and id. ``finish`` ends one: when its
    answer has come, when nobody waits for it any more, or when others have taken its place."""

    def __init__(self, finish: Callable[[Exchange], Coroutine[Any, Any, None]]) -> None:
        self._finish = finish
        self._calls: dict[_Key, dict[Exchange, asyncio.TimerHandle]] = {}
        """Whose own stream has ended. Of one id several where a client uses it again, which it must not; the oldest is
        answered first."""
        self._running: dict[_Key, dict[Exchange, Callable[[], None]]] = {}
        """Whose own stream goes on, with what is to be called when the answer comes on another all the same."""
        self._resumed: dict[Exchange, asyncio.Event] = {}
        """Of those the ones that are to end, since their clients have left and resume them; and that they have."""
        self._count = 0
        self._bytes = 0
        self._events: dict[int, None] = {}
        """The last that have answered one, on whatever stream; of one size, whatever an id is."""
        self._finishing = Background()

    def __len__(self) -> int:
        return self._count + len(self._running)

    def begin(self, exchange: Exchange, answered: Callable[[], None]) -> None:
        """The stream of ``exchange`` can be resumed from now on."""
        self._running.setdefault(_key(exchange, exchange.request_id), {})[exchange] = answered

    async def resume(self, stream: Exchange) -> None:
        """``stream`` asks for the rest of a call's: whose client has left the server is told so, else it would go on
        sending there, and bring nothing here."""
        session = _key(stream, None)[:2]
        ends = []
        for key in [key for key in self._running if key[:2] == session]:
            for exchange in self._running[key]:
                if exchange.tell is not None:
                    exchange.resumed = True
                    exchange.tell()
                    ends.append(self._resumed.setdefault(exchange, asyncio.Event()).wait())
        with suppress(TimeoutError):
            async with asyncio.timeout(_ENDS):
                await asyncio.gather(*ends)

    def leave(self, exchange: Exchange, event: bytes) -> None:
        """Its own stream has brought the answer, with ``event``; or has ended, with none."""
        key = _key(exchange, exchange.request_id)
        self._note(key, event)
        if exchange in self._resumed:
            self._resumed.pop(exchange).set()
        running = self._running.get(key, {})
        if running.pop(exchange, None) is not None and not running:
            del self._running[key]

    def add(self, exchange: Exchange) -> None:
        """Wait for the answer to ``exchange``."""
        key = _key(exchange, exchange.request_id)
        timer = asyncio.get_running_loop().call_later(_KEPT, self._end, key, exchange)
        self._calls.setdefault(key, {})[exchange] = timer
        self._count += 1
        self._bytes += exchange.request_bytes
        while self._count > _MOST or self._bytes > _MOST_BYTES:
            caller = self._greediest()
            key = next(key for key in self._calls if key[0] == caller)
            self._end(key, next(iter(self._calls[key])))

    async def answer(self, stream: Exchange, message: ServerMessage, event: bytes) -> None:
        """Finish the call that ``message`` answers on the GET stream ``stream``, if it is one of these. ``event`` is
        the id by which it is known when it is sent again; then it answers none."""
        key = _key(stream, message.id)
        is_waiting = key in self._calls
        if not (is_waiting or key in self._running) or hash((key, event)) in self._events:
            return
        self._note(key, event)
        exchange = next(iter(self._calls[key] if is_waiting else self._running[key]))
        exchange.answer, exchange.failed, exchange.late = message, None, True
        exchange.response_bytes += len(message.raw)
        if is_waiting:
            self._take(key, exchange)
            await asyncio.shield(self._begin_to_finish(exchange))  # also for a client that leaves now
        else:
            answered = self._running[key][exchange]
            self.leave(exchange, b"")
            answered()

    def end_session(self, exchange: Exchange) -> None:
        """Finish the calls of the session that ``exchange`` has ended."""
        session = _key(exchange, None)[:2]
        self._end_all([key for key in self._calls if key[:2] == session])

    async def aclose(self) -> None:
        """Finish all: nobody waits any more."""
        self._end_all(list(self._calls))
        await self._finishing.finish()

    def _note(self, key: _Key, event: bytes) -> None:
        if event:
            self._events[hash((key, event))] = None
            if len(self._events) > _MOST_EVENTS:
                del self._events[next(iter(self._events))]

    def _greediest(self) -> object:
        """The caller whose calls take the most, so that nobody's many end another's few."""
        taken: dict[object, float] = {}
        for (caller, _, _), calls in self._calls.items():
            for exchange in calls:
                taken[caller] = taken.get(caller, 0.0) + 1 / _MOST + exchange.request_bytes / _MOST_BYTES
        return max(taken, key=taken.__getitem__)

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
        return self._finishing.start(self._finish(exchange), "finish a call that was owed its answer")


def _key(exchange: Exchange, request_id: int | str | None) -> _Key:
    return exchange.caller.key, exchange.headers.get(SESSION_HEADER), request_id
