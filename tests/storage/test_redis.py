"""Buckets in Redis: the contract of every storage, and the same figures as memory gives."""

import asyncio
import math
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from mcp_middleware.errors import ConfigurationError
from mcp_middleware.storage import (
    Limit,
    Limits,
    MemoryStorage,
    RedisStorage,
    Reservation,
    Shortage,
)
from mcp_middleware.testing import FakeClock, LimitStorageContract

from .storages import (
    KEY,
    NAME,
    SLOW,
    Storages,
    admitted,
    reserve,
)


class TestRedisStorage(LimitStorageContract):
    storages: Storages

    @pytest.fixture(autouse=True)
    def on_redis(self, storages: Storages) -> None:
        self.storages = storages

    def storage(self, clock: FakeClock) -> RedisStorage:
        self.storages.server.flush()
        return self.storages.make(clock=clock)


def seen(answer: Reservation | Shortage) -> tuple[Any, ...]:
    if isinstance(answer, Shortage):
        return (answer.part, answer.dimension, answer.limit, answer.remaining, answer.retry_after_ms)
    left = (answer.remaining_requests, answer.remaining_tokens, answer.remaining_concurrency)
    return (answer.tokens, *left, answer.expires_at, answer.parts)


def some_limit(random: Random) -> Limit:
    return Limit(random.uniform(1, 200), 10 ** random.uniform(-3, 3))


@pytest.mark.parametrize("seed", range(20))
async def test_it_answers_to_the_last_digit_as_memory_does(storages: Storages, seed: int) -> None:
    """Any order of steps, with limits that change; the levels, the waits and the reservations are the same."""
    random = Random(seed)
    clock = FakeClock(random.choice([0.0, 1_000.0, 1_790_000_000.123_456]))
    memory = MemoryStorage(clock=clock)
    shared = storages.make(clock=clock)
    pairs: list[tuple[Reservation, Reservation]] = []
    kinds = [
        Limits(some_limit(random), some_limit(random)),
        Limits(Limit(10, 1), Limit(1000, 10)),
        Limits(None, Limit(random.uniform(1, 1e6), random.uniform(0.1, 1e5))),
        Limits(Limit(3, 1 / 3), None),
        Limits(None, Limit(1000, 10)),
    ]
    parts = (("tool:a", kinds[0]), ("server:b", kinds[2]))
    kinds += [replace(kinds[0], parts=parts), replace(kinds[4], parts=parts[:1])]
    refused: list[tuple[bytes, Limits, float]] = []
    for key in (b"a", b"b"):  # memory forgets full buckets when a new principal comes: afterwards none does
        for storage in (memory, shared):
            await storage.reserve(key, replace(kinds[1], parts=parts), 1)
    for _ in range(200):
        step = random.random()
        if step < 0.6:
            key = random.choice([b"a", b"b"])
            limits, tokens = random.choice(kinds), random.choice([0, 1, random.uniform(0, 1500)])
            if refused and step < 0.3:
                key, limits, tokens = random.choice(refused)
            expected, answer = await memory.reserve(key, limits, tokens), await shared.reserve(key, limits, tokens)
            assert seen(answer) == seen(expected)
            if isinstance(expected, Reservation) and isinstance(answer, Reservation):
                pairs.append((expected, answer))
            elif isinstance(answer, Shortage) and answer.retry_after_ms < 20_000:
                refused = [*refused[-5:], (key, limits, tokens)]
                clock.advance(random.choice([0, 0, answer.retry_after_ms / 1000]))
        elif step < 0.8 and pairs:
            actual = random.uniform(0, 2000)
            expected, answer = random.choice(pairs)
            if step < 0.65:
                assert await shared.top_up(answer, actual) == await memory.top_up(expected, actual)
            else:
                used = random.choice([actual, None])
                assert await shared.settle(answer, used) == await memory.settle(expected, used)
        else:
            clock.advance(random.choice([0.001, 0.1, 1, random.uniform(-2, 20)]))


async def test_case_28_waiting_retry_after_is_enough_in_a_thousand_states(storages: Storages) -> None:
    random = Random(7)
    clock = FakeClock(1_790_000_000.5)
    storage = storages.make(clock=clock)
    for number in range(1000):
        limits = Limits(Limit(random.uniform(1, 50), random.uniform(0.01, 10)), Limit(1000, random.uniform(0.1, 100)))
        key, tokens = b"%d" % number, random.uniform(1, 900)
        while isinstance(answer := await storage.reserve(key, limits, tokens), Reservation):
            clock.advance(random.uniform(0, 0.01))
        clock.advance((answer.retry_after_ms - 1) / 1000 - 0.0005)
        assert isinstance(await storage.reserve(key, limits, tokens), Shortage)
        clock.advance(0.0015)
        assert isinstance(await storage.reserve(key, limits, tokens), Reservation)


async def test_a_replica_whose_clock_is_wrong_changes_nothing(
    storages: Storages, monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    right, wrong = storages.make(), storages.make()
    assert await admitted(right, 5) == 5
    monkeypatch.setattr(time, "time", lambda: 11.0)
    assert await admitted(wrong, 6) == 5
    assert await admitted(right, 1) == 0


async def test_case_27_replicas_share_the_buckets(storages: Storages) -> None:
    replicas = [storages.make() for _ in range(4)]
    answers = await asyncio.gather(*(replica.reserve(KEY, SLOW, 30) for replica in replicas for _ in range(40)))
    assert sum(isinstance(answer, Reservation) for answer in answers) == 10


async def test_what_one_replica_settles_another_sees(storages: Storages) -> None:
    one, other = storages.make(), storages.make()
    reservation = await reserve(one, 800)
    assert (await reserve(other)).remaining_tokens == pytest.approx(200, abs=0.1)
    await one.settle(reservation, 1500)
    assert isinstance(await other.reserve(KEY, SLOW, 1), Shortage)


async def test_one_key_for_a_principal_whose_place_in_a_cluster_its_braces_decide(storages: Storages) -> None:
    storage = storages.make(prefix="gateway:eu")
    await reserve(storage, 10)
    with storages.server.client() as client:
        assert client.keys() == [b"gateway:eu:limit:{" + KEY.hex().encode() + b"}"]


async def test_whole_numbers_of_any_size_are_understood(storages: Storages) -> None:
    storage = storages.make()
    reservation = await reserve(storage, 10**30, Limits(None, Limit(1000, 1), concurrency=10**30))
    assert not reservation.local
    assert await storage.top_up(reservation, 10**30) == -1e15
    assert await storage.settle(reservation, 10**30) == -1e15


async def test_full_buckets_leave_nothing_behind(storages: Storages) -> None:
    storage = storages.make()
    await reserve(storage, 10, Limits(Limit(10, 1), Limit(1000, 10)))
    half = await reserve(storage, 500, Limits(Limit(10, 1), Limit(1000, 10)), b"other")
    with storages.server.client() as client:
        assert 0 < client.pttl(NAME) <= 2_000  # to the next whole second
        other = b"mcp_middleware:limit:{" + b"other".hex().encode() + b"}"
        assert 40_000 < client.pttl(other) <= 51_000
        await storage.settle(half, 1500)
        assert 140_000 < client.pttl(other) <= 151_000
        await reserve(storage, 0, Limits(Limit(1e12, 1e-9), None), b"slow")  # full again in a time no number holds
        assert client.pttl(b"mcp_middleware:limit:{" + b"slow".hex().encode() + b"}") > 0


async def test_full_buckets_for_which_a_request_waits_are_kept(storages: Storages) -> None:
    """Else a large request would lose its turn by the time it comes back, again and again."""
    storage, limits = storages.make(), Limits(None, Limit(1000, 1000))
    await reserve(storage, 1000, limits)
    assert isinstance(await storage.reserve(KEY, limits, 1000), Shortage)
    with storages.server.client() as client:
        assert 2_000 < client.pttl(NAME) <= 7_000


async def test_scripts_that_were_flushed_are_sent_again(storages: Storages) -> None:
    storage = storages.make()
    reservation = await reserve(storage, 100)
    with storages.server.client() as client:
        client.script_flush()
        await storage.settle(reservation, 50)
        client.script_flush()
        assert (await reserve(storage)).remaining_tokens == pytest.approx(950, abs=0.1)


WRONG: dict[str, list[Any]] = {
    "replicas": [0, -1, True, 1.5, "2", None],
    "max_keys": [0, True, None],
    "reservation_lifetime": [0, -1, math.inf, math.nan, True, "1"],
    "prefix": ["", "a b", "a{b", "a}b", "é", None, b"a"],
}


@pytest.mark.parametrize(("option", "value"), [(option, value) for option, values in WRONG.items() for value in values])
def test_a_wrong_option_is_refused_by_name(option: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"RedisStorage: {option} is"):
        RedisStorage("redis://localhost", **{option: value})


async def test_case_26_what_a_replica_remembers_is_bounded(storages: Storages) -> None:
    storage = storages.make(max_keys=50)
    for number in range(200):
        await reserve(storage, key=b"%d" % number)
    assert len(storage._known) == 50
