"""Who is cancelled while Redis is asked: is so at once, leaves nothing behind, and is cancelled no more than that."""

import asyncio
import socket
from typing import Any

import anyio
import pytest

from mcp_middleware.storage import (
    Limits,
    RedisConnection,
    RedisStorage,
    StorageUnavailableError,
    connection,
    open_requests,
)
from mcp_middleware.storage.budgets import Spending, Wallet

from .redis_server import RedisServer
from .storages import KEY, OPEN, SLOW, Storages, kept_requests, reserve, until

LIMITED = Limits(SLOW.requests, SLOW.tokens, concurrency=2)
MONTH = (Wallet("EUR month", "month", 100),)


@pytest.mark.parametrize("is_there", [False, True])
async def test_case_41_what_was_taken_for_somebody_who_was_cancelled_is_given_back(
    own: Storages, is_there: bool
) -> None:
    """Whether the answer comes after that, or is there already and nobody has looked at it."""
    storage = own.make()
    held = await reserve(storage, 100, LIMITED)
    assert isinstance(await storage.budgets.spend(KEY, MONTH, 10), Spending)
    link: Any = storage._connection._link
    own.server.pause()
    asking = [
        asyncio.create_task(storage.reserve(KEY, LIMITED, 500)),
        asyncio.create_task(storage.budgets.spend(KEY, MONTH, 20)),
    ]
    await until(lambda: len(link._waiting) == 2 and not link._outbox)

    def cancel() -> None:
        for task in asking:
            task.cancel()

    if is_there:
        received = link.data_received

        def received_and_cancelled(data: bytes) -> None:
            received(data)
            cancel()  # with the first: the other one's answer may be in a later packet

        link.data_received = received_and_cancelled
        own.server.resume()
    else:
        cancel()
    await asyncio.wait(asking)
    assert all(task.cancelled() for task in asking)
    own.server.resume()
    await until(lambda: not link._waiting and not storage._giving_back and not storage.budgets.giving_back)
    with own.server.client() as client:
        assert client.zrange(OPEN, 0, -1) == [held.place]
        assert kept_requests(client) == pytest.approx(9, abs=0.1)
        assert client.hget(b"mcp_middleware:budget:{" + KEY.hex().encode() + b"}", "EUR month") == b"10"


async def test_what_came_of_it_is_not_known_where_the_link_breaks_and_is_free_later(
    own: Storages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_requests, "_SAID_SOON", 0.01)
    storage = own.make(budget=0.2)
    await reserve(storage, 0, LIMITED)
    own.server.pause()
    asking = asyncio.create_task(storage.reserve(KEY, LIMITED, 0))
    link: Any = storage._connection._link
    await until(lambda: link._waiting and not link._outbox)
    asking.cancel()
    link.lose("as a test says")
    await asyncio.wait({asking})
    assert asking.cancelled()
    own.server.resume()
    with own.server.client() as client:  # given by then, and said to be free
        await until(lambda: client.zcard(OPEN) == 1)


async def test_whoever_cancels_is_told_so_and_nobody_else(own: Storages) -> None:
    storage = own.make()
    await reserve(storage)
    own.server.pause()

    async def fail() -> None:
        raise ValueError

    async def together() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail())
            await reserve(storage)

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await reserve(storage)
    await asyncio.sleep(0)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reserve(storage), 0.01)
    await asyncio.sleep(0)
    with pytest.raises(ExceptionGroup):
        await together()
    await asyncio.sleep(0)
    with anyio.move_on_after(0.01) as scope:
        await reserve(storage)
    assert scope.cancelled_caught
    await asyncio.sleep(0)


async def test_a_redis_that_takes_connections_and_is_mute_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_ATTEMPT", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        storage = RedisStorage(RedisConnection(f"redis://127.0.0.1:{mute.getsockname()[1]}/0", budget=0.01))
        async with asyncio.timeout(30):
            assert not await storage._connection.connect()
            assert (await reserve(storage)).local
            await storage.aclose()


async def test_who_is_cancelled_before_anything_is_asked_owes_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    with socket.create_server(("127.0.0.1", 0)) as mute:
        redis = RedisConnection(f"redis://127.0.0.1:{mute.getsockname()[1]}/0", budget=10)
        asking = asyncio.create_task(redis.run(connection.Script("clock.lua"), (b"key",), (), told.append))
        await asyncio.sleep(0.01)
        asking.cancel()
        await asyncio.wait({asking})
        assert asking.cancelled()
        assert isinstance(told[0], StorageUnavailableError)
        assert not told[0].sent
        await redis.aclose()


async def test_a_password_stands_in_no_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Some stores know no AUTH, and repeat what they were told."""
    server = RedisServer("--rename-command", "AUTH", "")
    try:
        url = server.url.replace("redis://", "redis://somebody:of-nobodys-business@")
        redis = RedisConnection(url, budget=10)
        assert not await redis.connect()
        await redis.aclose()
    finally:
        server.kill()
    assert "unknown command" in caplog.text
    assert "of-nobodys-business" not in caplog.text
