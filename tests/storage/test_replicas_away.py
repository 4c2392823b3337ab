"""What several replicas let through of one agent while their Redis goes away and comes back, by the test's clock."""

import math
from random import Random
from typing import Any

import pytest

from mcp_middleware.storage import Limit, Limits, RedisStorage, Reservation, Shortage, StorageUnavailableError
from mcp_middleware.testing import FakeClock

from .storages import KEY, Storages, admitted, reserve

STEP = 0.05


async def lose(storage: RedisStorage) -> None:
    connection = storage._connection
    assert connection._link is not None
    gone = connection._link.gone
    connection._link.lose("as a test says")
    assert connection._again is not None
    connection._again.cancel()
    await gone.wait()


@pytest.mark.parametrize("seed", range(24))
async def test_case_27_an_outage_gives_nobody_more_than_the_burst_and_the_rate(storages: Storages, seed: int) -> None:
    """Replicas that are asked all the time, whatever Redis loses, and whichever of them is back first."""
    random = Random(seed)
    clock = FakeClock()
    number = random.randint(1, 4)
    replicas = [storages.make(clock=clock, replicas=number) for _ in range(number)]
    burst, rate = random.choice([(60, 30), (40, 8), (100, 100)])
    limits = Limits(Limit(burst, rate), Limit(100 * burst, 50 * rate) if seed % 2 else None)
    moments: list[float] = []

    async def run(seconds: float, back: dict[RedisStorage, float] | None = None) -> None:
        ends, began = clock() + seconds, clock()
        while clock() < ends:
            for storage in random.sample(replicas, number):
                if back and back.get(storage, math.inf) <= clock() - began:
                    del back[storage]
                    assert await storage._connection.connect()
                for _ in range(20):
                    answer = await storage.reserve(KEY, limits, 0)
                    if not isinstance(answer, Reservation):
                        break
                    moments.append(clock())
            clock.advance(STEP)

    await run(random.uniform(1, 4))
    for _ in range(3):
        for storage in replicas:
            await lose(storage)
        if random.random() < 0.5:
            storages.server.flush()
        await run(random.choice([0.1, 0.5, 2, 4, 10]))
        await run(3, {storage: random.uniform(0, 2.5) for storage in replicas})
        await run(random.uniform(0, 6))
    above = -math.inf
    begin = math.inf
    for index, moment in enumerate(moments):
        begin = min(begin, index - rate * moment)
        above = max(above, index + 1 - rate * moment - begin - burst)
    assert above <= 1e-6
    assert len(moments) >= burst + rate * (clock() - moments[0]) - max(1, rate * STEP) - 1


@pytest.mark.parametrize("said", [3, 1])
async def test_what_one_replica_alone_takes_for_an_outage_costs_nothing(storages: Storages, said: int) -> None:
    """The others ask on, and are refused: nothing flows into shares of theirs, so nothing is kept for them; nor is
    anything brought for more replicas than were said."""
    clock = FakeClock()
    replicas = [storages.make(clock=clock, replicas=said) for _ in range(3)]
    limits = Limits(Limit(60, 10), None)
    let_through = sum([await admitted(storage, 20, limits) for storage in replicas])
    for number in range(24):
        alone = replicas[number % 3]
        await lose(alone)
        clock.advance(STEP)
        let_through += await admitted(alone, 1, limits)
        assert await alone._connection.connect()
        let_through += sum([await admitted(storage, 1, limits) for storage in (alone, *replicas)])
        clock.advance(STEP)
    assert let_through + await admitted(alone, 60, limits) == 60 + 24


async def test_outages_in_a_row_keep_nothing_twice(storages: Storages) -> None:
    """For a replica that nobody asks for the agent: half of what flows in until three seconds after the last."""
    clock = FakeClock()
    storage = storages.make(clock=clock, replicas=2)
    limits = Limits(Limit(60, 10), None)
    let_through = await admitted(storage, 60, limits)
    for _ in range(10):
        await lose(storage)
        assert await storage._connection.connect()
        let_through += await admitted(storage, 10, limits)
        clock.advance(0.5)
    clock.advance(3)
    assert let_through + await admitted(storage, 60, limits) == 60 + 80 - 38


async def test_what_flowed_in_before_all_lost_redis_is_not_brought_again(storages: Storages) -> None:
    """By who had lost it before: the bucket filled meanwhile, for those who were left, and the share too."""
    clock = FakeClock()
    one, other = (storages.make(clock=clock, replicas=2) for _ in range(2))
    limits = Limits(Limit(100, 10), None)
    let_through = sum([await admitted(storage, 50, limits) for storage in (one, other)])
    await lose(one)
    let_through += await admitted(one, 1, limits)
    clock.advance(1)
    let_through += await admitted(other, 20, limits)
    await lose(other)
    let_through += await admitted(other, 1, limits)
    clock.advance(1)
    for storage in (other, one):
        assert await storage._connection.connect()
    for storage in (other, one, other, one):
        let_through += await admitted(storage, 100, limits)
    assert let_through == 100 + 20


async def test_who_stays_away_while_another_loses_redis_again_brings_all(storages: Storages) -> None:
    clock = FakeClock()
    one, other = (storages.make(clock=clock, replicas=2) for _ in range(2))
    limits = Limits(Limit(100, 10), None)
    let_through = sum([await admitted(storage, 50, limits) for storage in (one, other)])
    await lose(one)
    let_through += await admitted(one, 1, limits)
    for _ in range(2):
        await lose(other)
        let_through += await admitted(other, 1, limits)
        clock.advance(0.5)
        assert await other._connection.connect()
        let_through += await admitted(other, 100, limits)
        clock.advance(0.5)
    assert await one._connection.connect()
    for storage in (one, other, one):
        let_through += await admitted(storage, 100, limits)
    assert let_through == 100 + 20


async def test_what_a_replica_brought_and_got_no_answer_to_counts_once(
    storages: Storages, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = FakeClock()
    one, other = (storages.make(clock=clock, replicas=2) for _ in range(2))
    limits = Limits(Limit(100, 10), None)
    for storage in (one, other):
        assert await admitted(storage, 40, limits) == 40
        await lose(storage)
    assert [await admitted(one, 20, limits), await admitted(other, 1, limits)] == [20, 1]
    clock.advance(4)
    assert await one._connection.connect()
    run = one._connection.run

    async def unheard(*command: Any) -> Any:
        await run(*command)
        raise StorageUnavailableError("the link broke", sent=True)

    with monkeypatch.context() as patch:
        patch.setattr(one._connection, "run", unheard)
        assert (await reserve(one, limits=limits)).local
    assert await other._connection.connect()
    # 20 were left, 20 flowed into each share, 22 went out; one of these is not told yet, and was taken here too.
    assert await admitted(other, 100, limits) == 38
    shortage = await one.reserve(KEY, limits, 0)
    assert isinstance(shortage, Shortage)
    assert shortage.retry_after_ms == 200
