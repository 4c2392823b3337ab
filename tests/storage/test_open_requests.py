"""Open requests of one agent, whose number is limited for all replicas together."""

import asyncio
from typing import Any

import pytest

from mcp_middleware.storage import (
    Limits,
    Reservation,
    Shortage,
    StorageUnavailableError,
    open_requests,
)
from mcp_middleware.storage import redis as redis_storage
from mcp_middleware.testing import FakeClock

from .storages import (
    KEY,
    OPEN,
    SLOW,
    TWO_AT_ONCE,
    Storages,
    kept_requests,
    reserve,
    until,
)


async def test_places_of_a_replica_that_died_are_free_after_a_minute(storages: Storages) -> None:
    clock = FakeClock()
    dead, alive = (storages.make(clock=clock) for _ in range(2))
    for _ in range(2):
        await reserve(dead, limits=TWO_AT_ONCE)
    assert isinstance(await alive.reserve(KEY, TWO_AT_ONCE, 0), Shortage)
    clock.advance(59)
    assert isinstance(await alive.reserve(KEY, TWO_AT_ONCE, 0), Shortage)
    clock.advance(2)
    await reserve(alive, limits=TWO_AT_ONCE)


async def test_places_of_open_requests_are_kept_as_long_as_they_are_open(
    storages: Storages, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = FakeClock()
    monkeypatch.setattr(open_requests, "_SAID_AGAIN", 0.001)
    one, other = (storages.make(clock=clock) for _ in range(2))
    held = [await reserve(one, limits=TWO_AT_ONCE) for _ in range(2)]
    with storages.server.client() as client:
        for _ in range(3):
            clock.advance(50)
            await until(lambda: client.zcount(OPEN, clock() + 60, clock() + 60) == 2)
    assert isinstance(await other.reserve(KEY, TWO_AT_ONCE, 0), Shortage)
    await one.settle(held[0], None)
    await reserve(other, limits=TWO_AT_ONCE)


async def test_a_request_that_ends_while_others_are_said_to_be_open_keeps_no_place(
    storages: Storages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_requests, "_SAID_AGAIN", 0.001)
    storage = storages.make()
    run, said = storage._connection.run, asyncio.Event()
    first, second = [await reserve(storage, limits=TWO_AT_ONCE, key=key) for key in (b"first", KEY)]

    async def slow(script: Any, keys: Any, *rest: Any) -> Any:
        if script is open_requests._HOLD and first.key.hex().encode() in keys[0]:
            await storage.settle(second, None)
        elif script is open_requests._HOLD:
            said.set()
        return await run(script, keys, *rest)

    monkeypatch.setattr(storage._connection, "run", slow)
    await said.wait()
    await storage.settle(first, None)
    with storages.server.client() as client:
        assert client.zcard(OPEN) == 0


async def test_no_place_is_lost_by_short_hiccups(own: Storages, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither one whose end could not be told, nor one that was given after its caller had given up."""
    monkeypatch.setattr(open_requests, "_SAID_SOON", 0.01)
    storage = own.make(budget=0.1)
    eight = Limits(None, None, concurrency=8)
    with own.server.client() as client:
        for _ in range(3):
            assert await storage._connection.connect()
            held = [await reserve(storage, limits=eight) for _ in range(4)]
            own.server.pause()
            asked = [asyncio.create_task(storage.reserve(KEY, eight, 0)) for _ in range(2)]
            await storage.settle(held.pop(), None)
            held += [one for one in await asyncio.gather(*asked) if isinstance(one, Reservation)]
            for one in held:
                await storage.settle(one, None)
            own.server.resume()
            await until(lambda: client.zcard(OPEN) == 0)


async def test_a_place_that_was_given_and_not_heard_of_is_free_again(
    storages: Storages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_requests, "_SAID_SOON", 0.01)
    storage = storages.make(budget=0.1, replicas=2)
    four = Limits(None, None, concurrency=4)
    held = [await reserve(storage, limits=four)]
    run = storage._connection.run

    async def unheard(script: Any, *rest: Any) -> Any:
        reply = await run(script, *rest)
        if script in (redis_storage._RESERVE, redis_storage._SETTLE):
            raise StorageUnavailableError("the link broke", sent=True)
        return reply

    with storages.server.client() as client:
        monkeypatch.setattr(storage._connection, "run", unheard)
        held.append(await reserve(storage, limits=four))
        assert isinstance(await storage.reserve(KEY, four, 0), Shortage)
        assert client.zcard(OPEN) == 3
        for one in held:
            await storage.settle(one, None)
        await until(lambda: client.zcard(OPEN) == 0)


async def test_a_redis_that_has_lost_its_data_gives_nobody_twice_the_places(
    own: Storages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replica knows its own, and tells of them before long."""
    monkeypatch.setattr(open_requests, "_SAID_SOON", 0.01)
    storage, other = own.make(budget=0.5), own.make()
    held = [await reserve(storage, 10, limits=Limits(SLOW.requests, SLOW.tokens, 2)) for _ in range(2)]
    own.server.flush()
    answer = await storage.reserve(KEY, Limits(SLOW.requests, SLOW.tokens, 2), 10)
    assert isinstance(answer, Shortage)
    assert answer.dimension == "concurrency"
    with own.server.client() as client:
        await until(lambda: not storage._giving_back and client.zcard(OPEN) == 2)
        assert kept_requests(client) == pytest.approx(8, abs=0.1)  # nothing is charged for it
    assert isinstance(await other.reserve(KEY, TWO_AT_ONCE, 0), Shortage)
    await storage.settle(held[0], 10)
    await reserve(other, limits=TWO_AT_ONCE)


async def test_a_storage_that_was_closed_asks_for_nothing_any_more(own: Storages) -> None:
    """Although it was closed while a request was about to end."""
    storage = own.make()
    held, other = [await reserve(storage, limits=TWO_AT_ONCE) for _ in range(2)]
    own.server.pause()
    ending = asyncio.create_task(storage.settle(held, 0))
    link = storage._connection._link
    await until(lambda: link is not None and link._waiting)
    await storage.aclose()
    await ending
    assert storage._open._holding is None
    own.server.resume()
    await storage.settle(other, 0)
    with own.server.client() as client:
        assert client.zcard(OPEN) < 2


async def test_nothing_is_said_again_once_no_request_is_open(
    storages: Storages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_requests, "_SAID_AGAIN", 0.01)
    storage = storages.make()
    for _ in range(2):
        held = await reserve(storage, limits=TWO_AT_ONCE)
        assert storage._open._holding is not None
        await storage.settle(held, 0)
        await until(lambda: storage._open._holding is None)


async def test_requests_that_began_without_redis_are_told_when_it_is_back(
    own: Storages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_requests, "_SAID_SOON", 0.01)
    storage = own.make(budget=0.1)
    assert await storage._connection.connect()
    own.server.kill()
    await until(lambda: not storage._connection.is_up)
    held = await reserve(storage, limits=TWO_AT_ONCE)
    own.server.start()
    with own.server.client() as client:
        await until(lambda: client.zcard(OPEN) == 1)
        await storage.settle(held, None)
        await until(lambda: client.zcard(OPEN) == 0)
