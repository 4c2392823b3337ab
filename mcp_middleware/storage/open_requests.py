"""The open requests of one replica, whose number is limited for all replicas together: each has a place in the store.

A place is a member of a sorted set, with the moment at which it is taken for lost. So the replica says again and again
which of its requests are open; what dies with it is free a minute later.
"""

import asyncio
import os
import time
from collections.abc import Sequence
from functools import partial
from typing import Final, NamedTuple

from mcp_middleware.types import Clock

from .connection import RedisConnection, Script, Word
from .interface import StorageUnavailableError

__all__ = ["HELD", "OpenRequests", "new_place"]

HELD: Final = 60.0
"""Seconds for which a request is taken for open unless its replica says so again: what dies with it is free then."""
_SAID_AGAIN: Final = 20.0
_SAID_SOON: Final = 0.5
"""Seconds after which it is said again what the store could not be told, or may not have heard."""
_PLACE_BYTES: Final = 8
_HOLD: Final = Script("clock.lua", "open.lua", "hold.lua", replies=int)


def new_place() -> bytes:
    """A name that no other place has."""
    return os.urandom(_PLACE_BYTES).hex().encode()


class _Open(NamedTuple):
    """An open request that has a place."""

    key: bytes
    is_told: bool
    """Whether the store may know of it."""


class OpenRequests:
    """What the store is told of open requests, on ``connection``. ``prefix``: before every key. ``clock``: seconds, in
    place of the store's."""

    def __init__(self, connection: RedisConnection, prefix: bytes, clock: Clock | None) -> None:
        self._connection = connection
        self._prefix = prefix
        self._clock = clock
        self._open: dict[bytes, _Open] = {}
        """By the names of their places."""
        self._ended: dict[bytes, tuple[bytes, float]] = {}
        """Places that the store may keep for nobody: the key of each, and the moment at which it is free by itself."""
        self._is_behind = asyncio.Event()
        self._holding: asyncio.Task[None] | None = None

    def name_of(self, key: bytes) -> bytes:
        """What the store calls the open requests of ``key``."""
        return b"%b:open:{%b}" % (self._prefix, key.hex().encode())

    def add(self, place: bytes, key: bytes, *, is_told: bool) -> None:
        """A request of ``key`` has begun. ``is_told``: the store knows, or may know."""
        self._open[place] = _Open(key, is_told)
        self._keep_holding()
        if not is_told:
            self._is_behind.set()

    def remove(self, place: bytes) -> bool:
        """A request has ended; whether the store is to be told of that. True as well for one that is not known here."""
        opened = self._open.pop(place, None)
        return opened is None or opened.is_told

    def free_later(self, key: bytes, place: bytes) -> None:
        """The store could not be told that ``place`` is free, or may have given it after nobody waited any more."""
        self._ended[place] = (key, time.monotonic() + HELD)
        self._keep_holding()
        self._is_behind.set()

    def say_again(self) -> None:
        """The store does not know of all that are open."""
        self._is_behind.set()

    async def aclose(self) -> None:
        """Say nothing more."""
        self._open.clear()
        self._ended.clear()
        holding, self._holding = self._holding, None
        if holding is not None:
            holding.cancel()
            await asyncio.wait({holding})

    def _keep_holding(self) -> None:
        if self._holding is None:
            self._holding = asyncio.create_task(self._hold(), name="hold the places of open requests")

    async def _hold(self) -> None:
        """Say again and again which requests are open, and which have ended: also to a store that was away then."""
        while self._open or self._ended:
            try:
                async with asyncio.timeout(_SAID_AGAIN):
                    await self._is_behind.wait()
            except TimeoutError:
                pass
            else:  # what was asked and given up before is carried out by then, or never
                await asyncio.sleep(max(_SAID_SOON, self._connection.budget))
            self._is_behind.clear()
            now = time.monotonic()
            self._ended = {place: one for place, one in self._ended.items() if one[1] > now}
            places: dict[bytes, tuple[list[bytes], list[bytes]]] = {}
            for place, (key, _) in self._ended.items():
                places.setdefault(key, ([], []))[0].append(place)
            for place, opened in self._open.items():
                places.setdefault(opened.key, ([], []))[1].append(place)
            lost: set[RedisConnection] = set()
            for key, (ended, opened_places) in places.items():
                name = self.name_of(key)
                if (node := self._connection.node_of(name)) in lost:
                    continue
                try:
                    await self._connection.run(_HOLD, (name,), partial(self._held, ended, opened_places))
                except StorageUnavailableError:
                    lost.add(node)
                    self._is_behind.set()
                else:
                    for place in ended:
                        self._ended.pop(place, None)
        self._holding = None

    def _held(self, ended: Sequence[bytes], places: Sequence[bytes], node: RedisConnection) -> tuple[Word, ...]:
        """What is said of requests: those that have ended meanwhile are not open, else their places were taken anew."""
        still_open = [place for place in places if place in self._open]
        for place in still_open:
            self._open[place] = self._open[place]._replace(is_told=True)
        given, deadline = ("", node.deadline()) if self._clock is None else (self._clock(), 0.0)
        return (given, deadline, HELD, len(ended), *ended, *still_open)
