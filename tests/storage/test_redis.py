"""Buckets in Redis: the contract of every storage, the same figures as memory gives, and what happens without Redis."""

import asyncio
import contextlib
import logging
import math
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest

from mcp_middleware.errors import ConfigurationError
from mcp_middleware.storage import (
    Limit,
    Limits,
    LimitStorage,
    MemoryStorage,
    RedisConnection,
    RedisStorage,
    Reservation,
    Shortage,
    StorageUnavailableError,
    connection,
)
from mcp_middleware.storage import redis as redis_storage
from mcp_middleware.testing import FakeClock, LimitStorageContract
from tests.certificates import certificate, server_context

from .redis_server import RedisServer, running_redis

LIMITS = Limits(Limit(10, 1), Limit(1000, 10))
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


@pytest.fixture
async def storages(redis_server: RedisServer) -> AsyncIterator[Storages]:
    made = Storages(redis_server)
    yield made
    await made.aclose()


@pytest.fixture
async def own() -> AsyncIterator[Storages]:
    """On a server that the test may harm."""
    with running_redis() as server:
        made = Storages(server)
        yield made
        await made.aclose()


class TestRedisStorage(LimitStorageContract):
    storages: Storages

    @pytest.fixture(autouse=True)
    def on_redis(self, storages: Storages) -> None:
        self.storages = storages

    def storage(self, clock: FakeClock) -> RedisStorage:
        self.storages.server.flush()
        return self.storages.make(clock=clock)


async def reserve(storage: LimitStorage, tokens: float = 0, limits: Limits = SLOW, key: bytes = KEY) -> Reservation:
    answer = await storage.reserve(key, limits, tokens)
    assert isinstance(answer, Reservation), answer
    return answer


def kept_requests(client: Any) -> float:
    """What is left of them as Redis has it."""
    requests: float = msgspec.msgpack.decode(client.hget(NAME, ""))[0]
    return requests


async def admitted(storage: LimitStorage, calls: int, limits: Limits = SLOW, tokens: float = 0) -> int:
    answers = [await storage.reserve(KEY, limits, tokens) for _ in range(calls)]
    return sum(isinstance(answer, Reservation) for answer in answers)


async def until(holds: Callable[[], Any]) -> None:
    """Wait for what no event tells: another process, or the end of a connection."""
    while not holds():  # noqa: ASYNC110
        await asyncio.sleep(0.005)


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
    for _ in range(200):
        step = random.random()
        if step < 0.6:
            key = random.choice([b"a", b"b"])
            limits, tokens = random.choice(kinds), random.choice([0, 1, random.uniform(0, 1500)])
            expected, answer = await memory.reserve(key, limits, tokens), await shared.reserve(key, limits, tokens)
            assert seen(answer) == seen(expected)
            if isinstance(expected, Reservation) and isinstance(answer, Reservation):
                pairs.append((expected, answer))
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


def is_whole(client: Any) -> bool:
    """Whether a node of a cluster knows somebody for every slot."""
    state: str = client.execute_command("CLUSTER INFO")["cluster_state"]
    return state == "ok"


async def test_in_cluster_mode(tmp_path: Path) -> None:
    """A server that refuses scripts whose keys live apart."""
    nodes = tmp_path / "nodes.conf"
    with running_redis("--cluster-enabled", "yes", "--cluster-config-file", str(nodes)) as server:
        with server.client() as client:
            client.execute_command("CLUSTER ADDSLOTS", *range(16384))
            await until(lambda: is_whole(client))
        storage = RedisStorage(RedisConnection(server.url, budget=10))
        for number in range(50):
            reservation = await reserve(storage, 10, IN_PARTS, key=b"%d" % number)
            await storage.top_up(reservation, 5)
            await storage.settle(reservation, 5)
        assert storage._connection.is_up
        await storage.aclose()


async def test_in_a_cluster_each_key_is_asked_for_where_it_lives(tmp_path: Path) -> None:
    def node(name: str) -> Any:
        return running_redis("--cluster-enabled", "yes", "--cluster-config-file", str(tmp_path / name))

    with node("one.conf") as one, node("other.conf") as other, one.client() as here, other.client() as there:
        here.execute_command("CLUSTER ADDSLOTS", *range(8192))
        there.execute_command("CLUSTER ADDSLOTS", *range(8192, 16384))
        here.execute_command("CLUSTER MEET", "127.0.0.1", other.port)
        for client in (here, there):
            await until(partial(is_whole, client))
        storage = RedisStorage(RedisConnection(one.url, budget=10))
        for number in range(50):
            reservation = await reserve(storage, 100, key=b"%d" % number)
            await storage.settle(reservation, 50)
            assert (await reserve(storage, key=b"%d" % number)).remaining_tokens == pytest.approx(950, abs=0.1)
        assert here.dbsize() + there.dbsize() == 50
        assert min(here.dbsize(), there.dbsize()) > 10
        other.kill()
        await until(lambda: not all(node.is_up for node in storage._connection._nodes.values()))
        for number in range(50):  # those of the lost node by this replica's share
            await reserve(storage, key=b"%d" % number)
        await storage.aclose()


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
        assert 0 < client.pttl(NAME) <= 1_001
        other = b"mcp_middleware:limit:{" + b"other".hex().encode() + b"}"
        assert 40_000 < client.pttl(other) <= 50_001
        await storage.settle(half, 1500)
        assert 140_000 < client.pttl(other) <= 150_001
        await reserve(storage, 0, Limits(Limit(1e12, 1e-9), None), b"slow")  # full again in a time no number holds
        assert client.pttl(b"mcp_middleware:limit:{" + b"slow".hex().encode() + b"}") > 0


async def test_scripts_that_were_flushed_are_sent_again(storages: Storages) -> None:
    storage = storages.make()
    reservation = await reserve(storage, 100)
    with storages.server.client() as client:
        client.script_flush()
        await storage.settle(reservation, 50)
        client.script_flush()
        assert (await reserve(storage)).remaining_tokens == pytest.approx(950, abs=0.1)


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


async def test_a_busy_loop_takes_nothing_of_the_time_that_redis_has(
    storages: Storages, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = storages.make()
    await reserve(storage)
    happened: list[str] = []
    deadline = RedisConnection.deadline

    def noting(connection: RedisConnection) -> float:
        happened.append("deadline")
        return deadline(connection)

    monkeypatch.setattr(RedisConnection, "deadline", noting)
    call = asyncio.create_task(reserve(storage))
    asyncio.get_running_loop().call_soon(happened.append, "busy")  # after the call, and before what it sends is written
    await call
    assert happened == ["busy", "deadline"]


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


async def test_a_paused_redis_is_asked_once_and_then_left_alone(own: Storages) -> None:
    """The breaker: whoever comes later waits for nothing, and an attempt that hangs harms nobody."""
    storage = own.make(budget=0.5)
    assert await storage._connection.connect()
    own.server.pause()
    await reserve(storage)
    assert not storage._connection.is_up
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    counting = asyncio.create_task(count_turns())
    for _ in range(5):
        await reserve(storage)
    counting.cancel()
    assert turns <= 5  # not one of them gave the loop more than a turn


async def test_a_busy_loop_is_not_a_slow_redis(storages: Storages, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer is there, only nobody has read it: a plain timeout of 50 ms would fire after each of these."""
    import time

    storage = storages.make(budget=0.05)
    assert await storage._connection.connect()
    for _ in range(3):
        pending = asyncio.create_task(storage.reserve(KEY, SLOW, 0))
        for _ in range(3):  # so that it has been sent
            await asyncio.sleep(0)
        time.sleep(0.2)  # noqa: ASYNC251  # the loop is what is to be kept busy
        assert isinstance(await pending, Reservation)
        assert storage._connection.is_up
    assert await admitted(storage, 20) == 7


async def test_a_caller_that_goes_away_leaves_the_others_their_own_answers(storages: Storages) -> None:
    storage = storages.make()
    await reserve(storage)
    tasks = [asyncio.create_task(storage.reserve(b"%d" % n, SLOW, n)) for n in range(20)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    for number, answer in enumerate(answers):
        if number % 2:
            assert isinstance(answer, Reservation)
            assert answer.tokens == number
            assert answer.remaining_tokens == 1000 - number


async def test_a_redis_that_refuses_is_no_redis(storages: Storages, caplog: pytest.LogCaptureFixture) -> None:
    """Out of memory: it answers, at once, and does nothing."""
    storage = storages.make(replicas=2)
    await storage._connection.connect()
    with storages.server.client() as client:
        client.config_set("maxmemory", "1")
        try:
            assert await admitted(storage, 20) == 5
        finally:
            client.config_set("maxmemory", "0")
    assert len([record for record in caplog.records if "refused a command" in record.getMessage()]) == 1
    assert await admitted(storage, 20) == 5


async def test_case_42_a_redis_that_has_become_a_replica_is_left_for_whoever_took_its_name(
    own: Storages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_LONGEST_PAUSE", 0.01)
    storage = own.make(replicas=2)
    assert await admitted(storage, 4) == 4
    with own.server.client() as client:
        client.replicaof("127.0.0.1", 1)
        assert await admitted(storage, 20) == 3
        assert not storage._connection.is_up
        client.replicaof("NO", "ONE")
        while not storage._connection.is_up:
            await storage._connection.connect()
    assert await admitted(storage, 20) == 3


@pytest.mark.parametrize(("nonsense", "why"), [(b":1\r\n", "out of step"), (b"what?\r\n", "ProtocolError")])
async def test_case_42_answers_that_are_out_of_step_are_not_taken_for_others(
    caplog: pytest.LogCaptureFixture, nonsense: bytes, why: str
) -> None:
    ended = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while asked := await reader.read(65_536):
                writer.write(b"+OK\r\n" * asked.count(b"SETINFO"))
                if b"TIME" in asked:
                    writer.write(b"*2\r\n$1\r\n1\r\n$1\r\n0\r\n")
                elif b"EVAL" in asked:
                    writer.write(nonsense)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        ended.set()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        storage = RedisStorage(RedisConnection(f"redis://127.0.0.1:{port}", budget=10.0), replicas=2)
        assert await admitted(storage, 20) == 5
        assert why in caplog.text
        await ended.wait()
        await storage.aclose()


async def test_what_cannot_be_written_leaves_nobody_waiting(storages: Storages) -> None:
    storage = storages.make()
    command: Any = object()
    with pytest.raises(StorageUnavailableError):
        await storage._connection.run(redis_storage._HOLD, (OPEN,), (command,))


async def test_over_tls_and_with_answers_in_pieces(storages: Storages, tmp_path: Path) -> None:
    """Whatever kind of connection redis-py has opened, and however its answers arrive."""
    cert, private = certificate(tmp_path, "localhost")
    ended = asyncio.Event()

    async def pass_on(source: asyncio.StreamReader, target: asyncio.StreamWriter, size: int) -> None:
        with contextlib.suppress(OSError):
            while part := await source.read(size):
                target.write(part)
                await target.drain()
        target.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, there = await asyncio.open_connection("127.0.0.1", storages.server.port)
        await asyncio.gather(pass_on(reader, there, 65_536), pass_on(back, writer, 7))
        ended.set()

    async with await asyncio.start_server(relay, "127.0.0.1", 0, ssl=server_context(cert, private)) as server:
        port = server.sockets[0].getsockname()[1]
        url = f"rediss://localhost:{port}?ssl_ca_certs={cert}"
        storage = RedisStorage(RedisConnection(url, budget=10.0))
        answers = await asyncio.gather(*(storage.reserve(KEY, SLOW, 10) for _ in range(12)))
        assert [isinstance(answer, Reservation) for answer in answers] == [True] * 10 + [False] * 2
        assert not any(answer.local for answer in answers)
        await storage.aclose()
        await ended.wait()


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
    monkeypatch.setattr(redis_storage, "_SAID_AGAIN", 0.001)
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
    monkeypatch.setattr(redis_storage, "_SAID_AGAIN", 0.001)
    storage = storages.make()
    run, said = storage._connection.run, asyncio.Event()
    first, second = [await reserve(storage, limits=TWO_AT_ONCE, key=key) for key in (b"first", KEY)]

    async def slow(script: Any, keys: Any, arguments: Any) -> Any:
        if script is redis_storage._HOLD and first.key.hex().encode() in keys[0]:
            await storage.settle(second, None)
        elif script is redis_storage._HOLD:
            said.set()
        return await run(script, keys, arguments)

    monkeypatch.setattr(storage._connection, "run", slow)
    await said.wait()
    await storage.settle(first, None)
    with storages.server.client() as client:
        assert client.zcard(OPEN) == 0


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


async def test_nothing_listens(caplog: pytest.LogCaptureFixture) -> None:
    storage = RedisStorage("redis://user:hunter2@127.0.0.1:1/0", replicas=5)
    assert await admitted(storage, 20) == 2
    assert "127.0.0.1:1" in caplog.text
    assert "hunter2" not in caplog.text
    await storage.aclose()


async def test_a_password_is_shown_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    with running_redis("--requirepass", "hunter2") as server:
        url = server.url.replace("redis://", "redis://:{}@")
        for password, works in (("hunter2", True), ("hunter3", False)):
            storage = RedisStorage(RedisConnection(url.format(password), budget=10))
            await reserve(storage)
            assert storage._connection.is_up == works
            assert "hunter" not in repr(storage) + repr(storage._connection) + repr(vars(storage))
            await storage.aclose()
    assert "cannot be reached" in caplog.text
    assert "hunter" not in caplog.text


@pytest.mark.parametrize(
    "url",
    [
        *("", "hunter2", "http://:hunter2@host", "redis://:hunter2@host:port/0", "redis://h?hunter2=1"),
        *("redis://h?db=x", "redis://h/hunter2", "redis://:hunter2@h/-1", "redis://h/0/1"),
    ],
)
def test_a_wrong_url_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(ConfigurationError, match="RedisConnection: url") as caught:
        RedisStorage(url)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_what_is_no_url_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="RedisConnection: url is of type int"):
        RedisStorage(7)  # type: ignore[arg-type]


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


@pytest.mark.parametrize("value", [0, -1, math.inf, math.nan, True, "1", None])
def test_a_wrong_budget_is_refused(value: Any) -> None:
    with pytest.raises(ConfigurationError, match="RedisConnection: budget is"):
        RedisConnection("redis://localhost", budget=value)


@pytest.mark.parametrize("module", ["redis.asyncio.connection", "hiredis"])
def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigurationError, match=r"mcp-middleware\[redis\]"):
        RedisStorage("redis://localhost")


async def test_case_26_what_a_replica_remembers_is_bounded(storages: Storages) -> None:
    storage = storages.make(max_keys=50)
    for number in range(200):
        await reserve(storage, key=b"%d" % number)
    assert len(storage._known) == 50
