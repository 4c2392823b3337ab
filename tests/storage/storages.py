"""Storages on a Redis, and what tests of them ask again and again."""

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec

from mcp_middleware.storage import Limit, Limits, LimitStorage, RedisConnection, RedisStorage, Reservation

from .redis_server import RedisServer

SLOW = Limits(Limit(10, 0.001), Limit(1000, 0.001))
"""So slow that nothing flows back during a test."""
IN_PARTS = Limits(SLOW.requests, SLOW.tokens, concurrency=5, parts=(("tool:a", SLOW), ("server:\u00e9", SLOW)))
TWO_AT_ONCE = Limits(None, None, concurrency=2)
KEY = b"agent"
OPEN = b"mcp_middleware:open:{" + KEY.hex().encode() + b"}"
NAME = b"mcp_middleware:limit:{" + KEY.hex().encode() + b"}"


class Storages:
    """Storages on one server, each on a connection of its own; closed afterwards."""

    def __init__(self, server: RedisServer) -> None:
        self.server = server
        self.made: list[RedisStorage] = []

    def make(self, *, budget: float = 10.0, **options: Any) -> RedisStorage:
        """A budget that a busy machine does not exceed, unless the test is about the budget."""
        storage = RedisStorage(RedisConnection(self.server.url, budget=budget), **options)
        self.made.append(storage)
        return storage

    async def aclose(self) -> None:
        for storage in self.made:
            await storage.aclose()


async def reserve(storage: LimitStorage, tokens: float = 0, limits: Limits = SLOW, key: bytes = KEY) -> Reservation:
    answer = await storage.reserve(key, limits, tokens)
    assert isinstance(answer, Reservation), answer
    return answer


def kept_requests(client: Any) -> float:
    """What is left of them as Redis has it."""
    requests: float = msgspec.msgpack.decode(b"\x9a" + client.hget(NAME, ""))[0]
    return requests


async def admitted(storage: LimitStorage, calls: int, limits: Limits = SLOW, tokens: float = 0) -> int:
    answers = [await storage.reserve(KEY, limits, tokens) for _ in range(calls)]
    return sum(isinstance(answer, Reservation) for answer in answers)


async def until(holds: Callable[[], Any]) -> None:
    """Wait for what no event tells: another process, or the end of a connection."""
    while not holds():  # noqa: ASYNC110
        await asyncio.sleep(0.005)
