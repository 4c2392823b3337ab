"""Buckets while Redis is away, and after it has lost its data: no burst twice, and nothing charged twice."""

import asyncio
import logging
import math
from dataclasses import replace

import pytest

from mcp_middleware.storage import (
    Limit,
    Limits,
    RedisStorage,
    Reservation,
    Shortage,
)
from mcp_middleware.testing import FakeClock

from .storages import (
    KEY,
    NAME,
    SLOW,
    Storages,
    admitted,
    kept_requests,
    reserve,
    until,
)


async def test_flushed_data_gives_no_new_burst(storages: Storages) -> None:
    storage = storages.make()
    assert await admitted(storage, 8, tokens=100) == 8
    storages.server.flush()
    assert (await reserve(storage)).remaining_tokens == pytest.approx(200, abs=0.1)
    assert await admitted(storage, 5) == 1


async def test_what_is_settled_after_the_loss_gives_no_new_burst_either(storages: Storages) -> None:
    storage = storages.make()
    reservations = [await reserve(storage, 100) for _ in range(8)]
    storages.server.flush()
    assert await storage.settle(reservations[0], 150) == pytest.approx(150, abs=0.1)
    assert (await reserve(storage)).remaining_requests == pytest.approx(1, abs=0.1)
    assert await admitted(storage, 5) == 1


async def test_a_bucket_that_was_filled_up_is_not_taken_for_lost(storages: Storages) -> None:
    """Another replica gave back what this one believes used, and Redis let go of the full bucket."""
    quick = Limits(None, Limit(1000, 1000))
    one, other = storages.make(), storages.make()
    reservation = await reserve(one, 1000, quick)
    assert isinstance(await other.reserve(KEY, quick, 900), Shortage)
    await one.settle(reservation, 0)
    with storages.server.client() as client:
        await until(lambda: not client.exists(NAME))
    assert (await reserve(other, 0, quick)).remaining_tokens == 1000


async def test_nothing_listens(caplog: pytest.LogCaptureFixture) -> None:
    storage = RedisStorage("redis://user:hunter2@127.0.0.1:1/0", replicas=5)
    assert await admitted(storage, 20) == 2
    assert "127.0.0.1:1" in caplog.text
    assert "hunter2" not in caplog.text
    await storage.aclose()


async def test_a_killed_redis_leaves_each_replica_its_share(own: Storages, caplog: pytest.LogCaptureFixture) -> None:
    replicas = [own.make(replicas=2) for _ in range(2)]
    assert [await admitted(replica, 2, tokens=10) for replica in replicas] == [2, 2]
    own.server.kill()
    with caplog.at_level(logging.WARNING):
        # 8 and 6 were left when each was told last, so half of that is admitted.
        assert [await admitted(replica, 20) for replica in replicas] == [4, 3]
    assert [record.getMessage() for record in caplog.records if "is away" in record.getMessage()]
    fresh = own.make(replicas=2)  # has never seen Redis, nor this agent
    assert await admitted(fresh, 20) == 5


async def test_back_again_everything_counts_once(own: Storages) -> None:
    storage = own.make(replicas=2)
    assert await admitted(storage, 2, tokens=100) == 2
    own.server.kill()
    pending = await reserve(storage, 100)
    assert isinstance(pending, Reservation)
    assert await admitted(storage, 20) == 3
    own.server.start()
    assert await storage._connection.connect()
    await storage.settle(pending, 300)
    # 10 less 2 through Redis and 4 through the share, and this one.
    after = await reserve(storage)
    assert after.remaining_requests == pytest.approx(3, abs=0.1)
    assert after.remaining_tokens == pytest.approx(500, abs=0.1)
    assert await admitted(storage, 20) == 3


@pytest.mark.parametrize("replicas", [1, 2])
async def test_what_flowed_back_while_redis_was_away_is_not_owed(own: Storages, replicas: int) -> None:
    """An agent that used what it may all the time may do so when Redis is back."""
    clock = FakeClock()
    storages = [own.make(replicas=replicas, clock=clock) for _ in range(replicas)]
    limits = Limits(Limit(10, 1), Limit(1000, 100))
    under_way = [await reserve(storage, 50, limits) for storage in storages]
    own.server.kill()
    await until(lambda: not any(storage._connection.is_up for storage in storages))
    for storage, reservation in zip(storages, under_way, strict=True):
        await storage.settle(reservation, 150)
    for number in range(300):
        clock.advance(1)
        storage = storages[number % replicas]
        await storage.settle(await reserve(storage, 50, limits), 100)
    own.server.start()
    for storage in storages:
        assert await storage._connection.connect()
    for _ in range(2):
        for storage in storages:
            assert not (await reserve(storage, 50, limits)).local
            clock.advance(1)
    clock.advance(100)
    assert await admitted(storages[0], 20, limits) == 10


@pytest.mark.parametrize("before", [Limits(SLOW.requests, None), Limits(None, SLOW.tokens), Limits(None, None)])
async def test_a_limit_that_is_new_in_an_outage_begins_full(own: Storages, before: Limits) -> None:
    """And counts once, as the others do, however many requests were let through while there was none."""
    storage = own.make(replicas=2)
    await reserve(storage, 10, before)
    own.server.kill()
    held = [await reserve(storage, 10, before) for _ in range(2)]
    await reserve(storage, 100)
    own.server.start()
    assert await storage._connection.connect()
    after = await reserve(storage)
    told = (round(after.remaining_requests), round(after.remaining_tokens))
    assert told == (5 if before.requests else 8, 870 if before.tokens else 900)
    for one in held:
        await storage.settle(one, 0)
    assert round((await reserve(storage)).remaining_tokens) == (890 if before.tokens else 900)


@pytest.mark.parametrize("nonsense", [math.inf, -math.inf, math.nan])
async def test_what_is_no_number_poisons_no_bucket(
    storages: Storages, monkeypatch: pytest.MonkeyPatch, nonsense: float
) -> None:
    storage = storages.make()
    with monkeypatch.context() as patch:
        patch.setattr(storage, "_owed", lambda *_: (nonsense, nonsense))
        await reserve(storage, 100)
    after = await reserve(storage, 100)
    assert (round(after.remaining_requests), round(after.remaining_tokens)) == (8, 800)


async def test_settled_without_redis_counts_when_it_is_back(own: Storages) -> None:
    storage = own.make()
    reservation = await reserve(storage, 800)
    own.server.pause()
    own.server.kill()
    await until(lambda: not storage._connection.is_up)
    await storage.settle(reservation, 300)
    await storage.settle(reservation, 0)
    own.server.start()
    assert await storage._connection.connect()
    assert (await reserve(storage)).remaining_tokens == pytest.approx(700, abs=0.1)


async def test_settled_after_redis_is_back_counts_as_if_it_had_never_been_away(own: Storages) -> None:
    clock = FakeClock()
    storage, limits = own.make(clock=clock), Limits(None, Limit(1000, 100))
    await reserve(storage, 0, limits)
    own.server.kill()
    await until(lambda: not storage._connection.is_up)
    under_way = [await reserve(storage, 100, limits) for _ in range(2)]
    assert all(reservation.local for reservation in under_way)
    own.server.start()
    assert await storage._connection.connect()
    assert (await reserve(storage, 0, limits)).remaining_tokens == 800
    assert await storage.settle(under_way[0], 600) == 300
    clock.advance(4)
    assert (await reserve(storage, 0, limits)).remaining_tokens == 700
    await storage.settle(under_way[1], 600)
    own.server.kill()
    await until(lambda: not storage._connection.is_up)
    assert (await reserve(storage, 0, limits)).remaining_tokens == 200


async def test_a_paused_redis_does_not_take_later_what_nobody_waits_for(own: Storages) -> None:
    storage = own.make(budget=0.5)
    assert await storage._connection.connect()
    assert await admitted(storage, 2) == 2
    own.server.pause()
    answers = await asyncio.gather(*(storage.reserve(KEY, SLOW, 0) for _ in range(100)))
    assert sum(isinstance(answer, Reservation) for answer in answers) == 8
    await asyncio.sleep(0.1)  # so that the deadline of all hundred is over, by Redis's clock
    own.server.resume()
    with own.server.client() as client:
        client.ping()
        assert kept_requests(client) == pytest.approx(8, abs=0.1)
    assert await storage._connection.connect()
    assert await admitted(storage, 20) == 0
    with own.server.client() as client:
        assert kept_requests(client) == pytest.approx(0, abs=0.1)


async def test_what_redis_comes_to_too_late_is_not_taken(storages: Storages) -> None:
    """And a clock of Redis that was set forward is told by that answer: the next call is in time."""
    storage = storages.make(replicas=2)
    assert (await reserve(storage)).remaining_requests == pytest.approx(9, abs=0.1)
    offset = storage._connection._offset
    assert offset is not None
    storage._connection._offset = offset - 60
    local = await reserve(storage)
    assert local.remaining_requests == pytest.approx(3.5, abs=0.1)
    with storages.server.client() as client:
        assert kept_requests(client) == pytest.approx(9, abs=0.1)
    assert storage._connection._offset == pytest.approx(offset, abs=5)
    assert (await reserve(storage)).remaining_requests == pytest.approx(7, abs=0.1)


async def test_without_redis_the_open_requests_of_before_count(own: Storages) -> None:
    storage = own.make(replicas=2)
    limits = replace(SLOW, concurrency=6)
    held = [await reserve(storage, limits=limits) for _ in range(2)]
    own.server.kill()
    held.append(await reserve(storage, limits=limits))
    assert (held[-1].local, held[-1].remaining_concurrency) == (True, 0)
    shortage = await storage.reserve(KEY, limits, 0)
    assert isinstance(shortage, Shortage)
    assert (shortage.local, shortage.dimension, shortage.limit) == (True, "concurrency", 3)
    for one in held:
        await storage.settle(one, None)
    await reserve(storage, limits=limits)


async def test_without_redis_parts_have_their_share_too_and_it_is_told(own: Storages) -> None:
    storage = own.make(replicas=2)
    limits = replace(SLOW, parts=(("tool:a", Limits(Limit(4, 0.001), Limit(400, 0.001))),))
    own.server.kill()
    held = await reserve(storage, 100, limits)
    await reserve(storage, 50, limits)
    shortage = await storage.reserve(KEY, limits, 0)
    assert isinstance(shortage, Shortage)
    assert (shortage.part, shortage.local, shortage.limit) == ("tool:a", True, 2)
    await storage.settle(held, 20)
    own.server.start()
    assert await storage._connection.connect()
    back = await reserve(storage, 0, limits)
    assert [round(left) for left in back.parts[0][1:]] == [1, 330]
    assert round(back.remaining_tokens) == 930


async def test_what_redis_comes_to_too_late_to_settle_is_told_with_the_next_call(storages: Storages) -> None:
    storage = storages.make()
    held = await reserve(storage, 800, replace(SLOW, concurrency=1))
    offset = storage._connection._offset
    assert offset is not None
    storage._connection._offset = offset - 60
    await storage.settle(held, 300)
    storage._connection._offset = offset
    assert (await reserve(storage, 0, replace(SLOW, concurrency=1))).remaining_tokens == pytest.approx(700, abs=0.1)
